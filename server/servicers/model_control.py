"""RepositoryModelLoad and RepositoryModelUnload: which models are loaded, by Triton's protocol.

Offered on the admin socket, and to every client only where [security] model_control says so. A load may not bring files
or settings with it (Triton's `parameters`): what a model is, trimtab.toml alone says.
"""

from __future__ import annotations

from trimtab.protos.v1 import inference_pb2 as pb
from trimtab.server.errors import Denied, Draining, InvalidRequest
from trimtab.server.repository import Repository
from trimtab.server.served import Registry
from trimtab.server.transport import Call, Handler, Service, service

__all__ = ["ModelControl"]

_UNLOAD_DEPENDENTS = "unload_dependents"


class ModelControl:
    """See the module."""

    def __init__(self, registry: Registry, repository: Repository, *, allowed: bool) -> None:
        """Without `allowed` both answer PERMISSION_DENIED."""
        self._registry = registry
        self._repository = repository
        self._allowed = allowed

    def handlers(self) -> dict[str, Handler]:
        """By method of GRPCInferenceService."""
        return {"RepositoryModelLoad": self.load, "RepositoryModelUnload": self.unload}

    def service(self, *others: dict[str, Handler]) -> Service:
        """Nothing but these and other handlers, for the admin listener."""
        handlers = self.handlers()
        for other in others:
            handlers.update(other)
        return service(pb.DESCRIPTOR.services_by_name["GRPCInferenceService"], handlers)

    async def load(self, request: pb.RepositoryModelLoadRequest, _call: Call) -> pb.RepositoryModelLoadResponse:
        """Loads a model of trimtab.toml, or what is new of one that is loaded."""
        self._check(request.repository_name)
        if request.parameters:
            names = ", ".join(map(repr, request.parameters))
            raise InvalidRequest(f"parameters: expected none, since trimtab.toml says what a model is, got {names}")
        await self._repository.load(request.model_name)
        return pb.RepositoryModelLoadResponse()

    async def unload(self, request: pb.RepositoryModelUnloadRequest, _call: Call) -> pb.RepositoryModelUnloadResponse:
        """Takes a model away, when what it has accepted is answered."""
        self._check(request.repository_name)
        unknown = [name for name in request.parameters if name != _UNLOAD_DEPENDENTS]
        if unknown:
            raise InvalidRequest(f"parameter {unknown[0]!r}: expected none but {_UNLOAD_DEPENDENTS!r}")
        await self._repository.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()

    def _check(self, repository: str) -> None:
        if not self._allowed:
            raise Denied("models are loaded and unloaded on the admin socket ([security] model_control)")
        if self._registry.draining:
            raise Draining("the server is stopping")
        if repository:
            raise InvalidRequest(f"repository_name: expected none, there is one repository, got {repository[:80]!r}")
