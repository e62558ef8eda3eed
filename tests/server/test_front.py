"""The native front on its own, with a client made by hand: what it refuses, and what that leaves of it."""

from __future__ import annotations

import gzip
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from tests.server.raw_http2 import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    RawClient,
    frame,
    literal,
    message,
    request,
)

native: Any = pytest.importorskip("trimtab._native")
if not native.HAS_FRONT:
    pytest.skip("the native front was not built", allow_module_level=True)

UNARY, DUPLEX = "/test.Echo/Unary", "/test.Echo/Duplex"
Opened = Callable[..., "Fronted"]


class Fronted:
    """A front with an echo on a port."""

    def __init__(self, threads: int, limits: dict[str, float]) -> None:
        self.front = native.Front(native.FrontLimits(**limits), threads)
        self.echo = native.EchoTarget()
        self.clients: list[RawClient] = []
        sockets, number = [], 0
        for _ in range(threads):
            made = socket.socket()
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            made.bind(("127.0.0.1", number))
            made.listen(512)
            made.setblocking(False)
            number = made.getsockname()[1]
            sockets.append(made.detach())
        self.port = f"127.0.0.1:{number}"
        routes = [(UNARY, "Echo/Unary", 0, True, -1, self.echo), (DUPLEX, "Echo/Duplex", 3, True, -1, self.echo)]
        self.front.listen(0, sockets, routes)
        self.front.start()

    def call(self, body: bytes, **options: Any) -> bytes:
        with grpc.insecure_channel(self.port, options=[("grpc.max_receive_message_length", -1)]) as channel:
            answer: bytes = channel.unary_unary(UNARY)(body, timeout=30, **options)
        return answer

    def status(self, body: bytes, **options: Any) -> grpc.StatusCode:
        with pytest.raises(grpc.RpcError) as caught:
            self.call(body, **options)
        code: grpc.StatusCode = caught.value.code()
        return code

    def client(self, **options: Any) -> RawClient:
        self.clients.append(RawClient(self.port, **options))
        return self.clients[-1]


@pytest.fixture
def fronted() -> Iterator[Opened]:
    made: list[Fronted] = []

    def open_(threads: int = 1, **limits: float) -> Fronted:
        made.append(Fronted(threads, limits))
        return made[-1]

    yield open_
    for each in made:
        for client in each.clients:
            client.close()
        assert each.front.close(10)
        assert each.front.connections == 0
        assert each.front.nbytes == 0


def settle(check: Callable[[], bool]) -> None:
    """Returns once it holds; the front tells nobody of what it has cleaned up."""
    end = time.monotonic() + 30
    while not check():
        assert time.monotonic() < end
        time.sleep(0.005)


