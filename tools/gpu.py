"""Builds on a machine with a GPU, and runs what needs one: tests, compute-sanitizer, benchmarks.

Each part is a process of its own with a time limit. One that fails or hangs is noted, and the others go on; only what
needs a part that failed (everything needs the build) is left out, and says so. The result is one JSON file, written
anew after every part, so that whatever ends this leaves what was found until then:

    {"environment": {...}, "parts": [{"name", "ok", "seconds", "reason", "tail", "result"}], "ok": true}

Parts, what is worth most first: `build`; `tests` (what is marked `gpu`, each file in a process of its own, since an
illegal access costs a process its GPU; several at a time); each `benchmarks/gpu_*.py` under its own name; `memcheck`,
`racecheck`, `initcheck`, `synccheck` (compute-sanitizer over the kernels' tests, at their small sizes:
TRIMTAB_SMALL=1). With `--seconds` all of it ends within that time: a part has what is left, and what comes too late is
not run. Beside the JSON lies `logs.tar.gz`, with all that was printed. Uses the standard library alone: it runs before
anything is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / "build" / "gpu-venv"
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
LOGS = ROOT / "build" / "gpu" / "logs"
_ASKS_FOR_A_GPU = re.compile(r"mark\.gpu\b|\bMACHINES\b|\bDEVICES\b|\bKINDS\b|CUDA_KINDS")
_TAIL = 6000
_ABREAST = 6
_LEAST_SECONDS = 15.0
_SECONDS = {"build": 600, "tests": 900, "sanitizer": 600, "benchmark": 600}
_CUDA = ("/usr/local/cuda/bin", "/usr/local/cuda-13.0/bin")


@dataclass
class Part:
    """What became of one part."""

    name: str
    ok: bool
    seconds: float
    reason: str = ""
    """Why it is not ok, in one line."""
    tail: str = ""
    """The end of what it printed."""
    result: Any = None
    """What it wrote: a benchmark's JSON, the tests' counts."""


def gpu_tests(root: Path) -> list[str]:
    """The test files that ask for a GPU, relative to the root."""
    files = sorted((root / "tests").rglob("test_*.py"))
    return [str(path.relative_to(root)) for path in files if _ASKS_FOR_A_GPU.search(path.read_text())]


def benchmarks(root: Path) -> list[str]:
    """The names of the benchmarks for a GPU."""
    return sorted(path.stem for path in (root / "benchmarks").glob("gpu_*.py"))


def part_names(root: Path) -> list[str]:
    """All parts, in the order in which they run."""
    return ["build", "tests", *benchmarks(root), *SANITIZERS]


def counts(text: str) -> dict[str, int]:
    """What pytest's last line says: how many passed, failed, were skipped."""
    found: list[tuple[str, str]] = []
    for line in reversed(text.splitlines()):
        if line.startswith("===="):
            continue  # compute-sanitizer's own
        found = re.findall(r"(\d+) (passed|failed|skipped|errors?|xfailed|deselected)", line)
        if found:
            break
    return {kind: int(number) for number, kind in found}


def run(
    name: str, command: Sequence[str], seconds: float, log: Path, environment: Mapping[str, str] | None = None
) -> Part:
    """Runs a command in the root; all that it prints goes to the log. Ends it, and what it started, when its time is
    over."""
    began = time.monotonic()
    reason = ""
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        except OSError as error:
            return Part(name, False, 0.0, f"{command[0]} cannot be started: {error}")
        try:
            code = process.wait(seconds)
            reason = f"exit code {code}" if code else ""
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            reason = f"took longer than {seconds:.0f} s"
    tail = log.read_bytes()[-_TAIL:].decode(errors="replace")
    return Part(name, not reason, round(time.monotonic() - began, 1), reason, tail)


