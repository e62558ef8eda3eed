"""Which executor runs where."""

from __future__ import annotations

import pytest
from trimtab.kernels import device as device_module
from trimtab.kernels.cpu import CpuExecutor
from trimtab.kernels.cuda import CudaExecutor
from trimtab.kernels.cuda_device import cuda_device
from trimtab.kernels.cuda_graph import GraphColumns
from trimtab.kernels.device import executor_for, graph_columns, on_gpu
from trimtab.kernels.errors import ExecutorError
from trimtab.kernels.program import ColumnProgram, Field, RealField, SketchSpec

from tests.kernels.cuda_on_cpu.emulation import EmulatedDevice

PROGRAM = ColumnProgram((Field("x", "real"),), (), SketchSpec((RealField("x", ()),)))


def test_executor_for_device() -> None:
    for device in ("cpu", "cuda", "cuda:1"):
        assert executor_for(PROGRAM, device).program is PROGRAM
    for device in ("tpu", "cuda:x", "cuda:-1"):
        with pytest.raises(ExecutorError, match=f"'{device}'"):
            executor_for(PROGRAM, device)


def test_without_a_gpu_there_is_a_reason() -> None:
    if not isinstance(cuda_device(), str):
        pytest.skip("there is a GPU")
    for found in (on_gpu(PROGRAM), graph_columns(PROGRAM)):
        assert isinstance(found, str)
        assert found.startswith("CuPy")


def test_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "cuda_device", lambda _index: EmulatedDevice())
    assert isinstance(on_gpu(PROGRAM), CudaExecutor)
    assert isinstance(graph_columns(PROGRAM), GraphColumns)
    assert isinstance(executor_for(PROGRAM, "cuda"), CpuExecutor)  # whose features the model moves there


def test_what_cannot_be_compiled_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ExecutorError("NVRTC refuses")

    gpu = EmulatedDevice()
    monkeypatch.setattr(gpu, "kernel", refuse)
    monkeypatch.setattr(device_module, "cuda_device", lambda _index: gpu)
    assert on_gpu(PROGRAM) == "NVRTC refuses"
