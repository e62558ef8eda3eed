"""How a version gets its graphs (graphs.py has the design): shared with those of its shape, or of its own, checked
either way, in the precision that was asked for.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import MutableMapping
from dataclasses import dataclass
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
from trimtab.models.graphs import GraphedRun, HostColumns
from trimtab.models.machine import Machine
from trimtab.models.staging import bucket_for, bucket_sizes
from trimtab.models.version import LoadedVersion, Write

__all__ = ["SHARED_BYTES", "TOLERANCE", "GraphError", "Known", "VersionRun", "graph_version", "shape_of"]

TOLERANCE = {"fp32": 1e-4, "fp16": 4e-3, "bf16": 3e-2}
"""How far a prediction may be from the eager one in fp32, absolutely (in units of the target's scale) plus relatively:
fp32 sums in another order; the others some eight roundings of the dtype's own (2^-11, 2^-8)."""
SHARED_BYTES = 2 << 30
"""Of weights: beyond, a copy between two batches is a pause of more than a millisecond or two."""
_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}

Known = MutableMapping[str, GraphedRun]
"""Graphs by the shape of what they run. One that does not keep them (WeakValueDictionary): the versions do."""


class GraphError(ModelError):
    """A version cannot run by graphs; the message says why."""


@dataclass(frozen=True)
class VersionRun:
    """One version's predictions by graphs, its own or shared ones."""

    graphs: GraphedRun
    weights: Flat | None
    """Copied over the graphs' where those are another version's; None: the graphs read the version's own."""
    copied: int
    """Bytes on the device of its weights in a lower precision."""

    @property
    def bytes(self) -> int:
        """On the device, without what is shared and the version's weights in fp32."""
        return self.copied + (self.graphs.bytes if self.shared is None else 0)

    @property
    def shared(self) -> GraphedRun | None:
        """The graphs, where other versions may run by them, too."""
        return None if self.weights is None else self.graphs

    def holds(self, n: int) -> bool:
        """Whether there is a graph for so many rows."""
        return self.graphs.holds(n)

    def bucket(self, n: int) -> int:
        """Rows of the graph that runs n rows."""
        return bucket_for(n, self.graphs.most)

    def predict(self, n: int, write: Write) -> NDArray[np.float32]:
        """See GraphedRun."""
        return self.graphs.predict(n, write, self.weights)


def graph_version(
    version: LoadedVersion,
    most: int,
    machine: Machine,
    *,
    precision: str = "fp32",
    compiled: bool = False,
    known: Known | None = None,
) -> VersionRun:
    """The version's forward pass as graphs for batches of up to `most` rows, checked against the eager one. With
    `known`, by the graphs of its shape that are there, or by new ones that are added. Takes as long as capturing does,
    and compiling if that is asked for. Raises GraphError with the reason where it cannot run so, and what breaks the
    device as it is."""
    try:
        if known is not None:
            run = _shared(version, most, machine, precision, compiled, known)
            if run is not None:
                return run
        run = _own(version, most, machine, precision, compiled)
        _check(version, run, TOLERANCE[precision])
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


def shape_of(version: LoadedVersion, weights: Flat, most: int, precision: str, compiled: bool) -> str:
    """Equal for versions that differ in their weights alone, as far as files tell (sha256, hex): what one set of graphs
    may be for."""
    # A seed is where the weights came from, no part of what is computed.
    architecture = {key: value for key, value in version.manifest.architecture.items() if key != "seed"}
    parts: list[Any] = [weights.layout.hash, architecture, version.program.hash, most, precision, compiled]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _shared(
    version: LoadedVersion, most: int, machine: Machine, precision: str, compiled: bool, known: Known
) -> VersionRun | None:
    """By graphs that other versions may run by, too; None where that is not possible."""
    if version.flat is None or version.flat.layout.size > SHARED_BYTES:
        return None
    weights, copied = version.flat, 0
    if precision != "fp32":
        _, weights = _copied(version.module, _DTYPES[precision])
        copied = weights.layout.size
    shape = shape_of(version, weights, most, precision, compiled)
    graphs = known.get(shape)
    if graphs is None:
        try:
            module, mine = _copied(version.module, _DTYPES.get(precision))
        except Exception as error:
            if is_fault(error):
                raise
            return None  # a network that cannot be copied can still be captured as it is
        graphs = _captured(version, module, most, machine, precision, compiled, weights=mine, resident=weights)
    run = VersionRun(graphs, weights, copied)
    try:
        _check(version, run, TOLERANCE[precision])
    except GraphError:
        if shape not in known:
            raise  # graphs of its own would say the same
        return None
    known[shape] = graphs
    return run


def _own(version: LoadedVersion, most: int, machine: Machine, precision: str, compiled: bool) -> VersionRun:
    """By graphs over the version's own weights, or a copy of them in a lower precision."""
    module, copied = version.module, 0
    if precision != "fp32":
        module, weights = _copied(version.module, _DTYPES[precision])
        copied = weights.layout.size
    return VersionRun(_captured(version, module, most, machine, precision, compiled), None, copied)


def _captured(
    version: LoadedVersion,
    module: Network,
    most: int,
    machine: Machine,
    precision: str,
    compiled: bool,
    *,
    weights: Flat | None = None,
    resident: Flat | None = None,
) -> GraphedRun:
    forward, predict = _between_fp32(module.forward_of(), precision), version.task.predict

    def whole(features: Tensor, ids: Tensor) -> Tensor:
        return predict(forward(features, ids))

    # Sizes are unknown to the compiler: one for each bucket would be as many compilations.
    made: Forward = torch.compile(whole, dynamic=True, fullgraph=True) if compiled else whole
    intake = HostColumns(version.program.n_features, len(version.program.id_sizes))
    return GraphedRun(made, intake, version.task.width, most, machine, weights=weights, resident=resident)


def _between_fp32(forward: Forward, precision: str) -> Forward:
    """Takes and gives float32, whatever is computed in."""
    dtype = _DTYPES.get(precision)
    return forward if dtype is None else lambda features, ids: forward(features.to(dtype), ids).float()


def _copied(module: Network, dtype: torch.dtype | None) -> tuple[Network, Flat]:
    """A copy of the network, its weights in that dtype and in one buffer. Raises FlatError."""
    other = copy.deepcopy(module)
    if dtype is not None:
        other = other.to(dtype)
    # A deep copy of a view holds a copy of all that it is a view of; adopted, it holds what it needs.
    return other, Flat.adopt(other)


def _check(version: LoadedVersion, run: VersionRun, tolerance: float) -> None:
    """Full buckets, then buckets with padding."""
    sizes = bucket_sizes(run.graphs.most)
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


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason was given"])[0][:300]
