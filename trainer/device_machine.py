"""What training on a GPU needs of torch.cuda (device_fit.py has the design): the calls, and no decision.

Type-checked, but not run where it was written: the tests marked `gpu` are what runs it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from trimtab.models.machine import Work, capture_graph

__all__ = ["CudaTrainingMachine", "TrainingMachine", "Work"]

_WARM_RUNS = 3
_LOWEST = 0


class TrainingMachine(Protocol):
    """What takes steps: a GPU, or in tests something that behaves like one. One thread at a time."""

    device: torch.device
    options: Mapping[str, Any]
    """Of torch.optim.AdamW, so that its step can be captured."""

    @property
    def name(self) -> str:
        """What it is, for a manifest."""
        ...

    def room(self) -> int:
        """Bytes of the device's memory that training may still take."""
        ...

    def stream(self) -> contextlib.AbstractContextManager[None]:
        """Within it, what is launched has low priority."""
        ...

    def host(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Host memory from which copies need not wait, with whatever was in it."""
        ...

    def generator(self) -> torch.Generator:
        """Of the device."""
        ...

    def capture(self, work: Work, generator: torch.Generator | None = None) -> Work:
        """Runs the work to warm it, and captures it: what replays it. The work changes what it changes, in warming. The
        generator is the one that it draws from; a replay draws from where that stands then. Within `stream`. Raises
        whatever the work raises, or capturing does."""
        ...

    def wait(self) -> None:
        """Returns when all that was launched within `stream` is done."""
        ...


class CudaTrainingMachine:
    """A GPU, by a stream of the lowest priority."""

    options: Mapping[str, Any] = {"fused": True, "capturable": True}

    def __init__(self, device: torch.device) -> None:
        index = torch.cuda.current_device() if device.index is None else device.index
        self.device = torch.device("cuda", index)
        self._stream: torch.cuda.Stream = torch.cuda.Stream(index, priority=_LOWEST)  # type: ignore[no-untyped-call]

    @property
    def name(self) -> str:
        """See TrainingMachine."""
        return torch.cuda.get_device_name(self.device)

    def room(self) -> int:
        """See TrainingMachine. Half of what is free: the server stages versions there."""
        free, _ = torch.cuda.mem_get_info(self.device)
        kept = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return free // 2 + kept

    @contextlib.contextmanager
    def stream(self) -> Iterator[None]:
        """See TrainingMachine."""
        with torch.cuda.stream(self._stream):
            yield

    def host(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """See TrainingMachine."""
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def generator(self) -> torch.Generator:
        """See TrainingMachine."""
        return torch.Generator(self.device)

    def capture(self, work: Work, generator: torch.Generator | None = None) -> Work:
        """See TrainingMachine."""
        for _ in range(_WARM_RUNS):
            work()
        self._stream.synchronize()
        # Of this thread alone: backward's threads launch into it, and are not held to it.
        return capture_graph(work, self.device, torch.cuda.graph_pool_handle(), generator)

    def wait(self) -> None:
        """See TrainingMachine."""
        self._stream.synchronize()
