"""How a version gets its graphs (graphs.py has the design): shared with those of its shape, or of its own, checked
either way, in the precision that was asked for.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from trimtab._native import Slab
from trimtab.kernels.cuda_graph import GraphColumns
from trimtab.kernels.device import Executor
from trimtab.kernels.program import ColumnProgram
from trimtab.kernels.sketch import Sketch
from trimtab.models.architectures import Forward, Network
from trimtab.models.device_columns import DeviceColumns
from trimtab.models.flat import Flat
from trimtab.models.graphs import GraphedRun, HostColumns, Intake
from trimtab.models.machine import Machine
from trimtab.models.sharing import LOWER, GraphError, GraphWeights, VersionGraphs, Wanted, graphs_for
from trimtab.models.staging import bucket_for, bucket_sizes, padded_sizes
from trimtab.models.traced import traced
from trimtab.models.version import LoadedVersion

__all__ = ["TOLERANCE", "Columns", "Known", "VersionRun", "compiled_pass", "graph_version", "try_ways"]

_log = logging.getLogger(__name__)
TOLERANCE = {"fp32": 1e-4, "fp16": 4e-3, "bf16": 3e-2}
"""How far a prediction may be from the eager one in fp32, absolutely (in units of the target's scale) plus relatively:
fp32 sums in another order; the others some eight roundings of the dtype's own (2^-11, 2^-8)."""

P = ParamSpec("P")
T = TypeVar("T")
Columns = Callable[[ColumnProgram], GraphColumns | str]
"""A program's columns for captured batches, or why they cannot run on the device."""
Known = MutableMapping[str, GraphedRun]
"""Graphs by what they compute. One that does not keep them (WeakValueDictionary): the versions do."""


class VersionRun(VersionGraphs[GraphedRun]):
    """One version's predictions by graphs, its own or shared ones."""

    def bucket(self, n: int) -> int:
        """Rows of the graph that runs n rows."""
        return bucket_for(n, self.graphs.most)

    def predict(self, n: int, write: Callable[..., object]) -> NDArray[np.float32]:
        """See GraphedRun."""
        return self.graphs.predict(n, write, self.weights)

    def run(self, executor: Executor, slab: Slab, sketch: Sketch | None, start: int, stop: int) -> NDArray[np.float32]:
        """float32 [n, K] predictions of the slab's rows [start, stop), which are counted for the sketch: at once by the
        executor, or until `settle` on the device."""
        return self.predict(stop - start, self.graphs.intake.writer(executor, slab, sketch, start, stop))

    def settle(self) -> None:
        """See GraphedRun."""
        self.graphs.settle()


def graph_version(
    version: LoadedVersion,
    most: int,
    machine: Machine,
    *,
    precision: str = "fp32",
    compiled: bool = False,
    known: Known | None = None,
    columns: Columns | None = None,
) -> VersionRun:
    """The version's forward pass as graphs for batches of up to `most` rows, checked against the eager one. With
    `known`, by the graphs of its shape that are there, or by new ones that are added; with `columns`, beginning with
    the columns and the sketch. Takes as long as capturing does, and compiling if that is asked for. Raises GraphError
    with the reason where it cannot run so, and what breaks the device as it is."""
    return graphs_for(_Wanted(version, most, machine, precision, compiled, columns), known)


def compiled_pass(whole: Callable[P, T]) -> Callable[P, T]:
    """What torch.compile makes of a function that nothing else compiles."""
    # Code of its own: torch keeps what it compiles with the code, gives up on the ninth kind of weights for the same,
    # and would keep those of versions that were let go.
    whole.__code__ = whole.__code__.replace()
    # Sizes are unknown to the compiler: one for each bucket would be as many compilations.
    made: Callable[P, T] = torch.compile(whole, dynamic=True, fullgraph=True)
    return made


def try_ways(
    number: int,
    ways: Iterable[tuple[str, bool, bool]],
    attempt: Callable[[str, bool, bool], tuple[str, str]],
    tell: Callable[[int, str], None],
) -> None:
    """Has a version run by graphs made in the first of the ways (precision, whether compiled, whether with columns)
    that works, eagerly where none does. `attempt` makes them, and says what memory they take and what else is to be
    known of them; it raises GraphError where that does not work. `tell` hears what is not as it was asked for."""
    reasons: list[str] = []
    for precision, compiled, with_columns in ways:
        began = time.monotonic()
        how = f"by graphs{' of columns and model' if with_columns else ''} in {precision}"
        how += ", compiled" if compiled else ""
        try:
            taken, note = attempt(precision, compiled, with_columns)
        except GraphError as error:
            reasons.append(f"not {how}: {error}")
            continue
        took = f"{taken}, capturing and checking took {time.monotonic() - began:.1f} s"
        message = f"version {number} runs {how} ({took}){''.join(f'; {one}' for one in (*reasons, note) if one)}"
        if reasons or compiled or precision != "fp32" or note:
            tell(number, message)
        else:
            _log.info("%s", message)
        return
    tell(number, f"version {number} runs eagerly: {'; '.join(dict.fromkeys(reasons))}")


@dataclass(frozen=True)
class _Wanted(Wanted[Network, None, GraphedRun, VersionRun]):
    """Arguments of `graph_version`."""

    version: LoadedVersion
    most: int
    machine: Machine
    precision: str
    compiled: bool
    columns: Columns | None

    @property
    def module(self) -> Network:
        """See Wanted."""
        return self.version.module

    @property
    def flat(self) -> Flat | None:
        """See Wanted."""
        return self.version.flat

    @property
    def hooks(self) -> None:
        """See Wanted: nothing."""

    def shape(self, weights: Flat) -> str:
        """See Wanted."""
        manifest, program = self.version.manifest, self.version.program
        # A seed is where the weights came from, no part of what is computed.
        architecture = {key: value for key, value in manifest.architecture.items() if key != "seed"}
        way = [self.most, self.precision, self.compiled, self.columns is not None]
        what = [architecture, self.version.module.code, program.hash, program.sketch.hash]
        parts: list[Any] = [weights.layout.hash, *what, way]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()

    def intake(self) -> Intake:
        """A new one. Raises GraphError where the columns cannot run on the device."""
        program = self.version.program
        if self.columns is None:
            return HostColumns(program.n_features, len(program.id_sizes))
        made = self.columns(program)
        if isinstance(made, str):
            raise GraphError(f"its columns cannot run there: {made}")
        return DeviceColumns(made, self.machine, self.most)

    def trace(self, module: Network, hooks: None, weights: Flat) -> str:
        """See Wanted."""
        program, device = self.version.program, self.version.device
        features = torch.zeros(2, program.n_features, device=device)
        ids = torch.zeros(2, len(program.id_sizes), dtype=torch.int64, device=device)
        forward = self._pass(module)
        return traced(lambda: forward(features, ids), weights, [features, ids])

    def capture(self, module: Network, hooks: None, weights: GraphWeights | None) -> GraphedRun:
        """See Wanted."""
        whole = self._pass(module)
        made: Forward = compiled_pass(whole) if self.compiled else whole
        return GraphedRun(made, self.intake(), self.version.task.width, self.most, self.machine, weights)

    def run(self, graphs: GraphedRun, weights: Flat | None, lowered: int) -> VersionRun:
        """See Wanted."""
        return VersionRun(graphs, weights, lowered)

    def check(self, run: VersionRun) -> None:
        """See Wanted."""
        _check(self.version, run, TOLERANCE[self.precision])

    def _pass(self, module: Network) -> Forward:
        forward, predict = _between_fp32(module.forward_of(), self.precision), self.version.task.predict

        def whole(features: Tensor, ids: Tensor) -> Tensor:
            return predict(forward(features, ids))

        return whole


def _between_fp32(forward: Forward, precision: str) -> Forward:
    """Takes and gives float32, whatever is computed in."""
    dtype = LOWER.get(precision)
    return forward if dtype is None else lambda features, ids: forward(features.to(dtype), ids).float()


def _check(version: LoadedVersion, run: VersionRun, tolerance: float) -> None:
    """Full buckets, then buckets with padding."""
    most = run.graphs.most
    for n in [*bucket_sizes(most), *padded_sizes(most)]:
        write, features, ids = run.graphs.intake.example(version, n)
        with torch.inference_mode():
            expected = version.run_eagerly(features.to(version.device), ids.to(version.device)).cpu().numpy()
        found = run.predict(n, write)
        if found.shape != expected.shape:
            raise GraphError(f"{n} rows give {list(found.shape)} by graph, not {list(expected.shape)}")
        near = tolerance * max(1.0, abs(version.task.scale))
        if not np.allclose(found, expected, rtol=tolerance, atol=near, equal_nan=True):
            raise GraphError(f"predictions on {n} made-up rows differ by more than {tolerance:g} from the eager ones")
