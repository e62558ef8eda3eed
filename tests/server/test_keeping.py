"""Which batches a drift window counts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimtab._native import Schema
from trimtab.kernels.sketch_spec import RealField, SketchSpec
from trimtab.server import keeping
from trimtab.server.keeping import Keeper

VERSION: Any = SimpleNamespace(program=SimpleNamespace(sketch=SketchSpec((RealField("x", (), 0.0, 1.0),))))


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
