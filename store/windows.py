"""Where windows of data time begin: at multiples of their length from a Monday, midnight UTC.

So weeks begin on Mondays, days at midnight, hours on the hour, whatever the data's first row is, and two machines cut
the same stream alike. A window [start, start + length) has its start and not its end.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["window_start", "window_starts"]

# 1970-01-05.
_MONDAY_US = 4 * 86_400_000_000


def window_start(time_us: int, length_us: int) -> int:
    """Start, µs UTC, of the window that has this time."""
    return (time_us - _MONDAY_US) // length_us * length_us + _MONDAY_US


def window_starts(times_us: NDArray[np.int64], length_us: int) -> NDArray[np.int64]:
    """window_start of each; of int64 [n], which stay clear of int64's ends by a week and a window."""
    return (times_us - _MONDAY_US) // length_us * length_us + _MONDAY_US
