"""SystemSharedMemory* and CudaSharedMemory*: which memory outside of messages requests may name.

Switched on by [security] shared_memory; CUDA memory also needs NVIDIA's driver, which is looked for then. What the
regions are, how they are kept from doing harm, and which thread copies them is csrc/shared_region.h. As in Triton, a
name is of one region of either kind, and unregistering what is not registered is no error: clients do so first of all.

Opening and closing run aside of the loop, for a driver may take its time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from trimtab._native import CudaDriver, SharedMemory
from trimtab.protos.v1 import inference_pb2 as pb
from trimtab.server.errors import AlreadyExists, Denied, NotFound, Unsupported
from trimtab.server.transport import Call, Handler

__all__ = ["SharedMemoryControl"]


class SharedMemoryControl:
    """See the module. `startup` and `shutdown` run on the loop."""

    def __init__(self, most_bytes: int, *, allowed: bool) -> None:
        """`most_bytes`: of one request's inputs. `allowed`: whether anything may be registered."""
        self._driver = CudaDriver() if allowed else None
        self._watched: int | None = None
        self.memory = SharedMemory(most_bytes, self._driver) if allowed else None
        """The regions, for the hub; None where they are switched off."""

    def startup(self, on_fault: Callable[[str], None]) -> None:
        """`on_fault` is called, once, with what happened where copying finds the GPU lost."""
        if self._driver is None:
            return
        driver, loop = self._driver, asyncio.get_running_loop()

        def lost() -> None:
            loop.remove_reader(driver.fileno())
            self._watched = None
            on_fault(driver.fault)

        self._watched = driver.fileno()
        loop.add_reader(self._watched, lost)

    def shutdown(self) -> None:
        """Closes all regions, once no request uses them, while there is a driver to close them."""
        if self._watched is not None:
            asyncio.get_running_loop().remove_reader(self._watched)
            self._watched = None
        if self.memory is not None:
            self.memory.clear()
            self.memory.clear_cuda()

    @property
    def extensions(self) -> list[str]:
        """Triton's names of what can be registered."""
        if self._driver is None:
            return []
        return ["system_shared_memory", *(["cuda_shared_memory"] if self._driver.devices else [])]

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
        for name, key, offset, byte_size in self.memory.regions() if self.memory is not None else ():
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
        memory = self._allowed()
        if not memory.register(request.name, request.key, request.offset, request.byte_size):
            raise _taken(request.name)
        return pb.SystemSharedMemoryRegisterResponse()

    async def unregister(
        self, request: pb.SystemSharedMemoryUnregisterRequest, _call: Call
    ) -> pb.SystemSharedMemoryUnregisterResponse:
        """Closes the region of that name, once no request uses it; without a name, all."""
        if self.memory is not None:
            if request.name:
                self.memory.unregister(request.name)
            else:
                self.memory.clear()
        return pb.SystemSharedMemoryUnregisterResponse()

    async def cuda_status(
        self, request: pb.CudaSharedMemoryStatusRequest, _call: Call
    ) -> pb.CudaSharedMemoryStatusResponse:
        """The region of that name; without a name, all."""
        response = pb.CudaSharedMemoryStatusResponse()
        for name, device, byte_size in self.memory.cuda_regions() if self.memory is not None else ():
            if request.name in ("", name):
                region = response.regions[name]
                region.name, region.device_id, region.byte_size = name, device, byte_size
        if request.name and not response.regions:
            raise NotFound(f"no CUDA shared memory region {request.name[:80]!r} is registered")
        return response

    async def cuda_register(
        self, request: pb.CudaSharedMemoryRegisterRequest, _call: Call
    ) -> pb.CudaSharedMemoryRegisterResponse:
        """Opens what a handle stands for."""
        memory = self._allowed()
        if self._driver is None or not self._driver.devices:
            why = "" if self._driver is None else self._driver.missing
            raise Unsupported(
                f"CUDA shared memory needs NVIDIA's driver and a GPU, which this server does not have ({why}); "
                "system shared memory is offered"
            )
        handle, size = request.raw_handle, request.byte_size
        if not await asyncio.to_thread(memory.register_cuda, request.name, handle, request.device_id, size):
            raise _taken(request.name)
        return pb.CudaSharedMemoryRegisterResponse()

    async def cuda_unregister(
        self, request: pb.CudaSharedMemoryUnregisterRequest, _call: Call
    ) -> pb.CudaSharedMemoryUnregisterResponse:
        """Closes the region of that name, once no request uses it; without a name, all."""
        if self.memory is not None:
            if request.name:
                await asyncio.to_thread(self.memory.unregister_cuda, request.name)
            else:
                await asyncio.to_thread(self.memory.clear_cuda)
        return pb.CudaSharedMemoryUnregisterResponse()

    def _allowed(self) -> SharedMemory:
        if self.memory is None:
            raise Denied("shared memory is switched off; [security] shared_memory = true in trimtab.toml allows it")
        return self.memory


def _taken(name: str) -> AlreadyExists:
    return AlreadyExists(f"a shared memory region {name[:80]!r} is registered already; unregister it first")
