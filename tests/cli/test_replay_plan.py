"""Which labels are sent before which tick: against a plain loop over rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimtab.cli.errors import UsageError
from trimtab.cli.replay_plan import HOUR_US, NEVER, ROW_US, Span, label_delay_us, plan_ticks, tick_of

_TICK = 50


@given(
    st.lists(st.tuples(st.integers(0, 1000), st.one_of(st.integers(0, 400), st.none())), min_size=1, max_size=60),
    st.one_of(st.builds(Span, rows=st.integers(1, 70)), st.builds(Span, us=st.integers(1, 300))),
)
def test_plan_against_a_loop(rows: list[tuple[int, int | None]], tick: Span) -> None:
    rows = sorted(rows, key=lambda row: row[0])
    time_us = np.array([at for at, _ in rows], np.int64)
    known_us = np.array([NEVER if late is None else at + late for at, late in rows], np.int64)
    plan = plan_ticks(time_us, known_us, tick)

    groups: list[tuple[int, list[int]]] = []
    for row, at in enumerate(time_us.tolist()):
        if tick.rows:
            if row % tick.rows == 0:
                groups.append((at, []))
        elif not groups or groups[-1][0] != at // tick.us * tick.us:
            groups.append((at // tick.us * tick.us, []))
        groups[-1][1].append(row)
    assert plan.times.tolist() == [at for at, _ in groups]
    assert [list(range(*plan.rows_of(i))) for i in range(len(plan))] == [members for _, members in groups]

    sent: set[int] = set()
    for index, (at, _) in enumerate(groups):
        due = {row for row in range(len(rows)) if known_us[row] < at} - sent
        assert set(plan.labels_before(index).tolist()) == due
        sent |= due
    sent |= set(plan.labels_before(len(plan)).tolist())
    assert sent == {row for row in range(len(rows)) if known_us[row] != NEVER}
    assert plan.end_us > max(time_us.max(), known_us[known_us != NEVER].max(initial=0))


def test_label_due_at_the_tick_itself_is_not_known_to_it() -> None:
    time_us = np.array([0, 2 * _TICK], np.int64)
    plan = plan_ticks(time_us, np.array([2 * _TICK, 3 * _TICK], np.int64), Span(us=_TICK))
    assert plan.labels_before(1).tolist() == []
    assert plan.labels_before(2).tolist() == [0, 1]


def test_empty_ticks_are_left_out_and_their_labels_sent_before_the_next() -> None:
    time_us = np.array([0, 100 * _TICK], np.int64)
    plan = plan_ticks(time_us, time_us + 1, Span(us=_TICK))
    assert len(plan) == 2
    assert plan.labels_before(1).tolist() == [0]


def test_delay_in_rows_counts_rows() -> None:
    time_us = np.array([0, 10, 11, 40], np.int64)
    assert label_delay_us(time_us, Span(rows=2)).tolist() == [11, 40, 41, 41]
    assert label_delay_us(time_us, Span(us=7)).tolist() == [7, 17, 18, 47]
    assert label_delay_us(time_us, Span(rows=9)).tolist() == [41] * 4


def test_span_of_rows_or_duration() -> None:
    assert Span.parse("500", "--tick") == Span(rows=500)
    assert Span.parse("6h", "--tick") == Span(us=6 * HOUR_US)
    with pytest.raises(UsageError, match=r"--tick: expected a number of rows.*got 'soon'"):
        Span.parse("soon", "--tick")


def test_default_tick() -> None:
    assert tick_of(None, timed=True, delay=Span(rows=5)) == Span(us=HOUR_US)
    assert tick_of(None, timed=False, delay=None) == Span(rows=64)
    assert tick_of(None, timed=False, delay=Span(rows=20)) == Span(rows=20)
    assert tick_of(None, timed=False, delay=Span(us=500 * ROW_US)) == Span(rows=64)
    assert tick_of(Span(us=5), timed=False, delay=None) == Span(us=5)


def test_tick_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="more than nothing"):
        plan_ticks(np.zeros(1, np.int64), np.zeros(1, np.int64), Span())
