"""The load generator (native/load.cpp) from Python: built on first use, run on a core of its own, its result typed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).parent / "native"
BUILD = Path(__file__).resolve().parents[1] / "build" / "bench"
INFER = "/inference.GRPCInferenceService/ModelInfer"
# A generator that is this late at the 99th percentile is itself what an open loop measures.
LATE_US = 500.0


def cores() -> tuple[int, int]:
    """The server's core and the load's; the same one where there is only one."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[-1]


def generator() -> Path:
    """The built generator; compiled where its sources have changed."""
    sources = sorted(path for path in SOURCES.iterdir() if path.suffix in (".cpp", ".h"))
    stamp = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    binary = BUILD / f"load-{stamp}"
    if not binary.exists():
        print("building the load generator", file=sys.stderr)
        BUILD.mkdir(parents=True, exist_ok=True)
        units = [str(path) for path in sources if path.suffix == ".cpp"]
        made = binary.with_suffix(".new")
        command = [os.environ.get("CXX", "c++"), "-O3", "-std=c++20", "-o", str(made), *units]
        subprocess.run([*command, "-lnghttp2", "-lssl", "-lcrypto"], check=True)
        made.replace(binary)
    return binary


@dataclass(frozen=True)
class Target:
    """Where a request goes, and its bytes."""

    address: str
    body: Path
    tls: bool = False
    path: str = INFER


@dataclass(frozen=True)
class Result:
    """What one run of the generator found; latencies in µs. `raw` is all that it printed."""

    raw: dict[str, Any]

    @property
    def rate(self) -> float:
        """Answers with status OK a second."""
        return float(self.raw["rate"])

    @property
    def failed(self) -> int:
        """Calls that ended otherwise, or not at all."""
        ended = sum(count for status, count in self.raw["statuses"].items() if status != "0")
        return int(ended + self.raw["unanswered"])

    @property
    def latency(self) -> dict[str, float]:
        """Quantiles of calls with status OK."""
        return dict(self.raw["latency_us"])

    @property
    def late(self) -> bool:
        """Whether the generator, and not the server, set the latencies of an open loop."""
        return bool(self.raw["late_us"]["p99"] > LATE_US)


def command(target: Target, **options: Any) -> list[str]:
    """The generator's command line; `options` as it names them, with underscores; True is a switch."""
    words = ["taskset", "-c", str(cores()[1]), str(generator()), "--address", target.address, "--body"]
    words += [str(target.body), "--path", target.path, *(["--tls"] if target.tls else [])]
    for name, value in options.items():
        if value is not None and value is not False:
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return words


def run(target: Target, **options: Any) -> Result:
    """Runs to its end. Raises RuntimeError with what the generator said."""
    done = subprocess.run(command(target, **options), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    return Result(json.loads(done.stdout))


def start(target: Target, **options: Any) -> subprocess.Popen[str]:
    """Starts it beside something else; `finish` waits for it."""
    return subprocess.Popen(command(target, **options), stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> Result:
    """The result of what `start` gave."""
    out, _ = process.communicate(timeout=600)
    return Result(json.loads(out))


def shape(concurrency: int) -> dict[str, int]:
    """A closed loop's connections and streams: one connection, but at most 32 calls on each of at least 4 beyond 8."""
    if concurrency <= 8:
        return {"connections": 1, "streams": concurrency}
    connections = max(4, concurrency // 32)
    return {"connections": connections, "streams": concurrency // connections}
