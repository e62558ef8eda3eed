"""A network of the user's own on prepared columns, all the way: trained, replayed with retraining, published by hand,
served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from .test_replay import _TOML, _stream, _trimtab

NET = """
import torch
from torch import nn

from stream_parts import Tables

class Net(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.tables = Tables(shape.categories)
        self.norm = nn.BatchNorm1d(shape.features)
        self.last = nn.Linear(shape.features + 2 * len(shape.categories), shape.outputs)

    def forward(self, features, ids):
        return self.last(torch.cat([self.norm(features), self.tables(ids)], 1))

class Model:
    def build(self, shape):
        return Net(shape)
"""
PARTS = """
import torch
from torch import nn

class Tables(nn.ModuleList):
    def __init__(self, sizes):
        super().__init__(nn.Embedding(size, 2) for size in sizes)

    def forward(self, ids):
        return torch.cat([table(ids[:, i]) for i, table in enumerate(self)], 1)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    _stream(folder / "stream.parquet")
    (folder / "stream_net.py").write_text(NET)
    (folder / "stream_parts.py").write_text(PARTS)
    (folder / "trimtab.toml").write_text(_TOML.replace('architecture = "linear"', 'entry = "stream_net:Model"'))
    done = _trimtab("train", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    trained: dict[str, Any] = json.loads(done.stdout)
    assert trained["recipe"]["kind"] == "entry"
    return folder


def test_a_replay_retrains_it(project: Path) -> None:
    done = _trimtab("replay", "stream.parquet", "--report", "own.json", "--json", cwd=project, TMPDIR=str(project))
    assert done.returncode == 0, done.stderr
    report = json.loads((project / "own.json").read_bytes())
    assert (report["failed_requests"], report["mixed_version_answers"]) == (0, 0)
    assert report["promotions"] >= 1
    assert report["metrics"]["live"]["log_loss"] < report["metrics"]["frozen"]["log_loss"]


def test_weights_made_elsewhere_become_a_version_of_its_columns(project: Path) -> None:
    first = load_file(project / "state" / "stream" / "versions" / "1" / "weights.safetensors")
    # Under the names that the user's own module has.
    mine = {name.removeprefix("net."): tensor for name, tensor in first.items()}
    mine["last.bias"] = mine["last.bias"] + 1
    save_file(mine, project / "mine.safetensors")
    done = _trimtab("publish", "mine.safetensors", "--json", cwd=project)
    assert done.returncode == 0, done.stderr
    version = json.loads(done.stdout)["version"]
    folder = project / "state" / "stream" / "versions" / str(version)
    assert torch.equal(load_file(folder / "weights.safetensors")["net.last.bias"], first["net.last.bias"] + 1)
    assert (folder / "columns.json").read_bytes() == (folder.parent / "1" / "columns.json").read_bytes()
    save_file({"other": torch.zeros(1)}, project / "other.safetensors")
    refused = _trimtab("publish", "other.safetensors", cwd=project)
    assert refused.returncode == 1
    assert "does not have the architecture's tensors" in refused.stderr


def test_without_its_code_nothing_runs(project: Path) -> None:
    (project / "stream_net.py").rename(project / "gone.py")
    try:
        refused = _trimtab("publish", "mine.safetensors", cwd=project)
        assert refused.returncode == 1
        assert "module 'stream_net' not found" in refused.stderr
    finally:
        (project / "gone.py").rename(project / "stream_net.py")
