"""The loss that predictions let expect, against rows whose labels are known after all."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import rankdata
from trimtab.kernels.errors import ProgramError
from trimtab.kernels.estimate import MIN_ROWS, ScoreTable

EDGES = tuple(float(np.float32(x)) for x in np.linspace(0.05, 0.95, 19))


def log_loss(p: NDArray[Any], positive: NDArray[np.bool_]) -> NDArray[np.float64]:
    return -np.log(np.where(positive, p, 1.0 - p))


def drawn(rng: np.random.Generator, rows: int, a: float, b: float, miscalibrated: float = 1.0) -> Any:
    """Predictions of a beta distribution, and labels that they predict as well as ever."""
    p = np.clip(rng.beta(a, b, rows), 0.01, 0.99).astype(np.float32)
    positive = rng.random(rows) < p**miscalibrated
    return p, log_loss(p.astype(np.float64), positive), positive


def histogram(p: NDArray[np.float32]) -> NDArray[np.uint64]:
    counts = np.bincount(np.searchsorted(np.asarray(EDGES, np.float32), p, side="right"), minlength=len(EDGES) + 1)
    return counts.astype(np.uint64)


def auc_of(p: NDArray[Any], positive: NDArray[np.bool_]) -> float:
    ranks = rankdata(p)
    n, m = positive.sum(), (~positive).sum()
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * m))


@pytest.mark.parametrize("miscalibrated", [1.0, 1.7])
@pytest.mark.parametrize(("a", "b"), [(2.0, 2.0), (1.0, 4.0), (6.0, 2.0), (8.0, 8.0)])
def test_what_shifted_predictions_cost(a: float, b: float, miscalibrated: float) -> None:
    """Whatever the shift of the predictions, and however badly they are calibrated: the table has seen that."""
    rng = np.random.default_rng(1)
    table = ScoreTable.of(EDGES, *drawn(rng, 40_000, 2.0, 2.0, miscalibrated))
    p, losses, positive = drawn(rng, 20_000, a, b, miscalibrated)
    found = table.estimate(histogram(p))
    assert found is not None
    sampling = float(losses.std()) / math.sqrt(len(losses))
    binning = 0.01
    assert found.loss == pytest.approx(float(losses.mean()), abs=4 * (found.standard_error + sampling) + binning)
    assert found.auc == pytest.approx(auc_of(p, positive), abs=0.03)  # ties within a bucket count half


def test_agrees_with_row_by_row_estimation_where_predictions_are_calibrated() -> None:
    """Confidence-based estimation of each row, -(p ln p + (1 - p) ln(1 - p)), in its own words."""
    rng = np.random.default_rng(2)
    table = ScoreTable.of(EDGES, *drawn(rng, 200_000, 2.0, 2.0))
    p, _, _ = drawn(rng, 50_000, 1.0, 5.0)
    x = p.astype(np.float64)
    by_row = float(-(x * np.log(x) + (1 - x) * np.log1p(-x)).mean())
    found = table.estimate(histogram(p))
    assert found is not None
    assert found.loss == pytest.approx(by_row, abs=0.01)


def test_p_value_holds_its_level_and_has_power() -> None:
    rng = np.random.default_rng(3)
    quiet, moved = [], []
    for _ in range(400):
        table = ScoreTable.of(EDGES, *drawn(rng, 3000, 2.0, 2.0))
        for (a, b), p_values in (((2.0, 2.0), quiet), ((1.2, 3.0), moved)):
            found = table.estimate(histogram(drawn(rng, 1000, a, b)[0]))
            assert found is not None
            p_values.append(found.p_value)
    assert (np.asarray(quiet) <= 0.05).mean() < 0.05 + 4 * math.sqrt(0.05 * 0.95 / 400)
    assert (np.asarray(moved) <= 0.01).mean() > 0.95


def test_concept_drift_is_not_seen() -> None:
    """The blind spot: the same predictions for rows whose labels turned around."""
    rng = np.random.default_rng(4)
    table = ScoreTable.of(EDGES, *drawn(rng, 20_000, 2.0, 2.0))
    p, _, positive = drawn(rng, 20_000, 2.0, 2.0)
    found = table.estimate(histogram(p))
    assert found is not None
    assert found.p_value > 0.001
    assert log_loss(p.astype(np.float64), ~positive).mean() > found.loss + 0.2


def test_any_loss_will_do() -> None:
    rng = np.random.default_rng(5)
    predictions = rng.random(5000).astype(np.float32)
    losses = np.square(predictions.astype(np.float64)) + rng.normal(0, 0.1, 5000)
    table = ScoreTable.of(EDGES, predictions, losses)
    found = table.estimate(histogram(np.full(100, 0.72, np.float32)))
    assert found is not None
    assert found.loss == pytest.approx(0.72**2, abs=0.05)
    assert found.auc is None
    assert found.p_value < 1e-6


def test_too_little_to_tell() -> None:
    rng = np.random.default_rng(6)
    table = ScoreTable.of(EDGES, *drawn(rng, 2 * MIN_ROWS - 1, 2.0, 2.0))
    assert table.estimate(histogram(drawn(rng, 100, 2.0, 2.0)[0])) is None
    large = ScoreTable.of(EDGES, *drawn(rng, 2 * MIN_ROWS, 2.0, 2.0))
    assert large.estimate(np.zeros(len(EDGES) + 1, np.uint64)) is None
    with pytest.raises(ProgramError, match="expected counts of 20 buckets, got 3"):
        large.estimate(np.zeros(3, np.uint64))


@given(
    st.lists(st.floats(width=32), max_size=200),
    st.lists(st.integers(0, 1 << 40), min_size=4, max_size=4),
    st.booleans(),
)
def test_hostile_rows(predictions: list[float], counts: list[int], binary: bool) -> None:
    values = np.asarray(predictions, np.float32)
    losses = np.abs(np.where(np.isfinite(values), np.clip(values, -1e9, 1e9), np.nan).astype(np.float64))
    table = ScoreTable.of((-1.0, 0.0, 1.0), values, losses, values > 0 if binary else None)
    assert ScoreTable.from_json(table.to_json()) == table
    assert sum(table.rows) == int(np.isfinite(values).sum())
    found = table.estimate(np.asarray(counts, np.uint64))
    if found is not None:
        kept = losses[np.isfinite(values)]
        slack = 1e-9 * (1 + float(kept.max()))
        assert kept.min() - slack <= found.loss <= kept.max() + slack
        assert found.standard_error >= 0
        assert 0 <= found.p_value <= 1
        assert found.auc is None or 0 <= found.auc <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 1"),
        ({"rows": [1]}, "rows: expected 2 buckets"),
        ({"positives": [5, 0]}, "more positives than rows"),
        ({"binary": 1}, "not a boolean"),
        ({"losses": ["x", 0.0]}, "losses"),
        ({"more": 1}, "more"),
    ],
)
def test_damaged_tables_are_refused(change: dict[str, Any], message: str) -> None:
    import json

    table = ScoreTable((0.5,), (1, 2), (0.1, 0.2), (0.1, 0.2), (1, 0), True)
    text = json.dumps({**json.loads(table.to_json()), **change})
    with pytest.raises(ProgramError, match=message):
        ScoreTable.from_json(text)
