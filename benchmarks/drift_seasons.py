"""What a drift window is best compared with, on a year of New York's departures in windows of data time: the training
data (the first eight weeks) or the windows of a season before (`[model.drift] reference`). How many windows drift and
alarm in each column while nothing but the calendar and the weather changes; and, with a third of the distances in
kilometres from September on, how soon that alarms and for how long.

Goes through the server's own drift thread, with its defaults for alpha, effect and windows in a row.

usage: python benchmarks/drift_seasons.py [--quick] [--json FILE] [--data FLIGHTS.parquet]
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import logging
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from _harness import report
from trimtab._native import ColumnTable
from trimtab.kernels.cpu import CpuExecutor
from trimtab.kernels.fit_sketch import fit_sketch
from trimtab.kernels.program import ColumnProgram, Field
from trimtab.kernels.sketch import Sketch
from trimtab.kernels.slabs import arrays_from_arrow
from trimtab.server.drift import DriftWatch
from trimtab.server.events import EventBus
from trimtab.server.keeping import ClosedWindow
from trimtab.store.settings import DriftSettings
from trimtab.store.windows import window_starts

HOUR = 3_600_000_000
TRAINING, WATCHED, CHANGED = ("2013-01-01", "2013-03-04", "2013-09-02")
TYPES = {"day_of_week": "integer", "carrier": "string", "origin": "string", "dest": "string"}
REALS = ("sched_dep_minute", "sched_arr_minute", "distance", "temp", "dewp", "humid", "wind_speed", "pressure", "visib")
WEATHER = {"temp", "dewp", "humid", "wind_speed", "pressure", "visib"}
# Window, windows together, reference, seasons.
CASES = (
    ("6h", 1, "training", 1),
    ("6h", 1, "1d", 1),
    ("6h", 1, "7d", 1),
    ("6h", 1, "7d", 4),
    ("6h", 4, "7d", 1),
    ("6h", 4, "7d", 4),
    ("1d", 1, "training", 1),
    ("1d", 1, "7d", 1),
    ("1d", 1, "7d", 4),
)


def micros(day: str) -> int:
    """A day's beginning, µs UTC."""
    return int(datetime.datetime.fromisoformat(f"{day}T00:00:00+00:00").timestamp()) * 1_000_000


def rows_of(path: Path, changed: bool) -> tuple[pa.RecordBatch, np.ndarray[Any, np.dtype[np.int64]]]:
    """The flights' columns in order of time, and their times; with the change or without."""
    table = pq.read_table(path, columns=["time", *TYPES, *REALS])
    times = table["time"].cast(pa.int64()).to_numpy()
    distance = table["distance"].to_numpy().astype(np.float64)
    if changed:
        third = np.random.default_rng(0).random(len(times)) < 1 / 3
        distance[third & (times >= micros(CHANGED))] *= 1.609344
    columns = {name: table[name].cast(pa.int64() if kind == "integer" else pa.string()) for name, kind in TYPES.items()}
    columns |= {name: table[name].cast(pa.float32()) for name in REALS if name != "distance"}
    columns["distance"] = pa.chunked_array([pa.array(distance.astype(np.float32))])
    return pa.table(columns).combine_chunks().to_batches()[0], times


def windows_of(
    program: ColumnProgram, rows: pa.RecordBatch, times: np.ndarray[Any, np.dtype[np.int64]], length_us: int
) -> Iterator[tuple[int, Sketch]]:
    """(start, sketch) of each window."""
    executor = CpuExecutor(program)
    columns = ColumnTable(program.schema, arrays_from_arrow(rows, program.schema))
    starts = window_starts(times, length_us)
    cuts = [0, *(np.flatnonzero(np.diff(starts)) + 1).tolist(), len(starts)]
    for first, stop in pairwise(cuts):
        sketch = Sketch(program.sketch)
        executor.run(columns, sketch, first, stop)
        yield int(starts[first]), sketch


