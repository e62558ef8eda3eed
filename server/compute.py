"""The compute thread of a device: takes one batch at a time from the hub and has its engine run it. Serves all engines.

Which model goes next, and what becomes a batch, the hub decides (csrc/hub.h). Waiting for a batch, reading its rows and
encoding its answers happen without the GIL.

Tasks (`run_between_batches`) run between two batches: a barrier, and the place where other threads may touch what this
one owns.

A model that stalls would stop all others, since they share the thread. So a watchdog looks at what is being computed: a
batch that takes longer than `stall_seconds` is given up. Its requests are answered UNAVAILABLE, its model takes no
requests until the batch has come to an end after all, and a fresh thread serves the other models meanwhile; the old one
leaves when it gets that far. A thread for each model was turned down: on one device they only take turns, by the
system's choice in place of the hub's. What no watchdog can help with is code that keeps the interpreter's lock.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import math
import queue
import threading
from collections.abc import Callable, Mapping

import torch
from trimtab._native import Hub
from trimtab.server.engine import Engine
from trimtab.server.errors import Draining, NotFound, status_number

__all__ = ["ComputeThread"]

_log = logging.getLogger(__name__)
Task = Callable[[], None]
_LOOKS = 4
"""Of the watchdog, in the time that a batch may take."""


class ComputeThread:
    """`startup`, then batches until `shutdown`, which computes what is queued and ends."""

    def __init__(
        self,
        device: str,
        threads: int,
        hub: Hub,
        *,
        stall_seconds: float = 0.0,
        on_stall: Callable[[str, bool], None] | None = None,
    ) -> None:
        """`stall_seconds` 0: no watchdog. `on_stall` is called, on some thread, with the model's name and whether it
        stalls or has recovered."""
        self.device = device
        self.hub = hub
        self._threads = threads
        self._engines: Mapping[str, Engine] = {}
        self._tasks: queue.SimpleQueue[Task] = queue.SimpleQueue()
        self._stall_seconds = stall_seconds
        self._on_stall = on_stall
        self._lock = threading.Lock()
        self._thread = self._new_thread()
        self._started = False
        self._closing = False
        self._closed = threading.Event()
        self._watchdog = threading.Thread(target=self._watch, name=f"trimtab-watchdog-{device}", daemon=True)

    def startup(self, engines: Mapping[str, Engine]) -> None:
        """Serves these engines, by name, from now on; the mapping may change meanwhile."""
        self._engines = engines
        self._started = True
        self._thread.start()
        if self._stall_seconds:
            self._watchdog.start()

    def run_between_batches(self, task: Task) -> concurrent.futures.Future[None]:
        """Runs the task on this thread, between batches, after those that were answered before."""
        done: concurrent.futures.Future[None] = concurrent.futures.Future()

        def run() -> None:
            try:
                task()
            except Exception as error:
                done.set_exception(error)
            else:
                done.set_result(None)

        self._tasks.put(run)
        self.hub.wake()
        return done

    async def barrier(self) -> None:
        """Returns when the rows of every batch answered so far have gone to captures and drift windows."""
        await asyncio.wrap_future(self.run_between_batches(lambda: None))

    def shutdown(self, timeout: float) -> bool:
        """Computes what is queued, without waiting for company, and ends the thread. False if that took too long."""
        if not self._started:
            return True
        with self._lock:
            self._closing = True
            thread = self._thread
        self.hub.close()
        self.hub.wake()
        thread.join(timeout)
        self._closed.set()
        return not thread.is_alive()

    # --- the thread

    def _new_thread(self) -> threading.Thread:
        return threading.Thread(target=self._run, name=f"trimtab-compute-{self.device}", daemon=True)

    def _run(self) -> None:
        torch.set_num_threads(self._threads)
        me = threading.current_thread()
        while True:
            # Read first: what came before closing was noticed is still computed.
            closing = self._closing
            idle = not self._step() and not self._pass_on_wishes()
            if self._thread is not me:
                return  # another has taken over
            while not self._tasks.empty():
                self._tasks.get()()
            if closing and idle:
                break
        self.hub.clear(status_number(Draining("")), "the server stops")

    def _step(self) -> bool:
        """Runs one batch; False where there was none before something else called. The batch's slab goes back to the
        hub on return, before the next one is filled."""
        batch = self.hub.take(math.inf)
        if batch is None:
            return False
        engine = self._engines.get(batch.model)
        if engine is None:
            batch.fail(status_number(NotFound("")), f"model {batch.model!r} was unloaded")
            return True
        engine.run(batch)
        if engine.stalled:
            engine.recover()
            self._tell(engine.name, stalls=False)
        return True

    def _pass_on_wishes(self) -> bool:
        """Tells engines which of their versions that sleep are asked for; whether any are."""
        wanted = self.hub.wanted()
        for name, number in wanted:
            engine = self._engines.get(name)
            if engine is not None:
                engine.on_wanted(number)
        return bool(wanted)

    # --- the watchdog

    def _watch(self) -> None:
        while not self._closed.wait(self._stall_seconds / _LOOKS):
            for engine in list(self._engines.values()):
                if engine.give_up(self._stall_seconds):
                    self._replace()
                    self._tell(engine.name, stalls=True)

    def _replace(self) -> None:
        with self._lock:
            self._thread = self._new_thread()
            self._thread.start()

    def _tell(self, name: str, *, stalls: bool) -> None:
        if self._on_stall is not None:
            self._on_stall(name, stalls)
