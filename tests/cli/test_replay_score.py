"""Metrics and differences of a replay's sides."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimtab.cli.replay_score import auc_shares, differences, measure, rolling
from trimtab.models.metrics import roc_auc
from trimtab.models.tasks import Task

_BINARY = Task.of("binary", ["no", "yes"], "yes")
_HOUR = 3_600_000_000


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=80))
def test_auc_is_the_mean_of_its_shares(rows: list[tuple[int, bool]]) -> None:
    scores = np.array([score for score, _ in rows], np.float64)
    positive = np.array([flag for _, flag in rows])
    if positive.all() or not positive.any():
        return
    assert auc_shares(scores, positive).mean() == pytest.approx(roc_auc(scores, positive), abs=1e-12)


def test_auc_error_of_independent_rows_is_delongs() -> None:
    generator = np.random.default_rng(3)
    drawn = []
    for _ in range(300):
        positive = generator.random(400) < 0.3
        drawn.append(auc_shares(generator.normal(size=400) + positive, positive))
    spread = np.std([shares.mean() for shares in drawn])
    expected = np.mean([shares.std() / np.sqrt(len(shares)) for shares in drawn])
    assert expected == pytest.approx(spread, rel=0.15)


def test_a_better_side_is_better_in_every_metric() -> None:
    generator = np.random.default_rng(0)
    truth = generator.random(6000)
    labels = (generator.random(6000) < truth).astype(np.float32)
    times = np.arange(6000, dtype=np.int64) * (_HOUR // 20)
    worse = np.clip(truth + generator.normal(size=6000) * 0.35, 0.02, 0.98)
    found = differences(_BINARY, truth[:, None], worse[:, None], labels, times, _HOUR)
    assert set(found) == {"log_loss", "accuracy", "roc_auc"}
    assert all(item["better"] and not item["worse"] for item in found.values())
    back = differences(_BINARY, worse[:, None], truth[:, None], labels, times, _HOUR)
    assert all(item["worse"] for item in back.values())
    mine, theirs = (measure(_BINARY, side[:, None], labels) for side in (truth, worse))
    for name, item in found.items():
        assert item["difference"] == pytest.approx(mine[name] - theirs[name], abs=1e-12)


def test_the_same_side_differs_by_nothing() -> None:
    labels = np.tile([0.0, 1.0], 500).astype(np.float32)
    same = np.full((1000, 1), 0.4)
    found = differences(_BINARY, same, same, labels, np.arange(1000, dtype=np.int64) * _HOUR, _HOUR)
    assert all(item["difference"] == 0 and not item["better"] and not item["worse"] for item in found.values())


def test_regression_difference_is_in_the_targets_unit() -> None:
    task = Task.of("regression")
    labels = np.zeros(2000)
    generator = np.random.default_rng(1)
    live, other = generator.normal(size=(2000, 1)), 2 * generator.normal(size=(2000, 1))
    found = differences(task, live, other, labels, np.arange(2000, dtype=np.int64) * _HOUR, _HOUR)
    mine, theirs = measure(task, live, labels), measure(task, other, labels)
    assert mine["accuracy"] is None
    assert mine["rmse"] is not None
    assert theirs["rmse"] is not None
    assert found["rmse"]["difference"] == pytest.approx(mine["rmse"] - theirs["rmse"])
    assert found["rmse"]["better"]
    assert found["mae"]["better"]


def test_curve_keeps_the_mean_and_marks_gaps() -> None:
    times = np.concatenate([np.arange(500), 50_000 + np.arange(500)]).astype(np.int64)
    centres, curves = rolling({"a": np.ones(1000)}, times, points=50)
    assert len(centres) == 50
    assert np.isnan(curves["a"]).any()
    assert np.nanmin(curves["a"]) == np.nanmax(curves["a"]) == 1.0
