"""What serving costs on a GPU: a batch by graphs and by what they replace, a request over loopback, and a swap's copy.

- `forward`: features and ids in host memory to predictions in host memory, by batch size, for three networks: `eager`
  (copy, torch's operations one by one, copy back), `compile` (the same with torch.compile, dynamic), `graphs` (what
  serves: pinned buffer, copy in, replay, copy out), `graphs_bf16`, `graphs_fp16` and `graphs_compiled`.
- `request`: one request after the other over loopback gRPC, of 1 and of 64 rows, p50 and p99, with graphs, with columns
  in them (`columns`), eagerly, and with the model on the CPU.
- `swap`: weights of 100 MB and 1 GB: the time to bring them from pinned memory into a version's buffer on a stream of
  low priority, and a graph's latency meanwhile; then 10,000 batches by two versions in turn, each of which copies its
  weights over the graphs' first (`swap`): how much longer that takes than a batch `alone`, against what memory can do
  at best (bytes read and written over the bandwidth of a copy of 2 GB); and that no answer mixes two versions, also
  with four threads that ask for both (`torn`, which must be 0).
- `flip`: the longest gap between two answers of a server under load by one client while versions are promoted, with
  shared graphs and with each version's own.
- `profile`: calls of CUDA's runtime and allocations in a batch: no synchronisation but the wait for the answer.
- `capture`: seconds to capture and check all buckets, and the bytes they take.

Wall times. A case that fails is a row with `error`, and the others go on; the result is written anew after every part,
what is worth most first.

usage: python benchmarks/gpu_serving.py [--quick] [--json FILE]
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import torch
from _harness import arguments, quantiles, report
from _servers import MODEL, make_project, trimtab
from torch import nn
from trimtab.models.flat import Flat
from trimtab.models.graphs import GraphedRun, HostColumns
from trimtab.models.machine import CudaMachine
from trimtab.protos.v1 import inference_pb2
from trimtab.protos.v1 import trimtab_pb2 as pb
from trimtab.protos.v1.inference_pb2_grpc import GRPCInferenceServiceStub
from trimtab.protos.v1.trimtab_pb2_grpc import LifecycleStub

DEVICE = torch.device("cuda")
NETWORKS = {"32-128-1": (32, 128, 1), "64-512-256-1": (64, 512, 256, 1), "256-4096-4096-8": (256, 4096, 4096, 8)}
SIZES = (1, 8, 64, 256, 1024)
ANSWERS = (1.0, 4.0)
WAYS = {
    "graphs": ("cuda", 'run = "auto"'),
    "columns": ("cuda", 'columns = "gpu"'),
    "own": ("cuda", 'graphs = "own"'),
    "eager": ("cuda", 'run = "eager"'),
    "cpu": ("cpu", 'run = "auto"'),
}
"""Device and settings of a model."""
MACHINE: Callable[[torch.device], Any] = CudaMachine


class Run:
    """Rows and summary of one run."""

    def __init__(self, quick: bool) -> None:
        self.quick = quick
        self.rows: list[dict[str, Any]] = []
        self.summary: dict[str, float] = {}

    def case(self, case: str, work: Callable[[], dict[str, Any]], **what: Any) -> dict[str, Any]:
        """Adds a row, with an `error` where the work fails."""
        row: dict[str, Any] = {"case": case, **what}
        try:
            row.update(work())
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {error}"[:500]
        self.rows.append(row)
        print({key: value for key, value in row.items() if not isinstance(value, dict)}, flush=True)
        return row

    def times(self, call: Callable[[], object]) -> list[float]:
        """µs of calls, after some to warm up."""
        for _ in range(10 if self.quick else 50):
            call()
        found = []
        for _ in range(100 if self.quick else 1000):
            began = time.perf_counter_ns()
            call()
            found.append((time.perf_counter_ns() - began) / 1000)
        return found


def network(widths: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for position, (inputs, outputs) in enumerate(pairwise(widths)):
        layers += [nn.ReLU()] * (position > 0) + [nn.Linear(inputs, outputs)]
    return nn.Sequential(*layers).eval().requires_grad_(False)


def sync() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


# --- forward


Way = Callable[[int], Callable[[], object]]
"""What does a batch of so many rows."""


def plain(call: Callable[..., torch.Tensor], width: int) -> Way:
    """To the device, through the network and back."""

    def of(rows: int) -> Callable[[], object]:
        features = torch.randn(rows, width)
        return lambda: call(features.to(DEVICE)).cpu()

    return of


def graphs(run: Run, call: Callable[..., torch.Tensor], widths: tuple[int, ...], name: str, way: str) -> Way:
    """By graphs; adds the row that says what capturing took."""
    made: list[GraphedRun] = []

    def capture() -> dict[str, Any]:
        began = time.monotonic()
        made.append(GraphedRun(lambda x, _: call(x), HostColumns(widths[0], 0), widths[-1], SIZES[-1], MACHINE(DEVICE)))
        return {"seconds": time.monotonic() - began, "bytes": made[0].bytes}

    def of(rows: int) -> Callable[[], object]:
        given = np.random.default_rng(rows).normal(size=(rows, widths[0])).astype(np.float32)

        def write(features: Any, _: Any) -> None:
            features[:] = given

        return lambda: made[0].predict(rows, write)

    run.case("capture", capture, network=name, way=way)
    return of


def lowered(widths: tuple[int, ...], dtype: torch.dtype) -> Callable[..., torch.Tensor]:
    """The network in another dtype, between float32 and float32."""
    low = network(widths).to(DEVICE, dtype)

    def call(x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = low(x.to(dtype)).float()
        return found

    return call


def forward(run: Run) -> None:
    """See the module."""
    for name, widths in list(NETWORKS.items())[: 2 if run.quick else 3]:
        module = network(widths).to(DEVICE)
        ways = {"eager": plain(module, widths[0]), "graphs": graphs(run, module, widths, name, "graphs")}
        if not run.quick:
            for way, dtype in (("graphs_bf16", torch.bfloat16), ("graphs_fp16", torch.float16)):
                ways[way] = graphs(run, lowered(widths, dtype), widths, name, way)
        for rows in SIZES:
            _compare(run, name, rows, ways)


def compiled(run: Run) -> None:
    """As `forward`, by torch.compile; on its own, since compiling takes most of the time."""
    for name, widths in list(NETWORKS.items())[: 2 if run.quick else 3]:
        module = torch.compile(network(widths).to(DEVICE), dynamic=True, fullgraph=True)
        ways = {
            "compile": plain(module, widths[0]),
            "graphs_compiled": graphs(run, module, widths, name, "graphs_compiled"),
        }
        for rows in SIZES:
            _compare(run, name, rows, ways)


def _compare(run: Run, name: str, rows: int, ways: dict[str, Way]) -> None:
    medians: dict[str, float] = {}
    for way, of in ways.items():

        def timed(of: Way = of) -> dict[str, Any]:
            with torch.inference_mode():
                return {"time": quantiles(run.times(of(rows)), "us")}

        row = run.case("forward", timed, network=name, way=way, rows=rows)
        if "time" in row:
            medians[way] = row["time"]["p50"]
    key = f"graphs_us_{name}_{rows}"
    if "graphs" in medians:
        run.summary[key] = medians["graphs"]
    for way in medians.keys() & {"eager", "compile"}:
        if key in run.summary:
            run.summary[f"graphs_vs_{way}_{name}_{rows}"] = medians[way] / run.summary[key]


# --- requests


def served(run: Run, folder: Path, kind: str, work: Callable[[Any, Any], dict[str, Any]], versions: int = 1) -> None:
    """Has `work` do something with a server's address and project, and adds what it says."""
    project = make_project(folder / kind, versions=versions)
    path = project.directory / "trimtab.toml"
    device, how = WAYS[kind.partition("-")[0]]
    text = path.read_text().replace("[server]", f'[server]\ndevice = "{device}"', 1)
    path.write_text(text.replace('architecture = "mlp"', f'architecture = "mlp"\n{how}', 1))
    server = trimtab(kind, project, (1, 64), core=",".join(map(str, sorted(os.sched_getaffinity(0))[:4])))
    try:
        with grpc.insecure_channel(server.address) as channel:
            found = work(server, GRPCInferenceServiceStub(channel))
        run.summary.update(found)
    finally:
        server.stop()


