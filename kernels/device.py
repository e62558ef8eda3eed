"""Which executor runs a program on which device.

On `cuda` it is the CPU's executor, too, and the model moves the tensors; with TRIMTAB_CUDA_COLUMNS=1 the CUDA executor
where CuPy finds a GPU and the program can run there, and the log says why where not. It is not the default until it
has been measured on a GPU: `run` copies features to the host and back, which only a captured batch would not. Whoever
asks for an executor does not need to know.
"""

from __future__ import annotations

import logging
import os
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from trimtab._native import ColumnTable, Slab
from trimtab.kernels.cpu import CpuExecutor
from trimtab.kernels.cuda import CudaExecutor
from trimtab.kernels.cuda_device import cuda_device
from trimtab.kernels.errors import ExecutorError
from trimtab.kernels.program import ColumnProgram
from trimtab.kernels.sketch import Sketch

_log = logging.getLogger(__name__)


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
    if device == "cpu":
        return CpuExecutor(program)
    kind, _, index = device.partition(":")
    if kind != "cuda" or not (index or "0").isdecimal():
        raise ExecutorError(f"unknown device {device!r}, expected cpu, cuda or cuda:N")
    if os.environ.get("TRIMTAB_CUDA_COLUMNS", "0") != "1":
        return CpuExecutor(program)
    found = on_gpu(program, int(index or 0))
    if isinstance(found, str):
        _log.warning("columns run on the CPU, not on %s: %s", device, found)
        return CpuExecutor(program)
    return found


def on_gpu(program: ColumnProgram, index: int = 0) -> CudaExecutor | str:
    """The CUDA executor on the GPU of that number, or, as a sentence, why the program cannot run there."""
    gpu = cuda_device(index)
    if isinstance(gpu, str):
        return gpu
    try:
        executor = CudaExecutor(program, gpu)
        executor.prepare()
    except ExecutorError as error:
        return str(error)
    return executor
