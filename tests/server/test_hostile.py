"""Hostile clients over real sockets: in each case others are served on, memory stays bounded, and nothing crashes.

Statuses are asserted where the native front answers; gRPC's own server chooses its own, or none.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import ssl
import struct
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import psutil
import pytest

from . import attacks
from .attacks import CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PUSH, connect, frame, message
from .transports import TRANSPORTS, Bench, open_bench

_RAW, _HANG, _POUR, _CONVERSE = (f"/test.Echo/{name}" for name in ("Raw", "Hang", "Pour", "Converse"))
_MOST = (200 if "ASAN_OPTIONS" not in os.environ else 800) << 20
"""Bytes by which the process may grow, under any of this."""
_QUICK = {
    "handshake_seconds": 1.0,
    "header_seconds": 1.0,
    "message_seconds": 1.0,
    "message_rate": 1024.0,
    "write_seconds": 1.0,
    "reset_burst": 500,
    "resets_per_second": 50,
    "control_burst": 500,
    "controls_per_second": 50,
    "output_bytes": 1 << 20,
}


class Guarded:
    """A bench beside whose hostile client a well-behaved one calls without end."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.address = bench, bench.address
        self.served = 0

    @property
    def native(self) -> bool:
        return self.bench.transport.name == "native"

    @property
    def front(self) -> Any:
        return self.bench.transport._front  # type: ignore[attr-defined]

    async def serve_on(self) -> None:
        while True:
            assert await self.bench.raw("Raw")(b"ab", timeout=20) == b"ba"
            self.served += 1

    async def more(self, count: int = 3) -> None:
        """Returns when so many more calls were answered."""
        goal = self.served + count
        await self.until(lambda: self.served >= goal)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Returns when it is so. The front tells nobody: there is nothing to wait for but time."""
        async with asyncio.timeout(30):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def quiet(self) -> None:
        """Returns when the front holds nothing but the good client's connection."""
        if not self.native:
            return
        await self.until(lambda: self.front.connections <= 1 and self.front.nbytes < 100_000)


async def _guarded(name: str, folder: Path, **limits: float) -> AsyncIterator[Guarded]:
    more = {"limits": _QUICK | limits} if name == "native" else {}
    async with open_bench(name, folder, max_message_bytes=1_000_000, **more) as bench:
        guarded = Guarded(bench)
        good = asyncio.ensure_future(guarded.serve_on())
        await guarded.more(1)
        before = psutil.Process().memory_info().rss
        try:
            yield guarded
            await guarded.more()
            assert psutil.Process().memory_info().rss - before < _MOST
        finally:
            assert not good.done(), good.exception()
            good.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await good


@pytest.fixture(params=sorted(TRANSPORTS))
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Guarded]:
    async for each in _guarded(request.param, tmp_path):
        yield each


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[Guarded]:
    if "native" not in TRANSPORTS:
        pytest.skip("the native front was not built")
    async for each in _guarded("native", tmp_path):
        yield each


# --- sizes


async def test_message_of_1500_mb_is_refused_at_its_prefix(server: Guarded) -> None:
    response = await attacks.large_message(server.address, _RAW, 1_500_000_000)
    assert response.status == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]


async def test_message_that_was_refused_and_is_sent_all_the_same(front: Guarded) -> None:
    async with connect(front.address) as raw, asyncio.timeout(60):
        stream = raw.stream()
        raw.send(raw.headers(stream, _RAW), frame(DATA, 0, stream, struct.pack(">BI", 0, 1_500_000_000)))
        reading = asyncio.ensure_future(raw.ended())
        sent = 0
        while not reading.done() and await raw.flush():
            raw.send(frame(DATA, 0, stream, bytes(16384)) * 4)
            sent += 1
        await reading
    assert raw.goaway in (attacks.ENHANCE_YOUR_CALM, None)  # None: the end came before it was read
    assert sent < 2000


