"""Which errors are answered, and which end the process."""

from __future__ import annotations

import pytest
import torch
from trimtab.models.errors import VersionUnfit
from trimtab.models.faults import is_fault, is_out_of_memory, let_go

FAULTS = [
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nCompile with `TORCH_USE_CUDA_DSA`"),
    torch.AcceleratorError("CUDA error: device-side assert triggered"),
    torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`"),
    RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    RuntimeError("CUDA driver error: an illegal memory access was encountered"),
    RuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered"),
    RuntimeError("CUDA_ERROR_LAUNCH_FAILED: unspecified launch failure"),
]
PASSING = [
    torch.AcceleratorError("CUDA error: operation not permitted when stream is capturing"),
    torch.AcceleratorError("CUDA error: invalid argument"),
    torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx(...)`"),
    RuntimeError("expected text, got 'CUDA error: an illegal memory access was encountered'"),
    ValueError("CUDA error: an illegal memory access was encountered"),
    RuntimeError(""),
]
NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    MemoryError("Unable to allocate 2.00 TiB for an array"),
]


@pytest.fixture(autouse=True)
def uses_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)


@pytest.mark.parametrize("error", FAULTS, ids=str)
def test_faults(error: Exception) -> None:
    assert (is_fault(error), is_out_of_memory(error)) == (True, False)


@pytest.mark.parametrize("error", PASSING, ids=str)
def test_errors_that_pass(error: Exception) -> None:
    assert (is_fault(error), is_out_of_memory(error)) == (False, False)


@pytest.mark.parametrize("error", NO_MEMORY, ids=str)
def test_no_memory(error: Exception) -> None:
    assert (is_fault(error), is_out_of_memory(error)) == (False, True)


def test_what_an_error_was_raised_from_counts() -> None:
    for cause, expected in ((FAULTS[0], (True, False)), (NO_MEMORY[0], (False, True)), (PASSING[0], (False, False))):
        error = VersionUnfit("version 1: a batch of 8 rows")
        error.__cause__ = cause
        assert (is_fault(error), is_out_of_memory(error)) == expected


def test_texts_do_not_count_where_no_gpu_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert [is_fault(error) for error in FAULTS] == [type(error) is not RuntimeError for error in FAULTS]
    let_go()


def test_memory_of_the_host() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert is_out_of_memory(caught.value)
