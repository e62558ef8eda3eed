"""What the comparison of columns together is worth (kernels/joint.py): how often it speaks without drift, how soon it
does where columns depend on one another otherwise and each is as it was, and what it costs.

- `false_alarms`: windows of 100 to 10,000 rows without drift against references of 300 to 100,000 rows (a new one for
  each window, or where it is 20 times as large for 20), of the sixteen columns of _together_data.py, of six rare
  categories (3 % each), of the columns of _drift_data.py, in which most values tie or are missing, or are one of a
  thousand, and of three of 31 values that are all as frequent. The share of p-values ≤ 0.05 and ≤ 0.01, with its
  Clopper-Pearson 95 % interval; beside it NannyML's multivariate drift at its defaults, run itself.
- `power`: against a reference of 10,000 rows: how often p ≤ 0.01, how often the monitor would count a drift (and effect
  ≥ 0.01), how often any column drifts by its own adjusted p-value, and NannyML.
- `cost`: microseconds a row of 16, 64 and 1,000 columns.

usage: python benchmarks/drift_joint.py [--quick] [--json FILE]
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
from _drift_data import drawn
from _harness import arguments, quantiles, report
from _together_data import CATEGORIES, SHIFTS, rows_of
from drift import batch_of, in_parts, people, program_for, rate
from peers import nannyml_joint
from peers.setup import Absent
from trimtab._native import ColumnTable
from trimtab.kernels.cpu import CpuExecutor
from trimtab.kernels.divergences import benjamini_hochberg
from trimtab.kernels.drift import compare
from trimtab.kernels.fit_sketch import fit_sketch
from trimtab.kernels.joint import MIN_EFFECT, compare_jointly
from trimtab.kernels.program import ColumnProgram, Field
from trimtab.kernels.sketch import Sketch
from trimtab.kernels.slabs import rows_from_arrow

Row = dict[str, Any]
Draw = Callable[[int, np.random.Generator], dict[str, Any]]
WINDOWS = (100, 300, 1000, 10_000)
REFERENCES = (300, 1000, 10_000, 100_000)
LEVELS = (0.05, 0.01)
PER_REFERENCE = 20  # windows, of a reference that is far larger than they are


def rare_rows(count: int, rng: np.random.Generator) -> dict[str, Any]:
    return {f"c{i}": (rng.random(count) < 0.03).astype(np.int64) for i in range(6)}


def tied_rows(count: int, rng: np.random.Generator) -> dict[str, Any]:
    return drawn(people(), count, rng)


def alike_rows(count: int, rng: np.random.Generator) -> dict[str, Any]:
    return {f"c{i}": rng.integers(0, 31, count) for i in range(3)}


KINDS: dict[str, Draw] = {"together": rows_of, "rare": rare_rows, "tied": tied_rows, "alike": alike_rows}


def fitted(rows: dict[str, Any], kind: str) -> ColumnProgram:
    if kind == "tied":
        return program_for(rows)
    names = CATEGORIES if kind == "together" else tuple(rows)
    fields = [Field(name, "integer" if name in names else "real") for name in rows]
    return fit_sketch(fields, [pa.record_batch(rows)])


def sketched(program: ColumnProgram, rows: dict[str, Any]) -> Sketch:
    sketch, executor = Sketch(program.sketch), CpuExecutor(program)
    table = rows_from_arrow(batch_of(rows), program.schema)
    executor.run(table, sketch)
    executor.sum_jointly(table, np.arange(len(next(iter(rows.values()))), dtype=np.int64), sketch)
    return sketch


def false_alarms(kind: str, window: int, reference: int, count: int) -> list[Row]:
    rng = np.random.default_rng([window, reference, len(kind)])
    found: list[float] = []
    while len(found) < count:
        before = KINDS[kind](reference, rng)
        program = fitted(before, kind)
        whole = sketched(program, before)
        for _ in range(PER_REFERENCE if reference > 20 * window else 1):
            one = compare_jointly(whole, sketched(program, KINDS[kind](window, rng)))
            assert one is not None
            found.append(one.p_value)
    case = {"case": "false_alarms", "columns": kind, "rows": window, "reference": reference, "way": "trimtab"}
    return [{**case, "level": level, **rate(np.asarray(found) <= level)} for level in LEVELS]


def power(shift: str, size: float, window: int, count: int) -> list[Row]:
    rng = np.random.default_rng([window, int(size * 100), len(shift)])
    found: dict[str, list[bool]] = {"p": [], "p_and_effect": [], "any_column": []}
    while len(found["p"]) < count:
        before = rows_of(10_000, rng)
        program = fitted(before, "together")
        whole = sketched(program, before)
        for _ in range(PER_REFERENCE):
            now = sketched(program, rows_of(window, rng, shift, size))
            one = compare_jointly(whole, now)
            assert one is not None
            columns = benjamini_hochberg([each.p_value for each in compare(whole, now)[:-1]])
            found["p"].append(one.p_value <= 0.01)
            found["p_and_effect"].append(one.p_value <= 0.01 and one.effect >= MIN_EFFECT)
            found["any_column"].append(min(columns) <= 0.01)
    case = {"case": "power", "shift": shift, "size": size, "rows": window, "reference": 10_000}
    return [{**case, "way": way, **rate(np.asarray(values))} for way, values in found.items()]


def cost(quick: bool) -> list[Row]:
    rows: list[Row] = []
    for columns in (16, 64, 1000):
        values = np.random.default_rng(0).standard_normal((columns, 4096), dtype=np.float32)
        names = [f"x{i}" for i in range(columns)]
        program = fit_sketch(
            [Field(name, "real") for name in names], [pa.record_batch([pa.array(one) for one in values], names)]
        )
        executor, table, sketch = (
            CpuExecutor(program),
            ColumnTable(program.schema, list(values)),
            Sketch(program.sketch),
        )
        taken = np.arange(0, 4096, 8, dtype=np.int64)
        times = []
        for _ in range(50 if quick else 400):
            began = time.perf_counter()
            executor.sum_jointly(table, taken, sketch)
            times.append((time.perf_counter() - began) / len(taken) * 1e6)
        rows.append({"case": "cost", "columns": columns, "time": quantiles(times, "us")})
    return rows


def theirs(quick: bool) -> list[Row]:
    rows: list[Row] = []
    for window in (300, 1000) if quick else (300, 1000, 10_000):
        for shift, size in [("", 0.0), *((shift, size) for shift, sizes in SHIFTS.items() for size in sizes)]:
            if quick and size not in (0.0, 0.4, 0.9, 0.3):
                continue
            count = 200 if window < 10_000 else 50
            share = nannyml_joint.rate(
                rows=window, windows=count, reference=20 * window, seed=window, shift=shift, size=size
            )
            kind = {"case": "power", "shift": shift, "size": size} if shift else {"case": "false_alarms", "level": None}
            alarms = np.arange(count) < round(share * count)
            rows.append({**kind, "columns": "together", "rows": window, "way": "nannyml", **rate(alarms)})
        print(f"drift_joint: nannyml, windows of {window} rows", file=sys.stderr)
    return rows


def main() -> None:
    options = arguments(__doc__ or "")
    count, powered = (200, 60) if options.quick else (1000, 200)
    rows = cost(options.quick)
    tasks: list[Callable[[], list[Row]]] = [
        partial(false_alarms, kind, window, reference, count if window <= 1000 else count // 10)
        for kind in KINDS
        for window in WINDOWS
        for reference in REFERENCES
        if (reference >= window or reference == 300) and not (options.quick and reference == 100_000)
    ]
    tasks += [
        partial(power, shift, size, window, powered)
        for window in (300, 1000, 10_000)
        for shift, sizes in SHIFTS.items()
        for size in sizes
    ]
    rows += in_parts("drift_joint", tasks)
    try:
        rows += theirs(options.quick)
    except Absent as error:
        print(f"drift_joint: without NannyML: {error}", file=sys.stderr)
    report(rows, summary_of(rows), options.json)


def summary_of(rows: list[Row]) -> dict[str, float]:
    quiet = [row for row in rows if row["case"] == "false_alarms"]
    found: dict[str, float] = {}
    for level in LEVELS:
        mine = [row for row in quiet if row["level"] == level]
        found[f"joint_{level}_most"] = max(row["rate"] for row in mine)
        found[f"joint_{level}_above"] = sum(row["low"] > level for row in mine)
        found[f"joint_{level}_cases"] = len(mine)
    nannyml = [row["rate"] for row in quiet if row["way"] == "nannyml"]
    if nannyml:
        found["nannyml_false_alarms_most"] = max(nannyml)
    for way in ("p", "any_column", "nannyml"):
        mine = [row["rate"] for row in rows if row["case"] == "power" and row["way"] == way and row["rows"] == 1000]
        if mine:
            found[f"{way}_power_1000_mean"] = statistics.mean(mine)
    found |= {f"row_us_{row['columns']}": row["time"]["p50"] for row in rows if row["case"] == "cost"}
    return found


if __name__ == "__main__":
    main()
