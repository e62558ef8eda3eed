"""Drift: the report of the windows that were closed lately."""

from __future__ import annotations

from trimtab.protos.v1 import trimtab_pb2 as pb
from trimtab.server.errors import Unsupported
from trimtab.server.served import Registry
from trimtab.server.transport import Call, Service, service

__all__ = ["DriftServicer"]


class DriftServicer:
    """See the module."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def service(self) -> Service:
        """The service, for a listener."""
        return service(pb.DESCRIPTOR.services_by_name["Drift"], {"Report": self.report})

    async def report(self, request: pb.DriftRequest, _call: Call) -> pb.DriftResponse:
        """The newest closed windows, newest last. None before the first one closed."""
        model = self._registry.model(request.model_name)
        if model.drift is None:
            raise Unsupported(f"model {model.name!r} has drift switched off ([model.drift] enabled = false)")
        return pb.DriftResponse(reports=model.drift.reports(request.windows or 1))
