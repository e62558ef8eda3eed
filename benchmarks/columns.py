"""What the column executor costs: impute, clip and standardise, with and without the drift sketch (missing, unseen,
infinities, extremes, moments and 31 edges) of the same values.

- `columns`: CpuExecutor.run through Python, outputs given, at every dispatch level that the machine has, beside NumPy,
  numba, polars, scikit-learn and ONNX Runtime, and, for the statistics alone, Evidently, whylogs and datasketches, in
  an environment of their own (peers/columns.py; set up once, in PEERS_HOME). Data: `uniform` (normally distributed, so
  that bins are equally full, 3 % missing), `skewed` (nine values of ten are the same) and `constant`. All on one core.
- `memcpy`: the same bytes copied by NumPy in the same run.
- `sources`: rows in a slab, in borrowed columns and in a row-major matrix, on one thread and on two.
- `serving`: what the compute thread calls for a batch: 256 rows of 32 columns, impute and standardise, new outputs.
- `stream`: 3 million rows of 1,000 columns, generated a chunk at a time, reference and current, sketched on all cores
  and compared.

Ways are measured in turns, several rounds of all of them; a way's cost in a round is its least call, for neighbours on
the machine only ever add to it, and ratios are those of a round, with their median and its bootstrap 95 % interval.

usage: python benchmarks/columns.py [--quick] [--json FILE]     with --json also FILE's name with .png
"""

from __future__ import annotations

import contextlib
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from _bench import interval
from _column_data import DATA, EDGES, FILL, HIGH, LOW, SCALE, SHIFT, Floats, samples_us, values_of
from _harness import arguments, quantiles, report
from _plot import plot_columns
from peers.columns import WAYS, Rivals
from peers.setup import Absent
from trimtab._native import CPU_LEVELS, ColumnTable, Slab, keep_freed_memory
from trimtab.kernels import operations as ops
from trimtab.kernels.cpu import CpuExecutor
from trimtab.kernels.drift import compare
from trimtab.kernels.program import Chain, ColumnProgram, Field, RealField, SketchSpec
from trimtab.kernels.sketch import Sketch

Row = dict[str, Any]
SHAPES = ((1, 64), (64, 64), (4096, 64), (262144, 64), (1048576, 64))
LARGE = 262144
SLOW = {"evidently", "whylogs", "datasketches"}  # asked once, at one size
SLOW_ROWS = 65536


def program_of(columns: int, clip: bool = True, features: bool = True) -> ColumnProgram:
    """The work; without features it only sketches."""
    operations = [ops.Impute(float(FILL), False), ops.Clip(float(LOW), float(HIGH))][: 2 if clip else 1]
    chain = (*operations, ops.Standardise(float(SHIFT), float(SCALE)))
    edges = tuple(EDGES.tolist())
    return ColumnProgram(
        tuple(Field(f"x{i}", "real") for i in range(columns)),
        tuple(Chain(i, chain) for i in range(columns if features else 0)),
        SketchSpec(tuple(RealField(f"x{i}", edges, -4.5, 4.5, 0.125) for i in range(columns))),
    )


def slab_of(program: ColumnProgram, values: Floats) -> Slab:
    slab = Slab(program.schema)
    slab.append_columns(list(values))
    return slab


