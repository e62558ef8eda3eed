"""Quantiles of fine histograms, against numpy's of the values themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimtab.server.pacing import tails_between
from trimtab.server.statistics import FINE_BOUNDS, fine_quantile

NS = st.lists(st.one_of(st.integers(0, 2**38), st.integers(0, 2000), st.just(2**37)), min_size=1, max_size=300)


def counted(values: list[int]) -> np.ndarray:
    places = np.searchsorted(FINE_BOUNDS, values, side="right") - 1
    return np.bincount(np.minimum(places, len(FINE_BOUNDS) - 2), minlength=len(FINE_BOUNDS) - 1).astype(np.uint64)


def test_bounds_ascend_by_some_three_per_cent_from_a_microsecond_on() -> None:
    ratios = FINE_BOUNDS[2:-1] / FINE_BOUNDS[1:-2]
    assert FINE_BOUNDS[1] == 1024
    assert ratios.min() > 1.0
    assert ratios.max() <= 1.0 + 1 / 32


@given(NS, st.sampled_from([0.01, 0.5, 0.99, 1.0]))
def test_a_quantile_is_in_the_bucket_of_the_value(values: list[int], share: float) -> None:
    found = fine_quantile(counted(values), share) * 1e9
    exact = sorted(values)[max(math.ceil(share * len(values) - 1e-9) - 1, 0)]
    place = min(int(np.searchsorted(FINE_BOUNDS, exact, side="right")) - 1, len(FINE_BOUNDS) - 2)
    assert FINE_BOUNDS[place] * (1 - 1e-9) <= found <= FINE_BOUNDS[place + 1] * (1 + 1e-9)


def test_of_nothing_there_is_no_quantile() -> None:
    assert math.isnan(fine_quantile(np.zeros(len(FINE_BOUNDS) - 1, np.uint64), 0.5))


def test_ten_per_cent_more_are_seen_as_ten_per_cent() -> None:
    rng = np.random.default_rng(0)
    values = rng.lognormal(11.0, 0.5, 100_000)
    ratio = fine_quantile(counted((values * 1.1).astype(int).tolist()), 0.99)
    ratio /= fine_quantile(counted(values.astype(int).tolist()), 0.99)
    assert ratio == pytest.approx(1.1, abs=0.005)


def test_what_was_answered_between_two_looks() -> None:
    old, new = counted([10**6] * 5), counted([10**6] * 5 + [2 * 10**6] * 3)
    before = {"a": old.tobytes(), "gone": old.tobytes(), "restarted": new.tobytes(), "idle": old.tobytes()}
    after = {"a": new.tobytes(), "came": new.tobytes(), "restarted": old.tobytes(), "idle": old.tobytes()}
    found = tails_between(before, after)
    assert found.keys() == {"a", "idle"}
    assert found["a"].requests == 3
    assert found["a"].p99 == pytest.approx(2e-3, rel=0.04)
    assert found["idle"].requests == 0
