"""Hostile clients at full size for hostile.py. Each attacks until it has what it came for, or until its time is over,
and notes what it got and when. The frames are those of the tests' hostile clients (tests/server/attacks.py).

Knows nothing of the server but its address: what it costs the server is measured elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.server import attacks
from tests.server.attacks import CONTINUATION, DATA, END_HEADERS, HEADERS, Address, Raw, connect, frame, message

UNARY = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
CODES = {0: "NO_ERROR", 1: "PROTOCOL_ERROR", 3: "FLOW_CONTROL_ERROR", 6: "FRAME_SIZE_ERROR", 9: "COMPRESSION_ERROR"}
CODES |= {11: "ENHANCE_YOUR_CALM"}
STATUSES = {0: "OK", 3: "INVALID_ARGUMENT", 4: "DEADLINE_EXCEEDED", 8: "RESOURCE_EXHAUSTED", 12: "UNIMPLEMENTED"}
STATUSES |= {13: "INTERNAL", 14: "UNAVAILABLE"}


@dataclass
class Got:
    """What hostile clients got: how often, how many seconds after they began, and what they had sent."""

    answers: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    frames: int = 0
    sent_bytes: int = 0

    def add(self, what: str, began: float) -> None:
        self.answers[what] += 1
        self.seconds.append(time.monotonic() - began)

    def add_end(self, raw: Raw, began: float) -> None:
        """The connection was ended by the server."""
        code = "closed" if raw.goaway is None else f"GOAWAY {CODES.get(raw.goaway, raw.goaway)}"
        self.add(code, began)

    def add_response(self, response: Any, raw: Raw, began: float) -> None:
        if response.status is not None:
            self.add(f"status {STATUSES.get(response.status, response.status)}", began)
        elif response.reset is not None:
            self.add(f"RST_STREAM {CODES.get(response.reset, response.reset)}", began)
        else:
            self.add_end(raw, began)


Attack = Callable[[Address, Got, float], Awaitable[None]]


async def many(count: int, client: Callable[[int], Awaitable[None]]) -> None:
    """So many clients at once. One that was thrown out is no error."""

    async def one(number: int) -> None:
        with contextlib.suppress(OSError):
            await client(number)

    await asyncio.gather(*[one(number) for number in range(count)])


def left(until: float) -> float:
    return max(until - time.monotonic(), 0.0)


async def outlast(reading: asyncio.Future[Any], until: float) -> bool:
    """Whether it ended in time; if not, it is given up."""
    await asyncio.wait([reading], timeout=left(until))
    if reading.done():
        return True
    reading.cancel()
    return False


# --- sizes


async def announced(address: Address, got: Got, until: float) -> None:
    """1.5 GB, announced in the message's prefix."""

    async def client(_: int) -> None:
        while time.monotonic() < until:
            began = time.monotonic()
            async with connect(address) as raw:
                stream = raw.stream()
                raw.send(raw.headers(stream, UNARY), frame(DATA, 0, stream, struct.pack(">BI", 0, 1_500_000_000)))
                got.add_response(await raw.response(stream), raw, began)

    await many(8, client)


async def sent(address: Address, got: Got, until: float) -> None:
    """1.5 GB, sent without regard to windows, whatever the server says."""

    async def client(_: int) -> None:
        began = time.monotonic()
        async with connect(address) as raw:
            stream = raw.stream()
            raw.send(raw.headers(stream, UNARY), frame(DATA, 0, stream, struct.pack(">BI", 0, 1_500_000_000)))
            reading = asyncio.ensure_future(raw.ended())
            block, whole = frame(DATA, 0, stream, bytes(16384)) * 16, 0
            while whole < 1_500_000_000 and not reading.done() and time.monotonic() < until:
                raw.send(block)
                whole += len(block)
                if not await raw.flush():
                    break
            got.sent_bytes += whole
            if await outlast(reading, until):
                got.add_end(raw, began)
            else:
                got.add("open", began)

    await many(4, client)


async def unfinished(address: Address, got: Got, until: float) -> None:
    """As much of allowed messages as the server takes, none of them ever whole."""

    async def client(_: int) -> None:
        began = time.monotonic()
        async with connect(address) as raw:
            await _unfinished(raw, got, began, until)

    await many(40, client)


