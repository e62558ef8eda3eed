"""Windows of data time: which rows they have, when they close, and that no row is counted twice or not at all."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trimtab._native import Schema, Slab
from trimtab.kernels.sketch import Sketch
from trimtab.kernels.sketch_spec import RealField, SketchSpec
from trimtab.server import keeping
from trimtab.server.data_time import WindowGrid
from trimtab.server.keeping import ClosedWindow, Keeper, OpenWindow

HOUR = 3_600_000_000
LARGEST = (1 << 63) - 1


def spec(edge: float) -> SketchSpec:
    return SketchSpec((RealField("x", (edge,), -1e9, 1e9),), (0.5,))


class Version:
    """Counts rows as a loaded version does; a row's value is its prediction."""

    def __init__(self, edge: float = 0.5) -> None:
        self.number = 1
        self.program = SimpleNamespace(sketch=spec(edge))

    def settle(self) -> None:
        """What it counts is in the sketch at once."""

    def count(self, _slab: object, predictions: Any, sketch: Sketch, start: int, stop: int) -> None:
        assert len(predictions) == stop - start
        sketch.counts[0] += stop - start
        sketch.add_predictions(predictions)


class Rig:
    """A keeper, fed batches as an engine feeds it."""

    def __init__(self, length: int = HOUR, lockstep: bool = True, opened: OpenWindow | None = None) -> None:
        self.closed: list[ClosedWindow] = []
        self.opened: list[OpenWindow] = []
        schema = Schema(["x"], ["real"])
        self.keeper = Keeper(
            schema,
            10,
            None,
            self.closed.append,
            window_us=length,
            lockstep=lockstep,
            on_open=self.opened.append,
            opened=opened,
        )
        self._slab = Slab(schema)

    def batch(self, version: Any, requests: list[tuple[int, int]], value: float = 0.25) -> None:
        """Requests are (rows, data time)."""
        counts = np.array([rows for rows, _ in requests], np.int32)
        times = np.array([at for _, at in requests], np.int64)
        rows = int(counts.sum())
        predictions = np.full((rows, 1), value, np.float32)
        sketch = self.keeper.sketch(version, version, rows, times)
        if sketch is not None:
            version.count(None, predictions, sketch, 0, rows)
        self.keeper.recent = self._slab
        self.keeper._until_recent = 2
        self.keeper.keep(self._slab, np.zeros((len(counts), 16), np.uint8), counts, times, version, predictions, sketch)

    @property
    def spans(self) -> list[tuple[int, int, int]]:
        """(start and end in hours, rows) of the closed windows."""
        return [(one.start_us // HOUR, one.end_us // HOUR, one.sketch.rows) for one in self.closed]


def test_windows_begin_on_the_hour_whatever_the_first_row() -> None:
    rig, version = Rig(), Version()
    rig.batch(version, [(3, 10 * HOUR + 5), (2, 11 * HOUR - 1)])
    rig.batch(version, [(1, 11 * HOUR)])
    assert rig.spans == [(10, 11, 5)]


def test_weeks_begin_on_mondays() -> None:
    week = 7 * 24 * HOUR
    grid = WindowGrid(week)
    monday = 1_700_438_400_000_000  # 2023-11-20
    assert grid.place(np.array([monday, monday + week - 1])).tolist() == [monday, monday]


def test_a_batch_that_straddles_is_cut_exactly_whatever_the_order_of_its_requests() -> None:
    rig, version = Rig(), Version()
    rig.batch(version, [(1, HOUR), (2, 2 * HOUR), (4, 2 * HOUR - 1), (8, 3 * HOUR), (16, 2 * HOUR + 1)])
    assert rig.spans == [(1, 2, 5), (2, 3, 18)]
    assert rig.keeper.late_rows == 0
    rig.keeper.suspend()
    assert [one.sketch.rows for one in rig.opened] == [8]


def test_late_rows_are_counted_in_the_open_window() -> None:
    rig, version = Rig(), Version()
    rig.batch(version, [(1, 5 * HOUR)])
    rig.batch(version, [(2, HOUR)])
    rig.batch(version, [(4, HOUR), (8, 6 * HOUR)])
    rig.batch(version, [(1, 7 * HOUR)])
    assert rig.spans == [(5, 6, 7), (6, 7, 8)]
    assert rig.keeper.late_rows == 6


def test_a_time_without_rows_makes_no_window() -> None:
    rig, version = Rig(), Version()
    rig.batch(version, [(1, HOUR)])
    rig.batch(version, [(1, 1000 * HOUR)])
    rig.batch(version, [(1, 1001 * HOUR)])
    assert rig.spans == [(1, 2, 1), (1000, 1001, 1)]


def test_advancing_closes_what_has_ended_and_nothing_else() -> None:
    rig, version = Rig(), Version()
    live: Any = version
    rig.keeper.close_until(HOUR, live)
    rig.batch(version, [(2, HOUR + 1)])
    rig.keeper.close_until(2 * HOUR - 1, live)
    assert rig.spans == []
    rig.keeper.close_until(2 * HOUR, live)
    assert rig.spans == [(1, 2, 2)]
    rig.keeper.close_until(2 * HOUR, live)
    # What was closed does not open again: a late row waits for what may.
    rig.keeper.close_until(4 * HOUR + 1, live)
    rig.batch(version, [(3, HOUR)])
    rig.batch(version, [(1, 5 * HOUR)])
    assert rig.spans == [(1, 2, 2), (4, 5, 3)]
    assert rig.keeper.late_rows == 3


def test_other_columns_end_a_window_early_and_the_next_has_its_rest() -> None:
    rig, one, two = Rig(), Version(), Version(0.75)
    rig.batch(one, [(5, HOUR)])
    rig.batch(two, [(3, HOUR + 1)])
    rig.batch(two, [(1, 2 * HOUR)])
    assert rig.spans == [(1, 2, 5), (1, 2, 3)]
    assert [window.version for window in rig.closed] == [one, two]


def test_the_next_server_goes_on_with_the_open_window() -> None:
    rig, version = Rig(), Version()
    rig.batch(version, [(5, HOUR)])
    rig.keeper.suspend()
    (left,) = rig.opened
    again = Rig(opened=left)
    again.batch(version, [(2, HOUR + 7), (1, 2 * HOUR)])
    assert again.spans == [(1, 2, 7)]


@pytest.mark.parametrize(("edge", "spans"), [(0.5, [(1, 2, 5)]), (0.75, [])])
def test_an_open_window_of_before_closes_where_it_may_be_compared(
    edge: float, spans: list[tuple[int, int, int]], caplog: pytest.LogCaptureFixture
) -> None:
    rig = Rig()
    rig.batch(Version(), [(5, HOUR)])
    rig.keeper.suspend()
    again = Rig(opened=rig.opened[0])
    live: Any = Version(edge)
    again.keeper.close_until(2 * HOUR, live)
    assert again.spans == spans
    assert bool(caplog.records) == (not spans)


def test_the_open_window_is_saved_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(keeping, "time", clock)
    rig, version = Rig(), Version()
    for second in range(0, 100, 10):
        clock.now = float(second)
        rig.batch(version, [(1, HOUR)])
    assert [one.sketch.rows for one in rig.opened] == [4, 7, 10]


def test_a_time_ahead_of_the_clock_counts_as_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "now_us", lambda: 5 * HOUR + 1)
    rig, version = Rig(lockstep=False), Version()
    rig.batch(version, [(1, LARGEST), (1, 10_000 * HOUR), (1, 4 * HOUR)])
    assert rig.spans == [(4, 5, 1)]
    rig.batch(version, [(1, 5 * HOUR)])
    rig.keeper.suspend()
    assert [(one.start_us // HOUR, one.sketch.rows) for one in rig.opened] == [(5, 3)]


@pytest.mark.parametrize("at", [LARGEST, -LARGEST - 1, 0])
@pytest.mark.parametrize("length", [1_000_000, HOUR, 1 << 61])
def test_times_at_the_ends_of_the_range_overflow_nothing(at: int, length: int) -> None:
    rig, version = Rig(length), Version()
    rig.batch(version, [(1, at)])
    rig.batch(version, [(1, LARGEST), (1, -LARGEST - 1)])
    rig.keeper.close_until(LARGEST, version)  # type: ignore[arg-type]
    rig.keeper.suspend()
    found = [*rig.closed, *rig.opened]
    assert sum(one.sketch.rows for one in found) == 3
    assert all(one.end_us - one.start_us == length for one in found)


requests = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 8 * HOUR)), min_size=1, max_size=8)
steps = st.lists(st.one_of(requests, st.integers(0, 8 * HOUR)), max_size=25)


