"""Scale to zero: which versions are put to sleep, and when. A version that sleeps holds no memory where it computes
(models/sleeping.py has what becomes of it); the next request for it wakes it.

Two reasons to put one to sleep:
  idle     nobody has asked for it for [[model]] idle_seconds.
  room     something else is to be loaded or woken and would exceed [server] max_model_bytes. First to sleep are the
           versions that are merely kept (the previous one, candidates, what aliases and the version policy add), least
           recently used first; then live ones, of models that have idle_seconds, unused for a second at least.
           Nothing is put to sleep in vain: if all of that is not enough, the load is refused, as without sleep.
Never what a request waits for, or a batch is computed with: the hub has the last word on that, under its lock.

A request for a version that is asleep is admitted and waits in its queue like any other: with the same bounds,
deadlines and priorities, and an answer of DEADLINE_EXCEEDED when its time is over first. The hub forms no batch of such
a version, and tells the compute thread once that it is wanted, between two batches of other models. The compute thread
hands that to a thread of the model that wakes, where it takes as long as it does; what else the compute thread serves
goes on. Waking that fails for want of memory answers what waits with RESOURCE_EXHAUSTED; the version stays asleep, and
the next request tries again. The server's drain waits for what is being woken, as for all that was accepted.

A model with versions asleep is ready: it will answer. What is asked about one (metadata, statistics, aliases) is as
ever. A rollback or promotion to a version that sleeps wakes it first, so that a flip is never to nothing; candidates
are staged and tried awake.

Threads. Each model wakes its versions on a thread of its own (Swap), one after the other: not on that which stages,
where a request would wait for a candidate, at a tenth of the priority. Putting to sleep is done on whichever thread has
the reason. Each model's `Naps` has a lock for both. Who makes room holds his own model's, perhaps, and only tries
others': two models that make room for each other at the same time pass over each other's versions instead of waiting.

The decisions (`due`, `next_due`, `room`) are pure. `Idle` is their effects across models; naps.py those on one model.
Turned down: a bound on the versions awake (bytes are what runs out); waking ahead of requests by a forecast (wrong
twice a day); a timer for each version (one task looks when the next is due).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from trimtab.server.errors import NoRoom
from trimtab.server.memory import ModelMemory

__all__ = ["Idle", "Sleepy", "Use", "due", "next_due", "room"]

_SERVING_SECONDS = 1.0
_LEAST_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Use:
    """A version that is awake, as these decisions see it. Instants are of the monotonic clock."""

    model: str
    number: int
    bytes: int
    """That its sleep would free."""
    used: float
    """When it was last asked for, or came to be awake."""
    kept: bool
    """Whether it is merely kept: not live."""
    idle_seconds: float
    """Of its model; 0: never for being idle."""


def due(uses: Iterable[Use], now: float) -> list[Use]:
    """Those that have been idle for long enough."""
    return [use for use in uses if use.idle_seconds and now - use.used >= use.idle_seconds]


def next_due(uses: Iterable[Use]) -> float | None:
    """When to look again; None: when something changes."""
    return min((use.used + use.idle_seconds for use in uses if use.idle_seconds), default=None)


def room(uses: Iterable[Use], lacking: int, now: float) -> list[Use]:
    """Those whose sleep frees so many bytes, in the order in which they are to go; none where that is not possible."""
    may = [use for use in uses if use.kept or (use.idle_seconds and now - use.used >= _SERVING_SECONDS)]
    chosen: list[Use] = []
    for use in sorted((use for use in may if use.bytes), key=lambda use: (not use.kept, use.used)):
        if lacking <= 0:
            break
        chosen.append(use)
        lacking -= use.bytes
    return chosen if lacking <= 0 else []


class Sleepy(Protocol):
    """The versions of one model; see naps.Naps."""

    name: str

    def uses(self) -> list[Use]:
        """Its versions that are awake."""
        ...

    def put_to_sleep(self, number: int, why: str) -> bool:
        """Whether it did; False, without waiting, where the version is in use or something is being woken."""
        ...


class Idle:
    """See the module. `add`, `remove`, `news` and `reserve` from any thread; `run` on the loop."""

    def __init__(self, memory: ModelMemory, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._memory = memory
        self._clock = clock
        self._lock = threading.Lock()
        self._models: dict[str, Sleepy] = {}
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()

    def add(self, model: Sleepy) -> None:
        """Looks after this model from now on."""
        with self._lock:
            self._models[model.name] = model
        self.news()

    def remove(self, name: str) -> None:
        """Looks after it no more."""
        with self._lock:
            self._models.pop(name, None)

    def news(self) -> None:
        """Versions came to be awake."""
        # The loop may be closed: the server ends.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._changed.set)

    def reserve(self, name: str, number: int, size: int) -> None:
        """Counts a version with that size, putting others to sleep where it would not fit. Raises NoRoom."""
        while True:
            try:
                return self._memory.reserve(name, number, size)
            except NoRoom:
                uses = [use for use in self._uses() if (use.model, use.number) != (name, number)]
                lacking = self._memory.lacking(name, number, size)
                if not lacking:
                    continue  # something went just now
                chosen = room(uses, lacking, self._clock())
                if not self._put_to_sleep(chosen, f"to make room for {name!r} version {number}"):
                    raise

    async def run(self) -> None:
        """Puts to sleep what is idle, until it is cancelled."""
        while True:
            self._changed.clear()
            idle = due(self._uses(), self._clock())
            if idle:
                await asyncio.to_thread(self._put_to_sleep, idle, "")
            when = next_due(self._uses())
            # What is due still could not be put to sleep just now: something else of its model is being woken, say.
            seconds = None if when is None else max(_LEAST_SECONDS, when - self._clock())
            try:
                await asyncio.wait_for(self._changed.wait(), seconds)
            except TimeoutError:
                continue

    def _uses(self) -> list[Use]:
        with self._lock:
            models = list(self._models.values())
        return [use for model in models for use in model.uses()]

    def _put_to_sleep(self, chosen: Sequence[Use], why: str) -> bool:
        """Whether any did fall asleep."""
        slept = False
        for use in chosen:
            with self._lock:
                model = self._models.get(use.model)
            if model is not None:
                slept |= model.put_to_sleep(use.number, why or f"idle for {use.idle_seconds:g} s")
        return slept
