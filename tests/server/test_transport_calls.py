"""The contract of transports, second part: metadata, peers, cancellation, back-pressure, many streams, draining."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from .transports import TRANSPORTS, Bench, open_bench, status_of


@pytest.fixture(params=sorted(TRANSPORTS))
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(request.param, tmp_path) as bench:
        yield bench


# --- metadata


async def test_metadata_reaches_the_handler(bench: Bench) -> None:
    sent = (("plain", "a value"), ("twice", "1"), ("twice", "2"), ("blob-bin", bytes(range(256))), ("empty-bin", b""))
    pairs = ast.literal_eval((await bench.raw("Metadata")(b"", metadata=sent)).decode())
    assert [pair for pair in pairs if pair in sent] == list(sent)


async def test_metadata_of_the_protocol_is_not_the_handlers(bench: Bench) -> None:
    pairs = ast.literal_eval((await bench.raw("Metadata")(b"", timeout=30)).decode())
    names = {name for name, _ in pairs}
    assert not [name for name in names if name.startswith((":", "grpc-timeout", "content-type", "te"))]


async def test_initial_and_trailing_metadata_reach_the_client(bench: Bench) -> None:
    call = bench.raw("AnswersWithMetadata")(b"fine")
    assert await call == b"fine"
    initial, trailing = list(await call.initial_metadata()), list(await call.trailing_metadata())
    assert ("first", "1") in initial
    assert ("first-bin", b"\x00\xff") in initial
    assert [pair for pair in trailing if pair[0] == "last"] == [("last", "2"), ("last", "3")]
    assert ("last-bin", b"\xfe") in trailing


async def test_metadata_goes_with_an_error_too(bench: Bench) -> None:
    call = bench.raw("AnswersWithMetadata")(b"fail")
    error = await status_of(call)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == "as asked"
    assert ("first", "1") in list(await call.initial_metadata())
    assert ("last", "3") in list(error.trailing_metadata())


@pytest.mark.parametrize(
    "message",
    [
        "",
        "100% \x7f\x01\t\r\n",
        "%41%",
        "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n",
        "字" * 700,
    ],
    ids=["empty", "control", "percent", "interop", "wide"],
)
async def test_messages_of_errors_arrive_as_they_are(bench: Bench, message: str) -> None:
    error = await status_of(bench.raw("Refuse")(message.encode()))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    if len(message) < 500:
        assert error.details() == message
    else:  # some bound there is; what is cut is cut between characters
        details = str(error.details())
        assert len(details) > 300
        assert set(details.rstrip("…")) == {message[0]}


# --- peers


async def test_peer_is_the_clients_address(bench: Bench) -> None:
    assert (await bench.raw("Peer")(b"")).startswith(b"ipv4:127.0.0.1:")
    async with grpc.aio.insecure_channel(f"unix:{bench.path}") as channel:
        assert (await channel.unary_unary("/test.Echo/Peer")(b"")).startswith(b"unix:")


async def test_identity_says_nothing_of_certificates_without_tls(bench: Bench) -> None:
    identity = ast.literal_eval((await bench.raw("Identity")(b"")).decode())
    assert not [name for name in identity if name.startswith("x509")]


# --- cancellation


async def test_cancelled_client_stream_cancels_the_handler(bench: Bench) -> None:
    call = bench.channel.stream_unary("/test.Echo/HangReading")()
    await call.write(b"one")
    await bench.echo.entered.wait()
    call.cancel()
    await call.code()
    # The handler waits for messages, or hangs after them: either way it ends.
    await bench.calls.hold(("Echo/HangReading", "CANCELLED"))


async def test_cancelled_server_stream_cancels_the_handler(bench: Bench) -> None:
    call = bench.channel.unary_stream("/test.Echo/HangWriting")(b"first")
    assert await call.read() == b"first"
    call.cancel()
    await bench.echo.cancelled.wait()
    await bench.calls.hold(("Echo/HangWriting", "CANCELLED"))


async def test_cancelled_duplex_stream_ends_the_handler(bench: Bench) -> None:
    call = bench.channel.stream_stream("/test.Echo/Converse")()
    await call.write(b"one")
    assert await call.read() == b"one"
    call.cancel()
    # Cancelled, or at the end of the client's messages: gRPC's own server cannot tell these apart.
    await bench.echo.ended.wait()


async def test_lost_connection_cancels_its_calls(bench: Bench) -> None:
    channel = grpc.aio.insecure_channel(bench.port, options=[("grpc.use_local_subchannel_pool", 1)])
    call = channel.unary_unary("/test.Echo/Hang")(b"")
    await bench.echo.entered.wait()
    await channel.close()
    await bench.echo.cancelled.wait()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_deadline_of_a_stream_ends_it(bench: Bench) -> None:
    call = bench.channel.stream_stream("/test.Echo/Converse")(timeout=0.1)
    await call.write(b"one")
    assert await call.read() == b"one"
    assert (await status_of(call.read())).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await bench.echo.ended.wait()


async def test_deadline_is_what_the_call_is_counted_as(bench: Bench) -> None:
    assert (await status_of(bench.raw("Hang")(b"", timeout=0.1))).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await bench.calls.hold(("Echo/Hang", "DEADLINE_EXCEEDED"))


async def test_cancelled_long_before_the_deadline_is_counted_as_cancelled(bench: Bench) -> None:
    call = bench.raw("Hang")(b"", timeout=3600)
    await bench.echo.entered.wait()
    call.cancel()
    await bench.calls.hold(("Echo/Hang", "CANCELLED"))


# --- streams


async def test_error_after_messages_comes_after_them(bench: Bench) -> None:
    call = bench.channel.stream_stream("/test.Echo/LateError")()
    await call.write(b"one")
    assert await call.read() == b"one"
    error = await status_of(call.read())
    assert (error.code(), error.details()) == (grpc.StatusCode.INVALID_ARGUMENT, "after one")


async def test_stream_without_messages(bench: Bench) -> None:
    call = bench.channel.stream_stream("/test.Echo/Converse")()
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


async def test_empty_messages_are_messages(bench: Bench) -> None:
    call = bench.channel.stream_stream("/test.Echo/Converse")()
    for _ in range(3):
        await call.write(b"")
        assert await call.read() == b""
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


async def test_long_client_stream_is_read_to_its_end(bench: Bench) -> None:
    async def bodies() -> AsyncIterator[bytes]:
        for _ in range(500):
            yield bytes(50_000)

    assert await bench.channel.stream_unary("/test.Echo/Count")(bodies()) == b"25000000"


async def test_slow_reader_holds_the_handler_back(bench: Bench) -> None:
    count = 2000
    call = bench.channel.unary_stream("/test.Echo/Pour")(f"{count} 50000".encode())
    assert await call.read() is not grpc.aio.EOF
    # The handler stands still long before the 100 MB are made.
    last = -1
    while bench.echo.sent != last:
        last = bench.echo.sent
        await asyncio.sleep(0.2)
    assert last < count / 2
    for number in range(1, count):
        assert int.from_bytes((await call.read())[:8], "big") == number
    assert await call.read() is grpc.aio.EOF


async def test_slow_handler_holds_the_client_back(bench: Bench) -> None:
    count, written = 2000, 0
    call = bench.channel.stream_unary("/test.Echo/CountLater")()

    async def write() -> None:
        nonlocal written
        for _ in range(count):
            await call.write(bytes(50_000))
            written += 1
        await call.done_writing()

    writing = asyncio.ensure_future(write())
    await bench.echo.entered.wait()
    last = -1
    while written != last:
        last = written
        await asyncio.sleep(0.2)
    assert last < count / 2
    bench.echo.release.set()
    await writing
    assert await call == str(count * 50_000).encode()


async def test_many_streams_at_once(bench: Bench) -> None:
    async def converse(number: int) -> bool:
        call = bench.channel.stream_stream("/test.Echo/Converse")()
        for step in range(5):
            body = f"{number} {step}".encode() * (1 + number % 50)
            await call.write(body)
            if await call.read() != body:
                return False
        await call.done_writing()
        return await call.read() is grpc.aio.EOF

    assert all(await asyncio.gather(*[converse(number) for number in range(200)]))


async def test_many_calls_on_many_connections(bench: Bench) -> None:
    async def client(number: int) -> None:
        async with grpc.aio.insecure_channel(bench.port, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            echo = channel.unary_unary("/test.Echo/Raw")
            bodies = [f"{number} {step}".encode() * 500 for step in range(20)]
            answers = await asyncio.gather(*[echo(body) for body in bodies])
            assert answers == [body[::-1] for body in bodies]

    await asyncio.gather(*[client(number) for number in range(20)])


# --- draining


async def test_stopping_answers_what_was_accepted(bench: Bench) -> None:
    calls = [asyncio.ensure_future(bench.raw("Hang")(f"{number}".encode())) for number in range(10)]
    for _ in calls:
        await bench.echo.hanging.acquire()
    stopping = asyncio.ensure_future(bench.transport.stop(0, 30))
    done, _ = await asyncio.wait([stopping, *calls], timeout=0.05)
    assert not done
    bench.echo.release.set()
    assert await asyncio.gather(*calls) == [f"{number}".encode() for number in range(10)]
    await stopping


async def test_grace_that_is_over_ends_calls(bench: Bench) -> None:
    call = asyncio.ensure_future(bench.raw("Hang")(b""))
    await bench.echo.entered.wait()
    await bench.transport.stop(0, 0.05)
    await bench.echo.cancelled.wait()
    error = await status_of(call)
    assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


async def test_client_goes_elsewhere_when_its_server_stops(bench: Bench, tmp_path: Path) -> None:
    assert await bench.raw("Raw")(b"ab") == b"ba"
    await bench.transport.stop(0, 5)
    error = await status_of(bench.raw("Raw")(b"ab", timeout=5))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    async with grpc.aio.insecure_channel(f"unix:{bench.path}") as channel:
        assert await channel.unary_unary("/test.Echo/Raw")(b"ab") == b"ba"
