"""What every benchmark shares: its command line, the description of the machine, quantiles and the result file.

A result file is JSON with `environment` (CPU/GPU, versions, commit, date), `rows` (one per case, with quantiles) and
`summary` (name → number).
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

PACKAGES = ("trimtab", "torch", "numpy", "grpcio", "pyarrow", "protobuf")


def arguments(description: str) -> argparse.Namespace:
    """Parse `[--quick] [--json FILE]`, which every benchmark takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter cases; ends within three minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here")
    return parser.parse_args()


def environment() -> dict[str, Any]:
    """The machine, the versions and the commit that a result belongs to."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "absent"
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": _gpu_name(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": commit.stdout.strip(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def _gpu_name() -> str | None:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--query-gpu=name,driver_version,clocks.max.sm", "--format=csv,noheader"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def quantiles(samples: Sequence[float], unit: str) -> dict[str, float | str | int]:
    """Minimum, median, 90th and 99th percentile and maximum of `samples`, which are in `unit`."""
    values = np.asarray(samples, dtype=np.float64)
    names = {"min": 0, "p50": 50, "p90": 90, "p99": 99, "max": 100}
    return {"unit": unit, "n": len(values), **{name: float(np.percentile(values, q)) for name, q in names.items()}}


def report(rows: Sequence[Mapping[str, Any]], summary: Mapping[str, float], path: Path | None) -> None:
    """Print the summary and, where asked, write the result file."""
    for name, value in summary.items():
        print(f"{name:32} {value:.4g}")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        result = {"environment": environment(), "rows": list(rows), "summary": dict(summary)}
        path.write_text(json.dumps(result, indent=1) + "\n")
        print(f"written: {path}")
