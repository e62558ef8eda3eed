"""What serving counts, as Python reads it: copies of the hub's native counters (csrc/statistics.h).

Rendering to Prometheus (metrics.py) and to ModelStatistics happens on reading. `Distribution` is also what Python's own
histograms are made of.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "FINE_BOUNDS",
    "LATENCY_BOUNDS",
    "SIZE_BOUNDS",
    "BatchCounts",
    "Distribution",
    "ModelCounts",
    "Stage",
    "VersionCounts",
    "fine_quantile",
]

LATENCY_BOUNDS = (*(base * 10.0**power for power in range(-5, 2) for base in (1.0, 2.5, 5.0)), 100.0)
"""Seconds: 10 µs to 100 s."""
SIZE_BOUNDS = tuple(float(1 << power) for power in range(13))
"""Rows: 1 to 4096."""


FINE_BOUNDS: NDArray[np.float64] = np.concatenate(
    [[0.0], np.ldexp(1.0 + np.arange(32) / 32, np.arange(10, 37)[:, None]).ravel(), [2.0**37, 2.0**38]]
)
"""Nanoseconds: where the buckets of `Hub.latencies` begin, and where the last one is taken to end: 32 an octave from
1 µs to 137 s."""


def fine_quantile(counts: NDArray[np.uint64], share: float) -> float:
    """Seconds that this share of the values does not exceed, of counts in the buckets of FINE_BOUNDS, as if each
    bucket's values were spread evenly over it; NaN where nothing was counted."""
    up_to = np.cumsum(counts, dtype=np.float64)
    if not up_to[-1]:
        return float("nan")
    wanted = share * up_to[-1]
    place = int(np.searchsorted(up_to, wanted))
    within = (wanted - (up_to[place] - float(counts[place]))) / float(counts[place])
    return float(FINE_BOUNDS[place] + within * (FINE_BOUNDS[place + 1] - FINE_BOUNDS[place])) * 1e-9


class Distribution:
    """A histogram with fixed upper bounds, counted per bucket, not cumulatively."""

    __slots__ = ("bounds", "buckets", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.buckets = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    @classmethod
    def of(cls, bounds: Sequence[float], native: tuple[list[int], int], unit: float) -> Distribution:
        """A native histogram: counts per bucket, and the total in `unit`s of the bounds."""
        made = cls(bounds)
        made.buckets = list(native[0])
        made.total = native[1] * unit
        return made

    def add(self, value: float) -> None:
        """Counts one value."""
        self.buckets[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulative(self) -> list[tuple[str, float]]:
        """(upper bound as text, values up to it), ending with +Inf: Prometheus' form."""
        seen, rows = 0, []
        for bound, count in zip((*map(_text, self.bounds), "+Inf"), list(self.buckets), strict=True):
            seen += count
            rows.append((bound, float(seen)))
        return rows


@dataclass(slots=True)
class Stage:
    """How often, and how long in all (ns)."""

    count: int = 0
    ns: int = 0


@dataclass(slots=True)
class BatchCounts:
    """The batches of one size."""

    input: Stage = field(default_factory=Stage)
    infer: Stage = field(default_factory=Stage)
    output: Stage = field(default_factory=Stage)


@dataclass(slots=True)
class VersionCounts:
    """What one version has done since the server started. Stages as in ModelStatistics."""

    requests: int = 0
    rows: int = 0
    batches: int = 0
    last_ms: int = 0
    success: Stage = field(default_factory=Stage)
    fail: Stage = field(default_factory=Stage)
    queue: Stage = field(default_factory=Stage)
    input: Stage = field(default_factory=Stage)
    infer: Stage = field(default_factory=Stage)
    output: Stage = field(default_factory=Stage)
    sizes: dict[int, BatchCounts] = field(default_factory=dict)

    @classmethod
    def of(cls, native: Mapping[str, Any]) -> VersionCounts:
        """From the hub's statistics of a version."""
        plain: dict[str, Any] = {name: native[name] for name in ("requests", "rows", "batches", "last_ms")}
        stages: dict[str, Any] = {
            name: Stage(*native[name]) for name in ("success", "fail", "queue", "input", "infer", "output")
        }
        sizes = {rows: BatchCounts(*(Stage(*stage) for stage in one)) for rows, one in native["sizes"].items()}
        return cls(**plain, **stages, sizes=sizes)


@dataclass(slots=True)
class ModelCounts:
    """What one model has done since the server started."""

    versions: dict[int, VersionCounts]
    queue: Distribution
    compute: Distribution
    total: Distribution
    sizes: Distribution
    failed: int
    dropped: dict[str, int]
    """Requests that were not computed, by reason."""

    @classmethod
    def of(cls, native: Mapping[str, Any]) -> ModelCounts:
        """From the hub's statistics of a model."""
        latencies = {
            name: Distribution.of(LATENCY_BOUNDS, native[name], 1e-9) for name in ("queue", "compute", "total")
        }
        return cls(
            versions={number: VersionCounts.of(counts) for number, counts in native["versions"].items()},
            sizes=Distribution.of(SIZE_BOUNDS, native["batch_rows"], 1.0),
            failed=native["failed"],
            dropped=dict(native["dropped"]),
            **latencies,
        )

    @property
    def requests(self) -> int:
        """Requests answered, by all versions."""
        return sum(counts.requests for counts in self.versions.values())

    @property
    def rows(self) -> int:
        """Rows answered, by all versions."""
        return sum(counts.rows for counts in self.versions.values())

    @property
    def expired(self) -> int:
        """Requests whose deadline passed in the queue, or would have."""
        return self.dropped["expired"] + self.dropped["missed"]

    @property
    def cancelled(self) -> int:
        """Requests that were cancelled in the queue."""
        return self.dropped["cancelled"]


def _text(bound: float) -> str:
    return f"{bound:.10g}" if bound < 1 else f"{bound:.1f}"