# --- answers


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("size", [0, 1, 16_384, 100_000, 5_000_000])
def test_any_size_comes_back(fronted: Opened, size: int, threads: int) -> None:
    echo = fronted(threads)
    body = bytes(range(256)) * (size // 256) + bytes(size % 256)
    assert echo.call(body) == body


def test_frames_split_anywhere(fronted: Opened) -> None:
    echo = fronted()
    client = echo.client()
    body = message(b"abcdefgh" * 4)
    data = frame(HEADERS, END_HEADERS, 1, request(UNARY))
    data += b"".join(frame(DATA, 0, 1, bytes([byte])) for byte in body) + frame(DATA, END_STREAM, 1)
    for byte in data:
        client.send(bytes([byte]))
    answer = client.first(DATA)
    assert answer is not None
    assert answer.payload == body


def test_several_messages_in_one_frame(fronted: Opened) -> None:
    client = fronted().client()
    bodies = b"".join(message(bytes([n]) * n) for n in range(20))
    client.send(frame(HEADERS, END_HEADERS, 1, request(DUPLEX)) + frame(DATA, END_STREAM, 1, bodies))
    came = b""
    for each in client.frames():
        came += each.payload if each.kind == DATA else b""
        if each.kind == HEADERS and each.flags & END_STREAM:
            break
    assert came == bodies


def test_gzip_in_and_out(fronted: Opened) -> None:
    body = b"again and again " * 10_000
    assert fronted().call(body, compression=grpc.Compression.Gzip) == body


def test_hot_stream_answers_in_order_and_ends(fronted: Opened) -> None:
    echo = fronted()
    bodies = [b"x" * n for n in range(0, 3000, 7)]
    with grpc.insecure_channel(echo.port) as channel:
        assert list(channel.stream_stream(DUPLEX)(iter(bodies))) == bodies
    settle(lambda: ("Echo/Duplex", 0, 1) in echo.front.ended())


# --- refusals


def test_gzip_bomb(fronted: Opened) -> None:
    echo = fronted(max_message_bytes=1_000_000)
    assert echo.status(bytes(50_000_000), compression=grpc.Compression.Gzip) is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    "damage",
    [gzip.compress(b"x" * 100, mtime=0)[:-3], b"no gzip", b"", gzip.compress(b"x", mtime=0) + b"more"],
)
def test_damaged_gzip(fronted: Opened, damage: bytes) -> None:
    echo = fronted()
    client = echo.client()
    body = b"\x01" + struct.pack(">I", len(damage)) + damage
    client.send(frame(HEADERS, END_HEADERS, 1, request(UNARY, grpc_encoding="gzip")) + frame(DATA, END_STREAM, 1, body))
    assert client.first(HEADERS) is not None
    settle(lambda: ("Echo/Unary", grpc.StatusCode.INTERNAL.value[0], 1) in echo.front.ended())


def test_huge_message_is_refused_by_its_prefix(fronted: Opened) -> None:
    echo = fronted(max_message_bytes=1000)
    client = echo.client()
    client.send(frame(HEADERS, END_HEADERS, 1, request(UNARY)) + frame(DATA, 0, 1, message(b"x", 0xFFFFFFFF)))
    headers = client.first(HEADERS)
    assert headers is not None
    assert headers.flags & END_STREAM
    assert client.first(RST_STREAM) is not None
    settle(lambda: ("Echo/Unary", grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], 1) in echo.front.ended())


def test_bytes_under_way_are_bounded(fronted: Opened) -> None:
    echo = fronted(total_bytes=300_000)
    assert echo.call(bytes(100_000)) == bytes(100_000)
    assert echo.status(bytes(1_000_000)) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert echo.call(bytes(100_000)) == bytes(100_000)


def test_large_headers(fronted: Opened) -> None:
    echo = fronted(header_bytes=2000)
    assert echo.status(b"", metadata=[("name", "x" * 4000)]) is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"grpc_timeout": "soon"}, grpc.StatusCode.INTERNAL),
        ({"grpc_timeout": "123456789S"}, grpc.StatusCode.INTERNAL),
        ({"grpc_timeout": "0n"}, grpc.StatusCode.DEADLINE_EXCEEDED),
        ({"grpc_encoding": "snappy"}, grpc.StatusCode.UNIMPLEMENTED),
    ],
)
def test_malformed_headers(fronted: Opened, fields: dict[str, str], status: grpc.StatusCode) -> None:
    echo = fronted()
    client = echo.client()
    client.send(frame(HEADERS, END_HEADERS, 1, request(UNARY, **fields)) + frame(DATA, END_STREAM, 1, message(b"")))
    assert client.first(HEADERS) is not None
    settle(lambda: ("Echo/Unary", status.value[0], 1) in echo.front.ended())


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(literal(":method", "POST"), id="no_path"),
        pytest.param(request(UNARY) + literal(":path", DUPLEX), id="two_paths"),
        pytest.param(request(UNARY).replace(b"POST", b"GET "), id="get"),
        pytest.param(request(UNARY, content_type="text/html"), id="no_grpc"),
        pytest.param(request(UNARY, te="gzip"), id="te"),
    ],
)
def test_requests_that_are_none(fronted: Opened, block: bytes) -> None:
    echo = fronted()
    client = echo.client()
    client.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, block))
    headers = client.first(HEADERS)
    assert headers is not None
    assert headers.flags & END_STREAM
    assert echo.call(b"others") == b"others"


