"""Cases that compare speed: closed and open loops, one client, and what TLS, Unix sockets and threads change."""

from __future__ import annotations

import statistics
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

from _bench import Bench
from _load import Result, cores
from _servers import Server, body, front, make_project, peer, trimtab
from peers.triton import SETTINGS

SIZES = (1, 8, 64, 512)
TRIAL = 0.3
# Peers have their best settings, so we have ours: fuller batches than by default, for requests of many rows.
TUNED = "[model.batching]\nmax_batch_size = 4096\n"
# Each starts a process that imports torch: --quick has time for one.
QUICK_SETTINGS = ("m512d0",)


def start_all(bench: Bench, *names: str) -> None:
    """Starts those of the compared servers that are named; see the benchmark's docstring for what each is."""
    folder = bench.folder
    makers = {
        "trimtab": lambda: trimtab("trimtab", make_project(folder / "trimtab", sections=TUNED)),
        "entry": lambda: trimtab("entry", make_project(folder / "entry", entry=True, sections=TUNED)),
        "echo": lambda: front("echo", folder / "echo", "--echo"),
        "loop1": lambda: front("loop1", folder / "loop1", "--loop", "1"),
        "loop64": lambda: front("loop64", folder / "loop64", "--loop", "64"),
        "triton": lambda: peer("triton", folder, QUICK_SETTINGS if bench.quick else tuple(SETTINGS)),
        "aio_echo": lambda: peer("aio_echo", folder),
        "mlserver": lambda: peer("mlserver", folder),
    }
    for name in names:
        server = bench.up(name, makers[name])
        if server is not None and name == "triton" and "triton_tuned" not in bench.summary:
            tune(bench, server)


def tune(bench: Bench, server: Server) -> None:
    """Gives Triton, for each request size, the settings and concurrency that serve it best."""
    bench.summary["triton_tuned"] = 1.0
    for rows in SIZES:
        offered = QUICK_SETTINGS if bench.quick else SETTINGS
        models = [name for name in offered if SETTINGS[name][0] >= rows]
        bodies = {name: body(bench.folder, name, rows, "IN") for name in models}
        rates = dict.fromkeys(models, 0.0)
        for _ in range(1 if bench.quick else 2):
            for name in models:
                server.bodies[rows] = bodies[name]
                rates[name] = max(rates[name], bench.closed(server, rows, TRIAL, 128)[0].rate)
        chosen = max(rates, key=lambda name: rates[name])
        server.bodies[rows] = bodies[chosen]
        bench.rows.append({"case": "tuning", "server": "triton", "rows": rows, "chosen": chosen, "rates": rates})
        bench.say(f"triton, {rows} rows: {chosen}")


def sweep(bench: Bench) -> None:
    """Closed loops over concurrency and rows; what comes out best is used from here on."""
    start_all(bench, "trimtab", "echo", "triton")
    levels = (1, 128, 512) if bench.quick else (1, 8, 32, 128, 512)
    sizes = (1, 64) if bench.quick else SIZES
    names = [name for name in ("trimtab", "echo", "triton") if name in bench.servers]
    seconds = 0.3 if bench.quick else 0.6
    total, done = len(sizes) * len(levels) * len(names), 0
    for rows in sizes:
        rates: dict[str, dict[int, float]] = {name: {} for name in names}
        for level in levels:
            for name in names:
                result = bench.closed(bench.servers[name], rows, seconds, level)
                bench.add("closed", name, [result], rows=rows, concurrency=level)
                rates[name][level] = result[0].rate
                done += 1
                bench.say(f"{name}, {rows} rows, {level} at once: {result[0].rate:.0f}/s", done / total)
        for name in names:
            bench.best[name, rows] = max(rates[name], key=lambda level: rates[name][level])


