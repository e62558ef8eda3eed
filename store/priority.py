"""Threads and a process that may wait, beside those that serve."""

from __future__ import annotations

import contextlib
import os
import sys
import threading

__all__ = ["LEAST_DUTY", "yield_to_others"]

LEAST_DUTY = 0.05
"""Share of the time in which the trainer may train however busy serving is: what never lets it stand still."""

_NICE = 10


def yield_to_others() -> None:
    """Gives the calling thread a tenth of the weight of others, where the system has that for threads (Linux).

    For work in bursts that nobody waits for: on a core that it shares with serving, it would take half of it.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            thread = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, thread, min(os.getpriority(os.PRIO_PROCESS, thread) + _NICE, 19))
