"""What one batch costs on the CPU: the forward pass, by every way to run it, and the step around it; and the start.

- `forward`: logits to predictions of three networks, by batch size: `module` (calling the nn.Module), `eager` (the same
  operations without nn.Module's way of calling) and `packed` (on weights that are laid out for the processor), which of
  the two is faster serves, `trace` (torch.jit.trace, frozen), `numpy` (what BLAS takes for it) and, without --quick,
  `compile` (torch.compile, dynamic, frozen) and `aot` (AOTInductor, frozen: what `run = "compiled"` uses).
- `predict`: slab to predictions, columns and model, without and with the drift sketch.
- `step`: what the compute thread does with a batch of one-row requests, from taking it to having kept it; drift on, and
  capture beyond its cap.
- `piece`: single calls that every batch pays.
- `threads`: wall time of a forward pass on one and on two threads; and the CPU time that two threads take together, at
  half a millisecond from call to call, when OpenMP's threads spin in between (its default) and when they sleep (what
  `trimtab serve` sets).
- `cold_start`: `trimtab serve --no-trainer` from its start to the line that says that it is ready.

Times are µs of this thread's CPU time (so that neighbours on the machine count for less), the lowest fifth of many
short series; of `threads` and `cold_start` wall time.

usage: python benchmarks/model_cpu.py [--quick] [--json FILE]
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from _harness import arguments, quantiles, report
from torch import nn
from trimtab._native import Hub, LocalOrigin, Slab, keep_freed_memory
from trimtab.kernels.cpu import CpuExecutor
from trimtab.kernels.fit import fit_program
from trimtab.kernels.schema import FeatureSpec, Transform
from trimtab.kernels.sketch import Sketch
from trimtab.kernels.slabs import slab_from_arrow
from trimtab.models.architectures import build
from trimtab.models.tasks import Task
from trimtab.models.version import LoadedVersion, architecture_of, load_version, loaded, version_files
from trimtab.protos.v1 import inference_pb2
from trimtab.server.engine import Engine
from trimtab.store.captures import CaptureWriter
from trimtab.store.manifest import Manifest
from trimtab.store.project import Project
from trimtab.store.versions import VersionStore

FEATURES = 32
SIZES = (1, 8, 64, 128, 256, 512, 1024)
NETWORKS = {"32-128-1": (32, (128,)), "64-128-64-1": (64, (128, 64)), "64-512-256-128-1": (64, (512, 256, 128))}
STANDARDISE = (Transform.parse({"op": "impute", "flag": False}), Transform("standardise"))
Row = dict[str, Any]


def cpu_us(call: Callable[[], Any], seconds: float, repeats: int = 20) -> float:
    """CPU time of one call."""
    for _ in range(repeats):
        call()
    series, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(series) < 5:
        began = time.thread_time_ns()
        for _ in range(repeats):
            call()
        series.append((time.thread_time_ns() - began) / repeats / 1000)
    return round(float(np.percentile(series, 20)), 2)


def wall_us(call: Callable[[], Any], seconds: float) -> float:
    """Wall time of one call: the lowest fifth."""
    samples, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter_ns()
        call()
        samples.append((time.perf_counter_ns() - began) / 1000)
    return round(float(np.percentile(samples, 20)), 2)


def table(rows: int, features: int = FEATURES) -> pa.RecordBatch:
    values = np.random.default_rng(rows).normal(size=(rows, features)).astype(np.float32)
    return pa.RecordBatch.from_arrays([pa.array(column) for column in values.T], [f"x{i}" for i in range(features)])


def version_of(features: int, widths: tuple[int, ...]) -> LoadedVersion:
    """A loaded version of `features` columns, imputed and standardised, and an MLP."""
    specs = [FeatureSpec(f"x{i}", "real", STANDARDISE) for i in range(features)]
    program = fit_program(specs, lambda: iter([table(5000, features)]))
    task, config = Task("binary", ("a", "b")), {"kind": "mlp", "seed": 1, "widths": widths, "dropout": 0.0}
    reference = Sketch(program.sketch)
    CpuExecutor(program).run(slab_from_arrow(table(5000, features), program.schema), reference)
    files = version_files(build(config, program, task), program, reference)
    manifest = Manifest(
        version=1, task=task.kind, architecture=architecture_of(config, task), program_hash=program.hash
    )
    return loaded(manifest, files)


class Whole(nn.Module):
    """A version's module and its task, as one module of one input."""

    def __init__(self, version: LoadedVersion) -> None:
        super().__init__()
        self.module, self.task = version.module, version.task
        self.register_buffer("ids", torch.empty(0, 0, dtype=torch.int64))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.task.predict(self.module(features, self.ids))


def in_numpy(version: LoadedVersion) -> Callable[[np.ndarray], np.ndarray]:
    layers = [
        (layer.weight.t().contiguous().numpy(), layer.bias.numpy())
        for layer in version.module.layers
        if hasattr(layer, "weight")
    ]

    def forward(x: np.ndarray) -> np.ndarray:
        for position, (weight, bias) in enumerate(layers):
            x = x @ weight
            x += bias
            if position < len(layers) - 1:
                np.maximum(x, 0, out=x)
        return 1 / (1 + np.exp(-x))

    return forward