def best(bench: Bench, name: str, rows: int) -> int:
    """The concurrency at which the server does most, looked for where the sweep has not."""
    if (name, rows) not in bench.best:
        levels = (128, 512)
        rates = {level: bench.closed(bench.servers[name], rows, TRIAL, level)[0].rate for level in levels}
        bench.best[name, rows] = max(rates, key=lambda level: rates[level])
    return bench.best[name, rows]


def capacity(bench: Bench) -> None:
    """Each server at its best concurrency, all in turn, round by round: the ratios of the summary."""
    names = ["trimtab", "entry", "triton", "echo", "loop1", "loop64", "aio_echo", "mlserver"]
    if bench.quick:
        names = [name for name in names if name not in ("mlserver", "entry")]
    start_all(bench, *names)
    rounds, seconds = (3, 0.5) if bench.quick else (8, 1.0)
    slow = {"aio_echo", "mlserver"}
    found: dict[tuple[str, int], list[tuple[Result, float]]] = {}
    for turn in range(rounds):
        for rows in (1, 64):
            for name in ("trimtab", "entry", "triton", "echo", f"loop{rows}", "aio_echo", "mlserver"):
                if name not in bench.servers or (name in slow and turn >= 3):
                    continue
                level = 128 if name in slow else best(bench, name, rows)
                found.setdefault((name, rows), []).append(bench.closed(bench.servers[name], rows, seconds, level))
        bench.say(f"round {turn + 1} of {rounds}", (turn + 1) / rounds)
    for (name, rows), results in found.items():
        bench.add("capacity", name, results, rows=rows, concurrency=bench.best.get((name, rows), 128))
        bench.summary[f"{name}_rows{rows}_per_s"] = statistics.median(result.rate for result, _ in results) * rows

    def compare(name: str, rows: int, ours: str, theirs: str) -> None:
        pairs = zip(found.get((ours, rows), []), found.get((theirs, rows), []), strict=False)
        bench.ratio(name, [(a[0].rate, b[0].rate) for a, b in pairs])

    for rows in (1, 64):
        compare(f"rows{rows}_vs_triton", rows, "trimtab", "triton")
        compare(f"rows{rows}_vs_echo", rows, "trimtab", "echo")
        compare(f"rows{rows}_vs_loop", rows, "trimtab", f"loop{rows}")
        compare(f"rows{rows}_vs_mlserver", rows, "trimtab", "mlserver")
        compare(f"entry_rows{rows}_vs_triton", rows, "entry", "triton")
    captured(bench)


def captured(bench: Bench) -> None:
    """The share of the rows served so far that was kept, and that was counted in drift windows; the caps are 20,000 and
    100,000 rows a second."""
    counts = bench.servers["trimtab"].metrics()
    kept = counts.get("trimtab_captured_rows_total", 0.0)
    lost = counts.get("trimtab_capture_dropped_rows_total", 0.0)
    left = counts.get("trimtab_capture_sampled_out_rows_total", 0.0)
    if kept + lost + left > 0:
        bench.summary["captured_fraction"] = kept / (kept + lost + left)
    sketched, unsketched = (counts.get(f"trimtab_drift_{name}_total", 0.0) for name in ("rows", "left_out_rows"))
    if sketched + unsketched > 0:
        bench.summary["sketched_fraction"] = sketched / (sketched + unsketched)


def per_second(bench: Bench, name: str, rows: int = 1) -> float:
    """The server's capacity: the best run so far, or one now."""
    known = bench.summary.get(f"{name}_rows{rows}_per_s")
    if known:
        return known / rows
    return bench.closed(bench.servers[name], rows, 0.6, best(bench, name, rows))[0].rate


