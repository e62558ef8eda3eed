"""Lifecycle over the admin socket: what commands and the trainer use. Answers are the protocol's own messages.

`running` finds the socket of the server that runs for a folder. Times a call may take differ by what it does: reading
is quick, staging loads and warms a model, advancing and retraining wait for the trainer."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from trimtab.client import messages
from trimtab.client.errors import Unavailable
from trimtab.client.retry import Backoff
from trimtab.client.types import Event
from trimtab.client.wire import AsyncWire, Wire
from trimtab.protos.v1 import inference_pb2 as inference
from trimtab.protos.v1 import trimtab_pb2 as trimtab
from trimtab.protos.v1.inference_pb2_grpc import GRPCInferenceServiceStub
from trimtab.protos.v1.trimtab_pb2_grpc import LifecycleStub

__all__ = ["CALLER", "LONG", "QUICK", "STAGING", "AdminClient", "AsyncAdminClient", "Running", "running"]

QUICK = 10.0
STAGING = 120.0
LONG = 3600.0
CALLER = "trimtab-caller"
"""Metadata in which a caller says what it is; the trainer's promotions may be refused, a person's are not."""


@dataclass(frozen=True)
class Running:
    """A running server, as it wrote itself down in state/server.json."""

    pid: int
    grpc: str
    http: str
    admin: str


def running(state: Path | str) -> Running | None:
    """The server of the state folder, if one says that it runs. It may have died since: calls then raise
    Unavailable."""
    try:
        items: Any = json.loads((Path(state) / "server.json").read_bytes())
        return Running(int(items["pid"]), str(items["grpc"]), str(items["http"]), str(items["admin"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise Unavailable(f"{Path(state) / 'server.json'} cannot be read; restart the server") from None


class AdminClient:
    """Lifecycle, for threads. `socket`: path of the admin socket. `caller`: "trainer" for the trainer. A context
    manager.

    Every call raises ClientError.
    """

    def __init__(self, socket: str | Path, *, retries: int = 4, caller: str = "") -> None:
        self._wire = Wire(str(socket), Backoff(retries), ((CALLER, caller),) if caller else ())
        self._stub = LifecycleStub(self._wire.channel)
        self._models = GRPCInferenceServiceStub(self._wire.channel)

    def status(self, *, timeout: float | None = QUICK) -> trimtab.StatusResponse:
        """The server, its models and its trainer."""
        response: trimtab.StatusResponse = self._wire.call(self._stub.Status, trimtab.StatusRequest(), timeout)
        return response

    def versions(self, model: str, *, timeout: float | None = QUICK) -> trimtab.ListVersionsResponse:
        """Every version, and which one is live."""
        request = trimtab.ListVersionsRequest(model_name=model)
        response: trimtab.ListVersionsResponse = self._wire.call(self._stub.ListVersions, request, timeout)
        return response

    def stage(self, model: str, version: int, *, timeout: float | None = STAGING) -> trimtab.StageResponse:
        """Loads, verifies and warms a version beside the live one."""
        request = trimtab.StageRequest(model_name=model, version=version)
        response: trimtab.StageResponse = self._wire.call(self._stub.Stage, request, timeout)
        return response

    def promote(
        self, model: str, version: int, *, expected_epoch: int = -1, reason: str = "", timeout: float | None = STAGING
    ) -> trimtab.PromoteResponse:
        """Makes a version live. With an `expected_epoch` other than the current one: Conflict."""
        request = trimtab.PromoteRequest(
            model_name=model, version=version, expected_epoch=expected_epoch, reason=reason
        )
        response: trimtab.PromoteResponse = self._wire.call(self._stub.Promote, request, timeout)
        return response

    def rollback(self, model: str, *, reason: str = "", timeout: float | None = STAGING) -> trimtab.PromoteResponse:
        """Makes the previous version live again."""
        request = trimtab.RollbackRequest(model_name=model, reason=reason)
        response: trimtab.PromoteResponse = self._wire.call(self._stub.Rollback, request, timeout)
        return response

    def alias(
        self, model: str, name: str, version: int, *, expected_epoch: int = -1, timeout: float | None = STAGING
    ) -> trimtab.SetAliasResponse:
        """Makes a name stand for a version; 0 takes the name away."""
        request = trimtab.SetAliasRequest(model_name=model, alias=name, version=version, expected_epoch=expected_epoch)
        response: trimtab.SetAliasResponse = self._wire.call(self._stub.SetAlias, request, timeout)
        return response

    def load(self, model: str, *, timeout: float | None = STAGING) -> None:
        """Loads a model of trimtab.toml, which is read anew, or what is new of one that is loaded."""
        self._wire.call(
            self._models.RepositoryModelLoad, inference.RepositoryModelLoadRequest(model_name=model), timeout
        )

    def unload(self, model: str, *, timeout: float | None = STAGING) -> None:
        """Takes a model away, when what it has accepted is answered."""
        request = inference.RepositoryModelUnloadRequest(model_name=model)
        self._wire.call(self._models.RepositoryModelUnload, request, timeout)

    def advance(self, data_time_us: int, *, model: str = "", timeout: float | None = LONG) -> trimtab.AdvanceResponse:
        """Moves data time forward, seals what was captured, and returns when the trainer is quiescent."""
        request = trimtab.AdvanceRequest(model_name=model, data_time_us=data_time_us)
        response: trimtab.AdvanceResponse = self._wire.call(self._stub.Advance, request, timeout)
        return response

    def retrain(
        self, model: str, *, recipe: str = "refresh", reason: str = "", wait: bool = False, timeout: float | None = LONG
    ) -> trimtab.RetrainResponse:
        """Asks for a challenger; with `wait`, returns with the verdict."""
        request = trimtab.RetrainRequest(model_name=model, recipe=recipe, reason=reason, wait=wait)
        response: trimtab.RetrainResponse = self._wire.call(self._stub.Retrain, request, timeout)
        return response

    def pin_reference(
        self,
        model: str,
        *,
        windows: tuple[int, int] | None = None,
        sketch: bytes | None = None,
        origin: str = "",
        timeout: float | None = QUICK,
    ) -> trimtab.PinReferenceResponse:
        """Compares drift windows with the kept `windows` (first, last), summed, or with a `sketch` file's contents,
        which come from `origin`; with neither, with the training data."""
        request = messages.pin_request(model, windows, sketch, origin)
        response: trimtab.PinReferenceResponse = self._wire.call(self._stub.PinReference, request, timeout)
        return response

    def forget(
        self, model: str, request_ids: Sequence[str], *, timeout: float | None = STAGING
    ) -> trimtab.ForgetResponse:
        """Deletes captured rows and their labels."""
        request = trimtab.ForgetRequest(model_name=model, request_ids=request_ids)
        response: trimtab.ForgetResponse = self._wire.call(self._stub.Forget, request, timeout)
        return response

    def watch(self, model: str = "") -> Iterator[Event]:
        """Events as they happen, of one model or all; without a deadline, until the iteration ends."""
        request = trimtab.WatchEventsRequest(model_name=model)
        for message in self._wire.stream(self._stub.WatchEvents, request):
            yield messages.event(message)

    def attend(self, reports: Iterator[trimtab.TrainerReport]) -> Iterator[trimtab.TrainerCommand]:
        """The trainer's channel: sends `reports` as they come (on a thread of gRPC's) and yields the server's
        commands."""
        return self._wire.stream(self._stub.Attend, reports)

    def close(self) -> None:
        """Closes the connection; what is under way ends with Cancelled."""
        self._wire.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncAdminClient:
    """As AdminClient, with coroutines."""

    def __init__(self, socket: str | Path, *, retries: int = 4, caller: str = "") -> None:
        self._wire = AsyncWire(str(socket), Backoff(retries), ((CALLER, caller),) if caller else ())
        self._stub = LifecycleStub(self._wire.channel)
        self._models = GRPCInferenceServiceStub(self._wire.channel)

    async def status(self, *, timeout: float | None = QUICK) -> trimtab.StatusResponse:
        """As AdminClient.status."""
        response: trimtab.StatusResponse = await self._wire.call(self._stub.Status, trimtab.StatusRequest(), timeout)
        return response

    async def versions(self, model: str, *, timeout: float | None = QUICK) -> trimtab.ListVersionsResponse:
        """As AdminClient.versions."""
        request = trimtab.ListVersionsRequest(model_name=model)
        response: trimtab.ListVersionsResponse = await self._wire.call(self._stub.ListVersions, request, timeout)
        return response

    async def stage(self, model: str, version: int, *, timeout: float | None = STAGING) -> trimtab.StageResponse:
        """As AdminClient.stage."""
        request = trimtab.StageRequest(model_name=model, version=version)
        response: trimtab.StageResponse = await self._wire.call(self._stub.Stage, request, timeout)
        return response

    async def promote(
        self, model: str, version: int, *, expected_epoch: int = -1, reason: str = "", timeout: float | None = STAGING
    ) -> trimtab.PromoteResponse:
        """As AdminClient.promote."""
        request = trimtab.PromoteRequest(
            model_name=model, version=version, expected_epoch=expected_epoch, reason=reason
        )
        response: trimtab.PromoteResponse = await self._wire.call(self._stub.Promote, request, timeout)
        return response

    async def rollback(
        self, model: str, *, reason: str = "", timeout: float | None = STAGING
    ) -> trimtab.PromoteResponse:
        """As AdminClient.rollback."""
        request = trimtab.RollbackRequest(model_name=model, reason=reason)
        response: trimtab.PromoteResponse = await self._wire.call(self._stub.Rollback, request, timeout)
        return response

    async def alias(
        self, model: str, name: str, version: int, *, expected_epoch: int = -1, timeout: float | None = STAGING
    ) -> trimtab.SetAliasResponse:
        """As AdminClient.alias."""
        request = trimtab.SetAliasRequest(model_name=model, alias=name, version=version, expected_epoch=expected_epoch)
        response: trimtab.SetAliasResponse = await self._wire.call(self._stub.SetAlias, request, timeout)
        return response

    async def load(self, model: str, *, timeout: float | None = STAGING) -> None:
        """As AdminClient.load."""
        await self._wire.call(
            self._models.RepositoryModelLoad, inference.RepositoryModelLoadRequest(model_name=model), timeout
        )

    async def unload(self, model: str, *, timeout: float | None = STAGING) -> None:
        """As AdminClient.unload."""
        request = inference.RepositoryModelUnloadRequest(model_name=model)
        await self._wire.call(self._models.RepositoryModelUnload, request, timeout)

    async def advance(
        self, data_time_us: int, *, model: str = "", timeout: float | None = LONG
    ) -> trimtab.AdvanceResponse:
        """As AdminClient.advance."""
        request = trimtab.AdvanceRequest(model_name=model, data_time_us=data_time_us)
        response: trimtab.AdvanceResponse = await self._wire.call(self._stub.Advance, request, timeout)
        return response

    async def retrain(
        self, model: str, *, recipe: str = "refresh", reason: str = "", wait: bool = False, timeout: float | None = LONG
    ) -> trimtab.RetrainResponse:
        """As AdminClient.retrain."""
        request = trimtab.RetrainRequest(model_name=model, recipe=recipe, reason=reason, wait=wait)
        response: trimtab.RetrainResponse = await self._wire.call(self._stub.Retrain, request, timeout)
        return response

    async def pin_reference(
        self,
        model: str,
        *,
        windows: tuple[int, int] | None = None,
        sketch: bytes | None = None,
        origin: str = "",
        timeout: float | None = QUICK,
    ) -> trimtab.PinReferenceResponse:
        """As AdminClient.pin_reference."""
        request = messages.pin_request(model, windows, sketch, origin)
        response: trimtab.PinReferenceResponse = await self._wire.call(self._stub.PinReference, request, timeout)
        return response

    async def forget(
        self, model: str, request_ids: Sequence[str], *, timeout: float | None = STAGING
    ) -> trimtab.ForgetResponse:
        """As AdminClient.forget."""
        request = trimtab.ForgetRequest(model_name=model, request_ids=request_ids)
        response: trimtab.ForgetResponse = await self._wire.call(self._stub.Forget, request, timeout)
        return response

    async def watch(self, model: str = "") -> AsyncIterator[Event]:
        """As AdminClient.watch."""
        request = trimtab.WatchEventsRequest(model_name=model)
        async for message in self._wire.stream(self._stub.WatchEvents, request):
            yield messages.event(message)

    def attend(self, reports: AsyncIterator[trimtab.TrainerReport]) -> AsyncIterator[trimtab.TrainerCommand]:
        """As AdminClient.attend."""
        return self._wire.stream(self._stub.Attend, reports)

    async def close(self) -> None:
        """As AdminClient.close."""
        await self._wire.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
