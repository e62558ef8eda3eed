"""`trimtab replay` with real servers and trainers on small drifting streams."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROWS, FIRST, PER_HOUR = 2400, 800, 12
_HOUR_US = 3_600_000_000
_EXACT = ("rows", "requests", "failed_requests", "mixed_version_answers", "labels_sent", "labels_joined", "promotions")

_TOML = f"""
[data]
path = "stream.parquet"
time = "t"
label_time = "due"
train_rows = {FIRST}

[[model]]
name = "stream"
task = "binary"
architecture = "linear"
classes = ["0", "1"]
positive = "1"

[[model.feature]]
name = "a"
type = "real"
transforms = ["impute", "standardise"]
[[model.feature]]
name = "b"
type = "real"
transforms = ["impute", "standardise"]
[[model.feature]]
name = "c"
type = "string"
transforms = ["vocabulary"]

[model.label]
column = "y"
horizon = "1d"

[model.drift]
window_rows = 300

[model.retrain]
every_labels = 200
search_trials = 1
learning_rate = 0.05
steps = 8
replay_fraction = 0.0
half_life_rows = 300

[model.gate]
margin = 0.2
alpha = 0.2
min_rows = 100
min_blocks = 2
bootstrap = 200
"""


def _stream(path: Path) -> None:
    """What makes a label positive turns round after the training rows."""
    generator = np.random.default_rng(5)
    a, b = generator.normal(size=(2, ROWS))
    turned = np.where(np.arange(ROWS) < FIRST, 1.0, -1.0)
    y = generator.random(ROWS) < 1 / (1 + np.exp(-2.5 * a * turned - b))
    times = 1_600_000_000_000_000 // _HOUR_US * _HOUR_US + np.arange(ROWS) * (_HOUR_US // PER_HOUR)
    due = times + (generator.random(ROWS) * 3 * _HOUR_US).astype(np.int64)
    kind = pa.timestamp("us", "UTC")
    columns = {
        "t": pa.array(times).cast(kind),
        "due": pa.array(due).cast(kind),
        "a": pa.array(a),
        "b": pa.array(b),
        "c": pa.array(generator.choice(["u", "v"], ROWS)),
        "y": pa.array(y.astype(np.int64)),
    }
    pq.write_table(pa.table(columns), path)


def _trimtab(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trimtab.cli", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=900,
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a project and its first version."""
    folder = tmp_path_factory.mktemp("stream")
    _stream(folder / "stream.parquet")
    (folder / "trimtab.toml").write_text(_TOML)
    done = _trimtab("train", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def runs(project: Path) -> list[dict[str, Any]]:
    """The reports of two replays of the same stream."""
    reports = []
    for name in ("first.json", "second.json"):
        done = _trimtab("replay", "stream.parquet", "--report", name, "--json", cwd=project, TMPDIR=str(project))
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["rows"] == ROWS - FIRST
        reports.append(json.loads((project / name).read_bytes()))
    return reports


def test_two_replays_take_the_same_decisions(runs: list[dict[str, Any]]) -> None:
    first, second = runs
    assert [first[key] for key in _EXACT] == [second[key] for key in _EXACT]
    decided = [[(line["version"], line["verdict"], line["data_time_us"]) for line in run["versions"]] for run in runs]
    assert decided[0] == decided[1]
    assert [line["weights"] for line in first["versions"]] == [line["weights"] for line in second["versions"]]
    assert first["drift_events"] == second["drift_events"]
    for side, metrics in first["metrics"].items():
        assert second["metrics"][side] == pytest.approx(metrics, abs=1e-6)


def test_report_of_a_stream_that_turned_round(runs: list[dict[str, Any]]) -> None:
    report = runs[0]
    assert report["failed_requests"] == 0
    assert report["mixed_version_answers"] == 0
    assert report["labels_sent"] == report["rows"] == ROWS - FIRST
    assert 0 < report["labels_joined"] <= report["labels_sent"]
    assert report["promotions"] >= 1
    assert report["retrains"] == len(report["versions"]) - 1
    assert all(line["reason"] for line in report["versions"])
    assert set(report["metrics"]) == {"live", "frozen", "cron", "no_change", "majority"}
    assert {"accuracy", "log_loss", "roc_auc", "kappa"} == set(report["metrics"]["live"])
    assert report["differences"]["frozen"]["log_loss"]["better"]
    assert "retraining paid" in report["sentence"]
    assert report["trainer_cpu_seconds"] > 0
    assert sum(line["rows_served"] for line in report["versions"]) == report["rows"]


def test_report_files_are_self_contained(project: Path, runs: list[dict[str, Any]]) -> None:
    page = (project / "first.html").read_text()
    assert runs[0]["sentence"].split(",")[0] in page
    assert "http://" not in page
    assert "https://" not in page
    assert "<script" not in page
    assert (project / "first.png").read_bytes().startswith(b"\x89PNG")


def test_replay_leaves_the_project_and_nothing_else(project: Path, runs: list[dict[str, Any]]) -> None:
    assert runs
    assert not list(project.glob("trimtab-replay-*"))
    assert sorted(path.name for path in (project / "state").iterdir()) == ["stream"]
    assert not (project / "state" / "stream" / "captures").exists()


def test_without_a_project_one_is_made_for_the_occasion(tmp_path: Path) -> None:
    temporary = tmp_path / ("long" * 25)  # no room for a socket's name
    temporary.mkdir()
    generator = np.random.default_rng(2)
    a = generator.normal(size=600)
    table = pa.table({"a": a, "y": a + 0.1 * generator.normal(size=600)})
    pq.write_table(table, tmp_path / "line.parquet")
    done = _trimtab(
        *("replay", "line.parquet", "--label", "y", "--task", "regression", "--train-rows", "300"),
        *("--label-delay", "50", "--compare", "frozen", "--json"),
        cwd=tmp_path,
        TMPDIR=str(temporary),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["rows"] == 300
    assert report["settings"]["tick"] == "50 rows"
    assert set(report["metrics"]) == {"live", "frozen", "no_change", "majority"}
    assert report["metrics"]["live"]["rmse"] < report["metrics"]["majority"]["rmse"]
    assert not [*tmp_path.glob("trimtab*"), *temporary.glob("trimtab*")]


def test_interrupt_leaves_no_process_and_no_folder(project: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", "trimtab.cli", "replay", "stream.parquet", "--pace", "20"],
            cwd=project,
            env={**os.environ, "TMPDIR": folder},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            served = _until_served(Path(folder), process)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
        assert process.returncode == 130
        assert errors.strip().endswith("interrupted")
        assert not list(Path(folder).glob("trimtab*"))
        with pytest.raises(ProcessLookupError):
            os.kill(served, 0)


def _until_served(folder: Path, process: subprocess.Popen[str]) -> int:
    """The server's process id, once it has written itself down."""
    while process.poll() is None:
        for path in folder.glob("trimtab-replay-*/served/state/server.json"):
            return int(json.loads(path.read_bytes())["pid"])
    raise AssertionError(f"the replay ended early: {process.communicate()[1]}")


def test_server_that_cannot_start_says_why(project: Path) -> None:
    broken = project / "broken"
    broken.mkdir()
    (broken / "trimtab.toml").write_text(_TOML.replace('"stream.parquet"', '"../stream.parquet"'))
    assert _trimtab("train", "-C", broken, cwd=project).returncode == 0
    (broken / "state" / "stream" / "versions" / "1" / "weights.safetensors").write_bytes(b"damaged")
    done = _trimtab("replay", "stream.parquet", "-C", broken, cwd=project)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "version 1" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nothing.parquet"], "nothing.parquet"),
        (["stream.parquet", "--tick", "soon"], "--tick: expected a number of rows"),
        (["stream.parquet", "--pace", "fast"], "--pace: expected lockstep, max"),
        (["stream.parquet", "--compare", "all"], "--compare: expected frozen, cron"),
        (["stream.parquet", "--label", "z"], "has 'y'"),
        (["stream.parquet", "--report", "out.html"], "ends in .json"),
        (["stream.parquet", "--label-time", "dew"], "did you mean 'due'?"),
    ],
)
def test_wrong_arguments_end_in_one_line(project: Path, arguments: list[str], says: str) -> None:
    done = _trimtab("replay", *arguments, cwd=project)
    assert done.returncode in (1, 2)
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
