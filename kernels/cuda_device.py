"""What the CUDA executor needs of a GPU: memory, copies, launches, and a second stream. One implementation is CuPy's
(`CupyDevice`); the tests have one that runs the same sources on the CPU.

Copies and launches go to one stream, in order. `aside` is what the accumulators are read by: it waits for what was
launched so far and for nothing that comes after.
"""

from __future__ import annotations

import importlib
import importlib.util
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from trimtab.kernels.cuda_compile import Variant, compiled
from trimtab.kernels.errors import ExecutorError

Array = NDArray[Any]
THREADS = 256  # of a block; csrc/cuda/tables.h


class Memory(Protocol):
    """Device memory, freed with the object."""

    @property
    def pointer(self) -> int:
        """Its address, a multiple of 256."""
        ...

    @property
    def nbytes(self) -> int:
        """Its size."""
        ...


@dataclass(frozen=True)
class Launch:
    """A kernel's call: blocks in x and y, a block's shared memory, and the arguments in order, addresses as integers.

    wide: for each argument whether it has 64 bits (else 32).
    """

    blocks: tuple[int, int]
    shared_bytes: int
    arguments: tuple[int, ...]
    wide: tuple[bool, ...]


Kernel = Callable[[Launch], None]
"""A loaded kernel; calling it launches it."""


Copy = tuple[Memory, int, Array]
"""Device memory, an offset in bytes, and a contiguous host array of so many bytes."""


class Device(Protocol):
    """A GPU and a stream on it."""

    processors: int

    def kernel(self, source: str, variant: Variant) -> Kernel:
        """The source compiled for this GPU. Raises ExecutorError where that fails."""
        ...

    def memory(self, nbytes: int) -> Memory:
        """New memory of at least so many bytes; of what contents is open."""
        ...

    def copy_in(self, memory: Memory, offset: int, values: Array) -> None:
        """Host to device; `values` may be changed when it returns."""
        ...

    def copy_out(self, memory: Memory, offset: int, values: Array) -> None:
        """Device to host; done when it returns."""
        ...

    def aside(self, reads: Sequence[Copy], writes: Sequence[Copy]) -> None:
        """After all that was launched so far, on a stream of its own: device to host, then host to device. Done when
        it returns; what is launched meanwhile does not wait."""
        ...


def cuda_device(index: int = 0) -> Device | str:
    """The GPU through CuPy; why there is none, as a sentence, where CuPy or the GPU is missing."""
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed (the extras cuda12 and cuda13 have it)"
    try:
        return CupyDevice(index)
    except Exception as error:  # CuPy raises errors of many kinds where there is no driver or no GPU
        return f"CuPy finds no GPU {index}: {str(error)[:200]}"


class _CupyMemory:
    def __init__(self, owner: Any) -> None:
        self.owner = owner

    @property
    def pointer(self) -> int:
        return int(self.owner.ptr)

    @property
    def nbytes(self) -> int:
        return int(self.owner.mem.size)


class CupyDevice:
    """A GPU by CuPy: its memory pool, RawModule and streams. Launches go to CuPy's current stream of the calling
    thread, so that `with stream:` around a call decides, as with everything else of CuPy's.

    Written, and not yet run on a GPU.
    """

    def __init__(self, index: int = 0) -> None:
        self._cupy: Any = importlib.import_module("cupy")
        self._device = self._cupy.cuda.Device(index)
        with self._device:
            attributes = self._device.attributes
            self.processors = int(attributes["MultiProcessorCount"])
            self._architecture = f"sm_{self._device.compute_capability}"
            self._side = self._cupy.cuda.Stream(non_blocking=True)

    _granting = threading.Lock()

    def kernel(self, source: str, variant: Variant) -> Kernel:
        """See Device."""
        path = compiled(source, variant, self._architecture)
        try:
            with self._device:
                function = self._cupy.RawModule(path=str(path)).get_function("trimtab_columns")
        except Exception as error:  # CuPy's errors of the driver have no base of their own
            raise ExecutorError(f"the GPU does not load the kernel: {str(error)[:200]}") from error

        granted = 48 * 1024  # what a block may have without asking

        def launch(call: Launch) -> None:
            nonlocal granted
            if call.shared_bytes > granted:
                # CuPy loads a file once, so programs of one source share the function: never less than another has.
                with self._device, self._granting:
                    granted = max(call.shared_bytes, function.max_dynamic_shared_size_bytes)
                    function.max_dynamic_shared_size_bytes = granted
            types = (np.uint32, np.uint64)
            arguments = tuple(types[wide](value) for value, wide in zip(call.arguments, call.wide, strict=True))
            with self._device:
                function(call.blocks, (THREADS,), arguments, shared_mem=call.shared_bytes)

        return launch

    def memory(self, nbytes: int) -> Memory:
        """See Device."""
        with self._device:
            return _CupyMemory(self._cupy.cuda.alloc(max(nbytes, 16)))

    def copy_in(self, memory: Memory, offset: int, values: Array) -> None:
        """See Device."""
        if values.nbytes:
            stream = self._cupy.cuda.get_current_stream()
            self._at(memory, offset).copy_from_host_async(values.ctypes.data, values.nbytes, stream)
            # From memory that is not pinned it returns, on the machines there are so far, when the values have been
            # taken; CUDA promises that nowhere, and where the GPU reads the host's pages itself it need not be so.
            stream.synchronize()

    def copy_out(self, memory: Memory, offset: int, values: Array) -> None:
        """See Device."""
        if values.nbytes:
            self._cupy.cuda.get_current_stream().synchronize()
            self._at(memory, offset).copy_to_host(values.ctypes.data, values.nbytes)

    def aside(self, reads: Sequence[Copy], writes: Sequence[Copy]) -> None:
        """See Device."""
        with self._device:
            done = self._cupy.cuda.get_current_stream().record()
            self._side.wait_event(done)
            for memory, offset, values in reads:
                self._at(memory, offset).copy_to_host_async(values.ctypes.data, values.nbytes, self._side)
            self._side.synchronize()
            for memory, offset, values in writes:
                self._at(memory, offset).copy_from_host_async(values.ctypes.data, values.nbytes, self._side)
            self._side.synchronize()

    @staticmethod
    def _at(memory: Memory, offset: int) -> Any:
        if not isinstance(memory, _CupyMemory):
            raise ExecutorError("the memory is of another device")
        return memory.owner + offset
