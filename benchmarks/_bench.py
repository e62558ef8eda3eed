"""What the cases of the serving benchmark share: servers that are up, results, ratios of pairs, and progress."""

from __future__ import annotations

import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from _load import Result, run, shape
from _servers import Server

WARM_UP = 0.15


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """The median of paired ratios and its bootstrap 95 % interval."""
    given = np.asarray(values, dtype=np.float64)
    drawn = np.random.default_rng(seed).choice(given, size=(2000, len(given)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return float(np.median(given)), float(low), float(high)


@dataclass
class Bench:
    """One run of the benchmark."""

    folder: Path
    quick: bool
    servers: dict[str, Server] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, float] = field(default_factory=dict)
    best: dict[tuple[str, int], int] = field(default_factory=dict)
    """The concurrency at which a server does most requests of so many rows."""
    began: float = field(default_factory=time.monotonic)
    step: str = ""

    # --- running

    def up(self, name: str, make: Callable[[], Server]) -> Server | None:
        """The server, started on first use; None where it cannot be."""
        if name not in self.servers and name not in self.absent:
            self.say(f"starting {name}")
            try:
                self.servers[name] = make()
            except Exception as error:
                self.absent[name] = f"{type(error).__name__}: {error}"
                print(f"\n{name} is absent: {self.absent[name]}", file=sys.stderr)
        return self.servers.get(name)

    def down(self, name: str) -> None:
        server = self.servers.pop(name, None)
        if server is not None:
            server.stop()

    def close(self) -> None:
        for server in self.servers.values():
            server.process.terminate()  # all drain at once
        for name in list(self.servers):
            self.down(name)

    def measure(self, server: Server, rows: int, seconds: float, **options: Any) -> tuple[Result, float]:
        """A run, and µs of the server's CPU time per answer."""
        options.setdefault("warm_up", WARM_UP)
        before = server.cpu_seconds()
        result = run(server.target(rows), seconds=seconds, **options)
        used = server.cpu_seconds() - before
        share = seconds / (seconds + options["warm_up"])
        return result, used * share * 1e6 / max(result.raw["completed"], 1)

    def closed(self, server: Server, rows: int, seconds: float, concurrency: int) -> tuple[Result, float]:
        return self.measure(server, rows, seconds, check_every=251, **shape(concurrency))

    # --- results

    def add(self, case: str, server: str, results: Sequence[tuple[Result, float]], **more: Any) -> None:
        """A row: rates and CPU time over the runs, latencies as the medians of their quantiles."""
        rates = [result.rate for result, _ in results]
        names = ("p50", "p90", "p99", "p99.9", "max")
        latency = {name: statistics.median(result.latency[name] for result, _ in results) for name in names}
        self.rows.append(
            {
                "case": case,
                "server": server,
                **more,
                "rate": {
                    "unit": "1/s",
                    "n": len(rates),
                    "min": min(rates),
                    "p50": statistics.median(rates),
                    "max": max(rates),
                },
                "latency": {"unit": "us", "n": sum(int(result.latency["n"]) for result, _ in results), **latency},
                "cpu_us_per_request": statistics.median(used for _, used in results),
                "failed": sum(result.failed for result, _ in results),
                "statuses": dict(sum((Counter(result.raw["statuses"]) for result, _ in results), Counter())),
                "refusal": next((text for result, _ in results if (text := result.raw["refusal"])), ""),
                "mixed": sum(int(result.raw["mixed"]) for result, _ in results),
                "late_us_p99": statistics.median(result.raw["late_us"]["p99"] for result, _ in results),
                "generator_busy": statistics.median(result.raw["busy"] for result, _ in results),
            }
        )

    def ratio(self, name: str, pairs: Iterable[tuple[float, float]]) -> None:
        """The median of first / second over pairs, with its interval."""
        ratios = [first / second for first, second in pairs if second > 0]
        if not ratios:
            return
        middle, low, high = interval(ratios)
        self.summary[name] = middle
        self.rows.append(
            {"case": "ratio", "name": name, "median": middle, "low": low, "high": high, "pairs": len(ratios)}
        )

    # --- progress

    def say(self, what: str, done: float | None = None) -> None:
        """One line on stderr, drawn over where that is a terminal."""
        bar = "" if done is None else "[" + "#" * round(20 * done) + "." * (20 - round(20 * done)) + "] "
        text = f"{time.monotonic() - self.began:5.0f} s  {bar}{self.step} {what}"
        if sys.stderr.isatty():
            print(f"\r\x1b[K{text[:150]}", end="", file=sys.stderr, flush=True)
        elif done is None or done >= 1.0:
            print(text, file=sys.stderr, flush=True)
