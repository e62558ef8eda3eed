"""CUDA graphs for models that take tensors: the user's own preprocessing, module and `predict`, captured as one graph
for each bucket of rows and replayed. graphs.py has the design of buckets, buffers, streams and pools; here is what is
different where inputs and outputs are whatever trimtab.toml says.

    inputs --> pinned parts --copy in--> static inputs --graph--> static outputs --copy out--> pinned parts --> outputs

All inputs lie in one buffer, each from a multiple of 256 bytes on, with room for the largest bucket (staging.offsets);
outputs likewise. A bucket uses the first rows of each part. So there is a copy for each tensor, and not one for all of
them as with columns: in return what lies in a part is always a value of its own tensor, also when a bucket is warmed
and captured, and never the float of another one that is read as an index. Dtypes and shapes of the outputs are those
that a run on one row gave; a bucket that gives others (an output [n, n], say) ends the attempt.

Padding is a row of the entry's `example`, zeros without one: what the version was warmed with when it was loaded. Not
always zeros, as 0 may be no value that the model takes, and an index out of range costs the process its GPU. For the
same reason whole numbers are not made up at random: checked are the rows of `example`, and without one random floats
and truth values beside zeros. If those leave every row like the padding, nothing would show whether rows depend on one
another, so that such a version runs eagerly until its entry has an `example` whose rows differ.

Swaps are as graphs.py has them: versions that compute the same, but for their weights, share a set, and a batch of
another version copies its weights over first. `preprocess` and `predict` are copied together with the module, which
they may refer to, and are part of what is compared.

A bound on memory. A graph saves launches, which are nothing beside the arithmetic of a large batch of images; but its
buffers and its pool stay allocated, and no other version can use them. So the buckets of a version take at most
GRAPH_BYTES; larger batches run eagerly, in memory that is everybody's. Before capturing only the buffers are known;
where the pool then is too large, there is another try with half as many rows.

Runs eagerly, with the reason told: what has inputs of variable dimensions or texts, gives anything but tensors of fixed
shape with one entry a row, cannot be captured, or disagrees with the eager pass. Not seen: a module that replaces a
buffer by a new tensor at every call would go on from the one that was captured.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from trimtab.models.capturing import TOLERANCE, compiled_pass, try_ways
from trimtab.models.entry import Definition
from trimtab.models.flat import Flat
from trimtab.models.machine import Machine, Work
from trimtab.models.sharing import LOWER, GraphError, GraphWeights, VersionGraphs, Wanted, graphs_for
from trimtab.models.staging import bucket_for, bucket_sizes, most_within, offsets
from trimtab.models.tensor_trials import check, padding_of
from trimtab.models.tensors import DTYPES, TensorVersion
from trimtab.models.traced import traced

__all__ = ["GRAPH_BYTES", "KnownTensors", "TensorGraphs", "VersionTensors", "graph_tensors", "use_graphs"]

GRAPH_BYTES = 256 << 20

Forward = Callable[[Mapping[str, Tensor]], list[Any]]
Hooks = tuple[Callable[[Mapping[str, Any]], Any] | None, Callable[[Any], Any] | None]
"""`preprocess` and `predict` of a definition."""
Kind = tuple[torch.dtype, tuple[int, ...]]
"""A tensor's dtype, and its dimensions after the rows."""


