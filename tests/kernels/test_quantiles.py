"""The quantile sketch against exact quantiles, and against itself in other orders."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from trimtab._native import count_quantiles
from trimtab.kernels.errors import SketchError
from trimtab.kernels.quantiles import ABSOLUTE_ERROR, RELATIVE_ERROR, QuantileSketch

MOST = float(np.finfo(np.float32).max)
TINY = float(np.finfo(np.float32).smallest_subnormal)
HOSTILE = [0.0, -0.0, TINY, -TINY, 1.1754944e-38, -1.1754944e-38, MOST, -MOST, np.inf, -np.inf, np.nan, 1.0, 0.99999994]
numbers = st.one_of(st.sampled_from(HOSTILE), st.floats(width=32))
SHARES = [0.0, 1e-9, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0]


def sketch_of(values: Any) -> QuantileSketch:
    sketch = QuantileSketch()
    sketch.add(np.asarray(values, np.float32))
    return sketch


def assert_near(found: list[float], exact: NDArray[np.float64]) -> None:
    for answer, true in zip(found, exact.tolist(), strict=True):
        assert answer == true or abs(answer - true) <= max(abs(true) * RELATIVE_ERROR, ABSOLUTE_ERROR)


@settings(max_examples=500, deadline=None)
@given(st.lists(numbers, min_size=1, max_size=60), st.lists(st.floats(0, 1), max_size=5))
def test_quantiles_are_within_the_bound(values: list[float], shares: list[float]) -> None:
    raw = np.asarray(values, np.float32)
    sketch = sketch_of(raw)
    known = np.sort(raw[~np.isnan(raw)]).astype(np.float64)
    assert (sketch.missing, sketch.known) == (len(raw) - len(known), len(known))
    asked = [*SHARES, *shares]
    found = sketch.quantiles(asked)
    if not len(known):
        assert np.isnan(found).all()
        return
    ranks = np.clip(np.ceil(np.asarray(asked) * len(known)).astype(int) - 1, 0, None)
    assert_near(found, known[ranks])
    assert found == sorted(found) or sorted(asked) != asked


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-20, 1.0, 1e20, 1e38])
def test_many_values_of_any_scale(scale: float) -> None:
    with np.errstate(over="ignore"):
        raw = (np.random.default_rng(0).standard_t(2, 100_000) * scale).astype(np.float32)
    exact = np.quantile(raw[np.isfinite(raw)].astype(np.float64), SHARES, method="inverted_cdf")
    assert_near(sketch_of(raw[np.isfinite(raw)]).quantiles(SHARES), exact)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(numbers, max_size=20), min_size=1, max_size=5), st.randoms())
def test_merging_in_any_order_gives_the_same_bits(parts: list[list[float]], random: Any) -> None:
    whole = sketch_of([value for part in parts for value in part])
    shuffled = list(parts)
    random.shuffle(shuffled)
    merged = QuantileSketch()
    for part in shuffled:
        merged.merge(sketch_of(part))
    assert merged == whole
    assert merged.to_bytes() == whole.to_bytes()


def test_every_nan_is_missing() -> None:
    bits = np.asarray([0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF, 0x7F800000, 0xFF800000], np.uint32)
    sketch = sketch_of(bits.view(np.float32))
    assert (sketch.missing, sketch.known) == (5, 2)
    assert sketch.quantiles([0.0, 1.0]) == [-np.inf, np.inf]


@settings(max_examples=100, deadline=None)
@given(st.lists(numbers, max_size=50))
def test_bytes_round_trip(values: list[float]) -> None:
    sketch = sketch_of(values)
    assert QuantileSketch.from_bytes(sketch.to_bytes()) == sketch


@pytest.mark.parametrize(
    "data",
    [
        b"x",
        np.asarray([70_000, 1], "<u8").tobytes(),
        np.asarray([1, 0], "<u8").tobytes(),
        np.asarray([2, 1, 1, 1], "<u8").tobytes(),
    ],
)
def test_damaged_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(SketchError, match="damaged"):
        QuantileSketch.from_bytes(data)


def test_counts_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="65536 counts"):
        count_quantiles([np.zeros(3, np.float32)], [np.zeros(100, np.uint32)])


def test_strided_values() -> None:
    values = np.arange(100, dtype=np.float32)
    assert sketch_of(values[::3]) == sketch_of(values[::3].copy())
