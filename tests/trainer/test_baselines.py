"""The baselines against loops that look at each row's past, and the scheduled retraining's bounds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimtab.kernels.cpu import CpuExecutor
from trimtab.models.metrics import metrics_of
from trimtab.models.tasks import Task
from trimtab.store.settings import RetrainSettings
from trimtab.trainer.baselines import cron, majority, no_change
from trimtab.trainer.encode import task_of
from trimtab.trainer.fit import score
from trimtab.trainer.search import fit_search

from .tables import HOUR_US, make_model, make_table

BINARY = Task("binary", ("n", "y"))
MULTI = Task("multiclass", ("a", "b", "c"))
VALUE = Task("regression")
ROWS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 6)), min_size=1, max_size=25)


@given(ROWS)
def test_baselines_use_only_labels_known_before_the_row(rows: list[tuple[int, int, int]]) -> None:
    labels = np.array([label for label, _, _ in rows])
    times = np.cumsum([step for _, step, _ in rows]).astype(np.int64)
    known = times + np.array([delay for _, _, delay in rows])
    changes, means = no_change(VALUE, labels, times, known), majority(VALUE, labels, times, known)
    last, counts = no_change(MULTI, labels, times, known), majority(MULTI, labels, times, known)
    for row in range(len(rows)):
        past = [other for other in range(len(rows)) if known[other] < times[row]]
        newest = max(past, key=lambda other: (known[other], other), default=None)
        assert changes[row, 0] == (0.0 if newest is None else labels[newest])
        assert means[row, 0] == pytest.approx(np.mean(labels[past]) if past else 0.0)
        frequencies = np.bincount(labels[past], minlength=3) + 1.0
        np.testing.assert_allclose(counts[row], frequencies / frequencies.sum())
        assert last[row].sum() == pytest.approx(1.0)
        if newest is not None:
            assert last[row].argmax() == labels[newest]


def test_no_change_has_the_accuracy_of_the_last_label() -> None:
    generator = np.random.default_rng(1)
    labels = (generator.random(500) < 0.3).astype(np.float32)
    times = np.arange(500, dtype=np.int64)
    predictions = no_change(BINARY, labels, times)
    assert metrics_of(BINARY, predictions, labels)["accuracy"] == pytest.approx(
        (np.r_[0.5, labels[:-1]].round() == labels).mean(), abs=1 / 500
    )
    # Its probabilities are honest: no worse than even chances.
    assert metrics_of(BINARY, predictions, labels)["log_loss"] < np.log(2) + 0.01


def test_rows_before_the_start_only_inform() -> None:
    labels, times = np.array([1.0, 1.0, 0.0, 1.0]), np.arange(4, dtype=np.int64)
    np.testing.assert_array_equal(no_change(BINARY, labels, times, None, 2), no_change(BINARY, labels, times)[2:])
    np.testing.assert_array_equal(majority(BINARY, labels, times, None, 2), majority(BINARY, labels, times)[2:])


def test_cron_retrains_on_what_is_due_and_only_then() -> None:
    model = make_model()
    task = task_of(model)
    settings = RetrainSettings(search_trials=2)
    table = make_table(1200, shift=3.0)  # ten rows an hour: 120 hours
    first = fit_search(table.slice(0, 400), model.specs(), task, settings)
    known = table.time_us + 5 * HOUR_US
    schedule = "0 0 * * *"

    def steps() -> list[tuple[int, int, int, int, int]]:
        found = list(cron(table, first, model.specs(), settings, schedule=schedule, start=400, known_us=known))
        np.testing.assert_array_equal(
            found[0].predictions,
            score(first.module, task, table.slice(400, 480).encode(CpuExecutor(first.program))),
        )
        assert all(len(step.predictions) == step.stop - step.start for step in found)
        return [(step.retrain, step.time_us // HOUR_US, step.start, step.stop, step.rows_trained) for step in found]

    # Midnights are hours 48, 72, 96; a label is known five hours after its row, strictly before the retraining.
    assert steps() == [
        (0, 40, 400, 480, 400),
        (1, 48, 480, 720, 430),
        (2, 72, 720, 960, 670),
        (3, 96, 960, 1200, 910),
    ]


def test_cron_is_deterministic() -> None:
    model = make_model("regression")
    settings = RetrainSettings(search_trials=2)
    table = make_table(600, "regression")
    first = fit_search(table.slice(0, 300), model.specs(), task_of(model), settings)
    runs = [list(cron(table, first, model.specs(), settings, schedule="0 0 * * *", start=300)) for _ in range(2)]
    for one, two in zip(*runs, strict=True):
        np.testing.assert_array_equal(one.predictions, two.predictions)
    assert runs[0][-1].retrain > 0
