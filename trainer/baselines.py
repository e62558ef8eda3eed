"""What a live model has to beat: the last known label, the majority, and the same search on a schedule.

All of them see, for each row, only labels that were known when the row came: `known_us` says when each label became
known.

- `no_change`: the label that became known last before the row's time. A classifier's baseline needs a probability too:
  it is the share of earlier rows for which this rule was right (Laplace-smoothed), at least a hair above chance, so
  that its accuracy is that of the last known label itself.
- `majority`: the class frequencies (regression: the mean) of all labels known so far, those before the first row
  included.
- `cron`: version 1, then the same search from scratch at each time of a cron schedule on all rows whose label is due
  by then.
- `frozen`: version 1 for ever; that is what scoring its module gives, and needs no code here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from trimtab.kernels.cpu import CpuExecutor
from trimtab.kernels.schema import FeatureSpec
from trimtab.models.tasks import Task
from trimtab.store.settings import RetrainSettings
from trimtab.trainer.encode import TrainingTable
from trimtab.trainer.fit import one_thread, score
from trimtab.trainer.triggers import scheduled_times

__all__ = ["CronStep", "cron", "majority", "no_change"]

_HAIR = 1e-6


def no_change(
    task: Task,
    labels: NDArray[Any],
    time_us: NDArray[np.int64],
    known_us: NDArray[np.int64] | None = None,
    start: int = 0,
) -> NDArray[np.float64]:
    """float64 [n − start, K] predictions of rows [start, n), which are in order of time; rows before `start` only
    inform.

    `known_us` defaults to the row's own time: known to every later row. A row before any label is known gets the
    uniform distribution, or 0 for regression.
    """
    last = _last_known(time_us, known_us)
    labels = np.asarray(labels)
    if task.kind == "regression":
        return np.where(last >= 0, labels[last], 0.0).astype(np.float64)[start:, None]
    classes = len(task.classes)
    codes = labels.astype(np.int64)
    right = ((last >= 0) & (codes[last] == codes)).astype(np.float64)
    # Which rows' outcomes were known is itself a matter of time: count in order of knowing, look up by time.
    hits, seen = _known_sums(np.stack([right, (last >= 0).astype(np.float64)], axis=1), time_us, known_us).T
    trust = np.maximum((hits + 1.0) / (seen + classes), 1.0 / classes + _HAIR)
    trust = np.where(last >= 0, trust, 1.0 / classes)[start:]
    given = np.repeat(((1.0 - trust) / (classes - 1))[:, None], classes, axis=1)
    given[np.arange(len(given)), codes[last][start:]] = trust
    # Binary: the probability of the positive class, whose rule "positive from 0.5 on" the hair keeps in line.
    return given[:, 1:] if task.kind == "binary" else given


def majority(
    task: Task,
    labels: NDArray[Any],
    time_us: NDArray[np.int64],
    known_us: NDArray[np.int64] | None = None,
    start: int = 0,
) -> NDArray[np.float64]:
    """float64 [n − start, K] predictions of rows [start, n): frequencies or mean of the labels known at each row's
    time."""
    labels = np.asarray(labels)
    ones = np.ones(len(labels))
    if task.kind == "regression":
        total, seen = _known_sums(np.stack([labels.astype(np.float64), ones], axis=1), time_us, known_us).T
        means: NDArray[np.float64] = total / np.maximum(seen, 1.0)
        return means[start:, None]
    classes = len(task.classes)
    counts = _known_sums(np.eye(classes)[labels.astype(np.int64)], time_us, known_us)[start:]
    given: NDArray[np.float64] = (counts + 1.0) / (counts.sum(axis=1, keepdims=True) + classes)
    return given[:, 1:] if task.kind == "binary" else given


@dataclass(frozen=True)
class CronStep:
    """The rows that one scheduled model answers, and what it took to make it."""

    retrain: int
    """0: version 1; else the number of the scheduled retraining."""
    time_us: int
    """When it was trained, in data time."""
    start: int
    stop: int
    """Rows [start, stop) of the table are its own."""
    rows_trained: int
    predictions: NDArray[np.float32]
    """[stop − start, K]"""


def cron(
    table: TrainingTable,
    first: Any,
    specs: Sequence[FeatureSpec],
    settings: RetrainSettings,
    *,
    schedule: str = "0 0 1 * *",
    start: int,
    known_us: NDArray[np.int64] | None = None,
    architecture: str = "auto",
    progress: Callable[[Any], None] | None = None,
) -> Iterator[CronStep]:
    """Retraining from scratch on a schedule: yields, oldest first, the predictions of rows [start, n) of a table in
    order of time. `first` is version 1 as `fit_search` gave it; it answers until the schedule's first time after row
    `start`.

    These models stand still between retrainings, and their recipes are chosen as such. Nothing random is left: the
    same table, settings and code give the same predictions. Raises what `fit_search` raises.
    """
    from trimtab.trainer.search import fit_search

    settings = settings.model_copy(update={"enabled": False})
    known = table.time_us if known_us is None else known_us
    fitted, retrain, trained, at_us = first, 0, first.rows_trained, int(table.time_us[start])
    times = scheduled_times(schedule, int(table.time_us[start]), int(table.time_us[-1]))
    bounds = [*(int(np.searchsorted(table.time_us, time, "left")) for time in times), len(table)]
    position = start
    for next_us, stop in zip([*times, None], bounds, strict=True):
        if stop > position:
            part = table.slice(position, stop).encode(CpuExecutor(fitted.program))
            with one_thread():
                predictions = score(fitted.module, fitted.task, part)
            yield CronStep(retrain, at_us, position, stop, trained, predictions)
            position = stop
        if next_us is None:
            return
        # Strictly before, as in the replay: a label due at the tick itself is not yet known to it.
        rows = np.flatnonzero((known < next_us) & (table.time_us < next_us))
        if len(rows):
            # The task without the first fit's scale: from scratch means the target's scale too.
            task = replace(fitted.task, center=0.0, scale=1.0)
            fitted = fit_search(
                table.select(rows), specs, task, settings, architecture=architecture, holdout=0.0, progress=progress
            )
            retrain, trained, at_us = retrain + 1, len(rows), next_us


def _last_known(time_us: NDArray[np.int64], known_us: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """int64 [n]: the row whose label became known last before each row's time (of several, the newest row); −1:
    none."""
    known = np.maximum(time_us, known_us) if known_us is not None else time_us
    order = np.argsort(known, kind="stable")
    count = np.searchsorted(known[order], time_us, "left")
    return np.where(count > 0, order[count - 1], -1)


def _known_sums(
    values: NDArray[np.float64], time_us: NDArray[np.int64], known_us: NDArray[np.int64] | None
) -> NDArray[np.float64]:
    """float64 [n, C]: for each row the sums of values [n, C] over the rows whose label was known before its time."""
    known = np.maximum(time_us, known_us) if known_us is not None else time_us
    order = np.argsort(known, kind="stable")
    sums = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values[order], axis=0)])
    return sums[np.searchsorted(known[order], time_us, "left")]
