"""What one column says: AUC against counting all pairs, and no credit for a value of its own in each row."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimtab.cli.strength import Coder, auc, strength


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=8).filter(
        lambda groups: sum(g[1] for g in groups) > 0 and sum(g[2] for g in groups) > 0
    )
)
def test_auc_is_the_share_of_pairs_in_order(groups: list[tuple[int, int, int]]) -> None:
    ups = [score for score, up, _ in groups for _ in range(up)]
    downs = [score for score, _, down in groups for _ in range(down)]
    pairs = [1.0 if u > d else 0.5 if u == d else 0.0 for u in ups for d in downs]
    scores, up, down = (np.array(column, dtype=float) for column in zip(*groups, strict=True))
    assert auc(scores, up, down) == pytest.approx(np.mean(pairs))


def alone(values: Any, labels: Any, task: str = "binary") -> float:
    array = pa.array(values)
    coder = Coder.of(array, 128)
    return strength(coder.codes(array), coder.size, np.asarray(labels, dtype=float), task)


def test_columns_that_say_everything_nothing_and_something() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random(4000) < 0.3).astype(float)
    assert alone(labels + rng.normal(size=4000) * 0.01, labels) > 0.99
    assert alone(np.where(labels == 1, "x", "y"), labels) > 0.99
    # Not monotone: the ends are one class, the middle is the other.
    assert alone(np.where(labels == 1, 0.0, rng.choice([-1, 1], 4000)) + rng.normal(size=4000) * 0.1, labels) > 0.99
    assert abs(alone(rng.normal(size=4000), labels) - 0.5) < 0.05
    assert abs(alone([f"id{i}" for i in range(4000)], labels) - 0.5) < 0.02
    assert alone([None if label else 1.5 for label in labels], labels) > 0.99
    three = rng.integers(0, 3, 4000)
    assert alone(three, three, "multiclass") > 0.99
    assert alone(three * 2.0 + rng.normal(size=4000) * 0.001, three * 1.5, "regression") > 0.99
    assert alone(rng.normal(size=4000), three, "regression") < 0.05


def test_too_few_rows_of_a_class_say_nothing() -> None:
    assert math.isnan(alone([1.0, 2.0] * 20, [0, 1] * 20))
    assert math.isnan(alone([1.0, 2.0], [0.0, 1.0], "regression"))
    assert math.isnan(alone([1.0, 2.0], [math.nan, 1.0]))


def test_codes() -> None:
    coder = Coder.of(pa.array(["a", "a", "b", None, "c", "c", "c"]), 2)
    assert coder.codes(pa.array(["c", "a", "b", "new", None])).tolist() == [0, 1, 2, 2, 3]
    numbers = Coder.of(pa.array([1.0, 2.0, 3.0, None]), 10)
    assert numbers.codes(pa.array([0.0, 1.0, 1.5, 3.0, 99.0, None, math.nan])).tolist() == [0, 0, 1, 2, 2, 3, 3]
    assert Coder.of(pa.array([True, False, None]), 10).size == 3
    assert Coder.of(pa.nulls(3, pa.int64()), 10).codes(pa.nulls(2, pa.int64())).tolist() == [1, 1]
