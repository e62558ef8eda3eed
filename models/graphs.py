"""The forward pass of versions as CUDA graphs: one for each bucket of batch sizes, replayed instead of launched.

A small network on a GPU is all launch: ten kernels of 2 µs each, and 5 µs of Python and driver before each. A graph is
launched once. What it costs: fixed shapes, hence buckets and padding (staging.py); fixed addresses, hence static
buffers, and weights that may be overwritten but not replaced (flat.py); memory of its own.

    pinned host buffer --copy in--> static inputs --graph--> static outputs --copy out--> pinned host buffer

What the host writes is the intake's. `HostColumns`: the CPU's column executor writes features and ids straight into the
pinned buffer, and counts; the graph holds the model and the task's last step. `DeviceColumns` (device_columns.py): the
raw columns are copied, and the graph begins with one kernel that makes features and ids of them and counts; how many
rows there are, and where they count, is in the buffer's header. Counts are on the device then until `settle`. What a
prediction is, the host counts in either case: answers come to it anyway, and 64 of them take a microsecond.

Swaps. Versions that compute the same but for their weights share one set of graphs (sharing.py): of equal shapes, and
of equal traces (traced.py), which say what a pass does and where each tensor in it comes from. The graphs' weights are
a buffer of their own, and each version keeps its weights in a second one on the device. A batch of another version than
the batch before copies that version's over first, on the stream that computes, between two replays: no answer is of two
versions, whoever asks for which, and a swap or a rollback costs the next batch one copy (bytes twice over the
bandwidth: 0.07 ms for 100 MB). So a flip of the server's table is all that a swap is, as on the CPU; and a candidate is
tried, timed and refused with the graphs that will serve it. That what is copied is all that distinguishes two versions
is not taken on trust: their traces would differ by whatever was made of weights, or is none; and each version's answers
by shared graphs are compared with its own eager pass. One that differs, keeps a state, whose weights lie in no one
buffer, or beyond `SHARED_BYTES`, gets graphs of its own, over its own weights; so does every version where that is
asked for, since two versions that are asked in turn would copy before every batch. What it costs is one more copy of
the weights in memory, and what it saves is a pool and a capture for each further version.

Streams and ordering. Copying in, computing and copying out have a stream each, of high priority, that all versions of a
device share; events order them, and the calling thread waits for the last event alone, never for the whole device.
Batches run one after the other: the compute thread has one at a time, and waits for its answer. So there is one
staged buffer, and nothing overlaps yet; two would let the columns of a batch run beside the batch before, once the
engine asks for that. Replays are on one stream, so no two graphs of a pool run at once. Staging warms and captures on a
stream of its own, of low priority. Since every batch is waited for, no copy reads weights of a version that was let go.

Memory. The graphs of a set share a pool, captured largest first, so that the smaller ones fit into what the largest
has freed. Sets do not share one: a pool is given back when the last version goes that uses it. Capturing is kept from
using a cuBLAS workspace that graphs of another set, or the warming of the next, use on another stream. Garbage is not
collected while capturing: destroying another set's graph then would end the capture.

What cannot be captured (a model that looks at its values on the host, say) or does not agree with the eager pass on
made-up rows, also with padding behind them, runs eagerly, and the reason is told (runner.py). A lower precision and
torch.compile are ways to make the pass that is captured; each has to agree with the eager pass in fp32 within its
tolerance.

`Machine` (machine.py) is everything that needs CUDA; the rest runs, and is tested, on any machine.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from trimtab._native import Slab
from trimtab.kernels.device import Executor
from trimtab.kernels.sketch import Sketch
from trimtab.models.architectures import Forward
from trimtab.models.compiling import example_of
from trimtab.models.flat import Flat
from trimtab.models.machine import Machine, Work
from trimtab.models.sharing import GraphWeights
from trimtab.models.staging import Bucket, bucket_for, bucket_sizes

if TYPE_CHECKING:
    from trimtab.models.version import LoadedVersion

__all__ = ["Example", "GraphedRun", "HostColumns", "Inputs", "Intake", "Slot"]

Inputs = Callable[[], tuple[Tensor, Tensor]]
Example = tuple[Callable[..., object], Tensor, Tensor]


class Slot(Protocol):
    """Where the host writes the batches of one bucket."""

    def open(self, n: int) -> tuple[Any, ...]:
        """What n rows are to be written to."""
        ...

    def close(self, n: int) -> None:
        """They have been: writes the header, and what is behind them."""
        ...


class Intake(Protocol):
    """What of a batch goes to the device, and how features and ids are made of it there."""

    def size(self, rows: int) -> int:
        """Bytes of a bucket's staged buffer."""
        ...

    def slot(self, host: Tensor, rows: int) -> Slot:
        """The bucket of so many rows in the staged buffer uint8 [size] on the host."""
        ...

    def inputs(self, device: Tensor, rows: int) -> Inputs:
        """What a graph does with the staged buffer uint8 [size] on the device: features f32[rows, F] and ids
        i64[rows, C] there."""
        ...

    def writer(
        self, executor: Executor, slab: Slab, sketch: Sketch | None, start: int, stop: int
    ) -> Callable[..., object]:
        """What writes the slab's rows [start, stop) into an open slot; they are counted for the sketch."""
        ...

    def example(self, version: LoadedVersion, n: int) -> Example:
        """What writes n made-up rows into an open slot; their features f32[n, F] and ids i64[n, C]."""
        ...

    def close(self) -> Callable[[], None]:
        """What brings all that was counted so far into its sketch; to be called."""
        ...

    @property
    def bytes(self) -> int:
        """Of memory on the device beside the staged buffer."""
        ...


