"""A call of the native transport as its handler sees it: its metadata, deadline and peer, and the streams of messages.

Lives on the loop. Knows nothing of HTTP/2: what it has to say goes out as commands (csrc/front_bridge.h), and the
transport tells it what came.

Flow control. A handler that sends faster than its client takes waits in `send` while more than 256 KiB are unsent: the
front reports what has left at least every 64 KiB. A message that the client sends counts against its stream's window
until the handler has taken it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import grpc
from trimtab._native import valid_metadata

__all__ = ["Aborted", "NativeCall"]

# Kinds of commands; the numbers are those of CommandKind in csrc/front_bridge.h.
HEADERS, MESSAGE, READ, FINISH = range(4)
# Compression; the numbers are those in csrc/front_call.h, and one bit for a message that goes out as it is.
_MIRROR, _NONE, _GZIP = range(3)
_PLAIN = 4
_UNSENT = 256 << 10
# What a message counts beside its bytes: kMessageCost in csrc/http2_connection.h.
_MESSAGE_COST = 64

_Metadata = Sequence[tuple[str, str | bytes]]


class Aborted(Exception):
    """Raised by `abort`: ends the call with this status."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class NativeCall:
    """See the module; implements trimtab.server.transport.Call. Iterating it gives the client's messages."""

    def __init__(
        self,
        id_: int,
        put: Callable[[tuple[Any, ...]], None],
        deadline_ns: int | None,
        metadata: tuple[tuple[str, str | bytes], ...],
        peer: str,
        identity: Mapping[str, list[bytes]],
    ) -> None:
        self.id = id_
        self.trailing: list[tuple[str, bytes]] = []
        self.task: asyncio.Task[None] | None = None
        # What it ended with where that was not its handler: a status' name.
        self.over = "CANCELLED"
        self._put = put
        self._deadline_ns = deadline_ns
        self._metadata = metadata
        self._peer = peer
        self._identity = identity
        self._messages: deque[bytes] = deque()
        self._half_closed = False
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._sent = self._left = 0
        self._headers_sent = False
        self._compression, self._plain = _MIRROR, False

    # --- for handlers

    def time_remaining(self) -> float | None:
        """Seconds until the call's deadline; None without one."""
        if self._deadline_ns is None:
            return None
        return max(0.0, (self._deadline_ns - time.monotonic_ns()) / 1e9)

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """Pairs of the client's metadata; values of names that end in -bin are bytes."""
        return self._metadata

    def peer(self) -> str:
        """Where the client is, in gRPC's words: "ipv4:127.0.0.1:50000", "unix:"."""
        return self._peer

    def auth_context(self) -> Mapping[str, list[bytes]]:
        """What TLS knows of the client, in gRPC's words; empty without TLS."""
        return self._identity

    def set_trailing_metadata(self, metadata: _Metadata) -> None:
        """What goes with the status. Raises ValueError on what cannot be sent."""
        self.trailing = _checked(metadata)

    async def send_initial_metadata(self, metadata: _Metadata) -> None:
        """Sent now, once, and before any message. Raises ValueError on what cannot be sent."""
        if self._headers_sent:
            raise ValueError("initial metadata was sent already")
        self._headers_sent = True
        self._put((HEADERS, self.id, _checked(metadata), self._compression))

    def set_compression(self, compression: grpc.Compression) -> None:
        """How answers go out, where the client takes gzip (which deflate becomes, too); before anything is sent."""
        if self._headers_sent:
            raise RuntimeError("compression is to be set before anything is sent")
        self._compression = _NONE if compression is grpc.Compression.NoCompression else _GZIP

    def disable_next_message_compression(self) -> None:
        """The next answer goes out as it is."""
        self._plain = True

    async def abort(self, code: Any, details: str = "", trailing_metadata: _Metadata = ()) -> None:
        """Ends the call with a status: never returns."""
        if trailing_metadata:
            self.set_trailing_metadata(trailing_metadata)
        raise Aborted(code if isinstance(code, str) else code.name, details)

    # --- for the transport

    async def send(self, data: bytes) -> None:
        """Sends a message; waits while too much is unsent."""
        self._headers_sent = True
        self._put((MESSAGE, self.id, data, self.compression()))
        self._sent += len(data)
        while self._sent - self._left > _UNSENT:
            self._writer = asyncio.get_running_loop().create_future()
            await self._writer

    async def messages(self) -> AsyncIterator[bytes]:
        """The client's messages, until it has sent all."""
        while True:
            while not self._messages:
                if self._half_closed:
                    return
                self._reader = asyncio.get_running_loop().create_future()
                await self._reader
            message = self._messages.popleft()
            self._put((READ, self.id, len(message) + _MESSAGE_COST))
            yield message

    def compression(self) -> int:
        """What the front is told of the compression of the next message."""
        plain, self._plain = self._plain, False
        return self._compression + (_PLAIN if plain else 0)

    def on_message(self, data: bytes) -> None:
        """The client sent a message."""
        self._messages.append(data)
        _wake(self._reader)

    def on_half_closed(self) -> None:
        """The client has sent all."""
        self._half_closed = True
        _wake(self._reader)

    def on_sent(self, left: int) -> None:
        """So many bytes of messages have left, in all."""
        self._left = left
        _wake(self._writer)


def _wake(waiting: asyncio.Future[None] | None) -> None:
    if waiting is not None and not waiting.done():
        waiting.set_result(None)


def _checked(metadata: _Metadata) -> list[tuple[str, bytes]]:
    checked = []
    for name, value in metadata:
        data = value.encode() if isinstance(value, str) else bytes(value)
        if not valid_metadata(name, data):
            raise ValueError(f"metadata {name!r}: expected a lower-case name and printable text (-bin: any bytes)")
        checked.append((name, data))
    return checked
