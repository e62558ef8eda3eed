"""train: which rows are trained on, what is published, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from trimtab.cli.errors import ModelExists
from trimtab.cli.history import open_history
from trimtab.cli.init import InitOptions, make_project
from trimtab.cli.train import train_model, train_project
from trimtab.models.version import load_version
from trimtab.store.project import Project
from trimtab.store.versions import VersionStore
from trimtab.trainer.errors import RowsUnfit
from trimtab.trainer.search import Progress

from . import files


def quick(project: Project) -> Project:
    """The same with a search of one trial."""
    path = project.directory / "trimtab.toml"
    path.write_text(path.read_text().replace("# search_trials = 8", "search_trials = 1"))
    return Project.load(project.directory)


@pytest.mark.parametrize(
    ("table", "options"),
    [
        (files.loans(), InitOptions("bad", time="opened", label_time="outcome_at", train_rows=900)),
        (files.digits(), InitOptions("kind", train_rows=800)),
        (files.meters(), InitOptions("kwh", train_rows=800)),
    ],
    ids=["binary", "multiclass", "regression"],
)
def test_version_one_serves(tmp_path: Path, table: object, options: InitOptions) -> None:
    data = files.parquet(table, tmp_path / "x.parquet")  # type: ignore[arg-type]
    project = quick(make_project(data, options, tmp_path / "made"))
    seen: list[Progress] = []
    assert train_project(project, seen.append) == 1
    assert {progress.stage for progress in seen} == {"columns", "trial", "holdout", "final"}
    model = project.model()
    store = VersionStore(project.model_state().versions)
    store.verify(1)
    manifest = store.manifest(1)
    assert (manifest.verdict, manifest.recipe, manifest.task) == ("initial", "search", model.task)
    assert manifest.seed == model.retrain.seed
    assert len(manifest.snapshot_hash) == 64
    main = "rmse" if model.task == "regression" else "log_loss"
    assert {main, f"no_change_{main}", f"majority_{main}"} <= set(manifest.metrics)
    assert manifest.metrics[main] < manifest.metrics[f"majority_{main}"]
    assert [(line.version, line.verdict) for line in store.decisions()] == [(1, "initial")]
    loaded = load_version(store, 1)
    assert loaded.program.schema.names == model.request_schema().names


def test_only_labels_that_were_known_at_the_cut(tmp_path: Path) -> None:
    data = files.parquet(files.loans(), tmp_path / "x.parquet")
    options = InitOptions("bad", time="opened", label_time="outcome_at", train_rows=900)
    project = quick(make_project(data, options, tmp_path / "made"))
    with open_history(project) as history:
        expected = int((history.label_us[:900] <= history.table.time_us[900]).sum())
        assert history.cut_us == history.table.time_us[900]
    trained = train_model(project)
    assert trained.rows == trained.fitted.rows_trained == expected < 900
    assert trained.left_out == 900 - expected


def test_a_delay_instead_of_a_column(tmp_path: Path) -> None:
    data = files.parquet(files.digits(), tmp_path / "x.parquet")
    project = quick(make_project(data, InitOptions("kind", train_rows=500), tmp_path / "made"))
    trained = train_model(project, label_delay_us=100_000_000)
    # Row i is known at second i + 100, the cut is at second 500.
    assert trained.rows == 401


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    data = files.parquet(files.digits(), tmp_path / "x.parquet")
    weights = []
    for name in ("a", "b"):
        project = quick(make_project(data, InitOptions("kind", name="m"), tmp_path / name))
        weights.append(train_model(project).weights)
    assert weights[0] == weights[1]


def test_a_second_first_version_must_be_asked_for(tmp_path: Path) -> None:
    data = files.parquet(files.digits(), tmp_path / "x.parquet")
    project = quick(make_project(data, InitOptions("kind"), tmp_path / "made"))
    train_project(project)
    with pytest.raises(ModelExists, match="trimtab retrain --recipe search"):
        train_project(project)
    assert train_project(project, again=True) == 2


def test_a_fit_that_fails_gives_its_number_up(tmp_path: Path) -> None:
    data = files.parquet(files.digits(200), tmp_path / "x.parquet")
    project = quick(make_project(data, InitOptions("kind", train_rows=20), tmp_path / "made"))
    with pytest.raises(RowsUnfit, match="at least 100"):
        train_project(project)
    store = VersionStore(project.model_state().versions)
    assert [line.verdict for line in store.decisions()] == ["abandoned"]
    assert store.numbers() == []


def test_an_interrupted_search_is_abandoned(tmp_path: Path) -> None:
    data = files.parquet(files.digits(), tmp_path / "x.parquet")
    project = quick(make_project(data, InitOptions("kind"), tmp_path / "made"))

    def interrupt(progress: Progress) -> None:
        if progress.stage == "trial":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_project(project, interrupt)
    store = VersionStore(project.model_state().versions)
    assert "KeyboardInterrupt" in store.decisions()[-1].reason
    assert train_project(project) == 2


def test_known_times_go_with_the_rows_that_are_kept(tmp_path: Path) -> None:
    # Rows without a label are dropped, and so are their times.
    table = files.digits()
    labels = table.column("kind").to_pylist()
    kept = [label if i % 3 else None for i, label in enumerate(labels)]
    table = table.set_column(3, "kind", [kept])
    data = files.parquet(table, tmp_path / "x.parquet")
    project = quick(make_project(data, InitOptions("kind", train_rows=900), tmp_path / "made"))
    trained = train_model(project)
    assert trained.rows == 600
    assert trained.left_out == 300
    assert np.isfinite(trained.fitted.metrics["no_change_log_loss"])
