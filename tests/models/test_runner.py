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
from trimtab.kernels.sketch import Sketch
from trimtab.models import runner
from trimtab.models.architectures import build
from trimtab.models.compiling import example_of
from trimtab.models.errors import CodeError
from trimtab.models.loading import Loader, Version, loader
from trimtab.models.publishing import publish_first
from trimtab.models.runner import RunError, Sized, pack_version, running
from trimtab.models.tasks import Task
from trimtab.models.version import LoadedVersion, architecture_of
from trimtab.store.manifest import Manifest
from trimtab.store.project import Project
from trimtab.store.settings import ModelSettings
from trimtab.store.versions import VersionStore

from .programs import make_program

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
    return run_of(plain, made, made.model(), store, device=device, told=told)(1), told


def run_of(
    plain: Loader,
    made: Project,
    settings: ModelSettings,
    store: VersionStore,
    *,
    device: str = "cpu",
    lockstep: bool = False,
    told: list[str] | None = None,
) -> Loader:
    heard: list[str] = [] if told is None else told

    def tell(_: int, text: str) -> None:
        heard.append(text)

    return running(plain, made, settings, store, device=device, threads=1, lockstep=lockstep, tell=tell)


def check_eager(found: Loaded, reason: str) -> None:
    version, told = found
    assert len(told) == 1
    assert told[0].startswith("version 1 runs eagerly: ")
    assert reason in told[0]
    arguments = example_of(version, 2) if "variable" not in reason else (torch.zeros(2, 3),)
    assert version._run is None  # type: ignore[union-attr]
    score, total = version.run_eagerly(*arguments)
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
    eager, auto = (made.model().model_copy(update={"run": run}) for run in ("eager", "auto"))
    assert run_of(plain, made, eager, store) is plain
    assert run_of(plain, made, auto, store, lockstep=True) is plain
    version = run_of(plain, made, auto, store)(1)
    assert version._run is None  # type: ignore[union-attr]  # there is nothing to pack


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
    check_eager(load(tmp_path, device="cuda"), "not by graphs in fp32, compiled: ")


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
            runner._checked(version, package, 64, 1)


def test_small_batches_stay_eager_where_that_is_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, store = project(tmp_path)
    version = loader(made, made.model(), store, "cpu")(1)
    eager = eager_of(version)
    for faster_from, least in ((1, 1), (8, 8), (64, 64), (65, None)):
        monkeypatch.setattr(runner, "_faster", lambda _a, _b, given, _n, limit=faster_from: len(given[0]) >= limit)
        made_of = runner._checked(version, eager, 64, 1)
        assert (made_of and made_of.least) == least
    # Faster on middling batches only: what large batches lose is not worth it.
    monkeypatch.setattr(runner, "_faster", lambda _a, _b, given, _n: len(given[0]) == 16)
    assert runner._checked(version, eager, 64, 1) is None


def test_the_number_of_rows_decides() -> None:
    sized = Sized(lambda x: ("eager", len(x)), lambda x: ("package", len(x)), 8)
    assert sized(torch.zeros(7, 2)) == ("eager", 7)
    assert sized(torch.zeros(8, 2)) == ("package", 8)


def columns_version(config: dict[str, Any], task: Task) -> LoadedVersion:
    program = make_program()
    module = build(config, program, task).eval().requires_grad_(False)
    manifest = Manifest(
        version=1,
        parent=None,
        task=task.kind,
        architecture=architecture_of(config, task),
        program_hash=program.hash,
        sketch_hash=program.sketch.hash,
        rows_trained=1,
    )
    reference = Sketch(program.sketch)
    return LoadedVersion(1, "w", program, task, manifest, reference, module, torch.device("cpu"))


@pytest.mark.parametrize("rows", [1, 2, 31, 256, 1000])
@pytest.mark.parametrize("task", [Task("regression"), Task("multiclass", ("a", "b", "c"))], ids=["one", "three"])
@pytest.mark.parametrize("widths", [[1], [16, 8], [130, 7, 65]], ids=str)
def test_packed_weights_predict_as_the_module_does(widths: list[int], task: Task, rows: int) -> None:
    version = columns_version({"kind": "mlp", "seed": 3, "widths": widths, "embedding": 4}, task)
    packed = version.packed()
    assert packed is not None
    arguments = example_of(version, rows)
    with torch.inference_mode():
        torch.testing.assert_close(packed(*arguments), version.run_eagerly(*arguments), rtol=1e-5, atol=1e-6)
        odd = arguments[0].clone()
        odd[0, 0] = float("nan")
        assert (
            torch.isnan(packed(odd, arguments[1])[0]).all()
            == torch.isnan(version.run_eagerly(odd, arguments[1])[0]).all()
        )


def test_packed_weights_are_used_where_they_are_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    version = columns_version({"kind": "mlp", "seed": 3, "widths": [16], "embedding": 4}, Task("regression"))
    once = version.bytes
    monkeypatch.setattr(runner, "_faster", lambda _a, _b, given, _n: len(given[0]) >= 32)
    sized = pack_version(version, 256)
    assert sized is not None
    assert sized.least == 32
    version.use(sized)
    assert version.bytes == 2 * once  # there are two copies now
    monkeypatch.setattr(runner, "_faster", lambda *_: False)
    assert pack_version(version, 256) is None


@pytest.mark.parametrize("config", [{"kind": "linear"}, {"kind": "mlp", "widths": []}], ids=["linear", "no layers"])
def test_networks_without_anything_to_pack(config: dict[str, Any]) -> None:
    assert pack_version(columns_version(config, Task("regression")), 256) is None


def test_packed_weights_that_disagree_are_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    version = columns_version({"kind": "mlp", "seed": 3, "widths": [16]}, Task("regression"))
    wrong = columns_version({"kind": "mlp", "seed": 4, "widths": [16]}, Task("regression"))
    monkeypatch.setattr(LoadedVersion, "packed", lambda _: wrong.run_eagerly)
    assert pack_version(version, 256) is None
    assert "differ by more than" in caplog.text


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
