"""Data files for the commands' tests, and the commands as processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

START_US = 1_357_000_000_000_000
HOUR_US = 3_600_000_000


@dataclass(frozen=True)
class Done:
    """A command that ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def trimtab(*arguments: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None) -> Done:
    """Runs the command line as a user would."""
    command = [sys.executable, "-m", "trimtab.cli.app", *map(str, arguments)]
    whole = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120", **(env or {})}
    done = subprocess.run(command, capture_output=True, text=True, env=whole, cwd=cwd, timeout=120)
    return Done(done.returncode, done.stdout, done.stderr)


def fails(*arguments: str | Path, code: int = 1, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    """Runs a command that must fail as users' errors do, with one clear line; returns it."""
    done = trimtab(*arguments, env=env, cwd=cwd)
    assert done.code == code, (done.code, done.out, done.err)
    lines = done.err.strip().split("\n")
    assert len(lines) == 1, done.err
    assert lines[0].startswith("trimtab: ")
    assert "Traceback" not in done.err
    assert "internal error" not in done.err
    return lines[0]


def loans(rows: int = 1500, seed: int = 0) -> pa.Table:
    """Binary, with every trap: an id, a counter, columns from after the event, a constant, times, gaps."""
    rng = np.random.default_rng(seed)
    time = START_US + np.sort(rng.integers(0, 1000 * HOUR_US, rows))
    income, age = rng.lognormal(10, 0.5, rows), rng.integers(18, 80, rows)
    grade = rng.choice(["A", "B", "C"], rows, p=[0.5, 0.3, 0.2])
    risk = (grade == "C") * 1.2 - (np.log(income) - 10) * 2 + rng.normal(size=rows) * 0.5
    bad = risk > 1.0
    written_off = rng.random(rows) < 0.1
    bad |= written_off
    return pa.table(
        {
            "opened": pa.array(time).cast(pa.timestamp("us", "UTC")),
            "loan_id": rng.permutation(rows) + 10_000,
            "row": np.arange(rows),
            "income": pa.array(income, mask=rng.random(rows) < 0.05),
            "age": age,
            "grade": grade,
            "children": rng.integers(0, 4, rows),
            "rooms": pa.array(rng.integers(1, 6, rows).astype(float), mask=rng.random(rows) < 0.1),
            "online": rng.random(rows) < 0.5,
            "country": ["NL"] * rows,
            "closed": pa.array(time + 40 * HOUR_US).cast(pa.timestamp("us", "UTC")),
            "recovered": pa.array(rng.normal(size=rows), mask=written_off),
            "final_balance": np.where(bad, 0.0, 1.0) + rng.normal(size=rows) * 0.6,
            "score_actual": bad + rng.normal(size=rows) * 0.05,
            "note": [f"customer {i} said {i * 7}" for i in range(rows)],
            "outcome_at": pa.array(time + rng.integers(1, 30, rows) * HOUR_US).cast(pa.timestamp("us", "UTC")),
            "bad": pa.array(np.where(bad, "yes", "no")),
        }
    )


def digits(rows: int = 1200, seed: int = 0) -> pa.Table:
    """Multiclass, in the file's order."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, rows))
    kind = np.where(x + 0.3 * rng.normal(size=rows) > 0.5, "red", np.where(y > 0, "green", "blue"))
    return pa.table({"x": x, "y": y, "shape": rng.choice(["round", "flat"], rows), "kind": kind})


def meters(rows: int = 1200, seed: int = 0) -> pa.Table:
    """Regression."""
    rng = np.random.default_rng(seed)
    heat, people = rng.normal(15, 8, rows), rng.integers(1, 7, rows)
    kwh = 20 - 0.6 * heat + 3 * people + rng.normal(size=rows)
    return pa.table({"heat": heat, "people": people, "kwh": kwh})


def parquet(table: pa.Table, path: Path) -> Path:
    pq.write_table(table, path, row_group_size=500)
    return path


def csv(table: pa.Table, path: Path) -> Path:
    pcsv.write_csv(table, path)
    return path
