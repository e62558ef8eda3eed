"""Frequent values against exact counts: the bound, batches, merges, hostile texts."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trimtab._native import HeavyHitters
from trimtab.kernels.frequent import FrequentValues

MISSING = -(1 << 63)
texts = st.lists(
    st.sampled_from(["", "a", "b", "a\0", "a\0\0", "日本", "x" * 300, "x" * 301, *"cdefghij"]), max_size=80
)
integers = st.lists(st.sampled_from([MISSING, MISSING + 1, 0, 1, -1, (1 << 63) - 1, *range(5, 20)]), max_size=80)


def array_of(values: list[Any]) -> Any:
    whole = all(isinstance(value, int) for value in values) and values
    return np.asarray(values, np.int64) if whole else pa.array(values, pa.string())


def frequent(values: list[Any], capacity: int, cuts: int = 1) -> FrequentValues:
    found = FrequentValues(capacity)
    step = max(1, -(-len(values) // cuts))
    for start in range(0, len(values), step):
        found.add(array_of(values[start : start + step]))
    return found


def assert_bounds(found: FrequentValues, values: list[Any], capacity: int) -> None:
    exact = Counter(value for value in values if value not in ("", MISSING))
    counted = dict(found.counted())
    assert found.total == exact.total()
    assert found.error <= 2 * found.total / capacity
    assert len(counted) <= capacity
    for value, count in exact.items():
        assert counted.get(value, 0) <= count <= counted.get(value, 0) + found.error
    assert counted.keys() <= exact.keys()
    if len(exact) <= capacity and not found.error:
        assert found.counted() == sorted(exact.items(), key=lambda pair: (-pair[1], pair[0]))


@settings(max_examples=300, deadline=None)
@given(st.one_of(texts, integers), st.sampled_from([1, 2, 3, 8, 100]))
def test_counts_are_within_the_bound(values: list[Any], capacity: int) -> None:
    assert_bounds(frequent(values, capacity), values, capacity)


@settings(max_examples=200, deadline=None)
@given(st.one_of(texts, integers), st.sampled_from([2, 3, 8, 100]), st.integers(1, 9))
def test_batches_do_not_matter(values: list[Any], capacity: int, cuts: int) -> None:
    one, many = frequent(values, capacity), frequent(values, capacity, cuts)
    assert (one.counted(), one.error) == (many.counted(), many.error)


@settings(max_examples=200, deadline=None)
@given(texts, texts, st.sampled_from([1, 2, 3, 8, 100]))
def test_merging_is_commutative_and_within_the_bound(a: list[str], b: list[str], capacity: int) -> None:
    first, second = frequent(a, capacity), frequent(b, capacity)
    first.merge(frequent(b, capacity))
    second.merge(frequent(a, capacity))
    assert (first.counted(), first.error, first.total) == (second.counted(), second.error, second.total)
    assert_bounds(first, a + b, capacity)


def test_itself_may_be_merged() -> None:
    found = FrequentValues(10)
    found.add(array_of(["a", "b", "a"]))
    found.merge(found)
    assert found.counted() == [("a", 4), ("b", 2)]


def test_frequent_values_stay_among_many_rare_ones() -> None:
    random = np.random.default_rng(0)
    rare = [f"rare {i}" for i in range(200_000)]
    values = random.permutation(np.asarray([*rare, *["often"] * 20_000, *["sometimes"] * 5_000])).tolist()
    found = frequent(values, 1024, cuts=7)
    assert_bounds(found, values, 1024)
    assert found.most_common(2) == ["often", "sometimes"]


def test_tables_grow_and_integers_are_themselves() -> None:
    values = np.random.default_rng(1).integers(-(1 << 62), 1 << 62, 20_000)
    found = FrequentValues()
    found.add(np.concatenate([values, values[:100]]))
    assert found.error == 0
    assert sorted(found.most_common(100)) == sorted(values[:100].tolist())
    assert len(found.counted()) == 20_000


def test_sliced_arrays_and_no_rows() -> None:
    whole = pa.array(["x", "a", None, "a", "y"], pa.string()).fill_null("")
    found = FrequentValues()
    found.add(whole.slice(1, 3))
    found.add(whole.slice(0, 0))
    assert found.counted() == [("a", 2)]


@pytest.mark.parametrize("offsets", [[], [0, 5], [-1, 1], [2, 1]])
def test_wrong_offsets_are_refused(offsets: list[int]) -> None:
    with pytest.raises(ValueError, match="offsets"):
        HeavyHitters(5).add_texts(np.asarray(offsets, np.int32), np.zeros(3, np.uint8))


def test_capacity_out_of_range() -> None:
    for capacity in (0, (1 << 24) + 1):
        with pytest.raises(ValueError, match="capacity"):
            HeavyHitters(capacity)
