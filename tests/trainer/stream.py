"""A project trained on a small stream, a real server with its trainer, and the stream played to it in
lockstep."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from trimtab.cli.train import train_project
from trimtab.client import Client
from trimtab.client.admin import AdminClient
from trimtab.client.types import Label
from trimtab.store.project import Project

HOUR = 3_600_000_000
MODEL = "stream"
ROWS, FIRST, PER_HOUR = 1600, 400, 10

_TOML = """
[server]
grpc_port = 0
http_port = 0
lockstep = true
{server}

[mlflow]
enabled = false

[data]
path = "data.parquet"
time = "t"
label_time = "due"
train_rows = {first}

[[model]]
name = "stream"
task = "binary"
architecture = "linear"
classes = ["0", "1"]
positive = "1"

[[model.feature]]
name = "a"
type = "real"
[[model.feature]]
name = "b"
type = "real"
[[model.feature]]
name = "c"
type = "string"

[model.label]
column = "y"
horizon = "3h"

[model.retrain]
search_trials = 2
chunk_labels = 100
batch_size = 128
{retrain}

[model.gate]
margin = 1.0
min_rows = 50
min_blocks = 2
bootstrap = 100
{gate}
{sections}
"""


@dataclass
class Stream:
    """Rows in order of time; labels are due two hours after the row."""

    a: np.ndarray
    b: np.ndarray
    c: list[str]
    y: np.ndarray
    hours: np.ndarray

    @classmethod
    def make(cls, seed: int = 0) -> Stream:
        rng = np.random.default_rng(seed)
        a, b = rng.normal(size=(2, ROWS)).astype(np.float32)
        c = rng.choice(["x", "y", "z"], ROWS).tolist()
        logit = 2 * a - b
        y = (logit + rng.logistic(size=ROWS) > 0).astype(int)
        return cls(a, b, c, y, np.arange(ROWS) // PER_HOUR)

    def write(self, path: Path) -> None:
        times = self.hours * HOUR
        columns = {
            "a": self.a,
            "b": self.b,
            "c": self.c,
            "y": self.y,
            "t": pa.array(times, pa.timestamp("us", tz="UTC")),
            "due": pa.array(times + 2 * HOUR, pa.timestamp("us", tz="UTC")),
        }
        pq.write_table(pa.table(columns), path)


def make_project(
    folder: Path, *, every: int = 300, server: str = "", retrain: str = "", gate: str = "", sections: str = ""
) -> Project:
    """A project with version 1."""
    folder.mkdir(parents=True)
    Stream.make().write(folder / "data.parquet")
    text = _TOML.format(
        first=FIRST,
        server=server,
        retrain=f"every_labels = {every}\n{retrain}",
        gate=gate,
        sections=sections,
    )
    (folder / "trimtab.toml").write_text(text)
    project = Project.load(folder)
    train_project(project)
    return project


@dataclass
class Server:
    """A running server with its trainer."""

    process: subprocess.Popen[str]
    client: Client
    admin: AdminClient
    log: Path
    grpc: str
    http: str

    def play(self, start_hour: int, stop_hour: int) -> None:
        """Hours [start, stop) of the stream in lockstep, the labels due before each first."""
        stream = Stream.make()
        for hour in range(start_hour, stop_hour):
            for row_hour, request in list(_answered.get(self.process.pid, {}).items()):
                if row_hour + 2 <= hour:
                    rows = np.flatnonzero(stream.hours == row_hour)
                    self.client.feedback(
                        [
                            Label(int(stream.y[row]), request, at, observed_at=(row_hour + 2) * HOUR)
                            for at, row in enumerate(rows)
                        ]
                    )
                    del _answered[self.process.pid][row_hour]
            self.admin.advance(hour * HOUR)
            rows = np.flatnonzero(stream.hours == hour)
            columns = {"a": stream.a[rows], "b": stream.b[rows], "c": [stream.c[row] for row in rows]}
            answer = self.client.infer(columns, time_us=hour * HOUR)
            _answered.setdefault(self.process.pid, {})[hour] = answer.request_id

    def trainer_pid(self) -> int:
        """Of the trainer process."""
        return self.admin.status().trainer.pid

    def stop(self) -> int:
        """Its exit status after SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


_answered: dict[int, dict[int, str]] = {}
"""By server, the requests whose labels are not sent yet, by hour."""


@contextlib.contextmanager
def serving(project: Project, environment: Mapping[str, str] | None = None) -> Iterator[Server]:
    """The project's server, killed at the end if it still runs."""
    log = project.directory / "server.log"
    command = [sys.executable, "-m", "trimtab.cli", "serve", "-C", str(project.directory), "--json"]
    with log.open("a") as errors:
        process = subprocess.Popen(
            [*command, "--grpc-port", "0", "--http-port", "0"],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **(environment or {})},
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"the server did not start: {log.read_text()}"
        at = json.loads(line)
        with Client(at["grpc"], model=MODEL, timeout=60.0) as client, AdminClient(at["admin"]) as admin:
            yield Server(process, client, admin, log, at["grpc"], at["http"])
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(30)
        assert process.stdout is not None
        process.stdout.close()
