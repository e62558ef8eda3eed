"""The driver that pretends, with what it notes and what it can be told: pretend_driver.cpp."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from .places import CudaPlace, Exporter, pretended_driver


class Pretended:
    """A library of its own in `folder`, and a process that exports memory by it."""

    def __init__(self, folder: Path, environment: Callable[[str, str], None]) -> None:
        """`environment` sets a variable of the process that will load the library."""
        self.folder = folder
        self.library = str(pretended_driver(folder))
        self.exporter = Exporter(self.library)
        self._log, self._order = folder / "log", folder / "order"
        environment("PRETEND_CUDA_LOG", str(self._log))
        environment("PRETEND_CUDA_ORDER", str(self._order))

    def allocate(self, size: int = 1000, device: int = 0) -> CudaPlace:
        """Byte i is i % 251."""
        made = self.exporter.allocate(size, device)
        made.write(0, bytes(i % 251 for i in range(size)))
        return made

    def log(self) -> list[str]:
        """What was opened, closed, retained and released."""
        return [line for line in self._lines() if not line.startswith("wait")]

    def waits(self) -> list[int]:
        """Of each wait for a stream, the copies that it waited for."""
        return [int(line.split()[1]) for line in self._lines() if line.startswith("wait")]

    def order(self, call: str, code: int, *, passes: bool = False) -> None:
        """The call fails with the code, until no_order(). A GPU that is lost by it stays lost, unless it `passes`."""
        self._order.write_text(f"{call} {code}{' passes' if passes else ''}")

    def wait_in(self, call: str) -> tuple[Path, Path]:
        """The call waits until the first of two pipes is read and the second is written."""
        reached, go = self.folder / "reached", self.folder / "go"
        for pipe in (reached, go):
            os.mkfifo(pipe)
        self._order.write_text(f"{call} wait {reached} {go}")
        return reached, go

    def no_order(self) -> None:
        self._order.unlink()

    def close(self) -> None:
        self.exporter.close()

    def _lines(self) -> list[str]:
        return self._log.read_text().splitlines() if self._log.exists() else []
