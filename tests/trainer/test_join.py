"""The join, against an oracle that keeps everything and looks at all of it each time."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trimtab._native import Schema, Slab
from trimtab.kernels.slabs import slab_to_arrow
from trimtab.store.label_rows import StoredLabel
from trimtab.store.pending import arrow_schema
from trimtab.trainer.join import Joiner, JoinSettings, Matured, Maturity

SCHEMA = Schema(["x", "order"], ["real", "string"], 1)
COHORT, HORIZON = 10, 25


@dataclass(frozen=True)
class Row:
    """A captured row; `n` makes its request id and its feature."""

    n: int
    time: int
    key: str = ""
    row: int = 0
    version: int = 1
    inclusion: float = 1.0

    @property
    def id(self) -> bytes:
        return self.n.to_bytes(16, "big")

    @property
    def identity(self) -> tuple[bytes, int]:
        return self.id, self.row


def table(rows: Sequence[Row]) -> pa.Table:
    """As a sealed segment holds them."""
    columns: list[Sequence[Any]] = [
        [row.id for row in rows],
        [row.row for row in rows],
        [row.time for row in rows],
        [row.version for row in rows],
        [row.inclusion for row in rows],
        [float(row.n) for row in rows],
        [row.key for row in rows],
        [row.n / 1000 for row in rows],
    ]
    schema = arrow_schema(SCHEMA, 1)
    return pa.table(dict(zip(schema.names, columns, strict=True)), schema=schema)


def label(sequence: int, to: Row | str, observed: int, value: float | str = 1.0, **changes: object) -> StoredLabel:
    """To a row by its request id, or to a key."""
    fields: dict[str, object] = {
        "sequence": sequence,
        "revision": 1,
        "current": True,
        "request_id": to.id if isinstance(to, Row) else None,
        "row": to.row if isinstance(to, Row) else 0,
        "key": to if isinstance(to, str) else None,
        "output": "",
        "value": value,
        "weight": 1.0,
        "observed_at_us": observed,
        "received_at_us": 0,
        "source": "",
    }
    return StoredLabel(**(fields | changes))  # type: ignore[arg-type]


def joiner(*, negative: bool = False, keys: bool = False) -> Joiner:
    return Joiner(JoinSettings(COHORT, HORIZON, negative, ("order",) if keys else ()), SCHEMA, 1)


def numbers(matured: Matured) -> list[float]:
    """The rows' `n`, from their features."""
    return [float(value or 0.0) for value in slab_to_arrow(matured.slab)[0].to_pylist()]


Found = list[tuple[bytes, int, float | str | None, int]]


def found(parts: Sequence[Matured]) -> Found:
    """(request id, row, label, its sequence) of all rows, in order."""
    return [
        (part.ids[i].tobytes(), int(part.rows[i]), part.values[i], int(part.sequences[i]))
        for part in parts
        for i in range(len(part))
    ]


def advance(join: Joiner, now: int) -> Found:
    return found(join.advance(now)[0])


A, B, C = Row(1, 1), Row(2, 2), Row(3, 12)


# --- one case each


def test_cohort_waits_for_its_end_even_if_all_are_labelled() -> None:
    join = joiner()
    join.add_segment(table([A, B]), 1)
    join.add_labels([label(1, A, 3), label(2, B, 3)])
    assert advance(join, 9) == []
    assert advance(join, 10) == [(A.id, 0, 1.0, 1), (B.id, 0, 1.0, 2)]
    assert join.waiting == 0


def test_cohort_waits_for_95_percent() -> None:
    rows = [Row(n, 1) for n in range(20)]
    join = joiner()
    join.add_segment(table(rows), 1)
    join.add_labels([label(n + 1, rows[n], 3) for n in range(18)])
    assert advance(join, 20) == []
    join.add_labels([label(19, rows[18], 3)])
    assert len(advance(join, 20)) == 19
    assert (join.waiting, join.counts.expired) == (1, 0)


def test_what_is_unlabelled_then_is_carried_until_its_own_horizon() -> None:
    rows, later = [Row(n, 1) for n in range(60)], Row(100, 12)
    join = joiner()
    join.add_segment(table([*rows, later]), 1)
    join.add_labels([label(n + 1, rows[n], 3) for n in range(58)])
    assert len(advance(join, 20)) == 58
    join.add_labels([label(59, rows[58], 21)])
    assert advance(join, 21) == [], "the next cohort is not mature, and carried rows do not count towards it"
    join.add_labels([label(60, later, 21)])
    assert [row[0] for row in advance(join, 22)] == [rows[58].id, later.id]
    assert advance(join, 34) == []
    assert join.waiting == 1
    advance(join, 60)
    assert (join.waiting, join.counts.expired) == (0, 1)


