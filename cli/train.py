"""`trimtab train`: searches for a model on the project's history and publishes it as the first version.

`train_project` is what the command and `trimtab replay` share. Only rows before the cut whose labels were known by
then are trained on: what a team would have had on that day."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import platform
import time as clock
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from trimtab.cli.options import Directory, Json, Model

if TYPE_CHECKING:
    from trimtab.store.project import Project
    from trimtab.store.settings import ModelSettings
    from trimtab.store.versions import VersionStore
    from trimtab.trainer.encode import TrainingTable
    from trimtab.trainer.search import Fitted, Progress

__all__ = ["Trained", "train", "train_model", "train_project"]


@dataclass(frozen=True)
class Trained:
    """What came of a training."""

    version: int
    weights: str
    fitted: Fitted
    rows: int
    """Rows trained on."""
    left_out: int
    """Rows before the cut whose label was unknown, or not known yet at the cut."""
    seconds: float
    path: Path


def train_project(
    project: Project,
    progress: Callable[[Progress], None] | None = None,
    *,
    model: str | None = None,
    label_delay_us: int = 0,
    again: bool = False,
) -> int:
    """Searches, fits and publishes the model's first version; returns its number. See train_model."""
    return train_model(project, progress, model=model, label_delay_us=label_delay_us, again=again).version


def train_model(
    project: Project,
    progress: Callable[[Progress], None] | None = None,
    *,
    model: str | None = None,
    label_delay_us: int = 0,
    again: bool = False,
) -> Trained:
    """As train_project, with all that came of it.

    `label_delay_us`: how late labels are, where no column of the data says so. `again`: publish another first version
    though there are versions already; it serves only once it is promoted. Raises ModelExists, DataError,
    TrainerError, StoreError.
    """
    from trimtab.cli.errors import ModelExists
    from trimtab.store.errors import StoreError
    from trimtab.store.versions import VersionStore

    settings = project.model(model)
    store = VersionStore(project.model_state(settings.name).versions)
    known = store.numbers()
    if known and not again:
        raise ModelExists(
            f"model {settings.name!r} has versions already (newest {known[-1]}): "
            "`trimtab retrain --recipe search` finds a challenger, --again trains from this history once more"
        )
    started = clock.monotonic()
    table, known_us, left_out, snapshot = _rows(project, settings, label_delay_us)
    # Only now: what is wrong with the data should not wait for torch to be imported.
    from trimtab.models.code import allow_project
    from trimtab.trainer.dataset import history_path, save_history
    from trimtab.trainer.encode import task_of
    from trimtab.trainer.search import fit_search

    allow_project(project)
    # Optuna writes the traceback of an interrupted trial on stderr; what happened is said once, in one line.
    logging.getLogger("optuna.study._optimize").setLevel(logging.ERROR)
    number = store.allocate(f"train-{uuid.uuid4()}")
    try:
        fitted = fit_search(
            table,
            settings.specs(),
            task_of(settings),
            settings.retrain,
            architecture=settings.network,
            known_us=known_us,
            progress=progress,
        )
        # First the rows that refreshes replay: a version that is there has them.
        save_history(history_path(project.model_state(settings.name)), table)
        weights = _publish(store, number, settings, fitted, snapshot)
    except BaseException as error:
        # A disk that is full for the version is full for this line too; the first error is the one to tell.
        with contextlib.suppress(StoreError):
            store.abandon(number, f"training ended early: {type(error).__name__}", recipe="search")
        raise
    return Trained(number, weights, fitted, len(table), left_out, clock.monotonic() - started, store.path(number))


def _rows(project: Project, settings: ModelSettings, label_delay_us: int) -> tuple[TrainingTable, Any, int, str]:
    """The rows to train on, when each one's label became known, how many were left out, and a hash of what was read."""
    import numpy as np
    import pyarrow as pa
    from trimtab.cli.history import open_history

    with open_history(project, label_delay_us=label_delay_us) as history:
        columns = [*settings.feature_names, *settings.extra_keys, settings.label.column]
        history.table.require(*columns)
        trainable = history.trainable()
        raw = history.table.read(list(dict.fromkeys(columns)), stop=history.cut).filter(pa.array(trainable))
        times = history.table.time_us[: history.cut][trainable]
        known_us = history.label_us[: history.cut][trainable]
        cut = history.cut
    from trimtab.trainer.encode import encode_column, task_of, training_table

    digest = hashlib.sha256()
    for batch in raw.to_batches():
        for column in batch.columns:
            for buffer in column.buffers():
                digest.update(b"" if buffer is None else buffer)
    # The same filter that training_table applies, for the times that go beside its rows.
    table = training_table(raw, settings, time_us=times)
    if table.dropped:
        labels = raw.column(settings.label.column)
        _, has_label = encode_column(labels, task_of(settings), absent_means=settings.label.absent_means)
        known_us = known_us[has_label]
    digest.update(np.ascontiguousarray(times).tobytes())
    return table, known_us, cut - len(table), digest.hexdigest()


