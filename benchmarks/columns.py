"""What the column executor costs on one core: impute, clip and standardise, with and without the drift sketch (missing,
unseen, infinities, extremes, moments and 31 edges) of the same values.

- `columns`: CpuExecutor.run through Python, outputs given, at every dispatch level that the machine has, beside NumPy
  doing the same columns (a mask, np.clip, the moments, np.searchsorted and np.bincount), numba (the fused loop, written
  plainly), polars and scikit-learn, where they are installed (the last two without a sketch). Data: `uniform` (normally
  distributed, 3 % missing), `skewed` (nine values of ten are the same) and `constant`.
- `memcpy`: the same bytes copied by NumPy in the same run.
- `serving`: what the compute thread calls for a batch: 256 rows of 32 columns, impute and standardise, new outputs.

Times are wall time of a call, quantiles over many. A value's cost is the lowest fifth's, for neighbours on the machine
only ever add to it; `skew_ratio`, which compares runs that lie apart in time, goes by the least.

usage: python benchmarks/columns.py [--quick] [--json FILE]
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("POLARS_MAX_THREADS", "1")

import numpy as np
from _harness import arguments, quantiles, report
from numpy.typing import NDArray
from trimtab._native import CPU_LEVELS, Slab, keep_freed_memory
from trimtab.kernels import operations as ops
from trimtab.kernels.cpu import CpuExecutor
from trimtab.kernels.program import Chain, ColumnProgram, Field, RealField, SketchSpec
from trimtab.kernels.sketch import Sketch

Floats = NDArray[np.float32]
Row = dict[str, Any]
SHAPES = ((1, 64), (64, 64), (4096, 64), (262144, 64))
DATA = ("uniform", "skewed", "constant")
LOW, HIGH, SHIFT, SCALE, FILL = np.float32(-3), np.float32(3), np.float32(0.1), np.float32(0.9), np.float32(0.25)
EDGES = np.quantile(np.random.default_rng(0).normal(size=50_000), np.arange(1, 32) / 32).astype(np.float32)


def program_of(columns: int, clip: bool = True) -> ColumnProgram:
    operations = [ops.Impute(float(FILL), False), ops.Clip(float(LOW), float(HIGH))][: 2 if clip else 1]
    chain = (*operations, ops.Standardise(float(SHIFT), float(SCALE)))
    edges = tuple(EDGES.tolist())
    return ColumnProgram(
        tuple(Field(f"x{i}", "real") for i in range(columns)),
        tuple(Chain(i, chain) for i in range(columns)),
        SketchSpec(tuple(RealField(f"x{i}", edges, -4.5, 4.5, 0.125) for i in range(columns))),
    )


def values_of(kind: str, rows: int, columns: int) -> Floats:
    """[columns, rows], as a slab has them."""
    rng = np.random.default_rng(rows)
    if kind == "constant":
        return np.full((columns, rows), 0.3, np.float32)
    values = rng.normal(size=(columns, rows)).astype(np.float32)
    chosen = rng.random((columns, rows))
    return np.where(chosen < (0.03 if kind == "uniform" else 0.9), np.nan if kind == "uniform" else 0.0, values).astype(
        np.float32
    )


def slab_of(program: ColumnProgram, values: Floats) -> Slab:
    slab = Slab(program.schema)
    slab.append_columns(list(values))
    return slab


def cost(samples: list[float], values: int) -> Row:
    """Nanoseconds a value, and the quantiles of a call."""
    return {"ns_per_value": float(np.percentile(samples, 20)) * 1000 / values, "time": quantiles(samples, "us")}


def samples_us(call: Callable[[], Any], seconds: float) -> list[float]:
    for _ in range(2):
        call()
    began = time.perf_counter_ns()
    call()
    repeats = max(1, min(200, 200_000 // max(1, time.perf_counter_ns() - began)))  # so that the clock does not count
    found: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(found) < 3:
        began = time.perf_counter_ns()
        for _ in range(repeats):
            call()
        found.append((time.perf_counter_ns() - began) / repeats / 1000)
    return found


def in_numpy(values: Floats, sketched: bool) -> Callable[[], Any]:
    columns, rows = values.shape
    features = np.empty((rows, columns), np.float32)

    def run() -> None:
        for i, x in enumerate(values):
            missing = np.isnan(x)
            features[:, i] = (np.clip(np.where(missing, FILL, x), LOW, HIGH) - SHIFT) / SCALE
            if sketched:
                known = x[~missing]
                finite = known[np.isfinite(known)].astype(np.float64)
                np.bincount(np.searchsorted(EDGES, known, side="right"), minlength=len(EDGES) + 1)
                if len(finite):
                    d = finite - 0.125
                    finite.min(), finite.max(), d.sum(), (d * d).sum(), np.count_nonzero(np.abs(finite) > 4.5)

    return run


def in_numba(values: Floats, sketched: bool) -> Callable[[], Any]:
    numba: Any = importlib.import_module("numba")
    columns, rows = values.shape
    features = np.empty((rows, columns), np.float32)
    counts, moments = np.zeros((columns, 36), np.int64), np.zeros((columns, 4))

    def loop(x: Floats, out: Floats, found: Any, sums: Any) -> None:
        for i in range(x.shape[0]):
            for j in range(x.shape[1]):
                value = x[i, j]
                filled = FILL if np.isnan(value) else value
                out[j, i] = (min(max(filled, LOW), HIGH) - SHIFT) / SCALE
                if sketched:
                    if np.isnan(value):
                        found[i, 0] += 1
                        continue
                    found[i, 1] += value < -4.5 or value > 4.5
                    found[i, 4 + np.searchsorted(EDGES, value, side="right")] += 1
                    if np.isinf(value):
                        found[i, 2 + (value > 0)] += 1
                        continue
                    d = value - 0.125
                    sums[i, 0] = min(sums[i, 0], value)
                    sums[i, 1] = max(sums[i, 1], value)
                    sums[i, 2] += d
                    sums[i, 3] += d * d

    compiled = numba.njit(loop)
    return lambda: compiled(values, features, counts, moments)


def in_polars(values: Floats, _sketched: bool) -> Callable[[], Any]:
    polars: Any = importlib.import_module("polars")
    table = polars.DataFrame({f"x{i}": x for i, x in enumerate(values)})
    everything = polars.all().fill_nan(FILL).clip(LOW, HIGH)
    return lambda: table.select((everything - SHIFT) / SCALE).to_numpy()


def in_sklearn(values: Floats, _sketched: bool) -> Callable[[], Any]:
    pipeline: Any = importlib.import_module("sklearn.pipeline")
    impute: Any = importlib.import_module("sklearn.impute")
    preprocessing: Any = importlib.import_module("sklearn.preprocessing")
    steps = pipeline.make_pipeline(
        impute.SimpleImputer(), preprocessing.FunctionTransformer(np.clip, kw_args={"a_min": LOW, "a_max": HIGH}),
        preprocessing.StandardScaler(),
    )  # fmt: skip
    rows = np.ascontiguousarray(values.T)
    steps.fit(np.random.default_rng(0).normal(size=(500, len(values))).astype(np.float32))
    return lambda: steps.transform(rows)


OTHERS = {"numpy": in_numpy, "numba": in_numba, "polars": in_polars, "sklearn": in_sklearn}


def ways(rows: int, columns: int, kind: str, sketched: bool) -> dict[str, Callable[[], Any]]:
    """What runs these columns, by name."""
    values = values_of(kind, rows, columns)
    program = program_of(columns)
    slab, sketch = slab_of(program, values), Sketch(program.sketch) if sketched else None
    features, ids = np.empty((rows, columns), np.float32), np.empty((rows, 0), np.int64)
    found: dict[str, Callable[[], Any]] = {}
    for level in CPU_LEVELS:
        run = CpuExecutor(program, level).run
        found[level] = lambda run=run: run(slab, sketch, 0, -1, features, ids)
    for name, make in OTHERS.items():
        if find_spec(name) is not None and not (sketched and name in ("polars", "sklearn")):
            found[name] = make(values, sketched)
    return found


def column_rows(quick: bool) -> list[Row]:
    found: list[Row] = []
    for rows, columns in SHAPES:
        seconds = (0.03 if quick else 0.1) if rows < 100_000 else (0.05 if quick else 0.3)
        for kind in DATA:
            for sketched in (True, False) if kind == "uniform" else (True,):
                for way, call in ways(rows, columns, kind, sketched).items():
                    shape = {"rows": rows, "columns": columns, "data": kind, "sketch": sketched, "way": way}
                    found.append({"case": "columns", **shape, **cost(samples_us(call, seconds), rows * columns)})
        source = values_of("uniform", rows, columns)
        target = np.empty_like(source)
        copied = cost(samples_us(lambda: np.copyto(target, source), seconds), source.size)  # noqa: B023
        found.append({"case": "memcpy", "rows": rows, "columns": columns, **copied})
        print(f"{rows} x {columns} measured", file=sys.stderr)
    return found


def serving_rows(seconds: float) -> list[Row]:
    rows, columns = 256, 32
    program = program_of(columns, clip=False)
    slab, sketch = slab_of(program, values_of("uniform", rows, columns)), Sketch(program.sketch)
    found = []
    for level in CPU_LEVELS:
        run = CpuExecutor(program, level).run
        taken = cost(samples_us(lambda: run(slab, sketch), seconds), rows * columns)  # noqa: B023
        found.append({"case": "serving", "rows": rows, "columns": columns, "way": level, **taken})
    return found


def main() -> None:
    options = arguments(__doc__ or "")
    keep_freed_memory()  # as the server does
    absent = [name for name in OTHERS if find_spec(name) is None]
    if absent:
        print(f"not installed, and left out: {', '.join(absent)}", file=sys.stderr)
    rows = [*column_rows(options.quick), *serving_rows(0.1 if options.quick else 0.5)]
    best, large = CPU_LEVELS[0], SHAPES[-1][0]

    def row_of(case: str, **wanted: Any) -> Row:
        return next(row for row in rows if {"case": case, **wanted}.items() <= row.items())

    def ns(way: str, size: int, data: str = "uniform", sketched: bool = True) -> float:
        return float(row_of("columns", way=way, rows=size, data=data, sketch=sketched)["ns_per_value"])

    def least(kind: str) -> float:
        return float(row_of("columns", way=best, rows=4096, data=kind, sketch=True)["time"]["min"])

    memcpy = float(row_of("memcpy", rows=large)["ns_per_value"])
    summary = {
        "full_ns_per_value": ns(best, large),
        "memcpy_ns_per_value": memcpy,
        "full_vs_memcpy": ns(best, large) / memcpy,
        "vs_numpy": ns("numpy", large) / ns(best, large),
        "row1_us": ns(best, 1) * 64 / 1000,
        "rows64_us": ns(best, 64) * 64 * 64 / 1000,
        "skew_ratio": max(map(least, DATA)) / min(map(least, DATA)),
        "features_ns_per_value": ns(best, large, sketched=False),
        "serving_ns_per_value": float(row_of("serving", way=best)["ns_per_value"]),
        **{f"{level}_ns_per_value": ns(level, large) for level in CPU_LEVELS},
        **{f"{level}_4096_ns_per_value": ns(level, 4096) for level in CPU_LEVELS},
    }
    if find_spec("numba") is not None:
        summary["vs_numba"] = ns("numba", large) / ns(best, large)
    report(rows, summary, options.json)


if __name__ == "__main__":
    main()
