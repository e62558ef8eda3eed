"""Buckets, and where rows lie in the staged buffer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimtab.models.staging import HEADER, Bucket, bucket_for, bucket_sizes

MOST = st.integers(1, 1 << 20)


@given(MOST, st.data())
def test_a_batch_runs_in_the_smallest_bucket_that_holds_it(most: int, data: st.DataObject) -> None:
    sizes = bucket_sizes(most)
    n = data.draw(st.integers(1, most))
    chosen = bucket_for(n, most)
    assert chosen == min(size for size in sizes if size >= n)
    assert chosen < 2 * n  # at most as much padding as rows


@given(MOST)
def test_the_largest_is_captured_first(most: int) -> None:
    sizes = bucket_sizes(most)
    assert sizes == sorted(set(sizes), reverse=True)
    assert (sizes[0], sizes[-1]) == (most, 1)
    assert all(size & (size - 1) == 0 for size in sizes[1:])


@pytest.mark.parametrize("n", [0, -1, 9])
def test_batches_without_a_bucket(n: int) -> None:
    with pytest.raises(ValueError, match=f"expected 1 to 8 rows, got {n}"):
        bucket_for(n, 8)
    with pytest.raises(ValueError, match="at least one row"):
        bucket_sizes(0)


@given(st.integers(1, 100_000), st.integers(0, 500), st.integers(0, 100))
def test_parts_are_aligned_and_apart(rows: int, features: int, ids: int) -> None:
    bucket = Bucket(rows, features, ids)
    assert bucket.features_at % 256 == bucket.ids_at % 256 == 0
    assert bucket.features_at >= HEADER * 8
    assert bucket.ids_at >= bucket.features_at + 4 * rows * features
    assert bucket.size == bucket.ids_at + 8 * rows * ids


@given(MOST, st.integers(0, 300), st.integers(0, 50))
def test_the_largest_bucket_has_room_for_every_other(most: int, features: int, ids: int) -> None:
    sizes = [Bucket(rows, features, ids).size for rows in bucket_sizes(most)]
    assert max(sizes) == sizes[0]
