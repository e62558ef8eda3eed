"""The trials of a search: which recipes are tried, on which rows, and which one wins.

Every trial is validated on rolling origins: the newest FOLDS blocks of rows, each by a model that saw only what came
before. Its work is bounded, at most TRIAL_ROWS rows (drawn evenly over time) and TRIAL_STEPS steps a fold, so that a
search over a year of data costs about what one over a month does. The first trials are fixed recipes that are known
to do: a search never ends below them on its validation rows.

Where the project retrains, recipes are judged as they will be used, refreshed chunk by chunk; and a perceptron is
taken over a linear model that is not clearly better (by two standard errors): what is searched on is the little that
there was on the first day, and a model that goes on learning will need the room. On a year of flights, January
prefers linear models by 0.003 nats, and the perceptron is 0.005 nats ahead over the ten months that follow.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from trimtab.kernels.program import ColumnProgram
from trimtab.models.architectures import build
from trimtab.models.tasks import Task
from trimtab.store.settings import RetrainSettings
from trimtab.trainer.bootstrap import compare_losses
from trimtab.trainer.encode import EncodedRows
from trimtab.trainer.errors import TrainingFailed
from trimtab.trainer.fit import ChallengerState, refresh, score
from trimtab.trainer.prepare import newest_block, thinned
from trimtab.trainer.recipe import EPOCHS, Recipe, train_epochs

__all__ = ["Ground", "Progress", "Report", "folds", "search_recipes"]

FOLDS = 3
FEW_ROWS = 1000
INNER_SHARE = 0.15
TRIAL_ROWS = 30_000
VALIDATION_ROWS = 10_000
TRIAL_STEPS = 400
PATIENCE = 2
CLEAR = 2.0


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


Report = Callable[[Progress], None]


@dataclass(frozen=True)
class Ground:
    """What trials are run on."""

    folds: Sequence[tuple[EncodedRows, EncodedRows]]
    """Training rows, and the newer validation rows after them."""
    program: ColumnProgram
    task: Task
    settings: RetrainSettings
    cohort_us: int

    @cached_property
    def validation(self) -> EncodedRows:
        """The validation rows of all folds, oldest first."""
        return EncodedRows.joined([rows for _, rows in self.folds])


@dataclass(frozen=True)
class _Tried:
    recipe: Recipe
    loss: float
    losses: NDArray[np.float64] = field(repr=False)
    """Of each validation row, all folds."""


def folds(rows: EncodedRows) -> list[tuple[EncodedRows, EncodedRows]]:
    """Rolling origins, oldest first; one where there are few rows.

    One block alone may be a few days of one kind of weather, and picks the recipe that happens to suit them.
    """
    found = []
    stop = len(rows)
    for _ in range(FOLDS if len(rows) >= FEW_ROWS else 1):
        cut = newest_block(rows.time_us[:stop], INNER_SHARE * len(rows) / stop)
        found.append((thinned(rows.slice(0, cut), TRIAL_ROWS), thinned(rows.slice(cut, stop), VALIDATION_ROWS)))
        stop = cut
    return found[::-1]


def search_recipes(ground: Ground, architecture: str, report: Report) -> tuple[Recipe, list[dict[str, Any]]]:
    """The winning recipe of an architecture ("auto", "linear", "mlp", or the "module:name" of an entry), and every
    trial's configuration and loss (infinite: given up early). Raises TrainingFailed."""
    settings = ground.settings
    tried: list[_Tried] = []
    trials: list[dict[str, Any]] = []

    def objective(trial: optuna.Trial) -> float:
        recipe = _suggested(trial, architecture)
        best = min(tried, key=lambda item: item.loss, default=None)
        sofar = (best.loss, str(best.recipe)) if best else (math.nan, "")

        def on_epoch(epoch: int, loss: float) -> None:
            report(Progress("trial", trial.number + 1, settings.search_trials, epoch, EPOCHS, loss, *sofar))
            trial.report(loss, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned

        trials.append({**recipe.config(settings.seed), "loss": math.inf})
        try:
            found = _try(recipe, ground, on_epoch)
        except TrainingFailed:
            raise optuna.TrialPruned from None
        tried.append(found)
        trials[-1] = {**found.recipe.config(settings.seed), "loss": found.loss}
        return found.loss

    with _quiet_optuna():
        study = optuna.create_study(
            sampler=optuna.samplers.TPESampler(seed=settings.seed, n_startup_trials=4),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=2),
        )
        for first in _first_trials(architecture)[: settings.search_trials]:
            study.enqueue_trial(first)
        study.optimize(objective, n_trials=settings.search_trials, timeout=settings.search_seconds or None)
    if not tried:
        raise TrainingFailed("search: no trial ended with a finite loss")
    return _winner(tried, ground).recipe, trials


