"""A real project and a real server process for the client's tests: model `mixed` takes every type, `numbers` reals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from trimtab.cli.train import train_project
from trimtab.store.project import Project, render

START_US = 1_700_000_000_000_000
ROWS = 600


@dataclass(frozen=True)
class Server:
    """A running server."""

    grpc: str
    admin: str
    directory: Path
    process: subprocess.Popen[str]

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=60)
        return self.process.returncode


def rows(count: int = ROWS, seed: int = 0) -> pa.Table:
    """Every type, with missing values; `late` depends on most columns."""
    rng = np.random.default_rng(seed)
    score = rng.normal(size=count)
    carrier = rng.choice(["AA", "DL", "ü9"], count)
    hour = rng.integers(0, 24, count)
    wet = rng.random(count) < 0.4
    late = score + (carrier == "DL") + 0.5 * wet + 0.05 * hour + rng.normal(size=count) > 0.8
    return pa.table(
        {
            "time": pa.array(START_US + np.arange(count) * 1_000_000).cast(pa.timestamp("us", "UTC")),
            "score": pa.array(score, mask=rng.random(count) < 0.1),
            "distance": rng.integers(0, 1 << 26, count),
            "hour": pa.array(hour, mask=rng.random(count) < 0.1),
            "wet": pa.array(wet, mask=rng.random(count) < 0.1),
            "carrier": pa.array(carrier, mask=rng.random(count) < 0.1),
            "flight": [f"F{i}" for i in range(count)],
            "late": late,
        }
    )


def make_project(directory: Path) -> Project:
    """The project, with version 1 of both models, and version 2 of `numbers`."""
    directory.mkdir(parents=True)
    pq.write_table(rows(), directory / "rows.parquet")
    quick = {"search_trials": 1, "enabled": False}
    common = {"task": "binary", "classes": ["false", "true"], "positive": "true", "retrain": quick}
    real = {"name": "score", "type": "real"}
    features = [
        real,
        {"name": "distance", "type": "real"},
        {"name": "hour", "type": "integer"},
        {"name": "wet", "type": "boolean"},
        {"name": "carrier", "type": "string"},
    ]
    capture = {"seal_seconds": 3600.0}
    project = {
        "data": {"path": "rows.parquet", "time": "time", "train_rows": ROWS},
        "server": {"grpc_port": 0, "http_port": 0, "trainer": False},
        "mlflow": {"enabled": False},
        "model": [
            {
                "name": "mixed",
                "feature": features,
                "label": {"column": "late", "key": ["flight"]},
                "drift": {"window_rows": 50, "window_seconds": 0.0},
                "capture": capture,
                **common,
            },
            {"name": "numbers", "feature": features[:2], "label": {"column": "late"}, "capture": capture, **common},
        ],
    }
    (directory / "trimtab.toml").write_text(render(project), encoding="utf-8")
    made = Project.load(directory)
    for model in made.models:
        train_project(made, model=model.name)
    # Something to promote: what is live already is not promoted again.
    train_project(made, model="numbers", again=True)
    return made


def start(directory: Path, *more: str) -> Server:
    """Starts `trimtab serve` and waits until it says that it is ready."""
    with (directory / "serve.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "trimtab.cli.app", "serve", "-C", str(directory), "--json", *more],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise AssertionError(f"the server did not start: {(directory / 'serve.log').read_text()}")
    said = json.loads(line)
    return Server(said["grpc"], said["admin"], directory, process)
