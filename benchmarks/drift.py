"""What the drift statistics are worth: how often they speak without drift, and how soon they do with it.

- `false_alarms`: windows of 50 to 100,000 rows without drift against a reference as large (a new one for each window)
  and against one of 100,000 rows (one for 80 windows, for 8
  of 3,000 rows and more). Edges and vocabularies are fitted to each reference, as in
  production. Of every statistic the share of p-values ≤ 0.05 and ≤ 0.01, with its Clopper-Pearson 95 % interval; beside
  it how often Evidently at its defaults calls the same columns drifted (kernels/evidently.py, its arithmetic, which is
  tested against the package), and NannyML at its defaults, run itself. Counts of windows of 30,000 rows and more are
  drawn as such: multinomial, by the shares of the population, which is what counting drawn rows comes to.
- `family`: 64 features, adjusted p-values: the share of windows with any rejection (with no drift at all this is the
  false discovery rate), and with an alarm of the monitor (effect and persistence as configured by default).
- `power`: shifts of several kinds and sizes, against a reference of 10,000 rows: how often p ≤ 0.01, how often the
  monitor would count a drift (and PSI ≥ 0.1), Evidently, NannyML. To be read beside their false alarms.

usage: python benchmarks/drift.py [--quick] [--json FILE]     with --json also FILE's name with .png
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
from _drift_data import CATEGORIES, COLUMNS, NUMBERS, SHIFTS, Columns, drawn, population, shifted
from _harness import arguments, report
from _plot import plot_drift
from peers import nannyml_drift
from peers.setup import Absent
from trimtab._native import ColumnTable
from trimtab.kernels import evidently
from trimtab.kernels.cpu import CpuExecutor
from trimtab.kernels.drift import DriftMonitor, FeatureStatistics, compare
from trimtab.kernels.fit_sketch import fit_sketch
from trimtab.kernels.program import ColumnProgram, Field
from trimtab.kernels.sketch import Sketch
from trimtab.kernels.slabs import rows_from_arrow

Row = dict[str, Any]
SIZES = (50, 100, 300, 1000, 3000, 10_000, 30_000, 100_000)
COUNTED_FROM = 30_000
LARGE = 100_000
PER_REFERENCE = {50: 80, 100: 80, 300: 80, 1000: 40}
LEVELS = (0.05, 0.01)
JUDGED = 400  # windows that Evidently is asked about, which takes far longer
STATISTICS = ("chi_square", "psi", "jensen_shannon", "ks", "wasserstein")
people = cache(population)


def batch_of(rows: Columns) -> pa.RecordBatch:
    """In Arrow; `zipf` as text."""
    columns: dict[str, Any] = {name: pa.array(values) for name, values in rows.items()}
    if "zipf" in rows:
        columns["zipf"] = pa.DictionaryArray.from_arrays(pa.array(rows["zipf"], pa.int32()), names())
    return pa.record_batch(columns)


@cache
def names() -> Any:
    """The texts of `zipf`."""
    return pa.array([f"value {i}" for i in range(1000)])


def program_for(rows: Columns) -> ColumnProgram:
    """What a reference of these rows has counted, as `trimtab drift` fits it."""
    kinds = {**dict.fromkeys(NUMBERS, "real"), "ten": "integer", "zipf": "string"}
    return fit_sketch([Field(name, kinds[name]) for name in COLUMNS if name in rows], [batch_of(rows)])


def sketch_of(program: ColumnProgram, rows: Columns) -> Sketch:
    sketch = Sketch(program.sketch)
    CpuExecutor(program).run(rows_from_arrow(batch_of(rows), program.schema), sketch)
    return sketch


def counts_of(program: ColumnProgram, whole: Sketch, rows: int, rng: np.random.Generator) -> Sketch:
    """A sketch of so many rows of the population, of which `whole` is the sketch, without drawing them."""
    sketch = Sketch(program.sketch)
    sketch.counts[0] = rows
    sketch.moments[:] = whole.moments
    offsets = program.sketch.offsets
    for i, field in enumerate(program.fields):
        start, stop = offsets[i : i + 2]
        part = whole.counts[start:stop].astype(np.float64)
        part[2:4] = 0  # infinities are in a bin too
        if field.name in NUMBERS:
            part[1] = 0  # and so is what is out of range
        sketch.counts[start:stop] = rng.multinomial(rows, part / part.sum())
    return sketch


def windows(
    size: int, equal: bool, count: int, seed: int
) -> Iterator[tuple[Columns | None, Columns | None, Sketch, Sketch]]:
    """Rows where there are any, and sketches, of a reference and a window without drift."""
    rng = np.random.default_rng([seed, size, equal])
    everyone = people()
    per = 1 if equal else PER_REFERENCE.get(size, 8)
    for _ in range(count // per):
        counted = size >= COUNTED_FROM
        before = drawn(everyone, 20_000 if counted else size if equal else LARGE, rng)
        program = program_for(before)
        whole = sketch_of(program, everyone) if counted else None
        reference = (
            sketch_of(program, before) if whole is None else counts_of(program, whole, size if equal else LARGE, rng)
        )
        for _ in range(per if whole is None else per * (20 if equal else 1)):
            if whole is not None:
                if equal:
                    reference = counts_of(program, whole, size, rng)
                yield None, None, reference, counts_of(program, whole, size, rng)
            else:
                now = drawn(everyone, size, rng)
                yield before, now, reference, sketch_of(program, now)


def false_alarms(size: int, equal: bool, count: int) -> list[Row]:
    """One row a column and statistic."""
    if size >= COUNTED_FROM and equal:
        count //= 20
    found: dict[tuple[str, str], list[float]] = {}
    theirs: dict[str, list[bool]] = {}
    for before, now, reference, window in windows(size, equal, count, 1):
        for column, one in zip(COLUMNS, compare(reference, window), strict=False):
            found.setdefault((column, "combined"), []).append(one.p_value)
            for statistic in one.statistics:
                found.setdefault((column, statistic.name), []).append(statistic.p_value)
            found.setdefault((column, "effect"), []).append(0.0 if one.effect >= 0.1 else 1.0)
        if before is not None and now is not None and len(theirs.get(COLUMNS[0], ())) < JUDGED:
            for column in COLUMNS:
                verdict = judged(column, before[column], now[column])
                theirs.setdefault(column, []).append(verdict)
    case = {"case": "false_alarms", "rows": size, "reference": size if equal else LARGE}
    rows: list[Row] = []
    for (column, statistic), values in found.items():
        p_values = np.asarray(values)
        for level in LEVELS if statistic != "effect" else (0.5,):
            rows.append({**case, "column": column, "way": statistic, "level": level, **rate(p_values <= level)})
    rows += [{**case, "column": c, "way": "evidently", "level": None, **rate(np.asarray(v))} for c, v in theirs.items()]
    return rows


def judged(column: str, before: Any, now: Any) -> bool:
    """Evidently's verdict at its defaults."""
    if column in CATEGORIES:
        sides = [
            dict(zip(*(x.tolist() for x in np.unique(side, return_counts=True)), strict=True)) for side in (before, now)
        ]
        verdict = evidently.judge_counts(*sides)
    else:
        verdict = evidently.judge_numbers(*(side[np.isfinite(side)].astype(np.float64) for side in (before, now)))
    return verdict is not None and verdict.drifted


