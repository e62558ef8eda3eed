"""An HTTP/2 client made by hand, for what a well-behaved one would never send. Blocking sockets; no HPACK but literals.

It writes frames as told and reads frames as they come; it decodes no header blocks, so a test that asks for a status
asks a real gRPC client.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS, ACK = 1, 4, 1
ENHANCE_YOUR_CALM = 11


@dataclass(frozen=True)
class Frame:
    """A frame that the server sent."""

    kind: int
    flags: int
    stream: int
    payload: bytes


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame's bytes."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def literal(name: str, value: str) -> bytes:
    """A header field, literal without indexing."""
    return b"\x00" + _text(name) + _text(value)


def _text(text: str) -> bytes:
    data, size = text.encode(), len(text.encode())
    if size < 127:
        return bytes([size]) + data
    size, more = size - 127, [127]
    while size >= 128:
        more.append(size % 128 + 128)
        size //= 128
    return bytes([*more, size]) + data


def request(path: str, **more: str) -> bytes:
    """The header block of a gRPC call; names of `more` with _ for -."""
    fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "test", "te": "trailers"}
    fields |= {"content-type": "application/grpc"} | {name.replace("_", "-"): value for name, value in more.items()}
    return b"".join(literal(name, value) for name, value in fields.items())


def message(body: bytes, size: int | None = None) -> bytes:
    """A gRPC message, or the beginning of one that says it has `size` bytes."""
    return b"\x00" + struct.pack(">I", len(body) if size is None else size) + body


class RawClient:
    """A connection; its socket is there for whatever is not foreseen here."""

    def __init__(self, port: str, *, settings: bytes = b"", greet: bool = True, receive_buffer: int = 0) -> None:
        host, _, number = port.rpartition(":")
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(30)
        self.socket.connect((host, int(number)))
        self._bytes = b""
        if greet:
            self.socket.sendall(PREFACE + frame(SETTINGS, 0, 0, settings))

    def send(self, data: bytes) -> bool:
        """Whether it could be sent: not, if the server has closed."""
        try:
            self.socket.sendall(data)
        except (ConnectionError, TimeoutError):
            return False
        return True

    def frames(self) -> Iterator[Frame]:
        """What the server sends, until it closes the connection."""
        while True:
            while len(self._bytes) >= 9 and len(self._bytes) >= 9 + (size := int.from_bytes(self._bytes[:3], "big")):
                kind, flags = self._bytes[3], self._bytes[4]
                stream = int.from_bytes(self._bytes[5:9], "big")
                payload, self._bytes = self._bytes[9 : 9 + size], self._bytes[9 + size :]
                yield Frame(kind, flags, stream, payload)
            try:
                data = self.socket.recv(1 << 16)
            except ConnectionError:
                return
            if not data:
                return
            self._bytes += data

    def first(self, kind: int) -> Frame | None:
        """The next frame of a kind; None if the server closes before."""
        return next((each for each in self.frames() if each.kind == kind), None)

    def close(self) -> None:
        """Hangs up."""
        self.socket.close()
