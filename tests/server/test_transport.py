"""The contract of transports: one suite over every implementation, with a real client on real sockets."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
from trimtab.protos.v1 import trimtab_pb2 as pb
from trimtab.server.errors import StartError
from trimtab.server.transport import Listener

from .transports import TRANSPORTS, Bench, open_bench, status_of


@pytest.fixture(params=sorted(TRANSPORTS))
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(request.param, tmp_path) as bench:
        yield bench


async def test_raw_bytes_pass_untouched(bench: Bench) -> None:
    body = bytes(range(256)) * 100
    assert await bench.raw("Raw")(body) == body[::-1]
    assert await bench.raw("Raw")(b"") == b""


async def test_messages_are_decoded_and_encoded(bench: Bench) -> None:
    send = bench.channel.unary_unary(
        "/trimtab.v1.Feedback/Send", pb.FeedbackRequest.SerializeToString, pb.FeedbackResponse.FromString
    )
    assert (await send(pb.FeedbackRequest(labels=[pb.Label()] * 3))).accepted == 3


async def test_client_stream(bench: Bench) -> None:
    send = bench.channel.stream_unary(
        "/trimtab.v1.Feedback/SendStream", pb.FeedbackRequest.SerializeToString, pb.FeedbackResponse.FromString
    )
    requests = [pb.FeedbackRequest(labels=[pb.Label()] * 2) for _ in range(4)]
    assert (await send(iter(requests))).accepted == 8


async def test_server_stream_ends_in_an_error(bench: Bench) -> None:
    watch = bench.channel.unary_stream(
        "/trimtab.v1.Lifecycle/WatchEvents", pb.WatchEventsRequest.SerializeToString, pb.Event.FromString
    )
    call = watch(pb.WatchEventsRequest())
    assert [(await call.read()).version for _ in range(3)] == [0, 1, 2]
    assert (await status_of(call.read())).code() is grpc.StatusCode.UNAVAILABLE


async def test_duplex_stream(bench: Bench) -> None:
    attend = bench.channel.stream_stream(
        "/trimtab.v1.Lifecycle/Attend", pb.TrainerReport.SerializeToString, pb.TrainerCommand.FromString
    )()
    for number in (4, 9):
        await attend.write(pb.TrainerReport(acknowledges=number))
        assert (await attend.read()).sequence == number
    await attend.done_writing()
    assert await attend.read() is grpc.aio.EOF


async def test_error_keeps_its_status_and_a_bounded_message(bench: Bench) -> None:
    error = await status_of(bench.raw("Invalid")(b""))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert str(error.details()).startswith("expected ä, came ö")
    assert 1000 < len(str(error.details())) < 4000


async def test_defect_is_internal_and_says_which(bench: Bench) -> None:
    error = await status_of(bench.raw("Surprise")(b""))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert error.details() == "RuntimeError: a defect"


async def test_method_without_a_handler_is_unimplemented_and_says_so(bench: Bench) -> None:
    promote = bench.channel.unary_unary("/trimtab.v1.Lifecycle/Promote")
    error = await status_of(promote(b"\xff not a message"))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "trimtab.v1.Lifecycle/Promote" in str(error.details())


async def test_unknown_method_is_unimplemented(bench: Bench) -> None:
    assert (await status_of(bench.raw("Nothing")(b""))).code() is grpc.StatusCode.UNIMPLEMENTED


async def test_too_large_message_is_refused_before_its_handler(bench: Bench) -> None:
    error = await status_of(bench.raw("Raw")(bytes(100_001)))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert ("Echo/Raw", "OK") not in bench.calls


async def test_deadline_reaches_the_handler(bench: Bench) -> None:
    # The protocol's timeouts are rounded up on their way.
    assert 0 < float(await bench.raw("Remaining")(b"", timeout=60)) < 62
    assert await bench.raw("Remaining")(b"") == b"None"


async def test_passed_deadline_cancels_the_handler(bench: Bench) -> None:
    error = await status_of(bench.raw("Hang")(b"", timeout=0.05))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await bench.echo.cancelled.wait()


async def test_cancelled_call_cancels_the_handler(bench: Bench) -> None:
    call = bench.raw("Hang")(b"")
    await bench.echo.entered.wait()
    call.cancel()
    await bench.echo.cancelled.wait()
    await bench.transport.drained()
    await bench.calls.hold(("Echo/Hang", "CANCELLED"))


async def test_drained_waits_for_accepted_calls(bench: Bench) -> None:
    await bench.transport.drained()
    call = asyncio.ensure_future(bench.raw("Hang")(b"answered"))
    await bench.echo.entered.wait()
    drained = asyncio.ensure_future(bench.transport.drained())
    done, _ = await asyncio.wait([drained], timeout=0)
    assert not done
    bench.echo.release.set()
    assert await call == b"answered"
    await drained


async def test_observer_is_told_of_every_status(bench: Bench) -> None:
    await bench.raw("Raw")(b"")
    await status_of(bench.raw("Invalid")(b""))
    await status_of(bench.raw("Surprise")(b""))
    await bench.calls.hold(("Echo/Raw", "OK"), ("Echo/Invalid", "INVALID_ARGUMENT"), ("Echo/Surprise", "INTERNAL"))


async def test_socket_is_its_owners_alone(bench: Bench) -> None:
    assert stat.S_IMODE(bench.path.stat().st_mode) == 0o600
    async with grpc.aio.insecure_channel(f"unix:{bench.path}") as channel:
        assert await channel.unary_unary("/test.Echo/Raw")(b"ab") == b"ba"


async def test_services_belong_to_their_listener(bench: Bench) -> None:
    async with grpc.aio.insecure_channel(f"unix:{bench.path}") as channel:
        error = await status_of(channel.unary_unary("/trimtab.v1.Feedback/Send")(b""))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_stopped_listener_takes_its_socket_away(bench: Bench) -> None:
    await bench.transport.stop(1, 0)
    assert not bench.path.exists()


@pytest.mark.parametrize("name", sorted(TRANSPORTS))
async def test_socket_left_by_a_dead_server_is_replaced(name: str, tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    path.write_text("left over")
    made = TRANSPORTS[name](max_message_bytes=1000, observer=lambda method, code: None)
    await made.start([Listener(f"unix:{path}", ())])
    assert stat.S_ISSOCK(path.stat().st_mode)
    await made.stop(0, 0)


async def test_port_in_use_is_one_clear_line(bench: Bench) -> None:
    other = type(bench.transport)(max_message_bytes=1000, observer=lambda method, code: None)  # type: ignore[call-arg]
    with pytest.raises(StartError, match=rf"cannot listen on {bench.port}: address already in use"):
        await other.start([Listener(bench.port, ())])
