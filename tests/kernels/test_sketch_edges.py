"""Edges of histograms: where the ranks say, fine in the tails, and right for columns that are small, even or odd."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from trimtab.kernels.divergences import chi_square, pool, psi
from trimtab.kernels.sketch_edges import EDGE_RANKS, number_field
from trimtab.kernels.summaries import Sample, row_priorities


def sample_of(values: NDArray[np.float32]) -> Sample:
    sample = Sample()
    sample.add(values, row_priorities(0, len(values)))
    return sample


def test_ranks_are_symmetric_and_few_enough_for_the_executor() -> None:
    assert list(EDGE_RANKS) == sorted(set(EDGE_RANKS))
    assert [1000 - rank for rank in reversed(EDGE_RANKS)] == list(EDGE_RANKS)
    assert len(EDGE_RANKS) <= 31
    assert max(np.diff(EDGE_RANKS)) <= 48


@settings(deadline=None)
@given(st.lists(st.floats(width=32), max_size=300))
def test_edges_are_quantiles(values: list[float]) -> None:
    raw = np.asarray(values, np.float32)
    field = number_field("x", sample_of(raw))
    known = np.sort(raw[np.isfinite(raw)]).astype(np.float64) + 0.0
    if not len(known):
        assert (field.edges, field.low, field.high) == ((), 0.0, 0.0)
        return
    shares = np.asarray(EDGE_RANKS) / 1000
    # A share times a number of values is not always what it is in the decimal system: or the next place then.
    near = {
        float(np.quantile(known, min(max(share + error, 0.0), 1.0), method="inverted_cdf"))
        for share in shares
        for error in (-1e-9, 0.0, 1e-9)
    }
    above = [edge for edge in field.edges if edge > known[-1]]
    assert set(field.edges) - set(above) <= near
    if above:  # one, with nothing between it and the largest value, which is an edge, too
        assert above == [float(np.nextafter(np.float32(known[-1]), np.float32(np.inf)))]
        assert known[-1] in field.edges
    assert field.edges == tuple(sorted(field.edges))
    assert (field.low, field.high) == (known[0], known[-1])


def test_a_shift_of_the_tails_alone_is_seen() -> None:
    rng = np.random.default_rng(5)
    field = number_field("x", sample_of(rng.standard_normal(50_000).astype(np.float32)))
    found = 0
    for _ in range(200):
        before, now = rng.standard_normal(20_000), rng.standard_normal(1000)
        spread = rng.random(1000) < 0.05
        now[spread] *= 2.54
        counts = [np.bincount(np.searchsorted(field.edges, x, side="right"), minlength=31) for x in (before, now)]
        found += chi_square(*pool(*(one.astype(np.float64) for one in counts), ordered=True))[2] <= 0.01
    assert found > 30  # evenly spaced edges find 1 in 40


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (np.zeros(500), np.full(500, 1e6)),
        (np.full(500, 1000.0), np.full(500, 1001.0)),
        (np.full(500, -1000.0), np.full(500, -1001.0)),
        (np.arange(500) % 2, np.arange(500) % 2 * 1000),
        (np.arange(500) % 5 + 1, np.where(np.arange(500) % 5 == 4, 500, np.arange(500) % 5 + 1)),
        (np.minimum(np.linspace(0, 1.6, 500), 1.0), np.linspace(0, 1.6, 500)),
    ],
    ids=["constant", "constant, up", "constant, down", "flag", "grade", "saturated"],
)
def test_what_lies_beyond_the_most_frequent_extreme_is_seen(before: NDArray[Any], after: NDArray[Any]) -> None:
    field = number_field("x", sample_of(before.astype(np.float32)))
    assert len(field.edges) <= 31
    edges = np.asarray(field.edges, np.float32)
    a, b = (
        np.bincount(np.searchsorted(edges, side.astype(np.float32), side="right"), minlength=field.buckets)
        for side in (before, after)
    )
    assert chi_square(*pool(a.astype(float), b.astype(float), ordered=True))[2] < 1e-6
    assert psi(*pool(a.astype(float), b.astype(float), ordered=True, seen=True))[0] > 0.1


def test_the_largest_float_has_nothing_above_it() -> None:
    largest = np.finfo(np.float32).max
    assert number_field("x", sample_of(np.full(9, largest, np.float32))).edges == (float(largest),)