async def test_messages_that_are_refused_do_not_end_the_connection(front: Guarded) -> None:
    # Each with a whole window of data behind it, which its sender could not know to be in vain.
    async with connect(front.address) as raw, asyncio.timeout(60):
        for _ in range(30):
            stream = raw.stream()
            body = struct.pack(">BI", 0, 1_500_000_000) + bytes(1_000_000)
            raw.send(raw.headers(stream, _RAW), *attacks.chunks(stream, body, end=False))
            assert (await raw.response(stream)).status == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
        assert (await raw.response(raw.call(_RAW, message(b"ab")))).messages == [(0, b"ba")]


async def test_gzip_bomb_is_refused(server: Guarded) -> None:
    content = await asyncio.to_thread(attacks.bomb, 50_000_000)
    responses = await asyncio.gather(*[attacks.gzip_bomb(server.address, _RAW, content) for _ in range(4)])
    if server.native:  # grpcio says INTERNAL or RESOURCE_EXHAUSTED, by its version
        assert {each.status for each in responses} == {grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]}
    assert all(not each.data for each in responses)


async def test_broken_gzip_is_an_error_of_that_call(front: Guarded) -> None:
    whole = attacks.bomb(10_000)
    for content in (b"", b"no gzip", whole[:-5], whole + b"more", whole[:10] + b"\xff" * 20):
        assert (await attacks.gzip_bomb(front.address, _RAW, content)).status == 13


@pytest.mark.parametrize("promised", [0, 9_999, 10_001, 900_000, 0xFFFFFFFF])
async def test_gzip_that_lies_about_its_size_is_an_error_of_that_call(front: Guarded, promised: int) -> None:
    lie = attacks.bomb(10_000)[:-4] + struct.pack("<I", promised)
    assert (await attacks.gzip_bomb(front.address, _RAW, lie)).status == 13


async def test_who_holds_most_gives_way(tmp_path: Path) -> None:
    """Messages that never end fill what the server takes; a small client is served on all the same."""
    if "native" not in TRANSPORTS:
        pytest.skip("the native front was not built")
    limits = {"total_bytes": 20 << 20, "message_seconds": 60.0}
    async for server in _guarded("native", tmp_path, **limits):
        async with contextlib.AsyncExitStack() as stack:
            hoarders = [await stack.enter_async_context(connect(server.address)) for _ in range(6)]
            for raw in hoarders:
                for _ in range(7):
                    stream = raw.stream()
                    raw.send(
                        raw.headers(stream, _RAW), *attacks.chunks(stream, message(bytes(950_000))[:-1], end=False)
                    )
                assert await raw.flush()
            responses = [asyncio.ensure_future(raw.response(1)) for raw in hoarders]
            done, _ = await asyncio.wait(responses, timeout=30, return_when=asyncio.FIRST_COMPLETED)
            for each in responses:
                each.cancel()
            assert {each.result().status for each in done} == {grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]}
            await server.more(20)
            assert server.front.nbytes <= 20 << 20
        await server.quiet()


async def test_headers_that_are_too_large(server: Guarded) -> None:
    async with connect(server.address) as raw:
        stream = raw.call(_RAW, message(b""), *[(f"name-{number}", "x" * 100) for number in range(130)])
        response = await raw.response(stream)
        assert response.status != 0
        if server.native:
            assert response.status == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]


async def test_header_bomb_of_indexed_fields(front: Guarded) -> None:
    # One large value in the dynamic table, named by a byte each time: 4 KB * 15,000 in 16 KB.
    async with connect(front.address) as raw:
        stream = raw.stream()
        block = raw.fields(_RAW, ("large", "x" * 3900)) + b"\xbe" * 12_000
        raw.send(frame(HEADERS, END_HEADERS, stream, block), frame(DATA, END_STREAM, stream, message(b"")))
        assert (await raw.response(stream)).status != 0


async def test_answer_to_large_header_table(front: Guarded) -> None:
    settings = struct.pack(">HI", 1, 0xFFFFFFFF)
    async with connect(front.address, settings=settings) as raw:
        response = await raw.response(raw.call(_RAW, message(b"ab")))
        assert (response.status, response.messages) == (0, [(0, b"ba")])


