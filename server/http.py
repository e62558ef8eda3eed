"""The HTTP side, on a port of its own, in the same asyncio loop: REST v2 under /v2, /metrics, /livez and /readyz."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from trimtab.server.errors import StartError
from trimtab.server.http_connection import Connection
from trimtab.server.rest import Rest, refuse_path
from trimtab.server.served import Registry
from trimtab.server.tls import TlsFiles

__all__ = ["HttpServer"]

_METRICS = "text/plain; version=0.0.4; charset=utf-8"


class HttpServer:
    """`startup`, then it answers until `shutdown`."""

    def __init__(self, registry: Registry, page: Callable[[], bytes], rest: Rest, tls: TlsFiles | None = None) -> None:
        self._registry = registry
        self._page = page
        routes = [
            Route("/metrics", self._render, methods=["GET"]),
            Route("/livez", self._live, methods=["GET"]),
            Route("/readyz", self._ready, methods=["GET"]),
            *rest.routes(),
        ]
        config = uvicorn.Config(
            Starlette(routes=routes, exception_handlers={HTTPException: refuse_path}),
            http=Connection,
            ws="none",
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=1,
            **_tls_options(tls),
        )
        self._server = _Server(config)
        self._task: asyncio.Task[None] | None = None

    async def startup(self, host: str, port: int) -> str:
        """Listens, and returns HOST:PORT as bound. Raises StartError."""
        bound = _bind(host, port)
        self._task = asyncio.create_task(self._server.serve(sockets=[bound]), name="http")
        return f"{host}:{bound.getsockname()[1]}"

    async def shutdown(self) -> None:
        """Closes the port; answers under way have a second."""
        self._server.should_exit = True
        if self._task is not None:
            await asyncio.wait([self._task], timeout=3.0)
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _render(self, _request: Request) -> Response:
        # Rendering some hundred numbers takes milliseconds: not on the loop, where requests are answered.
        body = await asyncio.to_thread(self._page)
        return Response(body, media_type=None, headers={"content-type": _METRICS})

    async def _live(self, _request: Request) -> Response:
        return PlainTextResponse("live\n")

    async def _ready(self, _request: Request) -> Response:
        if self._registry.ready:
            return PlainTextResponse("ready\n")
        reason = "draining" if self._registry.draining else "starting"
        return PlainTextResponse(f"{reason}\n", status_code=503)


def _tls_options(tls: TlsFiles | None) -> dict[str, Any]:
    """Read once: unlike the gRPC port's, a changed certificate takes a restart."""
    if tls is None:
        return {}
    options: dict[str, Any] = {"ssl_certfile": tls.certificate, "ssl_keyfile": tls.key}
    if tls.client_ca is not None:
        options |= {"ssl_ca_certs": os.fspath(tls.client_ca), "ssl_cert_reqs": ssl.CERT_REQUIRED}
    return options


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the application's, not uvicorn's."""
        yield


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise StartError(f"cannot listen on {host}:{port}: {(error.strerror or str(error)).lower()}") from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(128)
        bound.setblocking(False)
    except OSError as error:
        bound.close()
        raise StartError(f"cannot listen on {host}:{port}: {(error.strerror or str(error)).lower()}") from None
    return bound
