"""grpc's own interoperability cases (grpc/doc/interop-test-descriptions.md) against every transport.

Left out: cacheable_unary (GET is no longer part of gRPC), the authentication cases, and the probes of
client_compressed_*, which need a server that sees the compression flag; that answers are compressed is seen on the wire
in test_compression.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_tools import protoc
from trimtab.server.errors import ServerError
from trimtab.server.transport import Service, service

from .transports import TRANSPORTS, Bench, open_bench, status_of

_METHODS = "/grpc.testing.TestService/"
_INITIAL, _TRAILING = "x-grpc-test-echo-initial", "x-grpc-test-echo-trailing-bin"
_SPECIAL = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n"


def _pool() -> descriptor_pool.DescriptorPool:
    source = Path(__file__).with_name("interop.proto")
    compiled = descriptor_pb2.FileDescriptorSet()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set"
        assert protoc.main(["", f"-I{source.parent}", f"--descriptor_set_out={out}", source.name]) == 0
        compiled.ParseFromString(out.read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in compiled.file:
        pool.Add(file)
    return pool


POOL = _pool()


def message(name: str) -> Any:
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(f"grpc.testing.{name}"))


Empty, Payload, EchoStatus = message("Empty"), message("Payload"), message("EchoStatus")
SimpleRequest, SimpleResponse = message("SimpleRequest"), message("SimpleResponse")
InputRequest, InputResponse = message("StreamingInputCallRequest"), message("StreamingInputCallResponse")
OutputRequest, OutputResponse = message("StreamingOutputCallRequest"), message("StreamingOutputCallResponse")


def _asked(status: Any) -> None:
    """Raises what a request asks for."""
    if status.code:
        name = next(code.name for code in grpc.StatusCode if code.value[0] == status.code)
        raise type("Asked", (ServerError,), {"code": name})(status.message)


class TestServer:
    """The server's side of the interoperability tests."""

    __test__ = False

    async def empty(self, request: Any, call: Any) -> Any:
        return Empty()

    async def unary(self, request: Any, call: Any) -> Any:
        await self._echo_metadata(call)
        if request.HasField("response_compressed"):
            wanted = request.response_compressed.value
            call.set_compression(grpc.Compression.Gzip if wanted else grpc.Compression.NoCompression)
        _asked(request.response_status)
        return SimpleResponse(payload=Payload(body=bytes(request.response_size)))

    async def output(self, request: Any, call: Any) -> AsyncIterator[Any]:
        if any(each.compressed.value for each in request.response_parameters):
            call.set_compression(grpc.Compression.Gzip)
        for parameters in request.response_parameters:
            if not parameters.compressed.value:
                call.disable_next_message_compression()
            yield OutputResponse(payload=Payload(body=bytes(parameters.size)))

    async def input(self, requests: AsyncIterator[Any], call: Any) -> Any:
        return InputResponse(aggregated_payload_size=sum([len(each.payload.body) async for each in requests]))

    async def duplex(self, requests: AsyncIterator[Any], call: Any) -> AsyncIterator[Any]:
        await self._echo_metadata(call)
        async for request in requests:
            _asked(request.response_status)
            for parameters in request.response_parameters:
                yield OutputResponse(payload=Payload(body=bytes(parameters.size)))

    async def _echo_metadata(self, call: Any) -> None:
        metadata = dict(call.invocation_metadata() or ())
        if _TRAILING in metadata:
            call.set_trailing_metadata(((_TRAILING, metadata[_TRAILING]),))
        if _INITIAL in metadata:
            await call.send_initial_metadata(((_INITIAL, metadata[_INITIAL]),))

    def service(self) -> Service:
        handlers = {"EmptyCall": self.empty, "UnaryCall": self.unary, "StreamingOutputCall": self.output}
        handlers |= {"StreamingInputCall": self.input, "FullDuplexCall": self.duplex}
        return service(POOL.FindServiceByName("grpc.testing.TestService"), handlers)


