"""The reference transport: grpc.aio with generic handlers, one grpc server per listener, all on the running asyncio
loop.

Raw methods get no (de)serialiser, so that a ModelInfer's bytes go from HTTP/2 to the native decoder untouched.

Binding: gRPC's own error for a taken port is a line of C++ on stderr and a RuntimeError without a reason. So the
address is bound once here first, which gives the system's reason; SO_REUSEPORT is switched off, else two servers
would share a port.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from trimtab.server.errors import StartError
from trimtab.server.tls import TlsFiles
from trimtab.server.transport import Listener, Method, Observer, Service
from trimtab.server.transport_edge import UNIX, check_free, serialise, translate

__all__ = ["GrpcioTransport"]

_log = logging.getLogger(__name__)
# gRPC's options for limits of [server.limits], and how many of their unit one of ours is.
_LIMITS: dict[str, tuple[tuple[str, ...], int]] = {
    "connections": (("grpc.max_allowed_incoming_connections",), 1),
    "streams": (("grpc.max_concurrent_streams",), 1),
    "header_bytes": (("grpc.max_metadata_size", "grpc.absolute_max_metadata_size"), 1),
    "handshake_seconds": (("grpc.server_handshake_timeout_ms",), 1000),
    "idle_seconds": (("grpc.max_connection_idle_ms",), 1000),
    "keepalive_seconds": (("grpc.keepalive_time_ms",), 1000),
    "keepalive_timeout_seconds": (("grpc.keepalive_timeout_ms",), 1000),
    "age_seconds": (("grpc.max_connection_age_ms",), 1000),
    "age_grace_seconds": (("grpc.max_connection_age_grace_ms",), 1000),
}
_NO_BOUND = 2**31 - 1


class GrpcioTransport:
    """See the module; implements trimtab.server.transport.Transport."""

    name = "grpcio"

    def __init__(
        self,
        *,
        max_message_bytes: int,
        observer: Observer,
        tls: TlsFiles | None = None,
        limits: Mapping[str, float] | None = None,
    ) -> None:
        """`limits`: of [server.limits]; those that gRPC has no option for are named in the log."""
        self._tls = tls
        self._observer = observer
        self._options = [
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", max_message_bytes),
            ("grpc.so_reuseport", 0),
            # Clients may keep idle connections alive by pings.
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            ("grpc.keepalive_permit_without_calls", 1),
            *_options(limits or {}),
        ]
        self._servers: list[grpc.aio.Server] = []
        self._paths: list[Path | None] = []
        # Calls of accepted methods: under way, and ended.
        self._accepted = self._ended = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def start(self, listeners: Sequence[Listener]) -> list[str]:
        """Binds all listeners and returns their addresses as bound. Raises StartError."""
        addresses = []
        for listener in listeners:
            server = grpc.aio.server(options=self._options)
            for offered in listener.services:
                server.add_generic_rpc_handlers((self._handlers(offered),))
            addresses.append(self._bind(server, listener.address))
            self._servers.append(server)
        for server in self._servers:
            await server.start()
        return addresses

    async def drained(self, quiet: float = 0.0) -> None:
        """Returns when no call of an `accepted` method is under way, and none came for `quiet` seconds."""
        while True:
            await self._idle.wait()
            ended = self._ended
            await asyncio.sleep(quiet)
            if self._idle.is_set() and ended == self._ended:
                return

    async def stop(self, index: int, grace: float) -> None:
        """Closes listener `index`: no new calls; those under way have `grace` seconds, then are cancelled."""
        if index >= len(self._servers):
            return
        await self._servers[index].stop(grace)
        path = self._paths[index]
        if path is not None:
            path.unlink(missing_ok=True)

    def _bind(self, server: grpc.aio.Server, address: str) -> str:
        if not address.startswith(UNIX):
            host, _, port = address.rpartition(":")
            check_free(host, int(port))
            self._paths.append(None)
            try:
                if self._tls is not None:
                    return f"{host}:{server.add_secure_port(address, _credentials(self._tls))}"
                return f"{host}:{server.add_insecure_port(address)}"
            except RuntimeError as error:
                raise StartError(f"cannot listen on {address}: {error}") from None
        path = Path(address.removeprefix(UNIX))
        # Whoever calls this holds the state's lock: a socket that is there was left by a server that died.
        path.unlink(missing_ok=True)
        self._paths.append(path)
        before = os.umask(0o177)
        try:
            server.add_insecure_port(address)
            path.chmod(0o600)
        except (RuntimeError, OSError) as error:
            raise StartError(f"cannot listen on the admin socket {path}: {error}") from None
        finally:
            os.umask(before)
        return address

    def _handlers(self, offered: Service) -> grpc.GenericRpcHandler:
        handlers = {method.name: self._handler(offered.name, method) for method in offered.methods}
        return grpc.method_handlers_generic_handler(offered.name, handlers)

    def _handler(self, service: str, method: Method) -> grpc.RpcMethodHandler[Any, Any]:
        label = f"{service.rpartition('.')[2]}/{method.name}"
        deserialise = method.request.FromString if method.request is not None else None
        encode = serialise if method.request is not None else None
        if method.kind == "unary":
            return grpc.unary_unary_rpc_method_handler(self._single(method, label), deserialise, encode)
        if method.kind == "client_stream":
            return grpc.stream_unary_rpc_method_handler(self._single(method, label), deserialise, encode)
        if method.kind == "server_stream":
            return grpc.unary_stream_rpc_method_handler(self._stream(method, label), deserialise, encode)
        return grpc.stream_stream_rpc_method_handler(self._stream(method, label), deserialise, encode)

    def _single(self, method: Method, label: str) -> Callable[[Any, Any], Awaitable[Any]]:
        handler: Any = method.handler
        accepted, observer = int(method.accepted), self._observer

        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            code = "OK"
            self._accepted += accepted
            self._idle.clear() if accepted else None
            try:
                return await handler(request, context)
            except asyncio.CancelledError:
                code = _given_up(context)
                raise
            except Exception as error:
                code, message = translate(label, error)
                await context.abort(grpc.StatusCode[code], message)
            finally:
                self._accepted -= accepted
                self._ended += accepted
                if not self._accepted:
                    self._idle.set()
                observer(label, code)

        return call

    def _stream(self, method: Method, label: str) -> Callable[[Any, Any], AsyncIterator[Any]]:
        handler: Any = method.handler
        observer = self._observer

        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            code = "OK"
            try:
                async for message in handler(request, context):
                    yield message
            except (asyncio.CancelledError, GeneratorExit):
                code = _given_up(context)
                raise
            except Exception as error:
                code, text = translate(label, error)
                await context.abort(grpc.StatusCode[code], text)
            finally:
                observer(label, code)

        return call


def _options(limits: Mapping[str, float]) -> list[tuple[str, int]]:
    """Channel options for the limits; 0 is no bound."""
    if missing := sorted(set(limits) - set(_LIMITS)):
        _log.warning("transport grpcio cannot enforce these of [server.limits]: %s", ", ".join(missing))
    options = []
    for name in sorted(set(limits) & set(_LIMITS)):
        names, scale = _LIMITS[name]
        # As integers gRPC takes 32 bits; a time of less than one of its units is still a bound.
        value = min(max(round(limits[name] * scale), 1), _NO_BOUND) if limits[name] else _NO_BOUND
        options += [(each, value) for each in names]
    return options


def _given_up(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """What a call is counted as whose handler was cancelled."""
    left = context.time_remaining()
    return "CANCELLED" if left is None or left > 0 else "DEADLINE_EXCEEDED"


def _credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Read again when they have changed; while what is there does not fit together, the last that did stay in use."""
    stamp = _stamp(files)

    def configuration() -> grpc.ServerCertificateConfiguration:
        certificate, key, client_ca = files.read()
        return grpc.ssl_server_certificate_configuration([(key, certificate)], client_ca)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal stamp
        now = _stamp(files)
        if now == stamp:
            return None
        try:
            files.check()
            changed = configuration()
        except StartError as error:
            _log.warning("the changed TLS files are not in use: %s", error)
            return None
        stamp = now
        return changed

    # None is for gRPC "as before", which its types do not know.
    fetcher: Any = fetch
    return grpc.dynamic_ssl_server_credentials(configuration(), fetcher, files.client_ca is not None)


def _stamp(files: TlsFiles) -> tuple[tuple[int, int, int], ...]:
    stamp = []
    for path in (files.certificate, files.key, files.client_ca):
        with contextlib.suppress(OSError):
            if path is not None:
                state = path.stat()
                stamp.append((state.st_mtime_ns, state.st_ino, state.st_size))
    return tuple(stamp)
