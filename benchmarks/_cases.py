"""Cases about what must not happen: swaps that fail or mix, overload that starves, refusals that wait, a trainer that
slows serving down, memory that grows."""

from __future__ import annotations

import signal
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np
from _bench import Bench, interval
from _load import Result, Target, cores, finish, run, shape, start
from _servers import HERE, MODEL, body, make_project, trimtab
from _throughput import per_second, start_all
from trimtab.client.admin import AdminClient

SWAPS_PER_S = 50.0
GROWTH = 0.03
"""Share of its memory by which a server may be larger late in a soak than early: segments of captures come and go."""
SOCKETS = 4
"""Descriptors by which it may have more."""


def swap(bench: Bench) -> None:
    """Swaps between two versions, SWAPS_PER_S, while 8-row requests come at 60 % of capacity; every answer is read, and
    must carry the outputs of the version that it names. A run without swaps before it gives the gap that the machine
    makes. (As fast as they go, some 250 a second, swaps take the core that they share with serving.)"""
    project_of = lambda: trimtab("swap", make_project(bench.folder / "swap", versions=2))  # noqa: E731
    server = bench.up("swap", project_of)
    if server is None:
        return
    wanted = 100 if bench.quick else 1000
    with AdminClient(server.ready["admin"]) as admin:
        for number in (2, 1, 2, 1):
            admin.promote(MODEL, number)
        rate = 0.6 * bench.closed(server, 8, 0.6, 128)[0].rate
        options: dict[str, Any] = {"rate": rate, "connections": 8, "check_every": 1}
        control = run(server.target(8), seconds=3.0, **options)
        seconds = wanted / SWAPS_PER_S + 1.5
        load = start(server.target(8), seconds=seconds, **options)
        time.sleep(0.4)
        began, done = time.monotonic(), 0
        while done < wanted and time.monotonic() - began < seconds - 0.6:
            admin.promote(MODEL, 2 - done % 2)
            done += 1
            time.sleep(max(0.0, began + done / SWAPS_PER_S - time.monotonic()))
            if done % 50 == 0:
                bench.say(f"{done} of {wanted}", done / wanted)
        took = time.monotonic() - began
        result = finish(load)
    raw = result.raw
    bench.add("swap", "trimtab", [(result, 0.0)], rows=8, offered=rate, swaps=done, swaps_per_s=done / took)
    bench.rows[-1]["answers_by_version"] = {name: each["count"] for name, each in raw["versions"].items()}
    bench.rows[-1]["gap_ms_without_swaps"] = control.raw["gap_ms"]
    bench.summary.update(
        {
            "swaps": done,
            "swap_failed": result.failed,
            "swap_failed_without": control.failed,
            "swap_mixed": raw["mixed"] + raw["unreadable"],
            "swap_gap_ms": raw["gap_ms"],
            "swap_gap_ms_without": control.raw["gap_ms"],
        }
    )
    bench.down("swap")


