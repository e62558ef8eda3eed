"""Hostile clients against a real `trimtab serve`, one kind at a time, beside a good client.

The server (native transport, on the first core, the model of serving.py) has its own limits, the defaults of
[server.limits]; with --quick its times are shorter, so that slow clients are cut sooner. The good client
(native/load.cpp) sends 1-row requests in an open loop, so that a latency counts from when the request should have left.
The hostile clients (_attacks.py) run in this process, at a lower priority, on the load's core: where that is the good
client's only core, late_us_p99 says what it waited for itself.

For each case: what the hostile clients got and after how long; the server's resident memory and descriptors before, at
their peak, and after; the good client's answers, failures and latencies, against a run without hostility right
before.

A case holds where no call of the good client failed, memory grew by at most BOUND, and the descriptors came back. The
exit code is 1 where one does not.

usage: python benchmarks/hostile.py [--quick] [--json FILE] [--only NAME,NAME]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _attacks
from _attacks import Attack, Got
from _bench import Bench
from _harness import report
from _load import Result, cores, finish, generator, run, start
from _servers import Server, make_project, trimtab
from _throughput import with_tls

BOUND = 3 << 29
"""Bytes by which the server may grow: [server.limits] total_bytes, and half of it for what the heap makes of that."""
RATE = 1000.0
_QUICK = """[server.limits]
handshake_seconds = 2
header_seconds = 2
message_seconds = 3
write_seconds = 4
"""
_HANDSHAKE, _HEADER, _MESSAGE, _WRITE = 10.0, 10.0, 30.0, 60.0
_QUICK_TIMES = {_HANDSHAKE: 2.0, _HEADER: 2.0, _MESSAGE: 3.0, _WRITE: 4.0}


@dataclass(frozen=True)
class Case:
    """`limit`: the seconds of the server's that it is about."""

    name: str
    attack: Attack
    limit: float = 0.0
    tls: bool = False

    def seconds(self, quick: bool) -> float:
        if self.limit:
            # Limits are looked at once a second.
            return (_QUICK_TIMES[self.limit] if quick else self.limit) + (2.0 if quick else 3.5)
        return 1.5 if quick else 5.0


def cases(idle: int) -> list[Case]:
    return [
        Case("1.5 GB announced", _attacks.announced),
        Case("1.5 GB sent", _attacks.sent),
        Case("messages never whole", _attacks.unfinished, _MESSAGE),
        Case("gzip bomb", _attacks.gzip_bomb),
        Case(f"{idle:,} idle connections", _attacks.idle(idle)),
        Case("answers never read", _attacks.deaf, _WRITE),
        Case("a byte a second: preface", _attacks.slow_preface, _HANDSHAKE),
        Case("a byte a second: headers", _attacks.slow_headers, _HEADER),
        Case("a byte a second: message", _attacks.slow_message, _MESSAGE),
        Case("random bytes", _attacks.noise(polite=False)),
        Case("random frames", _attacks.noise(polite=True)),
        Case("HTTP/1", _attacks.http1),
        *(Case(name, attack) for name, attack in _attacks.FLOODS.items()),
        Case("TLS handshakes", _attacks.handshakes, tls=True),
    ]


# --- descriptors


def allow_descriptors(wanted: int) -> int:
    """How many this process may open, asked for as many as this."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        goal = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(goal, soft), hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


# --- one case


class Attacker(threading.Thread):
    """The hostile clients: a loop of their own, on the load's core, behind the good client."""

    def __init__(self, attack: Attack, address: str, seconds: float) -> None:
        super().__init__(name="attacker", daemon=True)
        host, _, port = address.rpartition(":")
        self._attack, self._address, self._seconds = attack, (host, int(port)), seconds
        self.got = Got()
        self.error = ""

    def run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        os.sched_setaffinity(0, {cores()[1]})
        try:
            asyncio.run(self._main())
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"

    async def _main(self) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # tasks whose connections were cut
        await self._attack(self._address, self.got, time.monotonic() + self._seconds)


def measure(bench: Bench, server: Server, case: Case) -> dict[str, Any]:
    """A run without hostility, then one with."""
    seconds = case.seconds(bench.quick)
    options: dict[str, Any] = {"rate": RATE, "connections": 4, "warm_up": 0.3}
    alone = run(server.target(), seconds=0.8 if bench.quick else 3.0, **options)
    before = server.memory(), server.descriptors()
    good = start(server.target(), seconds=seconds + 0.7, **options)
    time.sleep(0.4)
    attacker = Attacker(case.attack, server.address, seconds)
    began = time.monotonic()
    attacker.start()
    memory, descriptors = [before[0]], [before[1]]
    while good.poll() is None:
        memory.append(server.memory())
        descriptors.append(server.descriptors())
        bench.say(f"{case.name}: {memory[-1] / 1e6:.0f} MB", min((time.monotonic() - began) / seconds, 0.99))
        time.sleep(0.05)
    result = finish(good)
    attacker.join(seconds + 60)
    after = settled(server, before[1])
    return {
        "case": case.name,
        "server": server.name,
        "seconds": seconds,
        "hostile": hostile(attacker),
        "memory": {"before": before[0], "peak": max(memory), "after": after[0]},
        "descriptors": {"before": before[1], "peak": max(descriptors), "after": after[1]},
        "good": good_client(result),
        "good_alone": good_client(alone),
    }


