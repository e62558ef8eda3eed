"""Which version serves: staging a candidate, promoting it, rolling back, and finding the live version on start.

Four threads. *Stage* loads, checks, warms and probes a candidate, beside serving; only then is it in the engine's
table, where requests may name it by number. *Flip* changes live.json by compare-and-set and, when that is on disk,
installs the new table: the next batch is of the new version. *Wake* wakes what sleeps (idle.py), at ordinary priority:
requests wait for it. Each kind of work has one thread of its own, so that a
rollback never waits for a candidate to load, and no two flips interleave. What is in memory (`_known`) is shared by
both, under a lock that is held for an assignment.

What stays loaded, and by which names, choosing.py says. A version that sleeps is woken before it is flipped to.

A candidate that is damaged, of another shape or not finite never enters the table: it is refused with a reason, which
becomes an event and a line of decisions.jsonl. One for which there is no memory is refused too, but that is no verdict
about it; nor is it one where the GPU fails meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from trimtab.models.errors import ModelError, VersionUnfit
from trimtab.models.faults import first_line, is_fault, is_out_of_memory, let_go
from trimtab.models.loading import Loader, Version
from trimtab.models.sleeping import Sleepers
from trimtab.server.choosing import aliases, check_alias, others, wanted
from trimtab.server.engine import Engine
from trimtab.server.errors import DeviceLost, InvalidRequest, NoRoom, ServerError, StartError, Unfit
from trimtab.server.events import EventBus
from trimtab.server.idle import Idle
from trimtab.server.memory import ModelMemory, freed, sizes_of
from trimtab.server.naps import Naps
from trimtab.server.probe import Latency, batch_sizes, check_finite, check_like, measure
from trimtab.store.errors import StoreError, VersionDamaged, VersionUnknown
from trimtab.store.live import Live, LiveStore
from trimtab.store.manifest import WEIGHTS
from trimtab.store.priority import yield_to_others
from trimtab.store.versions import Decision, VersionStore

__all__ = ["Staged", "Swap"]

_KEEP_STAGED = 2
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Staged:
    """What staging found. Times in seconds."""

    version: Version
    load_seconds: float
    warm_seconds: float
    latency: Latency


class Swap:
    """The versions of one engine."""

    def __init__(
        self,
        engine: Engine,
        versions: VersionStore,
        live: LiveStore,
        events: EventBus,
        *,
        load: Loader,
        memory: ModelMemory,
        idle: Idle,
        sleepers: Sleepers,
        between: Callable[[Callable[[], None]], Future[None]],
        threads: int,
        first: Callable[[], object] | None = None,
        on_fault: Callable[[str], None] | None = None,
    ) -> None:
        """`load` loads a version, by way of `sleepers`; `between` runs something on the compute thread; `first`
        publishes the first one, where nothing is published and that is possible. `on_fault` is called, on the stage or
        wake thread, with what happened where one found the GPU lost."""
        self.engine = engine
        self.versions = versions
        self.live = live
        self.promotions = 0
        self.rollbacks = 0
        self.refusals = 0
        self._events = events
        self._load_version = load
        self._memory = memory
        self._idle = idle
        self._publish_first = first
        self._on_fault = on_fault
        self._lock = threading.Lock()
        self._staged: dict[int, Staged] = {}
        self._added: set[int] = set()
        self._brought: set[int] = set()
        self._known: dict[int, Version] = {}
        self._current = Live(live=0)

        def pool(name: str) -> ThreadPoolExecutor:
            return ThreadPoolExecutor(1, f"trimtab-{name}-{engine.name}", begin, (name == "stage",))

        def begin(patient: bool) -> None:
            torch.set_num_threads(threads)
            if patient:
                yield_to_others()

        self._stager, self._flipper, self._waker = pool("stage"), pool("flip"), pool("wake")
        self.naps = Naps(
            engine,
            events,
            memory,
            idle,
            sleepers,
            load=self._wake,
            known=lambda: dict(self._known),
            live=lambda: self._current.live,
            between=between,
        )
        engine.on_wanted = self._wanted

    # --- start and stop

    def startup(self) -> Version:
        """Loads and installs the live version, the one before it, and what aliases and the policy name; returns the
        live one. Blocks.

        Without a live.json, the initial version goes live. If the live version's files are damaged, the previous one
        takes its place, loudly. Raises StartError where nothing can serve.
        """
        name = self.engine.name
        try:
            current = self.live.read() or self._first()
        except StoreError as error:
            raise StartError(f"model {name!r}: {error}") from None
        try:
            live = self._load(current.live)
        except (VersionUnfit, Unfit) as error:
            current, live = self._fall_back(current, error)
        self._current = current
        self._known = {live.number: live}
        if current.previous is not None:
            self._try("the previous version cannot be kept warm", current.previous)
        for alias, number in current.aliases.items():
            self._try(f"alias {alias!r} stands for nothing", number)
        self._add_others()
        with self._lock:
            self._install()
        return live

    def close(self) -> None:
        """Waits for what is under way, and counts no memory any more."""
        self._idle.remove(self.engine.name)
        self.naps.close()
        self._stager.shutdown(cancel_futures=True)
        self._flipper.shutdown(cancel_futures=True)
        self._waker.shutdown(cancel_futures=True)
        self._memory.forget(self.engine.name)

    # --- what the lifecycle asks for, on the loop

    @property
    def current(self) -> Live:
        """What live.json says."""
        return self._current

    @property
    def staged(self) -> frozenset[int]:
        """The candidates that are loaded."""
        return frozenset(self._staged)

    async def stage(self, number: int) -> Staged:
        """Loads, checks, warms and probes a version. Raises VersionUnknown, or Unfit with the reason for refusing
        it."""
        return await self._on(self._stager, lambda: self._stage(number))

    async def promote(self, number: int, expected_epoch: int, reason: str) -> Live:
        """Makes a version live, staging it first where need be; `expected_epoch` -1: whatever it is.

        Promoting what is live already changes nothing. Raises StaleEpoch, VersionUnknown, Unfit, StoreError.
        """
        if number == self._current.live:
            return self._current
        await self._ready(number)
        return await self._on(self._flipper, lambda: self._promote(number, expected_epoch, reason))

    async def rollback(self, reason: str) -> Live:
        """Makes the previous version live again, at once. Raises Unfit where there is none, StoreError."""
        previous = self._current.previous
        if previous is None:
            raise Unfit(f"model {self.engine.name!r}: version {self._current.live} has no previous one to go back to")
        await self._ready(previous)
        return await self._on(self._flipper, lambda: self._rollback(reason))

    async def alias(self, name: str, number: int, expected_epoch: int) -> Live:
        """Makes a name stand for a version, which is loaded where need be; number 0 takes the name away.

        Raises InvalidRequest, StaleEpoch, VersionUnknown, Unfit, StoreError.
        """
        check_alias(name)
        if number < 0:
            raise InvalidRequest(f"alias {name!r}: expected a version, or 0 to take it away, got {number}")
        try:
            if number and number not in self._known:
                await self._on(self._stager, lambda: self._bring(number))
            return await self._on(self._flipper, lambda: self._alias(name, number, expected_epoch))
        finally:
            self._brought.discard(number)

    async def refresh(self) -> None:
        """Loads what the version policy wants now, and lets go what it does not."""
        await self._on(self._stager, self._refresh)

    async def _ready(self, number: int) -> None:
        """Stages the version, or wakes it, where need be."""
        if number not in self._known:
            await self.stage(number)
        elif number in self.naps.asleep:
            await self._on(self._waker, lambda: self.naps.wake(number))

    async def _on(self, pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, work)

    # --- the stage thread

    def _stage(self, number: int) -> Staged:
        known = self._staged.get(number)
        recipe = ""
        try:
            manifest = self.versions.manifest(number)
            recipe = manifest.recipe
            if known is not None:
                # It is in memory; what could have changed since is on disk, where the next start reads it.
                self.versions.verify(number)
                return known
            began = time.monotonic()
            version = self._load_reserved(number)
            loaded = time.monotonic()
            check_like(version, self.engine.schema, self.engine.table.live)
            most = self.engine.policy.max_batch_size
            with self._no_verdict(number):
                version.warm(batch_sizes(most))
                check_finite(version, self.engine.recent)
                warmed = time.monotonic()
                staged = Staged(version, loaded - began, warmed - loaded, measure(version, most))
        except (NoRoom, DeviceLost):
            self._forget(number)
            raise
        except VersionUnknown:
            raise
        except (VersionUnfit, VersionDamaged, Unfit) as error:
            raise self._refuse(number, str(error), recipe) from error
        except Exception as error:
            # Whatever a candidate breaks with, it is the candidate that is refused.
            reason = f"version {number}: {type(error).__name__}: {error}"
            raise self._refuse(number, reason, recipe) from error
        with self._lock:
            self._staged[number] = staged
            self._known[number] = version
            for old in list(self._staged)[:-_KEEP_STAGED]:
                del self._staged[old]
            self._install()
        message = f"version {number} is staged ({manifest.rows_trained} rows trained)"
        self._events.publish("staged", self.engine.name, message, version=number)
        return staged

    @contextlib.contextmanager
    def _no_verdict(self, number: int) -> Iterator[None]:
        """Raises NoRoom or DeviceLost in place of what a version fails with by no fault of its own."""
        try:
            yield
        except ServerError:
            raise
        except Exception as error:
            name, reason = self.engine.name, first_line(error)
            if is_out_of_memory(error):
                let_go()
                why = "there is no memory left to load and try it; unload models or versions, or lower max_batch_size"
                raise NoRoom(f"model {name!r} version {number}: {why} ({reason})") from error
            if is_fault(error):
                text = f"model {name!r} version {number}: the GPU is lost to this server, which restarts: {reason}"
                if self._on_fault is not None:
                    self._on_fault(text)
                raise DeviceLost(text) from error
            raise

    def _wanted(self, number: int) -> None:
        """On the compute thread: a request waits for a version that sleeps."""
        # Once the model is being closed, what waits is answered by whoever closes it.
        with contextlib.suppress(RuntimeError):
            self._waker.submit(self.naps.wake_for_requests, number)

    def _wake(self, number: int) -> Version:
        with self._no_verdict(number):
            version = self._load_version(number)
            version.warm(sorted({1, self.engine.policy.max_batch_size}))
        return version

    def _forget(self, number: int) -> None:
        """What is reserved for a version that did not come to be loaded."""
        with self._lock:
            self._staged.pop(number, None)
        self._release(number)

    def _release(self, number: int) -> None:
        """One that was loaded before is counted as it was."""
        self._memory.release(self.engine.name, number)
        self._memory.count(self.engine.name, sizes_of(self._known))

    def _bring(self, number: int) -> None:
        """Loads a version that an alias is to stand for; the flip installs it."""
        self._brought.add(number)
        if number not in self._known:
            self.versions.manifest(number)
            self._learn(self._load(number))

    def _refresh(self) -> None:
        self._add_others()
        with self._lock:
            self._install()

    def _add_others(self) -> None:
        """Loads what the version policy adds. One that cannot be loaded keeps the others from nothing."""
        try:
            found = others(self.engine.settings.versions, self.versions.numbers(), self.versions.decisions())
        except StoreError as error:
            self._events.publish("refused", self.engine.name, f"the version policy cannot be followed: {error}")
            return
        self._added = found
        for number in sorted(found):
            self._try(f"version {number} of the version policy is not loaded", number)

    def _try(self, what: str, number: int) -> None:
        if number in self._known:
            return
        try:
            self._learn(self._load(number, kept=True))
        except (VersionUnfit, Unfit) as error:
            self._events.publish("refused", self.engine.name, f"{what}: {error}", version=number)

    def _learn(self, version: Version) -> None:
        with self._lock:
            self._known[version.number] = version
            # All of them: what they share is counted with the first, which may be another now.
            self._memory.count(self.engine.name, sizes_of(self._known))

    def _refuse(self, number: int, reason: str, recipe: str) -> Unfit:
        self._forget(number)
        self.refusals += 1
        self._events.publish("refused", self.engine.name, reason, version=number)
        self._record(number, reason, recipe)
        return Unfit(reason)

    def _record(self, number: int, reason: str, recipe: str = "") -> None:
        """Appends the verdict. The refusal stands also where that cannot be written."""
        try:
            self.versions.decide(Decision(version=number, verdict="refused", reason=reason, recipe=recipe))
        except StoreError as error:
            message = f"the refusal of version {number} could not be recorded: {error}"
            self._events.publish("refused", self.engine.name, message, version=number)

    # --- the flip thread

    def _promote(self, number: int, expected_epoch: int, reason: str) -> Live:
        current = self._current
        if current.live == number:
            return current
        self._require(number)
        live = Live(live=number, previous=current.live, aliases=current.aliases)
        self._flip(live, expected_epoch, reason or "promoted")
        self.promotions += 1
        message = f"version {number} is live, after {current.live}: {reason or 'no reason given'}"
        self._events.publish("promoted", self.engine.name, message, version=number)
        return self._current

    def _rollback(self, reason: str) -> Live:
        current = self._current
        if current.previous is None:
            raise Unfit(f"model {self.engine.name!r}: version {current.live} has no previous one to go back to")
        self._require(current.previous)
        live = Live(live=current.previous, previous=current.live, aliases=current.aliases)
        self._flip(live, -1, f"rolled back from version {current.live}: {reason or 'no reason given'}")
        self.rollbacks += 1
        self._events.publish("rolled_back", self.engine.name, self._current.reason, version=self._current.live)
        return self._current

    def _alias(self, name: str, number: int, expected_epoch: int) -> Live:
        current = self._current
        changed = {key: value for key, value in current.aliases.items() if key != name}
        if number:
            self._require(number)
            changed[name] = number
        if changed != current.aliases:
            reason = f"alias {name!r} stands for version {number}" if number else f"alias {name!r} was taken away"
            self._flip(current.model_copy(update={"aliases": changed}), expected_epoch, reason)
        return self._current

    def _require(self, number: int) -> None:
        if number not in self._known:
            raise Unfit(f"version {number} was unloaded meanwhile; stage it again")

    def _flip(self, live: Live, expected_epoch: int, reason: str) -> None:
        """live.json first: after a crash in between, the next start serves what the file says."""
        self._current = self.live.swap(live, expected_epoch=expected_epoch, reason=reason)
        with self._lock:
            self._staged.pop(live.live, None)
            self._install()

    # --- both

    def _install(self) -> None:
        """Under the lock: the table of what is to be loaded, from what is known; the rest is let go."""
        keep = wanted(self._current, self._staged, self._added | self._brought)
        self._known = {number: version for number, version in self._known.items() if number in keep}
        names = aliases(self._current, list(self._staged), self._known)
        self.engine.install(self._known[self._current.live], self._known, names)
        self._memory.keep(self.engine.name, sizes_of(self._known))
        self.naps.changed()

    def _load_reserved(self, number: int, *, kept: bool = False) -> Version:
        """Loads a version within the bound on memory; unless it is merely to be kept, others are put to sleep for it.
        Raises NoRoom, VersionUnfit."""
        name = self.engine.name
        try:
            size = (self.versions.path(number) / WEIGHTS).stat().st_size
        except OSError:
            size = 0  # whoever reads the file says what is wrong
        reserve = self._memory.reserve if kept else self._idle.reserve
        reserve(name, number, size)
        try:
            with self._no_verdict(number):
                version = self._load_version(number)
            reserve(name, number, freed({**self._known, number: version}, number))
        except BaseException:
            self._release(number)
            raise
        return version

    def _load(self, number: int, *, kept: bool = False) -> Version:
        version = self._load_reserved(number, kept=kept)
        try:
            check_like(version, self.engine.schema, None)
            with self._no_verdict(number):
                version.warm(batch_sizes(self.engine.policy.max_batch_size))
        except BaseException:
            self._release(number)
            raise
        return version

    # --- start

    def _first(self) -> Live:
        """Nothing was live yet: the initial version goes live."""
        if self._publish_first is not None and not self.versions.numbers():
            try:
                self._publish_first()
            except ModelError as error:
                raise StartError(f"model {self.engine.name!r}: {error}") from None
        published = self.versions.numbers()
        initial = [decision.version for decision in self.versions.decisions() if decision.verdict == "initial"]
        number = max((n for n in initial if n in published), default=1 if 1 in published else 0)
        if not number:
            raise StartError(f"model {self.engine.name!r} has no version to serve; `trimtab train` makes version 1")
        try:
            self._load(number)
        except (VersionUnfit, Unfit) as error:
            raise StartError(f"model {self.engine.name!r}: {error}") from None
        return self.live.swap(Live(live=number), expected_epoch=0, reason="first start")

    def _fall_back(self, current: Live, error: Exception) -> tuple[Live, Version]:
        name = self.engine.name
        if current.previous is None:
            raise StartError(f"model {name!r}: {error}; there is no previous version to serve instead")
        try:
            version = self._load(current.previous)
        except (VersionUnfit, Unfit) as second:
            raise StartError(f"model {name!r}: {error}; and of the previous version: {second}") from None
        reason = f"version {current.live} was live and cannot be loaded ({error}); version {version.number} serves"
        fallen = Live(live=version.number, aliases=current.aliases)
        try:
            live = self.live.swap(fallen, expected_epoch=current.epoch, reason=reason)
        except StoreError as failure:
            raise StartError(f"model {name!r}: {failure}") from None
        self._events.publish("rolled_back", name, reason, version=version.number)
        self._record(current.live, str(error))
        return live, version