def _winner(tried: Sequence[_Tried], ground: Ground) -> _Tried:
    best = min(tried, key=lambda item: item.loss)
    roomy = min((item for item in tried if item.recipe.kind == "mlp"), key=lambda item: item.loss, default=None)
    if not ground.settings.enabled or best.recipe.kind == "mlp" or roomy is None:
        return best
    rows = ground.validation
    lead = compare_losses(
        roomy.losses,
        best.losses,
        rows.time_us,
        cohort_us=ground.cohort_us,
        weights=rows.weights,
        relative=ground.task.kind == "regression",
    )
    return best if lead.difference > CLEAR * lead.error else roomy


def _first_trials(architecture: str) -> list[dict[str, Any]]:
    mlp = {"widths": "64", "dropout": 0.2, "embedding": 8, "learning_rate": 2e-3, "weight_decay": 1e-2}
    larger = {**mlp, "widths": "128-64", "dropout": 0.3, "learning_rate": 1e-3}
    linear = {"learning_rate": 5e-3, "weight_decay": 1e-2}
    if architecture == "linear":
        return [linear]
    if ":" in architecture:
        return [{"learning_rate": 2e-3, "weight_decay": 1e-2}]
    if architecture == "mlp":
        return [mlp, larger]
    return [{"kind": "mlp", **mlp}, {"kind": "linear", **linear}, {"kind": "mlp", **larger}]


def _suggested(trial: optuna.Trial, architecture: str) -> Recipe:
    kind = architecture if architecture != "auto" else trial.suggest_categorical("kind", ["mlp", "linear"])
    rate = trial.suggest_float("learning_rate", 5e-4, 2e-2, log=True)
    decay = trial.suggest_float("weight_decay", 1e-4, 0.3, log=True)
    if ":" in architecture:
        return Recipe("entry", (), 0.0, 1, rate, decay, entry=architecture)
    if kind == "linear":
        return Recipe("linear", (), 0.0, 1, rate, decay)
    # Optuna's categories are plain values, so widths travel as text.
    widths = trial.suggest_categorical("widths", ["32", "64", "128", "64-32", "128-64"])
    dropout = trial.suggest_categorical("dropout", [0.1, 0.2, 0.3])
    embedding = trial.suggest_categorical("embedding", [4, 8, 16])
    return Recipe("mlp", tuple(map(int, widths.split("-"))), dropout, embedding, rate, decay)


def _try(recipe: Recipe, ground: Ground, on_epoch: Callable[[int, float], None]) -> _Tried:
    """The recipe's losses over all folds, with the number of epochs that is best.

    The number of epochs is chosen on models that stand still. What counts is then the loss of those models as they
    would be used: refreshed over the validation rows, each scored before it is trained on; where the project does not
    retrain, that of the models as they are.
    """
    settings, task = ground.settings, ground.task
    modules = [build(recipe.config(settings.seed), ground.program, task) for _ in ground.folds]
    plans = [
        train_epochs(recipe, module, train, task, settings.seed, TRIAL_STEPS)
        for module, (train, _) in zip(modules, ground.folds, strict=True)
    ]
    best = _Tried(recipe, math.inf, np.zeros(0))
    kept: list[ChallengerState] = []
    for epochs in zip(*plans, strict=True):
        scored = [score(module, task, rows) for module, (_, rows) in zip(modules, ground.folds, strict=True)]
        found = _tried(replace(recipe, epochs=epochs[0]), ground, scored)
        if found.loss < best.loss:
            best, kept = found, [ChallengerState.start(module) for module in modules]
        on_epoch(epochs[0], found.loss)
        if epochs[0] - best.recipe.epochs >= PATIENCE:
            break
    if not kept:
        raise TrainingFailed("search: no epoch had a finite loss")
    if not settings.enabled:
        return best
    refreshed = [
        refresh(state, rows, train, module, None, task, settings, weight_decay=recipe.weight_decay)
        for state, module, (train, rows) in zip(kept, modules, ground.folds, strict=True)
    ]
    return _tried(best.recipe, ground, [result.predictions_challenger for result in refreshed])


def _tried(recipe: Recipe, ground: Ground, predictions: Sequence[NDArray[np.float32]]) -> _Tried:
    task, rows = ground.task, ground.validation
    losses = task.losses_of(np.concatenate(list(predictions)), rows.labels)
    return _Tried(recipe, float(np.average(losses, weights=rows.weights)), losses)


@contextlib.contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Optuna logs each trial on stderr unless told otherwise; progress is reported by the callback."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