def request(run: Run, folder: Path) -> None:
    """See the module."""
    for kind in ("graphs", "columns", "eager", "cpu"):

        def measure(server: Any, stub: Any, kind: str = kind) -> dict[str, Any]:
            summary: dict[str, Any] = {}
            for rows in (1, 64):
                message = inference_pb2.ModelInferRequest.FromString(server.bodies[rows].read_bytes())
                times = run.times(lambda message=message: stub.ModelInfer(message))
                run.case("request", lambda times=times: {"time": quantiles(times, "us")}, way=kind, rows=rows)
                summary[f"request_p50_us_{kind}_{rows}"] = statistics.median(times)
            return summary

        run.case("server", lambda kind=kind, measure=measure: served(run, folder, kind, measure) or {}, way=kind)


def flip(run: Run, folder: Path) -> None:
    """See the module."""
    for way in ("graphs", "own"):
        _flip(run, folder, way)


def _flip(run: Run, folder: Path, way: str) -> None:
    def measure(server: Any, stub: Any) -> dict[str, Any]:
        message = inference_pb2.ModelInferRequest.FromString(server.bodies[1].read_bytes())
        gaps: list[float] = []
        before: list[float] = run.times(lambda: stub.ModelInfer(message))
        with grpc.insecure_channel(f"unix:{server.ready['admin']}") as channel:
            lifecycle = LifecycleStub(channel)
            for version in (2, 3, 2, 3):
                lifecycle.Stage(pb.StageRequest(model_name=MODEL, version=version))
                call = pb.PromoteRequest(model_name=MODEL, version=version, expected_epoch=-1, reason="benchmark")
                promoted = lifecycle.Promote.future(call)
                longest = 0.0
                for _ in range(200):
                    began = time.perf_counter_ns()
                    stub.ModelInfer(message)
                    longest = max(longest, (time.perf_counter_ns() - began) / 1000)
                promoted.result()
                gaps.append(longest)
        run.case("flip", lambda: {"gaps_us": gaps, "alone": quantiles(before, "us")}, way=way)
        return {f"flip_longest_us_{way}": max(gaps)}

    run.case("server", lambda: served(run, folder, f"{way}-flip", measure, versions=3) or {}, way=f"{way}-flip")