def test_horizon_leaves_out_unlabelled_rows() -> None:
    join = joiner()
    join.add_segment(table([A, B]), 1)
    join.add_labels([label(1, B, 3)])
    assert advance(join, 34) == []
    assert advance(join, 35) == [(B.id, 0, 1.0, 1)]
    assert join.counts.expired == 1


def test_absent_label_is_a_negative_only_past_the_horizon() -> None:
    rows = [Row(n, 1) for n in range(40)]
    join = joiner(negative=True)
    join.add_segment(table(rows), 1)
    join.add_labels([label(n + 1, rows[n], 3) for n in range(39)])
    assert advance(join, 34) == [], "more than 95 % are labelled, but the last may still be positive"
    matured = advance(join, 35)
    assert len(matured) == 40
    assert matured[39] == (rows[39].id, 0, None, 0)
    assert join.counts.expired == 0


def test_cohorts_mature_in_turn() -> None:
    join = joiner()
    join.add_segment(table([A, B, C]), 1)
    join.add_labels([label(1, C, 13)])
    assert advance(join, 20) == [], "the older cohort is not mature"
    join.add_labels([label(2, A, 3), label(3, B, 3)])
    assert [row[0] for row in advance(join, 20)] == [A.id, B.id, C.id]


def test_rows_of_one_request_come_in_its_order() -> None:
    rows = [Row(7, 1, row=row) for row in (256, 1, 0, 65536, 255)]
    join = joiner()
    join.add_segment(table(rows), 1)
    join.add_labels([label(n + 1, row, 3) for n, row in enumerate(rows)])
    assert [row[1] for row in advance(join, 10)] == [0, 1, 255, 256, 65536]


def test_early_label_waits_for_its_row() -> None:
    join = joiner()
    join.add_labels([label(1, A, 3)])
    assert advance(join, 5) == []
    join.add_segment(table([A]), 1)
    assert advance(join, 10) == [(A.id, 0, 1.0, 1)]
    assert join.counts.matched == 1


def test_label_without_a_row_is_unknown_after_the_horizon() -> None:
    join = joiner(keys=True)
    join.add_labels([label(1, A, 3), label(2, "nobody", 3)])
    join.add_segment(table([Row(5, 40)]), 1)
    join.add_labels([label(3, Row(5, 40), 41)])
    assert len(advance(join, 60)) == 1
    assert join.counts.unknown == 2


def test_late_label_is_counted_and_changes_nothing() -> None:
    join = joiner(keys=True)
    join.add_segment(table([Row(1, 1, "k")]), 1)
    join.add_labels([label(1, A, 3)])
    assert len(advance(join, 10)) == 1
    join.add_labels([label(2, A, 11, 0.0), label(3, "k", 11)])
    assert advance(join, 100) == []
    assert join.counts.late == 2
    assert join.counts.superseded == 0


def test_newest_known_label_supersedes_in_any_order() -> None:
    join = joiner()
    join.add_segment(table([A, B]), 1)
    join.add_labels([label(1, A, 3, 1.0), label(2, A, 5, 2.0), label(3, B, 5, 2.0), label(4, B, 3, 1.0)])
    assert [row[2] for row in advance(join, 10)] == [2.0, 2.0]
    assert join.counts.superseded == 1
    assert join.counts.matched == 2


def test_conflict_at_one_time_keeps_the_first_whatever_was_current_when_read() -> None:
    for current in (True, False):
        join = joiner()
        join.add_segment(table([A]), 1)
        join.add_labels([label(1, A, 3, 1.0, current=current), label(2, A, 3, 0.0, current=False)])
        assert advance(join, 10) == [(A.id, 0, 1.0, 1)]


def test_straggler_joins_the_oldest_cohort_that_waits() -> None:
    join = joiner()
    join.add_segment(table([A, C]), 1)
    join.add_labels([label(1, A, 3), label(2, B, 3), label(3, C, 13)])
    assert len(advance(join, 10)) == 1
    join.add_segment(table([B]), 2)
    assert join.counts.stragglers == 1
    assert [row[0] for row in advance(join, 20)] == [B.id, C.id]