def compiled(whole: Whole, features: int, folder: Path) -> dict[str, Callable[[torch.Tensor], Any]]:
    import torch._dynamo
    import torch._inductor.config

    example = torch.randn(7, features)
    exported = torch.export.export(whole, (example,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    path = torch._inductor.aoti_compile_and_package(
        exported, package_path=str(folder / f"{features}-{id(whole)}.pt2"), inductor_configs={"freezing": True}
    )
    run = torch._C._aoti.AOTIModelPackageLoader(path, "model", False, 1, -1).boxed_run
    torch._dynamo.reset()
    torch._inductor.config.freezing = True
    dynamic = torch.compile(whole, dynamic=True)
    for rows in (7, 9):
        dynamic(torch.randn(rows, features))
    return {"aot": lambda x: run([x]), "compile": dynamic}


def forward_rows(quick: bool, seconds: float) -> list[Row]:
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (features, widths) in NETWORKS.items():
            version = version_of(features, widths)
            whole, floor, ids = Whole(version).eval(), in_numpy(version), torch.empty(0, 0, dtype=torch.int64)
            packed = version.packed()
            assert packed is not None, "expected a torch with oneDNN"
            ways: dict[str, Callable[[torch.Tensor], Any]] = {
                "module": whole,
                "eager": lambda x, run=version.run_eagerly, ids=ids: run(x, ids),
                "packed": lambda x, run=packed, ids=ids: run(x, ids),
                "trace": torch.jit.freeze(torch.jit.trace(whole, torch.randn(8, features))),
            }
            with torch.no_grad():
                if not quick:
                    ways.update(compiled(whole, features, Path(folder)))
            with torch.inference_mode():
                for rows in SIZES:
                    x = torch.randn(rows, features)
                    times = {way: cpu_us(lambda: call(x), seconds) for way, call in ways.items()}  # noqa: B023
                    times["numpy"] = cpu_us(lambda: floor(x.numpy()), seconds)  # noqa: B023
                    found.append({"case": "forward", "network": name, "rows": rows, **times})
                    print(name, rows, times, file=sys.stderr)
    return found


def predict_rows(seconds: float) -> list[Row]:
    version = version_of(*NETWORKS["32-128-1"])
    sketch, found = Sketch(version.program.sketch), []
    for rows in SIZES:
        slab = slab_from_arrow(table(rows), version.program.schema)
        plain, counted = (cpu_us(lambda: version.predict(slab, given), seconds) for given in (None, sketch))  # noqa: B023
        found.append({"case": "predict", "rows": rows, "predict": plain, "with_sketch": counted})
    return found


def piece_rows(seconds: float) -> list[Row]:
    x, logits = torch.randn(128, 32), torch.randn(128, 1)
    array = x.numpy()

    def mode() -> None:
        with torch.inference_mode():
            pass

    calls: dict[str, Callable[[], Any]] = {
        "inference_mode": mode,
        "from_numpy": lambda: torch.from_numpy(array),
        "numpy": x.numpy,
        "sigmoid_128": lambda: torch.sigmoid(logits),
        "softmax_128x8": lambda: torch.softmax(logits.expand(128, 8), 1),
    }
    return [{"case": "piece", "what": what, "us": cpu_us(call, seconds)} for what, call in calls.items()]


def make_project(folder: Path) -> Project:
    """A project with a trained version 1, made as a user makes one."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(4000, FEATURES)).astype(np.float32)
    columns: dict[str, Any] = {f"x{i}": values[:, i] for i in range(FEATURES)}
    columns["y"] = (values[:, 0] + values[:, 1] * values[:, 2] + rng.normal(size=4000) > 0).astype(np.int64)
    pq.write_table(pa.table(columns), folder / "data.parquet")
    init = ["init", str(folder / "data.parquet"), "--label", "y", "-C", str(folder)]
    for command in (init, ["train", "-C", str(folder)]):
        subprocess.run([sys.executable, "-m", "trimtab.cli", *command], check=True, capture_output=True)
    return Project.load(folder)


def step_rows(project: Project, seconds: float) -> list[Row]:
    """The compute thread's work, here on this thread: the hub has no other."""
    settings = project.model()
    version = load_version(VersionStore(project.model_state().versions), 1)
    request = inference_pb2.ModelInferRequest(model_name=settings.name)
    request.inputs.add(name="features", datatype="FP32", shape=[1, FEATURES])
    request.raw_input_contents.append(np.random.default_rng(1).normal(size=FEATURES).astype("<f4").tobytes())
    body, found = request.SerializeToString(), []
    with tempfile.TemporaryDirectory() as folder:
        captures = CaptureWriter(Path(folder), settings.request_schema(), 1, settings.capture)
        hub = Hub()
        engine = Engine(settings, hub=hub, capture=captures, on_window=lambda _window: None)
        engine.install(version, {1: version})
        origin = LocalOrigin(hub)
        for requests in SIZES[:5]:
            series: list[float] = []
            end = time.perf_counter() + 6 * seconds + 1.5
            while time.perf_counter() < end:
                for token in range(requests):
                    origin.submit(token, body, None)
                began = time.thread_time_ns()
                batch = hub.take(1.0)
                assert batch is not None
                assert batch.requests == requests
                engine.run(batch)
                del batch
                series.append((time.thread_time_ns() - began) / 1000)
                origin.drain()
            predict = version.predict
            slab = Slab(version.program.schema)
            slab.append_columns([np.zeros(requests, np.float32)] * FEATURES)
            sketch = Sketch(version.program.sketch)
            model = cpu_us(lambda: predict(slab, sketch), seconds)  # noqa: B023
            median = round(float(np.percentile(series[len(series) // 2 :], 20)), 2)
            found.append({"case": "step", "requests": requests, "us": median, "of_it_predict": model})
        captures.close()
    return found


def thread_rows(seconds: float) -> list[Row]:
    found = []
    for name in ("32-128-1", "64-512-256-128-1"):
        features, widths = NETWORKS[name]
        version = version_of(features, widths)
        ids = torch.empty(0, 0, dtype=torch.int64)
        for rows in (1, 64, 256, 512):
            x, times = torch.randn(rows, features), {}
            for threads in (1, 2):
                torch.set_num_threads(threads)
                with torch.inference_mode():
                    times[f"threads_{threads}"] = wall_us(lambda: version.run_eagerly(x, ids), seconds)  # noqa: B023
            torch.set_num_threads(1)
            found.append({"case": "threads", "network": name, "rows": rows, **times})
    return found


SPINNING = """
import sys, time, torch
torch.set_num_threads(2)
layers = [torch.nn.Linear(a, b).requires_grad_(False) for a, b in ((64, 512), (512, 256), (256, 1))]
module, x = torch.nn.Sequential(*layers), torch.randn(256, 64)
for _ in range(20):
    module(x)
began = time.process_time()
for _ in range(200):
    module(x)
    time.sleep(0.0005)
print((time.process_time() - began) / 200 * 1e6)
"""


def spinning_rows() -> list[Row]:
    found = {}
    for name, policy in (("spinning_cpu_us", None), ("sleeping_cpu_us", "PASSIVE")):
        environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
        environment.update({} if policy is None else {"OMP_WAIT_POLICY": policy})
        done = subprocess.run([sys.executable, "-c", SPINNING], env=environment, capture_output=True, check=True)
        found[name] = round(float(done.stdout), 1)
    return [{"case": "threads", "network": "64-512-256-1", "rows": 256, **found}]


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def cold_start(project: Project, times: int) -> tuple[list[float], list[float]]:
    """Wall and CPU time of each start, in seconds."""
    found, cpu = [], []
    command = [sys.executable, "-m", "trimtab.cli", "serve", "-C", str(project.directory), "--no-trainer", "--json"]
    for _ in range(times):
        began = time.perf_counter()
        server = subprocess.Popen(
            [*command, "--grpc-port", "0", "--http-port", "0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert server.stdout is not None
        with contextlib.closing(server.stdout):
            json.loads(server.stdout.readline())
            found.append(time.perf_counter() - began)
            cpu.append(cpu_seconds(server.pid))
            server.terminate()
            server.wait(60)
    return found, cpu


def main() -> None:
    options = arguments(__doc__ or "")
    seconds = 0.1 if options.quick else 0.3
    torch.set_num_threads(1)
    keep_freed_memory()  # as the server does
    with tempfile.TemporaryDirectory() as folder:
        project = make_project(Path(folder))
        starts, start_cpu = cold_start(project, 3 if options.quick else 7)
        steps = step_rows(project, seconds)
    forward, predict = forward_rows(options.quick, seconds), predict_rows(seconds)
    rows = [*forward, *predict, *steps, *piece_rows(seconds), *thread_rows(seconds), *spinning_rows()]
    rows.append({"case": "cold_start", "time": quantiles(starts, "s"), "cpu": quantiles(start_cpu, "s")})

    def at(found: list[Row], size: int, what: str, key: str = "rows") -> float:
        return next(float(row[what]) for row in found if row[key] == size)

    summary = {
        "cold_start_s": float(np.median(starts)),
        "cold_start_cpu_s": float(np.median(start_cpu)),
        "predict1_us": at(predict, 1, "with_sketch"),
        "predict128_us": at(predict, 128, "with_sketch"),
        "step1_us": at(steps, 1, "us", "requests"),
        "step128_us": at(steps, 128, "us", "requests"),
        "step128_around_predict_us": at(steps, 128, "us", "requests") - at(steps, 128, "of_it_predict", "requests"),
        "module_vs_eager_1": at(forward, 1, "module") / at(forward, 1, "eager"),
    }
    large = next(row for row in forward if row["network"] == "64-512-256-128-1" and row["rows"] == 256)
    if "aot" in large:
        summary["large256_eager_vs_aot"] = large["eager"] / large["aot"]
    report(rows, summary, options.json)


if __name__ == "__main__":
    main()