# --- what a batch calls


def profile(run: Run) -> None:
    """See the module."""
    from torch.profiler import ProfilerActivity

    module = network(NETWORKS["64-512-256-1"]).to(DEVICE)
    graphed = GraphedRun(lambda x, _: module(x), HostColumns(64, 0), 1, 1024, MACHINE(DEVICE))
    batches = 200

    def zeros(features: Any, _: Any) -> None:
        features[:] = 0.0

    def work() -> dict[str, Any]:
        graphed.predict(64, zeros)
        before = torch.cuda.memory_stats()["allocation.all.allocated"] if DEVICE.type == "cuda" else 0
        with torch.profiler.profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            for _ in range(batches):
                graphed.predict(64, zeros)
        after = torch.cuda.memory_stats()["allocation.all.allocated"] if DEVICE.type == "cuda" else 0
        calls = {e.key: e.count for e in profiler.key_averages() if e.key.startswith("cu")}
        return {
            "allocations_a_batch": (after - before) / batches,
            "calls_a_batch": {name: count / batches for name, count in sorted(calls.items())},
        }

    row = run.case("profile", work, rows=64, batches=batches)
    if "calls_a_batch" in row:
        calls = row["calls_a_batch"]
        whole = ("cudaDeviceSynchronize", "cudaStreamSynchronize", "cuCtxSynchronize", "cuStreamSynchronize")
        run.summary["allocations_a_batch"] = row["allocations_a_batch"]
        run.summary["synchronisations_a_batch"] = sum(calls.get(name, 0.0) for name in whole)
        run.summary["waits_a_batch"] = calls.get("cudaEventSynchronize", 0.0)  # for the answer; one


# --- swap


