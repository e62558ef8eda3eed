"""Which batches a drift window counts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimtab._native import Schema
from trimtab.kernels.joint_spec import JointSpec
from trimtab.kernels.sketch import Sketch
from trimtab.kernels.sketch_spec import RealField, SketchSpec
from trimtab.server import keeping
from trimtab.server.keeping import Keeper

VERSION: Any = SimpleNamespace(
    program=SimpleNamespace(sketch=SketchSpec((RealField("x", (), 0.0, 1.0),))), settle=lambda: None
)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(keeping, "time", made)
    return made


def keeper_of(rows_per_second: int) -> Keeper:
    return Keeper(Schema(["x"], ["real"]), 10, None, lambda window: None, 1.0, rows_per_second)


def counted(keeper: Keeper, rows: int) -> bool:
    return keeper.sketch(VERSION, VERSION, rows) is not None


def test_all_rows_up_to_the_rate(clock: Clock) -> None:
    keeper = keeper_of(1000)
    for _ in range(100):
        clock.now += 0.1
        assert counted(keeper, 100)
    assert (keeper.sketched_rows, keeper.unsketched_rows) == (10_000, 0)


def test_whole_batches_are_left_out_beyond_it(clock: Clock) -> None:
    keeper = keeper_of(1000)
    for _ in range(1000):
        clock.now += 0.01
        counted(keeper, 300)
    assert keeper.sketched_rows + keeper.unsketched_rows == 300_000
    assert keeper.sketched_rows == pytest.approx(10 * 1000 + 1000, abs=600)
    assert keeper.sketched_rows % 300 == 0


def test_a_batch_may_be_larger_than_a_second_allows(clock: Clock) -> None:
    keeper = keeper_of(100)
    assert counted(keeper, 4096)
    clock.now += 39.0
    assert not counted(keeper, 1)
    clock.now += 2.0
    assert counted(keeper, 1)


def test_after_a_pause_a_second_is_saved_up_and_no_more(clock: Clock) -> None:
    keeper = keeper_of(1000)
    clock.now += 3600.0
    assert sum(counted(keeper, 100) for _ in range(100)) == 10


def test_without_a_rate_every_row_counts(clock: Clock) -> None:
    keeper = keeper_of(0)
    assert all(counted(keeper, 1_000_000) for _ in range(100))
    assert keeper.unsketched_rows == 0


def test_other_versions_count_nowhere() -> None:
    keeper = keeper_of(0)
    assert keeper.sketch(VERSION, object(), 5) is None
    assert (keeper.sketched_rows, keeper.unsketched_rows) == (0, 0)


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(1, 5000)), max_size=60), st.integers(1, 10_000))
def test_never_more_than_the_rate_and_one_batch(batches: list[tuple[float, int]], rate: int) -> None:
    made = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keeping, "time", made)
        keeper = keeper_of(rate)
        for pause, rows in batches:
            made.now += pause
            counted(keeper, rows)
    allowed = rate * (1 + sum(pause for pause, _ in batches))
    assert keeper.sketched_rows <= allowed + max((rows for _, rows in batches), default=0) + 1
    assert keeper.sketched_rows + keeper.unsketched_rows == sum(rows for _, rows in batches)


# --- rows that are summed up as a whole

SUMMED: Any = SketchSpec((RealField("x", (), 0.0, 1.0),), joint=JointSpec(((),), (0,)))


class Summing:
    """A version that remembers which rows were asked of it."""

    def __init__(self) -> None:
        self.number = 1
        self.program = SimpleNamespace(sketch=SUMMED)
        self.taken: list[list[int]] = []

    def settle(self) -> None:
        """What it counts is in the sketch at once."""

    def sum_jointly(self, _slab: object, taken: Any, sketch: Sketch) -> None:
        assert len(sketch.joint)
        self.taken.append(taken.tolist())


def summed(keeper: Keeper, version: Any, rows: int) -> list[int]:
    """Which rows of a batch are taken."""
    before = len(version.taken)
    sketch = keeper.sketch(version, version, rows)
    slab: Any = SimpleNamespace(rows=rows)
    keeper.recent = slab
    keeper._until_recent = 2
    times = np.zeros(1, np.int64)
    counts = np.full(1, rows, np.int32)
    keeper.keep(slab, np.zeros((1, 16), np.uint8), counts, times, version, np.zeros((rows, 1), np.float32), sketch)
    found = version.taken[before:]
    assert len(found) <= 1
    return found[0] if found else []


def summing(joint_rows: int | None) -> Keeper:
    return Keeper(Schema(["x"], ["real"]), 1 << 40, None, lambda window: None, 1.0, 0, joint_rows=joint_rows)


def test_a_quiet_model_is_summed_whole(clock: Clock) -> None:
    keeper, version = summing(2000), Summing()
    for rows in (1, 5, 300, 2):
        clock.now += 1.0
        assert summed(keeper, version, rows) == list(range(rows))


def test_of_a_busy_one_rows_are_taken_all_over_a_batch(clock: Clock) -> None:
    keeper, version = summing(1000), Summing()
    first = summed(keeper, version, 4096)
    assert len(first) == 1000
    assert first == [i * 4096 // 1000 for i in range(1000)]
    total, calls = len(first), 1
    for _ in range(10_000):
        clock.now += 0.001
        taken = summed(keeper, version, 512)
        total, calls = total + len(taken), calls + bool(taken)
        assert len(set(taken)) == len(taken)
        assert not taken or (taken[0] == 0 and len(taken) >= 64 and taken[-1] >= 448)
    assert total == pytest.approx(11_000, abs=100)
    assert calls < 200


def test_small_batches_are_looked_at_so_often_and_no_oftener(clock: Clock) -> None:
    keeper, version = summing(1_000_000), Summing()
    for _ in range(10_000):
        clock.now += 0.0001
        summed(keeper, version, 1)
    assert 400 <= len(version.taken) <= 501


def test_in_lockstep_all_rows_are_summed_and_none_where_it_is_off(clock: Clock) -> None:
    version = Summing()
    for _ in range(100):
        assert summed(summing(None), version, 50) == list(range(50))
    assert summed(summing(0), version, 50) == []


def test_a_sketch_without_a_joint_part_is_left_alone(clock: Clock) -> None:
    version: Any = Summing()
    version.program = VERSION.program
    assert summed(summing(None), version, 5) == []


def test_of_a_batch_over_several_windows_each_has_its_share(clock: Clock) -> None:
    closed: list[Any] = []
    keeper = Keeper(Schema(["x"], ["real"]), 10, None, closed.append, window_us=1000, lockstep=False, joint_rows=1000)
    version: Any = Summing()
    version.count = lambda slab, predictions, sketch, start, stop: None
    slab: Any = SimpleNamespace(rows=4000)
    keeper.recent = slab
    keeper._until_recent = 2
    times, counts = np.arange(4, dtype=np.int64) * 1000, np.full(4, 1000, np.int32)
    sketch = keeper.sketch(version, version, 4000, times)
    assert sketch is None
    ids, predictions = np.zeros((4, 16), np.uint8), np.zeros((4000, 1), np.float32)
    keeper.keep(slab, ids, counts, times, version, predictions, sketch)
    assert [(part[0], len(part)) for part in version.taken] == [(0, 250), (1000, 250), (2000, 250), (3000, 250)]
    assert all(part[-1] < 1000 * (i + 1) for i, part in enumerate(version.taken))


@pytest.mark.parametrize("window", [None, 1_000_000], ids=["rows", "data time"])
def test_who_counted_is_settled_before_a_window_is_looked_at(window: int | None, clock: Clock) -> None:
    """Also the version whose batch is the first of a window, and its only one."""
    settled: list[int] = []
    batches = 0
    version: Any = SimpleNamespace(program=VERSION.program, settle=lambda: settled.append(batches))
    keeper = Keeper(
        Schema(["x"], ["real"]), 1, None, lambda _: None, 0.0, 0, window_us=window, lockstep=window is not None
    )
    for batches in range(3):
        times = np.full(1, batches * 1_000_000, np.int64)
        sketch = keeper.sketch(version, version, 1, times)
        assert keeper.counts(version)
        slab: Any = SimpleNamespace(rows=1)
        keeper.recent, keeper._until_recent = slab, 2
        counts = np.ones(1, np.int32)
        keeper.keep(slab, np.zeros((1, 16), np.uint8), counts, times, version, np.zeros((1, 1), np.float32), sketch)
    # By rows a window closes with its batch, by data time before that of the next.
    assert settled == ([0, 1, 2] if window is None else [1, 2])
