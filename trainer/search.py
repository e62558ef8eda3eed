"""Finding a model from scratch: Optuna over a few architectures and hyperparameters, then one fit of the best on all
rows.

Rows are used in order of time, because the future is what the model will see:

    | training rows of the trials            | inner validation | holdout |      → trials see nothing of the holdout |
    fit of the best recipe                                    | scored  |      → the losses that are reported and
    gated | final fit: the same recipe and length, from scratch                 |      → the version

How trials are run, and which wins, is in `trials`. The fits take at most FIT_STEPS steps each (`recipe`).

Deterministic: TPE with a seed, in-memory storage, one thread, own generators. Only a time limit
(`search_seconds`) makes what is found depend on the machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from trimtab.kernels.cpu import CpuExecutor, sketch_table
from trimtab.kernels.estimate import ScoreTable
from trimtab.kernels.program import ColumnProgram
from trimtab.kernels.schema import FeatureSpec
from trimtab.kernels.sketch import Sketch
from trimtab.kernels.sketch_spec import SketchSpec
from trimtab.models.architectures import Network, build
from trimtab.models.metrics import metrics_of
from trimtab.models.tasks import Task
from trimtab.models.version import architecture_of, version_files
from trimtab.store.settings import RetrainSettings
from trimtab.trainer.baselines import majority, no_change
from trimtab.trainer.encode import EncodedRows, TrainingTable
from trimtab.trainer.fit import ChallengerState, one_thread, refresh, score
from trimtab.trainer.prepare import check_rows, encoded, newest_block, program_for, with_defaults
from trimtab.trainer.recipe import Recipe, fit_recipe
from trimtab.trainer.trials import Ground, Progress, Report, folds, search_recipes

__all__ = ["Fitted", "Holdout", "Progress", "fit_search"]


@dataclass(frozen=True)
class Holdout:
    """The newest block of rows, scored by a model that never saw it."""

    labels: NDArray[Any]
    time_us: NDArray[np.int64]
    weights: NDArray[np.float32]
    predictions: NDArray[np.float32] = field(repr=False)
    """[n, K]"""
    losses: NDArray[np.float64] = field(repr=False)
    """[n]"""
    baselines: Mapping[str, NDArray[np.float64]] = field(repr=False)
    """Losses [n] of `no_change` and `majority`."""
    start: int = 0
    """Position of its first row in the table, in order of time."""


@dataclass(frozen=True)
class Fitted:
    """A version to be: what `version_files` and a manifest need."""

    config: dict[str, Any]
    task: Task
    module: Network = field(repr=False)
    program: ColumnProgram = field(repr=False)
    reference: Sketch = field(repr=False)
    metrics: dict[str, float]
    """Of the holdout, each also for the baselines: `log_loss`, `no_change_log_loss`, `majority_log_loss` …"""
    holdout: Holdout | None
    rows_trained: int
    trials: list[dict[str, Any]] = field(repr=False)
    """Each trial's recipe and validation loss, in order."""

    @property
    def architecture(self) -> dict[str, Any]:
        """The manifest's `architecture`."""
        return architecture_of(self.config, self.task)

    @property
    def weight_decay(self) -> float:
        """With which refreshes go on."""
        return float(self.config["weight_decay"])

    def files(self) -> dict[str, bytes]:
        """The version's files by name."""
        return version_files(self.module, self.program, self.reference, scores=self.scores())

    def scores(self) -> ScoreTable | None:
        """What predictions cost on the holdout, which the model that made them had not seen."""
        held = self.holdout
        if held is None:
            return None
        positive = held.labels > 0.5 if self.task.kind == "binary" else None
        edges = self.program.sketch.prediction_edges
        return ScoreTable.of(edges, self.task.summary(held.predictions), held.losses, positive)


