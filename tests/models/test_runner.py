"""How a version runs: compiled where it was asked for and is faster, eagerly where anything at all is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trimtab.models import runner
from trimtab.models.compiling import example_of
from trimtab.models.errors import CodeError
from trimtab.models.loading import Version, loader
from trimtab.models.publishing import publish_first
from trimtab.models.runner import Compiled, RunError, running
from trimtab.store.project import Project
from trimtab.store.versions import VersionStore

ENTRY = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return {"total": x.sum(1), "score": torch.relu(self.layer(x))}

class Model:
    def build(self):
        return Net()

    def example(self, rows):
        return {"x": torch.arange(3.0 * rows).reshape(rows, 3)}
"""
PROJECT = """
[server]
threads = 1
[[model]]
name = "own"
entry = "own_net:Model"
run = "compiled"
[[model.input]]
name = "x"
datatype = "FP32"
dims = [DIMS]
[[model.output]]
name = "score"
datatype = "FP32"
dims = [2]
[[model.output]]
name = "total"
datatype = "FP32"
dims = []
[model.batching]
max_batch_size = 64
"""
Loaded = tuple[Version, list[str]]


def project(folder: Path, dims: str = "3") -> tuple[Project, VersionStore]:
    (folder / "own_net.py").write_text(textwrap.dedent(ENTRY))
    (folder / "trimtab.toml").write_text(PROJECT.replace("DIMS", dims))
    made = Project.load(folder)
    store = VersionStore(made.model_state().versions)
    publish_first(made, made.model(), store)
    return made, store


def load(folder: Path, device: str = "cpu", dims: str = "3") -> Loaded:
    """The version as a server loads it, and what was told."""
    made, store = project(folder, dims)
    told: list[str] = []
    plain = loader(made, made.model(), store, "cpu")
    run = running(
        plain, made, made.model(), store, device=device, threads=1, tell=lambda number, text: told.append(text)
    )
    return run(1), told


def check_eager(found: Loaded, reason: str) -> None:
    version, told = found
    assert len(told) == 1
    assert told[0].startswith("version 1 runs eagerly: ")
    assert reason in told[0]
    arguments = example_of(version, 2) if "variable" not in reason else (torch.zeros(2, 3),)
    score, total = version._run(*arguments)  # type: ignore[union-attr]
    assert [list(score.shape), list(total.shape)] == [[2, 2], [2]]


def compiler(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Has this Python code take the compiling process' place; its arguments are the process' own."""
    real = subprocess.run

    def run(command: list[str], **options: Any) -> Any:
        assert command[1:3] == ["-m", "trimtab.models.compiling"]
        return real([sys.executable, "-c", textwrap.dedent(script), *command[3:]], **options)

    monkeypatch.setattr(runner.subprocess, "run", run)


def test_eager_versions_are_loaded_as_they_are(tmp_path: Path) -> None:
    made, store = project(tmp_path)
    plain = loader(made, made.model(), store, "cpu")
    settings = made.model().model_copy(update={"run": "auto"})
    assert running(plain, made, settings, store, device="cpu", threads=1, tell=lambda *_: None) is plain


def test_compiling_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler(monkeypatch, "import sys; sys.exit('noise\\nno C++ compiler')")
    check_eager(load(tmp_path), "it cannot be compiled: no C++ compiler")


def test_package_that_was_changed_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler(monkeypatch, "import sys; open(sys.argv[-1], 'w').write('other'); print('0' * 64)")
    check_eager(load(tmp_path), "not the one that was compiled")


def test_package_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = """
    import hashlib, sys
    open(sys.argv[-1], "wb").write(b"not a package")
    print(hashlib.sha256(b"not a package").hexdigest())
    """
    compiler(monkeypatch, script)
    check_eager(load(tmp_path), "cannot be loaded")


def test_compiling_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_SECONDS", 0.01)
    compiler(monkeypatch, "import sys; sys.stdin.read() or __import__('time').sleep(60)")
    check_eager(load(tmp_path), "longer than")


def test_device_that_is_no_cpu(tmp_path: Path) -> None:
    check_eager(load(tmp_path, device="cuda"), "compiling is for the CPU")


def test_inputs_of_variable_dimensions(tmp_path: Path) -> None:
    check_eager(load(tmp_path, dims="-1"), "variable dimensions")


def eager_of(version: Version) -> Callable[..., Any]:
    return version.run_eagerly


def test_packages_that_disagree_or_fail_are_refused(tmp_path: Path) -> None:
    made, store = project(tmp_path)
    version = loader(made, made.model(), store, "cpu")(1)
    eager = eager_of(version)

    def other(*arguments: Any) -> Any:
        score, total = eager(*arguments)
        return [score + 1e-3 * (len(score) == 1), total]

    def specialised(*arguments: Any) -> Any:
        if len(arguments[0]) != 64:
            raise RuntimeError("expected 64 rows")
        return eager(*arguments)

    def narrow(*arguments: Any) -> Any:
        score, total = eager(*arguments)
        return [score[:, :1], total]

    for package, reason in ((other, "differ"), (specialised, "fails on 32 rows"), (narrow, "not")):
        with pytest.raises(RunError, match=reason):
            runner._checked(version, package, 64)


def test_small_batches_stay_eager_where_that_is_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, store = project(tmp_path)
    version = loader(made, made.model(), store, "cpu")(1)
    eager = eager_of(version)
    for faster_from, least in ((1, 1), (8, 8), (64, 64), (65, None)):
        monkeypatch.setattr(runner, "_faster", lambda _a, _b, given, limit=faster_from: len(given[0]) >= limit)
        made_of = runner._checked(version, eager, 64)
        assert (made_of and made_of.least) == least
    # Faster on middling batches only: what large batches lose is not worth it.
    monkeypatch.setattr(runner, "_faster", lambda _a, _b, given: len(given[0]) == 16)
    assert runner._checked(version, eager, 64) is None


def test_the_number_of_rows_decides() -> None:
    compiled = Compiled(lambda x: ("eager", len(x)), lambda x: ("package", len(x)), 8)
    assert compiled(torch.zeros(7, 2)) == ("eager", 7)
    assert compiled(torch.zeros(8, 2)) == ("package", 8)


def test_examples_of_what_cannot_be_compiled(tmp_path: Path) -> None:
    made, store = project(tmp_path, dims="-1")
    with pytest.raises(CodeError, match="variable"):
        example_of(loader(made, made.model(), store, "cpu")(1), 2)


@pytest.mark.slow
def test_a_compiled_version_answers_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real compiler, in its process; and that it leaves nothing behind."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(runner.tempfile, "tempdir", str(scratch))
    monkeypatch.setattr(runner, "_faster", lambda *_: True)
    (tmp_path / "project").mkdir()
    version, told = load(tmp_path / "project")
    if "runs eagerly" in told[0] and "compiler" in told[0]:
        pytest.skip("no C++ compiler")
    assert told[0].startswith("version 1 runs compiled from 1 rows on")
    inputs = {"x": torch.randn(33, 3)}
    found = version.call(inputs, 33)  # type: ignore[union-attr]
    with torch.inference_mode():
        expected = version.run_eagerly(inputs["x"])  # type: ignore[call-arg]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other.numpy(), rtol=1e-5, atol=1e-5)
    assert [name for name in os.listdir(scratch) if name.startswith("trimtab-compile-")] == []
