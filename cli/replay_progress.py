"""A replay as it goes: data time, speed, recent quality of live and frozen, drift, promotions, time left.

On a terminal a block of lines that is redrawn; elsewhere a plain line now and then. All on stderr.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from trimtab.cli.replay_data import Stream
from trimtab.cli.replay_run import Moment, Played
from trimtab.client.admin import AdminClient
from trimtab.client.errors import ClientError

__all__ = ["Happenings", "ReplayProgress"]

RECENT_ROWS = 5_000
_LINE_SECONDS, _DRAW_SECONDS = 10.0, 0.25


class Happenings:
    """Counts the server's events on a thread of its own. A context manager."""

    def __init__(self, admin: str | None, model: str) -> None:
        self.promotions = 0
        self.alarms = 0
        self._model = model
        self._client = AdminClient(admin) if admin is not None else None
        self._thread = threading.Thread(target=self._watch, name="events", daemon=True)

    def _watch(self) -> None:
        assert self._client is not None
        with contextlib.suppress(ClientError):
            for event in self._client.watch(self._model):
                self.promotions += event.kind == "promoted"
                self.alarms += event.kind == "drift"

    def __enter__(self) -> Self:
        if self._client is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            self._client.close()
            self._thread.join(5.0)


class ReplayProgress:
    """Shows a replay; call it after each tick."""

    def __init__(
        self,
        stream: Stream,
        frozen: NDArray[np.float32],
        happenings: Happenings,
        *,
        cron: Callable[[], int] | None = None,
        quiet: bool = False,
    ) -> None:
        """`cron` says how many scheduled retrainings are done; `quiet`: nothing is shown."""
        self._stream, self._frozen, self._happenings, self._cron = stream, frozen, happenings, cron
        self._quiet = quiet
        self._bar: Any = None
        self._began = time.monotonic()
        self._shown = self._began

    @contextlib.contextmanager
    def shown(self) -> Iterator[ReplayProgress]:
        """While the replay goes."""
        self._began = self._shown = time.monotonic()
        if self._quiet or not sys.stderr.isatty():
            yield self
            return
        from rich.console import Console
        from rich.live import Live

        with Live(console=Console(file=sys.stderr), refresh_per_second=4, transient=True) as self._bar:
            yield self

    def __call__(self, moment: Moment, played: Played) -> None:
        now = time.monotonic()
        every = _LINE_SECONDS if self._bar is None else _DRAW_SECONDS
        if self._quiet or now - self._shown < every:
            return
        self._shown = now
        facts = self._facts(moment, played, now - self._began)
        if self._bar is None:
            print("  ".join(f"{name} {value}" if name else value for name, value in facts), file=sys.stderr, flush=True)
        else:
            self._bar.update(_panel(facts, moment.rows / max(len(self._frozen), 1)))

    def _facts(self, moment: Moment, played: Played, seconds: float) -> list[tuple[str, str]]:
        total = len(self._frozen)
        speed = moment.rows / max(seconds, 1e-9)
        left = (total - moment.rows) / max(speed, 1e-9)
        live, frozen = self._recent(moment.rows, played)
        facts = [
            ("", _date(moment.data_us) if self._stream.timed else f"row {moment.rows:,}"),
            ("", f"{moment.rows / total:.0%} at {speed:,.0f} rows/s"),
            (f"recent {self._name()}", f"live {live:.4f} frozen {frozen:.4f}"),
            ("live", f"version {moment.live or '–'}"),
            ("promotions", str(self._happenings.promotions)),
            ("drift alarms", str(self._happenings.alarms)),
        ]
        if played.failed_requests:
            facts.append(("FAILED requests", str(played.failed_requests)))
        if self._cron is not None:
            facts.append(("cron retrainings", str(self._cron())))
        return [*facts, ("left", f"{left // 60:.0f}:{left % 60:02.0f}")]

    def _name(self) -> str:
        return "squared error" if self._stream.task.kind == "regression" else "log loss"

    def _recent(self, rows: int, played: Played) -> tuple[float, float]:
        """Mean losses of live and frozen over the newest labelled rows."""
        stream, part = self._stream, slice(max(rows - RECENT_ROWS, 0), rows)
        at = slice(part.start + stream.start, rows + stream.start)
        kept = stream.labelled[at] & np.isfinite(played.predictions[part]).all(axis=1)
        if not kept.any():
            return float("nan"), float("nan")
        labels = stream.labels[at][kept]
        sides = (played.predictions[part][kept], self._frozen[part][kept])
        live, frozen = (float(stream.task.losses_of(side, labels).mean()) for side in sides)
        return live, frozen


def _date(time_us: int) -> str:
    with contextlib.suppress(OverflowError, ValueError, OSError):
        return datetime.fromtimestamp(time_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M")
    return str(time_us)


def _panel(facts: list[tuple[str, str]], done: float) -> Any:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    for name, value in facts:
        grid.add_row(f"[dim]{name}[/dim]", value)
    return Group(ProgressBar(total=1.0, completed=done, width=60), grid)