# --- slow clients


async def test_client_that_never_reads(front: Guarded) -> None:
    async with attacks.deaf(front.address, _POUR, b"1000 100000", 50) as raw:
        await front.more(20)
        assert front.front.nbytes < 60 << 20
        await front.quiet()  # it is thrown out
        del raw


async def test_client_that_sends_a_byte_at_a_time_holds_up_nobody(server: Guarded) -> None:
    await asyncio.gather(*[attacks.trickle(server.address, _RAW, 0.05, 1.0) for _ in range(20)])
    await server.quiet()


async def test_client_that_stops_within_a_message_is_told_so(front: Guarded) -> None:
    async with connect(front.address) as raw:
        stream = raw.stream()
        raw.send(raw.headers(stream, _RAW), frame(DATA, 0, stream, struct.pack(">BI", 0, 1000) + b"some"))
        assert (await raw.response(stream)).status == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]


async def test_client_that_stops_within_a_frame_is_thrown_out(front: Guarded) -> None:
    async with connect(front.address) as raw:
        stream = raw.stream()
        raw.send(raw.headers(stream, _RAW), frame(DATA, 0, stream, message(bytes(100)))[:50])
        await raw.ended()


@pytest.mark.parametrize("said", [b"", attacks.PREFACE[:10]], ids=["nothing", "half a preface"])
async def test_client_that_does_not_begin_is_thrown_out(front: Guarded, said: bytes) -> None:
    async with connect(front.address, preface=said) as raw:
        await raw.ended()


# Less than header_seconds and message_rate want, and never a pause that counts as one.
_PAUSE = 0.1


async def _dawdle(server: Guarded, whole: bytes, *, preface: bytes | None = None) -> tuple[int, attacks.Raw]:
    """Sends a byte at a time until the server has had enough; how many went."""
    async with connect(server.address, preface=preface) as raw, asyncio.timeout(30):
        reading = asyncio.ensure_future(raw.ended())
        for count, byte in enumerate(whole):
            raw.send(bytes([byte]))
            await asyncio.wait([reading], timeout=_PAUSE)
            if reading.done():
                return count, raw
        await reading
    return len(whole), raw


async def test_preface_byte_by_byte(front: Guarded) -> None:
    await _dawdle(front, attacks.PREFACE * 20, preface=b"")
    await front.quiet()


async def test_headers_byte_by_byte(front: Guarded) -> None:
    async with connect(front.address) as raw:
        block = raw.fields(_RAW, ("name", "x" * 1000))
    sent, ended = await _dawdle(front, frame(HEADERS, END_HEADERS, 1, block))
    assert sent < 1000
    assert ended.goaway == attacks.ENHANCE_YOUR_CALM
    assert b"headers" in ended.said
    await front.quiet()


async def test_headers_continued_byte_by_byte(front: Guarded) -> None:
    # Each frame is complete; the block is not. Few frames: many would end it for their number.
    async with connect(front.address) as raw, asyncio.timeout(30):
        block = raw.fields(_RAW, ("name", "x" * 1000))
        raw.send(frame(HEADERS, 0, 1, block[:10]))
        reading = asyncio.ensure_future(raw.ended())
        for byte in block[10:]:
            raw.send(frame(CONTINUATION, 0, 1, bytes([byte])))
            await asyncio.wait([reading], timeout=4 * _PAUSE)
            if reading.done():
                break
        assert await reading == attacks.ENHANCE_YOUR_CALM
    await front.quiet()


async def test_other_frames_byte_by_byte(front: Guarded) -> None:
    _, ended = await _dawdle(front, frame(attacks.SETTINGS, 0, 0, struct.pack(">HI", 4, 65535) * 100))
    assert ended.goaway == attacks.ENHANCE_YOUR_CALM