def fit_search(
    table: TrainingTable,
    specs: Sequence[FeatureSpec],
    task: Task,
    settings: RetrainSettings,
    *,
    architecture: str = "auto",
    sketch: SketchSpec | None = None,
    known_us: NDArray[np.int64] | None = None,
    holdout: float = 0.15,
    prequential: bool = False,
    cohort_us: int = 3_600_000_000,
    progress: Report | None = None,
) -> Fitted:
    """Searches and fits a model on the table's rows.

    holdout: share of the newest rows that trials do not see; 0: none, and no metrics. known_us: when each label
    became known, for the no-change baseline (default: at once). sketch: the model's spec, to keep. prequential: score
    the holdout as a live model would meet it, refreshed chunk by chunk, instead of by a model that stands still: what
    a new recipe must be judged by where the live version was refreshed all along. Raises RowsUnfit, TrainingFailed.
    """
    report = progress or _silent
    check_rows(table, task)
    if known_us is not None and len(known_us) != len(table):
        raise ValueError(f"known_us: expected {len(table)} times, got {len(known_us)}")
    if known_us is not None:
        known_us = known_us[np.argsort(table.time_us, kind="stable")]
    table = table.in_order()
    cut = newest_block(table.time_us, holdout) if holdout > 0 else len(table)
    past = table.slice(0, cut) if cut < len(table) else table
    with one_thread():
        report(Progress("columns"))
        specs = [with_defaults(spec, past) for spec in specs]
        program = program_for(past, specs, task, sketch)
        scaled = task.scaled_to(past.labels, past.weights)
        rows = encoded(past, program)
        ground = Ground(folds(rows), program, scaled, settings, cohort_us)
        recipe, trials = search_recipes(ground, architecture, report)
        held: Holdout | None = None
        metrics = {"trials": float(len(trials)), "validation_loss": min(trial["loss"] for trial in trials)}
        if cut < len(table):
            report(Progress("holdout", best_loss=metrics["validation_loss"], best=str(recipe)))
            held = _held(table, cut, rows, program, scaled, recipe, settings, known_us, prequential)
            metrics |= _metrics(scaled, held)
            # The final fit sees every row: its quantiles, vocabularies and target scale do as well.
            program = program_for(table, specs, task, sketch)
            scaled = task.scaled_to(table.labels, table.weights)
            rows = encoded(table, program)
        report(Progress("final", best_loss=metrics["validation_loss"], best=str(recipe)))
        module = fit_recipe(recipe, rows, program, scaled, settings.seed)
        reference = sketch_table(program, table.slab)
        reference.add_predictions(scaled.summary(score(module, scaled, rows)))
    return Fitted(recipe.config(settings.seed), scaled, module, program, reference, metrics, held, len(table), trials)


# --- the holdout


def _held(
    table: TrainingTable,
    cut: int,
    rows: EncodedRows,
    program: ColumnProgram,
    task: Task,
    recipe: Recipe,
    settings: RetrainSettings,
    known_us: NDArray[np.int64] | None,
    prequential: bool,
) -> Holdout:
    module = fit_recipe(recipe, rows, program, task, settings.seed)
    newest = table.slice(cut, len(table)).encode(CpuExecutor(program))
    if prequential:
        start = ChallengerState.start(module, cut)
        scratch = build(recipe.config(settings.seed), program, task)
        result = refresh(start, newest, rows, scratch, None, task, settings, weight_decay=recipe.weight_decay)
        predictions = result.predictions_challenger
    else:
        predictions = score(module, task, newest)
    baselines = {
        name: task.losses_of(rule(task, table.labels, table.time_us, known_us, cut), newest.labels)
        for name, rule in (("no_change", no_change), ("majority", majority))
    }
    losses = task.losses_of(predictions, newest.labels)
    return Holdout(newest.labels, newest.time_us, newest.weights, predictions, losses, baselines, cut)


def _metrics(task: Task, held: Holdout) -> dict[str, float]:
    found = metrics_of(task, held.predictions, held.labels, held.weights)
    main = "rmse" if task.kind == "regression" else "log_loss"
    for name, losses in held.baselines.items():
        mean = float(np.average(losses, weights=held.weights))
        found[f"{name}_{main}"] = math.sqrt(mean) * task.scale if task.kind == "regression" else mean
    found["holdout_rows"] = float(len(held.labels))
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _silent(progress: Progress) -> None:
    """Shows nothing."""
