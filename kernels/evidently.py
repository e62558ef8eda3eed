"""What the Evidently package does by default to say whether a column drifts: its choice of test, its arithmetic, its
thresholds, as its legacy stattests and `DataDriftPreset` have them (checked against 0.7.23).

  reference of up to 1,000 values    K-S for numbers; chi-square, or with two values a z-test, where there are at most
                                     five (numbers) or for categories            drift: p ≤ 0.05 (K-S), p < 0.05
  of more                            Wasserstein over the reference's deviation for numbers; Jensen-Shannon distance
                                     (nats) for categories and at most five values          drift: distance ≥ 0.1

Missing and infinite values are left out before anything is counted. A data set drifts when half its columns do.
Neither the number of columns nor, above 1,000, the number of rows enters. Not here: its tests of text columns.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from trimtab.kernels.divergences import special

__all__ = ["DRIFT_SHARE", "Test", "Verdict", "choose", "judge_counts", "judge_numbers"]

DRIFT_SHARE = 0.5
SMALL = 1000
FEW_VALUES = 5
INTEGER_VALUES = 10
"""Integers of at most so many different values are categories."""

Test = Literal["ks", "chisquare", "z", "wasserstein", "jensenshannon"]
THRESHOLDS: Mapping[Test, float] = {
    "ks": 0.05,
    "chisquare": 0.05,
    "z": 0.05,
    "wasserstein": 0.1,
    "jensenshannon": 0.1,
}


@dataclass(frozen=True)
class Verdict:
    """One column. score: a p-value for ks, chisquare and z, a distance for the others."""

    test: Test
    score: float
    threshold: float
    drifted: bool


def choose(numerical: bool, rows: int, distinct: int) -> Test:
    """The test for so many present values of the reference, and different values of both sides together."""
    if numerical and distinct > FEW_VALUES:
        return "ks" if rows <= SMALL else "wasserstein"
    if rows > SMALL:
        return "jensenshannon"
    return "chisquare" if distinct > 2 else "z"


def judge_numbers(
    reference: NDArray[np.float64], current: NDArray[np.float64], rows: int | None = None
) -> Verdict | None:
    """A column of numbers, from all finite values or samples of them; `rows`: how many the reference has. None where a
    side is empty, which Evidently refuses."""
    if not len(reference) or not len(current):
        return None
    counts: list[dict[Hashable, int]] = []
    for values in (reference, current):
        unique, numbers = np.unique(values, return_counts=True)
        counts.append(dict(zip(unique.tolist(), numbers.tolist(), strict=True)))
    test = choose(True, len(reference) if rows is None else rows, len({*counts[0], *counts[1]}))
    if test not in ("ks", "wasserstein"):
        return _judged(test, *counts)
    stats = _stats()
    if test == "ks":
        with warnings.catch_warnings():
            # Where its exact p-value fails, on many ties, it says so and takes the asymptotic one, as there.
            warnings.simplefilter("ignore", RuntimeWarning)
            return _verdict(test, float(stats.ks_2samp(reference, current).pvalue))
    norm = max(float(np.std(reference)), 0.001)
    return _verdict(test, float(stats.wasserstein_distance(reference, current)) / norm)


def judge_counts(reference: Mapping[Hashable, int], current: Mapping[Hashable, int]) -> Verdict | None:
    """A column of categories, from how often each value occurs. None where a side is empty."""
    rows = sum(reference.values())
    if not rows or not sum(current.values()):
        return None
    return _judged(choose(False, rows, len({*reference, *current})), reference, current)


def _judged(test: Test, reference: Mapping[Hashable, int], current: Mapping[Hashable, int]) -> Verdict:
    keys = list({**reference, **current})
    a = np.array([reference.get(key, 0) for key in keys], np.float64)
    b = np.array([current.get(key, 0) for key in keys], np.float64)
    score = {"chisquare": _chi_square, "z": _z, "jensenshannon": _jensen_shannon}[test](a, b)
    return _verdict(test, score)


def _verdict(test: Test, score: float) -> Verdict:
    threshold = THRESHOLDS[test]
    drifted = score <= threshold if test == "ks" else score < threshold if test in ("chisquare", "z") else False
    if test in ("wasserstein", "jensenshannon"):
        drifted = score >= threshold
    return Verdict(test, score, threshold, drifted)


def _chi_square(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Goodness of fit of the current counts to the reference's shares; a value that the reference lacks is p = 0."""
    if (a == 0).any():
        return 0.0
    expected = a * (b.sum() / a.sum())
    return float(special().chdtrc(len(a) - 1, float(((b - expected) ** 2 / expected).sum())))


def _z(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """The shares of the first of at most two values."""
    if len(a) < 2:
        return 1.0
    n, m = a.sum(), b.sum()
    p, q = a[0] / n, b[0] / m
    both = (a[0] + b[0]) / (n + m)
    z = abs(p - q) / math.sqrt(both * (1 - both) * (1 / n + 1 / m))
    return float(2 * (1 - special().ndtr(z)))


def _jensen_shannon(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    p, q = a / a.sum(), b / b.sum()
    middle = (p + q) / 2
    entropy = special().rel_entr
    return math.sqrt(max(float((entropy(p, middle) + entropy(q, middle)).sum()) / 2, 0.0))


def _stats() -> Any:
    """scipy.stats; importing it takes half a second."""
    import scipy.stats

    return scipy.stats
