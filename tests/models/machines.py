"""A machine that behaves as a GPU with graphs does, as far as a version can tell, in the memory of the host."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from trimtab.models.machine import Copies, Work


class PretendMachine:
    """Keeps each work and runs it again as its replay. Notes what a test may ask about.

    Memory is poisoned where a real one's would be undefined; a work may run only while it is warmed, captured or
    replayed.
    """

    POOL = 1000

    def __init__(self, *, fail: Exception | None = None, at: int = 0) -> None:
        """`fail` is raised in place of capturing the work at position `at`."""
        self.device = torch.device("cpu")
        self.captured = 0
        self.replayed: list[int] = []
        self.copied: list[int] = []
        self.allocated: list[int] = []
        self._fail, self._at = fail, at

    def host(self, size: int) -> Tensor:
        """See Machine."""
        return torch.full((size,), 0xFF, dtype=torch.uint8)

    def memory(self, size: int) -> Tensor:
        """See Machine."""
        self.allocated.append(size)
        return torch.zeros(size, dtype=torch.uint8)

    def capture(self, works: Sequence[Work]) -> tuple[list[Work], int]:
        """See Machine."""
        for position, work in enumerate(works):
            work()
            if self._fail is not None and position == self._at:
                raise self._fail
            self.captured += 1
        return [lambda p=p, w=w: self._replay(p, w) for p, w in enumerate(works)], self.POOL  # type: ignore[misc]

    def serve(self, given: Copies, replay: Work, taken: Copies) -> None:
        """See Machine."""
        for to, source in given:
            to.copy_(source)
        self.copied.append(sum(source.numel() for _, source in given))
        replay()
        for to, source in taken:
            to.copy_(source)

    def _replay(self, position: int, work: Work) -> None:
        self.replayed.append(position)
        with torch.inference_mode():
            work()
