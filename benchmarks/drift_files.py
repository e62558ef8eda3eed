"""`trimtab drift` on files larger than caches: two Parquet files of float32 columns, fifty of which are shifted in
the second, compared as a process of its own, beside reading the same bytes and nothing else (the reference is read
twice).

Default: 2 x 1.5 million rows of 1,000 columns, 12 GB (`--quick`: a tenth), written to --folder, kept for the next run.

usage: python benchmarks/drift_files.py [--quick] [--json FILE] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from _harness import quantiles, report

COLUMNS, CHUNK, SHIFTED = 1000, 30_000, 50
NAMES = [f"x{i}" for i in range(COLUMNS)]
READ = """
import sys, pyarrow.parquet as pq
for path in sys.argv[1:]:
    with pq.ParquetFile(path, pre_buffer=False) as file:
        for batch in file.iter_batches(65536, use_threads=True):
            pass
"""


def write(path: Path, rows: int, seed: int, shift: float) -> None:
    """Uncompressed and without dictionaries, which random numbers do not need; a chunk at a time."""
    schema = pa.schema([(name, pa.float32()) for name in NAMES])
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for position in range(0, rows, CHUNK):
            count = min(CHUNK, rows - position)
            rng = np.random.default_rng([seed, position])
            values = rng.standard_normal((COLUMNS, count), dtype=np.float32)
            values[:SHIFTED] += np.float32(shift)
            columns = [pa.Array.from_buffers(pa.float32(), count, [None, pa.py_buffer(one.data)]) for one in values]
            writer.write_batch(pa.record_batch(columns, schema=schema), row_group_size=CHUNK)
            print(f"drift_files: {path.name}, {position + count:,} of {rows:,} rows", file=sys.stderr)


def timed(command: list[str]) -> dict[str, Any]:
    """Wall and CPU seconds and the peak of memory of a process, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": wall, "cpu_s": cpu, "peak_mib": after.ru_maxrss / 1024, "said": done.stdout}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here")
    folder = Path(tempfile.gettempdir()) / "trimtab-drift-files"
    parser.add_argument("--folder", type=Path, metavar="DIR", default=folder, help="where the files lie")
    options = parser.parse_args()
    rows = 150_000 if options.quick else 1_500_000
    options.folder.mkdir(parents=True, exist_ok=True)
    files = [options.folder / f"{name}-{rows}.parquet" for name in ("reference", "current")]
    for seed, (path, shift) in enumerate(zip(files, (0.0, 0.2), strict=True)):
        if not path.exists():
            write(path.with_suffix(".part"), rows, seed, shift)
            path.with_suffix(".part").rename(path)
    ours = [sys.executable, "-m", "trimtab.cli", "drift", *map(str, files), "--json", "--min-effect", "0.02"]
    reading = [sys.executable, "-c", READ, str(files[0]), *map(str, files)]
    found: dict[str, list[dict[str, Any]]] = {"read": [], "drift": []}
    for turn in range(3):
        for way, command in (("read", reading), ("drift", ours)):
            found[way].append(timed(command))
            print(f"drift_files: {way}, round {turn + 1} of 3, {found[way][-1]['wall_s']:.1f} s", file=sys.stderr)
    features = json.loads(found["drift"][0]["said"])["features"]
    drifted = {one["feature"] for one in features if one["drifted"]}
    if drifted != set(NAMES[:SHIFTED]):
        raise SystemExit(f"drift_files: expected {SHIFTED} drifted columns, found {len(drifted)}")
    result = []
    for way, runs in found.items():
        times = quantiles([run["wall_s"] for run in runs], "s")
        cpu = sorted(run["cpu_s"] for run in runs)[1]
        result.append({"case": way, "rows": 2 * rows, "columns": COLUMNS, "time": times, "cpu_s": cpu})
    read, drift = (float(row["time"]["p50"]) for row in result)
    gigabytes = sum(path.stat().st_size for path in files) / 1e9
    summary = {
        "file_gb": gigabytes, "read_s": read, "drift_s": drift, "statistics_s": drift - read,
        "drift_vs_read": drift / read,
        "peak_mib": max(run["peak_mib"] for run in found["drift"]), "cores": float(len(os.sched_getaffinity(0))),
    }  # fmt: skip
    report(result, summary, options.json)


if __name__ == "__main__":
    main()
