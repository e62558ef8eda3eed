"""How a version's weights come from trainer to server, part by part: what a handover in shared memory would save.

Both sides work on one file of safetensors, of float32 weights of 100 MB and 1 GB in 16 tensors.

- trainer: `bytes` (the tensors as safetensors), `sha256` (of these bytes), `write` (to a file, with fsync).
- server: `verify` (the file's sha256, read in pieces), `read` (the file into memory), `parse` (tensors of the bytes),
  `finite` (that no number is NaN or infinite: models/finite.py), `copy` (into a module's own tensors). `isfinite` is
  what `finite` was before: torch.isfinite(tensor).all().
- `count`: µs that counting 64 predictions of one column in a sketch takes, which the host does, also of a GPU's.

The file is in the page cache. `cpu` is the process' CPU time of a part, with one torch thread; `wall` includes waiting
for the disk. `read_share`: reading over all that the server does, which is what shared memory could save.

usage: python benchmarks/handover.py [--quick] [--json FILE]
"""

from __future__ import annotations

import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _harness import arguments, quantiles, report
from safetensors.torch import load, save
from trimtab.kernels.sketch import Sketch
from trimtab.kernels.sketch_spec import RealField, SketchSpec
from trimtab.models.finite import all_finite
from trimtab.store.files import sha256_file

TENSORS = 16
SIZES = {"100 MB": 100_000_000, "1 GB": 1_000_000_000}
SERVER = ("verify", "read", "parse", "finite", "copy")


def parts(weights: dict[str, torch.Tensor], path: Path) -> dict[str, Callable[[], object]]:
    """What is timed, by name; each may be called again."""
    data = save(weights)
    path.write_bytes(data)
    own = {name: torch.empty_like(tensor) for name, tensor in weights.items()}

    def write() -> None:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    return {
        "bytes": lambda: save(weights),
        "sha256": lambda: hashlib.sha256(data).hexdigest(),
        "write": write,
        "verify": lambda: sha256_file(path),
        "read": path.read_bytes,
        "parse": lambda: load(data),
        "finite": lambda: all(all_finite(tensor) for tensor in weights.values()),
        "isfinite": lambda: all(bool(torch.isfinite(tensor).all()) for tensor in weights.values()),
        "copy": lambda: [own[name].copy_(tensor) for name, tensor in weights.items()],
    }


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """CPU and wall time of a call, in ms."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return (time.process_time() - cpu) * 1e3, (time.perf_counter() - wall) * 1e3


def counting(repeats: int) -> list[float]:
    """µs of calls that count 64 predictions."""
    sketch = Sketch(SketchSpec((RealField("x", ()),)))
    predictions = np.random.default_rng(0).random((64, 1)).astype(np.float32)
    found = []
    for _ in range(repeats):
        began = time.perf_counter_ns()
        sketch.add_predictions(predictions)
        found.append((time.perf_counter_ns() - began) / 1000)
    return found


def main() -> None:
    given = arguments(__doc__ or "")
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    summary: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for size, count in list(SIZES.items())[: 1 if given.quick else 2]:
            weights = {f"w{i}": torch.randn(count // 4 // TENSORS) for i in range(TENSORS)}
            works = parts(weights, Path(folder) / "weights.safetensors")
            times: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
            for _ in range(20 if size == "100 MB" else 5):
                for name, work in works.items():  # in turns: all meet the same neighbours
                    times[name].append(timed(work))
            medians = {}
            for name, found in times.items():
                cpu, wall = zip(*found, strict=True)
                medians[name] = statistics.median(cpu)
                summary[f"{size}: {name} ms"] = medians[name]
                rows.append({"size": size, "part": name, "cpu": quantiles(cpu, "ms"), "wall": quantiles(wall, "ms")})
            summary[f"{size}: read_share"] = medians["read"] / sum(medians[name] for name in SERVER)
            summary[f"{size}: isfinite / finite"] = medians["isfinite"] / medians["finite"]
    found = counting(2000)
    rows.append({"part": "count", "wall": quantiles(found, "us")})
    summary["count_64_us"] = statistics.median(found)
    report(rows, summary, given.json)


if __name__ == "__main__":
    main()
