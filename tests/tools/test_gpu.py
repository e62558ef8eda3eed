"""`make gpu` as far as it goes without a GPU: which parts there are, and that a part which fails costs only itself."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_tool", ROOT / "tools" / "gpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_tool"] = module
    spec.loader.exec_module(module)
    return module


gpu: Any = load()


def test_what_asks_for_a_gpu_is_found() -> None:
    tests = gpu.gpu_tests(ROOT)
    assert {"tests/models/test_graphs.py", "tests/models/test_flat.py"} <= set(tests)
    assert {"tests/csrc/test_shared_memory.py", "tests/server/test_cuda_shared_memory.py"} <= set(tests)
    assert "gpu_serving" in gpu.benchmarks(ROOT)
    names = gpu.part_names(ROOT)
    assert names[:6] == ["build", "tests", "memcheck", "racecheck", "initcheck", "synccheck"]
    assert len(set(names)) == len(names)


def test_a_part_that_fails_hangs_or_cannot_start_is_noted(tmp_path: Path) -> None:
    log = tmp_path / "log"
    good = gpu.run("good", [sys.executable, "-c", "print('fine')"], 60, log)
    assert (good.ok, good.reason, good.tail) == (True, "", "fine\n")
    bad = gpu.run("bad", [sys.executable, "-c", "print('oh'); raise SystemExit(3)"], 60, log)
    assert (bad.ok, bad.reason, bad.tail) == (False, "exit code 3", "oh\n")
    hung = gpu.run("hung", [sys.executable, "-c", "import threading; threading.Event().wait()"], 0.2, log)
    assert (hung.ok, hung.reason) == (False, "took longer than 0 s")
    absent = gpu.run("absent", ["/no/such/program"], 60, log)
    assert not absent.ok
    assert "cannot be started" in absent.reason


def test_the_result_is_there_after_every_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = gpu.Gpu(tmp_path, quick=True, wheels=None, only=["build", "tests", "memcheck"])
    monkeypatch.setattr(run, "python", sys.executable)
    monkeypatch.setattr(gpu, "environment", lambda _: {"gpu": "none"})
    seen: list[int] = []

    def how(name: str) -> Any:
        if name == "tests":
            raise RuntimeError("no pytest")

        def part() -> Any:
            path = tmp_path / "gpu.json"
            seen.append(len(json.loads(path.read_text())["parts"]) if path.exists() else 0)
            return gpu.Part(name, True, 1.0)

        return part

    monkeypatch.setattr(run, "_how", how)
    assert run.main() == 1
    assert seen == [0, 2]
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert [(part["name"], part["ok"]) for part in found["parts"]] == [
        ("build", True),
        ("tests", False),
        ("memcheck", True),
    ]
    assert found["parts"][1]["reason"] == "RuntimeError: no pytest"
    assert found["ok"] is False


def test_nothing_runs_on_a_build_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "environment", lambda _: {})
    run = gpu.Gpu(tmp_path, quick=True, wheels=None, only=["tests", "gpu_serving"])
    monkeypatch.setattr(run, "python", str(tmp_path / "none"))
    assert run.main() == 1
    assert {part.reason for part in run.parts} == {"not run: there is no build"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("...\n3 failed, 12 passed, 1 skipped in 2.1s\n", {"failed": 3, "passed": 12, "skipped": 1}),
        ("5 passed in 1s\n========= ERROR SUMMARY: 0 errors\n", {"passed": 5}),
        ("nothing", {}),
    ],
)
def test_counts(text: str, expected: dict[str, int]) -> None:
    assert gpu.counts(text) == expected


def test_scripts_parse() -> None:
    for script in ("gpu.sh", "gpu_wheels.sh"):
        subprocess.run(["bash", "-n", str(ROOT / "tools" / script)], check=True)
    said = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "gpu.py"), "--only", "nothing"], capture_output=True, text=True
    )
    assert said.returncode == 2
    assert "unknown parts ['nothing']; there are build, tests" in said.stderr
