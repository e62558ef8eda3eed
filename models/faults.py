"""What an exception says about the machine: out of memory, a GPU that is lost to this process, or neither.

Out of memory concerns what was asked for: it is answered, and serving goes on. After a fault, such as an illegal memory
access, the CUDA context of the process is broken: every later call fails, and none of the weights can be trusted to be
what they were. Only a new process helps.

Which errors last is not in the exceptions, so this goes by their text: any error that CUDA reports is taken for a
fault, except those known to leave the context as it was (bad arguments, a failed capture). A restart too many is better
than a server that answers nothing but errors. Texts count only in a process that uses CUDA, and only at the start of a
message: what a client sent may be quoted in an error of the user's own model, and must not stop a server.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

__all__ = ["first_line", "is_fault", "is_out_of_memory", "let_go"]

_NO_MEMORY = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "cudaErrorMemoryAllocation")
_CPU_NO_MEMORY = "DefaultCPUAllocator: can't allocate memory"
_CUDA = (
    "CUDA error: ",
    "CUDA driver error: ",
    "cuDNN error: ",
    "Triton Error [CUDA]: ",
    "cudaError",
    "CUDA_ERROR_",
    "NVML_",
)
_PASSING = (
    "invalid argument",
    "invalid configuration argument",
    "invalid device function",
    "invalid device ordinal",
    "invalid resource handle",
    "no kernel image is available",
    "not supported",
    "too many resources requested",
    "captur",  # whatever a failed capture of a graph says
    "CUBLAS_STATUS_INVALID_VALUE",
    "CUBLAS_STATUS_NOT_SUPPORTED",
    "CUDNN_STATUS_NOT_SUPPORTED",
    "CUDNN_STATUS_BAD_PARAM",
    "cudaErrorInvalidValue",
    "CUDA_ERROR_INVALID_VALUE",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it, or what it was raised from, says that memory of the GPU or of the host is used up."""
    return any(_out_of_memory(one) for one in _chain(error))


def is_fault(error: BaseException) -> bool:
    """Whether it, or what it was raised from, says that the GPU is lost to this process."""
    return not is_out_of_memory(error) and any(_fault(one) for one in _chain(error))


def let_go() -> None:
    """Gives memory that torch keeps for later back to the GPU, after something did not fit. No other device's work is
    waited for."""
    if _uses_cuda():
        # While a graph is captured on another thread torch may refuse; what it keeps is of use to the next batch still.
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()


def first_line(error: BaseException) -> str:
    """What it says in one line, of at most 300 characters; its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    if isinstance(error, RuntimeError) and _CPU_NO_MEMORY in text[:300] and text.startswith("[enforce fail"):
        return True
    return _of_cuda(error) and any(part in text for part in _NO_MEMORY)


def _fault(error: BaseException) -> bool:
    return _of_cuda(error) and not any(part in str(error) for part in _PASSING)


def _of_cuda(error: BaseException) -> bool:
    if isinstance(error, torch.AcceleratorError):
        return True
    return isinstance(error, RuntimeError) and _uses_cuda() and str(error).startswith(_CUDA)


def _uses_cuda() -> bool:
    initialised: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return initialised


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__