def test_trailers_of_a_client_change_nothing(fronted: Opened) -> None:
    client = fronted().client()
    client.send(frame(HEADERS, END_HEADERS, 1, request(UNARY)) + frame(DATA, 0, 1, message(b"whole")))
    trailers = literal(":path", "/no/such") + literal("grpc-timeout", "never") + literal("content-type", "text/plain")
    client.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, trailers))
    answer = client.first(DATA)
    assert answer is not None
    assert answer.payload == message(b"whole")


@pytest.mark.parametrize("unit", "HMSmun")
def test_every_unit_of_timeouts(fronted: Opened, unit: str) -> None:
    client = fronted().client()
    block = request(UNARY, grpc_timeout=f"99999999{unit}")
    client.send(frame(HEADERS, END_HEADERS, 1, block) + frame(DATA, END_STREAM, 1, message(b"ab")))
    answer = client.first(DATA)
    assert answer is not None
    assert answer.payload == message(b"ab")


@pytest.mark.parametrize(
    "body", [b"", message(b"a") + message(b"b"), message(b"abc")[:-1], b"\x02\0\0\0\0", b"\x01\0\0\0\0"]
)
def test_a_unary_call_is_one_whole_message(fronted: Opened, body: bytes) -> None:
    echo = fronted()
    client = echo.client()
    client.send(frame(HEADERS, END_HEADERS, 1, request(UNARY)) + frame(DATA, END_STREAM, 1, body))
    assert client.first(HEADERS) is not None
    settle(lambda: bool(echo.front.ended()))
    (ended,) = echo.front.ended()
    assert ended[1] in (grpc.StatusCode.INTERNAL.value[0], grpc.StatusCode.UNIMPLEMENTED.value[0])