def _publish(store: VersionStore, number: int, settings: ModelSettings, fitted: Fitted, snapshot: str) -> str:
    from importlib.metadata import version

    import torch
    from trimtab.store.manifest import Decision, Manifest

    reason = "trained on history; there is nothing to compare it with"
    manifest = Manifest(
        version=number,
        task=settings.task,
        architecture=fitted.architecture,
        program_hash=fitted.program.hash,
        sketch_hash=fitted.program.sketch.hash,
        snapshot_hash=snapshot,
        code_revision=f"trimtab {version('trimtab')}",
        seed=settings.retrain.seed,
        threads=1,
        isa=f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        torch=torch.__version__,
        created_us=clock.time_ns() // 1000,
        rows_trained=fitted.rows_trained,
        recipe="search",
        verdict="initial",
        reason=reason,
        metrics=fitted.metrics,
    )
    published = store.publish(number, fitted.files(), manifest)
    store.decide(
        Decision(version=number, verdict="initial", reason=reason, metrics=dict(fitted.metrics), recipe="search")
    )
    return published.weights


def train(
    again: Annotated[bool, typer.Option("--again", help="Train once more, though there are versions already.")] = False,
    model: Model = "",
    directory: Directory = Path("."),
    as_json: Json = False,
) -> None:
    """Search a few architectures and hyperparameters on the history that trimtab.toml names, and publish version 1.

    The newest part of the training rows is held out to measure quality, then the best recipe is fitted on all of them.
    Quality is printed beside two baselines: no change (the last label known at the time) and the majority class or
    mean. [model.retrain] search_trials and search_seconds bound the search.

    \b
    Examples:
      trimtab train
      trimtab train -C flights --json

    Next: trimtab serve.
    """
    from trimtab.cli.output import Output, number
    from trimtab.store.project import Project

    output = Output(as_json)
    project = Project.load(directory)
    settings = project.model(model or None)
    if settings.takes_tensors:
        _import(output, project, settings, again=again, directory=directory)
        return
    with output.progress(f"training {settings.name}") as bar:

        def show(progress: Progress) -> None:
            done = (progress.trial - 1) * progress.epochs + progress.epoch if progress.stage == "trial" else None
            total = progress.trials * progress.epochs or None
            bar.update(completed=done, total=total, text=_remark(progress))

        trained = train_model(project, show, model=settings.name, again=again)
    _say(output, trained, settings, number, directory)


def _import(output: Any, project: Project, settings: ModelSettings, *, again: bool, directory: Path) -> None:
    """Version 1 of a model that takes tensors: the weights that trimtab.toml names, or the module's own."""
    from trimtab.cli.errors import ModelExists
    from trimtab.models.publishing import publish_first
    from trimtab.store.versions import VersionStore

    store = VersionStore(project.model_state(settings.name).versions)
    if store.numbers() and not again:
        raise ModelExists(
            f"model {settings.name!r} has versions already (newest {store.numbers()[-1]}): "
            "`trimtab publish FILE` adds one, --again imports the first weights once more"
        )
    manifest = publish_first(project, settings, store)
    here = f" -C {directory}" if directory != Path(".") else ""
    output.say(f"{settings.name} version {manifest.version}: {manifest.reason} (weights {manifest.weights[:12]})")
    output.say(f"next: trimtab serve{here}")
    output.result(
        {
            "model": settings.name,
            "version": manifest.version,
            "verdict": "initial",
            "weights": manifest.weights,
            "path": str(store.path(manifest.version)),
            "next": f"trimtab serve{here}",
        }
    )


def _remark(progress: Progress) -> str:
    if progress.stage != "trial":
        return {"columns": "fitting columns", "holdout": "scoring the holdout", "final": "fitting on all rows"}.get(
            progress.stage, progress.stage
        )
    best = f"best {progress.best_loss:.4f} ({progress.best})" if progress.best_loss == progress.best_loss else ""
    return f"trial {progress.trial}/{progress.trials}, epoch {progress.epoch}, loss {progress.loss:.4f} {best}".rstrip()


def _say(output: Any, trained: Trained, settings: ModelSettings, number: Callable[..., str], directory: Path) -> None:
    metrics = trained.fitted.metrics
    baselines = ("no_change", "majority")
    plain = [name for name in metrics if not name.startswith(baselines) and name not in _NOT_QUALITY]
    rows = [
        [name.replace("_", " "), *(number(metrics.get(k)) for k in (name, *(f"{b}_{name}" for b in baselines)))]
        for name in plain
    ]
    title = (
        f"{settings.name} version {trained.version}: quality on {int(metrics.get('holdout_rows', 0)):,} held-out rows"
    )
    output.table(
        ("", "model", "no change", "majority" if settings.task != "regression" else "mean"),
        rows,
        title=title,
        right=("model", "no change", "majority", "mean"),
    )
    config = {key: value for key, value in trained.fitted.config.items() if key not in ("seed",)}
    output.say(f"recipe: {', '.join(f'{key} {value}' for key, value in config.items())}")
    left = f" ({trained.left_out:,} left out: label unknown by then)" if trained.left_out else ""
    output.say(f"trained on {trained.rows:,} rows{left} in {trained.seconds:.1f} s; wrote {trained.path}")
    here = f" -C {directory}" if directory != Path(".") else ""
    output.say(f"next: trimtab serve{here}")
    output.result(
        {
            "model": settings.name,
            "version": trained.version,
            "verdict": "initial",
            "weights": trained.weights,
            "path": str(trained.path),
            "rows_trained": trained.rows,
            "rows_left_out": trained.left_out,
            "metrics": metrics,
            "recipe": trained.fitted.config,
            "trials": trained.fitted.trials,
            "seconds": trained.seconds,
            "next": f"trimtab serve{here}",
        }
    )


_NOT_QUALITY = frozenset({"trials", "validation_loss", "holdout_rows"})
