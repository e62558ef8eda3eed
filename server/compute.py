"""The compute thread of a device: takes one batch at a time from the hub and has its engine run it. Serves all engines.

Which model goes next, and what becomes a batch, the hub decides (csrc/hub.h). Waiting for a batch, reading its rows and
encoding its answers happen without the GIL.

Tasks (`run_between_batches`) run between two batches: a barrier, and the place where other threads may touch what this
one owns.
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


class ComputeThread:
    """`startup`, then batches until `shutdown`, which computes what is queued and ends."""

    def __init__(self, device: str, threads: int, hub: Hub) -> None:
        self.device = device
        self.hub = hub
        self._threads = threads
        self._engines: Mapping[str, Engine] = {}
        self._tasks: queue.SimpleQueue[Task] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"trimtab-compute-{device}", daemon=True)
        self._closing = False

    def startup(self, engines: Mapping[str, Engine]) -> None:
        """Serves these engines, by name, from now on; the mapping may change meanwhile."""
        self._engines = engines
        self._thread.start()

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
        if not self._thread.is_alive():
            return True
        self._closing = True
        self.hub.close()
        self.hub.wake()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        torch.set_num_threads(self._threads)
        while True:
            # Read first: what came before closing was noticed is still computed.
            closing = self._closing
            idle = not self._step()
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
        else:
            engine.run(batch)
        return True