class Client:
    """Stubs of the interoperability service."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        def stub(make: Any, name: str, request: Any, response: Any) -> Any:
            return make(_METHODS + name, request.SerializeToString, response.FromString)

        self.empty = stub(channel.unary_unary, "EmptyCall", Empty, Empty)
        self.unary = stub(channel.unary_unary, "UnaryCall", SimpleRequest, SimpleResponse)
        self.output = stub(channel.unary_stream, "StreamingOutputCall", OutputRequest, OutputResponse)
        self.input = stub(channel.stream_unary, "StreamingInputCall", InputRequest, InputResponse)
        self.duplex = stub(channel.stream_stream, "FullDuplexCall", OutputRequest, OutputResponse)
        self.unimplemented = stub(channel.unary_unary, "UnimplementedCall", Empty, Empty)
        self.no_service = channel.unary_unary("/grpc.testing.UnimplementedService/UnimplementedCall")


@pytest.fixture(params=sorted(TRANSPORTS))
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    services = [TestServer().service()]
    async with open_bench(request.param, tmp_path, services=services, max_message_bytes=1_000_000) as bench:
        yield bench


@pytest.fixture
def client(bench: Bench) -> Client:
    return Client(bench.channel)


def _large() -> Any:
    return SimpleRequest(response_size=314159, payload=Payload(body=bytes(271828)))


def _output(*sizes: int, body: int = 0, **more: Any) -> Any:
    return OutputRequest(
        response_parameters=[{"size": size} for size in sizes], payload=Payload(body=bytes(body)), **more
    )


async def test_empty_unary(client: Client) -> None:
    assert await client.empty(Empty()) == Empty()


async def test_large_unary(client: Client) -> None:
    assert (await client.unary(_large())).payload.body == bytes(314159)


async def test_client_compressed_unary(client: Client) -> None:
    for compression in (grpc.Compression.Gzip, grpc.Compression.NoCompression):
        assert (await client.unary(_large(), compression=compression)).payload.body == bytes(314159)


@pytest.mark.parametrize("compressed", [True, False])
async def test_server_compressed_unary(client: Client, compressed: bool) -> None:
    request = _large()
    request.response_compressed.value = compressed
    assert (await client.unary(request)).payload.body == bytes(314159)


async def test_client_streaming(client: Client) -> None:
    sizes = [27182, 8, 1828, 45904]
    answer = await client.input(iter([InputRequest(payload=Payload(body=bytes(size))) for size in sizes]))
    assert answer.aggregated_payload_size == 74922


async def test_client_compressed_streaming(bench: Bench) -> None:
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(bench.port, options=options, compression=grpc.Compression.Gzip) as channel:
        requests = [InputRequest(payload=Payload(body=bytes(size))) for size in (27182, 45904)]
        assert (await Client(channel).input(iter(requests))).aggregated_payload_size == 73086


async def test_server_streaming(client: Client) -> None:
    sizes = [31415, 9, 2653, 58979]
    assert [len(each.payload.body) async for each in client.output(_output(*sizes))] == sizes


async def test_server_compressed_streaming(client: Client) -> None:
    request = _output(31415, 92653)
    request.response_parameters[0].compressed.value = True
    assert [len(each.payload.body) async for each in client.output(request)] == [31415, 92653]


async def test_ping_pong(client: Client) -> None:
    call = client.duplex()
    for size, body in ((31415, 27182), (9, 8), (2653, 1828), (58979, 45904)):
        await call.write(_output(size, body=body))
        assert len((await call.read()).payload.body) == size
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


async def test_empty_stream(client: Client) -> None:
    call = client.duplex()
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


async def test_custom_metadata_unary(client: Client) -> None:
    sent = ((_INITIAL, "test_initial_metadata_value"), (_TRAILING, b"\xab\xab\xab"))
    call = client.unary(_large(), metadata=sent)
    assert len((await call).payload.body) == 314159
    assert sent[0] in list(await call.initial_metadata())
    assert sent[1] in list(await call.trailing_metadata())


async def test_custom_metadata_duplex(client: Client) -> None:
    sent = ((_INITIAL, "test_initial_metadata_value"), (_TRAILING, b"\xab\xab\xab"))
    call = client.duplex(metadata=sent)
    await call.write(_output(314159, body=271828))
    assert len((await call.read()).payload.body) == 314159
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert sent[0] in list(await call.initial_metadata())
    assert sent[1] in list(await call.trailing_metadata())


@pytest.mark.parametrize("text", ["test status message", _SPECIAL], ids=["status_code_and_message", "special"])
async def test_status_code_and_message(client: Client, text: str) -> None:
    status = EchoStatus(code=2, message=text)
    error = await status_of(client.unary(SimpleRequest(response_status=status)))
    assert (error.code(), error.details()) == (grpc.StatusCode.UNKNOWN, text)
    call = client.duplex()
    await call.write(_output(response_status=status))
    await call.done_writing()
    error = await status_of(call.read())
    assert (error.code(), error.details()) == (grpc.StatusCode.UNKNOWN, text)


async def test_unimplemented_method(client: Client) -> None:
    assert (await status_of(client.unimplemented(Empty()))).code() is grpc.StatusCode.UNIMPLEMENTED


async def test_unimplemented_service(client: Client) -> None:
    assert (await status_of(client.no_service(b""))).code() is grpc.StatusCode.UNIMPLEMENTED


async def test_cancel_after_begin(client: Client) -> None:
    call = client.input()
    call.cancel()
    assert await call.code() is grpc.StatusCode.CANCELLED


async def test_cancel_after_first_response(client: Client) -> None:
    call = client.duplex()
    await call.write(_output(31415, body=27182))
    await call.read()
    call.cancel()
    assert await call.code() is grpc.StatusCode.CANCELLED


async def test_timeout_on_sleeping_server(client: Client) -> None:
    call = client.duplex(timeout=0.001)
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        await call.write(_output(body=27182))
        await call.read()
    assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_rpc_soak(client: Client) -> None:
    for _ in range(20):
        answers = await asyncio.gather(*[client.unary(_large()) for _ in range(5)])
        assert {len(answer.payload.body) for answer in answers} == {314159}


async def test_channel_soak(bench: Bench) -> None:
    for _ in range(20):
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(bench.port, options=options) as channel:
            assert len((await Client(channel).unary(_large())).payload.body) == 314159
