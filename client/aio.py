"""The client for asyncio. An AsyncClient belongs to the event loop that it is made in; any number of tasks may use
it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from numpy.typing import NDArray
from trimtab.client import messages
from trimtab.client.admin import AsyncAdminClient
from trimtab.client.errors import InvalidInput, Unavailable
from trimtab.client.retry import Backoff
from trimtab.client.tls import Tls
from trimtab.client.types import Drift, Event, FeedbackResult, Label, Result, Rows, Tensor, Truth
from trimtab.client.wire import AsyncWire
from trimtab.protos.v1 import inference_pb2 as inference
from trimtab.protos.v1 import trimtab_pb2 as trimtab
from trimtab.protos.v1.inference_pb2_grpc import GRPCInferenceServiceStub
from trimtab.protos.v1.trimtab_pb2_grpc import DriftStub, FeedbackStub

__all__ = ["AsyncClient"]


class AsyncClient:
    """As Client, with coroutines: same arguments, same results, same errors."""

    def __init__(
        self,
        address: str,
        *,
        model: str | None = None,
        timeout: float = 10.0,
        retries: int = 4,
        admin: str | None = None,
        tls: Tls | None = None,
    ) -> None:
        self.timeout = timeout
        self._model = model
        self._wire = AsyncWire(address, Backoff(retries), tls=tls)
        self._inference = GRPCInferenceServiceStub(self._wire.channel)
        self._feedback = FeedbackStub(self._wire.channel)
        self._drift = DriftStub(self._wire.channel)
        self._admin = AsyncAdminClient(admin, retries=retries) if admin is not None else None
        self._inputs: dict[str, tuple[Tensor, ...]] = {}
        self._lock = asyncio.Lock()

    async def model(self) -> str:
        """The model's name; asks the server where none was given."""
        async with self._lock:
            if self._model is None:
                index = await self._wire.call(
                    self._inference.RepositoryIndex, inference.RepositoryIndexRequest(), self.timeout
                )
                self._model = messages.only_model(index)
            return self._model

    async def inputs(self) -> tuple[Tensor, ...]:
        """The model's inputs, by its metadata; asked once, and again after a request that did not fit."""
        model = await self.model()
        async with self._lock:
            if model not in self._inputs:
                request = inference.ModelMetadataRequest(name=model)
                metadata = await self._wire.call(self._inference.ModelMetadata, request, self.timeout)
                self._inputs[model] = messages.tensors(metadata)
            return self._inputs[model]

    async def ready(self) -> bool:
        """Whether the server takes requests for the model now."""
        try:
            request = inference.ModelReadyRequest(name=await self.model())
            return bool((await self._wire.call(self._inference.ModelReady, request, self.timeout)).ready)
        except Unavailable:
            return False

    async def infer(
        self,
        rows: Rows,
        *,
        version: str | int = "",
        time_us: int | None = None,
        request_id: str = "",
        outputs: Sequence[str] = (),
        timeout: float | None = None,
    ) -> Result:
        """As Client.infer."""
        model = await self.model()
        request, count = messages.infer_request(
            model, await self.inputs(), rows, version=version, time_us=time_us, request_id=request_id, outputs=outputs
        )
        try:
            response = await self._wire.call(self._inference.ModelInfer, request, timeout or self.timeout)
        except InvalidInput:
            # The model behind the name may take other columns by now.
            self._inputs.pop(model, None)
            raise
        return messages.result(response, count)

    async def feedback(
        self,
        target: str | Result | Iterable[Label],
        values: Sequence[Truth] | NDArray[Any] | Mapping[int, Truth] | Truth | None = None,
        *,
        observed_at: datetime | int | None = None,
        source: str = "",
        timeout: float | None = None,
    ) -> FeedbackResult:
        """As Client.feedback."""
        labels = messages.labels_of(target, values, observed_at=observed_at, source=source)
        if not labels:
            return FeedbackResult()
        request = messages.feedback_request(await self.model(), labels)
        return messages.feedback_result(await self._wire.call(self._feedback.Send, request, timeout or self.timeout))

    async def drift(self, windows: int = 0, *, timeout: float | None = None) -> list[Drift]:
        """As Client.drift."""
        request = trimtab.DriftRequest(model_name=await self.model(), windows=windows)
        return messages.drifts(await self._wire.call(self._drift.Report, request, timeout or self.timeout))

    async def watch(self) -> AsyncIterator[Event]:
        """As Client.watch."""
        if self._admin is None:
            raise InvalidInput("watch needs the admin socket: AsyncClient(..., admin=PATH)")
        async for event in self._admin.watch(await self.model()):
            yield event

    async def close(self) -> None:
        """Closes the connections."""
        await self._wire.close()
        if self._admin is not None:
            await self._admin.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