class TensorGraphs:
    """Outputs by graphs. Any thread; one batch at a time."""

    def __init__(
        self,
        forward: Forward,
        padding: Mapping[str, Tensor],
        outputs: Sequence[Kind],
        most: int,
        machine: Machine,
        weights: GraphWeights | None = None,
    ) -> None:
        """`forward`: outputs, in their order, of inputs by name on the machine's device, by `weights` if they are to be
        replaced by those of other versions; `padding`: one row of each input; `outputs`: what is expected of each. For
        batches of up to `most` rows. Raises GraphError where an output is something else, and whatever `forward` or
        capturing raises."""
        self.most = most
        self._machine = machine
        self._lock = threading.Lock()
        self._weights = weights
        self._padding = dict(padding)
        kinds = [(value.dtype, tuple(value.shape[1:])) for value in padding.values()]
        self._host_in, self._inputs, size_in = self._buffers(kinds)
        self._host_out, self._outputs, size_out = self._buffers(outputs)
        for part, at, row in zip(self._host_in, self._inputs, padding.values(), strict=True):
            part.copy_(row.expand_as(part))
            at.copy_(part)
        sizes = bucket_sizes(most)
        with torch.inference_mode():
            replays, pool = machine.capture([self._work(forward, outputs, rows) for rows in sizes])
        self._replays = dict(zip(sizes, replays, strict=True))
        self.taken = size_in + size_out + pool
        """Bytes on the device of static buffers and the graphs' pool."""
        self.bytes = self.taken + (0 if weights is None else weights.flat.layout.size)
        """On the device, with weights of its own."""

    def _buffers(self, kinds: Sequence[Kind]) -> tuple[list[Tensor], list[Tensor], int]:
        """Parts of a buffer on the host, of one on the device, and the size of either."""
        starts = offsets([_width(kind) for kind in kinds], self.most)
        pair = self._machine.host(starts[-1]), self._machine.memory(starts[-1])
        host, device = (
            [_part(data, start, kind, self.most) for start, kind in zip(starts, kinds, strict=False)] for data in pair
        )
        return host, device, starts[-1]

    def _work(self, forward: Forward, outputs: Sequence[Kind], rows: int) -> Work:
        inputs = {name: part[:rows] for name, part in zip(self._padding, self._inputs, strict=True)}
        into = [part[:rows] for part in self._outputs]

        def work() -> None:
            for position, (to, value, kind) in enumerate(zip(into, forward(inputs), outputs, strict=True)):
                _require(position, value, kind, rows)
                to.copy_(value)

        return work

    def holds(self, n: int) -> bool:
        """Whether there is a graph for so many rows."""
        return 1 <= n <= self.most

    @property
    def renewals(self) -> int:
        """How often weights were copied over those of the batch before."""
        return 0 if self._weights is None else self._weights.renewals

    def call(self, inputs: Mapping[str, Tensor], rows: int, weights: Flat | None = None) -> list[Tensor]:
        """The outputs, in their order, of n rows of inputs in the host's memory, by these weights or those that are
        there; the caller's own. Raises ValueError where there is no graph for so many, FlatError for weights of another
        layout."""
        bucket = bucket_for(rows, self.most)
        with self._lock:
            for part, (name, padding) in zip(self._host_in, self._padding.items(), strict=True):
                part[:rows].copy_(inputs[name])
                if rows < bucket:
                    part[rows:bucket].copy_(padding.expand_as(part[rows:bucket]))
            given = [(at[:bucket], part[:bucket]) for at, part in zip(self._inputs, self._host_in, strict=True)]
            taken = [(part[:rows], at[:rows]) for part, at in zip(self._host_out, self._outputs, strict=True)]
            replay = self._replays[bucket]
            if self._weights is not None:
                replay = self._weights.renewed(weights, replay)
            self._machine.serve(given, replay, taken)
            # A copy: the next batch overwrites it, and this one's rows are still to be encoded.
            return [part.clone() for part, _ in taken]


KnownTensors = MutableMapping[str, TensorGraphs]
"""Graphs by what they compute. One that does not keep them (WeakValueDictionary): the versions do."""


class VersionTensors(VersionGraphs[TensorGraphs]):
    """One version's outputs by graphs, its own or shared ones."""

    def call(self, inputs: Mapping[str, Tensor], rows: int) -> list[Tensor]:
        """See TensorGraphs."""
        return self.graphs.call(inputs, rows, self.weights)


