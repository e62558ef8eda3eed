"""What serving counts: plain numbers that the compute thread alone writes and anybody may read.

No locks: each number has one writer, and a reader that sees a count one request older than another does no harm.
Rendering to Prometheus (metrics.py) and to ModelStatistics happens on reading.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["LATENCY_BOUNDS", "SIZE_BOUNDS", "Distribution", "ModelCounts", "Stage", "VersionCounts"]

LATENCY_BOUNDS = (*(base * 10.0**power for power in range(-5, 2) for base in (1.0, 2.5, 5.0)), 100.0)
"""Seconds: 10 µs to 100 s."""
SIZE_BOUNDS = tuple(float(1 << power) for power in range(13))
"""Rows: 1 to 4096."""


class Distribution:
    """A histogram with fixed upper bounds, counted per bucket, not cumulatively."""

    __slots__ = ("bounds", "buckets", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.buckets = [0] * (len(self.bounds) + 1)
        self.total = 0.0

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

    def add(self, ns: int, count: int = 1) -> None:
        """Counts `count` events that took `ns` together."""
        self.count += count
        self.ns += ns


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


class ModelCounts:
    """What one model has done since the server started."""

    def __init__(self) -> None:
        self.versions: dict[int, VersionCounts] = {}
        self.queue = Distribution(LATENCY_BOUNDS)
        self.compute = Distribution(LATENCY_BOUNDS)
        self.total = Distribution(LATENCY_BOUNDS)
        self.sizes = Distribution(SIZE_BOUNDS)
        self.failed = 0
        self.expired = 0
        self.cancelled = 0

    @property
    def requests(self) -> int:
        """Requests answered, by all versions."""
        return sum(counts.requests for counts in list(self.versions.values()))

    @property
    def rows(self) -> int:
        """Rows answered, by all versions."""
        return sum(counts.rows for counts in list(self.versions.values()))

    def batch(self, version: int, arrived: Sequence[int], rows: int, marks: tuple[int, int, int, int]) -> None:
        """Counts a batch that was answered.

        `arrived`: each request's arrival; `marks`: when the batch was begun, read in, computed and encoded.
        All in ns on the monotonic clock.
        """
        began, read, computed, encoded = marks
        counts = self.versions.get(version)
        if counts is None:
            counts = self.versions[version] = VersionCounts()
        requests = len(arrived)
        add_queue, add_total = self.queue.add, self.total.add
        for instant in arrived:
            add_queue((began - instant) * 1e-9)
            add_total((encoded - instant) * 1e-9)
        waited = began * requests - sum(arrived)
        self.compute.add((encoded - began) * 1e-9)
        self.sizes.add(rows)
        counts.requests += requests
        counts.rows += rows
        counts.batches += 1
        counts.last_ms = time.time_ns() // 1_000_000
        counts.success.add(waited + (encoded - began) * requests, requests)
        counts.queue.add(waited, requests)
        # As in Triton, a request's share of a stage is the whole stage of its batch.
        size = counts.sizes.get(rows)
        if size is None:
            size = counts.sizes[rows] = BatchCounts()
        for stage, one, ns in (
            (counts.input, size.input, read - began),
            (counts.infer, size.infer, computed - read),
            (counts.output, size.output, encoded - computed),
        ):
            stage.add(ns * requests, requests)
            one.add(ns)

    def failure(self, version: int, arrived: Sequence[int], now: int) -> None:
        """Counts requests of a batch that failed."""
        counts = self.versions.setdefault(version, VersionCounts())
        counts.fail.add(now * len(arrived) - sum(arrived), len(arrived))
        self.failed += len(arrived)


def _text(bound: float) -> str:
    return f"{bound:.10g}" if bound < 1 else f"{bound:.1f}"