class GraphedRun:
    """Predictions by one set of graphs, which several versions may share. Any thread; one batch at a time."""

    def __init__(
        self,
        forward: Forward,
        intake: Intake,
        outputs: int,
        most: int,
        machine: Machine,
        weights: GraphWeights | None = None,
    ) -> None:
        """`forward`: predictions f32[n, outputs] of features f32[n, F] and ids i64[n, C] on the machine's device, by
        `weights` if they are to be replaced by those of other versions. For batches of up to `most` rows. Raises
        whatever `forward` or capturing raises."""
        self.most = most
        self.intake = intake
        self._machine = machine
        self._lock = threading.Lock()
        self._weights = weights
        sizes = bucket_sizes(most)
        self._sizes = {rows: intake.size(rows) for rows in sizes}
        whole = max(self._sizes.values())
        self._host_in, self._inputs = machine.host(whole), machine.memory(whole)
        self._host_in.zero_()
        host_out, outputs_at = machine.host(most * outputs * 4), machine.memory(most * outputs * 4)
        self._host_out = host_out.view(torch.float32).view(most, outputs)
        self._outputs = outputs_at.view(torch.float32).view(most, outputs)
        with torch.inference_mode():
            replays, pool = machine.capture([self._work(forward, rows) for rows in sizes])
        self._replays = dict(zip(sizes, replays, strict=True))
        self._slots = {rows: intake.slot(self._host_in, rows) for rows in sizes}
        copied = 0 if weights is None else weights.flat.layout.size
        self.bytes = whole + most * outputs * 4 + intake.bytes + pool + copied
        """On the device: static buffers, the graphs' pool, and weights of its own."""

    def holds(self, n: int) -> bool:
        """Whether there is a graph for so many rows."""
        return 1 <= n <= self.most

    def predict(self, n: int, write: Callable[..., object], weights: Flat | None = None) -> NDArray[np.float32]:
        """float32 [n, K] predictions of the rows that `write` writes where the intake's slot says (HostColumns:
        features f32[n, F] and ids i64[n, C]), every value of them; by these weights, or those that are there.

        Raises ValueError where there is no graph for n rows, FlatError for weights of another layout, and whatever
        `write` raises."""
        rows = bucket_for(n, self.most)
        with self._lock:
            slot = self._slots[rows]
            write(*slot.open(n))
            slot.close(n)
            replay = self._replays[rows]
            if self._weights is not None:
                replay = self._weights.renewed(weights, replay)
            given = [(self._inputs[: self._sizes[rows]], self._host_in[: self._sizes[rows]])]
            self._machine.serve(given, replay, [(self._host_out[:n], self._outputs[:n])])
            # A copy: the next batch overwrites it, and the rows of this one are still to be kept.
            predictions: NDArray[np.float32] = self._host_out[:n].numpy().copy()
            return predictions

    @property
    def renewals(self) -> int:
        """How often weights were copied over those of the batch before."""
        return 0 if self._weights is None else self._weights.renewals

    def settle(self) -> None:
        """Brings what was counted on the device into its sketch."""
        with self._lock:
            collect = self.intake.close()
        collect()

    def _work(self, forward: Forward, rows: int) -> Work:
        inputs = self.intake.inputs(self._inputs, rows)
        into = self._outputs[:rows]

        def work() -> None:
            into.copy_(forward(*inputs()))

        return work


class HostColumns:
    """The intake of features and ids that the host has made (staging.Bucket)."""

    def __init__(self, features: int, ids: int) -> None:
        """Values a row."""
        self.features, self.ids = features, ids

    def size(self, rows: int) -> int:
        """See Intake."""
        return Bucket(rows, self.features, self.ids).size

    def slot(self, host: Tensor, rows: int) -> Slot:
        """See Intake."""
        return _HostSlot(_parts(host, Bucket(rows, self.features, self.ids)))

    def inputs(self, device: Tensor, rows: int) -> Inputs:
        """See Intake."""
        _, features, ids = _parts(device, Bucket(rows, self.features, self.ids))
        return lambda: (features, ids)

    def writer(
        self, executor: Executor, slab: Slab, sketch: Sketch | None, start: int, stop: int
    ) -> Callable[..., object]:
        """See Intake."""
        return lambda features, ids: executor.run(slab, sketch, start, stop, features, ids)

    def example(self, version: LoadedVersion, n: int) -> Example:
        """See Intake."""
        features, ids = example_of(version, n)

        def write(to_features: NDArray[Any], to_ids: NDArray[Any]) -> None:
            to_features[:], to_ids[:] = features.numpy(), ids.numpy()

        return write, features, ids

    def close(self) -> Callable[[], None]:
        """See Intake: nothing, counts are in the sketch at once."""
        return lambda: None

    bytes = 0
    """See Intake."""


class _HostSlot:
    def __init__(self, parts: tuple[Tensor, Tensor, Tensor]) -> None:
        self._header, self._features, self._ids = (part.numpy() for part in parts)

    def open(self, n: int) -> tuple[Any, ...]:
        return self._features[:n], self._ids[:n]

    def close(self, n: int) -> None:
        self._header[0] = n
        if n < len(self._features):
            self._features[n:] = 0.0
            self._ids[n:] = 0


def _parts(data: Tensor, bucket: Bucket) -> tuple[Tensor, Tensor, Tensor]:
    """Header, features and ids in a staged buffer."""
    header = data[: bucket.features_at].view(torch.int64)
    features = data[bucket.features_at : bucket.features_at + bucket.rows * bucket.features * 4].view(torch.float32)
    ids = data[bucket.ids_at : bucket.size].view(torch.int64)
    return header, features.view(bucket.rows, bucket.features), ids.view(bucket.rows, bucket.ids)
