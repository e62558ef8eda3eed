"""What every transport does alike: errors to statuses, messages to bytes, addresses to sockets."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path
from typing import Any

from trimtab.server.errors import ServerError, StartError, status

__all__ = ["UNIX", "check_free", "listen_tcp", "listen_unix", "serialise", "translate"]

UNIX = "unix:"
"""What an address of a Unix socket begins with."""

_log = logging.getLogger(__name__)
# gRPC sends the message as a header, and clients bound the size of all headers together (8 KiB by default).
_MESSAGE_LIMIT = 3000
_BACKLOG = 4096


def serialise(message: Any) -> bytes:
    """The bytes of what a handler gave: they themselves, or a message's."""
    data: bytes = message if isinstance(message, bytes) else message.SerializeToString()
    return data


def translate(label: str, error: Exception) -> tuple[str, str]:
    """The status' name and the bounded message for what a handler raised; defects are logged."""
    code, message = status(error)
    if code == "INTERNAL" and not isinstance(error, ServerError):
        _log.error("%s failed", label, exc_info=error)
    return code, message if len(message) <= _MESSAGE_LIMIT else message[:_MESSAGE_LIMIT] + "…"


def check_free(host: str, port: int) -> None:
    """Raises StartError, with the system's reason, where HOST:PORT cannot be listened on."""
    try:
        with _bound(host, port) as probe:
            probe.listen(1)
    except OSError as error:
        raise _cannot(f"{host}:{port}", error) from None


def listen_tcp(host: str, port: int, sockets: int) -> list[socket.socket]:
    """So many sockets that listen on one HOST:PORT (port 0: a free one). Raises StartError.

    Several share the port by SO_REUSEPORT; that it is free was seen to first, else two servers would share it, too.
    """
    check_free(host, port)
    listening: list[socket.socket] = []
    try:
        for _ in range(sockets):
            listening.append(_bound(host, port, shared=sockets > 1))
            port = listening[0].getsockname()[1]
        for each in listening:
            each.listen(_BACKLOG)
            each.setblocking(False)
    except OSError as error:
        for each in listening:
            each.close()
        raise _cannot(f"{host}:{port}", error) from None
    return listening


def listen_unix(path: Path) -> socket.socket:
    """A socket of its owner's alone (0600) that listens on a path. Raises StartError.

    Whoever calls this holds the state's lock: a socket that is there was left by a server that died.
    """
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listening.bind(os.fspath(path))
        path.chmod(0o600)
        listening.listen(_BACKLOG)
        listening.setblocking(False)
    except OSError as error:
        listening.close()
        raise StartError(f"cannot listen on the admin socket {path}: {error.strerror or error}") from None
    finally:
        os.umask(before)
    return listening


def _bound(host: str, port: int, *, shared: bool = False) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind(address)
    except OSError:
        made.close()
        raise
    return made


def _cannot(address: str, error: OSError) -> StartError:
    return StartError(f"cannot listen on {address}: {(error.strerror or str(error)).lower()}")