def overload(bench: Bench) -> None:
    """Three times what can be computed, in open loops.

    `overload_goodput`: a model whose forward pass takes 8 ms and at most 64 rows (8,000/s at most), answers a second
    against its own closed-loop capacity; `_deadline`: the same when calls have 100 ms. `overload_tiny`: the usual
    model; the p99 of accepted requests in the last third against the first third, and memory before and after.
    """
    seconds = 2.0 if bench.quick else 5.0
    sections = "[model.batching]\nmax_batch_size = 64\n"
    make = lambda: trimtab("slow", make_project(bench.folder / "slow", slow_ms=8.0, sections=sections))  # noqa: E731
    server = bench.up("slow", make)
    if server is not None:
        can = bench.closed(server, 1, 1.0, 256)[0].rate
        for name, timeout in (("overload_goodput", None), ("overload_goodput_deadline", "100m")):
            result, used = bench.measure(
                server, 1, seconds, rate=3 * can, connections=8, timeout=timeout, warm_up=1.0, slice=0.5, shed=True
            )
            bench.add(name, "slow", [(result, used)], rows=1, offered=3 * can, capacity=can)
            again = bench.closed(server, 1, 1.0, 256)[0].rate
            bench.summary[name] = result.rate / ((can + again) / 2)
            bench.say(f"{name}: {result.rate / can:.2f} of {can:.0f}/s")
        bench.down("slow")
    start_all(bench, "trimtab")
    tiny = bench.servers["trimtab"]
    can = per_second(bench, "trimtab")
    before = tiny.memory()
    load = start(tiny.target(1), seconds=seconds * 2, rate=3 * can, connections=8, warm_up=1.0, slice=0.25, shed=True)
    most = before
    while load.poll() is None:
        most = max(most, tiny.memory())
        time.sleep(0.1)
    result = finish(load)
    bench.add("overload_tiny", "trimtab", [(result, 0.0)], rows=1, offered=3 * can, capacity=can)
    slices = [each["p99_us"] for each in result.raw["slices"] if each["ok"]]
    bench.rows[-1]["slices"] = result.raw["slices"]
    third = max(len(slices) // 3, 1)
    if slices:
        bench.summary["overload_tiny_p99_ms"] = result.latency["p99"] / 1e3
        drifted = statistics.median(slices[-third:]) / max(statistics.median(slices[:third]), 1.0)
        bench.summary["overload_tiny_p99_last_vs_first"] = drifted
    bench.summary["overload_tiny_goodput"] = result.rate / can
    bench.summary["overload_tiny_memory_mb"] = (most - before) / 1e6


def refusal(bench: Bench) -> None:
    """How long a refusal takes (a model that there is none of) while forward passes of 50 ms keep the core busy."""
    make = lambda: trimtab("busy", make_project(bench.folder / "busy", slow_ms=50.0, burn=True))  # noqa: E731
    server = bench.up("busy", make)
    if server is None:
        return
    seconds = 2.0 if bench.quick else 5.0
    nobody = Target(server.address, body(bench.folder, "nobody", 1, "features"))
    work = start(server.target(1), seconds=seconds + 1.0, **shape(4))
    time.sleep(0.5)
    result = run(nobody, seconds=seconds, rate=200, connections=2)
    computed = finish(work)
    found = result.raw["refused_us"]
    bench.rows.append(
        {
            "case": "refusal",
            "server": "busy",
            "refused": {"unit": "us", **found},
            "statuses": result.raw["statuses"],
            "forward_passes_per_s": computed.rate,
        }
    )
    bench.summary["refusal_ms"] = found["p50"] / 1e3
    bench.summary["refusal_ms_p99"] = found["p99"] / 1e3
    bench.down("busy")


def trainer(bench: Bench) -> None:
    """The p99 at 60 % load with a trainer that fits on the server's core, against without: pairs in turn. The trainer
    is the real recipe in a process as nice as the supervisor makes it, continued and stopped by signals."""
    start_all(bench, "trimtab")
    server = bench.servers["trimtab"]
    pairs, seconds = (6, 1.0) if bench.quick else (20, 1.5)
    rate = 0.6 * per_second(bench, "trimtab")
    command = ["taskset", "-c", str(cores()[0]), sys.executable, str(HERE / "_fit.py")]
    fitting = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    found: dict[str, list[tuple[Result, float]]] = {"on": [], "off": []}
    try:
        assert fitting.stdout is not None
        fitting.stdout.readline()
        for turn in range(pairs):
            for state in ("on", "off") if turn % 2 else ("off", "on"):
                fitting.send_signal(signal.SIGCONT if state == "on" else signal.SIGSTOP)
                options: dict[str, Any] = {"rate": rate, "connections": 8, "seed": turn + 1}
                found[state].append(bench.measure(server, 1, seconds, **options))
            bench.say(f"pair {turn + 1} of {pairs}", (turn + 1) / pairs)
    finally:
        fitting.send_signal(signal.SIGCONT)
        fitting.kill()
        fitting.wait()
    for state, results in found.items():
        bench.add("trainer", "trimtab", results, rows=1, offered=rate, trainer=state)
    both = list(zip(found["on"], found["off"], strict=True))
    for q in ("p50", "p99"):
        bench.ratio(f"trainer_{q}_ratio", [(a[0].latency[q], b[0].latency[q]) for a, b in both])
    _, low, high = interval([a[0].latency["p99"] / b[0].latency["p99"] for a, b in both])
    bound = 1.10
    verdict = "holds" if high <= bound else "does not hold" if low > bound else "inconclusive"
    bench.rows.append({"case": "verdict", "name": "trainer_p99_ratio", "bound": bound, "verdict": verdict})


def soak(bench: Bench, requests: int) -> None:
    """So many requests of a row from 256 closed loops, which no noise of the machine makes fail; memory and descriptors
    four times a second. It holds (`soak_holds`) where no request failed, and where the medians of the last quarter are
    not above those of the second by more than GROWTH and SOCKETS. The first quarter is the server's, to warm up."""
    start_all(bench, "trimtab")
    server = bench.servers["trimtab"]
    can = per_second(bench, "trimtab")
    load = start(server.target(1), seconds=requests / can * 20 + 60, requests=requests, slice=10, **shape(256))
    samples: list[tuple[float, int, int]] = []
    before = server.metrics()["trimtab_requests_total"]
    began = said = time.monotonic()
    while load.poll() is None:
        now = time.monotonic()
        samples.append((now - began, server.memory(), server.descriptors()))
        if now >= said:
            done = (server.metrics()["trimtab_requests_total"] - before) / requests
            bench.say(f"{done:.0%}, {samples[-1][1] / 1e6:.0f} MB, {samples[-1][2]} descriptors")
            said = now + 10.0
        time.sleep(0.25)
    result = finish(load)
    bench.add("soak", "trimtab", [(result, 0.0)], rows=1)
    memory, descriptors = ([sample[i] for sample in samples] for i in (1, 2))
    bench.rows[-1].update({"at_s": [s for s, _, _ in samples], "memory": memory, "descriptors": descriptors})
    late = samples[len(samples) // 2 :]
    slope = float(np.polyfit([s for s, _, _ in late], [m for _, m, _ in late], 1)[0]) if len(late) > 2 else 0.0
    more, sockets = grown(memory), grown(descriptors)
    enough = result.raw["completed"] >= requests and len(samples) >= 8
    flat = more <= GROWTH * statistics.median(memory) and sockets <= SOCKETS
    bench.summary.update(
        {
            "soak_requests": result.raw["completed"],
            "soak_failed": result.failed,
            "soak_per_s": result.rate,
            "soak_memory_mb": statistics.median(memory) / 1e6,
            "soak_memory_grown_mb": more / 1e6,
            "soak_memory_bytes_per_million": slope / max(result.rate, 1.0) * 1e6,
            "soak_descriptors_grown": sockets,
            "soak_holds": float(enough and flat and result.failed == 0),
        }
    )


def grown(samples: list[int]) -> float:
    """How far the median of the last quarter is above that of the second."""
    quarter = len(samples) // 4
    if quarter == 0:
        return 0.0
    return statistics.median(samples[-quarter:]) - statistics.median(samples[quarter : 2 * quarter])