@pytest.mark.parametrize("path", [_RAW, _CONVERSE])
@pytest.mark.parametrize("framed", [False, True], ids=["in one frame", "in frames"])
async def test_message_byte_by_byte(front: Guarded, path: str, framed: bool) -> None:
    async with connect(front.address) as raw, asyncio.timeout(30):
        stream = raw.stream()
        body = message(bytes(10_000))
        raw.send(raw.headers(stream, path))
        raw.send(frame(DATA, 0, stream, body)[:9] if not framed else b"")
        reading = asyncio.ensure_future(raw.response(stream))
        for byte in body:
            raw.send(frame(DATA, 0, stream, bytes([byte])) if framed else bytes([byte]))
            await asyncio.wait([reading], timeout=_PAUSE)
            if reading.done():
                break
        response = await reading
    assert response.status == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
    assert "too slowly" in response.headers["grpc-message"]
    await front.quiet()


async def test_message_that_keeps_coming_may_take_long(front: Guarded) -> None:
    # Longer than message_seconds in all, but never slower than message_rate.
    async with connect(front.address) as raw, asyncio.timeout(30):
        stream = raw.stream()
        body = message(bytes(250) * 400)
        raw.send(raw.headers(stream, _RAW))
        for place in range(0, len(body), 4000):
            last = place + 4000 >= len(body)
            raw.send(frame(DATA, END_STREAM if last else 0, stream, body[place : place + 4000]))
            await asyncio.sleep(_PAUSE)
        assert (await raw.response(stream)).status == 0


async def test_stream_may_be_silent_between_messages(front: Guarded) -> None:
    async with connect(front.address) as raw, asyncio.timeout(30):
        stream = raw.stream()
        raw.send(raw.headers(stream, _CONVERSE), frame(DATA, 0, stream, message(b"one")))
        served = front.served
        await asyncio.sleep(3 * _QUICK["message_seconds"])
        assert front.served > served
        raw.send(frame(DATA, END_STREAM, stream, message(b"two")))
        response = await raw.response(stream)
    assert (response.status, response.messages) == (0, [(0, b"one"), (0, b"two")])


# --- what is no HTTP/2


@pytest.mark.parametrize("polite", [False, True], ids=["bytes", "frames"])
async def test_random_bytes(server: Guarded, polite: bool) -> None:
    for first in range(0, 200, 20):
        async with asyncio.timeout(60):
            await asyncio.gather(
                *[attacks.noise(server.address, seed, polite=polite) for seed in range(first, first + 20)]
            )


async def test_http1_is_told_where_it_is(front: Guarded) -> None:
    async with connect(front.address, preface=b"GET / HTTP/1.1\r\nhost: here\r\n\r\n") as raw:
        answer = await raw.reader.read(1000)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"gRPC" in answer


async def test_tls_to_a_plaintext_port(server: Guarded) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.open_connection(*server.address, ssl=context)


# --- floods


async def test_reset_flood(front: Guarded) -> None:
    async with connect(front.address) as raw:
        sent, end = await attacks.flood(front.address, attacks.resets(raw, _HANG, 20_000), seconds=5)
    assert end in (attacks.ENHANCE_YOUR_CALM, "closed")
    assert sent <= 20_000
    await front.quiet()


async def test_flood_of_calls_that_the_server_must_reset(front: Guarded) -> None:
    async with connect(front.address) as raw:
        await attacks.flood(front.address, attacks.made_resets(raw, _HANG, 20_000), seconds=5)
    await front.quiet()


@pytest.mark.parametrize("name", sorted(attacks.control_floods(0)))
async def test_flood_of_frames(front: Guarded, name: str) -> None:
    each, needs_stream = attacks.control_floods(0)[name]
    path = _CONVERSE if needs_stream else ""
    _, end = await attacks.flood(front.address, (each for _ in range(50_000)), path=path, seconds=5)
    assert end != "open"
    await front.quiet()


