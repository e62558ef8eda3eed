"""What the suites of transports share: every implementation, an echo behind it, and a bench with a real client."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from trimtab._native import HAS_FRONT
from trimtab.protos.v1 import trimtab_pb2 as pb
from trimtab.server.errors import Draining, InvalidRequest
from trimtab.server.transport import Listener, Method, Service, Transport, service
from trimtab.server.transport_grpcio import GrpcioTransport

__all__ = ["TRANSPORTS", "Bench", "Calls", "Echo", "open_bench", "status_of"]

TRANSPORTS: dict[str, Callable[..., Transport]] = {"grpcio": GrpcioTransport}
if HAS_FRONT:
    from trimtab.server.transport_native import NativeTransport

    TRANSPORTS["native"] = NativeTransport


class Echo:
    """Handlers that show what a transport does with them. Those of test.Echo take and give bytes."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.release = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.ended = asyncio.Event()
        self.hanging = asyncio.Semaphore(0)  # released by each call that hangs
        self.sent = 0

    # --- unary

    async def raw(self, body: bytes, call: Any) -> bytes:
        return body[::-1]

    async def remaining(self, body: bytes, call: Any) -> bytes:
        return repr(call.time_remaining()).encode()

    async def hang(self, body: bytes, call: Any) -> bytes:
        await self._hang()
        return body

    async def invalid(self, body: bytes, call: Any) -> bytes:
        raise InvalidRequest("expected ä, came ö\n" + "x" * 10_000)

    async def refuse(self, body: bytes, call: Any) -> bytes:
        raise InvalidRequest(body.decode())

    async def surprise(self, body: bytes, call: Any) -> bytes:
        raise RuntimeError("a defect")

    async def metadata(self, body: bytes, call: Any) -> bytes:
        return repr([(name, value) for name, value in call.invocation_metadata() or ()]).encode()

    async def peer(self, body: bytes, call: Any) -> bytes:
        return str(call.peer()).encode()

    async def identity(self, body: bytes, call: Any) -> bytes:
        context = {name: list(values) for name, values in (call.auth_context() or {}).items()}
        return repr(context).encode()

    async def answers_with_metadata(self, body: bytes, call: Any) -> bytes:
        """Sends initial and trailing metadata; fails after that where the body says so."""
        await call.send_initial_metadata((("first", "1"), ("first-bin", b"\x00\xff")))
        call.set_trailing_metadata((("last", "2"), ("last", "3"), ("last-bin", b"\xfe")))
        if body == b"fail":
            raise InvalidRequest("as asked")
        return body

    async def compressed(self, body: bytes, call: Any) -> bytes:
        call.set_compression(grpc.Compression.Gzip)
        return body

    # --- streams

    async def count(self, bodies: AsyncIterator[bytes], call: Any) -> bytes:
        total = 0
        async for body in bodies:
            total += len(body)
        return str(total).encode()

    async def count_later(self, bodies: AsyncIterator[bytes], call: Any) -> bytes:
        self.entered.set()
        await self.release.wait()
        return await self.count(bodies, call)

    async def hang_reading(self, bodies: AsyncIterator[bytes], call: Any) -> bytes:
        async for _ in bodies:
            self.entered.set()
        await self._hang()
        return b""

    async def hang_writing(self, body: bytes, call: Any) -> AsyncIterator[bytes]:
        yield body
        await self._hang()

    async def pour(self, body: bytes, call: Any) -> AsyncIterator[bytes]:
        """So many messages of so many bytes as the body says; counts what was taken off its hands."""
        count, size = map(int, body.split())
        for number in range(count):
            yield number.to_bytes(8, "big") + bytes(size - 8)
            self.sent = number + 1

    async def converse(self, bodies: AsyncIterator[bytes], call: Any) -> AsyncIterator[bytes]:
        try:
            async for body in bodies:
                self.entered.set()
                yield body
        finally:
            self.ended.set()

    async def late_error(self, bodies: AsyncIterator[bytes], call: Any) -> AsyncIterator[bytes]:
        async for body in bodies:
            yield body
            raise InvalidRequest("after one")

    async def _hang(self) -> None:
        self.entered.set()
        self.hanging.release()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    # --- typed

    async def send(self, request: pb.FeedbackRequest, call: Any) -> pb.FeedbackResponse:
        return pb.FeedbackResponse(accepted=len(request.labels))

    async def send_stream(self, requests: AsyncIterator[pb.FeedbackRequest], call: Any) -> pb.FeedbackResponse:
        return pb.FeedbackResponse(accepted=sum([len(request.labels) async for request in requests]))

    async def events(self, request: pb.WatchEventsRequest, call: Any) -> AsyncIterator[pb.Event]:
        for number in range(3):
            yield pb.Event(version=number)
        raise Draining("no more")

    async def attend(self, reports: AsyncIterator[pb.TrainerReport], call: Any) -> AsyncIterator[pb.TrainerCommand]:
        async for report in reports:
            yield pb.TrainerCommand(sequence=report.acknowledges)

    def services(self) -> tuple[Service, ...]:
        unary = [("Raw", self.raw), ("Remaining", self.remaining), ("Invalid", self.invalid), ("Refuse", self.refuse)]
        unary += [("Surprise", self.surprise), ("Metadata", self.metadata), ("Peer", self.peer)]
        unary += [("Identity", self.identity), ("AnswersWithMetadata", self.answers_with_metadata)]
        unary += [("Compressed", self.compressed)]
        methods = [Method(name, "unary", handler, None) for name, handler in unary]
        methods += [
            Method("Hang", "unary", self.hang, None, accepted=True),
            Method("Count", "client_stream", self.count, None),
            Method("CountLater", "client_stream", self.count_later, None),
            Method("HangReading", "client_stream", self.hang_reading, None),
            Method("HangWriting", "server_stream", self.hang_writing, None),
            Method("Pour", "server_stream", self.pour, None),
            Method("Converse", "duplex", self.converse, None),
            Method("LateError", "duplex", self.late_error, None),
        ]
        services = pb.DESCRIPTOR.services_by_name
        return (
            Service("test.Echo", tuple(methods)),
            service(services["Feedback"], {"Send": self.send, "SendStream": self.send_stream}),
            service(services["Lifecycle"], {"WatchEvents": self.events, "Attend": self.attend}),
        )


