"""Which executor runs a program on which device.

On `cuda` the columns run on the CPU for now, and the model moves the tensors: whoever asks for an executor does not
need to know.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from trimtab._native import ColumnTable, Slab
from trimtab.kernels.cpu import CpuExecutor
from trimtab.kernels.errors import ExecutorError
from trimtab.kernels.program import ColumnProgram
from trimtab.kernels.sketch import Sketch


class Executor(Protocol):
    """Runs one column program."""

    program: ColumnProgram

    def run(
        self,
        rows: Slab | ColumnTable,
        sketch: Sketch | None = None,
        start: int = 0,
        stop: int = -1,
        features: NDArray[np.float32] | None = None,
        ids: NDArray[np.int64] | None = None,
        threads: int = 1,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """See `CpuExecutor.run`."""
        ...

    def sum_jointly(self, rows: Slab | ColumnTable, taken: NDArray[np.int64], sketch: Sketch) -> None:
        """See `CpuExecutor.sum_jointly`."""
        ...


def executor_for(program: ColumnProgram, device: str = "cpu") -> Executor:
    """The executor for `cpu`, `cuda` or `cuda:N`. Raises ExecutorError on another device."""
    if device == "cpu" or device.partition(":")[0] == "cuda":
        return CpuExecutor(program)
    raise ExecutorError(f"unknown device {device!r}, expected cpu, cuda or cuda:N")
