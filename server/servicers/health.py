"""grpc.health.v1 (Check, List, Watch) and server reflection, for the services of one listener."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from grpc_health.v1 import health_pb2 as _health_pb2
from grpc_reflection.v1alpha import reflection_pb2 as _reflection_pb2
from grpc_reflection.v1alpha.reflection import aio as reflection_aio
from trimtab.server.errors import NotFound
from trimtab.server.transport import Call, Handler, Service, service

__all__ = ["Health", "reflection"]

# Generated without types.
health_pb2: Any = _health_pb2
reflection_pb2: Any = _reflection_pb2

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Health:
    """The health of a listener's services, which all have that of the server. Lives on the loop."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = {"", *names}
        self._serving = False
        self._changed = asyncio.Event()

    def service(self) -> Service:
        """The service, for the listener."""
        descriptor = health_pb2.DESCRIPTOR.services_by_name["Health"]
        handlers: dict[str, Handler] = {"Check": self.check, "Watch": self.watch, "List": self.list}
        offered = {method.name for method in descriptor.methods}
        return service(descriptor, {name: handler for name, handler in handlers.items() if name in offered})

    def set(self, serving: bool) -> None:
        """Changes the health, and tells those who watch."""
        self._serving = serving
        self._changed.set()
        self._changed = asyncio.Event()

    async def check(self, request: Any, _call: Call) -> Any:
        """The health of a service; "" is the server."""
        if request.service not in self._names:
            raise NotFound(f"no service {request.service!r} here")
        return self._response(request.service)

    async def list(self, _request: object, _call: Call) -> Any:
        """The health of all services."""
        return health_pb2.HealthListResponse(statuses={name: self._response(name) for name in self._names})

    async def watch(self, request: Any, _call: Call) -> AsyncIterator[Any]:
        """The health of a service now, and whenever it changes."""
        last = None
        while True:
            changed = self._changed
            response = self._response(request.service)
            if response.status != last:
                last = response.status
                yield response
            await changed.wait()

    def _response(self, name: str) -> Any:
        status = _UNKNOWN if name not in self._names else _SERVING if self._serving else _NOT_SERVING
        return health_pb2.HealthCheckResponse(status=status)


def reflection(names: Sequence[str]) -> Service:
    """Server reflection over these services and itself."""
    descriptor = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
    servicer = reflection_aio.ReflectionServicer([*names, descriptor.full_name])
    return service(descriptor, {"ServerReflectionInfo": servicer.ServerReflectionInfo})
