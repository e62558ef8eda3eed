"""Which sealed segments go: a pure policy over whole segments, the oldest first."""

from __future__ import annotations

from collections.abc import Iterable

from trimtab.store.segment import SegmentInfo
from trimtab.store.settings import CaptureSettings

__all__ = ["expired"]


def expired(
    segments: Iterable[SegmentInfo], settings: CaptureSettings, *, rows: int, size: int, newest_us: int
) -> list[SegmentInfo]:
    """The segments to delete, of `segments` oldest first, so that rows, bytes and age are within their budgets.

    `rows` and `size` (bytes) are of all that is kept, the open segment included; `newest_us` is the newest row's data
    time, which ages are measured against: a replay of old data keeps it as live data would be kept. A segment goes by
    age once its newest row is too old. Stops at the first segment that may stay, so it reads no more of the list than
    it deletes.
    """
    gone = []
    for segment in segments:
        over = rows > settings.max_rows or size > settings.max_bytes
        if not over and segment.last_time_us >= newest_us - settings.max_age:
            break
        gone.append(segment)
        rows -= segment.rows
        size -= segment.bytes
    return gone