async def _unfinished(raw: Raw, got: Got, began: float, until: float) -> None:
    stream = raw.stream()
    raw.send(raw.headers(stream, UNARY), frame(DATA, 0, stream, struct.pack(">BI", 0, 60 << 20)))
    window = {0: 1 << 20, stream: 1 << 20}
    rest, block = (60 << 20) - 1, 16384

    async def pour() -> None:
        nonlocal rest
        while rest > block:
            while min(window.values()) < block:
                news.clear()
                await news.wait()
            raw.send(frame(DATA, 0, stream, bytes(block)))
            got.sent_bytes += block
            rest -= block
            window[0] -= block
            window[stream] -= block
            if not await raw.flush():
                return

    news = asyncio.Event()
    pouring = asyncio.ensure_future(pour())
    try:
        async with asyncio.timeout(left(until)):
            async for kind, flags, number, payload in raw.frames():
                if kind == attacks.UPDATE and number in window:
                    window[number] += int.from_bytes(payload, "big")
                    news.set()
                if number == stream and (kind == attacks.RESET or (kind == HEADERS and flags & attacks.END_STREAM)):
                    fields = dict(raw.decoder.decode(payload)) if kind == HEADERS else {}
                    status = int(fields.get("grpc-status", -1))
                    return got.add(f"status {STATUSES.get(status, status)}", began)
            got.add_end(raw, began)
    except TimeoutError:
        got.add("open", began)
    finally:
        pouring.cancel()


async def gzip_bomb(address: Address, got: Got, until: float) -> None:
    """200 MB of zeros in 0.2 MB of gzip; every other one's trailer says that they are 60 MB, which would be allowed."""
    honest = await asyncio.to_thread(attacks.bomb, 200_000_000)
    contents = (honest, honest[:-4] + struct.pack("<I", 60_000_000))

    async def client(number: int) -> None:
        while True:
            began = time.monotonic()
            async with connect(address) as raw:
                stream = raw.stream()
                raw.send(raw.headers(stream, UNARY, grpc_encoding="gzip"))
                raw.send(*attacks.chunks(stream, message(contents[number % 2], 1)))
                got.add_response(await raw.response(stream), raw, began)
            if time.monotonic() > until:
                return
            await asyncio.sleep(0.1)

    await many(4, client)


# --- many, slow and deaf ones


def idle(count: int) -> Attack:
    """So many connections that say hello and no more."""

    async def attack(address: Address, got: Got, until: float) -> None:
        began, made = time.monotonic(), []
        try:
            while len(made) < count and time.monotonic() < until:
                made += await attacks.idle(address, min(500, count - len(made)))
        except OSError as error:
            got.add(f"{type(error).__name__} after {len(made)}", began)
        await asyncio.sleep(left(until))
        for each in made:
            got.add("closed" if _ended(each) else "open", began)
            each.close()

    return attack


def _ended(sock: socket.socket) -> bool:
    try:
        while sock.recv(1 << 16):
            pass
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


async def deaf(address: Address, got: Got, until: float) -> None:
    """Ask for much, and never read an answer."""
    # {file_containing_symbol: "inference.GRPCInferenceService"}, by hand: tag 4.
    name = b"inference.GRPCInferenceService"
    body = b"\x22" + bytes([len(name)]) + name

    async def client(_: int) -> None:
        began = time.monotonic()
        async with attacks.deaf(address, REFLECTION, body, 1000) as raw:
            sock, state = raw.writer.get_extra_info("socket"), 1
            while time.monotonic() < until:
                # What came is not looked at; whether the server has hung up the system knows.
                state = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
                if state != 1:
                    break
                await asyncio.sleep(0.1)
            got.add("open" if state == 1 else "closed", began)

    await many(10, client)


async def _drip(raw: Raw, data: bytes, reading: asyncio.Future[Any], until: float) -> bool:
    """A byte a second; whether the server ended it."""
    for byte in data:
        raw.send(bytes([byte]))
        await asyncio.wait([reading], timeout=min(1.0, left(until)))
        if reading.done() or time.monotonic() >= until:
            break
    return await outlast(reading, until)


async def slow_preface(address: Address, got: Got, until: float) -> None:
    async def client(_: int) -> None:
        began = time.monotonic()
        async with connect(address, preface=b"") as raw:
            ended = await _drip(raw, attacks.PREFACE, asyncio.ensure_future(raw.ended()), until)
            got.add_end(raw, began) if ended else got.add("open", began)

    await many(100, client)


async def slow_headers(address: Address, got: Got, until: float) -> None:
    async def client(_: int) -> None:
        async with connect(address) as raw:
            began = time.monotonic()
            block = raw.headers(1, UNARY, ("name", "x" * 1000))
            ended = await _drip(raw, block, asyncio.ensure_future(raw.ended()), until)
            got.add_end(raw, began) if ended else got.add("open", began)

    await many(100, client)


