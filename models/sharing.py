"""Versions that compute the same by one set of graphs (graphs.py has the design of swaps): whose weights the graphs
read, which graphs a version may run by, and what of them is its own.
"""

from __future__ import annotations

import copy
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import nn
from trimtab.models.errors import ModelError
from trimtab.models.faults import first_line, is_fault, is_out_of_memory, let_go
from trimtab.models.flat import Flat, FlatError
from trimtab.models.machine import Work

__all__ = ["LOWER", "SHARED_BYTES", "GraphError", "GraphWeights", "Graphs", "VersionGraphs", "Wanted", "graphs_for"]

SHARED_BYTES = 2 << 30
"""Of weights: beyond, a copy between two batches is a pause of more than a millisecond or two."""
LOWER = {"fp16": torch.float16, "bf16": torch.bfloat16}


class GraphError(ModelError):
    """A version cannot run by graphs; the message says why."""


class GraphWeights:
    """The weights that a set of graphs reads: a copy of one version's or of another's."""

    def __init__(self, flat: Flat) -> None:
        """`flat` is what the graphs read."""
        self.flat = flat
        # Weakly: what is let go elsewhere is not to be kept on the device here. At first nobody's, so that trying the
        # version that they were captured for tries the copy, too.
        self._resident: Callable[[], Flat | None] = lambda: None
        self.renewals = 0
        """How often weights were copied over those of the batch before."""

    def renewed(self, weights: Flat | None, replay: Work) -> Work:
        """The replay, after a copy of these weights where others are there; None: by those that are there. One thread
        at a time. It raises FlatError for weights of another layout."""
        if weights is None or weights is self._resident():
            return replay

        def renewed() -> None:
            # Until the copy is done they are nobody's.
            self._resident = lambda: None
            self.flat.copy_from(weights, non_blocking=True)
            self._resident = weakref.ref(weights)
            self.renewals += 1
            replay()

        return renewed


class Graphs(Protocol):
    """A set of graphs, one for each bucket of rows."""

    @property
    def bytes(self) -> int:
        """On the device: static buffers, the graphs' pool, and weights of their own."""
        ...

    def holds(self, n: int) -> bool:
        """Whether there is a graph for so many rows."""
        ...


G = TypeVar("G", bound=Graphs)
Module = TypeVar("Module", bound=nn.Module)
Hooks = TypeVar("Hooks")


@dataclass(frozen=True)
class VersionGraphs(Generic[G]):
    """One version's graphs, its own or shared ones."""

    graphs: G
    weights: Flat | None
    """Copied over the graphs' where those are another version's; None: the graphs read the version's own."""
    lowered: int
    """Bytes on the device of its weights in a lower precision."""

    @property
    def bytes(self) -> int:
        """On the device, without what is shared and the version's weights in fp32."""
        return self.lowered + (self.graphs.bytes if self.shared is None else 0)

    @property
    def shared(self) -> G | None:
        """The graphs, where other versions may run by them, too."""
        return None if self.weights is None else self.graphs

    def holds(self, n: int) -> bool:
        """Whether there is a graph for so many rows."""
        return self.graphs.holds(n)


R = TypeVar("R")


class Wanted(ABC, Generic[Module, Hooks, G, R]):
    """Graphs that a version is to have, and what they are made of and by: the argument of `graphs_for`."""

    precision: str

    @property
    @abstractmethod
    def module(self) -> Module:
        """The version's network."""

    @property
    @abstractmethod
    def flat(self) -> Flat | None:
        """The buffer that the module's tensors lie in, where they lie in one."""

    @property
    @abstractmethod
    def hooks(self) -> Hooks:
        """What else the pass is made of. It is copied together with the module, which it may refer to."""

    @abstractmethod
    def shape(self, weights: Flat) -> str:
        """Equal for versions that differ in their weights alone, as far as files tell (sha256, hex)."""

    @abstractmethod
    def trace(self, module: Module, hooks: Hooks, weights: Flat) -> str:
        """See traced.py: of the pass by that module, in the precision. Raises TraceError, and what the pass raises."""

    @abstractmethod
    def capture(self, module: Module, hooks: Hooks, weights: GraphWeights | None) -> G:
        """Graphs of the pass by that module; by `weights` if they are to be replaced by those of other versions. Raises
        GraphError, and whatever the pass or capturing raises."""

    @abstractmethod
    def run(self, graphs: G, weights: Flat | None, lowered: int) -> R:
        """The version's graphs; see VersionGraphs."""

    @abstractmethod
    def check(self, run: R) -> None:
        """Raises GraphError where answers are not those of the version's eager pass."""