def bandwidth() -> float:
    """Bytes a second, read and written, of a copy of 2 GB on the device."""
    size = (1 << 31) if DEVICE.type == "cuda" else (1 << 24)
    one, other = (torch.zeros(size, dtype=torch.uint8, device=DEVICE) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        sync()
        began = time.perf_counter()
        other.copy_(one)
        sync()
        best = min(best, time.perf_counter() - began)
    return 2 * size / best


def swap(run: Run) -> None:
    """See the module."""
    peak = bandwidth()
    run.summary["copy_bytes_per_second"] = peak
    for megabytes in (100,) if run.quick else (100, 1000):
        run.case("swap", lambda megabytes=megabytes: _swap(run, megabytes, peak), megabytes=megabytes)


def _swap(run: Run, megabytes: int, peak: float) -> dict[str, Any]:
    """A network of two layers of that size, whose outputs say of which version each of its weights is."""
    width = int((megabytes * 1_000_000 / 8) ** 0.5)
    module = network((width, width, width))
    flat = Flat.adopt(module, DEVICE)
    low = torch.cuda.Stream(priority=0)
    pinned = [Flat.empty(flat.layout, pinned=True) for _ in ANSWERS]
    for number, version in enumerate(pinned):
        # All weights 1/width, or all 2/width: inputs of one become 1 or 4, and anything else is of both.
        for view in version.tensors().values():
            view.fill_((number + 1) / width if view.ndim == 2 else 0.0)
    versions = [Flat.empty(flat.layout, DEVICE) for _ in ANSWERS]
    for version, source in zip(versions, pinned, strict=True):
        version.copy_from(source)
    sync()
    intake = HostColumns(width, 0)
    graphed = GraphedRun(lambda x, _: module(x), intake, width, 8, MACHINE(DEVICE), weights=flat)

    def ones(features: Any, _: Any) -> None:
        features[:] = 1.0

    alone = run.times(lambda: graphed.predict(1, ones, versions[0]))
    loads, during = _loading(run, versions[1], pinned[1], low, lambda: graphed.predict(1, ones, versions[0]))
    swaps, torn = [], 0
    for step in range(200 if run.quick else 10_000):
        began = time.perf_counter_ns()
        answer = graphed.predict(1, ones, versions[step % 2])
        swaps.append((time.perf_counter_ns() - began) / 1000)
        torn += not np.allclose(answer, ANSWERS[step % 2], rtol=1e-2)
    by_turns = 100 if run.quick else 2000

    def ask(number: int) -> int:
        found = (graphed.predict(1, ones, versions[number]) for _ in range(by_turns))
        return sum(not np.allclose(answer, ANSWERS[number], rtol=1e-2) for answer in found)

    with ThreadPoolExecutor(4) as pool:
        torn += sum(pool.map(ask, (0, 1, 0, 1)))
    best = 2e6 * flat.layout.size / peak
    pause = statistics.median(swaps) - statistics.median(alone)
    run.summary[f"swap_{megabytes}mb_ms"] = pause / 1000
    run.summary[f"swap_pause_vs_bandwidth_{megabytes}"] = pause / best
    run.summary[f"swap_torn_{megabytes}"] = float(torn)
    return {
        "bytes": flat.layout.size,
        "load": quantiles(loads, "ms"),
        "swap": quantiles(swaps, "us"),
        "pause_at_best_us": best,
        "alone": quantiles(alone, "us"),
        "while_loading": quantiles(during, "us") if during else None,
        "copies": graphed.renewals,
        "torn": int(torn),
    }


def _loading(
    run: Run, to: Flat, source: Flat, low: torch.cuda.Stream, ask: Callable[[], object]
) -> tuple[list[float], list[float]]:
    """ms of each load from pinned memory on a stream of low priority, and µs of the batches meanwhile."""
    loads, during = [], []
    for _ in range(4 if run.quick else 20):
        done = torch.cuda.Event()
        began = time.perf_counter()
        with torch.cuda.stream(low):
            to.copy_from(source, non_blocking=True)
            done.record(low)
        while not done.query():
            at = time.perf_counter_ns()
            ask()
            during.append((time.perf_counter_ns() - at) / 1000)
        loads.append((time.perf_counter() - began) * 1000)
    return loads, during


def main() -> None:
    given = arguments(__doc__ or "")
    if not torch.cuda.is_available():
        sys.exit("gpu_serving: needs an NVIDIA GPU, and torch sees none")
    run = Run(given.quick)
    with tempfile.TemporaryDirectory() as scratch:
        parts: list[tuple[str, Callable[[], None]]] = [
            ("forward", lambda: forward(run)),
            ("request", lambda: request(run, Path(scratch))),
            ("swap", lambda: swap(run)),
            ("profile", lambda: profile(run)),
            ("flip", lambda: flip(run, Path(scratch))),
            ("compiled", lambda: compiled(run)),
        ]
        for name, part in parts:
            run.case("part", lambda part=part: part() or {}, name=name)
            report(run.rows, run.summary, given.json)


if __name__ == "__main__":
    main()
