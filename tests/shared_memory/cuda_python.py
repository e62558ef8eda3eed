"""NVIDIA's cuda-python as tritonclient imports it: `from cuda import cuda, cudart`.

On a GPU that is the package itself; newer ones have the same modules under other names. Without one, as much of it as
tritonclient.utils.cuda_shared_memory calls, over the driver that pretends.
"""

from __future__ import annotations

import ctypes
import enum
import importlib
import sys
import types
from typing import Any

from exporter import Handle, Pointer, Size

_DEVICE_ADDRESS = 1 << 62  # of the driver that pretends


def install(library: str) -> None:
    """Makes `cuda` importable. Raises ImportError where there is no cuda-python for NVIDIA's driver."""
    if library != "libcuda.so.1":
        package = types.ModuleType("cuda")
        package.__path__ = []
        driver, runtime = _driver_stand_in(), _runtime_stand_in(ctypes.CDLL(library))
        sys.modules.update({"cuda": package, "cuda.cuda": driver, "cuda.cudart": runtime})
        return
    try:
        importlib.import_module("cuda.cudart")
    except ImportError:
        sys.modules["cuda.cuda"] = importlib.import_module("cuda.bindings.driver")
        sys.modules["cuda.cudart"] = importlib.import_module("cuda.bindings.runtime")


class _Error(enum.IntEnum):
    cudaSuccess = 0  # noqa: N815
    failed = 1


class _Attribute(enum.IntEnum):
    cudaDevAttrUnifiedAddressing = 41  # noqa: N815


class _Kind(enum.IntEnum):
    cudaMemcpyDefault = 4  # noqa: N815


class _Result(enum.IntEnum):
    CUDA_SUCCESS = 0


def _driver_stand_in() -> Any:
    module = types.ModuleType("cuda.cuda")
    functions: dict[str, Any] = {
        "CUresult": _Result,
        "cuDeviceGet": lambda ordinal: (_Result.CUDA_SUCCESS, ordinal),
        "cuDevicePrimaryCtxGetState": lambda _device: (_Result.CUDA_SUCCESS, 0, 1),
    }
    vars(module).update(functions)
    return module


def _runtime_stand_in(driver: Any) -> Any:
    """Device 0 only, and no copy is under way when its call returns."""
    module: Any = types.ModuleType("cuda.cudart")
    device, context = ctypes.c_int(), ctypes.c_void_p()
    started = [
        driver.cuInit(0),
        driver.cuDeviceGet(ctypes.byref(device), 0),
        driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device),
        driver.cuCtxPushCurrent_v2(context),
    ]
    assert started == [0] * 4, started

    def malloc(size: int) -> tuple[_Error, int]:
        pointer = Pointer()
        failed = driver.cuMemAlloc_v2(ctypes.byref(pointer), Size(size))
        return _Error(bool(failed)), pointer.value

    def export(pointer: int) -> tuple[_Error, Any]:
        handle = Handle()
        failed = driver.cuIpcGetMemHandle(ctypes.byref(handle), Pointer(pointer))
        return _Error(bool(failed)), types.SimpleNamespace(reserved=bytes(handle))

    def copy(to: Any, source: Any, size: int, _kind: _Kind, _stream: object) -> tuple[_Error]:
        if isinstance(to, int) and to & _DEVICE_ADDRESS:
            host = source if isinstance(source, bytes) else ctypes.c_void_p(source)
            failed = driver.cuMemcpyHtoD_v2(Pointer(to), host, Size(size))
        else:
            failed = driver.cuMemcpyDtoH_v2(to, Pointer(source), Size(size))
        return (_Error(bool(failed)),)

    done = (_Error.cudaSuccess,)
    functions: dict[str, Any] = {
        "cudaError_t": _Error,
        "cudaDeviceAttr": _Attribute,
        "cudaMemcpyKind": _Kind,
        "cudaIpcMemHandle_t": object,
        "cudaGetErrorString": lambda error: (error, b"failed"),
        "cudaGetDevice": lambda: (*done, 0),
        "cudaSetDevice": lambda _device: done,
        "cudaDeviceGetAttribute": lambda _attribute, _device: (*done, 1),
        "cudaMalloc": malloc,
        "cudaFree": lambda pointer: (_Error(bool(driver.cuMemFree_v2(Pointer(pointer)))),),
        "cudaIpcGetMemHandle": export,
        "cudaStreamCreate": lambda: (*done, object()),
        "cudaStreamSynchronize": lambda _stream: done,
        "cudaStreamDestroy": lambda _stream: done,
        "cudaMemcpyAsync": copy,
    }
    vars(module).update(functions)
    return module
