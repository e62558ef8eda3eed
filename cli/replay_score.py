"""What a replay says in numbers: each side's metrics, and how sure the differences between them are.

Sides are scored on the same rows: those that were answered and whose label is known. A difference is live minus the
baseline, with a block-bootstrap interval (trainer.bootstrap): of the mean loss, and likewise of every metric that is
a mean over rows. ROC AUC is not, but its deviation is one to first order: a positive row's share is the fraction of
negatives scored below it, and the other way round (DeLong, DeLong & Clarke-Pearson 1988); of these shares, whose mean
is the AUC, blocks of time are drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from trimtab.models.metrics import metrics_of
from trimtab.models.tasks import Task
from trimtab.trainer.bootstrap import Comparison, compare_losses

__all__ = ["Difference", "auc_shares", "differences", "measure", "rolling"]

LEVEL = 0.95
Difference = dict[str, float | None]
_LOWER_IS_BETTER = frozenset({"log_loss", "rmse", "mae"})


def measure(task: Task, predictions: NDArray[Any], labels: NDArray[Any]) -> dict[str, float | None]:
    """The task's metrics as JSON has them: what is not defined is None. Regression's accuracy is None."""
    found = metrics_of(task, predictions, labels)
    if task.kind == "regression":
        found = {"accuracy": float("nan"), **found}
    return {name: float(value) if np.isfinite(value) else None for name, value in found.items()}


def differences(
    task: Task,
    live: NDArray[Any],
    other: NDArray[Any],
    labels: NDArray[Any],
    time_us: NDArray[np.int64],
    cohort_us: int,
) -> dict[str, Difference]:
    """Live minus other, by metric: difference, low, high (95 %), and whether the interval excludes zero in live's
    favour (`better`) or against it (`worse`)."""
    mine, theirs = _parts(task, live, labels), _parts(task, other, labels)
    found = {}
    for name, values in mine.items():
        relative = name == "rmse"
        result = compare_losses(values, theirs[name], time_us, cohort_us=cohort_us, relative=relative)
        scale = _rmse(theirs[name]) if relative else 1.0
        found[name] = _difference(name, result, scale)
    return found


def _difference(name: str, result: Comparison, scale: float) -> Difference:
    low, high = (bound * scale for bound in result.interval(LEVEL))
    lower = name in _LOWER_IS_BETTER
    known = bool(np.isfinite(low) and np.isfinite(high))
    return {
        "difference": result.difference * scale,
        "low": low if known else None,
        "high": high if known else None,
        "better": known and (high < 0 if lower else low > 0),
        "worse": known and (low > 0 if lower else high < 0),
        "rows": result.rows,
        "blocks": result.blocks,
    }


def _rmse(squares: NDArray[np.float64]) -> float:
    return float(np.sqrt(squares.mean()))


def _parts(task: Task, predictions: NDArray[Any], labels: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    """Values [n] whose mean is the metric (for rmse: its square)."""
    given = np.asarray(predictions, dtype=np.float64).reshape(len(labels), task.width)
    if task.kind == "regression":
        error = given[:, 0] - labels
        return {"rmse": error**2, "mae": np.abs(error)}
    truth = np.asarray(labels, dtype=np.int64)
    predicted = (given[:, 0] >= 0.5).astype(np.int64) if task.kind == "binary" else given.argmax(axis=1)
    parts = {
        "log_loss": task.losses_of(given, labels),
        "accuracy": (predicted == truth).astype(np.float64),
    }
    columns = (
        [(given[:, 0], truth == 1)] if task.kind == "binary" else [(given[:, k], truth == k) for k in range(task.width)]
    )
    shares = [auc_shares(scores, positive) for scores, positive in columns if 0 < positive.sum() < len(positive)]
    if shares:
        parts["roc_auc"] = np.mean(shares, axis=0)
    return parts


def auc_shares(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> NDArray[np.float64]:
    """float64 [n] values whose mean is the ROC AUC, and whose deviations are its influence function, to first order."""
    rows, ones = len(scores), int(positive.sum())
    shares = np.empty(rows)
    for side, below in ((positive, True), (~positive, False)):
        others = np.sort(scores[~side])
        low, high = (np.searchsorted(others, scores[side], how) for how in ("left", "right"))
        fraction = (low + high) / (2.0 * len(others))
        shares[side] = fraction if below else 1.0 - fraction
    area = float(shares[positive].mean())
    weight = np.where(positive, rows / ones, rows / (rows - ones))
    return area + weight * (shares - area)


def rolling(
    losses: Mapping[str, NDArray[np.float64]], time_us: NDArray[np.int64], *, points: int = 120
) -> tuple[NDArray[np.int64], dict[str, NDArray[np.float64]]]:
    """(times [p] µs, means [p] by side): mean losses in equal spans of data time, smoothed over seven of them with
    rows as weights. Spans without rows are NaN."""
    if not len(time_us):
        return np.zeros(0, np.int64), {name: np.zeros(0) for name in losses}
    first, last = int(time_us[0]), int(time_us[-1])
    width = max((last - first) // points + 1, 1)
    span = (time_us - first) // width
    window = np.ones(7)
    rows = np.convolve(np.bincount(span, minlength=points).astype(np.float64)[:points], window, "same")
    centres = first + width * np.arange(points, dtype=np.int64) + width // 2
    found = {}
    for name, values in losses.items():
        sums = np.convolve(np.bincount(span, weights=values, minlength=points)[:points], window, "same")
        found[name] = np.where(rows > 0, sums / np.maximum(rows, 1.0), np.nan)
    return centres, found
