"""Another process with memory on a GPU, as a client of CUDA shared memory is: `exporter.py LIBRARY`.

LIBRARY is a libcuda.so.1, NVIDIA's or the one that pretends. Takes commands as lines of JSON and answers each with one;
ends with its input. Standard library only, so that it starts at once.
"""

from __future__ import annotations

import base64
import ctypes
import json
import sys
from typing import Any

Size = ctypes.c_size_t
Pointer = ctypes.c_uint64


class Handle(ctypes.Structure):
    """CUipcMemHandle."""

    _fields_ = (("reserved", ctypes.c_char * 64),)


class Exporter:
    """Allocations by number."""

    def __init__(self, library: str) -> None:
        self._driver = ctypes.CDLL(library)
        self._call("cuInit", 0)
        self._contexts: dict[int, ctypes.c_void_p] = {}
        self._memory: dict[int, tuple[int, Any]] = {}

    def allocate(self, size: int, device: int) -> dict[str, Any]:
        """Its number, and its handle."""
        if device not in self._contexts:
            found, context = ctypes.c_int(), ctypes.c_void_p()
            self._call("cuDeviceGet", ctypes.byref(found), device)
            self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), found)
            self._contexts[device] = context
        pointer, handle = Pointer(), Handle()
        self._on(device, "cuMemAlloc_v2", ctypes.byref(pointer), Size(size))
        self._on(device, "cuIpcGetMemHandle", ctypes.byref(handle), pointer)
        number = len(self._memory)
        self._memory[number] = (device, pointer)
        return {"number": number, "handle": base64.b64encode(bytes(handle)).decode()}

    def write(self, number: int, at: int, data: str) -> dict[str, Any]:
        """`data`: base64."""
        device, pointer = self._memory[number]
        content = base64.b64decode(data)
        self._on(device, "cuMemcpyHtoD_v2", Pointer(pointer.value + at), content, Size(len(content)))
        return {}

    def read(self, number: int, at: int, size: int) -> dict[str, Any]:
        """In base64."""
        device, pointer = self._memory[number]
        content = ctypes.create_string_buffer(size)
        self._on(device, "cuMemcpyDtoH_v2", content, Pointer(pointer.value + at), Size(size))
        return {"data": base64.b64encode(content.raw).decode()}

    def free(self, number: int) -> dict[str, Any]:
        """Gives it back to the device."""
        device, pointer = self._memory.pop(number)
        self._on(device, "cuMemFree_v2", pointer)
        return {}

    def _on(self, device: int, name: str, *arguments: Any) -> None:
        self._call("cuCtxPushCurrent_v2", self._contexts[device])
        try:
            self._call(name, *arguments)
        finally:
            self._call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._driver, name)(*arguments)
        if code != 0:
            raise RuntimeError(f"{name}: {code}")


def main(library: str) -> None:
    """See the module."""
    exporter = Exporter(library)
    for line in sys.stdin:
        command = json.loads(line)
        print(json.dumps(getattr(exporter, command.pop("do"))(**command)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