async def slow_message(address: Address, got: Got, until: float) -> None:
    async def client(number: int) -> None:
        async with connect(address) as raw:
            began, stream = time.monotonic(), raw.stream()
            raw.send(raw.headers(stream, UNARY if number % 2 else STREAM))
            reading = asyncio.ensure_future(raw.response(stream))
            begin = frame(DATA, 0, stream, message(bytes(10_000)))[:9]
            raw.send(begin)
            if await _drip(raw, message(bytes(10_000)), reading, until):
                got.add_response(reading.result(), raw, began)
            else:
                got.add("open", began)

    await many(100, client)


# --- what is no gRPC


def noise(*, polite: bool) -> Attack:
    """Random bytes; `polite`: in frames whose lengths are right."""

    async def attack(address: Address, got: Got, until: float) -> None:
        async def client(number: int) -> None:
            seed = number
            while time.monotonic() < until:
                began = time.monotonic()
                async with asyncio.timeout(20):
                    await attacks.noise(address, seed, polite=polite)
                got.add("closed", began)
                seed += 1000

        await many(20, client)

    return attack


async def http1(address: Address, got: Got, until: float) -> None:
    async def client(_: int) -> None:
        while time.monotonic() < until:
            began = time.monotonic()
            async with connect(address, preface=b"GET /v2/health/live HTTP/1.1\r\nhost: here\r\n\r\n") as raw:
                answer = await raw.reader.read(1000)
                got.add(answer.partition(b"\r\n")[0].decode() or "closed", began)

    await many(8, client)


# --- floods


def flood(blocks: Callable[[Raw], tuple[bytes, int]], path: str = "") -> Attack:
    """Frames as fast as this process can, on connections that are made anew when the server ends them. `blocks` gives
    the next bytes, and how many frames they are."""

    async def attack(address: Address, got: Got, until: float) -> None:
        async def client(_: int) -> None:
            while time.monotonic() < until:
                began = time.monotonic()
                async with connect(address) as raw:
                    if path:
                        raw.send(raw.headers(raw.stream(), path))
                    reading = asyncio.ensure_future(raw.ended())
                    while not reading.done() and time.monotonic() < until:
                        data, frames = blocks(raw)
                        raw.send(data)
                        got.frames += frames
                        got.sent_bytes += len(data)
                        if not await raw.flush():
                            break
                        await asyncio.sleep(0)
                    if await outlast(reading, time.monotonic() + 1.0):
                        got.add_end(raw, began)
                    else:
                        got.add("open", began)

        await many(4, client)

    return attack


def resets(raw: Raw) -> tuple[bytes, int]:
    """Rapid reset."""
    one = b"".join(attacks.resets(raw, UNARY, 200))
    return one, 400


def alike(one: bytes, count: int = 500) -> Callable[[Raw], tuple[bytes, int]]:
    block = one * count
    return lambda _: (block, count)


def continuation(raw: Raw) -> tuple[bytes, int]:
    """One header block without end."""
    field_ = frame(CONTINUATION, 0, 1, b"\x00\x01a\x01b" * 100)
    if raw.next == 1:
        return frame(HEADERS, 0, raw.stream(), raw.fields(UNARY)) + field_ * 4, 5
    return field_ * 100, 100


def new_calls(raw: Raw) -> tuple[bytes, int]:
    """Calls without end, each refused for its headers."""
    block = raw.fields("/no/method")
    return b"".join(frame(HEADERS, END_HEADERS | 1, raw.stream(), block) for _ in range(100)), 100


# --- TLS


async def handshakes(address: Address, got: Got, until: float) -> None:
    """Whole handshakes, half ones and none, as fast as they come."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])

    async def client(number: int) -> None:
        while time.monotonic() < until:
            began = time.monotonic()
            try:
                async with asyncio.timeout(15):
                    if number % 4 == 0:
                        async with connect(
                            address, preface=b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40)
                        ):
                            got.add("left within the handshake", began)
                        continue
                    _, writer = await asyncio.open_connection(*address, ssl=context)
                    got.add("handshake", began)
                    writer.transport.abort()
            except (OSError, TimeoutError) as error:
                got.add(type(error).__name__, began)

    await many(16, client)


FLOODS: dict[str, Attack] = {
    "RST_STREAM flood": flood(resets),
    "PING flood": flood(alike(frame(attacks.PING, 0, 0, bytes(8)))),
    "SETTINGS flood": flood(alike(frame(attacks.SETTINGS, 0, 0, struct.pack(">HI", 4, 65535)))),
    "CONTINUATION flood": flood(continuation),
    "empty DATA flood": flood(alike(frame(DATA, 0, 1)), STREAM),
    "WINDOW_UPDATE flood": flood(alike(attacks.update(0, 1), 5000)),
    "flood of refused calls": flood(new_calls),
}
