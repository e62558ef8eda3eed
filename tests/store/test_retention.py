"""Retention against a slow oracle: delete the oldest segment while any budget is exceeded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimtab.store.retention import expired
from trimtab.store.segment import SegmentInfo
from trimtab.store.settings import CaptureSettings

MIB = 1 << 20


def segment(sequence: int, rows: int, size: int, last_us: int) -> SegmentInfo:
    return SegmentInfo(f"{sequence:012d}.arrow", rows, size, "", last_us - 1, last_us, bytes(16), bytes(16))


@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(1, MIB), st.integers(0, 1000)), max_size=30),
    st.integers(1, 500),
    st.integers(MIB, 8 * MIB),
    st.integers(1, 1000),
)
def test_the_oldest_go_until_all_budgets_hold(
    parts: list[tuple[int, int, int]], max_rows: int, max_bytes: int, max_age: int
) -> None:
    segments = [segment(i, rows, size, last) for i, (rows, size, last) in enumerate(parts)]
    policy = CaptureSettings.model_construct(max_rows=max_rows, max_bytes=max_bytes, max_age=max_age)
    rows, size = sum(s.rows for s in segments), sum(s.bytes for s in segments)
    newest = max((s.last_time_us for s in segments), default=0)
    left = list(segments)
    while left and (
        sum(s.rows for s in left) > max_rows
        or sum(s.bytes for s in left) > max_bytes
        or left[0].last_time_us < newest - max_age
    ):
        left.pop(0)
    gone = expired(segments, policy, rows=rows, size=size, newest_us=newest)
    assert gone == segments[: len(segments) - len(left)]


def test_the_open_segment_counts() -> None:
    segments = [segment(1, 10, 100, 0), segment(2, 10, 100, 0)]
    policy = CaptureSettings(max_rows=25)
    assert expired(segments, policy, rows=20, size=200, newest_us=0) == []
    assert expired(segments, policy, rows=26, size=200, newest_us=0) == segments[:1]


def test_it_stops_reading_at_the_first_that_stays() -> None:
    def endless() -> object:
        yield segment(1, 10, 100, 0)
        yield segment(2, 10, 100, 0)
        pytest.fail("read on")

    assert len(expired(endless(), CaptureSettings(max_rows=10), rows=20, size=0, newest_us=0)) == 1  # type: ignore[arg-type]
