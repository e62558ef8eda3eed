"""Versions of one shape by one set of graphs (graphs.py has the design of swaps): whose weights the graphs read, which
graphs a version may run by, and what of them is its own.
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
from trimtab.models.faults import is_fault
from trimtab.models.flat import Flat
from trimtab.models.machine import Work

__all__ = ["LOWER", "SHARED_BYTES", "GraphError", "GraphWeights", "Graphs", "VersionGraphs", "copied", "share"]

SHARED_BYTES = 2 << 30
"""Of weights: beyond, a copy between two batches is a pause of more than a millisecond or two."""
LOWER = {"fp16": torch.float16, "bf16": torch.bfloat16}


class GraphError(ModelError):
    """A version cannot run by graphs; the message says why."""


class GraphWeights:
    """The weights that a set of graphs reads: a copy of one version's or of another's."""

    def __init__(self, flat: Flat, resident: Flat) -> None:
        """`flat` is what the graphs read, and a copy of `resident` now."""
        self.flat = flat
        # Weakly: what is let go elsewhere is not to be kept on the device here.
        self._resident: Callable[[], Flat | None] = weakref.ref(resident)
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
    flat: Flat | None,
    precision: str,
    *,
    shape: Callable[[Flat], str],
    capture: Callable[[Module, GraphWeights], G],
    run: Callable[[G, Flat, int], R],
    check: Callable[[R], None],
) -> R | None:
    """A version's graphs that other versions may run by, too: those that are known for its shape, or captured ones, of
    a copy of its module. None where that is not possible: weights lie in no one buffer or are large, the module cannot
    be copied, or known graphs do not answer as the version does. Raises GraphError, as `check` does where answers are
    not the version's, for captured ones that do not: graphs of its own would say the same."""
    if flat is None or flat.layout.size > SHARED_BYTES:
        return None
    weights, lowered = flat, 0
    if precision != "fp32":
        _, weights = copied(module, LOWER[precision])
        lowered = weights.layout.size
    key = shape(weights)
    graphs = known.get(key)
    if graphs is None:
        try:
            other, mine = copied(module, LOWER.get(precision))
        except Exception as error:
            if is_fault(error):
                raise
            return None
        graphs = capture(other, GraphWeights(mine, weights))
    found = run(graphs, weights, lowered)
    try:
        check(found)
    except GraphError:
        if key not in known:
            raise
        return None
    known[key] = graphs
    return found


def copied(module: Module, dtype: torch.dtype | None) -> tuple[Module, Flat]:
    """A copy of the network, its weights in that dtype and in one buffer. Raises FlatError."""
    other = copy.deepcopy(module)
    if dtype is not None:
        other = other.to(dtype)
    # A deep copy of a view holds a copy of all that it is a view of; adopted, it holds what it needs.
    return other, Flat.adopt(other)