def use_graphs(
    version: TensorVersion,
    most: int,
    machine: Callable[[], Machine],
    ways: Sequence[tuple[str, bool]],
    tell: Callable[[int, str], None],
    known: KnownTensors | None = None,
) -> None:
    """Has the version run by graphs in the first of the ways (precision, whether compiled) that works, on a machine of
    its own; eagerly where none does. `tell` hears what is not as it was asked for. Raises what breaks the device."""

    def attempt(precision: str, compiled: bool, _: bool) -> tuple[str, str]:
        run = graph_tensors(version, most, machine, precision=precision, compiled=compiled, known=known)
        version.use_staged(run)
        held = run.graphs.most
        note = f"batches of more than {held} rows run eagerly: graphs take at most {GRAPH_BYTES:,} bytes"
        taken = f"{run.graphs.bytes:,} bytes, {'its own' if run.shared is None else 'shared'}"
        return taken, note if held < most else ""

    try_ways(version.number, [(*way, False) for way in ways], attempt, tell)


def graph_tensors(
    version: TensorVersion,
    most: int,
    machine: Callable[[], Machine],
    *,
    precision: str = "fp32",
    compiled: bool = False,
    limit: int = GRAPH_BYTES,
    known: KnownTensors | None = None,
) -> VersionTensors:
    """The version's outputs by graphs for batches of up to `most` rows, or of as many as fit into `limit` bytes,
    checked against the eager pass; each attempt on a machine of its own. With `known`, by the graphs of its shape that
    are there, or by new ones that are added. Takes as long as capturing does, and compiling if that is asked for.
    Raises GraphError with the reason where it cannot run so, and what breaks the device as it is."""
    return graphs_for(_Wanted(version, most, machine, precision, compiled, limit), known)


