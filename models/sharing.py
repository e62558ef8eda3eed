"""Versions that compute the same by one set of graphs (graphs.py has the design of swaps): whose weights the graphs
read, which graphs a version may run by, and what of them is its own.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import nn
from trimtab.models.errors import ModelError
from trimtab.models.faults import is_fault, is_out_of_memory, let_go
from trimtab.models.flat import Flat, FlatError
from trimtab.models.machine import Work

__all__ = ["LOWER", "SHARED_BYTES", "GraphError", "GraphWeights", "Graphs", "VersionGraphs", "copied", "share"]

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


def share(
    known: MutableMapping[str, G],
    module: Module,
    hooks: Hooks,
    flat: Flat | None,
    precision: str,
    *,
    shape: Callable[[Flat], str],
    trace: Callable[[Module, Hooks, Flat], str],
    capture: Callable[[Module, Hooks, GraphWeights], G],
    run: Callable[[G, Flat, int], R],
    check: Callable[[R], None],
) -> R | None:
    """A version's graphs that other versions may run by, too: those that are known for what it computes, or captured
    ones, of a copy of its module and of what else the pass is made of (`hooks`). None where that is not possible: it is
    to have graphs of its own. Raises GraphError, as `check` does, where answers of captured ones are not the version's;
    those of its own would say the same.

    Versions share graphs where their shapes are equal and so are the traces (traced.py) of their passes. The pass that
    is captured is that of the copy; it has to have that trace, too, or it reads something of the version's own."""
    if flat is None or flat.layout.size > SHARED_BYTES:
        return None
    own, lowered = (module, hooks, flat), 0
    try:
        if precision != "fp32":
            own = copied(module, LOWER[precision], hooks)
            lowered = own[2].layout.size
        weights, found = own[2], trace(*own)
        key = f"{shape(weights)} {found}"
        graphs, other = known.get(key), None
        if graphs is None:
            other = copied(module, LOWER.get(precision), hooks)
            if other[2].layout.hash != weights.layout.hash or trace(*other) != found:
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
            graphs = capture(other[0], other[1], GraphWeights(other[2]))
        made = run(graphs, weights, lowered)
        check(made)
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
    return made


def copied(module: Module, dtype: torch.dtype | None, hooks: Hooks) -> tuple[Module, Hooks, Flat]:
    """A copy of the network, its weights in that dtype and in one buffer, and of hooks that may refer to it. Raises
    FlatError, and what copying raises."""
    other, others = copy.deepcopy((module, hooks))
    if dtype is not None:
        other = other.to(dtype)
    # A deep copy of a view holds a copy of all that it is a view of; adopted, it holds what it needs.
    return other, others, Flat.adopt(other)
