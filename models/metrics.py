"""Metrics of predictions, in NumPy, float64, with optional weights [n]. Ties are exact, never broken by order.

Each returns NaN where it is not defined (no rows, no weight, one class only for AUC), and raises nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from trimtab.models.tasks import Task

__all__ = ["accuracy", "kappa", "log_loss", "mae", "metrics_of", "rmse", "roc_auc"]

Floats = NDArray[Any]


def accuracy(predicted: Floats, labels: Floats, weights: Floats | None = None) -> float:
    """Share of equal classes [n], [n]."""
    return _mean(np.asarray(predicted) == np.asarray(labels), weights)


def log_loss(losses: Floats, weights: Floats | None = None) -> float:
    """Mean of per-row losses [n] in nats, as `Task.losses_of` gives them."""
    return _mean(losses, weights)


def rmse(values: Floats, labels: Floats, weights: Floats | None = None) -> float:
    """Root of the mean squared error of [n], [n], in the labels' unit."""
    return float(np.sqrt(_mean(np.square(np.asarray(values, np.float64) - np.asarray(labels, np.float64)), weights)))


def mae(values: Floats, labels: Floats, weights: Floats | None = None) -> float:
    """Mean absolute error of [n], [n], in the labels' unit."""
    return _mean(np.abs(np.asarray(values, np.float64) - np.asarray(labels, np.float64)), weights)


def roc_auc(scores: Floats, positive: Floats, weights: Floats | None = None) -> float:
    """Area under the ROC curve of scores [n] for positive [n] (bool): the chance that a positive outranks a negative,
    where a tie counts one half (Mann-Whitney). NaN without both classes."""
    score = np.asarray(scores, dtype=np.float64)
    truth = np.asarray(positive, dtype=np.bool_)
    weight = np.ones(len(score)) if weights is None else np.asarray(weights, dtype=np.float64)
    order = np.argsort(score, kind="stable")
    score, truth, weight = score[order], truth[order], weight[order]
    positives, negatives = np.where(truth, weight, 0.0), np.where(truth, 0.0, weight)
    if positives.sum() <= 0 or negatives.sum() <= 0:
        return float("nan")
    # One group for each distinct score; a positive beats all negatives of earlier groups and half of its own group's.
    starts = np.flatnonzero(np.r_[True, score[1:] != score[:-1]])
    group_positives, group_negatives = np.add.reduceat(positives, starts), np.add.reduceat(negatives, starts)
    below = np.cumsum(group_negatives) - group_negatives
    wins = np.dot(group_positives, below + 0.5 * group_negatives)
    return float(wins / (positives.sum() * negatives.sum()))


def kappa(predicted: Floats, labels: Floats, classes: int, weights: Floats | None = None) -> float:
    """Cohen's kappa of classes [n], [n] in 0 … classes − 1: agreement beyond chance; 0 where chance agrees fully."""
    weight = np.ones(len(labels)) if weights is None else np.asarray(weights, dtype=np.float64)
    cells = np.asarray(predicted, dtype=np.int64) * classes + np.asarray(labels, dtype=np.int64)
    table = np.bincount(cells, weights=weight, minlength=classes * classes).reshape(classes, classes)
    total = table.sum()
    if total <= 0:
        return float("nan")
    observed = np.trace(table) / total
    chance = float(np.dot(table.sum(axis=0), table.sum(axis=1)) / total**2)
    return float((observed - chance) / (1.0 - chance)) if chance < 1.0 else 0.0


def metrics_of(task: Task, predictions: Floats, labels: Floats, weights: Floats | None = None) -> dict[str, float]:
    """The task's metrics of predictions [n, K] and encoded labels [n].

    Classifiers: accuracy, log_loss, roc_auc (multiclass: mean over the classes, each against the rest, of those that
    are there), kappa. Binary predicts the positive class from probability 0.5 on. Regression: rmse, mae.
    """
    given = np.asarray(predictions, dtype=np.float64).reshape(len(labels), task.width)
    if task.kind == "regression":
        return {"rmse": rmse(given[:, 0], labels, weights), "mae": mae(given[:, 0], labels, weights)}
    truth = np.asarray(labels, dtype=np.int64)
    if task.kind == "binary":
        predicted = (given[:, 0] >= 0.5).astype(np.int64)
        auc = roc_auc(given[:, 0], truth == 1, weights)
    else:
        predicted = given.argmax(axis=1)
        each = [roc_auc(given[:, k], truth == k, weights) for k in range(task.width)]
        auc = float(np.nanmean(each)) if np.isfinite(each).any() else float("nan")
    return {
        "accuracy": accuracy(predicted, truth, weights),
        "log_loss": log_loss(task.losses_of(given, labels), weights),
        "roc_auc": auc,
        "kappa": kappa(predicted, truth, len(task.classes), weights),
    }


def _mean(values: Floats, weights: Floats | None) -> float:
    given = np.asarray(values, dtype=np.float64)
    if weights is None:
        return float(given.mean()) if len(given) else float("nan")
    weight = np.asarray(weights, dtype=np.float64)
    total = weight.sum()
    return float(np.dot(given, weight) / total) if total > 0 else float("nan")