def rate(alarms: Any) -> dict[str, float]:
    """A share and its Clopper-Pearson 95 % interval."""
    from scipy.stats import beta

    n, k = len(alarms), int(np.sum(alarms))
    low = float(beta.ppf(0.025, k, n - k + 1)) if k else 0.0
    high = float(beta.ppf(0.975, k + 1, n - k)) if k < n else 1.0
    return {"windows": n, "rate": k / n, "low": low, "high": high}


def family(size: int, count: int) -> list[Row]:
    """64 independent features; the monitor sees the windows one after another."""
    rng = np.random.default_rng([2, size])
    width = 64
    everyone = np.random.default_rng(3).standard_normal((width, 200_000), dtype=np.float32)
    names = [f"x{i}" for i in range(width)]

    def draw(rows: int) -> list[Any]:
        chosen = rng.integers(0, everyone.shape[1], rows)
        return [np.ascontiguousarray(one[chosen]) for one in everyone]

    any_p: list[bool] = []
    any_drift: list[bool] = []
    any_alarm: list[bool] = []
    while len(any_p) < count:
        before = draw(10_000)
        batch = pa.record_batch([pa.array(one) for one in before], names)
        program = fit_sketch([Field(name, "real") for name in names], [batch])
        run = CpuExecutor(program).run
        reference, monitors = Sketch(program.sketch), None
        run(ColumnTable(program.schema, before), reference)
        monitors = DriftMonitor(reference, 0.01, 0.1, 3)
        for _ in range(min(100, count - len(any_p))):
            window = Sketch(program.sketch)
            run(ColumnTable(program.schema, draw(size)), window)
            features = monitors.observe(window, 0, 0).features
            any_p.append(any(one.adjusted_p_value <= 0.01 for one in features))
            any_drift.append(any(one.adjusted_p_value <= 0.01 and one.effect >= 0.1 for one in features))
            any_alarm.append(any(one.alarm for one in features))
    case = {"case": "family", "rows": size, "reference": 10_000, "features": width, "level": 0.01}
    ways = {"adjusted": any_p, "adjusted_and_effect": any_drift, "alarm": any_alarm}
    return [{**case, "way": way, **rate(np.asarray(values))} for way, values in ways.items()]