def open_loop(bench: Bench) -> None:
    """Poisson arrivals at 30, 60 and 90 % of what each server can do."""
    start_all(bench, "trimtab", "echo", "triton")
    rounds, seconds = (1, 1.0) if bench.quick else (3, 2.0)
    names = [name for name in ("trimtab", "triton", "echo") if name in bench.servers]
    rates = {name: per_second(bench, name) for name in names}
    found: dict[tuple[str, int], list[tuple[Result, float]]] = {}
    for turn in range(rounds):
        for share in (30, 60, 90):
            for name in names:
                rate = rates[name] * share / 100
                result = bench.measure(bench.servers[name], 1, seconds, rate=rate, connections=8, seed=turn + 1)
                found.setdefault((name, share), []).append(result)
                bench.say(f"{name} at {share} %: p99 {result[0].latency['p99']:.0f} us", (turn + 0.5) / rounds)
    for (name, share), results in found.items():
        bench.add("open", name, results, rows=1, share=share, offered=rates[name] * share / 100)


def equal_load(bench: Bench) -> None:
    """The same arrivals to Trimtab and to Triton: 60 % of what Triton can do."""
    start_all(bench, "trimtab", "triton")
    if "triton" not in bench.servers:
        return
    pairs, seconds = (8, 0.5) if bench.quick else (20, 1.0)
    rate = 0.6 * per_second(bench, "triton")
    found: dict[str, list[tuple[Result, float]]] = {"trimtab": [], "triton": []}
    for turn in range(pairs):
        order = list(found) if turn % 2 else list(found)[::-1]
        for name in order:
            options: dict[str, Any] = {"rate": rate, "connections": 8, "seed": turn + 1}
            found[name].append(bench.measure(bench.servers[name], 1, seconds, **options))
        bench.say(f"pair {turn + 1} of {pairs} at {rate:.0f}/s", (turn + 1) / pairs)
    for name, results in found.items():
        bench.add("equal load", name, results, rows=1, offered=rate)
    both = list(zip(found["trimtab"], found["triton"], strict=True))
    for q in ("p50", "p99"):
        bench.ratio(f"{q}_vs_triton_equal_load", [(a[0].latency[q], b[0].latency[q]) for a, b in both])
    bench.ratio("p99_vs_triton", [(a[0].latency["p99"], b[0].latency["p99"]) for a, b in both])


def single(bench: Bench) -> None:
    """One client that sends its next request when it has its answer."""
    start_all(bench, "trimtab", "triton", "echo")
    pairs, seconds = (8, 0.25) if bench.quick else (20, 0.4)
    names = [name for name in ("trimtab", "triton", "echo") if name in bench.servers]
    found: dict[str, list[tuple[Result, float]]] = {name: [] for name in names}
    for turn in range(pairs):
        for name in names if turn % 2 else names[::-1]:
            found[name].append(bench.closed(bench.servers[name], 1, seconds, 1))
        bench.say(f"round {turn + 1} of {pairs}", (turn + 1) / pairs)
    for name, results in found.items():
        bench.add("single", name, results, rows=1, concurrency=1)
    if "triton" in found:
        both = zip(found["trimtab"], found["triton"], strict=True)
        bench.ratio("p50_vs_triton", [(a[0].latency["p50"], b[0].latency["p50"]) for a, b in both])


def _pairs(
    bench: Bench, name: str, changed: Server, plain: Server, rounds: int, seconds: float, level: int, rows: int = 1
) -> None:
    """The rate of one server against that of another, in turn."""
    found: list[tuple[tuple[Result, float], tuple[Result, float]]] = []
    for turn in range(rounds):
        found.append((bench.closed(changed, rows, seconds, level), bench.closed(plain, rows, seconds, level)))
        bench.say(f"{name}, pair {turn + 1} of {rounds}", (turn + 1) / rounds)
    bench.add(name, changed.name, [a for a, _ in found], rows=rows, concurrency=level)
    bench.add(name, plain.name, [b for _, b in found], rows=rows, concurrency=level)
    bench.ratio(name, [(a[0].rate, b[0].rate) for a, b in found])
    bench.ratio(f"{name}_cpu", [(a[1], b[1]) for a, b in found])


