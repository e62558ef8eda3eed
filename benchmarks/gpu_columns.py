"""What the CUDA columns cost on a GPU: impute, clip and standardise, with and without the drift sketch (missing,
unseen, infinities, extremes, moments and 31 edges) of the same values, in and out of device memory.

- `copy`: as many bytes in and out by one device-to-device copy: the limit that everything is held against.
- `trimtab`: CudaExecutor.launch_on of columns and of a row-major matrix, sketch on and off; 1M x 64 of `uniform` data
  (normally distributed, so that bins are equally full, 3 % missing), `skewed` (nine of ten the same) and `constant`.
- `cupy`, `torch`, `torch.compile`: the same features and statistics of the row-major matrix, as one would write them.
- `graph`: 64 x 64 in a CUDA graph, less what a graph with an empty kernel takes; `staged` is what serving captures
  (GraphColumns: rows and epoch in the staged header), full and with a single row.

Times are CUDA events around one call, all ways in turns, several rounds; ratios are of medians. Needs CuPy and a GPU;
what torch does is left out where torch sees none. Not yet run: there are no results.

usage: python benchmarks/gpu_columns.py [--quick] [--json FILE]
"""

from __future__ import annotations

import importlib
import statistics
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from _column_data import CENTER, DATA, EDGES, FILL, HIGH, LOW, MOST, SCALE, SHIFT, values_of
from _harness import arguments, quantiles, report
from trimtab._native import Slab
from trimtab.kernels import operations as ops
from trimtab.kernels.cuda import CudaExecutor, DeviceRows
from trimtab.kernels.cuda_device import cuda_device
from trimtab.kernels.cuda_graph import GraphColumns
from trimtab.kernels.program import Chain, ColumnProgram, Field, RealField, SketchSpec
from trimtab.kernels.sketch import Sketch

COLUMNS = 64
Way = Callable[[], Any]


def program_of(columns: int) -> ColumnProgram:
    clip, scaling = ops.Clip(float(LOW), float(HIGH)), ops.Standardise(float(SHIFT), float(SCALE))
    chain = (ops.Impute(float(FILL), False), clip, scaling)
    fields = tuple(Field(f"x{i}", "real") for i in range(columns))
    most, edges = float(MOST), tuple(EDGES.tolist())
    spec = SketchSpec(tuple(RealField(field.name, edges, -most, most, float(CENTER)) for field in fields))
    return ColumnProgram(fields, tuple(Chain(i, chain) for i in range(columns)), spec)


class OnDevice:
    """Values in device memory, as columns and as a matrix."""

    def __init__(self, cupy: Any, values: Any) -> None:
        self.columns, self.matrix = cupy.asarray(values), cupy.ascontiguousarray(cupy.asarray(values).T)
        count, rows = values.shape
        self.addresses = cupy.asarray(self.columns.data.ptr + 4 * rows * np.arange(count, dtype=np.uint64))
        self.as_columns = DeviceRows(rows, columns=self.addresses.data.ptr, columns_aligned=rows % 4 == 0)
        self.as_matrix = DeviceRows(rows, matrix=self.matrix.data.ptr, pitch=count)


def cupy_way(cupy: Any, x: Any) -> Way:
    edges = cupy.asarray(EDGES)
    first_slot = (len(EDGES) + 2) * cupy.arange(x.shape[1])

    def work() -> Any:
        missing, finite = cupy.isnan(x), cupy.isfinite(x)
        filled = cupy.where(missing, FILL, x)
        features = (cupy.clip(filled, LOW, HIGH) - SHIFT) / SCALE
        slots = cupy.where(missing, len(EDGES) + 1, cupy.searchsorted(edges, x, side="right")) + first_slot
        counts = cupy.bincount(slots.ravel(), minlength=(len(EDGES) + 2) * x.shape[1])
        d = cupy.where(finite, x - CENTER, np.float32(0)).astype(np.float64)
        unseen = ((x < -MOST) | (x > MOST)).sum(0)
        infinite = (x == -np.inf).sum(0), (x == np.inf).sum(0)
        least = cupy.where(finite, x, np.float32(np.inf)).min(0)
        most = cupy.where(finite, x, np.float32(-np.inf)).max(0)
        return features, counts, unseen, infinite, least, most, d.sum(0), (d * d).sum(0)

    return work


def torch_ways(x: Any) -> dict[str, Way]:
    torch: Any = importlib.import_module("torch")
    if not torch.cuda.is_available():
        print("torch sees no GPU and is left out")
        return {}
    values = torch.as_tensor(x, device="cuda")
    edges = torch.from_numpy(EDGES).cuda()
    first_slot = (len(EDGES) + 2) * torch.arange(x.shape[1], device="cuda")
    infinity = float("inf")

    def work(x: Any) -> Any:
        missing, finite = x.isnan(), x.isfinite()
        features = (torch.where(missing, float(FILL), x).clamp(float(LOW), float(HIGH)) - float(SHIFT)) / float(SCALE)
        slots = torch.where(missing, len(EDGES) + 1, torch.bucketize(x, edges, right=True)) + first_slot
        counts = torch.bincount(slots.flatten(), minlength=(len(EDGES) + 2) * x.shape[1])
        d = torch.where(finite, x - float(CENTER), 0.0).double()
        unseen = ((x < -float(MOST)) | (x > float(MOST))).sum(0)
        infinite = (x == -infinity).sum(0), (x == infinity).sum(0)
        least, most = torch.where(finite, x, infinity).amin(0), torch.where(finite, x, -infinity).amax(0)
        return features, counts, unseen, infinite, least, most, d.sum(0), (d * d).sum(0)

    compiled = torch.compile(work)
    return {"torch": lambda: work(values), "torch.compile": lambda: compiled(values)}


