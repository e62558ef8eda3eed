"""Request ids: UUIDs of version 7 (RFC 9562), so that an id's own bytes say when its request came.

48 bits of milliseconds, 12 bits of fractions of one (RFC 9562 §6.2, method 3), 62 random bits. Within a process the
first 60 bits grow strictly, whatever the clock does; sorting ids sorts requests by arrival. No index from id to capture
segment is needed: the time in the id finds it.
"""

from __future__ import annotations

import os
import re
import threading
import time
import uuid

from trimtab.store.errors import InvalidId

__all__ = ["format_id", "id_time_us", "new_request_id", "parse_id"]

_TEXT = re.compile(r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-7[0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}")
_RANDOM = (1 << 62) - 1

_lock = threading.Lock()
_last = 0


def new_request_id() -> bytes:
    """A new id, 16 bytes; larger (as bytes) than every id that this process made before. Thread-safe."""
    global _last
    # Milliseconds in 4096ths: integer arithmetic, since a float has too few bits for today's nanoseconds.
    ticks = time.time_ns() * 4096 // 1_000_000
    with _lock:
        ticks = _last = max(ticks, _last + 1)
    low = int.from_bytes(os.urandom(8), "big") & _RANDOM
    value = (ticks >> 12) << 80 | 0x7 << 76 | (ticks & 0xFFF) << 64 | 0b10 << 62 | low
    return value.to_bytes(16, "big")


def format_id(request_id: bytes) -> str:
    """The id as text, such as `0198f5a2-7b3c-7def-8123-456789abcdef`."""
    return str(uuid.UUID(bytes=request_id))


def parse_id(text: str) -> bytes:
    """The 16 bytes of an id given as text. Raises InvalidId for anything but a UUID of version 7."""
    if _TEXT.fullmatch(text) is None:
        shown = text if len(text) <= 48 else text[:45] + "..."
        raise InvalidId(f"request id: expected a UUID of version 7 (trimtab_request_id of an answer), got {shown!r}")
    return bytes.fromhex(text.replace("-", ""))


def id_time_us(request_id: bytes) -> int:
    """When the id was made, in µs since the Unix epoch (UTC); to ~0.25 µs, rounded down."""
    value = int.from_bytes(request_id, "big")
    return (value >> 80) * 1000 + ((value >> 64 & 0xFFF) * 1000 >> 12)
