"""The work of the column benchmarks, without Trimtab, so that rivals can have it in environments of their own: impute,
clip and standardise 64 columns, and for the drift sketch count missing, unseen, infinities, bins of 31 edges, extremes
and moments of the same values.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
LOW, HIGH, SHIFT, SCALE, FILL = np.float32(-3), np.float32(3), np.float32(0.1), np.float32(0.9), np.float32(0.25)
MOST, CENTER = np.float32(4.5), np.float32(0.125)
EDGES = np.quantile(np.random.default_rng(0).normal(size=50_000), np.arange(1, 32) / 32).astype(np.float32)
DATA = ("uniform", "skewed", "constant")


def values_of(kind: str, rows: int, columns: int) -> Floats:
    """[columns, rows], as a slab has them. `uniform`: normally distributed, so that bins are equally full, 3 % missing;
    `skewed`: nine values of ten are the same; `constant`."""
    rng = np.random.default_rng(rows)
    if kind == "constant":
        return np.full((columns, rows), 0.3, np.float32)
    values = rng.standard_normal(size=(columns, rows), dtype=np.float32)
    share, instead = (0.03, np.nan) if kind == "uniform" else (0.9, 0.0)
    values[rng.random(size=values.shape, dtype=np.float32) < share] = instead
    return values


def samples_us(call: Callable[[], Any], seconds: float) -> list[float]:
    """What a call takes, in µs, again and again for so long; the mean of several where the clock would count."""
    call()
    began = time.perf_counter_ns()
    call()
    repeats = max(1, min(200, 200_000 // max(1, time.perf_counter_ns() - began)))
    found: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not found:
        began = time.perf_counter_ns()
        for _ in range(repeats):
            call()
        found.append((time.perf_counter_ns() - began) / repeats / 1000)
    return found
