"""The sampling policy: whole requests, honest inclusion probabilities, and a cap that holds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from trimtab._native import sample_ids
from trimtab.store.sampling import Sampler, hash_unit
from trimtab.store.settings import CaptureSettings


def some_ids(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 16), np.uint8)


def flat(count: int) -> NDArray[np.float32]:
    return np.zeros((count, 1), np.float32)


def test_all_keeps_all_with_certainty() -> None:
    kept = Sampler(CaptureSettings()).decide(some_ids(100), flat(100), now=0.0)
    assert kept.indices is None
    assert (kept.inclusion == 1.0).all()
    assert (kept.sampled_out, kept.capped) == (0, 0)


@given(st.floats(0.01, 1.0), st.integers(0, 99))
@settings(max_examples=50)
def test_a_rate_keeps_that_share_of_requests_and_says_so(rate: float, seed: int) -> None:
    count = 4000
    kept = Sampler(CaptureSettings(sample="rate", rate=rate), seed=seed).decide(
        some_ids(count, seed), flat(count), now=0.0
    )
    share = len(kept.inclusion) / count
    # Six standard deviations of a binomial.
    assert abs(share - rate) <= 6 * np.sqrt(rate * (1 - rate) / count) + 1e-9
    assert np.allclose(kept.inclusion, rate)
    assert kept.sampled_out == count - len(kept.inclusion)


def test_a_request_is_kept_or_left_whole_whenever_its_rows_come() -> None:
    ids = np.repeat(some_ids(500), 3, axis=0)
    sampler = Sampler(CaptureSettings(sample="rate", rate=0.5))
    kept = sampler.decide(ids, flat(1500), now=0.0)
    assert kept.indices is not None
    mask = np.zeros(1500, bool)
    mask[kept.indices] = True
    assert (mask.reshape(500, 3).all(axis=1) == mask.reshape(500, 3).any(axis=1)).all()
    again = sampler.decide(ids[::-1], flat(1500), now=1.0)
    assert again.indices is not None
    assert set(1499 - again.indices) == set(kept.indices)


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=60),
    st.sampled_from([1.0, 0.5, 0.05]),
    st.integers(0, 99),
    st.floats(0.1, 5.0),
)
@settings(max_examples=100)
def test_deciding_about_requests_is_deciding_about_their_rows(
    counts: list[int], rate: float, seed: int, then: float
) -> None:
    """Twice in a row: the first batch empties the bucket, so that the second is capped."""
    policy = CaptureSettings(sample="rate", rate=rate, max_rows_per_second=50)
    by_rows, by_requests = Sampler(policy, seed=seed), Sampler(policy, seed=seed)
    numbers = np.array(counts, np.int32)
    for now in (0.0, then):
        ids = some_ids(len(counts), seed + int(now))
        expanded = np.repeat(ids, numbers, axis=0)
        found = by_requests.decide_requests(ids, numbers, now)
        wanted = by_rows.decide(expanded, flat(len(expanded)), now)
        if found is None:
            assert wanted.indices is None
            by_requests.decide(expanded, flat(len(expanded)), now)
            continue
        assert found.indices is not None
        assert wanted.indices is not None
        assert found.owners is not None
        assert found.indices.tolist() == wanted.indices.tolist()
        assert found.inclusion.tolist() == wanted.inclusion.tolist()
        assert (found.sampled_out, found.capped) == (wanted.sampled_out, wanted.capped)
        assert (np.repeat(np.arange(len(ids)), numbers)[found.indices] == found.owners).all()


def test_a_policy_by_strata_is_not_for_requests() -> None:
    policy = CaptureSettings(sample="stratified", strata_edges=(0.5,), strata_rates=(0.1, 1.0))
    assert Sampler(policy).decide_requests(some_ids(2), np.array([1, 2], np.int32), 0.0) is None


def test_a_smaller_rate_keeps_a_part_of_what_a_larger_one_keeps() -> None:
    ids = some_ids(2000)
    sets = []
    for rate in (0.1, 0.4):
        kept = Sampler(CaptureSettings(sample="rate", rate=rate), seed=5).decide(ids, flat(2000), now=0.0)
        assert kept.indices is not None
        sets.append(set(kept.indices.tolist()))
    assert sets[0] < sets[1]


def test_another_seed_keeps_other_requests() -> None:
    ids = some_ids(1000)
    kept = [
        Sampler(CaptureSettings(sample="rate", rate=0.5), seed=seed).decide(ids, flat(1000), now=0.0) for seed in (1, 2)
    ]
    assert kept[0].indices is not None
    assert kept[1].indices is not None
    assert set(kept[0].indices.tolist()) != set(kept[1].indices.tolist())


def test_strata_have_rates_of_their_own_and_weights_undo_them() -> None:
    count = 40_000
    random = np.random.default_rng(3)
    predictions = random.random((count, 1)).astype(np.float32)
    policy = CaptureSettings(sample="stratified", strata_edges=(0.5, 0.9), strata_rates=(0.05, 0.3, 1.0))
    kept = Sampler(policy).decide(some_ids(count), predictions, now=0.0)
    assert kept.indices is not None
    chosen = predictions[kept.indices, 0]
    assert (kept.inclusion[chosen >= 0.9] == 1.0).all()
    assert np.allclose(kept.inclusion[chosen < 0.5], 0.05)
    assert np.count_nonzero(chosen >= 0.9) == np.count_nonzero(predictions >= 0.9)
    weights = 1 / kept.inclusion
    assert np.sum(weights * chosen) / np.sum(weights) == pytest.approx(predictions.mean(), abs=0.02)


def test_with_several_outputs_the_largest_decides() -> None:
    policy = CaptureSettings(sample="stratified", strata_edges=(0.5,), strata_rates=(1e-12, 1.0))
    predictions = np.array([[0.2, 0.7, 0.1], [0.4, 0.3, 0.3], [0.9, 0.05, 0.05]], np.float32)
    kept = Sampler(policy).decide(some_ids(3), predictions, now=0.0)
    assert kept.indices is not None
    assert kept.indices.tolist() == [0, 2]


def capped(demand: int, cap: int, seconds: int, batches: int = 50) -> tuple[list[int], float]:
    """Rows kept in each second, and the estimate of all rows from the weights, over what there were."""
    sampler = Sampler(CaptureSettings(max_rows_per_second=cap))
    per_batch = demand // batches
    kept_rows, weight = [], 0.0
    for second in range(seconds):
        total = 0
        for batch in range(batches):
            ids = some_ids(per_batch, seed=second * batches + batch)
            kept = sampler.decide(ids, flat(per_batch), now=100.0 + second + batch / batches)
            total += len(kept.inclusion)
            weight += float((1 / kept.inclusion).sum())
            assert kept.capped == per_batch - len(kept.inclusion)
            assert kept.sampled_out == 0
        kept_rows.append(total)
    return kept_rows, weight / (per_batch * batches * seconds)


def test_below_the_cap_every_row_is_kept() -> None:
    kept, _ = capped(demand=900, cap=1000, seconds=5)
    assert kept == [900] * 5


def test_above_the_cap_the_rate_settles_at_the_cap_and_the_weights_stay_honest() -> None:
    kept, estimate = capped(demand=8000, cap=1000, seconds=20)
    assert sum(kept) <= 1000 * 21 + 160
    assert all(0.85 * 1000 <= rows <= 1.15 * 1000 for rows in kept[5:])
    assert estimate == pytest.approx(1.0, abs=0.1)


@given(st.lists(st.tuples(st.floats(0.0, 2.0), st.integers(1, 300)), max_size=60), st.integers(1, 500))
@settings(max_examples=60, deadline=None)
def test_whatever_comes_the_cap_holds(arrivals: list[tuple[float, int]], cap: int) -> None:
    sampler = Sampler(CaptureSettings(max_rows_per_second=cap))
    now, kept_rows = 0.0, 0
    for i, (wait, count) in enumerate(arrivals):
        now += wait
        kept_rows += len(sampler.decide(some_ids(count, i), flat(count), now=now).inclusion)
    assert kept_rows <= cap * (now - (arrivals[0][0] if arrivals else 0.0) + 1) + 300


def test_a_clock_that_goes_back_is_survived() -> None:
    sampler = Sampler(CaptureSettings(max_rows_per_second=10))
    for now in (5.0, 1.0, 5.0):
        sampler.decide(some_ids(20), flat(20), now=now)


def test_lockstep_has_no_cap() -> None:
    sampler = Sampler(CaptureSettings(max_rows_per_second=1), capped=False)
    assert len(sampler.decide(some_ids(5000), flat(5000), now=0.0).inclusion) == 5000


def test_the_hash_is_spread_evenly_over_real_ids() -> None:
    from trimtab.store.ids import new_request_id

    ids = np.frombuffer(b"".join(new_request_id() for _ in range(20_000)), np.uint8).reshape(-1, 16)
    counts, _ = np.histogram(hash_unit(ids, 7), bins=20, range=(0.0, 1.0))
    assert ((counts - 1000) ** 2 / 1000).sum() < 60  # chi-square with 19 degrees of freedom: p ≈ 4e-6


@given(
    st.binary(max_size=320),
    st.integers(0, (1 << 64) - 1),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_the_native_choice_is_the_hashs(data: bytes, seed: int, inclusion: float, policy: float) -> None:
    ids = np.frombuffer(data[: len(data) // 16 * 16], np.uint8).reshape(-1, 16)
    kept, wanted = sample_ids(ids, seed, inclusion, policy)
    number = hash_unit(ids, seed)
    np.testing.assert_array_equal(kept, np.flatnonzero(number < inclusion))
    assert wanted == np.count_nonzero(number < policy)
