"""Which executor runs where."""

from __future__ import annotations

import logging

import pytest
from trimtab.kernels import device as device_module
from trimtab.kernels.cpu import CpuExecutor
from trimtab.kernels.cuda import CudaExecutor
from trimtab.kernels.cuda_device import cuda_device
from trimtab.kernels.device import executor_for
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


@pytest.fixture
def asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_CUDA_COLUMNS", "1")


def test_columns_stay_on_the_cpu_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRIMTAB_CUDA_COLUMNS", raising=False)
    monkeypatch.setattr(device_module, "cuda_device", lambda _index: EmulatedDevice())
    assert isinstance(executor_for(PROGRAM, "cuda"), CpuExecutor)


@pytest.mark.usefixtures("asked_for")
def test_without_a_gpu_the_log_says_why(caplog: pytest.LogCaptureFixture) -> None:
    if not isinstance(cuda_device(), str):
        pytest.skip("there is a GPU")
    with caplog.at_level(logging.WARNING):
        assert isinstance(executor_for(PROGRAM, "cuda:0"), CpuExecutor)
    assert "columns run on the CPU, not on cuda:0: CuPy" in caplog.text


@pytest.mark.usefixtures("asked_for")
def test_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "cuda_device", lambda _index: EmulatedDevice())
    assert isinstance(executor_for(PROGRAM, "cuda"), CudaExecutor)
    assert isinstance(executor_for(PROGRAM, "cpu"), CpuExecutor)


@pytest.mark.usefixtures("asked_for")
def test_what_cannot_be_compiled_runs_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise ExecutorError("NVRTC refuses")

    gpu = EmulatedDevice()
    monkeypatch.setattr(gpu, "kernel", refuse)
    monkeypatch.setattr(device_module, "cuda_device", lambda _index: gpu)
    with caplog.at_level(logging.WARNING):
        assert isinstance(executor_for(PROGRAM, "cuda"), CpuExecutor)
    assert "NVRTC refuses" in caplog.text
