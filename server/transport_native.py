"""The native transport: HTTP/2 and gRPC by C++ threads (csrc/front.h), handlers on the running asyncio loop.

Hot methods never come here: the front hands their messages to a HotTarget, and the answers go back without Python.
Every other call is an event of the front: one eventfd wakes the loop, one crossing takes all that has come, and what
handlers say in one turn of the loop goes back in one crossing.

A handler's task is cancelled when its client has cancelled the call, its deadline has passed, or its connection is
gone; the front has then ended the call, and what the task still says of it is ignored.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from trimtab._native import Front, FrontLimits, HotTarget, StreamFactory, TlsFactory
from trimtab.server.errors import ServerError, StartError
from trimtab.server.native_call import FINISH, NativeCall
from trimtab.server.tls import TlsFiles
from trimtab.server.transport import Kind, Listener, Method, Observer
from trimtab.server.transport_edge import UNIX, listen_tcp, listen_unix, serialise, translate

__all__ = ["NativeTransport"]

# Kinds of events; the numbers are those of EventKind in csrc/front_bridge.h.
_CALL, _MESSAGE, _HALF_CLOSED, _SENT, _CANCELLED, _STOPPED, _IDLE = range(7)
_KINDS: dict[Kind, int] = {"unary": 0, "client_stream": 1, "server_stream": 2, "duplex": 3}
_NUMBERS: dict[str, int] = {code.name: code.value[0] for code in grpc.StatusCode}
_NAMES = {number: name for name, number in _NUMBERS.items()}
# Seconds for native threads to get back what they have handed out, when all listeners have stopped.
_CLOSE_SECONDS = 5.0
_DESCRIPTORS = 65_536


class _TooLarge(ServerError):
    code = "RESOURCE_EXHAUSTED"


class _Undecodable(ServerError):
    code = "INTERNAL"


@dataclass(frozen=True, slots=True)
class _Route:
    label: str
    method: Method


class NativeTransport:
    """See the module; implements trimtab.server.transport.Transport.

    `hot` maps paths ("/package.Service/Method") to what serves them natively, on every listener that offers the
    method. With `tls`, TCP listeners speak nothing else.
    """

    name = "native"

    def __init__(
        self,
        *,
        max_message_bytes: int,
        observer: Observer,
        io_threads: int = 1,
        hot: Mapping[str, HotTarget] | None = None,
        limits: Mapping[str, float] | None = None,
        tls: TlsFiles | None = None,
    ) -> None:
        self._observer = observer
        self._max_message_bytes = max_message_bytes
        self._threads = io_threads
        self._hot = dict(hot or {})
        self._streams = _tls_streams(tls) if tls is not None else None
        self._front = Front(FrontLimits(max_message_bytes=max_message_bytes, **(limits or {})), io_threads)
        self._routes: list[_Route] = []
        self._paths: list[Path | None] = []
        self._calls: dict[int, NativeCall] = {}
        self._commands: list[tuple[Any, ...]] = []
        # Calls of accepted methods: under way, and ended.
        self._accepted = self._ended = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._hot_idle: asyncio.Future[None] | None = None
        self._idle_threads = 0
        # Per listener: threads that have closed all of its connections.
        self._stopped_threads: dict[int, int] = defaultdict(int)
        self._stopped: list[asyncio.Event] = []
        self._closed = False

    # --- lifecycle

    async def start(self, listeners: Sequence[Listener]) -> list[str]:
        """Binds all listeners and returns their addresses as bound. Raises StartError."""
        self._loop = asyncio.get_running_loop()
        _allow_descriptors()
        addresses = [self._listen(index, listener) for index, listener in enumerate(listeners)]
        self._front.start()
        self._loop.add_reader(self._front.fileno(), self._on_events)
        return addresses

    async def drained(self, quiet: float = 0.0) -> None:
        """Returns when no call of an `accepted` method is under way, and none came for `quiet` seconds."""
        while True:
            await self._idle.wait()
            await self._wait_for_hot()
            ended = self._ended + self._front.counted()[1]
            await asyncio.sleep(quiet)
            under_way, hot_ended = self._front.counted()
            if self._idle.is_set() and not under_way and ended == self._ended + hot_ended:
                return

    async def stop(self, index: int, grace: float) -> None:
        """Closes listener `index`: no new calls; those under way have `grace` seconds, then are cancelled."""
        if index >= len(self._stopped) or self._closed:
            return
        self._flush()
        self._front.stop(index, int(grace * 1e9))
        await self._stopped[index].wait()
        path = self._paths[index]
        if path is not None:
            path.unlink(missing_ok=True)
        if all(stopped.is_set() for stopped in self._stopped):
            await self._close()

    async def _close(self) -> None:
        self._closed = True
        self._loop.remove_reader(self._front.fileno())
        tasks = [call.task for call in self._calls.values() if call.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await asyncio.to_thread(self._front.close, _CLOSE_SECONDS)

    def calls(self) -> list[tuple[str, str, int]]:
        """Hot calls that have ended: "Service/Method", the status' name, how many. The observer is told of all
        others."""
        return [(label, _NAMES[status], count) for label, status, count in self._front.ended()]

    # --- listening

    def _listen(self, index: int, listener: Listener) -> str:
        address, streams = listener.address, self._streams
        if address.startswith(UNIX):
            path = Path(address.removeprefix(UNIX))
            sockets, streams = [listen_unix(path)], None
            self._paths.append(path)
        else:
            host, _, port = address.rpartition(":")
            sockets = listen_tcp(host, int(port), self._threads)
            address = f"{host}:{sockets[0].getsockname()[1]}"
            self._paths.append(None)
        routes = [self._route(service.name, method) for service in listener.services for method in service.methods]
        self._front.listen(index, [each.detach() for each in sockets], routes, streams)
        self._stopped.append(asyncio.Event())
        return address

    def _route(self, service: str, method: Method) -> tuple[str, str, int, bool, int, HotTarget | None]:
        label, path = f"{service.rpartition('.')[2]}/{method.name}", f"/{service}/{method.name}"
        self._routes.append(_Route(label, method))
        handler = len(self._routes) - 1
        return path, label, _KINDS[method.kind], method.accepted, handler, self._hot.get(path)

    # --- events

    def _on_events(self) -> None:
        calls = self._calls
        for event in self._front.poll():
            kind, id_ = event[0], event[1]
            if kind == _CALL:
                self._begin(event)
            elif kind == _STOPPED:
                self._on_stopped(event[2])
            elif kind == _IDLE:
                self._on_hot_idle()
            elif (call := calls.get(id_)) is None:
                continue  # its handler has returned
            elif kind == _MESSAGE:
                call.on_message(event[2])
            elif kind == _HALF_CLOSED:
                call.on_half_closed()
            elif kind == _SENT:
                call.on_sent(event[2])
            elif kind == _CANCELLED and call.task is not None:
                call.over = _NAMES[event[2]]
                call.task.cancel()

    def _begin(self, event: tuple[Any, ...]) -> None:
        _, id_, handler, deadline_ns, metadata, peer, identity, body = event
        route = self._routes[handler]
        call = NativeCall(id_, self._put, deadline_ns, metadata, peer, identity)
        self._calls[id_] = call
        if route.method.accepted:
            self._accepted += 1
            self._idle.clear()
        call.task = self._loop.create_task(self._run(route, call, body), name=route.label)

    def _on_stopped(self, index: int) -> None:
        self._stopped_threads[index] += 1
        if self._stopped_threads[index] == self._threads:
            self._stopped[index].set()

    def _on_hot_idle(self) -> None:
        self._idle_threads += 1
        if self._idle_threads >= self._threads and self._hot_idle is not None:
            if not self._hot_idle.done():
                self._hot_idle.set_result(None)
            self._hot_idle = None

    async def _wait_for_hot(self) -> None:
        while self._front.counted()[0] and not self._closed:
            if self._hot_idle is None:
                self._hot_idle = self._loop.create_future()
                self._idle_threads = 0
                self._front.watch_idle()
            await asyncio.shield(self._hot_idle)

    # --- calls

    async def _run(self, route: _Route, call: NativeCall, body: bytes | None) -> None:
        code, message, answer = "OK", "", None
        try:
            answer = await self._handle(route.method, call, body)
        except asyncio.CancelledError:
            code = call.over
        except Exception as error:
            code, message = translate(route.label, error)
        finally:
            self._calls.pop(call.id, None)
            number = _NUMBERS.get(code, 2)
            self._put(
                (FINISH, call.id, number, message.encode("utf-8", "replace"), call.trailing, answer, call.compression())
            )
            if route.method.accepted:
                self._accepted -= 1
                self._ended += 1
                if not self._accepted:
                    self._idle.set()
            self._observer(route.label, code)

    async def _handle(self, method: Method, call: NativeCall, body: bytes | None) -> bytes | None:
        """Runs the handler; the answer of those that give one."""
        handler: Any = method.handler
        read = _reader(method)
        request: Any = (read(each) async for each in call.messages()) if body is None else read(body)
        if method.kind in ("unary", "client_stream"):
            return self._checked(serialise(await handler(request, call)))
        async with contextlib.aclosing(handler(request, call)) as messages:
            async for message in messages:
                await call.send(self._checked(serialise(message)))
        return None

    def _checked(self, data: bytes) -> bytes:
        if len(data) > self._max_message_bytes:
            raise _TooLarge(f"an answer of {len(data)} bytes; max_message_bytes is {self._max_message_bytes}")
        return data

    # --- commands

    def _put(self, command: tuple[Any, ...]) -> None:
        if not self._commands:
            self._loop.call_soon(self._flush)
        self._commands.append(command)

    def _flush(self) -> None:
        if self._commands and not self._closed:
            self._front.command(self._commands)
        self._commands = []


def _tls_streams(files: TlsFiles) -> StreamFactory:
    client_ca = os.fspath(files.client_ca) if files.client_ca is not None else ""
    try:
        return TlsFactory(os.fspath(files.certificate), os.fspath(files.key), client_ca)
    except RuntimeError as error:
        raise StartError(f"TLS: {error}") from None


def _allow_descriptors() -> None:
    """Each connection is a descriptor, of which a process may open 1,024 unless it asks for more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _reader(method: Method) -> Callable[[bytes], Any]:
    if method.request is None:
        return bytes
    parse, name = method.request.FromString, method.request.DESCRIPTOR.full_name

    def read(body: bytes) -> Any:
        try:
            return parse(body)
        except Exception as error:
            raise _Undecodable(f"not a {name}: {error}") from None

    return read
