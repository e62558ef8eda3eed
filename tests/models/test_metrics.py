"""Metrics against definitions written out the slow way, with ties and weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimtab.models.metrics import accuracy, kappa, mae, metrics_of, rmse, roc_auc
from trimtab.models.tasks import Task

# Few distinct scores, so that ties are the rule.
ROWS = st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.integers(0, 3)), min_size=1, max_size=30)


@given(ROWS)
def test_auc_is_the_share_of_pairs_in_order(rows: list[tuple[int, bool, int]]) -> None:
    wins = total = 0.0
    for score, positive, weight in rows:
        for other, negative, other_weight in rows:
            if positive and not negative:
                pair = weight * other_weight
                total += pair
                wins += pair * (1.0 if score > other else 0.5 if score == other else 0.0)
    scores, truth, weights = (np.array(part) for part in zip(*rows, strict=True))
    found = roc_auc(scores, truth, weights)
    assert math.isnan(found) if total == 0 else found == pytest.approx(wins / total, abs=1e-12)


@given(ROWS)
def test_integer_weights_are_repetitions(rows: list[tuple[int, bool, int]]) -> None:
    scores, truth, weights = (np.array(part) for part in zip(*rows, strict=True))
    again = np.repeat(np.arange(len(rows)), weights)
    repeated = roc_auc(scores[again], truth[again])
    assert roc_auc(scores, truth, weights) == pytest.approx(repeated, abs=1e-12, nan_ok=True)
    codes = truth.astype(int)
    assert kappa(scores % 2, codes, 2, weights) == pytest.approx(kappa(scores[again] % 2, codes[again], 2), nan_ok=True)
    assert accuracy(scores % 2, codes, weights) == pytest.approx(accuracy(scores[again] % 2, codes[again]), nan_ok=True)


def test_kappa_of_known_table() -> None:
    # Cohen's own form: 20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no gives 0.4.
    predicted = np.repeat([1, 1, 0, 0], [20, 5, 10, 15])
    labels = np.repeat([1, 0, 1, 0], [20, 5, 10, 15])
    assert kappa(predicted, labels, 2) == pytest.approx(0.4)
    assert kappa(np.zeros(3), np.zeros(3), 2) == 0.0


def test_errors_of_values() -> None:
    values, labels, weights = np.array([1.0, 4.0]), np.array([0.0, 2.0]), np.array([3.0, 1.0])
    assert rmse(values, labels, weights) == pytest.approx(math.sqrt(7 / 4))
    assert mae(values, labels, weights) == pytest.approx(5 / 4)
    assert math.isnan(rmse(np.zeros(0), np.zeros(0)))


def test_binary_predicts_positive_from_one_half_on() -> None:
    found = metrics_of(Task("binary", ("n", "y")), np.array([[0.5], [0.49]]), np.array([1.0, 0.0]))
    assert found["accuracy"] == 1.0
    assert set(found) == {"accuracy", "log_loss", "roc_auc", "kappa"}


def test_multiclass_auc_leaves_out_classes_that_are_not_there() -> None:
    task = Task("multiclass", ("a", "b", "c"))
    given_ = np.array([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1]])
    assert metrics_of(task, given_, np.array([0, 1]))["roc_auc"] == 1.0
    assert math.isnan(metrics_of(task, given_, np.array([0, 0]))["roc_auc"])