async def test_continuation_flood_within_one_header_block(front: Guarded) -> None:
    async with connect(front.address) as raw:
        first = frame(HEADERS, 0, 1, raw.fields(_RAW))
    field = frame(CONTINUATION, 0, 1, b"\x00\x01a\x01b" * 100)

    def frames() -> Any:
        yield first
        for _ in range(20_000):
            yield field

    _, end = await attacks.flood(front.address, frames(), seconds=5)
    assert end != "open"
    await front.quiet()


async def test_flood_of_deadlines_that_pass_at_once(front: Guarded) -> None:
    # Each reaches the handler's side and is cancelled right away: what waits there must stay bounded.
    async def client() -> None:
        async with connect(front.address) as raw:
            reading = asyncio.ensure_future(raw.ended())
            for number in range(5000):
                raw.call(_HANG, message(bytes(1000)), ("grpc-timeout", "1m"))
                if number % 200 == 0 and not await raw.flush():
                    break
            await asyncio.wait([reading], timeout=1)
            reading.cancel()

    await asyncio.gather(*[client() for _ in range(4)])
    await front.more()


async def test_connections_that_leave_within_a_call(front: Guarded) -> None:
    async def client(number: int) -> None:
        async with connect(front.address) as raw:
            stream = raw.stream()
            whole = raw.headers(stream, _HANG) + frame(DATA, END_STREAM, stream, message(bytes(100)))
            raw.send(whole[: number % (len(whole) + 1)])
            await raw.flush()

    for first in range(0, 600, 100):
        await asyncio.gather(*[client(number) for number in range(first, first + 100)])
    await front.quiet()


async def test_more_streams_than_were_allowed_end_the_connection(front: Guarded) -> None:
    async with connect(front.address) as raw:
        for _ in range(3000):
            raw.call(_HANG, message(b"x"))
        assert await raw.ended() == 1  # PROTOCOL_ERROR: it had agreed to 1024


# --- many connections


async def test_thousands_of_idle_connections(front: Guarded) -> None:
    wanted = 2000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 3 * wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 3 * wanted), hard))
    sockets = await attacks.idle(front.address, wanted)
    await front.more()
    await front.until(lambda: front.front.connections > wanted)
    for each in sockets:
        each.close()
    await front.quiet()


async def test_more_connections_than_allowed(tmp_path: Path) -> None:
    if "native" not in TRANSPORTS:
        pytest.skip("the native front was not built")
    async for server in _guarded("native", tmp_path, connections=50):
        sockets = await attacks.idle(server.address, 300)
        await server.more()
        assert server.front.connections <= 51
        for each in sockets:
            each.close()
        await server.quiet()


# --- flow control


async def _goaway(server: Guarded, *frames: bytes) -> int | None:
    async with connect(server.address) as raw, asyncio.timeout(30):
        raw.send(raw.headers(raw.stream(), _CONVERSE), *frames)
        return await raw.ended()


async def test_window_updates_that_break_the_rules(front: Guarded) -> None:
    protocol, flow_control, frame_size = 1, 3, 6
    assert await _goaway(front, attacks.update(0, 0)) == protocol
    assert await _goaway(front, attacks.update(0, 0x7FFFFFFF)) == flow_control
    assert await _goaway(front, attacks.update(99, 1)) == protocol  # a stream that is idle
    assert await _goaway(front, frame(attacks.UPDATE, 0, 0, b"abc")) == frame_size
    async with connect(front.address) as raw:
        stream = raw.stream()
        raw.send(raw.headers(stream, _CONVERSE), attacks.update(stream, 0x7FFFFFFF))
        assert (await raw.response(stream)).reset == flow_control


async def test_windows_that_shrink_below_nothing_and_grow_again(server: Guarded) -> None:
    async with connect(server.address) as raw:
        stream = raw.call(_RAW, message(bytes(range(250)) * 200))
        for size in (0, 1, 0, 100, 0x7FFFFFFF - 100_000):
            raw.send(frame(attacks.SETTINGS, 0, 0, struct.pack(">HI", 4, size)))
            await raw.flush()
        response = await raw.response(stream)
        assert response.messages == [(0, (bytes(range(250)) * 200)[::-1])]


