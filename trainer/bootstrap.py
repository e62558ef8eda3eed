"""How sure a mean difference of losses is on a stream: a circular block bootstrap over time, clustered by entity too.

Losses of neighbouring rows go together (one storm delays every flight of an afternoon), so rows are not independent
draws and a row-wise test of two equal models rejects far too often. Resampled instead are blocks of time. Rows are
first summed by cohort (rows of requests close together, which mature together); a block is so many cohorts in a row
as the autocorrelation of the cohorts' differences asks for, by the rule of Politis & White (2004, with the correction
of Patton, Politis & White 2009) for the circular bootstrap (Politis & Romano 1992). In a short series those
correlations are found too small, and blocks come out too short; so the error is never taken below that of a first-
order autoregression of the cohorts, prewhitened and recoloured as in Andrews & Monahan (1992). Where rows belong to
entities (a customer, an airport) whose losses go together across time, their clusters' variance is added as in
Cameron, Gelbach & Miller (2011).

Bounds are normal-theory with the bootstrap's standard error and Student's t with (blocks − 1) degrees of freedom, not
the resamples' percentiles: a gate that spends its error over many decisions asks for levels such as 0.0005, which a
thousand resamples cannot show, and percentiles of few blocks are too narrow.

Pure NumPy: the same input gives the same interval.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

__all__ = ["Comparison", "block_length", "compare_losses"]

MAX_PERSISTENCE = 0.97
_CHUNK = 4_000_000


@dataclass(frozen=True)
class Comparison:
    """A difference of two models' losses on the same rows, negative where the first is better."""

    difference: float
    """Mean difference; relative: ratio of the root mean losses − 1 (relative RMSE)."""
    error: float
    """Its standard error."""
    rows: int
    blocks: int
    """Independent blocks of time in the rows."""
    block_cohorts: int
    """Length of a block in cohorts."""

    @property
    def freedom(self) -> int:
        """Degrees of freedom of the standard error."""
        return max(self.blocks - 1, 1)

    def quantile(self, level: float) -> float:
        """Student's t."""
        return float(stdtrit(self.freedom, level))

    def upper(self, alpha: float) -> float:
        """The true difference is below this, but for an error rate alpha."""
        return self.difference + self.quantile(1.0 - alpha) * self.error if self.error > 0 else self.difference

    def lower(self, alpha: float) -> float:
        """The true difference is above this, but for an error rate alpha."""
        return self.difference - self.quantile(1.0 - alpha) * self.error if self.error > 0 else self.difference

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The two-sided interval of this confidence."""
        return self.lower((1.0 - level) / 2), self.upper((1.0 - level) / 2)

    def detectable(self, alpha: float, power: float = 0.8) -> float:
        """The smallest true difference that a one-sided test at level alpha would have shown with this probability."""
        return (self.quantile(1.0 - alpha) + self.quantile(power)) * self.error


def compare_losses(
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    time_us: NDArray[np.int64],
    *,
    cohort_us: int,
    weights: NDArray[np.floating] | None = None,
    entities: NDArray[np.int64] | None = None,
    relative: bool = False,
    resamples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Compares per-row losses [n] of two models on the same rows.

    cohort_us: width of a cohort. entities: a code per row. relative: losses are squared errors, and the difference is
    that of the RMSEs over the second's. Raises ValueError without rows or where lengths differ.
    """
    if not len(first) or not len(first) == len(second) == len(time_us):
        raise ValueError(f"compare: expected rows of one length, got {len(first)}, {len(second)}, {len(time_us)}")
    weight = np.ones(len(first)) if weights is None else np.asarray(weights, dtype=np.float64)
    times, cohort = np.unique(time_us // max(cohort_us, 1), return_inverse=True)
    parts = (first, second, np.ones(len(first)))
    columns = [np.bincount(cohort, weights=weight * part, minlength=len(times)) for part in parts]
    sums = np.stack(columns).astype(np.float64)
    total = sums.sum(axis=1)
    difference = float(_statistic(*total, relative=relative))
    # Each row's share in the statistic's deviation, to first order: what is autocorrelated, and what clusters add up.
    influence = weight * _influence(first, second, total, relative)
    per_cohort = np.bincount(cohort, weights=influence, minlength=len(times)).astype(np.float64)
    likely, most = persistence(per_cohort)
    # As many cohorts as carry, at this persistence, as much information as one independent one.
    length = min(max(block_length(per_cohort), math.ceil((1.0 + likely) / (1.0 - likely))), len(times))
    error = max(_bootstrap_error(sums, length, relative, resamples, seed), _autoregressive_error(per_cohort, most))
    if entities is not None:
        error = math.sqrt(error**2 + _cluster_variance(influence, entities, cohort // length))
    return Comparison(difference, error, len(first), len(times) // length, length)


def block_length(series: NDArray[np.float64]) -> int:
    """Politis & White's block length for the mean of a stationary series [t], at least 1 and at most t."""
    length = len(series)
    if length < 4:
        return 1
    deviations = series - series.mean()
    variance = float(np.dot(deviations, deviations)) / length
    if variance <= 0.0 or not math.isfinite(variance):
        return 1
    run = max(5, math.ceil(math.sqrt(math.log10(length))))
    most = min(math.ceil(math.sqrt(length)) + run, length - 1)
    products = [float(np.dot(deviations[lag:], deviations[: length - lag])) for lag in range(most + 1)]
    covariance = np.array(products) / length
    bound = 2.0 * math.sqrt(math.log10(length) / length)
    insignificant = np.abs(covariance[1:] / variance) < bound
    # The first lag after which `run` correlations in a row are insignificant; none: the last significant one.
    starts = [lag for lag in range(len(insignificant) - run + 1) if insignificant[lag : lag + run].all()]
    significant = np.flatnonzero(~insignificant)
    last = starts[0] if starts else (int(significant[-1]) + 1 if len(significant) else 0)
    if last == 0:
        return 1
    bandwidth = min(2 * last, most)
    lags = np.arange(1, bandwidth + 1)
    taper = np.minimum(1.0, 2.0 * (1.0 - lags / bandwidth))  # flat to the middle, then down to 0
    spectrum = covariance[0] + 2.0 * float(np.sum(taper * covariance[1 : bandwidth + 1]))
    slope = 2.0 * float(np.sum(taper * lags * covariance[1 : bandwidth + 1]))
    if spectrum <= 0.0:
        return 1
    found: float = (2.0 * slope**2 / (4.0 / 3.0 * spectrum**2)) ** (1.0 / 3.0) * length ** (1.0 / 3.0)
    longest = math.ceil(min(3.0 * math.sqrt(length), length / 3.0))
    return max(1, min(math.ceil(found), longest))


def persistence(series: NDArray[np.float64]) -> tuple[float, float]:
    """First autocorrelation of a series [t], in [0, 0.97]: corrected for its bias in short series (Kendall 1954),
    and one standard error above that, for a persistence taken too small makes the gate too sure."""
    length = len(series)
    deviations = series - series.mean()
    power = float(np.dot(deviations, deviations))
    if length < 4 or power <= 0.0:
        return 0.0, 0.0
    raw = float(np.dot(deviations[1:], deviations[:-1])) / power
    likely = raw + (1.0 + 3.0 * raw) / length
    most = likely + math.sqrt((1.0 - raw * raw) / length)
    return min(max(likely, 0.0), MAX_PERSISTENCE), min(max(most, 0.0), MAX_PERSISTENCE)


def _autoregressive_error(series: NDArray[np.float64], memory: float) -> float:
    """Standard error of the sum of a series [t] that remembers so much of each value in the next."""
    if len(series) < 3:
        return 0.0
    deviations = series - series.mean()
    shocks = deviations[1:] - memory * deviations[:-1]
    variance = float(np.dot(shocks, shocks)) / (len(shocks) - 1)
    return math.sqrt(variance * len(series)) / (1.0 - memory)


def _statistic(
    first: NDArray[np.float64], second: NDArray[np.float64], weight: NDArray[np.float64], *, relative: bool
) -> NDArray[np.float64]:
    tiny = np.finfo(np.float64).tiny
    if relative:
        ratio: NDArray[np.float64] = np.sqrt(np.maximum(first, 0.0) / np.maximum(second, tiny)) - 1.0
        return ratio
    means: NDArray[np.float64] = (first - second) / np.maximum(weight, tiny)
    return means


def _influence(
    first: NDArray[np.float64], second: NDArray[np.float64], total: NDArray[np.float64], relative: bool
) -> NDArray[np.float64]:
    tiny = np.finfo(np.float64).tiny
    if not relative:
        centred: NDArray[np.float64] = (first - second - (total[0] - total[1]) / max(total[2], tiny)) / max(
            total[2], tiny
        )
        return centred
    # Of sqrt(A / B): half of it times (a / A − b / B).
    root = math.sqrt(max(total[0], 0.0) / max(total[1], tiny))
    shares: NDArray[np.float64] = 0.5 * root * (first / max(total[0], tiny) - second / max(total[1], tiny))
    return shares


def _bootstrap_error(sums: NDArray[np.float64], length: int, relative: bool, resamples: int, seed: int) -> float:
    """Standard error of the statistic of cohort sums [3, t] under the circular block bootstrap."""
    cohorts = sums.shape[1]
    count = max(cohorts // length, 1)
    if count < 2:
        return math.inf
    around = np.concatenate([np.zeros((3, 1)), sums, sums[:, : length - 1]], axis=1).cumsum(axis=1)
    blocks = around[:, length:] - around[:, :-length]
    generator = np.random.default_rng([seed, cohorts, length])
    drawn: list[NDArray[np.float64]] = []
    at_once = max(_CHUNK // count, 1)
    for start in range(0, resamples, at_once):
        picks = generator.integers(0, cohorts, size=(min(at_once, resamples - start), count))
        drawn.append(_statistic(*(part[picks].sum(axis=1) for part in blocks), relative=relative))
    # Blocks overlap and are centred on their own mean: as a sample variance does, this loses one block in `count`.
    scale = count * length / cohorts * count / (count - 1)
    return float(np.concatenate(drawn).std()) * math.sqrt(scale)


def _cluster_variance(influence: NDArray[np.float64], entities: NDArray[np.int64], block: NDArray[np.int64]) -> float:
    """What entities add to the variance over time: their clusters' sum of squares, less what both ways share; >= 0."""
    _, entity = np.unique(entities, return_inverse=True)
    by_entity = np.bincount(entity, weights=influence)
    _, both = np.unique(np.stack([entity, block]), axis=1, return_inverse=True)
    by_both = np.bincount(both.ravel(), weights=influence)
    groups = len(by_entity)
    if groups < 2:
        return 0.0
    return max(float(np.dot(by_entity, by_entity) * groups / (groups - 1) - np.dot(by_both, by_both)), 0.0)