def measured(cupy: Any, ways: dict[str, Way], rounds: int) -> dict[str, list[float]]:
    """Microseconds of single calls, in turns."""
    for _ in range(3):
        for way in ways.values():
            way()
    cupy.cuda.Device().synchronize()
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            began, ended = cupy.cuda.Event(), cupy.cuda.Event()
            began.record()
            way()
            ended.record()
            ended.synchronize()
            found[name].append(1000 * cupy.cuda.get_elapsed_time(began, ended))
    return found


def graph_way(cupy: Any, launch: Way, times: int) -> Way:
    """A graph of so many launches, one after the other."""
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        launch()
        stream.synchronize()
        stream.begin_capture()
        for _ in range(times):
            launch()
        graph = stream.end_capture()
    return lambda: graph.launch(cupy.cuda.get_current_stream())


def staged_way(cupy: Any, columns: GraphColumns, values: Any, rows: int, times: int) -> Way:
    """A graph of so many launches of a bucket of 64 rows that has so many, counted in a sketch."""
    slab = Slab(columns.program.schema)
    slab.append_columns([np.ascontiguousarray(column[:rows]) for column in values])
    staged = cupy.zeros(columns.size(64), cupy.uint8)
    host = np.zeros(columns.size(64), np.uint8)
    columns.write(host, 64, slab, Sketch(columns.program.sketch), 0, rows)
    staged.set(host)
    features = cupy.zeros((64, columns.pitch), cupy.float32)
    launch = columns.launcher(64, staged.data.ptr, features.data.ptr, 0)
    way = graph_way(cupy, launch, times)

    def replay(keep: Any = (staged, features)) -> Any:
        return way()

    return replay


def main() -> None:
    given = arguments(__doc__ or "")
    device = cuda_device()
    if isinstance(device, str):
        sys.exit(f"gpu_columns: {device}")
    cupy: Any = importlib.import_module("cupy")
    rows, rounds = (131_072, 20) if given.quick else (1_048_576, 60)
    program = program_of(COLUMNS)
    executor = CudaExecutor(program, device)
    results: list[dict[str, Any]] = []
    medians: dict[str, float] = {}

    def keep(case: str, samples: dict[str, list[float]]) -> None:
        for name, found in samples.items():
            results.append({"case": case, "way": name, **quantiles(found, "us")})
            medians[f"{case}/{name}"] = statistics.median(found)

    for kind in DATA:
        held = OnDevice(cupy, values_of(kind, rows, COLUMNS))
        target = cupy.empty_like(held.columns)
        ways: dict[str, Way] = {
            "copy": lambda a=held.columns, b=target: cupy.copyto(b, a),
            "columns": lambda x=held.as_columns: executor.launch_on(x),
            "columns without sketch": lambda x=held.as_columns: executor.launch_on(x, counted=False),
            "matrix": lambda x=held.as_matrix: executor.launch_on(x),
        }
        if kind == DATA[0]:
            ways |= {"cupy": cupy_way(cupy, held.matrix), **torch_ways(held.matrix)}
        keep(kind, measured(cupy, ways, rounds))
        executor.collect(Sketch(program.sketch))

    small = OnDevice(cupy, values_of(DATA[0], 64, COLUMNS))
    empty = cupy.RawKernel('extern "C" __global__ void nothing() {}', "nothing")
    times = 100
    graphs = {
        "empty": graph_way(cupy, lambda: empty((1,), (32,), ()), times),
        "columns": graph_way(cupy, lambda: executor.launch_on(small.as_columns), times),
        "staged": staged_way(cupy, GraphColumns(program, device), values_of(DATA[0], 64, COLUMNS), 64, times),
        "staged, one row": staged_way(cupy, GraphColumns(program, device), values_of(DATA[0], 64, COLUMNS), 1, times),
    }
    keep(f"graph of {times}", measured(cupy, graphs, rounds))

    uniform = f"{DATA[0]}/"
    of_graph = f"graph of {times}/"
    summary = {
        "copy_us": medians[f"{uniform}copy"],
        "columns_us": medians[f"{uniform}columns"],
        "copy_fraction": medians[f"{uniform}copy"] / medians[f"{uniform}columns"],
        "matrix_copy_fraction": medians[f"{uniform}copy"] / medians[f"{uniform}matrix"],
        "skew_ratio": max(medians[f"{kind}/columns"] for kind in DATA) / medians[f"{uniform}columns"],
        "graph_us": (medians[f"{of_graph}staged"] - medians[f"{of_graph}empty"]) / times,
    }
    for rival in ("cupy", "torch", "torch.compile"):
        if f"{uniform}{rival}" in medians:
            summary[f"vs_{rival.replace('.', '_')}"] = medians[f"{uniform}{rival}"] / medians[f"{uniform}matrix"]
    report(results, summary, given.json)


if __name__ == "__main__":
    main()
