"""Channels and calls: deadlines, retries and errors, the same for every RPC. Knows nothing of what the messages
mean."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, TypeAlias

import grpc
from trimtab.client.errors import Cancelled, ClientError, InvalidInput, from_status
from trimtab.client.retry import Backoff
from trimtab.client.tls import Tls

__all__ = ["AsyncWire", "Metadata", "Wire", "target"]

# gRPC's own retries are off: ours are the only ones. Sizes are the server's business. A connection that fails is
# tried again within a second, so that a restarted server is found by the retries.
_OPTIONS = (
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)

Metadata: TypeAlias = tuple[tuple[str, str], ...]


def target(address: str) -> str:
    """What gRPC dials: `host:port`, or `unix:/path` for a path. Raises InvalidInput."""
    if not address:
        raise InvalidInput('expected an address such as "127.0.0.1:8001", came an empty one')
    return f"unix:{address}" if address.startswith("/") else address.removeprefix("grpc://")


class Wire:
    """A channel for threads. Closing ends what is under way with Cancelled."""

    def __init__(self, address: str, backoff: Backoff, metadata: Metadata = (), tls: Tls | None = None) -> None:
        self.address = address
        self.metadata = metadata
        self.backoff = backoff
        if tls is None:
            self.channel = grpc.insecure_channel(target(address), options=_OPTIONS)
        else:
            self.channel = grpc.secure_channel(target(address), tls.credentials(), options=_OPTIONS)
        self._closed = threading.Event()

    def call(self, method: Any, request: Any, timeout: float | None) -> Any:
        """The answer. `timeout`: seconds for all attempts together. Raises ClientError."""
        end = None if timeout is None else time.monotonic() + timeout
        attempt = 0
        while True:
            if self._closed.is_set():
                raise Cancelled("the client is closed")
            remaining = None if end is None else max(end - time.monotonic(), 0.0)
            try:
                return method(request, timeout=remaining, metadata=self.metadata)
            except grpc.RpcError as error:
                raised = _translated(error, self.address)
                remaining = None if end is None else end - time.monotonic()
                wait = self.backoff.wait(attempt, raised.code, remaining)
                if wait is None or self._closed.wait(wait):
                    raise raised from None
            except ValueError as error:  # grpcio: the channel is closed
                raise Cancelled(str(error)) from None
            attempt += 1

    def stream(self, method: Any, request: Any, timeout: float | None = None) -> Iterator[Any]:
        """The answers, one by one; not retried. Ending the iteration ends the call. Raises ClientError."""
        try:
            call = method(request, timeout=timeout, metadata=self.metadata)
        except ValueError as error:
            raise Cancelled(str(error)) from None
        try:
            yield from call
        except grpc.RpcError as error:
            raise _translated(error, self.address) from None
        finally:
            call.cancel()

    def close(self) -> None:
        """Closes the channel."""
        self._closed.set()
        self.channel.close()


class AsyncWire:
    """A channel for asyncio. To be made and used in one event loop."""

    def __init__(self, address: str, backoff: Backoff, metadata: Metadata = (), tls: Tls | None = None) -> None:
        self.address = address
        self.metadata = metadata
        self.backoff = backoff
        if tls is None:
            self.channel = grpc.aio.insecure_channel(target(address), options=_OPTIONS)
        else:
            self.channel = grpc.aio.secure_channel(target(address), tls.credentials(), options=_OPTIONS)
        self._closed = False

    async def call(self, method: Any, request: Any, timeout: float | None) -> Any:
        """As Wire.call."""
        end = None if timeout is None else time.monotonic() + timeout
        attempt = 0
        while True:
            if self._closed:
                raise Cancelled("the client is closed")
            remaining = None if end is None else max(end - time.monotonic(), 0.0)
            try:
                return await method(request, timeout=remaining, metadata=self.metadata)
            except grpc.RpcError as error:
                raised = _translated(error, self.address)
                remaining = None if end is None else end - time.monotonic()
                wait = self.backoff.wait(attempt, raised.code, remaining)
                if wait is None:
                    raise raised from None
            except grpc.aio.UsageError as error:
                raise Cancelled(str(error)) from None
            await asyncio.sleep(wait)
            attempt += 1

    async def stream(self, method: Any, request: Any, timeout: float | None = None) -> AsyncIterator[Any]:
        """As Wire.stream."""
        call = method(request, timeout=timeout, metadata=self.metadata)
        try:
            async for answer in call:
                yield answer
        except grpc.RpcError as error:
            raise _translated(error, self.address) from None
        finally:
            call.cancel()

    async def close(self) -> None:
        """Closes the channel."""
        self._closed = True
        await self.channel.close()


def _translated(error: grpc.RpcError, address: str) -> ClientError:
    code = error.code() if hasattr(error, "code") else None
    name = code.name if code is not None else "UNKNOWN"
    details = (error.details() if hasattr(error, "details") else None) or ""
    if name == "UNAVAILABLE" and ("connect" in details.lower() or "dns" in details.lower() or not details):
        details = f"no server answers at {address} ({' '.join(details.split())[:200]})"
    # gRPC's own words for its own clock; a server that ran out of time says more.
    if name == "DEADLINE_EXCEEDED" and (not details or "Deadline Exceeded" in details):
        details = f"no answer from {address} in time"
    return from_status(name, details)
