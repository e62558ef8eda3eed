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


def test_parts_in_the_order_of_their_worth() -> None:
    names = gpu.part_names(ROOT)
    assert names[:2] == ["build", "tests"]
    assert names[-4:] == ["memcheck", "racecheck", "initcheck", "synccheck"]
    assert "gpu_serving" in names
    assert len(set(names)) == len(names)


def test_every_file_with_a_test_for_a_gpu_is_run() -> None:
    """By what pytest collects under that mark, wherever the mark comes from."""
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-m", "gpu", "tests"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    collected = {line.partition("::")[0] for line in said.splitlines() if "::" in line}
    assert collected == set(gpu.gpu_tests(ROOT))
    for test in ("test_shared_graphs", "test_device_columns", "test_cuda_parity", "test_executors"):
        assert any(Path(path).stem == test for path in collected)


def test_a_venv_sees_the_packages_of_a_venv_that_it_is_made_by(tmp_path: Path) -> None:
    outer, inner = tmp_path / "outer", tmp_path / "inner"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(outer)], check=True)
    (packages,) = (outer / "lib").glob("python*/site-packages")
    (packages / "only_there.py").write_text("")
    python = str(outer / "bin" / "python")
    subprocess.run([python, "-m", "venv", "--system-site-packages", "--without-pip", str(inner)], check=True)
    call = "import sys, pathlib; sys.path.insert(0, 'tools'); import gpu; gpu.see_packages(pathlib.Path(sys.argv[1]))"
    subprocess.run([python, "-c", call, str(inner)], cwd=ROOT, check=True)
    subprocess.run([str(inner / "bin" / "python"), "-c", "import only_there"], check=True)


def test_all_ends_in_the_time_that_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "environment", lambda _: {})
    run = gpu.Gpu(tmp_path, quick=True, wheels=None, only=["tests", "memcheck"], seconds=gpu._LEAST_SECONDS - 1)
    monkeypatch.setattr(run, "python", sys.executable)
    assert run.main() == 1
    assert [part.reason for part in run.parts] == ["not run: no time was left"] * 2
    late = gpu.Gpu(tmp_path, quick=True, wheels=None, only=[], seconds=0.5)
    hung = late._run("hung", [sys.executable, "-c", "import threading; threading.Event().wait()"], 60, tmp_path / "log")
    assert hung.reason == "took longer than 1 s"


def test_a_file_of_tests_that_fails_costs_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = "@pytest.mark." + "gpu"  # in one piece it would have this file taken for one of them
    (tmp_path / "test_one.py").write_text(
        f"import pytest\n{mark}\ndef test_it():\n    assert 1 == 2\ndef test_other():\n    pass\n"
    )
    (tmp_path / "test_two.py").write_text(
        f"import warnings, pytest\n{mark}\ndef test_it():\n    warnings.warn('x', DeprecationWarning)\n"
    )
    files = [str(tmp_path / name) for name in ("test_one.py", "test_two.py")]
    monkeypatch.setattr(gpu, "gpu_tests", lambda _: files)
    monkeypatch.setattr(gpu, "LOGS", tmp_path / "logs")
    run = gpu.Gpu(tmp_path, quick=True, wheels=None, only=[])
    monkeypatch.setattr(run, "python", sys.executable)
    part = run._tests()
    assert part.reason == f"{files[0]}: exit code 1"
    assert "assert 1 == 2" in part.tail
    assert {name: {**found, "seconds": 0} for name, found in part.result.items()} == {
        files[0]: {"seconds": 0, "failed": 1, "deselected": 1},
        files[1]: {"seconds": 0, "passed": 1},
    }


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
    monkeypatch.setattr(run, "_build", lambda: gpu.Part("build", False, 1.0, "exit code 1"))
    assert run.main() == 1
    assert [part.name for part in run.parts] == ["build", "tests", "gpu_serving"]  # what is there is not built again
    assert {part.reason for part in run.parts[1:]} == {"not run: there is no build"}


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
