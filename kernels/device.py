"""What runs a program's columns on which device.

On `cuda`, too, it is the CPU's executor, whose features the model moves there: the CUDA executor's `run` would copy
them to the host and back. Columns run on the GPU as a part of captured batches (`graph_columns`), where the project
asks for it; it is not the default until it has been measured on a GPU.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from trimtab._native import ColumnTable, Slab
from trimtab.kernels.cpu import CpuExecutor
from trimtab.kernels.cuda import CudaExecutor
from trimtab.kernels.cuda_device import cuda_device
from trimtab.kernels.cuda_graph import GraphColumns
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
    kind, _, index = device.partition(":")
    if device != "cpu" and (kind != "cuda" or not (index or "0").isdecimal()):
        raise ExecutorError(f"unknown device {device!r}, expected cpu, cuda or cuda:N")
    return CpuExecutor(program)


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


def graph_columns(program: ColumnProgram, index: int = 0) -> GraphColumns | str:
    """The program's columns for captured batches on the GPU of that number; or, as a sentence, why it cannot run
    there."""
    gpu = cuda_device(index)
    if isinstance(gpu, str):
        return gpu
    try:
        return GraphColumns(program, gpu)
    except ExecutorError as error:
        return str(error)
