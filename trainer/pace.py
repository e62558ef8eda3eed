"""How fast this process trains: it works in slices of some milliseconds, and rests between them as the server says.

`rest()` is called between steps and between batches that are scored. It returns at once, or sleeps as long as the duty
asks for; nothing else depends on it, so the same steps are taken in the same order at any duty. Threads: the main
thread trains, the one that reads commands tells it of paces.

A pace counts for its lease. Without one, at the start or because the server has gone silent, the duty is LEAST_DUTY:
serving is protected, and training gets on. Where nobody governs (`[server] trainer_p99_budget = 0`, lockstep, `trimtab
train`) there is no rest at all, nor is there once the process is to leave (`release`).

There is one for the process, as there is one CPU and one GPU that it shares: `PACE`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from trimtab.store.priority import LEAST_DUTY

__all__ = ["PACE", "SLICE_SECONDS", "Pace", "rest_seconds"]

SLICE_SECONDS = 0.005
"""Work after which there is a rest, if one is due; longer only where one step takes longer."""


def rest_seconds(worked: float, duty: float) -> float:
    """How long to rest after so many seconds of work, for a duty in (0, 1]."""
    return worked * (1.0 - duty) / duty


class Pace:
    """See the module."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._governed = False
        self._number = 0
        self._duty, self._until = LEAST_DUTY, 0.0
        self._began = 0.0
        self._depth = 0
        self._cannot = False
        self.on_training: Callable[[], None] | None = None
        """Called on the training thread when training begins or ends."""

    # --- the thread that reads commands

    def govern(self) -> None:
        """From now on there are rests."""
        with self._changed:
            self._governed = True

    def tell(self, number: int, duty: float, lease: float, *, cannot_be_met: bool = False) -> None:
        """The server's newest pace: a duty in [0, 1] for so many seconds. Older ones are ignored."""
        with self._changed:
            if number <= self._number:
                return
            self._number = number
            self._duty, self._until = min(max(duty, 0.0), 1.0), self._clock() + lease
            self._cannot |= cannot_be_met
            self._changed.notify_all()

    def release(self) -> None:
        """No rests any more: the process is to leave, once it has finished what it is at."""
        with self._changed:
            self._governed = False
            self._changed.notify_all()

    # --- any thread

    @property
    def training(self) -> bool:
        """Whether the main thread is within `trains`."""
        return self._depth > 0

    @property
    def number(self) -> int:
        """Of the newest pace."""
        return self._number

    # --- the training thread

    @contextlib.contextmanager
    def trains(self) -> Iterator[None]:
        """What is within takes steps, and calls `rest` between them."""
        with self._changed:
            self._depth += 1
            self._began = self._clock()
        self._told()
        try:
            yield
        finally:
            with self._changed:
                self._depth -= 1
            self._told()

    def rest(self) -> None:
        """Between two steps: sleeps for what the work since the last rest asks for."""
        with self._changed:
            if not self._governed or not self._depth:
                return
            began = self._clock()
            worked = began - self._began
            if worked < SLICE_SECONDS and self._current(began) > 0.0:
                return
            # Asked again with each pace that comes: one that is faster ends the rest.
            while self._governed and (left := self._left(began, worked)) > 0.0:
                self._wait(left)
            self._began = self._clock()

    def take_cannot_be_met(self) -> bool:
        """Whether the server said, since the last time that this was asked, that the budget cannot be met."""
        with self._changed:
            said, self._cannot = self._cannot, False
            return said

    def _current(self, now: float) -> float:
        return self._duty if now < self._until else LEAST_DUTY

    def _left(self, began: float, worked: float) -> float:
        now = self._clock()
        duty = self._current(now)
        if duty == 0.0:
            return self._until - now
        return began + rest_seconds(worked, duty) - now

    def _wait(self, seconds: float) -> None:
        self._changed.wait(seconds)

    def _told(self) -> None:
        if self.on_training is not None:
            self.on_training()


PACE = Pace()
"""This process's."""
