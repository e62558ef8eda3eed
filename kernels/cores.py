"""Columns side by side on all cores: for work that is a few native calls a column, which release the GIL."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

__all__ = ["cores", "on_all_cores"]


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))


def on_all_cores(work: Callable[[int], None], count: int) -> None:
    """Calls `work` once with each number below `count`, in any order, and returns when all are done. Two calls with
    different numbers must not touch the same thing. Raises what one of them raised first."""
    members = min(cores(), count)

    def every(first: int) -> None:
        for i in range(first, count, members):
            work(i)

    if not members:
        return
    with ThreadPoolExecutor(members) as pool:
        for done in [pool.submit(every, first) for first in range(members)]:
            done.result()
