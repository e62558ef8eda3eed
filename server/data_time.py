"""Which window of data time a row is counted in. Pure: times in, starts of windows out.

Windows tumble: each row is in one of them, so that all windows together have every row that was counted. They close in
order and never open again, so a late row, of a window that has closed, is counted in the one that is open when it comes
(or, where none is, in the earliest that may open); how many were late is told beside. The other way round, outside
lockstep a time ahead of the wall clock counts as now: one client whose clock is wrong would close everybody's windows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from trimtab.store.windows import window_start, window_starts

__all__ = ["WindowGrid"]

# Of data times, so that no arithmetic overflows: 36 thousand years either way.
_LIMIT = 1 << 60


class WindowGrid:
    """See the module. Of one thread."""

    def __init__(self, length_us: int) -> None:
        self.length_us = length_us
        self._from_us = -(1 << 62)

    def begin(self, time_us: int) -> None:
        """From now on no row is counted before the window that has this time: it opened, or what is before it is due
        (`Lifecycle.Advance`)."""
        self._from_us = max(self._from_us, window_start(_within(time_us), self.length_us))

    def place(self, times_us: NDArray[np.int64], now_us: int | None = None) -> NDArray[np.int64]:
        """The start, µs UTC, of the window that a row of each time [n] is counted in. `now_us`: the latest time that is
        believed."""
        latest = _LIMIT if now_us is None else min(now_us, _LIMIT)
        starts = window_starts(np.clip(times_us, -_LIMIT, latest), self.length_us)
        return np.maximum(starts, self._from_us)


def _within(time_us: int) -> int:
    return min(max(time_us, -_LIMIT), _LIMIT)
