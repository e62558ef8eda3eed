"""What drift is simulated on: a population of rows, drawn from with replacement, and shifts of it. Without Trimtab, so
that rivals can have it in environments of their own.

Columns: `normal`; `lognormal`, heavy-tailed; `rounded`, normal to the nearest half, so that most values tie; `missing`,
normal with 3 % missing; `constant`; `ten`, ten categories, the rarest 1 %; `zipf`, a thousand categories by
Zipf's law, as text.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

ROWS = 1_000_000
NUMBERS = ("normal", "lognormal", "rounded", "missing", "constant")
CATEGORIES = ("ten", "zipf")
COLUMNS = (*NUMBERS, *CATEGORIES)
TEN = np.asarray([0.3, 0.2, 0.15, 0.1, 0.08, 0.06, 0.05, 0.03, 0.02, 0.01])

Columns = dict[str, NDArray[Any]]


def population(seed: int = 0) -> Columns:
    """float32 [ROWS] for numbers, int64 [ROWS] for categories."""
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal((4, ROWS), dtype=np.float32)
    missing = normal[3]
    missing[rng.random(ROWS) < 0.03] = np.nan
    zipf = 1.0 / np.arange(1, 1001)
    return {
        "normal": normal[0],
        "lognormal": np.exp(np.float32(1.5) * normal[1]),
        "rounded": np.round(normal[2] * 2) / 2,
        "missing": missing,
        "constant": np.full(ROWS, 0.3, np.float32),
        "ten": rng.choice(10, ROWS, p=TEN),
        "zipf": rng.choice(1000, ROWS, p=zipf / zipf.sum()),
    }


def drawn(columns: Columns, rows: int, rng: np.random.Generator) -> Columns:
    """Rows of the population, with replacement."""
    chosen = rng.integers(0, ROWS, rows)
    return {name: values[chosen] for name, values in columns.items()}


SHIFTS: dict[str, tuple[str, tuple[float, ...]]] = {
    "mean": ("normal", (0.05, 0.1, 0.2, 0.5)),
    "scale": ("normal", (1.05, 1.1, 1.2, 1.5)),
    "tail": ("lognormal", (1.1, 1.25, 1.5, 2.0)),
    "missing": ("missing", (0.01, 0.03, 0.1)),
    "unit": ("normal", (0.01, 0.05, 0.2)),
    "share": ("ten", (0.01, 0.03, 0.1)),
    "new": ("ten", (0.003, 0.01, 0.05)),
}
"""Name → column, sizes. mean: added, in deviations; scale: times; tail: the upper tenth, times; missing: share that
goes; unit: share of rows in inches instead of centimetres, times 2.54; share: moves from the first category to the
last; new: share of a category that was not there."""


def shifted(column: NDArray[Any], shift: str, size: float, rng: np.random.Generator) -> NDArray[Any]:
    """A copy of drawn rows with the shift."""
    values = column.copy()
    chance = rng.random(len(values))
    if shift == "mean":
        values += np.float32(size)
    elif shift == "scale":
        values *= np.float32(size)
    elif shift == "tail":
        values[values > np.exp(1.5 * 1.2816)] *= np.float32(size)
    elif shift == "missing":
        values[chance < size] = np.nan
    elif shift == "unit":
        values[chance < size] *= np.float32(2.54)
    elif shift == "share":
        values[(values == 0) & (chance < size / TEN[0])] = 9
    elif shift == "new":
        values[chance < size] = 77
    else:
        raise ValueError(shift)
    return values