def power(shift: str, size: int, count: int) -> list[Row]:
    """One row a size of the shift and way."""
    column, amounts = SHIFTS[shift]
    everyone = {column: people()[column]}
    rows: list[Row] = []
    for amount in amounts:
        rng = np.random.default_rng([4, size, int(amount * 1000), len(shift)])
        found: dict[str, list[bool]] = {"p": [], "p_and_effect": [], "evidently": []}
        for first in range(0, count, 20):
            before = drawn(everyone, 10_000, rng)
            program = program_for(before)
            reference = sketch_of(program, before)
            for _ in range(min(20, count - first)):
                now = {column: shifted(drawn(everyone, size, rng)[column], shift, amount, rng)}
                one: FeatureStatistics = compare(reference, sketch_of(program, now))[0]
                found["p"].append(one.p_value <= 0.01)
                found["p_and_effect"].append(one.p_value <= 0.01 and one.effect >= 0.1)
                found["evidently"].append(judged(column, before[column], now[column]))
        case = {"case": "power", "shift": shift, "size": amount, "column": column, "rows": size, "reference": 10_000}
        rows += [{**case, "way": way, **rate(np.asarray(values))} for way, values in found.items()]
    return rows


def theirs(quick: bool) -> list[Row]:
    """NannyML, which takes all windows at once."""
    rows: list[Row] = []
    for size in (100, 1000) if quick else (100, 1000, 10_000):
        count = max(50, 400_000 // size) if not quick else 50
        for shift, amount in [("", 0.0), *((s, a) for s, (_, sizes) in SHIFTS.items() for a in sizes if not quick)]:
            part = min(count, 2000 if not shift else 100)
            case = {"rows": size, "windows": part, "reference": max(LARGE, 20 * size), "seed": size}
            found = nannyml_drift.rates(**case, shift=shift, size=amount)
            for column, share in found.items():
                alarms = np.arange(part) < round(share * part)
                kind = (
                    {"case": "power", "shift": shift, "size": amount}
                    if shift
                    else {"case": "false_alarms", "level": None}
                )
                rows.append(
                    {
                        **kind,
                        **{k: case[k] for k in ("rows", "reference")},
                        "column": column,
                        "way": "nannyml",
                        **rate(alarms),
                    }
                )
        print(f"drift: nannyml, windows of {size} rows", file=sys.stderr)
    return rows


def summary_of(rows: list[Row]) -> dict[str, float]:
    """The worst of ours, and what rivals do."""
    found: dict[str, float] = {}
    ours = [r for r in rows if r["case"] == "false_alarms" and r["way"] == "combined"]
    for level in LEVELS:
        mine = [r for r in ours if r["level"] == level]
        found[f"combined_{level}_most"] = max(r["rate"] for r in mine)
        found[f"combined_{level}_above"] = sum(r["low"] > level for r in mine)
        found[f"combined_{level}_cases"] = len(mine)
    for way in ("evidently", "nannyml"):
        mine = [r for r in rows if r["case"] == "false_alarms" and r["way"] == way]
        if mine:
            found[f"{way}_false_alarms_most"] = max(r["rate"] for r in mine)
    for row in rows:
        if row["case"] == "family":
            found[f"family_{row['way']}_{row['rows']}"] = row["rate"]
    return found


def main() -> None:
    options = arguments(__doc__ or "")
    count, powered = (400, 60) if options.quick else (2000, 200)
    tasks: list[Callable[[], list[Row]]] = []
    for size in SIZES:
        tasks += [partial(false_alarms, size, equal, count) for equal in (True, False)]
    tasks += [partial(family, size, count) for size in (100, 1000, 10_000)]
    tasks += [partial(power, shift, size, powered) for size in (100, 1000, 10_000) for shift in SHIFTS]
    rows = in_parts("drift", tasks)
    try:
        rows += theirs(options.quick)
    except Absent as error:
        print(f"drift: without NannyML: {error}", file=sys.stderr)
    report(rows, summary_of(rows), options.json)
    if options.json is not None:
        plot_drift(rows, options.json.with_suffix(".png"))


def in_parts(name: str, tasks: list[Callable[[], list[Row]]]) -> list[Row]:
    """The rows of all tasks, in their order, on all cores; tells how far it is."""
    rows: list[Row] = []
    began = time.monotonic()
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for done, found in enumerate(pool.map(_call, tasks), 1):
            rows += found
            print(f"{name}: {done} of {len(tasks)} parts, {time.monotonic() - began:.0f} s", file=sys.stderr)
    return rows


def _call(task: Callable[[], list[Row]]) -> list[Row]:
    return task()


if __name__ == "__main__":
    main()
