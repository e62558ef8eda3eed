"""A machine that trains as a GPU with graphs does, as far as training can tell, on the CPU.

What is captured is recorded as operations on the tensors that they had, and a replay does these operations again on the
same memory: Python is not run again. So what a real graph would not notice (a number read on the host, a tensor put in
another's place, a count kept in Python) is not noticed here either.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from trimtab.trainer.device_machine import Work

READS_ON_THE_HOST = ("aten._local_scalar_dense", "aten.item", "aten.equal", "aten.nonzero")


class RecordingMachine:
    """See the module. Notes what a test may ask about."""

    name = "pretend"

    def __init__(
        self,
        *,
        room: int = 1 << 30,
        refuse: Exception | None = None,
        on_replay: Callable[[int], None] | None = None,
    ) -> None:
        """`refuse` is raised by capturing; `on_replay` is called before each replay, with how many came before."""
        self.device = torch.device("cpu")
        self.options: Mapping[str, Any] = {"fused": True, "capturable": True}
        self.replays = self.graphs = self.waits = 0
        self._room, self._refuse, self._on_replay = room, refuse, on_replay
        self._depth = 0

    def room(self) -> int:
        """See TrainingMachine."""
        return self._room

    @contextlib.contextmanager
    def stream(self) -> Iterator[None]:
        """See TrainingMachine."""
        self._depth += 1
        yield
        self._depth -= 1

    def host(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """See TrainingMachine. Poisoned."""
        return torch.full(shape, float("nan") if dtype.is_floating_point else -1, dtype=dtype)

    def generator(self) -> torch.Generator:
        """See TrainingMachine."""
        return torch.Generator()

    def capture(self, work: Work, generator: torch.Generator | None = None) -> Work:
        """See TrainingMachine."""
        assert self._depth, "outside of the stream"
        work()
        if self._refuse is not None:
            raise self._refuse
        with _Recorder() as recorder:
            work()
        self.graphs += 1

        def replay() -> None:
            assert self._depth, "outside of the stream"
            if self._on_replay is not None:
                self._on_replay(self.replays)
            self.replays += 1
            recorder.replay()

        return replay

    def wait(self) -> None:
        """See TrainingMachine."""
        self.waits += 1


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self._done: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if str(func).startswith(READS_ON_THE_HOST):
            raise RuntimeError(f"{func} while capturing: the host cannot look at values")
        out = func(*args, **(kwargs or {}))
        self._done.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, out in self._done:
                again = func(*args, **kwargs)
                aliased = [bool(returned.alias_info) for returned in func._schema.returns]
                if any(aliased):
                    continue  # A view of, or a change in, memory that was recorded.
                for to, source in zip(tree_leaves(out), tree_leaves(again), strict=True):
                    if isinstance(to, Tensor):
                        to.copy_(source)