async def test_window_of_a_byte_at_a_time(front: Guarded) -> None:
    async with connect(front.address, settings=struct.pack(">HI", 4, 0)) as raw:
        stream = raw.call(_RAW, message(b"abcdefgh"))
        for _ in range(5 + 8):
            raw.send(attacks.update(stream, 1))
            await raw.flush()
        assert (await raw.response(stream)).messages == [(0, b"hgfedcba")]


async def test_more_data_than_the_window(front: Guarded) -> None:
    async with connect(front.address) as raw:
        stream = raw.stream()
        raw.send(raw.headers(stream, "/test.Echo/CountLater"))
        body = message(bytes(900_000))
        for place in range(0, 20 * len(body), 16384):  # 18 MB into a window of 1 MiB
            raw.send(frame(DATA, 0, stream, (body * 2)[place % len(body) :][:16384]))
        response = await raw.response(stream)
        # The rest, for a stream that is over, may have ended the connection before the reset was read.
        assert response.reset == 3 or raw.goaway in (3, attacks.ENHANCE_YOUR_CALM) or response.closed
        assert response.status is None


# --- frames that break HTTP/2


@pytest.mark.parametrize(
    "broken",
    [
        frame(DATA, 0, 0, b"x"),
        frame(HEADERS, END_HEADERS, 0, b"\x82"),
        frame(HEADERS, END_HEADERS, 2, b"\x82"),
        frame(PUSH, END_HEADERS, 1, b"\x00\x00\x00\x02\x82"),
        frame(attacks.SETTINGS, 0, 0, b"abc"),
        frame(attacks.SETTINGS, 0, 1, b""),
        frame(attacks.PING, 0, 0, b"abc"),
        frame(attacks.RESET, 0, 0, bytes(4)),
        frame(attacks.RESET, 0, 99, bytes(4)),
        frame(DATA, 0, 1, bytes(16385)),
        frame(HEADERS, END_HEADERS, 3, b"\xff\xff\xff\xff\xff\xff\xff\xff"),
        frame(HEADERS, END_HEADERS, 3, b"\xff\xff\x01"),
        frame(DATA, attacks.PADDED, 1, b"\xff"),
        frame(HEADERS, 0, 3, b"\x82") + frame(DATA, 0, 1, b"x"),
        frame(CONTINUATION, END_HEADERS, 1, b"\x82"),
    ],
    ids=lambda value: value[:12].hex(),
)
async def test_frames_that_break_http2_end_the_connection(front: Guarded, broken: bytes) -> None:
    assert await _goaway(front, broken) != 0


@pytest.mark.parametrize(
    "options",
    [
        {"more": [("Upper", "case")]},
        {"drop": [":path"]},
        {"drop": [":method"]},
        {"more": [("bad\x00name", "x")]},
        {"more": [("name", "bad\r\nvalue")]},
    ],
    ids=["upper", "no path", "no method", "name", "value"],
)
async def test_headers_that_break_http2_are_refused(front: Guarded, options: dict[str, Any]) -> None:
    async with connect(front.address) as raw, asyncio.timeout(30):
        stream = raw.stream()
        block = raw.fields(_RAW, *options.get("more", []), drop=options.get("drop", ()))
        raw.send(frame(HEADERS, END_HEADERS, stream, block), frame(DATA, END_STREAM, stream, message(b"ab")))
        response = await raw.response(stream)
        assert response.status != 0 or response.closed


# --- requests that break gRPC


async def _answer(server: Guarded, body: bytes, *more: tuple[str, str], path: str = _RAW, **options: Any) -> Any:
    async with connect(server.address) as raw, asyncio.timeout(30):
        return await raw.response(raw.call(path, body, *more, **options))


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 12),
        (b"\x00\x00", 13),
        (message(b"abc")[:-1], 13),
        (message(b"abc") + b"\x00", 13),
        (message(b"abc") * 2, 12),
        (message(b"abc", 7), 13),
        (message(b"abc", 1), 13),
    ],
    ids=["none", "half a prefix", "cut", "one byte more", "two", "unknown flag", "compressed without encoding"],
)
async def test_bad_messages(front: Guarded, body: bytes, status: int) -> None:
    response = await _answer(front, body)
    assert response.status == status
    assert not response.data