def sketching(bench: Bench) -> None:
    """Trimtab with the drift sketch against Trimtab without, at 1 and at 64 rows."""
    start_all(bench, "trimtab")
    project = partial(make_project, bench.folder / "unwatched", sections=TUNED + "[model.drift]\nenabled = false\n")
    server = bench.up("trimtab_unwatched", lambda: trimtab("trimtab_unwatched", project()))
    if server is not None:
        rounds, seconds = (3, 0.5) if bench.quick else (12, 1.0)
        for rows, level in ((1, 512), (64, 128)):
            _pairs(bench, f"sketch_rows{rows}", bench.servers["trimtab"], server, rounds, seconds, level, rows)
        bench.down("trimtab_unwatched")


def tls(bench: Bench) -> None:
    """Trimtab with TLS 1.3 against Trimtab without."""
    start_all(bench, "trimtab")
    server = bench.up("trimtab_tls", lambda: with_tls(bench.folder))
    if server is not None:
        rounds, seconds = (3, 0.5) if bench.quick else (8, 1.0)
        _pairs(bench, "tls_vs_plain", server, bench.servers["trimtab"], rounds, seconds, 128)
        bench.down("trimtab_tls")


def with_tls(folder: Path, server_settings: str = "") -> Server:
    """A server with a certificate of its own, and these further settings of [server]."""
    place = folder / "tls"
    settings = server_settings + '[security]\ntls_certificate = "cert.pem"\ntls_key = "key.pem"'
    folder.mkdir(parents=True, exist_ok=True)
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    words += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    words += ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run(words, check=True, capture_output=True)
    project = make_project(place, server=settings, sections=TUNED, files=(folder / "key.pem", folder / "cert.pem"))
    server = trimtab("trimtab_tls", project)
    server.tls = True
    return server


def unix(bench: Bench) -> None:
    """The front's echo over a Unix socket against TCP."""
    start_all(bench, "echo")
    address = f"unix:{bench.folder / 'echo.sock'}"
    server = bench.up("echo_unix", lambda: front("echo_unix", bench.folder / "unix", "--echo", "--address", address))
    if server is not None:
        rounds, seconds = (3, 0.4) if bench.quick else (8, 0.8)
        _pairs(bench, "unix_vs_tcp", server, bench.servers["echo"], rounds, seconds, 128)
        bench.down("echo_unix")


def threads(bench: Bench) -> None:
    """The echo with two I/O threads against one.

    With three cores or more the load has one of its own and the ratio of rates is the scaling. With two, the load
    shares the second one, so what is reported is CPU time per request: were it the same with two threads as with one,
    two cores would do twice as much. `threads2_scaling_estimate` is 2 × that ratio; it leaves out what memory and
    caches would cost two cores that both run at full speed.
    """
    start_all(bench, "echo")
    server_core, load_core = cores()
    usable = load_core - server_core + 1
    second = server_core + 1
    words = ("--echo", "--threads", "2")
    server = bench.up("echo2", lambda: front("echo2", bench.folder / "echo2", *words, core=f"{server_core},{second}"))
    if server is None:
        return
    rounds, seconds = (3, 0.5) if bench.quick else (6, 1.0)
    one: list[tuple[Result, float]] = []
    two: list[tuple[Result, float]] = []
    for turn in range(rounds):
        one.append(bench.measure(bench.servers["echo"], 1, seconds, connections=16, streams=32))
        two.append(bench.measure(server, 1, seconds, connections=16, streams=32))
        bench.say(f"pair {turn + 1} of {rounds}", (turn + 1) / rounds)
    bench.add("threads", "echo", one, rows=1, concurrency=512, threads=1)
    bench.add("threads", "echo2", two, rows=1, concurrency=512, threads=2)
    pairs = list(zip(one, two, strict=True))
    if usable >= 3:
        bench.ratio("threads2_vs_1", [(b[0].rate, a[0].rate) for a, b in pairs])
    else:
        bench.ratio("threads2_scaling_estimate", [(2 * a[1], b[1]) for a, b in pairs])
    bench.down("echo2")
