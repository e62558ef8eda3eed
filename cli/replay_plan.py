"""When a replay does what: ticks of data time, the rows of each, and the labels that are due before it.

Pure. A label is sent before a tick only if it became known strictly before the tick begins, so that no prediction
uses a label of its own tick. Ticks without rows are left out: what became due in them is sent before the next one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from trimtab.cli.errors import UsageError
from trimtab.store.durations import parse_duration

__all__ = ["HOUR_US", "NEVER", "ROW_US", "Plan", "Span", "label_delay_us", "plan_ticks", "tick_of"]

HOUR_US = 3_600_000_000
ROW_US = 1_000_000
"""Without a time column a row is this long."""
NEVER = int(np.iinfo(np.int64).max)
DEFAULT_ROWS = 64


@dataclass(frozen=True)
class Span:
    """A tick's length, or how late labels are: so many rows, or so much data time."""

    rows: int = 0
    us: int = 0

    @classmethod
    def parse(cls, text: str, flag: str) -> Span:
        """Of `500` (rows) or `6h`. Raises UsageError."""
        if text.strip().isdigit():
            return cls(rows=int(text))
        try:
            return cls(us=parse_duration(text))
        except ValueError:
            raise UsageError(
                f'{flag}: expected a number of rows such as 500 or a duration such as "6h", got {text!r}'
            ) from None


@dataclass(frozen=True)
class Plan:
    """The ticks of a replay. Tick i has rows [starts[i], starts[i + 1]) and begins at times[i]; before it, the labels
    order[due[i - 1] : due[i]] are sent. The last entry of `due` belongs to the end, at `end_us`, after all rows."""

    starts: NDArray[np.int64]
    """[ticks + 1]"""
    times: NDArray[np.int64]
    """[ticks] µs"""
    order: NDArray[np.int64]
    """Rows in the order in which their labels become known; those that never do are not in it."""
    due: NDArray[np.int64]
    """[ticks + 1] how many of `order` are known before each tick, and in the end."""
    end_us: int

    def __len__(self) -> int:
        return len(self.times)

    def labels_before(self, tick: int) -> NDArray[np.int64]:
        """The rows whose labels are sent before this tick; tick len(self): after the last one."""
        return self.order[self.due[tick - 1] if tick else 0 : self.due[tick]]

    def rows_of(self, tick: int) -> tuple[int, int]:
        """[start, stop)"""
        return int(self.starts[tick]), int(self.starts[tick + 1])


def plan_ticks(time_us: NDArray[np.int64], known_us: NDArray[np.int64], tick: Span) -> Plan:
    """Ticks over rows in order of time. Of a duration: on a grid from the epoch, each beginning at the grid's line.
    Of rows: so many each, beginning at the time of the first one. Raises UsageError for a tick of no length."""
    rows = len(time_us)
    if tick.rows > 0:
        starts = np.arange(0, rows, tick.rows, dtype=np.int64)
        times = time_us[starts]
    elif tick.us > 0:
        line = time_us // tick.us
        starts = np.flatnonzero(np.r_[True, line[1:] != line[:-1]])[: rows or 0].astype(np.int64)
        times = line[starts] * tick.us
    else:
        raise UsageError("--tick: expected more than nothing")
    order = np.argsort(known_us, kind="stable")
    order = order[: int(np.searchsorted(known_us[order], NEVER, "left"))].astype(np.int64)
    known = known_us[order]
    last = int(known[-1]) if len(known) else 0
    end_us = max(last, int(time_us[-1]) if rows else 0) + 1
    # A label cannot be sent before its row is answered: one known before its row's tick waits for the next.
    due = np.append(np.searchsorted(known, times, "left"), len(order)).astype(np.int64)
    return Plan(np.append(starts, rows), times.astype(np.int64), order, due, end_us)


def tick_of(given: Span | None, *, timed: bool, delay: Span | None) -> Span:
    """The tick that was asked for, else an hour; without a time column 64 rows, or the label delay if that is
    shorter."""
    if given is not None:
        return given
    if timed:
        return Span(us=HOUR_US)
    late = 0 if delay is None else delay.rows or delay.us // ROW_US
    return Span(rows=min(DEFAULT_ROWS, late) if late else DEFAULT_ROWS)


def label_delay_us(time_us: NDArray[np.int64], delay: Span) -> NDArray[np.int64]:
    """int64 [rows]: when each label becomes known, `delay` after its row; in rows: with the row that comes so many
    later, and past the end of the data just after it."""
    if not delay.rows:
        return time_us + delay.us
    known = np.full(len(time_us), int(time_us[-1]) + 1 if len(time_us) else 0, dtype=np.int64)
    known[: max(len(time_us) - delay.rows, 0)] = time_us[delay.rows :]
    return known