def test_same_row_in_two_segments_counts_once() -> None:
    join = joiner()
    join.add_segment(table([A]), 1)
    join.add_segment(table([A, B]), 2)
    join.add_labels([label(1, A, 3), label(2, B, 3)])
    assert [row[0] for row in advance(join, 10)] == [A.id, B.id]
    assert join.counts.rows == 2


def test_segment_out_of_sequence_is_an_error() -> None:
    join = joiner()
    join.add_segment(table([A]), 2)
    with pytest.raises(ValueError, match="segment 1 after segment 2"):
        join.add_segment(table([B]), 1)


def test_label_read_again_is_ignored() -> None:
    join = joiner()
    join.add_segment(table([A]), 1)
    join.add_labels([label(1, A, 3)])
    join.add_labels([label(1, A, 3)])
    assert join.counts.superseded == 0


def test_weight_is_the_labels_over_the_inclusion() -> None:
    join = joiner()
    join.add_segment(table([Row(1, 1, inclusion=0.25, version=3)]), 1)
    join.add_labels([label(1, A, 3, weight=2.0)])
    ((matured,), _) = join.advance(10)
    assert matured.weights.tolist() == [8.0]
    assert matured.versions.tolist() == [3]
    assert matured.time_us.tolist() == [1]
    assert matured.predictions.tolist() == [[pytest.approx(0.001)]]
    assert numbers(matured) == [1.0]


def test_key_means_the_newest_row_no_newer_than_the_label() -> None:
    first, second, third = Row(1, 1, "k"), Row(2, 4, "k"), Row(3, 8, "k")
    join = joiner(keys=True)
    join.add_segment(table([first, second, third]), 1)
    join.add_labels([label(1, "k", 5, 5.0), label(2, "k", 9, 9.0), label(3, "k", 0, 0.0)])
    assert [row[2] for row in advance(join, 35)] == [5.0, 9.0]


def test_row_that_comes_later_takes_a_keys_label_over() -> None:
    older, newer = Row(1, 1, "k"), Row(2, 4, "k")
    join = joiner(keys=True)
    join.add_segment(table([older]), 1)
    join.add_labels([label(1, "k", 5)])
    join.add_segment(table([newer]), 2)
    assert advance(join, 35) == [(newer.id, 0, 1.0, 1)]
    assert join.counts.matched == 1
    assert join.counts.expired == 1


def test_label_from_the_far_future_does_not_keep_others_from_being_forgotten() -> None:
    join = joiner()
    join.add_labels([label(1, Row(8, 1), (1 << 63) - 1), label(2, Row(9, 1), 1)])
    join.add_segment(table([Row(5, 40)]), 1)
    join.add_labels([label(3, Row(5, 40), 41)])
    assert len(advance(join, 60)) == 1
    assert join.counts.unknown == 1


# --- the oracle


@dataclass(frozen=True)
class Tick:
    """What becomes known before one advance."""

    rows: tuple[Row, ...]
    labels: tuple[StoredLabel, ...]
    now: int