@dataclass(frozen=True)
class _Wanted(Wanted[nn.Module, Hooks, TensorGraphs, VersionTensors]):
    """Arguments of `graph_tensors`."""

    version: TensorVersion
    most: int
    machine: Callable[[], Machine]
    precision: str
    compiled: bool
    limit: int

    @property
    def module(self) -> nn.Module:
        """See Wanted."""
        return self.version.module

    @property
    def flat(self) -> Flat | None:
        """See Wanted."""
        return self.version.flat

    @property
    def hooks(self) -> Hooks:
        """See Wanted."""
        return self.version.definition.preprocess, self.version.definition.predict

    def shape(self, weights: Flat) -> str:
        """See Wanted."""
        source, code = self.version.source, self.version.definition.code
        what = [source.architecture, source.entry, source.program, code, source.seed]
        way = [self.most, self.precision, self.compiled, self.limit]
        return hashlib.sha256(json.dumps([weights.layout.hash, what, way], sort_keys=True).encode()).hexdigest()

    def trace(self, module: nn.Module, hooks: Hooks, weights: Flat) -> str:
        """See Wanted."""
        place, run = self.version.device, self._pass(module, hooks)
        inputs = {name: torch.cat([row, row]).to(place) for name, row in padding_of(self.version).items()}
        return traced(lambda: run(inputs), weights, list(inputs.values()))

    def capture(self, module: nn.Module, hooks: Hooks, weights: GraphWeights | None) -> TensorGraphs:
        """See Wanted: for as many rows as fit."""
        padding = padding_of(self.version)
        whole = self._pass(module, hooks)
        forward = _compiled(padding, whole) if self.compiled else whole
        outputs = _kinds(self.version, padding)
        widths = [value[0].nbytes for value in padding.values()] + [_width(kind) for kind in outputs]
        fitting = most_within(self.limit, widths, self.most)
        while fitting:
            graphs = TensorGraphs(forward, padding, outputs, fitting, self.machine(), weights)
            if graphs.taken <= self.limit:
                return graphs
            del graphs
            fitting = most_within(self.limit, widths, fitting // 2) if fitting > 1 else 0
        raise GraphError(f"one row of it takes more than {self.limit:,} bytes of buffers and graphs")

    def run(self, graphs: TensorGraphs, weights: Flat | None, lowered: int) -> VersionTensors:
        """See Wanted."""
        return VersionTensors(graphs, weights, lowered)

    def check(self, run: VersionTensors) -> None:
        """See Wanted."""
        check(self.version, run.call, run.graphs.most, _tolerance(self.version, self.precision))

    def _pass(self, module: nn.Module, hooks: Hooks) -> Forward:
        """Inputs by name to outputs in their order, by that module, which has the precision that was asked for. What it
        takes in float32 is lowered, and what it gives in that dtype is float32 again."""
        if self.precision != "fp32":
            module = _Lowered(module, LOWER[self.precision])
        # Graphs keep what they were captured from. That must not be the version, which keeps its graphs, nor what made
        # its module, which may keep that, while the graphs are other versions'.
        preprocess, predict = hooks
        definition = Definition(self.version.definition.name, type(module), preprocess, predict)
        like = replace(self.version, definition=definition, module=module, flat=None)
        return lambda inputs: like.run_eagerly(*like.arguments(inputs))


def _compiled(names: Iterable[str], whole: Forward) -> Forward:
    names = tuple(names)

    def positional(*values: Tensor) -> list[Any]:
        return whole(dict(zip(names, values, strict=True)))

    made = compiled_pass(positional)
    return lambda inputs: made(*inputs.values())


class _Lowered(torch.nn.Module):
    def __init__(self, module: torch.nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module, self.dtype = module, dtype

    def forward(self, *arguments: Any) -> Any:
        return _cast(
            self.module(*(_cast(one, torch.float32, self.dtype) for one in arguments)), self.dtype, torch.float32
        )


def _cast(value: Any, of: torch.dtype, to: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(to) if value.dtype == of else value
    if isinstance(value, Mapping):
        return {name: _cast(one, of, to) for name, one in value.items()}
    if isinstance(value, tuple | list):
        return tuple(_cast(one, of, to) for one in value)
    return value


def _tolerance(version: TensorVersion, precision: str) -> float:
    """That of the coarsest numbers within. Convolutions of float32 have ten bits of mantissa on a GPU (TF32), as fp16
    has, and which kernel takes them depends on the number of rows."""
    shape = version.source.shape
    weights = list(version.module.parameters())
    dtypes = {weight.dtype for weight in weights} | {DTYPES.get(d) for _, d, _ in (*shape.inputs, *shape.outputs)}
    names = {precision} | {name for name, dtype in LOWER.items() if dtype in dtypes}
    if version.device.type == "cuda" and torch.backends.cudnn.allow_tf32 and any(w.ndim > 2 for w in weights):
        names.add("fp16")
    return max(TOLERANCE[name] for name in names)


def _width(kind: Kind) -> int:
    """Bytes a row."""
    dtype, dims = kind
    return math.prod(dims) * dtype.itemsize


def _part(data: Tensor, start: int, kind: Kind, rows: int) -> Tensor:
    dtype, dims = kind
    return data[start : start + rows * _width(kind)].view(dtype).view(rows, *dims)


def _kinds(version: TensorVersion, padding: Mapping[str, Tensor]) -> list[Kind]:
    """What the eager pass gives for one row."""
    with torch.inference_mode():
        inputs = {name: value.to(version.device) for name, value in padding.items()}
        given = version.run_eagerly(*version.arguments(inputs))
    for position, value in enumerate(given):
        if not isinstance(value, Tensor):
            raise GraphError(f"output {version.outputs[position][0]!r} is no tensor")
    return [(value.dtype, tuple(value.shape[1:])) for value in given]


def _require(position: int, value: Any, kind: Kind, rows: int) -> None:
    """What an output must be for its graph's buffer: `copy_` alone would cast and broadcast."""
    dtype, dims = kind
    if not isinstance(value, Tensor) or value.dtype != dtype or tuple(value.shape) != (rows, *dims):
        found = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise GraphError(f"output {position + 1} is {found} for {rows} rows, expected {dtype} {[rows, *dims]}")