class Gpu:
    """One run over all parts."""

    def __init__(
        self, out: Path, *, quick: bool, wheels: Path | None, only: Sequence[str], seconds: float = float("inf")
    ) -> None:
        self.out, self.quick, self.wheels = out, quick, wheels
        self.only = list(only)
        self._ends = time.monotonic() + seconds
        self.parts: list[Part] = []
        self.python = str(VENV / "bin" / "python")

    def main(self) -> int:
        """Runs the parts; 0 where all are ok."""
        self.out.mkdir(parents=True, exist_ok=True)
        names = [name for name in part_names(ROOT) if not self.only or name in self.only]
        if "build" not in names and not Path(self.python).exists():
            names.insert(0, "build")
        for name in names:
            print(f"== {name}", flush=True)
            part = self._one(name)
            self.parts.append(part)
            self._write()
            print(f"   {'ok' if part.ok else part.reason} ({part.seconds:.0f} s)", flush=True)
            if not part.ok and part.tail:
                print(part.tail, flush=True)
        return 0 if all(part.ok for part in self.parts) else 1

    def _one(self, name: str) -> Part:
        if name != "build" and not Path(self.python).exists():
            return Part(name, False, 0.0, "not run: there is no build")
        if self._left() < _LEAST_SECONDS:
            return Part(name, False, 0.0, "not run: no time was left")
        try:
            return self._how(name)()
        except Exception as error:
            return Part(name, False, 0.0, f"{type(error).__name__}: {error}")

    def _how(self, name: str) -> Callable[[], Part]:
        if name == "build":
            return self._build
        if name == "tests":
            return self._tests
        if name in SANITIZERS:
            return lambda: self._sanitize(name)
        return lambda: self._benchmark(name)

    def _build(self) -> Part:
        """A venv that sees the machine's own packages, the wheels, and Trimtab; nothing from a network."""
        shutil.rmtree(VENV, ignore_errors=True)
        shutil.rmtree(LOGS, ignore_errors=True)
        pip = [self.python, "-m", "pip", "--disable-pip-version-check", "install", "--no-index", "--no-deps"]
        # Without a pip of its own, for which Debian's Python lacks a part; it sees the machine's.
        steps = [[sys.executable, "-m", "venv", "--system-site-packages", "--without-pip", str(VENV)]]
        wheels = sorted(map(str, self.wheels.glob("*.whl"))) if self.wheels is not None else []
        if wheels:
            steps.append([*pip, *wheels])
        # Another compiler than ours may warn of other things, which is no reason to run nothing.
        lenient = "--config-settings=cmake.define.TRIMTAB_WERROR=OFF"
        steps.append([*pip, "--no-build-isolation", "--use-pep517", lenient, "--editable", str(ROOT)])
        began = time.monotonic()
        for position, step in enumerate(steps):
            part = self._run("build", step, _SECONDS["build"], LOGS / f"build-{position}.log")
            if not part.ok:
                return self._no_build(part)
            if position == 0:
                see_packages(VENV)
        check = "import torch, trimtab._native as n; assert torch.cuda.is_available(); print(n.HAS_FRONT)"
        part = self._run("build", [self.python, "-c", check], 120, LOGS / "build-check.log")
        if not part.ok:
            return self._no_build(part)
        part.seconds = round(time.monotonic() - began, 1)
        part.result = {"front": part.tail.strip().endswith("True")}
        return part

    def _no_build(self, part: Part) -> Part:
        shutil.rmtree(VENV, ignore_errors=True)  # so that nothing runs on half of it, and a later call builds
        return part

    def _tests(self) -> Part:
        # Warnings are errors where Trimtab is developed; those of this machine's packages are not what is asked here.
        pytest = [self.python, "-m", "pytest", "-q", "-W", "default", "-p", "no:cacheprovider", "-m", "gpu"]

        def one(path: str) -> Part:
            part = self._run(path, [*pytest, path], _SECONDS["tests"], LOGS / f"{Path(path).stem}.log")
            part.result = counts(part.tail)
            return part

        began = time.monotonic()
        with ThreadPoolExecutor(_ABREAST) as pool:
            parts = list(pool.map(one, gpu_tests(ROOT)))
        failed = [part for part in parts if not part.ok]
        return Part(
            "tests",
            not failed,
            round(time.monotonic() - began, 1),
            "; ".join(f"{part.name}: {part.reason}" for part in failed),
            "\n".join(f"-- {part.name}\n{part.tail}" for part in failed),
            {part.name: {"seconds": part.seconds, **part.result} for part in parts},
        )

    def _sanitize(self, tool: str) -> Part:
        sanitizer = _program("compute-sanitizer")
        if sanitizer is None:
            return Part(tool, False, 0.0, "compute-sanitizer is not there")
        chosen = [path for path in gpu_tests(ROOT) if path.startswith("tests/kernels/")]
        if not chosen:
            return Part(tool, False, 0.0, "no test of a kernel asks for a GPU")
        command = [sanitizer, "--tool", tool, "--error-exitcode", "99", "--launch-timeout", "120"]
        # Every allocation on its own, so that what lies behind a tensor is not another tensor.
        environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "TRIMTAB_SMALL": "1"}
        marks = ["-W", "default", "-p", "no:cacheprovider", "-m", "gpu and not slow"]
        tests = [self.python, "-m", "pytest", "-q", *marks, *chosen]
        part = self._run(tool, [*command, *tests], _SECONDS["sanitizer"], LOGS / f"{tool}.log", environment)
        part.result = counts(part.tail)
        return part

    def _benchmark(self, name: str) -> Part:
        LOGS.mkdir(parents=True, exist_ok=True)
        path = LOGS / f"{name}.json"
        path.unlink(missing_ok=True)
        command = [self.python, f"benchmarks/{name}.py", "--json", str(path), *(["--quick"] if self.quick else [])]
        part = self._run(name, command, _SECONDS["benchmark"], LOGS / f"{name}.log")
        if path.exists():
            part.result = json.loads(path.read_text())
        elif part.ok:
            part.ok, part.reason = False, "it wrote no result"
        return part

    def _run(
        self, name: str, command: Sequence[str], seconds: float, log: Path, more: Mapping[str, str] | None = None
    ) -> Part:
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**self._libraries(), "PYTHONUNBUFFERED": "1", **(more or {})}
        return run(name, command, max(1.0, min(seconds, self._left())), log, environment)

    def _left(self) -> float:
        return self._ends - time.monotonic()

    def _libraries(self) -> dict[str, str]:
        """Where libraries of the folder of wheels are found (see tools/gpu_wheels.sh), in building and in running."""
        root = None if self.wheels is None else self.wheels / "root" / "usr"
        path = os.pathsep.join([str(VENV / "bin"), *_CUDA, os.environ.get("PATH", "")])
        if root is None or not root.exists():
            return {"PATH": path}
        lib = root / "lib" / f"{platform.machine()}-linux-gnu"
        return {
            "PATH": path,
            "CMAKE_PREFIX_PATH": str(root),
            "CMAKE_LIBRARY_PATH": str(lib),
            "LD_LIBRARY_PATH": os.pathsep.join(filter(None, [os.environ.get("LD_LIBRARY_PATH", ""), str(lib)])),
        }

    def _write(self) -> None:
        result = {
            "environment": environment(self.python),
            "parts": [asdict(part) for part in self.parts],
            "ok": all(part.ok for part in self.parts),
        }
        partial = self.out / "gpu.json.part"
        partial.write_text(json.dumps(result, indent=1) + "\n")
        partial.replace(self.out / "gpu.json")
        if LOGS.exists():
            with tarfile.open(self.out / "logs.tar.gz", "w:gz") as logs:
                logs.add(LOGS, "logs")


