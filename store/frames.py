"""The open segment: frames that say how long they are and what their CRC is, so that a torn tail is told from data.

    file   = magic, frame (the Arrow schema message), frame (a record batch message)... frame  = uint32 length, uint32
    crc, payload[length]      little-endian; crc = CRC-32C of the four length bytes and the payload

Private to the one process that writes it. A crash can tear the last frame; a bad disk or a lying cache can zero or
flip bytes anywhere. Reading keeps every frame before the first bad one and says what is wrong with that. An Arrow
stream alone would not do: with zeroed or flipped bytes it reads back as clean data.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from trimtab._native import crc32c
from trimtab.store.files import os_errors, write_all

__all__ = ["FrameFile", "Recovered", "recover"]

_MAGIC = b"TRIMTAB\x01"
_HEADER = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class Recovered:
    """What could be read of an open segment."""

    batches: list[pa.RecordBatch]
    damage: str
    """What is wrong with the first bad frame, and how many bytes are lost with it; empty: nothing is."""


class FrameFile:
    """An open segment being written, at `path`, which must not exist. One thread."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        """Writes the magic and the schema. Raises StoreError, and leaves no file then."""
        self.path = path
        self.size = 0
        with os_errors("write", path):
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            self._write(_MAGIC, *_frame(schema.serialize()))
        except BaseException:
            self.remove()
            raise

    def append(self, batch: pa.RecordBatch) -> None:
        """Writes one frame and makes it last. Raises StoreError; the file is as it was before then."""
        self._write(*_frame(batch.serialize()))

    def close(self) -> None:
        """Leaves the file as it is."""
        os.close(self._descriptor)

    def remove(self) -> None:
        """Closes and deletes the file: its rows are sealed."""
        self.close()
        with os_errors("remove", self.path):
            self.path.unlink()

    def _write(self, *parts: bytes | memoryview) -> None:
        with os_errors("write", self.path):
            try:
                for data in parts:
                    write_all(self._descriptor, data)
                os.fdatasync(self._descriptor)
            except OSError:
                os.ftruncate(self._descriptor, self.size)
                os.lseek(self._descriptor, self.size, os.SEEK_SET)
                raise
        self.size += sum(map(len, parts))


def recover(data: bytes) -> Recovered:
    """The whole frames of an open segment's bytes, up to the first bad one. Raises nothing, whatever the bytes are."""
    batches: list[pa.RecordBatch] = []
    schema: pa.Schema | None = None
    offset = len(_MAGIC)
    if not data.startswith(_MAGIC):
        # A crash between creating the file and writing to it is no damage.
        return Recovered([], _damage("no magic", 0, data) if data else "")
    while offset < len(data):
        payload, wrong = _payload(data, offset)
        if payload is None:
            return Recovered(batches, _damage(wrong, offset, data))
        try:
            message = pa.py_buffer(payload)
            if schema is None:
                schema = pa.ipc.read_schema(message)
            else:
                batch = pa.ipc.read_record_batch(message, schema)
                batch.validate(full=True)
                batches.append(batch)
        except (pa.ArrowException, OSError, ValueError) as error:
            return Recovered(batches, _damage(f"not an Arrow message ({error})", offset, data))
        offset += _HEADER.size + len(payload)
    return Recovered(batches, "")


def _frame(payload: pa.Buffer) -> tuple[bytes, memoryview]:
    body = memoryview(payload)
    length = len(body).to_bytes(4, "little")
    return length + crc32c(body, crc32c(length)).to_bytes(4, "little"), body


def _payload(data: bytes, offset: int) -> tuple[bytes | None, str]:
    """The payload of the frame at `offset`, or None and why not."""
    if offset + _HEADER.size > len(data):
        return None, "torn frame header"
    length, crc = _HEADER.unpack_from(data, offset)
    start = offset + _HEADER.size
    if length == 0:
        return None, "empty frame (zeroed bytes)"
    if start + length > len(data):
        return None, "torn frame"
    payload = data[start : start + length]
    if crc32c(payload, crc32c(data[offset : offset + 4])) != crc:
        return None, "CRC mismatch"
    return payload, ""


def _damage(wrong: str, offset: int, data: bytes) -> str:
    return f"{' '.join(wrong.split())} at byte {offset}; {len(data) - offset} bytes lost"
