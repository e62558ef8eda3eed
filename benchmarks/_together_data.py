"""Rows whose columns each stay as they are while how they go together changes. Without Trimtab, so that rivals can have
it in environments of their own.

Sixteen columns: twelve normal, two heavy-tailed, two categories (of 3 and 10 values, as numbers), made of normal
numbers with a common part, so that any two correlate by `rho` (of ranks; of categories through where they are cut).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

WIDTH = 16
CATEGORIES = ("c14", "c15")
COLUMNS = (*(f"x{i}" for i in range(14)), *CATEGORIES)
USUAL = 0.2
"""The correlation of any two columns without a change."""

SHIFTS: dict[str, tuple[float, ...]] = {
    "all": (0.25, 0.3, 0.4),
    "pair": (0.5, 0.7, 0.9),
    "shuffled": (0.1, 0.3, 1.0),
}
"""Name → sizes. all: any two correlate so; pair: the first two do; shuffled: share of rows of which each column is
another row's."""

Columns = dict[str, NDArray[Any]]


def rows_of(count: int, rng: np.random.Generator, shift: str = "", size: float = 0.0) -> Columns:
    """float32 [count] for numbers, int64 [count] for categories."""
    rho = size if shift == "all" else USUAL
    latent = np.sqrt(1.0 - rho) * rng.standard_normal((WIDTH, count)) + np.sqrt(rho) * rng.standard_normal(count)
    if shift == "pair":
        own = rng.standard_normal(count)
        latent[1] = size * latent[0] + np.sqrt(1.0 - size * size) * own
    elif shift == "shuffled":
        chosen = np.flatnonzero(rng.random(count) < size)
        for column in latent:
            column[chosen] = column[rng.permutation(chosen)]
    latent[12:14] = np.exp(1.5 * latent[12:14])
    found: Columns = {name: latent[i].astype(np.float32) for i, name in enumerate(COLUMNS[:14])}
    found["c14"] = np.digitize(latent[14], [0.0, 1.0])
    found["c15"] = np.digitize(latent[15], np.linspace(-1.5, 2.0, 9))
    return found
