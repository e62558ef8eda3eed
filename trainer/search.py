"""Finding a model from scratch: Optuna over a few architectures and hyperparameters, then one fit of the best on all
rows.

Rows are used in order of time, because the future is what the model will see:

    | training rows of the trials            | inner validation | holdout |      → trials see nothing of the holdout |
    fit of the best recipe                                    | scored  |      → the losses that are reported and
    gated | final fit: the same recipe and length, from scratch                 |      → the version

A trial's work is bounded: at most TRIAL_ROWS rows (drawn evenly over time) and TRIAL_STEPS steps, so that a search
over a year of data costs about what one over a month does; the two fits take at most FIT_STEPS steps each. Epochs are
segments of that plan; the best one on the inner validation fixes how long the later fits train, on the same
learning-rate curve.

The default recipe and a linear model are always the first two trials: a search never ends below either on its
validation rows. Deterministic: TPE with a seed, in-memory storage, one thread, own generators. Only a time limit
(`search_seconds`) makes what is found depend on the machine.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from trimtab.kernels.cpu import CpuExecutor
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
from trimtab.trainer.errors import TrainingFailed
from trimtab.trainer.fit import ChallengerState, one_thread, refresh, score
from trimtab.trainer.prepare import check_rows, encoded, newest_block, program_for, thinned, with_defaults
from trimtab.trainer.recipe import EPOCHS, Recipe, fit_recipe, train_epochs

__all__ = ["Fitted", "Holdout", "Progress", "fit_search"]

TRIAL_ROWS = 30_000
VALIDATION_ROWS = 10_000
TRIAL_STEPS = 400
PATIENCE = 2
FOLDS = 3
FEW_ROWS = 1000
INNER_SHARE = 0.15


@dataclass(frozen=True)
class Progress:
    """Where a search stands, for whoever shows it."""

    stage: str
    """"columns", "trial", "holdout" or "final"."""
    trial: int = 0
    """1 … trials"""
    trials: int = 0
    epoch: int = 0
    epochs: int = EPOCHS
    loss: float = math.nan
    """Of this epoch, on the inner validation rows."""
    best_loss: float = math.nan
    """Of all trials so far."""
    best: str = ""
    """The best recipe so far, in a few words."""


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
        return version_files(self.module, self.program, self.reference)


Report = Callable[[Progress], None]


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
    with one_thread(), _quiet_optuna():
        report(Progress("columns"))
        specs = [with_defaults(spec, past) for spec in specs]
        program = program_for(past, specs, task, sketch)
        scaled = task.scaled_to(past.labels, past.weights)
        rows = encoded(past, program)
        recipe, trials = _search(rows, program, scaled, settings, architecture, report)
        held: Holdout | None = None
        metrics = {"trials": float(len(trials)), "validation_loss": min(trial["loss"] for trial in trials)}
        if cut < len(table):
            report(Progress("holdout", best_loss=metrics["validation_loss"], best=str(recipe)))
            held = _held(table, cut, rows, program, scaled, recipe, settings, known_us, prequential)
            metrics |= _metrics(scaled, held)
            # The final fit sees every row: its quantiles, vocabularies and target scale do as well.
            program = program_for(table, specs, task, sketch or program.sketch)
            scaled = task.scaled_to(table.labels, table.weights)
            rows = encoded(table, program)
        report(Progress("final", best_loss=metrics["validation_loss"], best=str(recipe)))
        module = fit_recipe(recipe, rows, program, scaled, settings.seed)
        reference = Sketch(program.sketch)
        CpuExecutor(program).run(table.slab, reference)
        reference.add_predictions(scaled.summary(score(module, scaled, rows)))
    return Fitted(recipe.config(settings.seed), scaled, module, program, reference, metrics, held, len(table), trials)


# --- the trials


def _search(
    rows: EncodedRows, program: ColumnProgram, task: Task, settings: RetrainSettings, architecture: str, report: Report
) -> tuple[Recipe, list[dict[str, Any]]]:
    ground = _Ground(_folds(rows), program, task, settings)
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=settings.seed, n_startup_trials=4),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=2),
    )
    for first in _first_trials(architecture)[: settings.search_trials]:
        study.enqueue_trial(first)
    best: list[tuple[float, Recipe]] = []
    done: list[dict[str, Any]] = []

    def objective(trial: optuna.Trial) -> float:
        recipe = _suggested(trial, architecture)
        top = min(best, key=lambda item: item[0], default=(math.nan, recipe))

        def on_epoch(epoch: int, loss: float) -> None:
            at = (trial.number + 1, settings.search_trials, epoch, EPOCHS)
            report(Progress("trial", *at, loss, top[0], str(top[1])))
            trial.report(loss, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned

        done.append({**recipe.config(settings.seed), "loss": math.inf})
        try:
            loss, epochs = _try(recipe, ground, on_epoch)
        except TrainingFailed:
            raise optuna.TrialPruned from None
        found = replace(recipe, epochs=epochs)
        best.append((loss, found))
        done[-1] = {**found.config(settings.seed), "loss": loss}
        return loss

    study.optimize(objective, n_trials=settings.search_trials, timeout=settings.search_seconds or None)
    if not best:
        raise TrainingFailed("search: no trial ended with a finite loss")
    return min(best, key=lambda item: item[0])[1], done


@dataclass(frozen=True)
class _Ground:
    """What trials are run on."""

    folds: Sequence[tuple[EncodedRows, EncodedRows]]
    """Training rows and the newer validation rows after them."""
    program: ColumnProgram
    task: Task
    settings: RetrainSettings


def _folds(rows: EncodedRows) -> list[tuple[EncodedRows, EncodedRows]]:
    """Rolling origins: each of the newest FOLDS blocks is validated on by what came before it.

    One block alone is a few days of one kind of weather, and picks the recipe that happens to suit them.
    """
    folds = []
    stop = len(rows)
    for _ in range(FOLDS if len(rows) >= FEW_ROWS else 1):
        cut = newest_block(rows.time_us[:stop], INNER_SHARE * len(rows) / stop)
        folds.append((thinned(rows.slice(0, cut), TRIAL_ROWS), thinned(rows.slice(cut, stop), VALIDATION_ROWS)))
        stop = cut
    return folds[::-1]


def _first_trials(architecture: str) -> list[dict[str, Any]]:
    mlp = {"kind": "mlp", "widths": "64", "dropout": 0.2, "embedding": 8, "learning_rate": 2e-3, "weight_decay": 1e-2}
    linear = {"kind": "linear", "learning_rate": 5e-3, "weight_decay": 1e-2}
    wanted = {"auto": [mlp, linear], "mlp": [mlp], "linear": [linear]}[architecture]
    return [{key: value for key, value in trial.items() if key != "kind" or architecture == "auto"} for trial in wanted]


def _suggested(trial: optuna.Trial, architecture: str) -> Recipe:
    kind = architecture if architecture != "auto" else trial.suggest_categorical("kind", ["mlp", "linear"])
    rate = trial.suggest_float("learning_rate", 5e-4, 2e-2, log=True)
    decay = trial.suggest_float("weight_decay", 1e-4, 0.3, log=True)
    if kind == "linear":
        return Recipe("linear", (), 0.0, 1, rate, decay)
    # Optuna's categories are plain values, so widths travel as text.
    widths = trial.suggest_categorical("widths", ["32", "64", "128", "64-32", "128-64"])
    dropout = trial.suggest_categorical("dropout", [0.1, 0.2, 0.3])
    embedding = trial.suggest_categorical("embedding", [4, 8, 16])
    return Recipe("mlp", tuple(map(int, widths.split("-"))), dropout, embedding, rate, decay)


def _try(recipe: Recipe, ground: _Ground, on_epoch: Callable[[int, float], None]) -> tuple[float, int]:
    """The recipe's loss over all folds, and after how many epochs it is best.

    The number of epochs is chosen on models that stand still. What counts is then the loss of those models as they
    would be used: refreshed over the validation rows chunk by chunk, each scored before it is trained on; where the
    project does not retrain, that of the models as they are.
    """
    seed, task = ground.settings.seed, ground.task
    modules = [build(recipe.config(seed), ground.program, task) for _ in ground.folds]
    plans = [
        train_epochs(recipe, module, train, task, seed, TRIAL_STEPS)
        for module, (train, _) in zip(modules, ground.folds, strict=True)
    ]
    best, at, kept = math.inf, 0, [ChallengerState.start(module) for module in modules]
    for epochs in zip(*plans, strict=True):
        losses = [
            _mean_loss(task, score(module, task, validation), validation)
            for module, (_, validation) in zip(modules, ground.folds, strict=True)
        ]
        loss = float(np.mean(losses))
        if loss < best:
            best, at, kept = loss, epochs[0], [ChallengerState.start(module) for module in modules]
        on_epoch(epochs[0], loss)
        if epochs[0] - at >= PATIENCE:
            break
    if not ground.settings.enabled:
        return best, at
    refreshed = []
    for state, module, (train, validation) in zip(kept, modules, ground.folds, strict=True):
        result = refresh(
            state, validation, train, module, None, task, ground.settings, weight_decay=recipe.weight_decay
        )
        refreshed.append(_mean_loss(task, result.predictions_challenger, validation))
    return float(np.mean(refreshed)), at


def _mean_loss(task: Task, predictions: NDArray[np.float32], rows: EncodedRows) -> float:
    return float(np.average(task.losses_of(predictions, rows.labels), weights=rows.weights))


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


@contextlib.contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Optuna logs each trial on stderr unless told otherwise; progress is reported by the callback."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _silent(progress: Progress) -> None:
    """Shows nothing."""
