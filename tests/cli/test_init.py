"""init: the project file that comes out of a data file, and what init says about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from trimtab.cli.errors import UserError
from trimtab.cli.init import InitOptions, make_project, model_name, prepare_project
from trimtab.store.project import Project

from . import files

HOUR = files.HOUR_US


def test_a_project_of_everything_that_was_asked(tmp_path: Path) -> None:
    data = files.parquet(files.loans(), tmp_path / "loans 2013.parquet")
    options = InitOptions("bad", time="opened", key=("loan_id",), label_time="outcome_at", until="2013-01-20")
    project = make_project(data, options, tmp_path / "made")
    assert project == Project.load(tmp_path / "made")
    model = project.model()
    assert (model.name, model.task, model.classes, model.positive) == ("loans-2013", "binary", ("no", "yes"), "yes")
    assert (project.data.time, project.data.until, project.data.train_rows) == ("opened", "2013-01-20", 0)
    assert (project.directory / project.data.path).resolve() == data
    assert not Path(project.data.path).is_absolute()
    assert model.label.key == ("loan_id",)
    # Labels take 1 to 29 hours.
    assert model.label.horizon == 29 * HOUR
    assert model.label.cohort == HOUR
    types = {feature.name: feature.type for feature in model.features}
    assert types["rooms"] == types["children"] == "integer"
    assert types["income"] == types["age"] == "real"
    chains = {feature.name: [transform.op for transform in feature.transforms] for feature in model.features}
    assert chains["grade"] == ["vocabulary"]
    assert chains["income"] == ["impute", "piecewise_linear"]


def test_without_time_and_with_a_delay(tmp_path: Path) -> None:
    data = files.csv(files.digits(), tmp_path / "digits.csv")
    project = make_project(data, InitOptions("kind", label_delay_us=60 * 86_400_000_000), tmp_path / "made")
    model = project.model()
    assert (model.task, model.classes) == ("multiclass", ("blue", "green", "red"))
    assert project.data.train_rows == 360
    assert model.label.horizon == 60 * 86_400_000_000
    assert model.label.cohort == 64_000_000
    # Captured rows outlive the wait for their labels.
    assert model.capture.max_age == 120 * 86_400_000_000


def test_short_data_are_refreshed_about_twenty_times(tmp_path: Path) -> None:
    data = files.csv(files.digits(), tmp_path / "digits.csv")
    rows = len(files.digits())
    project = make_project(data, InitOptions("kind", train_rows=200), tmp_path / "made")
    assert project.model().retrain.every_labels == max((rows - 200) // 20, 50)


def test_regression(tmp_path: Path) -> None:
    data = files.csv(files.meters(), tmp_path / "meters.csv")
    model = make_project(data, InitOptions("kwh", train_rows=500), tmp_path / "made").model()
    assert (model.task, model.classes, model.positive) == ("regression", (), "")


def test_only_training_rows_decide(tmp_path: Path) -> None:
    table = files.digits(1000)
    # Constant for the first 600 rows: whoever trained then could not have learned from it.
    table = table.append_column("later", pa.array(np.where(np.arange(1000) < 600, 1, np.arange(1000))))
    data = files.parquet(table, tmp_path / "x.parquet")
    made = prepare_project(data, InitOptions("kind", train_rows=500), tmp_path / "made")
    assert {role.column: role.kind for role in made.roles}["later"] == "empty"


def test_a_shuffled_file_makes_the_same_project(tmp_path: Path) -> None:
    table = files.loans()
    shuffled = table.take(pa.array(np.random.default_rng(1).permutation(len(table))))
    options = InitOptions("bad", time="opened", label_time="outcome_at", name="loans")
    texts = []
    for name, rows in (("a", table), ("b", shuffled)):
        files.parquet(rows, tmp_path / name / "x.parquet") if (tmp_path / name).mkdir() is None else None
        make_project(tmp_path / name / "x.parquet", options, tmp_path / name)
        texts.append((tmp_path / name / "trimtab.toml").read_text())
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (InitOptions("worse"), "no column 'worse'"),
        (InitOptions("bad", time="when"), "no column 'when'"),
        (InitOptions("bad", time="grade"), "column 'grade': expected times"),
        (InitOptions("bad", until="2013-01-20"), "--until needs --time"),
        (InitOptions("bad", time="opened", until="soon"), "until: expected a value of the time column"),
        (InitOptions("bad", time="opened", until="1999-01-01"), "no row lies before '1999-01-01'"),
        (InitOptions("bad", train_rows=10**6), "1,000,000 rows to train on"),
        (InitOptions("bad", train_rows=-1), "--train-rows"),
        (InitOptions("bad", time="opened", train_rows=9, until="2013-01-20"), "exclude each other"),
        (InitOptions("bad", include=("age",), exclude=("age",)), "'age' is in --include and in --exclude"),
        (InitOptions("bad", exclude=("bad",)), "--exclude: 'bad' is the label"),
        (InitOptions("bad", label_time="outcome_at", include=("outcome_at",)), "after the event"),
        (InitOptions("bad", label_time="grade"), "column 'grade': expected times"),
        (InitOptions("bad", name="../up"), "expected letters"),
        (InitOptions("country"), "'NL' in every row"),
    ],
)
def test_what_cannot_be_made(tmp_path: Path, options: InitOptions, said: str) -> None:
    from trimtab.store.errors import ProjectError

    data = files.parquet(files.loans(300), tmp_path / "loans.parquet")
    with pytest.raises((UserError, ProjectError)) as caught:
        make_project(data, options, tmp_path / "made")
    assert said in str(caught.value)
    assert not (tmp_path / "made").exists()


def test_a_table_without_a_feature(tmp_path: Path) -> None:
    data = files.parquet(files.loans(300).select(["opened", "bad", "country"]), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"no column .* is left to be a feature"):
        make_project(data, InitOptions("bad", time="opened"), tmp_path / "made")


def test_a_project_is_not_overwritten_unasked(tmp_path: Path) -> None:
    data = files.parquet(files.digits(), tmp_path / "x.parquet")
    make_project(data, InitOptions("kind"), tmp_path / "made")
    with pytest.raises(UserError, match="--force replaces it"):
        make_project(data, InitOptions("kind"), tmp_path / "made")
    prepare_project(data, InitOptions("kind", name="again"), tmp_path / "made", force=True)
    assert Project.load(tmp_path / "made").model().name == "again"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("flights.parquet", "flights"), ("my data (2).csv.gz", "my-data-2"), ("_x.csv", "model-_x"), ("é.csv", "model")],
)
def test_model_names(name: str, expected: str) -> None:
    assert model_name(Path(name)) == expected


def test_numbers_and_epochs_as_until(tmp_path: Path) -> None:
    rows = files.digits(300)
    for scale in (1, 1000):
        times = (1_600_000_000 + np.arange(300)) * scale
        data = files.parquet(rows.append_column("t", pa.array(times)), tmp_path / f"{scale}.parquet")
        options = InitOptions("kind", time="t", until=str(1_600_000_120 * scale))
        made = prepare_project(data, options, tmp_path / f"made{scale}")
        assert made.cut == 120


def test_the_command_says_what_it_assumed(tmp_path: Path) -> None:
    data = files.csv(files.loans(), tmp_path / "loans.csv")
    done = files.trimtab("init", data, "--label", "bad", "--exclude", "age,online", "-C", tmp_path / "made")
    assert done.code == 0, done.err
    assert "no --time: taking the file's order" in done.err
    for part in ("excluded score_actual", "alone gives AUC", "--include score_actual", "next: trimtab train -C"):
        assert part in done.out
    assert (tmp_path / "made" / "report.html").stat().st_size > 10_000


def test_the_command_for_a_program(tmp_path: Path) -> None:
    data = files.csv(files.loans(), tmp_path / "loans.csv")
    done = files.trimtab(
        "init", data, "--label", "bad", "--time", "opened", "--include", "note", "--json", "-C", tmp_path / "made"
    )
    assert done.code == 0, done.err
    said: dict[str, Any] = done.json
    assert said["task"] == "binary"
    assert said["positive"] == "yes"
    assert sum(said["label_rows"].values()) == said["rows"] == 1500
    assert said["training_rows"] == 450
    assert "note" in [feature["name"] for feature in said["features"]]
    assert {"name": "score_actual", "why": "leak"}.items() <= said["excluded"][
        [item["name"] for item in said["excluded"]].index("score_actual")
    ].items()
    assert Path(said["project"]).exists()
