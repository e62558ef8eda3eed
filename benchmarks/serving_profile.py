"""Where each microsecond of a request goes: perf's samples of a busy server, by thread and by what it was doing.

A server as in benchmarks/serving.py on one core, a closed loop of the generator on another, `perf record` beside it.
A share of samples times the CPU time that a request takes (from /proc) is what a part costs; nothing else is added up,
so the parts of a table sum to that time. Needs Linux's perf, and a native module with symbols:

    pip install --no-build-isolation --no-deps -e . -Cinstall.strip=false

(without them all of our own native code is one part).

usage: python benchmarks/serving_profile.py [--quick] [--json FILE]
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from _bench import Bench
from _harness import arguments, report
from _servers import make_project, trimtab
from _throughput import TUNED

HERTZ = 4000
# Rows of a request, calls at once.
LOADS = ((1, 512), (64, 512), (1, 1))
IO, COMPUTE, OTHER = "I/O", "compute", "captures, drift"
# (library, symbol) → what it is, first match. Threads: I/O threads have names of their own; see thread_of.
PARTS: dict[str, list[tuple[str, str, str]]] = {
    IO: [
        (r"kernel", r"", "kernel: sockets, wake-ups, scheduling"),
        (r"nghttp2", r"", "HTTP/2: nghttp2"),
        (r"ssl|crypto", r"", "TLS"),
        (r"_native", r"Http2Memory|FrameMeter|Http2Meter", "HTTP/2: nghttp2"),
        (r"_native", r"Infer|Parser|check_|parse_|Rows|RequestedOutput|OutputForm|wire", "decode and check"),
        (r"_native", r"Hub|BatchQueue|BatchTimes|Model::", "admit to the queue"),
        (r"_native", r"", "gRPC: calls, messages, answers"),
        (r"", r"", "memory (libc, libstdc++)"),
    ],
    COMPUTE: [
        (r"kernel", r"", "kernel: wake-ups, memory"),
        (r"_native", r"columns|hot::|CompiledProgram|sketch_|field|bins", "columns and sketch"),
        (
            r"_native",
            r"packed|Slab|Hub::(take|read|decide)|BatchQueue|request_ids",
            "take the batch, rows into the slab",
        ),
        (r"_native", r"Answer|Hub::|Statistics|Histogram|Origin|IoThread", "encode and deliver the answers"),
        (r"_native", r"", "other native code of ours, pybind11"),
        (r"torch_cpu|c10|JIT|mkl|gomp|perf-\d+", r"", "forward pass"),
        (r"python|torch_python|umath|numpy", r"", "Python, NumPy"),
        (r"", r"", "memory (libc, libstdc++)"),
    ],
    OTHER: [(r"", r"", "all of it")],
}
LINE = re.compile(r"^\s*(?P<comm>.+?)\s+(?P<tid>\d+)\s+[0-9a-f]+ (?P<symbol>.*) \((?P<library>.*)\)$")


def part_of(thread: str, library: str, symbol: str) -> str:
    """What code was doing."""
    return next(what for lib, sym, what in PARTS[thread] if re.search(lib, library) and re.search(sym, symbol))


def threads_of(samples: list[tuple[str, int, str, str]]) -> dict[int, str]:
    """What each thread is: I/O threads by their name, the compute thread because it alone runs the model."""
    models = Counter(tid for _, tid, library, _ in samples if re.search("torch_cpu|JIT", library))
    compute = models.most_common(1)[0][0] if models else -1
    return {
        tid: IO if comm.startswith("trimtab-io") else COMPUTE if tid == compute else OTHER
        for comm, tid, _, _ in samples
    }


def profile(bench: Bench, rows: int, concurrency: int, seconds: float) -> list[dict[str, Any]]:
    """A row for each part."""
    server = bench.servers["trimtab"]
    bench.closed(server, rows, 1.0, concurrency)
    data = bench.folder / "perf.data"
    words = ["perf", "record", "-q", "-F", str(HERTZ), "-p", str(server.process.pid), "-o", str(data)]
    recording = subprocess.Popen([*words, "--", "sleep", str(seconds)], stderr=subprocess.DEVNULL)
    result, cpu = bench.closed(server, rows, seconds, concurrency)
    recording.wait()
    script = ["perf", "script", "-i", str(data), "-F", "comm,tid,ip,sym,dso"]
    text = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    found = [match for line in text.splitlines() if (match := LINE.match(line))]
    samples = [(m["comm"], int(m["tid"]), m["library"], m["symbol"]) for m in found]
    threads = threads_of(samples)
    parts = Counter((threads[tid], part_of(threads[tid], library, symbol)) for _, tid, library, symbol in samples)
    where = {"rows": rows, "concurrency": concurrency}
    bench.summary[f"rows{rows}_at{concurrency}_per_s"] = result.rate
    bench.summary[f"rows{rows}_at{concurrency}_cpu_us"] = cpu
    return [
        {"case": "profile", **where, "thread": thread, "part": part, "us": cpu * count / len(samples)}
        for (thread, part), count in sorted(parts.items(), key=lambda item: (list(PARTS).index(item[0][0]), -item[1]))
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line for each part, a column for each load; µs of a request's CPU time."""
    loads = list(dict.fromkeys((row["rows"], row["concurrency"]) for row in rows))
    heads = [f"{size} row{'s' if size > 1 else ''}, {level} at once" for size, level in loads]
    lines = ["| thread | part | " + " | ".join(heads) + " |", "|---|---|" + "---|" * len(loads)]
    cells = {(row["thread"], row["part"], row["rows"], row["concurrency"]): row["us"] for row in rows}
    for thread, part in dict.fromkeys((row["thread"], row["part"]) for row in rows):
        values = [f"{cells.get((thread, part, *load), 0.0):.2f}" for load in loads]
        lines.append(f"| {thread} | {part} | " + " | ".join(values) + " |")
    totals = [sum(row["us"] for row in rows if (row["rows"], row["concurrency"]) == load) for load in loads]
    lines.append("| | all | " + " | ".join(f"{total:.2f}" for total in totals) + " |")
    return "\n".join(lines)


def main() -> int:
    """The exit code."""
    options = arguments(str(__doc__))
    if shutil.which("perf") is None:
        print("expected Linux's perf on the PATH (Debian: apt install linux-perf), found none", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="trimtab-profile-") as temporary:
        bench = Bench(Path(temporary), options.quick)
        try:
            bench.up("trimtab", lambda: trimtab("trimtab", make_project(bench.folder / "trimtab", sections=TUNED)))
            for rows, concurrency in LOADS:
                bench.say(f"{rows} rows, {concurrency} at once")
                bench.rows += profile(bench, rows, concurrency, 1.5 if options.quick else 5.0)
        finally:
            bench.close()
    print(file=sys.stderr)
    print(table(bench.rows))
    report(bench.rows, bench.summary, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