async def watched(folder: Path, settings: DriftSettings, path: Path, changed: bool) -> list[Any]:
    """The reports on all windows from WATCHED on."""
    rows, times = rows_of(path, changed)
    order = np.argsort(times, kind="stable")
    rows, times = rows.take(pa.array(order)), times[order]
    trained = rows.filter(pc.less(pa.array(times), micros("2013-02-26")))
    fields = [Field(name, kind) for name, kind in TYPES.items()] + [Field(name, "real") for name in REALS]
    program = fit_sketch(fields, [trained])
    usual = Sketch(program.sketch)
    table = ColumnTable(program.schema, arrays_from_arrow(trained, program.schema))
    CpuExecutor(program).run(table, usual)
    manifest = SimpleNamespace(files={"reference.arrow": "a"})
    version: Any = SimpleNamespace(number=1, manifest=manifest, reference=usual, scores=None, program=program)
    found: list[Any] = []
    watch = DriftWatch("flights", folder / "drift.jsonl", settings, EventBus(), found.append)
    for start, sketch in windows_of(program, rows, times, settings.window):
        watch.put(ClosedWindow(sketch, version, start, start + settings.window))
    await watch.settled()
    watch.close()
    return [one for one in found if one.start_us >= micros(WATCHED)]


def summed(reports: list[Any]) -> dict[str, Any]:
    """Shares of windows in which columns drift (once) and alarm."""
    drifted: Counter[str] = Counter()
    alarmed: Counter[str] = Counter()
    windows = len(reports)
    some: Counter[str] = Counter()
    for one in reports:
        hit = {feature.feature for feature in one.features if feature.persistence}
        loud = {feature.feature for feature in one.features if feature.alarm}
        drifted.update(hit)
        alarmed.update(loud)
        some.update({"drifts": bool(hit), "alarms": bool(loud), "alarms_not_weather": bool(loud - WEATHER)})
    return {
        "windows": windows,
        **{f"share_{name}": count / windows for name, count in some.items()},
        "alarms_by_column": {name: count / windows for name, count in alarmed.most_common()},
        "drifts_by_column": {name: count / windows for name, count in drifted.most_common()},
    }


def detection(reports: list[Any], window_us: int) -> dict[str, Any]:
    """When `distance` alarmed after the change, and in what share of windows of the first week and of the fifth."""
    at = micros(CHANGED)
    after = [one for one in reports if one.start_us >= at]
    alarms = [one.start_us for one in after if any(f.alarm and f.feature == "distance" for f in one.features)]

    def share(first: int, last: int) -> float:
        span = [one.start_us for one in after if first * 168 * HOUR <= one.start_us - at < last * 168 * HOUR]
        return sum(start in alarms for start in span) / max(len(span), 1)

    hours = (alarms[0] + window_us - at) / HOUR if alarms else None
    return {"hours_to_alarm": hours, "first_week": share(0, 1), "fifth_week": share(4, 5)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="windows of a day alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here")
    parser.add_argument("--data", type=Path, default=Path("build/demo/flights.parquet"), help="from `make demo`")
    options = parser.parse_args()
    logging.getLogger("trimtab").setLevel(logging.ERROR)
    rows, summary = [], {}
    for window, sliding, reference, seasons in CASES:
        if options.quick and window != "1d":
            continue
        case = {"window": window, "sliding": sliding, "reference": reference, "seasons": seasons}
        settings = DriftSettings.model_validate({**case, "window_rows": 100})
        result: dict[str, Any] = dict(case)
        for changed in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                found = asyncio.run(watched(Path(folder), settings, options.data, changed))
            result |= {"change": detection(found, settings.window)} if changed else summed(found)
        rows.append(result)
        name = f"{sliding} x {window} against {reference}{f' x {seasons}' if seasons > 1 else ''}"
        print(f"drift_seasons: {name}: {result}", file=sys.stderr)
        summary[f"{name}: alarm share"] = result["share_alarms_not_weather"]
        if result["change"]["hours_to_alarm"] is not None:
            summary[f"{name}: hours to alarm"] = result["change"]["hours_to_alarm"]
        summary[f"{name}: first week"] = result["change"]["first_week"]
    report(rows, summary, options.json)


if __name__ == "__main__":
    main()
