"""What a transport is: it carries calls to handlers, and knows nothing of models.

A transport listens, speaks HTTP/2 and gRPC framing, and calls a service's methods on the asyncio loop. Handlers are the
same whichever transport carries them: a message (or its raw bytes, where `request` is None) and a Call in, a message
(or bytes) out, an error of trimtab.server.errors on failure. The transport translates errors to statuses once, here
at the edge.

Ordering: a handler starts on the loop in order of arrival; its answer goes out when it returns. A call that the client
cancelled, or whose deadline passed, has its handler's task cancelled.

Implementations: `grpcio` (transport_grpcio.py) and `native` (transport_native.py), whose C++ threads serve hot methods
by themselves and pass every other one on to these handlers. What they may differ in: which status a client gets that
breaks the protocol; the wording of messages that no handler wrote; and that grpcio shows a handler that waits for a
stream's next message the end of the stream, where the client has in fact cancelled it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from trimtab.server.errors import Unsupported

__all__ = ["Call", "Handler", "Kind", "Listener", "Method", "Observer", "Service", "Transport", "service"]

Kind = Literal["unary", "client_stream", "server_stream", "duplex"]
Handler = Callable[[Any, "Call"], Awaitable[Any] | AsyncIterator[Any]]
Observer = Callable[[str, str], None]
"""Told of every ended call: "Service/Method" and the status' name."""


class Call(Protocol):
    """What a handler may ask and say about its call. grpc.aio's ServicerContext is one as it is."""

    def time_remaining(self) -> float | None:
        """Seconds until the call's deadline; None without one."""

    def invocation_metadata(self) -> Any:
        """Pairs of the client's metadata, None without any. Names are lower-case; values of names that end in "-bin"
        are bytes, all others str."""

    def peer(self) -> str:
        """Where the client is, in gRPC's words: "ipv4:127.0.0.1:50000", "unix:"."""
        ...

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """What TLS knows of the client: "transport_security_type", and where it gave a certificate
        "x509_common_name", "x509_subject_alternative_name", "x509_pem_cert". Without TLS, nothing of these."""
        ...

    async def send_initial_metadata(self, initial_metadata: Any) -> None:
        """Sends pairs of metadata now, before any message; at most once."""

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        """Pairs of metadata that go with the status."""

    def set_compression(self, compression: Any) -> None:
        """A grpc.Compression for the answers, if the client takes it; before anything is sent."""

    def disable_next_message_compression(self) -> None:
        """The next answer goes out as it is."""


@dataclass(frozen=True)
class Method:
    """One method of a service."""

    name: str
    kind: Kind
    handler: Handler
    """unary, client_stream: a coroutine; server_stream, duplex: an async generator. Streams come as async iterators."""
    request: type[Message] | None
    """None: raw bytes in and out."""
    accepted: bool = False
    """Whether a call, once begun, is waited for when the server drains."""


@dataclass(frozen=True)
class Service:
    """A service as a listener offers it."""

    name: str
    methods: tuple[Method, ...]


@dataclass(frozen=True)
class Listener:
    """Where to listen, and what to offer there. `address` is HOST:PORT (port 0: a free one) or unix:PATH (made
    0600)."""

    address: str
    services: tuple[Service, ...] = field(default=())


class Transport(Protocol):
    """Listens from `start` until `stop`."""

    name: str

    async def start(self, listeners: Sequence[Listener]) -> list[str]:
        """Binds all listeners and returns their addresses as bound. Raises StartError."""
        ...

    async def drained(self, quiet: float = 0.0) -> None:
        """Returns when no call of an `accepted` method is under way, and none came for `quiet` seconds."""

    async def stop(self, index: int, grace: float) -> None:
        """Closes listener `index`: no new calls; those under way have `grace` seconds, then are cancelled."""


def service(
    descriptor: ServiceDescriptor,
    handlers: dict[str, Handler],
    *,
    raw: Sequence[str] = (),
    accepted: Sequence[str] = (),
) -> Service:
    """The service of a protobuf descriptor. Methods without a handler answer UNIMPLEMENTED and say so.

    `raw` names the methods that take and give bytes, `accepted` those that draining waits for.
    """
    unknown = set(handlers) - {method.name for method in descriptor.methods}
    if unknown:
        raise ValueError(f"{descriptor.full_name} has no methods {sorted(unknown)}")
    methods = []
    for method in descriptor.methods:
        kind = _KINDS[method.client_streaming, method.server_streaming]
        handler = handlers.get(method.name)
        if handler is None:
            message = f"{descriptor.full_name}/{method.name} is not offered by this server"
            methods.append(Method(method.name, kind, _refusal(kind, message), None))
        else:
            request = None if method.name in raw else GetMessageClass(method.input_type)
            methods.append(Method(method.name, kind, handler, request, method.name in accepted))
    return Service(descriptor.full_name, tuple(methods))


_KINDS: dict[tuple[bool, bool], Kind] = {
    (False, False): "unary",
    (True, False): "client_stream",
    (False, True): "server_stream",
    (True, True): "duplex",
}


def _refusal(kind: Kind, message: str) -> Handler:
    async def answer(_request: object, _call: Call) -> bytes:
        raise Unsupported(message)

    async def stream(_request: object, _call: Call) -> AsyncIterator[bytes]:
        raise Unsupported(message)
        yield b""

    return answer if kind in ("unary", "client_stream") else stream
