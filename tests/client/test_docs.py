"""docs/client.md, snippet by snippet, against a real server in the place of 127.0.0.1:8001."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from trimtab.cli.train import train_project
from trimtab.client import Client
from trimtab.store.project import Project, render

from . import served

DOCS = Path(__file__).parents[2] / "docs" / "client.md"


def flights(directory: Path) -> Project:
    directory.mkdir()
    rng = np.random.default_rng(0)
    distance = rng.integers(100, 3000, 400)
    table = pa.table(
        {
            "carrier": rng.choice(["UA", "B6"], 400),
            "distance": distance,
            "hour": rng.integers(5, 23, 400),
            "flight": [f"F{i}" for i in range(400)],
            "late": distance + rng.normal(size=400) * 500 > 1500,
        }
    )
    pq.write_table(table, directory / "flights.parquet")
    model = {
        "name": "flights",
        "task": "binary",
        "classes": ["false", "true"],
        "positive": "true",
        "feature": [
            {"name": "carrier", "type": "string"},
            {"name": "distance", "type": "real"},
            {"name": "hour", "type": "integer"},
        ],
        "label": {"column": "late"},
        "retrain": {"search_trials": 1},
    }
    settings = {"grpc_port": 0, "http_port": 0, "trainer": False}
    data = {"path": "flights.parquet", "train_rows": 400}
    (directory / "trimtab.toml").write_text(render({"server": settings, "data": data, "model": [model]}))
    return Project.load(directory)


def test_every_snippet_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = flights(tmp_path / "flights")
    train_project(project)
    server = served.start(project.directory)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    try:
        snippets = re.findall(r"^```python([^\n]*)\n(.*?)^```", DOCS.read_text(encoding="utf-8"), re.M | re.S)
        assert len(snippets) >= 9
        for flags, snippet in snippets:
            code = compile(snippet.replace("127.0.0.1:8001", server.grpc), str(DOCS), "exec")
            if "no-run" not in flags:
                exec(code, names)
    finally:
        made = names.get("client")
        if isinstance(made, Client):
            made.close()
        assert server.stop() == 0
    out = capsys.readouterr().out
    assert "missing input 'distance', 'hour'; the model takes 'carrier', 'distance', 'hour'" in out
    assert "absent 1" in out
