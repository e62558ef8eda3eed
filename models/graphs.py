"""The forward pass of a version as CUDA graphs: one for each bucket of batch sizes, replayed instead of launched.

A small network on a GPU is all launch: ten kernels of 2 µs each, and 5 µs of Python and driver before each. A graph is
launched once. What it costs: fixed shapes, hence buckets and padding (staging.py); fixed addresses, hence static
buffers, and weights that may be overwritten but not replaced (flat.py); memory of its own.

    pinned host buffer --copy in--> static inputs --graph--> static outputs --copy out--> pinned host buffer

The column executor writes straight into the pinned buffer. The graph holds the model and the task's last step; columns
and statistics run on the CPU still, so they are outside of it. The buffer's header, which they will need, is there.

Streams and ordering. Copying in, computing and copying out have a stream each, of high priority, that all versions of a
device share; events order them, and the calling thread waits for the last event alone, never for the whole device.
Batches run one after the other: the compute thread has one at a time, and waits for its answer. So there is one
staged buffer, and nothing overlaps yet; two would let the columns of a batch run beside the batch before, once the
engine asks for that. Replays are on one stream, so no two graphs of a pool run at once. Staging warms and captures on a
stream of its own, of low priority.

Memory. The graphs of a version share a pool, captured largest first, so that the smaller ones fit into what the largest
has freed. Versions do not share one: a pool is given back when its last graph goes. Capturing is kept from using a
cuBLAS workspace that graphs of another version, or the warming of the next, use on another stream. Garbage is not
collected while capturing: destroying another version's graph then would end the capture.

What cannot be captured (a model that looks at its values on the host, say) or does not agree with the eager pass on
made-up rows, also with padding behind them, runs eagerly, and the reason is told (runner.py). A lower precision and
torch.compile are ways to make the pass that is captured; each has to agree with the eager pass in fp32 within its
tolerance.

`Machine` (machine.py) is everything that needs CUDA; the rest runs, and is tested, on any machine.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from trimtab.models.architectures import Forward, Network
from trimtab.models.compiling import example_of
from trimtab.models.errors import ModelError
from trimtab.models.faults import is_fault, is_out_of_memory, let_go
from trimtab.models.flat import Flat
from trimtab.models.machine import Machine, Work
from trimtab.models.staging import Bucket, bucket_for, bucket_sizes, buffer_bytes
from trimtab.models.version import LoadedVersion

__all__ = ["TOLERANCE", "GraphError", "GraphedRun", "graph_version"]

TOLERANCE = {"fp32": 1e-4, "fp16": 4e-3, "bf16": 3e-2}
"""How far a prediction may be from the eager one in fp32, absolutely (in units of the target's scale) plus relatively:
fp32 sums in another order; the others some eight roundings of the dtype's own (2^-11, 2^-8)."""
_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class GraphError(ModelError):
    """A version cannot run by graphs; the message says why."""


class GraphedRun:
    """Predictions by graphs. Any thread; one batch at a time."""

    def __init__(self, forward: Forward, features: int, ids: int, outputs: int, most: int, machine: Machine) -> None:
        """`forward`: predictions f32[n, outputs] of features f32[n, F] and ids i64[n, C] on the machine's device. For
        batches of up to `most` rows. Raises whatever `forward` or capturing raises."""
        self.most = most
        self._machine = machine
        self._lock = threading.Lock()
        whole = Bucket(most, features, ids)
        self._host_in, self._inputs = machine.host(whole.size), machine.memory(whole.size)
        self._host_in.zero_()
        host_out, outputs_at = machine.host(most * outputs * 4), machine.memory(most * outputs * 4)
        self._host_out = host_out.view(torch.float32).view(most, outputs)
        self._outputs = outputs_at.view(torch.float32).view(most, outputs)
        self._buckets = {rows: Bucket(rows, features, ids) for rows in bucket_sizes(most)}
        with torch.inference_mode():
            replays, pool = machine.capture([self._work(forward, bucket) for bucket in self._buckets.values()])
        self._replays = dict(zip(self._buckets, replays, strict=True))
        self._staged = {
            rows: tuple(part.numpy() for part in _parts(self._host_in, bucket))
            for rows, bucket in self._buckets.items()
        }
        self.bytes = buffer_bytes(most, features, ids, outputs) + pool
        """On the device: static buffers and the graphs' pool; `graph_version` adds a copy of the weights."""

    def holds(self, n: int) -> bool:
        """Whether there is a graph for so many rows."""
        return 1 <= n <= self.most

    def predict(self, n: int, write: Callable[[NDArray[np.float32], NDArray[np.int64]], object]) -> NDArray[np.float32]:
        """float32 [n, K] predictions of the rows that `write` writes into features f32[n, F] and ids i64[n, C], every
        value of them. Raises ValueError where there is no graph for n rows, and whatever `write` raises."""
        rows = bucket_for(n, self.most)
        with self._lock:
            header, features, ids = self._staged[rows]
            write(features[:n], ids[:n])
            header[0] = n
            if n < rows:
                features[n:] = 0.0
                ids[n:] = 0
            given = [(self._inputs[: self._buckets[rows].size], self._host_in[: self._buckets[rows].size])]
            self._machine.serve(given, self._replays[rows], [(self._host_out[:n], self._outputs[:n])])
            # A copy: the next batch overwrites it, and the rows of this one are still to be kept.
            predictions: NDArray[np.float32] = self._host_out[:n].numpy().copy()
            return predictions

    def _work(self, forward: Forward, bucket: Bucket) -> Work:
        _, features, ids = _parts(self._inputs, bucket)
        into = self._outputs[: bucket.rows]

        def work() -> None:
            into.copy_(forward(features, ids))

        return work


def graph_version(
    version: LoadedVersion,
    most: int,
    machine: Machine,
    *,
    precision: str = "fp32",
    compiled: bool = False,
) -> GraphedRun:
    """The version's forward pass as graphs for batches of up to `most` rows, checked against the eager one. Takes as
    long as capturing does, and compiling if that is asked for. Raises GraphError with the reason where it cannot run
    so, and what breaks the device as it is."""
    try:
        made, copied = _pass(version, precision, compiled)
        program = version.program
        width = version.task.width
        run = GraphedRun(made, program.n_features, len(program.id_sizes), width, most, machine)
        run.bytes += copied
        _check(version, run, most, TOLERANCE[precision])
    except GraphError:
        raise
    except Exception as error:
        if is_fault(error):
            raise
        if is_out_of_memory(error):
            let_go()
            raise GraphError(f"there is no memory left for its graphs: {_first_line(error)}") from error
        raise GraphError(f"it cannot be captured: {type(error).__name__}: {_first_line(error)}") from error
    return run


def _pass(version: LoadedVersion, precision: str, compiled: bool) -> tuple[Forward, int]:
    """Features and ids to predictions; and the bytes of the weights' copy, where it works on one."""
    module, predict = version.module, version.task.predict
    forward, copied = (module.forward_of(), 0) if precision == "fp32" else _lowered(module, _DTYPES[precision])

    def whole(features: Tensor, ids: Tensor) -> Tensor:
        return predict(forward(features, ids))

    # Sizes are unknown to the compiler: one for each bucket would be as many compilations.
    made: Forward = torch.compile(whole, dynamic=True, fullgraph=True) if compiled else whole
    return made, copied


def _lowered(module: Network, dtype: torch.dtype) -> tuple[Forward, int]:
    """The forward pass by a copy of the weights in that dtype, and the copy's bytes; logits in float32 again."""
    lower = copy.deepcopy(module).to(dtype)
    # A deep copy of a view holds a copy of all that it is a view of.
    flat = Flat.adopt(lower)
    forward = lower.forward_of()
    return lambda features, ids: forward(features.to(dtype), ids).float(), flat.layout.size


def _check(version: LoadedVersion, run: GraphedRun, most: int, tolerance: float) -> None:
    """Full buckets, then buckets with padding."""
    sizes = bucket_sizes(most)
    for n in [*sizes, *sorted({size // 2 + 1 for size in sizes} - set(sizes))]:
        features, ids = example_of(version, n)
        with torch.inference_mode():
            expected = version.run_eagerly(features.to(version.device), ids.to(version.device)).cpu().numpy()

        def write(to_features: NDArray[Any], to_ids: NDArray[Any], x: Tensor = features, i: Tensor = ids) -> None:
            to_features[:], to_ids[:] = x.numpy(), i.numpy()

        found = run.predict(n, write)
        if found.shape != expected.shape:
            raise GraphError(f"{n} rows give {list(found.shape)} by graph, not {list(expected.shape)}")
        near = tolerance * max(1.0, abs(version.task.scale))
        if not np.allclose(found, expected, rtol=tolerance, atol=near, equal_nan=True):
            raise GraphError(f"predictions on {n} made-up rows differ by more than {tolerance:g} from the eager ones")


def _parts(data: Tensor, bucket: Bucket) -> tuple[Tensor, Tensor, Tensor]:
    """Header, features and ids in a staged buffer."""
    header = data[: bucket.features_at].view(torch.int64)
    features = data[bucket.features_at : bucket.features_at + bucket.rows * bucket.features * 4].view(torch.float32)
    ids = data[bucket.ids_at : bucket.size].view(torch.int64)
    return header, features.view(bucket.rows, bucket.features), ids.view(bucket.rows, bucket.ids)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason was given"])[0][:300]
