"""Searches over each task: they learn, repeat bit for bit, keep the holdout untouched, and say what they cannot do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from trimtab.kernels.schema import FeatureSpec, Transform
from trimtab.models.version import loaded, missing_rows
from trimtab.store.manifest import Manifest
from trimtab.store.settings import RetrainSettings
from trimtab.trainer.encode import EncodedRows, TrainingTable, task_of, training_table
from trimtab.trainer.errors import RowsUnfit
from trimtab.trainer.prepare import newest_block, thinned
from trimtab.trainer.search import Fitted, Progress, fit_search
from trimtab.trainer.trials import folds

from .tables import make_arrow, make_model, make_table

SETTINGS = RetrainSettings(search_trials=4)


def search(table: TrainingTable, task: str = "binary", **options: Any) -> Fitted:
    model = make_model(task)
    return fit_search(table, model.specs(), task_of(model), SETTINGS, **options)


@pytest.mark.parametrize(
    ("task", "metric", "least"),
    [("binary", "log_loss", 0.1), ("multiclass", "log_loss", 0.1), ("regression", "rmse", 3.0)],
)
def test_a_search_beats_both_baselines_by_far(task: str, metric: str, least: float) -> None:
    fitted = search(make_table(2000, task), task)
    for baseline in ("no_change", "majority"):
        assert fitted.metrics[metric] < fitted.metrics[f"{baseline}_{metric}"] - least
    assert fitted.holdout is not None
    assert fitted.metrics["holdout_rows"] == len(fitted.holdout.losses) == 300
    assert fitted.rows_trained == 2000
    assert len(fitted.trials) == 4


def test_what_is_found_serves() -> None:
    fitted = search(make_table(800, "multiclass"), "multiclass")
    manifest = Manifest(version=1, architecture=fitted.architecture, program_hash=fitted.program.hash)
    version = loaded(manifest, fitted.files())
    predictions = version.predict(missing_rows(fitted.program, 4))
    np.testing.assert_allclose(predictions.sum(axis=1), 1.0, rtol=1e-6)
    assert fitted.reference.rows == 800
    assert fitted.reference.prediction.rows == 800
    assert fitted.holdout is not None
    assert version.scores is not None
    assert sum(version.scores.rows) == len(fitted.holdout.losses)
    found = version.scores.estimate(fitted.reference.prediction.buckets)
    assert found is not None
    assert found.evaluated_loss == pytest.approx(fitted.holdout.losses.mean())


def test_same_rows_and_seed_same_bits() -> None:
    table = make_table(800)
    torch.manual_seed(1)
    first = search(table)
    torch.manual_seed(2)
    np.random.seed(3)  # the point is that the legacy global generator does not matter
    second = search(table)
    assert first.files() == second.files()
    assert (first.metrics, first.trials) == (second.metrics, second.trials)
    other = fit_search(table, make_model().specs(), task_of(make_model()), SETTINGS.model_copy(update={"seed": 1}))
    assert other.files()["weights.safetensors"] != first.files()["weights.safetensors"]


def test_no_trial_sees_the_holdout() -> None:
    table = make_table(1000)
    first = search(table)
    labels = table.labels.copy()
    labels[850:] = 1.0 - labels[850:]
    second = search(TrainingTable(table.slab, labels, table.weights, table.time_us))
    assert first.trials == second.trials
    assert first.holdout is not None
    assert second.holdout is not None
    np.testing.assert_array_equal(first.holdout.predictions, second.holdout.predictions)
    # But the final fit does.
    assert first.files()["weights.safetensors"] != second.files()["weights.safetensors"]


def test_rows_in_any_order_give_the_same_model() -> None:
    table = make_table(600)
    table.time_us = np.arange(600, dtype=np.int64)
    shuffled = table.select(np.random.default_rng(1).permutation(600))
    assert search(table).files() == search(shuffled).files()


def test_a_moving_stream_scored_prequentially_beats_standing_still() -> None:
    model, table = make_model(), make_table(3000, shift=6.0)
    fast = SETTINGS.model_copy(update={"half_life_rows": 200, "learning_rate": 0.005, "chunk_labels": 50})
    still, moving = (
        fit_search(table, model.specs(), task_of(model), fast, architecture="linear", prequential=prequential)
        for prequential in (False, True)
    )
    assert moving.metrics["log_loss"] < still.metrics["log_loss"]
    for fitted in (moving, still):
        assert "scores.json" in fitted.files()  # of the holdout as each scored it
    assert {**moving.files(), "scores.json": b""} == {**still.files(), "scores.json": b""}


def test_without_a_holdout_there_are_no_metrics_of_it() -> None:
    fitted = search(make_table(500), holdout=0.0)
    assert fitted.holdout is None
    assert "scores.json" not in fitted.files()
    assert set(fitted.metrics) == {"trials", "validation_loss"}


@pytest.mark.parametrize("architecture", ["linear", "mlp"])
def test_the_architecture_can_be_fixed(architecture: str) -> None:
    fitted = search(make_table(500), architecture=architecture)
    assert {trial["kind"] for trial in fitted.trials} == {architecture}


def test_progress_tells_stages_trials_and_the_best_so_far() -> None:
    seen: list[Progress] = []
    search(make_table(500), progress=seen.append)
    stages = [item.stage for item in seen]
    assert stages[0] == "columns"
    assert stages[-2:] == ["holdout", "final"]
    trials = [item for item in seen if item.stage == "trial"]
    assert {item.trial for item in trials} == {1, 2, 3, 4}
    assert all(1 <= item.epoch <= item.epochs and np.isfinite(item.loss) for item in trials)
    assert np.isfinite(seen[-1].best_loss)
    assert seen[-1].best


def test_the_models_sketch_is_kept() -> None:
    first = search(make_table(500))
    second = search(make_table(700, seed=4), sketch=first.program.sketch)
    assert second.program.sketch.hash == first.program.sketch.hash
    assert second.program.hash != first.program.hash


def test_rows_that_cannot_be_trained_on() -> None:
    with pytest.raises(RowsUnfit, match="60 labelled rows"):
        search(make_table(60))
    table = make_table(300)
    with pytest.raises(RowsUnfit, match="all 300 labelled rows are 'no'"):
        search(TrainingTable(table.slab, np.zeros(300, np.float32), table.weights, table.time_us))
    with pytest.raises(RowsUnfit, match="weights"):
        search(TrainingTable(table.slab, table.labels, -table.weights, table.time_us))


def test_an_empty_chain_takes_its_types_default() -> None:
    model = make_model()
    fitted = fit_search(make_table(300), (FeatureSpec("x", "real", ()), *model.specs()[1:]), task_of(model), SETTINGS)
    assert "x.missing" in fitted.program.feature_names


def test_an_unclipped_infinity_is_named() -> None:
    model = make_model()
    specs = (FeatureSpec("x", "real", (Transform("impute"),)), *model.specs()[1:])
    arrow = make_arrow(300)
    values = arrow.column("x").fill_null(0.0).to_numpy().copy()
    values[5] = np.inf
    table = training_table(arrow.set_column(0, "x", pa.array(values)), model)
    with pytest.raises(RowsUnfit, match="feature 'x' has values beyond"):
        fit_search(table, specs, task_of(model), SETTINGS)


def test_the_newest_block_does_not_cut_through_a_time() -> None:
    times = np.repeat(np.arange(10), 7).astype(np.int64)
    cut = newest_block(times, 0.15)
    assert cut == 56
    assert newest_block(np.zeros(20, np.int64), 0.15) == 17
    assert newest_block(np.arange(2, dtype=np.int64), 0.5) == 1


def test_folds_go_forward_in_time() -> None:
    rows = 2000
    encoded = EncodedRows(
        np.zeros((rows, 1), np.float32),
        np.zeros((rows, 0), np.int64),
        np.zeros(rows, np.float32),
        np.ones(rows, np.float32),
        np.arange(rows, dtype=np.int64),
    )
    found = folds(encoded)
    assert len(found) == 3
    assert all(train.time_us.max() < validation.time_us.min() for train, validation in found)
    assert [len(validation) for _, validation in found] == [300, 300, 300]
    assert found[2][1].time_us.max() == rows - 1
    assert len(folds(encoded.slice(0, 500))) == 1
    assert thinned(encoded, 100).time_us[[0, -1]].tolist() == [0, rows - 1]
