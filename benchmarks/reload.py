"""What it costs to put a version to sleep and to wake it, by the size of its weights; on the CPU, or a GPU if there is
one (or as TRIMTAB_DEVICE says).

The model takes tensors: an embedding table of 1 MB, 100 MB or 1 GB (rows of 64 float32), of which each row of a request
reads 8, and a layer of 64 x 8. So the weights are large, and what is computed with them is small.

- `sleep`, `wake`: by what a server does (models/sleeping.py below runner.running, then warming one row and a batch of
  64), in one process. `weights` is the part of waking in which the weights come back: from disk with hashes and checks
  on the CPU, from pinned memory in one copy on a GPU. The rest is what the version runs by: graphs on a GPU.
- `floor`: what no reload can do without, in turn with it. On the CPU: reading the file and its sha256. On a GPU: a copy
  of as many bytes from pinned memory to the device. `ratio` is that of wake to floor, pair by pair.
- `alternative`: the same file by safetensors' `load_file` and `load_state_dict`, without any check, onto the device.
- `first_request`, `next_request`: over loopback gRPC to a server, one that finds the model asleep and the one after it.

Files are in the page cache throughout. Wall times. `freed`: bytes by which the process' resident memory (CPU) or the
device's allocated memory (GPU) sank on falling asleep.

usage: python benchmarks/reload.py [--quick] [--json FILE]
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import torch
from _bench import interval
from _harness import arguments, quantiles, report
from safetensors.torch import load_file
from trimtab.models.loading import Version, read_weights
from trimtab.models.publishing import publish_first
from trimtab.models.runner import running
from trimtab.models.sleeping import Sleepers
from trimtab.models.tensors import TensorSource, TensorVersion, load_tensor_version
from trimtab.protos.v1 import inference_pb2
from trimtab.protos.v1 import trimtab_pb2 as pb
from trimtab.protos.v1.inference_pb2_grpc import GRPCInferenceServiceStub
from trimtab.protos.v1.trimtab_pb2_grpc import LifecycleStub
from trimtab.store.project import Project
from trimtab.store.versions import VersionStore

SIZES = {"1 MB": 1 << 20, "100 MB": 100 << 20, "1 GB": 1 << 30}
REPEATS = {"1 MB": 40, "100 MB": 20, "1 GB": 8}
QUICK = {"1 MB": 1 << 20, "100 MB": 100 << 20}
WIDTH, TAKEN, MOST = 64, 8, 64
CODE = """
import torch
from torch import nn

class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding({rows}, {width})
        self.last = nn.Linear({width}, 8)

    def forward(self, ids):
        return self.last(self.table(ids).sum(1))

class Model:
    def build(self):
        return Table()

    def example(self, rows):
        generator = torch.Generator().manual_seed(rows)
        return {{"ids": torch.randint(0, {rows}, (rows, {taken}), generator=generator)}}
