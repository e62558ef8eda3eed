"""Bodies of HTTP requests and answers: read within limits, decompressed, compressed.

What may be held is bounded from the first byte: by the size of one body, before and after decompression; by the bytes
of all bodies under way; and by time, for a client that sends a byte a minute. A size that the client announces is
believed only to refuse it.
"""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from starlette.types import Receive
from trimtab.server.errors import Disconnected, InvalidRequest, QueueFull, TooLarge

__all__ = ["Bodies", "compress", "disconnected"]

# Seconds that a body may take, and the least bytes a second beyond.
_PATIENCE, _RATE = 10.0, 100_000
_CHUNK = 1 << 18
# Compressing less than this is not worth its header; more than this is not done on the loop.
_SMALL, _LARGE = 256, 1 << 16
_WINDOWS = {"gzip": 31, "deflate": 15}


class Bodies:
    """Reads bodies, and knows how many bytes of them are held. Lives on the loop."""

    def __init__(self, most: int, *, together: int = 0, patience: float = _PATIENCE) -> None:
        """`most`: bytes of one body, before and after decompression; `together`: of all (0: eight times that)."""
        self._most = most
        self._together = together or 8 * most
        self._patience = patience
        self._held = 0

    @contextmanager
    def hold(self) -> Iterator[_Reader]:
        """A reader for one body, whose bytes count as held until the end of the block."""
        reader = _Reader(self, self._most, self._patience)
        try:
            yield reader
        finally:
            self._held -= reader.held

    def take(self, size: int) -> None:
        """Counts bytes as held. Raises QueueFull."""
        if self._held + size > self._together:
            raise QueueFull("more is being read than this server holds at a time; try again later")
        self._held += size


class _Reader:
    def __init__(self, bodies: Bodies, most: int, patience: float) -> None:
        self._bodies = bodies
        self._most = most
        self._patience = patience
        self.held = 0

    async def read(self, receive: Receive, headers: Mapping[str, str]) -> bytes:
        """The whole body, decompressed. Raises TooLarge, QueueFull, InvalidRequest, Disconnected."""
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", "", *_WINDOWS):
            raise InvalidRequest(f"Content-Encoding {encoding!r}: expected gzip, deflate or identity")
        announced = headers.get("content-length", "0")
        if announced.isdecimal() and int(announced) > self._most:
            raise self._too_large(announced)
        raw = await self._receive(receive)
        if encoding not in _WINDOWS:
            return raw
        small = len(raw) <= _LARGE
        inflated = self._inflate(raw, encoding) if small else await asyncio.to_thread(self._inflate, raw, encoding)
        self._take(len(inflated))
        return inflated

    async def _receive(self, receive: Receive) -> bytes:
        chunks, size = [], 0
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(self._patience) as limit:
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Disconnected("the client went away before its request was complete")
                    chunk: bytes = message.get("body", b"")
                    size += len(chunk)
                    if size > self._most:
                        raise self._too_large(f"more than {self._most}")
                    self._take(len(chunk))
                    chunks.append(chunk)
                    if not message.get("more_body", False):
                        return b"".join(chunks)
                    limit.reschedule(began + self._patience + size / _RATE)
        except TimeoutError:
            raise InvalidRequest(f"expected the rest of the body, came {size} bytes and then too little") from None

    def _inflate(self, raw: bytes, encoding: str) -> bytes:
        parts, size, rest = [], 0, raw
        try:
            while rest:
                inflater = zlib.decompressobj(_WINDOWS[encoding])
                while not inflater.eof:
                    part = inflater.decompress(rest, _CHUNK)
                    rest = inflater.unconsumed_tail
                    size += len(part)
                    if size > self._most:
                        raise self._too_large(f"more than {self._most} when decompressed")
                    if not part and not rest and not inflater.eof:
                        raise InvalidRequest(f"expected a whole body in {encoding}, came a part of one")
                    parts.append(part)
                # gzip may have several members.
                rest = inflater.unused_data
                if rest and encoding != "gzip":
                    raise InvalidRequest("expected a body in deflate, came bytes behind it")
        except zlib.error as error:
            raise InvalidRequest(f"expected a body in {encoding}, came something else: {error}") from None
        return b"".join(parts)

    def _take(self, size: int) -> None:
        self._bodies.take(size)
        self.held += size

    def _too_large(self, came: object) -> TooLarge:
        return TooLarge(f"expected a body of at most {self._most} bytes (max_message_bytes), came {came}")


async def disconnected(receive: Receive) -> None:
    """Returns when the client has gone; to be awaited once its body was read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def compress(content: bytes, accepted: str) -> tuple[bytes, str]:
    """The content in the first encoding of Accept-Encoding that is gzip or deflate, and that; "" where none is."""
    encoding = next((name for name in _accepted(accepted) if name in _WINDOWS), "")
    if not encoding or len(content) < _SMALL:
        return content, ""
    if len(content) <= _LARGE:
        return _deflate(content, encoding), encoding
    return await asyncio.to_thread(_deflate, content, encoding), encoding


def _deflate(content: bytes, encoding: str) -> bytes:
    return gzip.compress(content, 1, mtime=0) if encoding == "gzip" else zlib.compress(content, 1)


def _accepted(header: str) -> Iterator[str]:
    for item in header.split(","):
        name, *parameters = (part.strip().lower() for part in item.split(";"))
        if not any(parameter.replace(" ", "") in ("q=0", "q=0.0", "q=0.00", "q=0.000") for parameter in parameters):
            yield name