def test_http1_client_gets_a_line(fronted: Opened) -> None:
    client = fronted().client(greet=False)
    client.send(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n")
    answer = b""
    while data := client.socket.recv(4096):
        answer += data
    head, _, line = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert line == b"This port speaks gRPC over HTTP/2; HTTP has its own port\n"
    assert f"content-length: {len(line)}".encode() in head


def test_random_bytes(fronted: Opened) -> None:
    echo = fronted()
    for start in (b"", PREFACE, PREFACE + frame(SETTINGS, 0, 0)):
        client = echo.client(greet=False)
        client.send(start + bytes(range(256)) * 50)
        list(client.frames())
        assert echo.call(b"still there") == b"still there"


# --- floods

HEADER = frame(HEADERS, END_HEADERS, 1, request(DUPLEX))


@pytest.mark.parametrize(
    ("before", "flood"),
    [
        pytest.param(b"", frame(PING, 0, 0, bytes(8)), id="ping"),
        pytest.param(b"", frame(PING, ACK, 0, bytes(8)), id="ping_ack"),
        pytest.param(b"", frame(SETTINGS, 0, 0), id="settings"),
        pytest.param(b"", frame(SETTINGS, ACK, 0), id="settings_ack"),
        pytest.param(b"", frame(PRIORITY, 0, 1, bytes(5)), id="priority"),
        pytest.param(b"", frame(99, 0, 0, b"unknown"), id="unknown"),
        pytest.param(HEADER, frame(DATA, 0, 1), id="empty_data"),
        pytest.param(HEADER, frame(WINDOW_UPDATE, 0, 1, struct.pack(">I", 1)), id="window_update"),
        pytest.param(frame(HEADERS, 0, 1, request(UNARY)), frame(CONTINUATION, 0, 1, b""), id="continuation"),
    ],
)
def test_flood_of_frames(fronted: Opened, before: bytes, flood: bytes) -> None:
    echo = fronted(control_burst=50, controls_per_second=1, update_burst=50, updates_per_second=1)
    client = echo.client()
    assert client.send(before)
    client.send(flood * 1000)
    goaway = client.first(GOAWAY)
    assert goaway is None or struct.unpack(">I", goaway.payload[4:8])[0] == ENHANCE_YOUR_CALM
    assert list(client.frames()) == []
    assert echo.call(b"others") == b"others"


def test_rapid_reset(fronted: Opened) -> None:
    echo = fronted(reset_burst=50, resets_per_second=1)
    client = echo.client()
    for stream in range(1, 4001, 2):
        block = frame(HEADERS, END_HEADERS, stream, request(UNARY)) + frame(RST_STREAM, 0, stream, bytes(4))
        if not client.send(block):
            break
    goaway = client.first(GOAWAY)
    assert goaway is None or struct.unpack(">I", goaway.payload[4:8])[0] == ENHANCE_YOUR_CALM
    assert echo.call(b"others") == b"others"


def test_streams_at_once_are_bounded(fronted: Opened) -> None:
    echo = fronted(streams=5)
    client = echo.client()
    for stream in range(1, 41, 2):
        client.send(frame(HEADERS, END_HEADERS, stream, request(UNARY)))
    refused = client.first(RST_STREAM)
    assert refused is not None
    assert struct.unpack(">I", refused.payload)[0] == 7  # REFUSED_STREAM


# --- slow clients


def test_client_that_says_nothing(fronted: Opened) -> None:
    client = fronted(handshake_seconds=0.1).client(greet=False)
    assert list(client.frames()) == []


def test_client_that_stops_within_a_frame(fronted: Opened) -> None:
    client = fronted(message_seconds=0.1).client()
    client.send(frame(HEADERS, END_HEADERS, 1, request(UNARY))[:20])
    list(client.frames())


def test_client_that_stops_within_a_message(fronted: Opened) -> None:
    echo = fronted(message_seconds=0.1)
    client = echo.client()
    client.send(frame(HEADERS, END_HEADERS, 1, request(UNARY)) + frame(DATA, 0, 1, message(b"x", 100)))
    headers = client.first(HEADERS)
    assert headers is not None
    assert headers.flags & END_STREAM


def test_idle_stream_is_not_slow(fronted: Opened) -> None:
    client = fronted(message_seconds=0.1).client()
    client.send(HEADER + frame(DATA, 0, 1, message(b"one")))
    assert client.first(DATA) is not None
    client.socket.settimeout(1.5)
    with pytest.raises(TimeoutError):
        client.first(GOAWAY)
    client.socket.settimeout(30)
    client.send(frame(DATA, END_STREAM, 1, message(b"two")))
    assert client.first(DATA) is not None


def test_client_that_never_reads(fronted: Opened) -> None:
    echo = fronted(write_seconds=0.5, output_bytes=100_000)
    client = echo.client(receive_buffer=4096)
    client.socket.settimeout(5)
    body = frame(DATA, END_STREAM, 1, message(bytes(16_000)))
    for stream in range(1, 20_001, 2):
        block = frame(HEADERS, END_HEADERS, stream, request(UNARY))
        if not client.send(block + body[:5] + struct.pack(">I", stream) + body[9:]):
            break
    else:
        pytest.fail("all was taken")
    settle(lambda: echo.front.connections == 0)
    assert echo.call(b"others") == b"others"


def test_idle_connection_is_asked_to_leave(fronted: Opened) -> None:
    client = fronted(idle_seconds=0.1).client()
    goaway = client.first(GOAWAY)
    assert goaway is not None
    assert struct.unpack(">I", goaway.payload[4:8])[0] == 0


def test_silent_connection_is_pinged_and_dropped(fronted: Opened) -> None:
    client = fronted(keepalive_seconds=0.1, keepalive_timeout_seconds=0.1).client()
    ping = client.first(PING)
    assert ping is not None
    assert list(client.frames()) == []


def test_old_connection_is_asked_to_come_again(fronted: Opened) -> None:
    client = fronted(age_seconds=0.2).client()
    client.send(HEADER + frame(DATA, 0, 1, message(b"one")))
    goaway = client.first(GOAWAY)
    assert goaway is not None
    client.send(frame(DATA, END_STREAM, 1, message(b"two")))
    assert client.first(DATA) is not None


def test_oldest_idle_connection_makes_room(fronted: Opened) -> None:
    echo = fronted(connections=3)
    clients = []
    for _ in range(5):
        client = echo.client()
        assert client.first(SETTINGS) is not None
        clients.append(client)
    list(clients[0].frames())
    list(clients[1].frames())
    assert echo.front.connections == 3
    assert echo.call(b"a fourth") == b"a fourth"


# --- endings


def test_drain_says_goodbye_twice_and_ends_when_the_last_call_has(fronted: Opened) -> None:
    echo = fronted()
    client = echo.client()
    client.send(HEADER + frame(DATA, 0, 1, message(b"one")))
    assert client.first(DATA) is not None
    echo.front.stop(0, 30_000_000_000)
    first = client.first(GOAWAY)
    assert first is not None
    assert struct.unpack(">I", first.payload[:4])[0] == 0x7FFFFFFF
    client.send(frame(PING, ACK, 0, bytes(8)))
    second = client.first(GOAWAY)
    assert second is not None
    assert struct.unpack(">I", second.payload[:4])[0] == 1
    client.send(frame(DATA, END_STREAM, 1, message(b"two")))
    last = client.first(DATA)
    assert last is not None
    assert last.payload == message(b"two")
    list(client.frames())


def test_grace_ends_calls(fronted: Opened) -> None:
    echo = fronted()
    client = echo.client()
    client.send(HEADER + frame(DATA, 0, 1, message(b"one")))
    assert client.first(DATA) is not None
    echo.front.stop(0, 0)
    list(client.frames())
    client.close()
    settle(lambda: ("Echo/Duplex", grpc.StatusCode.UNAVAILABLE.value[0], 1) in echo.front.ended())


def test_deadline_of_a_stalled_request(fronted: Opened) -> None:
    echo = fronted()
    client = echo.client()
    client.send(frame(HEADERS, END_HEADERS, 1, request(UNARY, grpc_timeout="50m")))
    assert client.first(HEADERS) is not None
    settle(lambda: ("Echo/Unary", grpc.StatusCode.DEADLINE_EXCEEDED.value[0], 1) in echo.front.ended())


def test_client_that_gives_up_at_the_deadline_has_passed_it(fronted: Opened) -> None:
    """Its reset and our timer race; whichever is first, the calls count as what they are."""
    echo = fronted()
    client = echo.client()
    streams = range(1, 201, 2)
    client.send(b"".join(frame(HEADERS, END_HEADERS, each, request(DUPLEX, grpc_timeout="100m")) for each in streams))
    client.send(frame(PING, 0, 0, bytes(8)))
    while True:  # its answer says that all calls have begun
        answer = client.first(PING)
        assert answer is not None
        if answer.flags & ACK:
            break
    passed = time.monotonic() + 0.1
    while time.monotonic() < passed:
        time.sleep(0.001)
    client.send(b"".join(frame(RST_STREAM, 0, each, struct.pack(">I", 8)) for each in streams))
    settle(lambda: ("Echo/Duplex", grpc.StatusCode.DEADLINE_EXCEEDED.value[0], 100) in echo.front.ended())


def test_client_that_gives_up_before_the_deadline_has_cancelled(fronted: Opened) -> None:
    echo = fronted()
    client = echo.client()
    client.send(frame(HEADERS, END_HEADERS, 1, request(DUPLEX, grpc_timeout="1H")))
    client.send(frame(RST_STREAM, 0, 1, struct.pack(">I", 8)))
    settle(lambda: echo.front.ended() == [("Echo/Duplex", grpc.StatusCode.CANCELLED.value[0], 1)])


@pytest.mark.parametrize("name", ["max_message_byte", "threads"])
def test_unknown_limit(name: str) -> None:
    with pytest.raises(TypeError, match=name):
        native.FrontLimits(**{name: 1})


def test_limit_out_of_range() -> None:
    with pytest.raises(ValueError, match="idle_seconds"):
        native.FrontLimits(idle_seconds=-1)
    with pytest.raises(ValueError, match="window"):
        native.FrontLimits(stream_window=1 << 31)