def graphs_for(wanted: Wanted[Module, Hooks, G, R], known: MutableMapping[str, G] | None) -> R:
    """The version's graphs, checked. With `known`, those that are known for what it computes, or new ones that are
    added, where that is possible; else its own. Raises GraphError with the reason where it cannot run so, and what
    breaks the device as it is."""
    try:
        run = None if known is None else _shared(wanted, known)
        if run is None:
            run = _own(wanted)
            wanted.check(run)
        return run
    except GraphError:
        raise
    except Exception as error:
        if is_fault(error):
            raise
        if is_out_of_memory(error):
            let_go()
            raise GraphError(f"there is no memory left for its graphs: {first_line(error)}") from error
        what = "" if isinstance(error, ModelError) else f"{type(error).__name__}: "
        raise GraphError(f"it cannot be captured: {what}{first_line(error)}") from error


def _own(wanted: Wanted[Module, Hooks, G, R]) -> R:
    """By graphs over the version's own weights, or a copy of them in a lower precision."""
    module, lowered = wanted.module, 0
    if wanted.precision != "fp32":
        module, _, weights = _copied(module, LOWER[wanted.precision], None)
        lowered = weights.layout.size
    return wanted.run(wanted.capture(module, wanted.hooks, None), None, lowered)


def _shared(wanted: Wanted[Module, Hooks, G, R], known: MutableMapping[str, G]) -> R | None:
    """By graphs that other versions may run by, too: known ones, or captured ones of a copy of the module. None where
    that is not possible: it is to have graphs of its own. Raises GraphError, as `check` does, where answers of captured
    ones are not the version's; those of its own would say the same.

    Versions share graphs where their shapes are equal and so are the traces (traced.py) of their passes. The pass that
    is captured is that of the copy; it has to have that trace, too, or it reads something of the version's own."""
    module, hooks, flat = wanted.module, wanted.hooks, wanted.flat
    if flat is None or flat.layout.size > SHARED_BYTES:
        return None
    own, lowered = (module, hooks, flat), 0
    try:
        if wanted.precision != "fp32":
            own = _copied(module, LOWER[wanted.precision], hooks)
            lowered = own[2].layout.size
        weights, found = own[2], wanted.trace(*own)
        key = f"{wanted.shape(weights)} {found}"
        graphs, other = known.get(key), None
        if graphs is None:
            other = _copied(module, LOWER.get(wanted.precision), hooks)
            if other[2].layout.hash != weights.layout.hash or wanted.trace(*other) != found:
                return None
            other[2].check()  # a pass may put other tensors in the place of its weights
    except Exception as error:
        if is_fault(error):
            raise
        if is_out_of_memory(error):
            let_go()
        return None
    try:
        if graphs is None:
            assert other is not None
            graphs = wanted.capture(other[0], other[1], GraphWeights(other[2]))
        run = wanted.run(graphs, weights, lowered)
        wanted.check(run)
    except FlatError:
        return None
    except GraphError:
        if key not in known:
            raise
        return None
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        let_go()  # graphs of its own need a copy of the weights less
        return None
    known[key] = graphs
    return run


def _copied(module: Module, dtype: torch.dtype | None, hooks: Hooks) -> tuple[Module, Hooks, Flat]:
    """A copy of the network, its weights in that dtype and in one buffer, and of hooks that may refer to it. Raises
    FlatError, and what copying raises."""
    other, others = copy.deepcopy((module, hooks))
    if dtype is not None:
        other = other.to(dtype)
    # A deep copy of a view holds a copy of all that it is a view of; adopted, it holds what it needs.
    return other, others, Flat.adopt(other)
