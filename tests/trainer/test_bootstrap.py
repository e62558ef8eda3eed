"""The bootstrap against closed forms, and its error rates on streams whose losses remember."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from trimtab.trainer.bootstrap import MAX_PERSISTENCE, block_length, compare_losses, persistence

from .tables import HOUR_US


def stream(
    generator: np.random.Generator, cohorts: int, memory: float, rows: int = 20
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Row-wise loss differences of mean 0 whose cohorts share a first-order autoregressive part, and their times."""
    shared = np.zeros(cohorts + 50)
    shocks = generator.normal(size=cohorts + 50)
    for step in range(1, cohorts + 50):
        shared[step] = memory * shared[step - 1] + math.sqrt(1 - memory**2) * shocks[step]
    cohort = np.repeat(np.arange(cohorts), rows)
    return 0.1 * shared[50:][cohort] + 0.2 * generator.normal(size=len(cohort)), cohort * HOUR_US


def test_independent_cohorts_give_the_textbook_error() -> None:
    generator = np.random.default_rng(1)
    differences = generator.normal(0.01, 0.3, size=4000)
    found = compare_losses(differences, np.zeros(4000), np.arange(4000) * HOUR_US, cohort_us=HOUR_US, resamples=2000)
    assert found.difference == pytest.approx(differences.mean())
    assert found.error == pytest.approx(0.3 / math.sqrt(4000), rel=0.08)
    low, high = found.interval()
    t = stats.t.ppf(0.975, found.blocks - 1)
    assert (low, high) == pytest.approx((found.difference - t * found.error, found.difference + t * found.error))


def test_a_level_that_resamples_cannot_show_has_a_bound() -> None:
    differences, times = stream(np.random.default_rng(2), 200, 0.0)
    found = compare_losses(differences, np.zeros(len(times)), times, cohort_us=HOUR_US, resamples=200)
    assert found.upper(1e-6) > found.upper(1e-4) > found.upper(0.05) > found.difference > found.lower(1e-6)
    assert found.detectable(0.05) < found.detectable(0.001)


def test_equal_losses_differ_by_nothing() -> None:
    losses = np.random.default_rng(3).random(500)
    found = compare_losses(losses, losses, np.arange(500) * HOUR_US, cohort_us=HOUR_US)
    assert (found.difference, found.error, found.upper(0.01)) == (0.0, 0.0, 0.0)


def test_same_input_same_interval() -> None:
    differences, times = stream(np.random.default_rng(4), 100, 0.5)
    first, second = (compare_losses(differences, np.zeros(len(times)), times, cohort_us=HOUR_US) for _ in range(2))
    assert first == second


def test_relative_difference_is_that_of_the_rmse() -> None:
    generator = np.random.default_rng(5)
    second = generator.chisquare(1, size=3000)
    first = second * 1.21
    found = compare_losses(first, second, np.arange(3000) * HOUR_US, cohort_us=HOUR_US, relative=True)
    assert found.difference == pytest.approx(0.1)
    assert found.error < 1e-9


def test_weights_are_repetitions() -> None:
    differences, times = stream(np.random.default_rng(6), 60, 0.3, rows=5)
    weights = np.tile([1.0, 2.0, 0.0, 1.0, 3.0], 60)
    again = np.repeat(np.arange(len(times)), weights.astype(int))
    zeros = np.zeros(len(times))
    weighted = compare_losses(differences, zeros, times, cohort_us=HOUR_US, weights=weights)
    repeated = compare_losses(differences[again], zeros[again], times[again], cohort_us=HOUR_US)
    assert weighted.difference == pytest.approx(repeated.difference)
    assert weighted.error == pytest.approx(repeated.error)


def test_entities_that_go_together_across_time_widen_the_interval() -> None:
    generator = np.random.default_rng(7)
    entities = np.tile(np.arange(10), 300)
    differences = 0.1 * generator.normal(size=10)[entities] + 0.1 * generator.normal(size=3000)
    times = np.repeat(np.arange(300), 10) * HOUR_US
    plain = compare_losses(differences, np.zeros(3000), times, cohort_us=HOUR_US)
    clustered = compare_losses(differences, np.zeros(3000), times, cohort_us=HOUR_US, entities=entities)
    assert plain.error < 0.005
    # Ten entities with a spread of 0.1 each: 0.1 / √10.
    assert clustered.error == pytest.approx(0.03, rel=0.5)
    own = compare_losses(differences, np.zeros(3000), times, cohort_us=HOUR_US, entities=np.arange(3000))
    assert own.error == pytest.approx(plain.error, rel=0.1)


def test_blocks_follow_the_memory_of_the_series() -> None:
    generator = np.random.default_rng(8)
    lengths = []
    for memory in (0.0, 0.6, 0.9):
        series = [stream(generator, 1000, memory, rows=1)[0] for _ in range(5)]
        lengths.append(np.mean([block_length(item) for item in series]))
    assert lengths[0] < 4 < lengths[2]
    assert lengths[0] < lengths[1] < lengths[2]


@pytest.mark.parametrize("series", [[1.0], [1.0, 2.0, 3.0], [5.0] * 100, [0.0] * 50 + [1e3, -1e3]])
def test_series_without_a_memory_to_estimate(series: list[float]) -> None:
    values = np.array(series)
    assert block_length(values) == 1
    likely, most = persistence(values)
    assert 0.0 <= likely <= most < 0.5 < MAX_PERSISTENCE


def test_one_cohort_is_one_block_and_shows_nothing() -> None:
    found = compare_losses(np.ones(50), np.zeros(50), np.zeros(50, dtype=np.int64), cohort_us=HOUR_US)
    assert found.blocks == 1
    assert found.error == math.inf
    assert found.upper(0.05) == math.inf


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="one length"):
        compare_losses(np.zeros(2), np.zeros(3), np.zeros(2, dtype=np.int64), cohort_us=1)
    with pytest.raises(ValueError, match="one length"):
        compare_losses(np.zeros(0), np.zeros(0), np.zeros(0, dtype=np.int64), cohort_us=1)


def most_by_chance(streams: int, alpha: float) -> int:
    """How many rejections a test of this level may have on so many streams, but once in a thousand."""
    return int(stats.binom.ppf(0.999, streams, alpha))


@pytest.mark.parametrize(("cohorts", "memory"), [(60, 0.0), (60, 0.5), (120, 0.7), (400, 0.8)])
def test_equal_models_are_rarely_told_apart(cohorts: int, memory: float) -> None:
    generator = np.random.default_rng([cohorts, round(100 * memory)])
    streams, alpha = 300, 0.05
    rejected = rows_rejected = 0
    for _ in range(streams):
        differences, times = stream(generator, cohorts, memory)
        found = compare_losses(differences, np.zeros(len(times)), times, cohort_us=HOUR_US, resamples=200)
        rejected += found.blocks >= 8 and found.upper(alpha) < 0.0
        rows_rejected += differences.mean() / (differences.std() / math.sqrt(len(times))) < stats.norm.ppf(alpha)
    assert rejected <= most_by_chance(streams, alpha)
    # What makes the blocks necessary: a test of rows is far off.
    assert rows_rejected > 2 * alpha * streams
