"""The law that batches are drawn by, and that drawing costs a batch, not a history."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimtab.trainer.sampling import draw


@given(st.integers(0, 2**32), st.integers(1, 10**12), st.integers(1, 600), st.floats(1, 1e9), st.floats(0, 1))
def test_positions_exist(seed: int, rows: int, batch: int, half_life: float, replay: float) -> None:
    positions = draw(np.random.default_rng(seed), rows, batch, half_life, replay)
    assert positions.shape == (batch,)
    assert positions.dtype == np.int64
    assert positions.min() >= 0
    assert positions.max() < rows


@pytest.mark.parametrize(("rows", "half_life"), [(50, 10.0), (20, 1000.0), (3, 1.0)])
def test_recency_law(rows: int, half_life: float) -> None:
    positions = draw(np.random.default_rng(1), rows, 200_000, half_life, 0.0)
    ages = rows - 1 - np.arange(rows)
    expected = 2.0 ** (-ages / half_life)
    expected /= expected.sum()
    found = np.bincount(positions, minlength=rows) / 200_000
    assert (np.abs(found - expected) < 5 * np.sqrt(expected / 200_000)).all()


def test_replay_is_uniform_over_all_history() -> None:
    positions = draw(np.random.default_rng(2), 1000, 100_000, 1.0, 0.5)
    # Half of them are among the newest few; the others are everywhere alike.
    assert np.mean(positions < 900) == pytest.approx(0.45, abs=0.01)


def test_no_rows() -> None:
    with pytest.raises(ValueError, match="no rows"):
        draw(np.random.default_rng(0), 0, 8, 100.0, 0.0)