"""
TOML = """
[server]
grpc_port = 0
http_port = 0
trainer = false
device = "{device}"
[mlflow]
enabled = false
[[model]]
name = "table"
entry = "table_model:Model"
idle_seconds = 0.2
[[model.input]]
name = "ids"
datatype = "INT64"
dims = [{taken}]
[[model.output]]
name = "y"
datatype = "FP32"
dims = [8]
[model.batching]
max_batch_size = {most}
"""


def device() -> str:
    """Where versions are to be awake."""
    return os.environ.get("TRIMTAB_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")


def ms(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return (time.perf_counter() - began) * 1e3


def used() -> int:
    """Bytes in use where versions are awake."""
    if device() != "cpu":
        return int(torch.cuda.memory_reserved())
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Timed:
    """A loader whose time is noted."""

    def __init__(self, load: Callable[[int], Version]) -> None:
        self.load, self.ms = load, 0.0

    def __call__(self, number: int) -> Version:
        began = time.perf_counter()
        try:
            return self.load(number)
        finally:
            self.ms = (time.perf_counter() - began) * 1e3


def make(folder: Path, size: int) -> Project:
    folder.mkdir(parents=True)
    rows = size // (4 * WIDTH)
    (folder / "table_model.py").write_text(CODE.format(rows=rows, width=WIDTH, taken=TAKEN))
    (folder / "trimtab.toml").write_text(TOML.format(device=device(), taken=TAKEN, most=MOST))
    project = Project.load(folder)
    settings = project.model()
    publish_first(project, settings, VersionStore(project.model_state(settings.name).versions))
    return project


# --- in one process


def within(project: Project, size: int, repeats: int) -> dict[str, Any]:
    """Sleep, wake, floor and alternative in turn."""
    settings = project.model()
    store = VersionStore(project.model_state(settings.name).versions)
    source = TensorSource.of(project.directory, settings)
    read = partial(read_weights, store)
    timed = Timed(Sleepers(lambda number: load_tensor_version(store, number, source, device()), read))
    sleepers = timed.load
    assert isinstance(sleepers, Sleepers)
    told: list[str] = []
    options: dict[str, Any] = {"device": device(), "threads": torch.get_num_threads(), "lockstep": False}
    load = running(timed, project, settings, store, **options, tell=lambda _, text: told.append(text))
    version = load(1)
    assert isinstance(version, TensorVersion)
    version.warm([1, MOST])
    path = store.path(1) / "weights.safetensors"
    ids = {"ids": version.example(5)["ids"]}
    expected = version.call(ids, 5)
    times: dict[str, list[float]] = {name: [] for name in ("sleep", "wake", "weights", "floor", "alternative")}
    freed: list[int] = []

    def wake() -> None:
        sleepers.wake(version, load)
        version.warm([1, MOST])

    floor, alternative = floor_of(path, size), alternative_of(path, version)
    for _ in range(repeats):
        before = used()
        times["sleep"].append(ms(lambda: sleepers.put(version)))
        freed.append(before - used())
        times["wake"].append(ms(wake))
        times["weights"].append(timed.ms)
        times["floor"].append(ms(floor))
        times["alternative"].append(ms(alternative))
        assert all(np.array_equal(*pair) for pair in zip(version.call(ids, 5), expected, strict=True))
    ratio, low, high = interval([a / b for a, b in zip(times["wake"], times["floor"], strict=True)])
    return {
        **{name: quantiles(values, "ms") for name, values in times.items()},
        "ratio": {"median": ratio, "low": low, "high": high, "pairs": repeats},
        "freed": int(np.median(freed)),
        "told": told[:1],
    }


def floor_of(path: Path, size: int) -> Callable[[], object]:
    if device() == "cpu":
        return lambda: hashlib.sha256(path.read_bytes()).digest()
    pinned = torch.ones(size, dtype=torch.uint8).pin_memory()
    there = torch.empty(size, dtype=torch.uint8, device=device())
    return lambda: there.copy_(pinned, non_blocking=True)


def alternative_of(path: Path, version: TensorVersion) -> Callable[[], object]:
    module, _ = version.source.build()
    module.to(device())
    return lambda: module.load_state_dict(load_file(path, device=device()))


# --- over gRPC


def over(project: Project, repeats: int) -> dict[str, Any]:
    """The first request to a model that sleeps, and the next."""
    command = [sys.executable, "-m", "trimtab.cli", "serve", "-C", str(project.directory), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        return asked(process, repeats)
    finally:
        process.terminate()
        process.wait()


def asked(process: subprocess.Popen[str], repeats: int) -> dict[str, Any]:
    import json

    assert process.stdout is not None
    address = json.loads(process.stdout.readline())
    first: list[float] = []
    following: list[float] = []
    woken: list[float] = []
    with grpc.insecure_channel(address["grpc"]) as channel, grpc.insecure_channel(f"unix:{address['admin']}") as admin:
        stub, lifecycle = GRPCInferenceServiceStub(channel), LifecycleStub(admin)
        events = lifecycle.WatchEvents(pb.WatchEventsRequest())
        lifecycle.Status(pb.StatusRequest())
        request = inference_pb2.ModelInferRequest(model_name="table")
        request.inputs.add(name="ids", datatype="INT64", shape=[1, TAKEN])
        request.raw_input_contents.append(np.arange(TAKEN, dtype=np.int64).tobytes())
        stub.ModelInfer(request)
        for _ in range(repeats):
            # It may have fallen asleep and been woken by the request of the loop before.
            while next(events).kind != "asleep":
                continue
            first.append(ms(lambda: stub.ModelInfer(request)))
            following.append(ms(lambda: stub.ModelInfer(request)))
            woken.append(next(event.numbers["seconds"] for event in events if event.kind == "awake") * 1e3)
    return {
        "first_request": quantiles(first, "ms"),
        "next_request": quantiles(following, "ms"),
        "woken": quantiles(woken, "ms"),
    }


def main() -> None:
    """Runs all sizes."""
    assert __doc__ is not None
    given = arguments(__doc__)
    rows: list[dict[str, Any]] = []
    summary: dict[str, float] = {}
    for name, size in (QUICK if given.quick else SIZES).items():
        repeats = 5 if given.quick else REPEATS[name]
        for case, work in (("reload", lambda p, s, r: within(p, s, r)), ("request", lambda p, _, r: over(p, r))):
            row: dict[str, Any] = {"case": case, "size": name, "bytes": size, "device": device()}
            with tempfile.TemporaryDirectory() as folder:
                try:
                    row.update(work(make(Path(folder) / "project", size), size, repeats))
                except Exception as error:
                    row["error"] = f"{type(error).__name__}: {error}"[:500]
            rows.append(row)
            if "wake" in row:
                summary[f"{name}: wake ms"] = row["wake"]["p50"]
                summary[f"{name}: wake / floor"] = row["ratio"]["median"]
            if "first_request" in row:
                summary[f"{name}: first request ms"] = row["first_request"]["p50"]
            print({key: value for key, value in row.items() if not isinstance(value, dict)}, flush=True)
    report(rows, summary, given.json)


if __name__ == "__main__":
    main()