def see_packages(venv: Path) -> None:
    """Has a venv see all packages that this Python sees. `--system-site-packages` shows it those of the installation
    that this Python is of, and not those of a venv that this Python lies in: torch, on some machines."""
    (packages,) = (venv / "lib").glob("python*/site-packages")
    seen = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "outer.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in seen))


def environment(python: str) -> dict[str, str]:
    """The GPU, its driver, and the versions of what computes on it."""
    smi = "name,driver_version,memory.total,clocks.max.sm,power.limit"
    versions = (
        "import sys, torch, importlib.metadata as m; "
        "print(sys.version.split()[0], torch.__version__, torch.version.cuda, *sorted({f'{d.name} {d.version}' "
        "for d in m.distributions() if (d.name or '').startswith(('triton', 'cupy', 'numpy', 'cuda-bindings'))}))"
    )
    return {
        "gpu": _said(["nvidia-smi", f"--query-gpu={smi}", "--format=csv,noheader"]),
        "python, torch, cuda": _said([python, "-c", versions]),
        "nvcc": _said([_program("nvcc") or "nvcc", "--version"]).splitlines()[-1:][0],
        "platform": platform.platform(),
        "commit": _said(["git", "describe", "--always", "--dirty"]),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _said(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"unknown: {error}"
    return done.stdout.strip() or f"unknown: exit code {done.returncode}"


def _program(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *_CUDA]))


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="benchmarks in their quick form")
    parser.add_argument("--only", action="append", default=[], metavar="PART", help="this part only; may be repeated")
    parser.add_argument("--wheels", type=Path, default=ROOT / "build" / "gpu-wheels", help="what gpu_wheels.sh filled")
    parser.add_argument("--list", action="store_true", help="print the parts, and what this Python has installed")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end within so many; default: no limit")
    given = parser.parse_args()
    unknown = set(given.only) - set(part_names(ROOT))
    if unknown:
        parser.error(f"unknown parts {sorted(unknown)}; there are {', '.join(part_names(ROOT))}")
    if given.list:
        print("\n".join(part_names(ROOT)))
        return subprocess.run([sys.executable, "-m", "pip", "list", "--format=freeze"], check=False).returncode
    out = Path(os.environ.get("OUT") or ROOT / "build" / "gpu")
    wheels = given.wheels.resolve() if given.wheels.exists() else None
    return Gpu(out, quick=given.quick, wheels=wheels, only=given.only, seconds=given.seconds).main()


if __name__ == "__main__":
    sys.exit(_main())
