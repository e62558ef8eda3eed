"""The versions of one model that sleep: putting one to sleep and waking it, for the reasons that idle.py has."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future

from trimtab.models.loading import Version
from trimtab.models.sleeping import Sleepers
from trimtab.models.version import LoadedVersion
from trimtab.server.engine import Engine
from trimtab.server.errors import NoRoom, OutOfMemory, ServerError, status_number
from trimtab.server.events import EventBus
from trimtab.server.idle import Idle, Use
from trimtab.server.memory import ModelMemory, freed, sizes_of
from trimtab.server.statistics import LATENCY_BOUNDS, Distribution

__all__ = ["Naps"]

_log = logging.getLogger(__name__)
_SETTLE_SECONDS = 10.0
_WHERE = {"host": "its weights are in the host's memory", "disk": "its weights are on disk"}


class Naps:
    """See the module. Any thread, but for `wake`, which takes as long as loading may."""

    def __init__(
        self,
        engine: Engine,
        events: EventBus,
        memory: ModelMemory,
        idle: Idle,
        sleepers: Sleepers,
        *,
        load: Callable[[int], Version],
        known: Callable[[], Mapping[int, Version]],
        live: Callable[[], int],
        between: Callable[[Callable[[], None]], Future[None]],
    ) -> None:
        """`load` loads a version by way of `sleepers`, and tries it; `known`: what is loaded, by number;
        `live`: the live one's number; `between` runs something on the compute thread."""
        self.name = engine.name
        self.seconds = Distribution(LATENCY_BOUNDS)
        """From the decision to wake a version to when it answers again."""
        self.slept = self.failed = 0
        self._engine = engine
        self._events = events
        self._memory = memory
        self._idle = idle
        self._sleepers = sleepers
        self._load = load
        self._known = known
        self._live = live
        self._between = between
        self._lock = threading.RLock()
        self._closed = False
        self._since: dict[int, float] = {}
        self._sizes: dict[int, int] = {}
        idle.add(self)

    @property
    def asleep(self) -> frozenset[int]:
        """Those that sleep now."""
        return frozenset(number for number, version in self._known().items() if version.asleep)

    @property
    def woken(self) -> int:
        """How often a version was woken."""
        return sum(self.seconds.buckets)

    def changed(self) -> None:
        """What is loaded has changed; all that is new is as good as used."""
        known, now = self._known(), time.monotonic()
        self._since = {number: self._since.get(number, now) for number in known}
        self._idle.news()

    def uses(self) -> list[Use]:
        """See Sleepy."""
        known, live, seconds = self._known(), self._live(), self._engine.settings.idle_seconds
        return [
            Use(
                self.name,
                number,
                freed(known, number),
                max(self._since.get(number, 0.0), self._engine.used(number)),
                number != live,
                seconds,
            )
            for number, version in known.items()
            if not version.asleep
        ]

    def put_to_sleep(self, number: int, why: str) -> bool:
        """See Sleepy."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            version = self._known().get(number)
            if self._closed or version is None or version.asleep:
                return False
            if not self._engine.put_to_sleep(number):
                self._since[number] = time.monotonic()
                return False
            size = freed(self._known(), number)
            try:
                self._settle(version)
                where = self._sleepers.put(version)
            except Exception:
                # No memory on the host, say. It serves on.
                _log.exception("model %s version %d could not be put to sleep", self.name, number)
                self._engine.wake_up(number)
                self._since[number] = time.monotonic()
                return False
            self._sizes[number] = size
            self._count()
            self.slept += 1
        finally:
            self._lock.release()
        self._events.publish(
            "asleep",
            self.name,
            f"version {number} sleeps, {why}: {_WHERE[where]}",
            version=number,
            numbers={"bytes": size},
        )
        return True

    def wake(self, number: int) -> None:
        """Wakes a version, if it sleeps. Raises NoRoom where there is no memory for it, and what loading raises; it
        sleeps on then."""
        with self._lock:
            version = self._known().get(number)
            if version is None or not version.asleep:
                # The one that slept may have been replaced since by one that was loaded.
                self._engine.wake_up(number)
                return
            began = time.monotonic()
            try:
                self._idle.reserve(self.name, number, self._sizes.get(number, 0))
                self._sleepers.wake(version, self._load)
                # By what is loaded now: other versions may have come and gone meanwhile.
                self._idle.reserve(self.name, number, freed({**self._known(), number: version}, number))
            except BaseException:
                self.failed += 1
                self._back_to_sleep(version)
                raise
            self._count()
            if number not in self._known():
                self._memory.release(self.name, number)  # it was let go while it woke
            self._since[number] = time.monotonic()
            self._engine.wake_up(number)
            seconds = time.monotonic() - began
            self.seconds.add(seconds)
        self._idle.news()
        message = f"version {number} is awake, after {seconds * 1e3:,.1f} ms"
        self._events.publish("awake", self.name, message, version=number, numbers={"seconds": seconds})

    def close(self) -> None:
        """Nothing is put to sleep any more. Waits for what is under way."""
        with self._lock:
            self._closed = True

    def wake_for_requests(self, number: int) -> None:
        """As `wake`; where that fails, what waits for the version is answered."""
        try:
            self.wake(number)
        except NoRoom as error:
            self._refuse(number, OutOfMemory(str(error)))
        except Exception as error:
            if not isinstance(error, ServerError):
                _log.exception("model %s version %d cannot be woken", self.name, number)
            self._refuse(number, error)

    def _settle(self, version: Version) -> None:
        """Before its graphs go: what they counted on a device is brought to the drift window, on the compute thread."""
        keeper = self._engine.keeper
        if keeper is not None and isinstance(version, LoadedVersion) and keeper.counts(version):
            self._between(keeper.settle).result(_SETTLE_SECONDS)

    def _back_to_sleep(self, version: Version) -> None:
        """What could not be woken to the end: no memory for a batch, say."""
        if not version.asleep:
            try:
                self._sleepers.put(version)
            except Exception:
                # It is awake then, which the next request for it will find.
                _log.exception("model %s version %d is neither awake nor asleep", self.name, version.number)
                return
        self._memory.release(self.name, version.number)

    def _refuse(self, number: int, error: Exception) -> None:
        text = f"model {self.name!r} version {number} sleeps and cannot be woken: {error}"
        self._events.publish("note", self.name, text, version=number)
        self._engine.refuse_waiting(number, status_number(error), text)

    def _count(self) -> None:
        self._memory.count(self.name, sizes_of(self._known()))
