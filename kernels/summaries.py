"""Bounded summaries of an endless column, from which ops are fitted. Deterministic: the same rows give the same bits.

`Sample` keeps the values of the rows whose hashed row numbers are smallest (bottom-k sampling): a uniform sample
without replacement that does not depend on how the rows were cut into batches, and the whole column while it is not
full. With 32,768 values the rank of a sampled quantile is off by 0.3 % of the rows (one standard deviation at the
median). Alternative turned down: a quantile sketch (KLL, GK): tighter ranks per byte, but it can only answer ranks,
while ops after a fitted op need values.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from trimtab._native import RowSample, sample_rows

SAMPLE_SIZE = 32_768
DISTINCT_LIMIT = 100_000


def row_priorities(first: int, count: int) -> NDArray[np.uint64]:
    """One distinct pseudo-random uint64 for each of the rows [first, first + count)."""
    h = np.arange(first, first + count, dtype=np.uint64)
    h ^= h >> np.uint64(33)
    h += np.uint64(0x9E3779B97F4A7C15)
    for multiplier in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        h *= np.uint64(multiplier)
        h ^= h >> np.uint64(33)
    return h


class Sample:
    """Finite values of at most `size` rows, and the exact extremes of all of them."""

    def __init__(self, size: int = SAMPLE_SIZE) -> None:
        self._rows = RowSample(size)

    @property
    def minimum(self) -> float:
        """The least of all finite values; infinite without any."""
        return self._rows.minimum

    @property
    def maximum(self) -> float:
        """The largest, likewise."""
        return self._rows.maximum

    @property
    def limit(self) -> int:
        """Rows of a larger priority are not kept any more."""
        return self._rows.limit

    def add(self, values: NDArray[np.float32], priorities: NDArray[np.uint64]) -> None:
        """Adds rows; values that are not finite are passed over. The GIL is released."""
        add_to_samples([self], [values], priorities)

    def values(self) -> NDArray[np.float32]:
        """The sample in ascending order."""
        return np.sort(self._rows.values())


def add_to_samples(
    samples: Sequence[Sample], columns: Sequence[NDArray[np.float32]], priorities: NDArray[np.uint64], threads: int = 1
) -> None:
    """Adds the same rows of several columns, each to its sample, on so many threads."""
    limit = np.uint64(max((sample.limit for sample in samples), default=0))
    rows = np.flatnonzero(priorities <= limit).astype(np.int64, copy=False)
    sample_rows([one._rows for one in samples], [*map(np.ascontiguousarray, columns)], priorities, rows, threads)


class Moments:
    """Count, mean, variance and extremes, merged batch by batch (Chan, Golub and LeVeque 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self.minimum = math.inf
        self.maximum = -math.inf
        self._squares = 0.0

    def add(self, values: NDArray[np.float64]) -> None:
        """Adds the finite ones of a batch's values."""
        known = values[np.isfinite(values)]
        count = len(known)
        if not count:
            return
        mean = float(known.mean())
        delta = mean - self.mean
        total = self.count + count
        self._squares += float(np.square(known - mean).sum()) + delta * delta * (self.count * count / total)
        self.mean += delta * count / total
        self.count = total
        self.minimum = min(self.minimum, float(known.min()))
        self.maximum = max(self.maximum, float(known.max()))

    @property
    def deviation(self) -> float:
        """The population standard deviation; exactly 0 for a constant, whatever rounding did to the mean."""
        if self.count == 0 or self.minimum == self.maximum:
            return 0.0
        return math.sqrt(self._squares / self.count)


def novel_share(counts: Iterable[int], rows: int) -> float:
    """Of further rows, the share whose value did not occur before, at most: with a values that occurred once and b that
    occurred twice a / rows (Good and Turing), and one deviation of that estimate more, √(a + 2 b) / rows. 0 without
    rows."""
    once = twice = 0
    for count in counts:
        once += count == 1
        twice += count == 2
    return min((once + math.sqrt(once + 2 * twice)) / rows, 1.0) if rows else 0.0


class Frequencies:
    """How often each category occurs. Exact up to `limit` distinct values; beyond, the rarest half is forgotten each
    time that the limit is passed, so the counts of values that were rare for long are lower bounds."""

    def __init__(self, limit: int = DISTINCT_LIMIT) -> None:
        self._limit = limit
        self._counts: dict[int | str, int] = {}
        self._rows = 0

    def add(self, values: NDArray[np.int64] | pa.StringArray) -> None:
        """Adds a batch's known values."""
        if isinstance(values, np.ndarray):
            unique, numbers = np.unique(values, return_counts=True)
            pairs: list[tuple[int | str, int]] = list(zip(unique.tolist(), numbers.tolist(), strict=True))
        else:
            counted: Any = pc.value_counts(values)
            pairs = list(zip(counted.field(0).to_pylist(), counted.field(1).to_pylist(), strict=True))
        self._rows += len(values)
        for key, count in pairs:
            self._counts[key] = self._counts.get(key, 0) + count
        if len(self._counts) > self._limit:
            self._counts = dict(self._ordered()[: self._limit // 2])

    @property
    def novel(self) -> float:
        """See `novel_share`."""
        return novel_share(self._counts.values(), self._rows)

    def highest(self, limit: int) -> list[int]:
        """The largest counts, descending."""
        return sorted(self._counts.values(), reverse=True)[:limit]

    def most_common(self, limit: int, least: int = 1) -> list[int | str]:
        """At most `limit` values that occurred at least `least` times, the most frequent first, ties by value."""
        return [value for value, count in self._ordered()[:limit] if count >= least]

    def _ordered(self) -> list[tuple[int | str, int]]:
        # One column's values are all integers or all strings, so ties compare.
        return sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))
