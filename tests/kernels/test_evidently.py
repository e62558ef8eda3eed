"""Evidently's arithmetic against scipy, whose functions that package calls, and at the edges of its choices."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from trimtab.kernels.evidently import choose, judge_counts, judge_numbers

counts = st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 2000)), min_size=1, max_size=8).filter(
    lambda pairs: sum(a for a, _ in pairs) > 0 and sum(b for _, b in pairs) > 0
)


@pytest.mark.parametrize(
    ("numerical", "rows", "distinct", "test"),
    [
        (True, 1000, 6, "ks"),
        (True, 1001, 6, "wasserstein"),
        (True, 1000, 5, "chisquare"),
        (True, 1001, 5, "jensenshannon"),
        (True, 1000, 2, "z"),
        (False, 1000, 3, "chisquare"),
        (False, 1000, 2, "z"),
        (False, 1001, 2, "jensenshannon"),
        (False, 10, 50, "chisquare"),
    ],
)
def test_choice(numerical: bool, rows: int, distinct: int, test: str) -> None:
    assert choose(numerical, rows, distinct) == test


@given(counts)
def test_categories(pairs: list[tuple[int, int]]) -> None:
    a = {i: one for i, (one, other) in enumerate(pairs) if one}
    b = {i: other for i, (one, other) in enumerate(pairs) if other}
    verdict = judge_counts(a, b)
    assert verdict is not None
    present = [(one, other) for one, other in pairs if one or other]
    before, now = np.array(present, np.float64).T
    if verdict.test == "jensenshannon":
        expected = scipy.spatial.distance.jensenshannon(before, now)
    elif verdict.test == "chisquare":
        with np.errstate(all="ignore"):
            expected = scipy.stats.chisquare(now, before * now.sum() / before.sum()).pvalue
    elif len(present) == 1:
        expected = 1.0
    else:
        # The pooled z-test of two shares is Pearson's test of the table.
        expected = scipy.stats.chi2_contingency([before, now], correction=False).pvalue
    assert verdict.score == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_numbers() -> None:
    rng = np.random.default_rng(0)
    for rows in (500, 5000):
        a, b = rng.normal(size=rows), rng.normal(0.2, 1, rows // 2)
        verdict = judge_numbers(a, b)
        assert verdict is not None
        if rows == 500:
            assert (verdict.test, verdict.score) == ("ks", scipy.stats.ks_2samp(a, b).pvalue)
        else:
            assert verdict.test == "wasserstein"
            assert verdict.score == pytest.approx(scipy.stats.wasserstein_distance(a, b) / a.std())
            assert verdict.drifted
    same = judge_numbers(a, a)
    assert same is not None
    assert (same.score, same.drifted) == (0.0, False)


def test_empty_sides_have_no_verdict() -> None:
    nothing = np.zeros(0)
    assert judge_numbers(nothing, np.ones(3)) is None
    assert judge_numbers(np.ones(3), nothing) is None
    assert judge_counts({}, {"a": 1}) is None
    assert judge_counts({"a": 1}, {}) is None