@settings(deadline=None)
@given(steps, st.sampled_from([HOUR // 7, HOUR, 3 * HOUR]))
def test_all_windows_together_are_one_sketch_of_all_rows(script: list[Any], length: int) -> None:
    rig, version = Rig(length), Version()
    everything = Sketch(version.program.sketch)
    wanted: Counter[int] = Counter()
    begun, monday = -(10**18), 4 * 24 * HOUR
    value = 0.0
    for step in script:
        if isinstance(step, int):
            rig.keeper.close_until(step, version)  # type: ignore[arg-type]
            begun = max(begun, step - (step - monday) % length)
            continue
        value = (value + 0.37) % 1.0
        rig.batch(version, step, value)
        for rows, at in step:
            version.count(None, np.full((rows, 1), value, np.float32), everything, 0, rows)
            wanted[max(at - (at - monday) % length, begun)] += rows
        begun = max(begun, *(at - (at - monday) % length for _, at in step))
    rig.keeper.suspend()
    total = Sketch(version.program.sketch)
    found: Counter[int] = Counter()
    for one in [*rig.closed, *rig.opened]:
        total.merge(one.sketch)
        found[one.start_us] += one.sketch.rows
        assert one.end_us == one.start_us + length
    assert found == wanted
    np.testing.assert_array_equal(total.counts, everything.counts)
    np.testing.assert_allclose(total.moments, everything.moments)
    starts = [one.start_us for one in rig.closed]
    assert starts == sorted(set(starts))


def test_windows_of_rows_are_as_before(tmp_path: Path) -> None:
    closed: list[ClosedWindow] = []
    keeper = Keeper(Schema(["x"], ["real"]), 10, None, closed.append)
    version: Any = Version()
    slab = Slab(Schema(["x"], ["real"]))
    slab.append_columns([np.zeros(4, np.float32)])
    for number in range(6):
        times = np.array([number * HOUR], np.int64)
        sketch = keeper.sketch(version, version, 4, times)
        assert sketch is not None
        sketch.counts[0] += 4
        keeper._until_recent, predictions = 2, np.zeros((4, 1), np.float32)
        ids, counts = np.zeros((1, 16), np.uint8), np.array([4], np.int32)
        keeper.keep(slab, ids, counts, times, version, predictions, sketch)
    keeper.close_until(LARGEST, version)
    keeper.suspend()
    assert [(one.sketch.rows, one.start_us, one.end_us) for one in closed] == [
        (12, 0, 2 * HOUR),
        (12, 3 * HOUR, 5 * HOUR),
    ]
