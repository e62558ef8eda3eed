"""What the CUDA columns cost on a GPU: impute, clip and standardise, with and without the drift sketch (missing,
unseen, infinities, extremes, moments and 31 edges) of the same values, in and out of device memory.

- `copy`: as many bytes in and out by one device-to-device copy: the limit that everything is held against.
- `trimtab`: CudaExecutor.launch_on of columns and of a row-major matrix, sketch on and off; 1M x 64 of `uniform` data
  (normally distributed, so that bins are equally full, 3 % missing), `skewed` (nine of ten the same) and `constant`.
- `cupy`, `torch`, `torch.compile`: the same features and statistics of the row-major matrix, as one would write them.
- `graph`: 64 x 64 in a CUDA graph, less what a graph with an empty kernel takes; `staged` is what serving captures
  (GraphColumns: rows and epoch in the staged header), full and with a single row.

Times are CUDA events around ten calls, so that what a launch takes on the host is hidden behind the kernel before, all
ways in turns, several rounds; ratios are of medians. A way that fails is a row with `error`, and the others go on; the
result is written anew after every part, what is worth most first. Needs CuPy and a GPU; what torch does is left out
where torch sees none. Not yet run: there are no results.

usage: python benchmarks/gpu_columns.py [--quick] [--json FILE]
"""

from __future__ import annotations

import importlib
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
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

ROWS, COLUMNS = 1_048_576, 64
LAUNCHES = 100
GRAPHS, RIVALS = f"graph of {LAUNCHES}", "rivals"
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


CALLS = 10


def measured(cupy: Any, ways: dict[str, Way], rounds: int) -> dict[str, list[float] | Exception]:
    """Microseconds of a call, in turns; or what went wrong."""
    found: dict[str, list[float] | Exception] = {}
    for name, way in ways.items():
        try:
            for _ in range(3):
                way()
            cupy.cuda.Device().synchronize()
            found[name] = []
        except Exception as error:
            found[name] = error
    for _ in range(rounds):
        for name, samples in found.items():
            if isinstance(samples, Exception):
                continue
            began, ended = cupy.cuda.Event(), cupy.cuda.Event()
            began.record()
            for _ in range(CALLS):
                ways[name]()
            ended.record()
            ended.synchronize()
            samples.append(1000 * cupy.cuda.get_elapsed_time(began, ended) / CALLS)
    return found


def graph_way(cupy: Any, launch: Way, times: int) -> Way:
    """A graph of so many launches, one after the other."""
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()  # what is read was made on the default stream, for which this one does not wait
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
    board = Board(cupy, 10 if given.quick else 60, given.json)
    program = program_of(COLUMNS)
    executor = CudaExecutor(program, device)

    def of_data(kind: str) -> None:
        held = OnDevice(cupy, values_of(kind, ROWS, COLUMNS))
        target = cupy.empty_like(held.columns)
        board.add(
            kind,
            {
                "copy": lambda: cupy.copyto(target, held.columns),
                "columns": lambda: executor.launch_on(held.as_columns),
                "columns without sketch": lambda: executor.launch_on(held.as_columns, counted=False),
                "matrix": lambda: executor.launch_on(held.as_matrix),
            },
        )
        executor.collect(Sketch(program.sketch))

    def of_rivals() -> None:
        held = OnDevice(cupy, values_of(DATA[0], ROWS, COLUMNS))
        ways: dict[str, Way] = {"cupy": cupy_way(cupy, held.matrix), **torch_ways(held.matrix)}
        board.add(RIVALS, {"matrix": lambda: executor.launch_on(held.as_matrix), **ways})

    def of_graphs() -> None:
        values = values_of(DATA[0], 64, COLUMNS)
        small = OnDevice(cupy, values)
        empty = cupy.RawKernel('extern "C" __global__ void nothing() {}', "nothing")
        board.add(
            GRAPHS,
            {
                "empty": graph_way(cupy, lambda: empty((1,), (32,), ()), LAUNCHES),
                "staged": staged_way(cupy, GraphColumns(program, device), values, 64, LAUNCHES),
                "staged, one row": staged_way(cupy, GraphColumns(program, device), values, 1, LAUNCHES),
                "columns": graph_way(cupy, lambda: executor.launch_on(small.as_columns), LAUNCHES),
            },
        )

    board.part(DATA[0], lambda: of_data(DATA[0]))
    board.part("graphs", of_graphs)
    for kind in DATA[1:]:
        board.part(kind, lambda kind=kind: of_data(kind))
    board.part("rivals", of_rivals)


class Board:
    """Rows of the result, and the summary that is made of them."""

    def __init__(self, cupy: Any, rounds: int, path: Path | None) -> None:
        self.cupy, self.rounds, self.path = cupy, rounds, path
        self.rows: list[dict[str, Any]] = []
        self.medians: dict[str, float] = {}

    def part(self, name: str, work: Callable[[], None]) -> None:
        """Does a part, whose failure is a row, and writes what there is."""
        try:
            work()
        except Exception as error:
            self.rows.append({"case": name, "error": f"{type(error).__name__}: {error}"[:500]})
            print(f"gpu_columns: {name}: {error}", file=sys.stderr)
        report(self.rows, summary_of(self.medians), self.path)

    def add(self, case: str, ways: dict[str, Way]) -> None:
        """Measures the ways of a case."""
        for way, found in measured(self.cupy, ways, self.rounds).items():
            row: dict[str, Any] = {"case": case, "way": way}
            if isinstance(found, Exception):
                row["error"] = f"{type(found).__name__}: {found}"[:500]
                print(f"gpu_columns: {case}, {way}: {found}", file=sys.stderr)
            else:
                row |= quantiles(found, "us")
                self.medians[f"{case}/{way}"] = statistics.median(found)
            self.rows.append(row)


def summary_of(medians: dict[str, float]) -> dict[str, float]:
    """Ratios of what was measured; pure."""
    uniform, found = f"{DATA[0]}/", {}
    copy, columns, matrix = (medians.get(f"{uniform}{way}") for way in ("copy", "columns", "matrix"))
    if copy is not None:
        found["copy_us"] = copy
        found["copy_bytes_per_second"] = 8e6 * ROWS * COLUMNS / copy
    if columns is not None:
        found["columns_us"] = columns
        skewed = [medians[f"{kind}/columns"] for kind in DATA if f"{kind}/columns" in medians]
        if len(skewed) == len(DATA):
            found["skew_ratio"] = max(skewed) / columns
    if copy is not None and columns is not None:
        found["copy_fraction"] = copy / columns
    if copy is not None and matrix is not None:
        found["matrix_copy_fraction"] = copy / matrix
    empty, staged = medians.get(f"{GRAPHS}/empty"), medians.get(f"{GRAPHS}/staged")
    if empty is not None and staged is not None:
        found["graph_us"] = (staged - empty) / LAUNCHES
    for rival in ("cupy", "torch", "torch.compile"):
        theirs, ours = medians.get(f"{RIVALS}/{rival}"), medians.get(f"{RIVALS}/matrix")
        if theirs is not None and ours is not None:
            found[f"vs_{rival.replace('.', '_')}"] = theirs / ours
    return found


if __name__ == "__main__":
    main()
