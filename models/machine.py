"""What captures and replays CUDA graphs (graphs.py has the design): the calls to torch.cuda, and no decision.

Type-checked, but not run where it was written: the tests marked `gpu` are what runs it.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["Copies", "CudaMachine", "Machine", "Work", "capture_graph"]

_WARM_RUNS = 2
_capturing = threading.Lock()
"""One capture at a time in the process: they share a stream, on which another's warming would become a part of the
graph, and whether garbage is collected."""
_abandoned: list[torch.cuda.CUDAGraph] = []
"""Captures that CUDA called invalid. torch's allocators keep a pointer to such a graph, by which they ask it whether
what is allocated is its own; so it must not be freed."""

Work = Callable[[], None]
Copies = Sequence[tuple[Tensor, Tensor]]
"""(to, from), of equal shapes."""


class Machine(Protocol):
    """What runs graphs: a GPU, or in tests something that behaves like one."""

    def host(self, size: int) -> Tensor:
        """uint8 [size] of host memory, from which copies need not wait."""
        ...

    def memory(self, size: int) -> Tensor:
        """uint8 [size] on the device, zeroed."""
        ...

    def capture(self, works: Sequence[Work]) -> tuple[list[Work], int]:
        """Runs each work to warm it, then captures it, in this order and into one pool. What replays each, and keeps
        the work with it; and the bytes of the pool. Raises whatever a work raises, or capturing does."""
        ...

    def serve(self, given: Copies, replay: Work, taken: Copies) -> None:
        """Copies in, replays, copies out; returns when that is done. One thread at a time."""
        ...


class CudaMachine:
    """One version's graphs on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        index = torch.cuda.current_device() if device.index is None else device.index
        self._in, self._compute, self._out, self._capture_on = _streams(index)
        self._pool: Any = torch.cuda.graph_pool_handle()
        self._sent, self._computed, self._taken = (_event() for _ in range(3))

    def host(self, size: int) -> Tensor:
        """See Machine."""
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def memory(self, size: int) -> Tensor:
        """See Machine."""
        return torch.zeros(size, dtype=torch.uint8, device=self.device)

    def capture(self, works: Sequence[Work]) -> tuple[list[Work], int]:
        """See Machine."""
        stream = self._capture_on
        graphs: list[Work] = []
        with _capturing:
            # The works' inputs were made on the caller's stream, for which torch's other streams do not wait.
            stream.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(stream), _cupy_on(stream):
                for work in works:
                    for _ in range(_WARM_RUNS):
                        work()
                stream.synchronize()
                with _own_workspaces():
                    for work in works:
                        graphs.append(capture_graph(work, self.device, self._pool))
            stream.synchronize()
        return graphs, self._pool_bytes()

    def serve(self, given: Copies, replay: Work, taken: Copies) -> None:
        """See Machine."""
        with torch.cuda.stream(self._in):
            # What the batch before has computed from is overwritten; it was waited for, so nothing reads it.
            for to, source in given:
                to.copy_(source, non_blocking=True)
            self._sent.record(self._in)
        with torch.cuda.stream(self._compute):
            self._compute.wait_event(self._sent)
            replay()
            self._computed.record(self._compute)
        with torch.cuda.stream(self._out):
            self._out.wait_event(self._computed)
            for to, source in taken:
                to.copy_(source, non_blocking=True)
            self._taken.record(self._out)
        self._taken.synchronize()

    def _pool_bytes(self) -> int:
        segments = torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
        return sum(int(s["total_size"]) for s in segments if tuple(s.get("segment_pool_id", ())) == tuple(self._pool))


def capture_graph(work: Work, device: torch.device, pool: Any, generator: torch.Generator | None = None) -> Work:
    """Captures a work that was warmed on the current stream, into the pool (torch.cuda.graph_pool_handle): what replays
    it, and keeps the work. The generator is the one that it draws from. Raises whatever the work raises, or capturing
    does; the stream and torch's allocator are in order then."""
    graph = torch.cuda.CUDAGraph()
    if generator is not None:
        graph.register_generator_state(generator)
    with _no_collection():
        try:
            # Not torch.cuda.graph: that waits for the whole device and empties the cache, under what serves. Only this
            # thread's calls may end the capture; others that compute go on meanwhile.
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            work()
            graph.capture_end()
        except BaseException:
            _abandon(graph, device, pool)
            raise
    return partial(_replay, graph, work)


def _replay(graph: torch.cuda.CUDAGraph, _: Work) -> None:
    # A graph has addresses: what it reads lives as long as the work that refers to it, such as weights in a lower
    # precision, which nobody else has.
    graph.replay()


def _abandon(graph: torch.cuda.CUDAGraph, device: torch.device, pool: Any) -> None:
    """Ends a capture that failed. What is said about that is not the reason, and is not passed on."""
    with contextlib.suppress(Exception):
        graph.capture_end()  # the stream must leave capturing in any case
    # Of a capture that CUDA calls invalid (something waited for the device, say), capture_end does not tell torch's
    # allocator. It would take it for under way from then on: look nowhere else when memory runs out, and fail an
    # assertion when it is to give memory back.
    index = torch.cuda.current_device() if device.index is None else device.index
    try:
        torch._C._cuda_endAllocateToPool(index, pool)
    except Exception:
        return  # it was told
    _abandoned.append(graph)
    with contextlib.suppress(Exception):
        torch._C._cuda_releasePool(index, pool)
        # Some torch's random generator takes it for under way, too, until the next that goes well.
        place, well = torch.zeros(1, device=device), torch.cuda.CUDAGraph()
        well.capture_begin(capture_error_mode="thread_local")
        place.zero_()
        well.capture_end()


@cache
def _streams(index: int) -> tuple[torch.cuda.Stream, torch.cuda.Stream, torch.cuda.Stream, torch.cuda.Stream]:
    """Copy in, compute, copy out, capture: for all versions on the device. torch has 32 streams of each priority and
    hands them out in turn, so that with some for each version, two versions' would be the same before long."""
    high = [_stream(index, -1) for _ in range(3)]
    return high[0], high[1], high[2], _stream(index, 0)


def _stream(index: int, priority: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(index, priority=priority)  # type: ignore[no-untyped-call]


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]


def _cupy_on(stream: torch.cuda.Stream) -> contextlib.AbstractContextManager[Any]:
    """Has CuPy launch on that stream in the block, too, where a work launches by CuPy (columns do)."""
    cupy: Any = sys.modules.get("cupy")
    if cupy is None:
        return contextlib.nullcontext()
    wrapped: Any = getattr(cupy.cuda.Stream, "from_external", None)  # since CuPy 14, where the other is deprecated
    on: contextlib.AbstractContextManager[Any] = (
        cupy.cuda.ExternalStream(stream.cuda_stream) if wrapped is None else wrapped(_Foreign(stream))
    )
    return on


class _Foreign:
    """A stream by the CUDA stream protocol, which not every torch's own streams speak."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._stream.cuda_stream


@contextlib.contextmanager
def _own_workspaces() -> Iterator[None]:
    """Has cuBLAS take its workspaces anew, out of the pool that is being captured into; and again afterwards. A
    workspace is otherwise kept for each stream, and graphs of several versions would write to it at the same time as
    whatever is warmed on that stream. torch's own cudagraph_trees do the same."""
    clear: Callable[[], None] = getattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None)
    clear()
    try:
        yield
    finally:
        clear()


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Destroying another graph would end the capture."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