@pytest.mark.parametrize("timeout", ["", "S", "1", "abc", "1x", "-1S", "123456789S", "1 S", "٣S", "0x1S"])
async def test_bad_timeouts(front: Guarded, timeout: str) -> None:
    response = await _answer(front, message(b"ab"), ("grpc-timeout", timeout))
    assert response.status == 13


@pytest.mark.parametrize("timeout", ["0n", "0H"])
async def test_timeout_of_nothing_has_passed(front: Guarded, timeout: str) -> None:
    assert (await _answer(front, message(b"ab"), ("grpc-timeout", timeout), path=_HANG)).status in (4, None)


@pytest.mark.parametrize("value", ["!", "====", "a", "AAA=A", "\xff"])
async def test_binary_metadata_that_is_no_base64(front: Guarded, value: str) -> None:
    assert (await _answer(front, message(b"ab"), ("blob-bin", value))).status != 0


@pytest.mark.parametrize("value", ["AAE", "AAE=", "AAE,AAE="])
async def test_binary_metadata_with_and_without_padding(front: Guarded, value: str) -> None:
    response = await _answer(front, message(b""), ("blob-bin", value), path="/test.Echo/Metadata")
    assert response.status == 0
    assert response.messages[0][1].count(b"('blob-bin', b'\\x00\\x01')") == value.count("E")


@pytest.mark.parametrize("kind", ["text/plain", "application/grpcx", "application/json", ""])
async def test_wrong_content_type(front: Guarded, kind: str) -> None:
    response = await _answer(front, message(b"ab"), content_type=kind)
    assert response.status != 0
    assert response.headers[":status"] == "415"


async def test_other_method_than_post(front: Guarded) -> None:
    async with connect(front.address) as raw:
        stream = raw.stream()
        block = raw.fields(_RAW, **{":method": "GET"})
        raw.send(frame(HEADERS, END_HEADERS | END_STREAM, stream, block))
        assert (await raw.response(stream)).headers[":status"] == "405"


async def test_unknown_encoding_says_which_are_known(front: Guarded) -> None:
    response = await _answer(front, message(b"ab", 1), grpc_encoding="zstd-magic")
    assert response.status == 12
    assert "gzip" in response.headers["grpc-accept-encoding"]


# --- compression on the wire


@pytest.mark.parametrize(("accepted", "flag"), [("identity,deflate,gzip", 1), ("identity", 0)])
async def test_answer_is_compressed_where_the_client_takes_it(front: Guarded, accepted: str, flag: int) -> None:
    more = ("grpc-accept-encoding", accepted)
    response = await _answer(front, message(bytes(50_000)), more, path="/test.Echo/Compressed")
    assert response.status == 0
    assert [each[0] for each in response.messages] == [flag]
    assert (response.headers.get("grpc-encoding") == "gzip") is bool(flag)
    assert (len(response.data) < 1000) is bool(flag)


def test_nothing_is_left(tmp_path: Path) -> None:
    """Descriptors and threads are given back, also by a front that was attacked."""

    async def once() -> None:
        async for server in _guarded("native" if "native" in TRANSPORTS else "grpcio", tmp_path):
            await asyncio.gather(*[attacks.noise(server.address, seed, polite=True) for seed in range(10)])

    asyncio.run(once())
    gc.collect()
    process = psutil.Process()
    before = process.num_fds(), process.num_threads()
    for _ in range(3):
        asyncio.run(once())
    gc.collect()
    end = time.monotonic() + 10
    while process.num_fds() > before[0] + 2 and time.monotonic() < end:
        time.sleep(0.05)
    assert process.num_fds() <= before[0] + 2
    assert process.num_threads() <= before[1] + 2
