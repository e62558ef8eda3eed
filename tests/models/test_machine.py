"""Captures on a GPU as far as they can be tried without one: which calls are made when, on torch's parts replaced."""

from __future__ import annotations

import contextlib
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trimtab.models import machine
from trimtab.models.machine import CudaMachine

POOL = (0, 7)


class Stream:
    """A stream that is captured on by one at a time."""

    cuda_stream = 4711

    def __init__(self) -> None:
        self.capturing = False

    def wait_stream(self, _: object) -> None:
        assert not self.capturing, "another capture is under way"

    def synchronize(self) -> None:
        assert not self.capturing, "another capture is under way"


class Allocator:
    """What torch's keeps of captures."""

    def __init__(self) -> None:
        self.under_way: list[object] = []
        self.uses: dict[object, int] = {}

    def begin(self, pool: object) -> None:
        assert pool not in self.under_way
        self.under_way.append(pool)
        self.uses[pool] = self.uses.get(pool, 0) + 1

    def end(self, _: int, pool: object) -> None:
        if pool not in self.under_way:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.under_way.remove(pool)

    def release(self, _: int, pool: object) -> None:
        self.uses[pool] -= 1


class Gpu:
    """Streams, graphs and allocator; `invalid` makes CUDA refuse to end a capture."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.stream, self.allocator, self.invalid = Stream(), Allocator(), False
        gpu = self

        class Graph:
            def capture_begin(self, pool: object = None, capture_error_mode: str = "global") -> None:
                assert capture_error_mode == "thread_local"
                self.pool, self.ended = pool or object(), False
                gpu.allocator.begin(self.pool)
                assert not gpu.stream.capturing
                gpu.stream.capturing = True

            def capture_end(self) -> None:
                if not gpu.stream.capturing:
                    raise RuntimeError("operation cannot be performed in the present state")
                gpu.stream.capturing = False
                if gpu.invalid:
                    gpu.invalid = False
                    raise torch.AcceleratorError("CUDA error: operation failed due to a previous error during capture")
                gpu.allocator.end(0, self.pool)
                self.ended = True

            def replay(self) -> None:
                assert self.ended

        for name, value in {
            "CUDAGraph": Graph,
            "current_stream": lambda _: None,
            "graph_pool_handle": lambda: POOL,
            "memory_snapshot": list,
            "stream": lambda _: contextlib.nullcontext(),
        }.items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None, raising=False)
        patch.setattr(torch._C, "_cuda_endAllocateToPool", self.allocator.end, raising=False)
        patch.setattr(torch._C, "_cuda_releasePool", self.allocator.release, raising=False)
        patch.setattr(torch, "zeros", lambda *_, **__: SimpleNamespace(zero_=lambda: None))
        patch.setattr(machine, "_streams", lambda _: (None, None, None, self.stream))
        patch.setattr(machine, "_event", lambda: None)
        patch.setattr(machine, "_abandoned", [])
        patch.setitem(sys.modules, "cupy", None)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    return Gpu(monkeypatch)


def machine_of() -> CudaMachine:
    return CudaMachine(torch.device("cuda", 0))


@pytest.fixture
def eager_switching() -> Iterator[None]:
    """Threads take turns at every chance."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("eager_switching")
def test_models_that_are_staged_at_once_capture_one_after_the_other(gpu: Gpu) -> None:
    """Each model has a stage thread; all capture on one stream."""
    inside, overlaps, failures = [0], [0], list[BaseException]()
    barrier = threading.Barrier(4)

    def work() -> None:
        inside[0] += 1
        overlaps[0] += inside[0] > 1
        for _ in range(1000):
            pass
        inside[0] -= 1

    def stage() -> None:
        try:
            barrier.wait()
            for _ in range(20):
                machine_of().capture([work, work])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=stage) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert overlaps == [0]


def test_a_capture_that_cuda_calls_invalid_leaves_the_allocator_in_order(gpu: Gpu) -> None:
    def looking() -> None:
        if gpu.stream.capturing:
            gpu.invalid = True
            raise torch.AcceleratorError("CUDA error: operation not permitted when stream is capturing")

    with pytest.raises(torch.AcceleratorError, match="not permitted when stream is capturing"):
        machine_of().capture([lambda: None, looking])
    assert not gpu.stream.capturing
    assert not gpu.allocator.under_way
    assert gpu.allocator.uses[POOL] == 1  # the graph that was captured before, which gives its own back
    assert len(machine._abandoned) == 1
    graphs, _ = machine_of().capture([lambda: None])
    graphs[0]()


def test_a_work_that_fails_by_itself_ends_its_capture(gpu: Gpu) -> None:
    def failing() -> None:
        if gpu.stream.capturing:
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        machine_of().capture([failing])
    assert not gpu.stream.capturing
    assert not gpu.allocator.under_way
    assert not machine._abandoned


def test_an_end_that_fails_is_the_reason(gpu: Gpu) -> None:
    def quiet() -> None:
        gpu.invalid = gpu.stream.capturing

    with pytest.raises(torch.AcceleratorError, match="previous error during capture"):
        machine_of().capture([quiet])
    assert not gpu.allocator.under_way


@pytest.mark.parametrize("major", [13, 14])
def test_cupy_launches_on_the_captured_stream(major: int, gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what each CuPy has for it; to take the one that is deprecated would be an error in these tests."""
    on: list[int] = []

    class Wrapped:
        def __init__(self, pointer: int) -> None:
            self.pointer = pointer

        def __enter__(self) -> None:
            on.append(self.pointer)

        def __exit__(self, *_: object) -> None:
            on.pop()

    def deprecated(_: int) -> None:
        raise DeprecationWarning("ExternalStream is deprecated")

    new = SimpleNamespace(from_external=lambda stream: Wrapped(stream.__cuda_stream__()[1]))
    cuda: Any = {
        13: SimpleNamespace(Stream=SimpleNamespace(), ExternalStream=Wrapped),
        14: SimpleNamespace(Stream=new, ExternalStream=deprecated),
    }[major]
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda))
    seen: list[list[int]] = []
    machine_of().capture([lambda: seen.append(list(on))])
    assert seen == [[Stream.cuda_stream]] * 3
    assert not on


@pytest.mark.usefixtures("gpu")
def test_what_a_graph_reads_lives_as_long_as_what_replays_it() -> None:
    """A graph has addresses alone. Weights in a lower precision, say, are nobody else's."""
    weights = Allocator()
    alive = weakref.ref(weights)

    def work_of(of: object) -> Callable[[], None]:
        return lambda: print(of)

    replays, _ = machine_of().capture([work_of(weights)])
    del weights
    replays[0]()
    assert alive() is not None
    del replays
    assert alive() is None
