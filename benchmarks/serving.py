"""Serving, against its peers and its limits, on one core.

Servers, each a process on the first core; the load generator (native/load.cpp, ours) has the last one:

- trimtab: `trimtab serve` with 32 real columns (impute, standardise), an MLP 32 → 128 → 1, drift on, captures on at
  their cap, batches of at most 4096 rows (by default 1024);
- entry: the same with the network as a module of the user's own;
- triton: NVIDIA Triton 2.51, Python backend, a torch MLP 32 → 128 → 1, at the batching settings and the concurrency
  that serve it best; mlserver: the same network; aio_echo: an empty handler on grpc.aio;
- echo: our front's own empty echo, what the transport alone costs; loop1, loop64: the front and the network with
  nothing else: one memcpy of a request's rows, one forward pass, one memcpy of the answer.

Cases, in order; in each the servers take turns, round by round:

  sweep      closed loops of 1 to 512 calls at once and 1 to 512 rows
  capacity   the best concurrency of each: rows*_vs_triton, _vs_echo, _vs_loop, captured_fraction,
             sketched_fraction
  open       Poisson arrivals at 30, 60, 90 % of each one's capacity; latency from the intended start
  equal      the same arrivals to Trimtab and Triton, 60 % of Triton's capacity: p99_vs_triton
  single     one client, one request at a time: p50_vs_triton
  sketching  the drift sketch on against off, at 1 and 64 rows: sketch_rows*
  tls, unix  what TLS and Unix sockets change; threads: two I/O threads
  swap       1,000 swaps at 60 % load: swap_failed, swap_mixed, swap_gap_ms
  overload   three times capacity: overload_goodput
  refusal    a refusal beside 50 ms forward passes
  trainer    p99 beside a trainer that fits: trainer_p99_ratio
  soak       only with --soak: memory and descriptors over that many requests; exit code 1 where they are not flat, or
             a request failed

Ratios are medians of pairs of one round, with a bootstrap 95 % interval (rows with case "ratio"). Rows carry the
generator's own lateness and busy share: where late_us_p99 is large, the generator set the latencies.
`cpu_us_per_request` is the server's CPU time, which a noisy machine changes least. The generator spins before it
sleeps: two cores must be free.

usage: python benchmarks/serving.py [--quick] [--json FILE] [--only CASE,CASE] [--plot FILE.png] [--soak REQUESTS]
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import _cases
import _throughput
from _bench import Bench
from _harness import report
from _load import generator
from _plot import plot

CASES: dict[str, Callable[[Bench], None]] = {
    "sweep": _throughput.sweep,
    "capacity": _throughput.capacity,
    "open": _throughput.open_loop,
    "equal": _throughput.equal_load,
    "single": _throughput.single,
    "sketching": _throughput.sketching,
    "tls": _throughput.tls,
    "unix": _throughput.unix,
    "threads": _throughput.threads,
    "swap": _cases.swap,
    "overload": _cases.overload,
    "refusal": _cases.refusal,
    "trainer": _cases.trainer,
}


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter cases; ends within three minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it (default: beside the JSON)")
    parser.add_argument("--only", metavar="CASES", help=f"of {','.join(CASES)}")
    parser.add_argument("--soak", type=int, metavar="REQUESTS", help="send so many requests at the end")
    options = parser.parse_args()
    chosen = options.only.split(",") if options.only else [] if options.soak else list(CASES)
    if unknown := set(chosen) - set(CASES):
        parser.error(f"no case {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    cases = {name: CASES[name] for name in chosen}
    if options.soak:
        cases["soak"] = partial(_cases.soak, requests=options.soak)
    # Servers are stopped also where this is told to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    generator()
    with tempfile.TemporaryDirectory(prefix="trimtab-serving-") as temporary:
        bench = Bench(Path(temporary), options.quick)
        try:
            for position, (name, case) in enumerate(cases.items()):
                bench.step = f"{position + 1}/{len(cases)} {name}:"
                try:
                    case(bench)
                except Exception as error:
                    # What the other cases found is worth having.
                    print(f"\n{name} failed: {type(error).__name__}: {error}", file=sys.stderr)
                    bench.rows.append({"case": name, "error": f"{type(error).__name__}: {error}"})
        finally:
            bench.close()
    bench.summary.pop("triton_tuned", None)
    bench.rows += [{"case": "absent", "server": name, "reason": reason} for name, reason in bench.absent.items()]
    print(file=sys.stderr)
    report(bench.rows, bench.summary, options.json)
    picture = options.plot or (options.json.with_suffix(".png") if options.json else None)
    if picture is not None:
        plot(bench.rows, picture)
        print(f"drawn: {picture}")
    return 1 if options.soak and not bench.summary.get("soak_holds") else 0


if __name__ == "__main__":
    sys.exit(main())
