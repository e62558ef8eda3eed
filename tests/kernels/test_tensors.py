"""What the kernels for tensors share."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from trimtab.kernels.tensors import interpreted, next_power_of_2, runs_triton

REFERENCES = """
import json, sys, torch
from trimtab.kernels.embeddings import FeatureSums, RandomFeatures
from trimtab.kernels.images import channel_constants, normalise_images
from trimtab.kernels.predictions import PredictionSpec, PredictionStatistics
PredictionStatistics(PredictionSpec(3)).add(torch.zeros(2, 3))
FeatureSums(RandomFeatures(3, 4)).add(torch.zeros(2, 3))
normalise_images(torch.zeros(1, 2, 2, 1, dtype=torch.uint8), channel_constants([0.5], [0.5]))
print(json.dumps([name for name in sys.modules if name.split(".")[0] == "triton"]))
"""


def test_cpu_does_not_import_triton() -> None:
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", REFERENCES], env=clean, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_interpreted_as_triton_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pytest.importorskip("triton", reason="Triton is not installed")
    assert triton.knobs.runtime.interpret == interpreted()
    for value in ("1", "true", "ON", "Yes", "y", "0", "false", "", "n"):
        monkeypatch.setenv("TRITON_INTERPRET", value)
        interpreted.cache_clear()
        assert triton.knobs.runtime.interpret == interpreted(), value
    monkeypatch.undo()
    interpreted.cache_clear()


def test_who_runs_triton() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    assert runs_triton(torch.device("cpu")) == interpreted()
    assert runs_triton(torch.device("cuda"))


def test_next_power_of_2() -> None:
    assert [next_power_of_2(value) for value in (1, 2, 3, 4, 5, 1023, 1024, 1025)] == [1, 2, 4, 4, 8, 1024, 1024, 2048]