class Calls(list[tuple[str, str]]):
    """What the observer was told, which may be after the caller has its answer."""

    def __init__(self) -> None:
        super().__init__()
        self._told = asyncio.Event()

    def tell(self, method: str, code: str) -> None:
        self.append((method, code))
        self._told.set()

    async def hold(self, *wanted: tuple[str, str]) -> None:
        """Returns once all of these were told."""
        async with asyncio.timeout(30):
            while not set(wanted) <= set(self):
                self._told.clear()
                await self._told.wait()


class Bench:
    """A transport with the echo on a port and on a socket, and a client of the port."""

    def __init__(self, made: Transport, echo: Echo, port: str, path: Path, calls: Calls) -> None:
        self.transport, self.echo, self.port, self.path, self.calls = made, echo, port, path, calls
        self.channel = grpc.aio.insecure_channel(port)

    def raw(self, name: str) -> Any:
        return self.channel.unary_unary(f"/test.Echo/{name}")

    @property
    def address(self) -> tuple[str, int]:
        """For sockets of one's own."""
        host, _, port = self.port.rpartition(":")
        return host, int(port)


@contextlib.asynccontextmanager
async def open_bench(
    name: str, folder: Path, *, services: Sequence[Service] = (), max_message_bytes: int = 100_000, **more: Any
) -> AsyncIterator[Bench]:
    """A bench of the transport of that name; `services` beside the echo's, `more` for its constructor."""
    echo, calls, path = Echo(), Calls(), folder / "admin.sock"
    made = TRANSPORTS[name](max_message_bytes=max_message_bytes, observer=calls.tell, **more)
    offered = echo.services()
    addresses = await made.start(
        [Listener("127.0.0.1:0", (*offered, *services)), Listener(f"unix:{path}", offered[:1])]
    )
    bench = Bench(made, echo, addresses[0], path, calls)
    try:
        yield bench
    finally:
        await bench.channel.close()
        await made.stop(0, 0)
        await made.stop(1, 0)


async def status_of(call: Any) -> grpc.aio.AioRpcError:
    """The error that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value