def settled(server: Server, wanted: int) -> tuple[int, int]:
    """Memory and descriptors once the connections are gone, or some seconds later."""
    end = time.monotonic() + 5.0
    while server.descriptors() > wanted and time.monotonic() < end:
        time.sleep(0.05)
    return server.memory(), server.descriptors()


def hostile(attacker: Attacker) -> dict[str, Any]:
    got = attacker.got
    found: dict[str, Any] = {"got": dict(got.answers), "frames": got.frames, "sent_bytes": got.sent_bytes}
    if got.seconds:
        found["after_s"] = {"p50": statistics.median(got.seconds), "max": max(got.seconds)}
    if attacker.is_alive():
        attacker.error = "did not end"
    return found | ({"error": attacker.error} if attacker.error else {})


def good_client(result: Result) -> dict[str, Any]:
    return {
        "answered": result.raw["completed"] - result.failed,
        "failed": result.failed,
        "statuses": result.raw["statuses"],
        "refusal": result.raw["refusal"],
        "latency": {"unit": "us", **result.latency},
        "late_us_p99": result.raw["late_us"]["p99"],
    }


def holds(row: dict[str, Any]) -> bool:
    memory, descriptors = row["memory"], row["descriptors"]
    bounded = memory["peak"] - memory["before"] <= BOUND and descriptors["after"] <= descriptors["before"] + 8
    return bounded and row["good"]["failed"] == 0 and row["good"]["answered"] > 0 and "error" not in row["hostile"]


# --- what came of it


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| hostile client | got | after (median, max) | RSS before / peak / after, MB | descriptors | good client: "
        "answered, failed | p50, alone → beside | p99, alone → beside | holds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        memory, descriptors, good, alone = (row[name] for name in ("memory", "descriptors", "good", "good_alone"))
        got = ", ".join(f"{count:,} × {what}" for what, count in row["hostile"]["got"].items()) or "–"
        if row["hostile"]["frames"]:
            got += f" ({row['hostile']['frames']:,} frames)"
        after = row["hostile"].get("after_s")
        cells = [
            row["case"],
            row["hostile"].get("error", got),
            f"{_time(after['p50'])}, {_time(after['max'])}" if after else "–",
            " / ".join(f"{memory[name] / 1e6:,.0f}" for name in ("before", "peak", "after")),
            " / ".join(f"{descriptors[name]:,}" for name in ("before", "peak", "after")),
            f"{good['answered']:,}, {good['failed']:,}",
            *(f"{_us(alone['latency'][q])} → {_us(good['latency'][q])}" for q in ("p50", "p99")),
            "yes" if holds(row) else "NO",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _us(value: float) -> str:
    return f"{value / 1e3:.2f} ms"


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter cases and limits; ends within two minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here")
    parser.add_argument("--only", metavar="NAMES", help="cases whose names contain one of these, by commas")
    options = parser.parse_args()
    allowed = allow_descriptors(12_000)
    idle = min(10_000, allowed - 1000)
    chosen = cases(idle)
    if options.only:
        chosen = [case for case in chosen if any(part in case.name for part in options.only.split(","))]
    generator()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="trimtab-hostile-") as temporary:
        bench = Bench(Path(temporary), options.quick)
        limits = _QUICK if options.quick else ""
        try:
            for number, case in enumerate(chosen):
                bench.step = f"{number + 1}/{len(chosen)}"
                server = _server(bench, case.tls, limits)
                if server is None:
                    continue
                row = measure(bench, server, case)
                rows.append(row | {"holds": holds(row)})
                bench.say(f"{case.name}: {'holds' if rows[-1]['holds'] else 'DOES NOT HOLD'}", 1.0)
        finally:
            bench.close()
    print(file=sys.stderr)
    print(table(rows))
    print(f"\nThis process may open {allowed:,} descriptors, and so may the server.\n")
    worst = max((row["good"]["latency"]["p99"] for row in rows), default=0.0)
    grown = max((row["memory"]["peak"] - row["memory"]["before"] for row in rows), default=0)
    summary = {
        "cases": len(rows),
        "cases_that_hold": sum(row["holds"] for row in rows),
        "good_client_answered": sum(row["good"]["answered"] for row in rows),
        "good_client_failed": sum(row["good"]["failed"] for row in rows),
        "worst_p99_ms": worst / 1e3,
        "largest_growth_mb": grown / 1e6,
        "idle_connections": idle,
        "descriptors_allowed": allowed,
    }
    absent = [{"case": "absent", "server": name, "reason": reason} for name, reason in bench.absent.items()]
    report([*rows, *absent], summary, options.json)
    return 0 if rows and all(row["holds"] for row in rows) and not absent else 1


def _server(bench: Bench, tls: bool, limits: str) -> Server | None:
    if tls:
        return bench.up("trimtab_tls", lambda: with_tls(bench.folder, limits))
    return bench.up("trimtab", lambda: trimtab("trimtab", make_project(bench.folder / "plain", server=limits)))


if __name__ == "__main__":
    sys.exit(main())