def aligned(rows: int, columns: int) -> Floats:
    """Written once, so that its pages are there, from a cache line on, as the executor makes its own."""
    memory = np.zeros(rows * columns + 16, np.float32)
    return memory[(-memory.ctypes.data % 64) // 4 :][: rows * columns].reshape(rows, columns)


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """This process on its first core alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Board:
    """The rows of the result, and the summary that is made of them."""

    def __init__(self, quick: bool, rivals: Rivals | None) -> None:
        self.quick, self.rivals = quick, rivals
        self.rounds = 3 if quick else 5
        self.rows: list[Row] = []
        self.summary: dict[str, float] = {}

    def measure(
        self, case: Row, values: int, calls: dict[str, Callable[[float], list[float] | None]]
    ) -> dict[str, Any]:
        """Rounds of all ways; the least ns/value of each round, by way."""
        seconds = 0.04 if self.quick else 0.12
        found: dict[str, list[list[float]]] = {}
        for _ in range(self.rounds):
            for way, call in calls.items():
                samples = call(seconds)
                if samples is not None:
                    found.setdefault(way, []).append(samples)
        least = {way: [min(samples) * 1000 / values for samples in rounds] for way, rounds in found.items()}
        for way, rounds in found.items():
            every = [sample for samples in rounds for sample in samples]
            cost = {"ns_per_value": statistics.median(least[way]), "rounds": least[way]}
            self.rows.append({**case, "way": way, **cost, "time": quantiles(every, "us")})
        print(f"columns: {' '.join(str(value) for value in case.values())}", file=sys.stderr)
        return least

    def ratio(self, name: str, over: list[float], under: list[float]) -> None:
        """A ratio of two ways of the same rounds, with its interval."""
        middle, low, high = interval([a / b for a, b in zip(over, under, strict=True)])
        self.summary |= {name: middle, f"{name}_low": low, f"{name}_high": high}


def calls_of(board: Board, case: Row, sketched: bool) -> dict[str, Callable[[float], list[float] | None]]:
    """What runs these columns, by name."""
    rows, columns, kind = case["rows"], case["columns"], case["data"]
    values = values_of(kind, rows, columns)
    program = program_of(columns)
    slab, sketch = slab_of(program, values), Sketch(program.sketch) if sketched else None
    features, ids = aligned(rows, columns), np.empty((rows, 0), np.int64)
    found: dict[str, Callable[[float], list[float] | None]] = {}
    for level in CPU_LEVELS:
        run = CpuExecutor(program, level).run
        found[level] = lambda seconds, run=run: samples_us(lambda: run(slab, sketch, 0, -1, features, ids), seconds)
    target = np.zeros_like(values)
    found["memcpy"] = lambda seconds: samples_us(lambda: np.copyto(target, values), seconds)
    if board.rivals is not None:
        rivals = board.rivals
        for way in WAYS:
            if way not in SLOW:
                found[way] = lambda seconds, way=way: rivals.samples(**case, way=way, seconds=seconds)
    return found


def column_cases(board: Board) -> None:
    best = CPU_LEVELS[0]
    skew: dict[str, list[float]] = {}
    for rows, columns in SHAPES[: 4 if board.quick else 5]:
        for kind in DATA if rows <= LARGE else DATA[:1]:
            for sketched in (True, False) if kind == "uniform" else (True,):
                case = {"rows": rows, "columns": columns, "data": kind, "sketch": sketched}
                with one_core():
                    least = board.measure({"case": "columns", **case}, rows * columns, calls_of(board, case, sketched))
                if sketched and rows == 4096:
                    skew[kind] = least[best]
                if not (sketched and kind == "uniform"):
                    continue
                if rows in (1, 64):
                    board.summary[f"rows{rows}_us"] = statistics.median(least[best]) * rows * columns / 1000
                if rows == LARGE:
                    board.summary |= {f"{way}_ns_per_value": statistics.median(found) for way, found in least.items()}
                    for way in ("memcpy", *(way for way in least if way in WAYS)):
                        one, other = (least[best], least[way]) if way == "memcpy" else (least[way], least[best])
                        board.ratio(f"vs_{way}", one, other)
    board.ratio("one_bin_vs_uniform", skew["constant"], skew["uniform"])
    board.ratio("skewed_vs_uniform", skew["skewed"], skew["uniform"])


def slow_cases(board: Board) -> None:
    """The packages for statistics alone, which take from ten times to thousands of times as long."""
    if board.rivals is None:
        return
    rows, columns = SLOW_ROWS, 8
    case = {"rows": rows, "columns": columns, "data": "uniform", "sketch": True}
    program = program_of(columns, features=False)
    table, sketch = ColumnTable(program.schema, list(values_of("uniform", rows, columns))), Sketch(program.sketch)
    run, rivals = CpuExecutor(program).run, board.rivals
    calls: dict[str, Callable[[float], list[float] | None]] = {
        CPU_LEVELS[0]: lambda seconds: samples_us(lambda: run(table, sketch), seconds)
    }
    calls |= {way: lambda seconds, way=way: rivals.samples(**case, way=way, seconds=seconds) for way in sorted(SLOW)}
    with one_core():
        least = board.measure({"case": "statistics", **case}, rows * columns, calls)
    for way in least.keys() & SLOW:
        board.ratio(f"statistics_vs_{way}", least[way], least[CPU_LEVELS[0]])


def source_cases(board: Board) -> None:
    """Where rows may lie, and threads."""
    rows, columns = LARGE, 64
    values = values_of("uniform", rows, columns)
    program = program_of(columns)
    run = CpuExecutor(program).run
    padded = np.zeros((columns, rows + 1040), np.float32)  # columns a power of two apart fall onto the same cache sets
    padded[:, :rows] = values
    sources = {
        "slab": slab_of(program, values),
        "columns": ColumnTable(program.schema, [column[:rows] for column in padded]),
        "matrix": ColumnTable(program.schema, np.ascontiguousarray(values.T)),
    }
    features, ids, sketch = aligned(rows, columns), np.empty((rows, 0), np.int64), Sketch(program.sketch)
    calls: dict[str, Callable[[float], list[float] | None]] = {}
    for name, source in sources.items():
        for threads in (1, 2):
            calls[f"{name}_{threads}"] = lambda seconds, source=source, threads=threads: samples_us(
                lambda: run(source, sketch, 0, -1, features, ids, threads), seconds
            )
    least = board.measure({"case": "sources", "rows": rows, "columns": columns}, rows * columns, calls)
    for name in sources:
        board.ratio(f"two_threads_{name}", least[f"{name}_1"], least[f"{name}_2"])
    board.ratio("matrix_vs_slab", least["matrix_1"], least["slab_1"])


def serving_case(board: Board) -> None:
    rows, columns = 256, 32
    program = program_of(columns, clip=False)
    slab, sketch = slab_of(program, values_of("uniform", rows, columns)), Sketch(program.sketch)
    calls: dict[str, Callable[[float], list[float] | None]] = {}
    for level in CPU_LEVELS:
        run = CpuExecutor(program, level).run
        for counted, name in ((sketch, level), (None, f"{level} without sketch")):
            calls[name] = lambda seconds, run=run, counted=counted: samples_us(lambda: run(slab, counted), seconds)
    with one_core():
        least = board.measure({"case": "serving", "rows": rows, "columns": columns}, rows * columns, calls)
    board.summary["serving_ns_per_value"] = statistics.median(least[CPU_LEVELS[0]])


def stream_case(board: Board) -> None:
    """Reference and current, each half of the rows; the work is timed without what makes the numbers."""
    rows, columns, chunk = (300_000 if board.quick else 3_000_000), 1000, 30_000
    cores = len(os.sched_getaffinity(0))
    program = program_of(columns, features=False)
    run = CpuExecutor(program).run
    sides = [Sketch(program.sketch), Sketch(program.sketch)]
    values = np.empty((columns, chunk), np.float32)
    features, ids = np.empty((chunk, 0), np.float32), np.empty((chunk, 0), np.int64)
    made = sketched = 0.0
    for position in range(0, rows, chunk):
        began = time.perf_counter()
        np.random.default_rng(position).standard_normal(dtype=np.float32, out=values)
        made += time.perf_counter() - began
        began = time.perf_counter()
        side = sides[position >= rows // 2]
        run(ColumnTable(program.schema, list(values)), side, 0, -1, features, ids, cores)
        sketched += time.perf_counter() - began
        if position % (20 * chunk) == 0:
            print(f"columns: stream, {position:,} of {rows:,} rows", file=sys.stderr)
    began = time.perf_counter()
    found = compare(*sides)
    compared = time.perf_counter() - began
    assert len(found) == columns + 1
    assert sides[1].rows == rows // 2
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    times = {"generated_s": made, "sketched_s": sketched, "compared_s": compared, "peak_mib": peak}
    board.rows.append({"case": "stream", "rows": rows, "columns": columns, "threads": cores, **times})
    board.summary |= {
        "stream_statistics_s": sketched + compared,
        "stream_ns_per_value": sketched * 1e9 / rows / columns,
    }


def main() -> None:
    options = arguments(__doc__ or "")
    keep_freed_memory()  # as the server does
    rivals = None
    try:
        rivals = Rivals({min(os.sched_getaffinity(0))})
    except Absent as error:
        print(f"columns: without rivals: {error}", file=sys.stderr)
    with rivals or contextlib.nullcontext():
        board = Board(options.quick, rivals)
        stream_case(board)  # first: the peak of memory is that of the process
        column_cases(board)
        slow_cases(board)
    source_cases(board)
    serving_case(board)
    if rivals is not None:
        board.rows.append({"case": "rivals", "versions": rivals.versions})
    report(board.rows, board.summary, options.json)
    if options.json is not None:
        plot_columns(board.rows, options.json.with_suffix(".png"))


if __name__ == "__main__":
    main()
