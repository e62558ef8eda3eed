"""SystemSharedMemory*: which regions of /dev/shm requests may name; and CudaSharedMemory*, of which there are none.

Switched on by [security] shared_memory. What the regions are, and how they are kept from doing harm, is
csrc/shared_memory.h. As in Triton, unregistering what is not registered is no error, and clients do so first of all:
so that works for CUDA too, and only registering is refused.
"""

from __future__ import annotations

from trimtab._native import SharedMemory
from trimtab.protos.v1 import inference_pb2 as pb
from trimtab.server.errors import AlreadyExists, Denied, NotFound, Unsupported
from trimtab.server.transport import Call, Handler

__all__ = ["SharedMemoryControl"]


class SharedMemoryControl:
    """See the module."""

    def __init__(self, memory: SharedMemory | None) -> None:
        """`memory`: the regions; None where they are switched off."""
        self._memory = memory

    @property
    def offered(self) -> bool:
        """Whether regions can be registered."""
        return self._memory is not None

    def handlers(self) -> dict[str, Handler]:
        """By method of GRPCInferenceService."""
        return {
            "SystemSharedMemoryStatus": self.status,
            "SystemSharedMemoryRegister": self.register,
            "SystemSharedMemoryUnregister": self.unregister,
            "CudaSharedMemoryStatus": self.cuda_status,
            "CudaSharedMemoryRegister": self.cuda_register,
            "CudaSharedMemoryUnregister": self.cuda_unregister,
        }

    async def status(
        self, request: pb.SystemSharedMemoryStatusRequest, _call: Call
    ) -> pb.SystemSharedMemoryStatusResponse:
        """The region of that name; without a name, all."""
        response = pb.SystemSharedMemoryStatusResponse()
        for name, key, offset, byte_size in self._memory.regions() if self._memory is not None else ():
            if request.name in ("", name):
                region = response.regions[name]
                region.name, region.key, region.offset, region.byte_size = name, key, offset, byte_size
        if request.name and not response.regions:
            raise NotFound(f"no system shared memory region {request.name[:80]!r} is registered")
        return response

    async def register(
        self, request: pb.SystemSharedMemoryRegisterRequest, _call: Call
    ) -> pb.SystemSharedMemoryRegisterResponse:
        """Opens a region."""
        if self._memory is None:
            raise Denied("shared memory is switched off; [security] shared_memory = true in trimtab.toml allows it")
        if not self._memory.register(request.name, request.key, request.offset, request.byte_size):
            raise AlreadyExists(
                f"a shared memory region {request.name[:80]!r} is registered already; unregister it first"
            )
        return pb.SystemSharedMemoryRegisterResponse()

    async def unregister(
        self, request: pb.SystemSharedMemoryUnregisterRequest, _call: Call
    ) -> pb.SystemSharedMemoryUnregisterResponse:
        """Closes the region of that name, once no request uses it; without a name, all."""
        if self._memory is not None:
            if request.name:
                self._memory.unregister(request.name)
            else:
                self._memory.clear()
        return pb.SystemSharedMemoryUnregisterResponse()

    async def cuda_status(
        self, request: pb.CudaSharedMemoryStatusRequest, _call: Call
    ) -> pb.CudaSharedMemoryStatusResponse:
        """None."""
        if request.name:
            raise NotFound(f"no CUDA shared memory region {request.name[:80]!r} is registered")
        return pb.CudaSharedMemoryStatusResponse()

    async def cuda_register(self, _request: object, _call: Call) -> pb.CudaSharedMemoryRegisterResponse:
        """Refused."""
        raise Unsupported("CUDA shared memory is not offered by this server; system shared memory is")

    async def cuda_unregister(self, _request: object, _call: Call) -> pb.CudaSharedMemoryUnregisterResponse:
        """There are none."""
        return pb.CudaSharedMemoryUnregisterResponse()