class Oracle:
    """Keeps everything, and works all out again at each advance."""

    def __init__(self, *, negative: bool) -> None:
        self.negative = negative
        self.rows: dict[tuple[bytes, int], Row] = {}
        self.cohort: dict[tuple[bytes, int], int] = {}
        self.labels: list[StoredLabel] = []
        self.forgotten: dict[int, tuple[bytes, int] | None] = {}
        """By sequence; the row that held the label then, and may go on doing so."""
        self.done: set[tuple[bytes, int]] = set()
        self.carried: set[tuple[bytes, int]] = set()
        self.matured_before = -1000

    def tick(self, tick: Tick) -> Found:
        for row in tick.rows:
            if row.identity not in self.rows:
                self.rows[row.identity] = row
                self.cohort[row.identity] = max(row.time // COHORT, self.matured_before)
        self.labels += tick.labels
        gave: Found = []
        before = self.matured_before
        held = self.holds()
        while waiting := [key for key in self.rows if key not in self.done]:
            oldest = min(self.cohort[key] for key in waiting)
            members = sorted(key for key in waiting if self.cohort[key] == oldest)
            end = (oldest + 1) * COHORT
            own = [key for key in members if key not in self.carried]
            labelled = sum(key in held for key in own)
            full = labelled == len(own) if self.negative else labelled >= 0.95 * len(own)
            if tick.now < end or not (full or tick.now >= end + HORIZON):
                break
            for key in members:
                ends = (self.rows[key].time // COHORT + 1) * COHORT + HORIZON
                if key in held:
                    gave.append((*key, held[key].value, held[key].sequence))
                elif self.negative:
                    gave.append((*key, None, 0))
                elif tick.now < ends:
                    self.carried.add(key)
                    self.cohort[key] = oldest + 1
                    continue
                self.done.add(key)
            self.matured_before = oldest + 1
        if self.matured_before != before:
            limit = tick.now - HORIZON - COHORT
            holders = {label.sequence: key for (key, _), label in self.best().items() if key not in self.done}
            for label in self.labels:
                if label.observed_at_us < limit:
                    self.forgotten.setdefault(label.sequence, holders.get(label.sequence))
        return gave

    def holds(self) -> dict[tuple[bytes, int], StoredLabel]:
        """The label that counts, of each row that has one."""
        best: dict[tuple[bytes, int], StoredLabel] = {}
        for (key, _), label in self.best().items():
            if key not in best or rank(label) > rank(best[key]):
                best[key] = label
        return best

    def best(self) -> dict[tuple[tuple[bytes, int], bool], StoredLabel]:
        """The newest label of each row by request id (False) and by key (True)."""
        best: dict[tuple[tuple[bytes, int], bool], StoredLabel] = {}
        for label in self.labels:
            keyed = label.request_id is None
            if label.request_id is not None:
                key = (label.request_id, label.row)
            else:
                of_key = [r for r in self.rows.values() if r.key == label.key and r.time <= label.observed_at_us]
                if not of_key:
                    continue
                key = max(of_key, key=lambda r: (r.time, r.identity)).identity
            if key not in self.rows or self.forgotten.get(label.sequence, key) != key:
                continue
            if (key, keyed) not in best or rank(label) > rank(best[key, keyed]):
                best[key, keyed] = label
        return best


def rank(label: StoredLabel) -> tuple[int, int]:
    return label.observed_at_us, -label.sequence


@st.composite
def streams(draw: st.DrawFn) -> list[Tick]:
    """Rows and labels in ticks: late, early, unknown, contradicting, by id and by key."""
    ticks = []
    known: list[Row] = []
    sequence, now = 0, 0
    for number in range(draw(st.integers(1, 8))):
        now += draw(st.integers(0, 15))
        rows = []
        for index in range(draw(st.integers(0, 6))):
            time = draw(st.integers(max(now - 40, 0), now))
            # Ids do not follow time.
            n = draw(st.integers(0, 9)) * 1000 + number * 10 + index
            rows.append(Row(n, time, key=draw(st.sampled_from("abc")), row=draw(st.integers(0, 1))))
        known += rows
        labels = []
        for _ in range(draw(st.integers(0, 8))):
            sequence += 1
            unknown = Row(99_000 + sequence, 0)
            places: list[Row | str] = [*known, "a", "b", "c", unknown]
            to = draw(st.sampled_from(places))
            observed = draw(st.integers(max(now - 40, 0), now + 2))
            labels.append(label(sequence, to, observed, float(draw(st.integers(0, 3)))))
        ticks.append(Tick(tuple(rows), tuple(labels), now))
    return [*ticks, Tick((), (), now + HORIZON + 2 * COHORT), Tick((), (), now + 2 * (HORIZON + 2 * COHORT))]


def play(join: Joiner, ticks: Sequence[Tick], shuffle: random.Random | None) -> tuple[list[Found], list[Maturity]]:
    """What matures at each tick, and the marks. `shuffle`: how a tick's rows are spread over segments, in which order
    they and the labels come."""
    parts, marks = [], []
    for tick in ticks:
        deal(join, tick.rows, tick.labels, shuffle)
        matured, new = join.advance(tick.now)
        parts.append(found(matured))
        marks += new
    return parts, marks


def deal(join: Joiner, rows: Sequence[Row], labels: Sequence[StoredLabel], shuffle: random.Random | None) -> None:
    rows, pieces = list(rows), 1
    if shuffle is not None:
        shuffle.shuffle(rows)
        pieces = shuffle.randint(1, 4)
    steps: list[Sequence[Row] | Sequence[StoredLabel]] = [rows[piece::pieces] for piece in range(pieces)]
    if shuffle is not None and labels:
        cut = shuffle.randint(0, len(labels))
        places = sorted(shuffle.choices(range(len(steps) + 1), k=2))
        steps[places[1] : places[1]] = [labels[cut:]]
        steps[places[0] : places[0]] = [labels[:cut]]
    else:
        steps.append(labels)
    for step in steps:
        if step and isinstance(step[0], Row):
            join.add_segment(table([row for row in step if isinstance(row, Row)]), join.segment_sequence + 1)
        else:
            join.add_labels([item for item in step if isinstance(item, StoredLabel)])


@settings(deadline=None, max_examples=150)
@given(streams(), st.booleans(), st.randoms(use_true_random=False))
def test_same_rows_and_labels_in_any_order_mature_as_the_oracle_says(
    ticks: list[Tick], negative: bool, shuffle: random.Random
) -> None:
    oracle = Oracle(negative=negative)
    expected = [oracle.tick(tick) for tick in ticks]
    in_order, marks = play(joiner(negative=negative, keys=True), ticks, None)
    assert in_order == expected
    join = joiner(negative=negative, keys=True)
    shuffled, others = play(join, ticks, shuffle)
    assert shuffled == expected
    assert [mark.cohort for mark in others] == [mark.cohort for mark in marks]
    assert join.waiting == 0
    counts = join.counts
    assert counts.rows == counts.matured + counts.expired


@settings(deadline=None, max_examples=150)
@given(streams(), st.booleans(), st.data())
def test_marks_restore_the_same_rows_and_go_on_the_same(ticks: list[Tick], negative: bool, data: st.DataObject) -> None:
    expected, _ = play(joiner(negative=negative, keys=True), ticks, None)
    cut = data.draw(st.integers(0, len(ticks)))
    before = joiner(negative=negative, keys=True)
    _, marks = play(before, ticks[:cut], None)
    restored = joiner(negative=negative, keys=True)
    segments = [(number + 1, rows) for number, rows in enumerate(tick.rows for tick in ticks[:cut] if tick.rows)]
    labels = [item for tick in ticks[:cut] for item in tick.labels]
    again: Found = []
    for mark in marks:
        for sequence, rows in segments:
            if restored.segment_sequence < sequence <= mark.segment_sequence:
                restored.add_segment(table(rows), sequence)
        restored.add_labels([item for item in labels if item.sequence <= mark.label_sequence])
        matured = restored.release(mark)
        assert matured is not None
        again += found([matured])
    assert again == [row for part in expected[:cut] for row in part]
    for sequence, rows in segments:
        if restored.segment_sequence < sequence:
            restored.add_segment(table(rows), sequence)
    restored.add_labels(labels)
    rest = [row for part in expected[cut:] for row in part]
    now = ticks[cut - 1].now if cut else 0
    assert advance(restored, now) == []
    gone_on, _ = play(restored, ticks[cut:], None)
    assert [row for part in gone_on for row in part] == rest


def test_release_of_rows_that_are_gone_is_none_and_keeps_the_order() -> None:
    join = joiner()
    assert join.release(Maturity(0, 0, 0)) is None
    join.add_segment(table([A, C]), 1)
    assert join.counts.stragglers == 1
    join.add_labels([label(1, A, 3), label(2, C, 13)])
    assert [row[0] for row in advance(join, 20)] == [A.id, C.id]


def test_slab_holds_the_rows_in_canonical_order() -> None:
    rows = [Row(n, n % 10, row=n % 3) for n in (9, 4, 7, 1, 8, 2)]
    join = joiner()
    join.add_segment(table(rows[:3]), 1)
    join.add_segment(table(rows[3:]), 2)
    join.add_labels([label(n + 1, row, 9) for n, row in enumerate(rows)])
    ((matured,), _) = join.advance(10)
    assert isinstance(matured.slab, Slab)
    assert numbers(matured) == [1.0, 2.0, 4.0, 7.0, 8.0, 9.0]
    assert matured.predictions[:, 0].tolist() == [pytest.approx(n / 1000) for n in (1, 2, 4, 7, 8, 9)]
    assert np.array_equal(matured.rows, [1, 2, 1, 1, 2, 0])
