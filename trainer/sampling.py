"""Which rows a step trains on: recent ones often, old ones now and then. Pure; O(batch), whatever the history's length.

A row's age is its distance from the newest row. Ages are drawn from the geometric law whose weight halves every
`half_life` rows, cut off at the oldest row, by inverting its distribution function; a share of the batch (the replay)
is drawn from all of history alike, which is what keeps rare and seasonal rows from being forgotten.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from trimtab.store.settings import RetrainSettings

__all__ = ["draw", "rows_of_step"]


def rows_of_step(settings: RetrainSettings, step: int, rows: int) -> NDArray[np.int64]:
    """int64 [batch_size] positions of the step of that number (from the moments' start on), of so many rows: the same
    wherever it is taken, and whatever was drawn before."""
    generator = np.random.default_rng([settings.seed, step])
    return draw(generator, rows, settings.batch_size, settings.half_life_rows, settings.replay_fraction)


def draw(generator: np.random.Generator, rows: int, batch: int, half_life: float, replay: float) -> NDArray[np.int64]:
    """int64 [batch] positions in [0, rows), the newest row being rows − 1. Raises ValueError where there is no row."""
    if rows <= 0:
        raise ValueError("sampling: there are no rows to draw from")
    chance = generator.random(batch)
    replayed = round(batch * replay)
    # P(age >= a) falls as 2^(-a / half_life); `spread` is the mass of the ages that exist.
    spread = -np.expm1(-rows / half_life * np.log(2.0))
    ages = np.floor(-half_life * np.log2(1.0 - chance * spread))
    ages[:replayed] = np.floor(chance[:replayed] * rows)
    positions: NDArray[np.int64] = rows - 1 - np.clip(ages, 0, rows - 1).astype(np.int64)
    return positions
