"""The compute thread of a device: takes what is queued, forms one batch at a time, computes it. Serves all engines.

Requests arrive through a SimpleQueue, which needs no lock of ours and wakes the thread. The queues proper belong to
this thread, so that the batching policy sees a still picture. Among engines that could run, the one whose oldest
request has waited longest goes first.

Tasks (`run_between_batches`) go the same way and run between two batches, in order with the requests sent before
them: a barrier, and the place where other threads may touch what this one owns.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from trimtab.server.batching import NEVER
from trimtab.server.engine import Engine, Request
from trimtab.server.errors import BatchFailed, Draining

__all__ = ["ComputeThread"]

_log = logging.getLogger(__name__)
Task = Callable[[], None]


class ComputeThread:
    """`startup`, then requests through `submit`; `shutdown` computes what is queued and ends."""

    def __init__(self, device: str, threads: int) -> None:
        self.device = device
        self._threads = threads
        self._engines: list[Engine] = []
        self._inbox: queue.SimpleQueue[list[Request] | Task] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"trimtab-compute-{device}", daemon=True)
        self._closing = False
        self._arrived: list[Request] = []

    def submit(self, request: Request) -> None:
        """Takes a request, on the loop. Those of one turn of the loop are sent together, and wake the thread once."""
        if not self._arrived:
            asyncio.get_running_loop().call_soon(self._send)
        self._arrived.append(request)

    def _send(self) -> None:
        arrived, self._arrived = self._arrived, []
        self._inbox.put(arrived)

    def startup(self, engines: Sequence[Engine]) -> None:
        """Serves these engines from now on."""
        self._engines = list(engines)
        self._thread.start()

    def run_between_batches(self, task: Task) -> concurrent.futures.Future[None]:
        """Runs the task on this thread, between batches, after what was sent to it before."""
        done: concurrent.futures.Future[None] = concurrent.futures.Future()

        def run() -> None:
            try:
                task()
            except Exception as error:
                done.set_exception(error)
            else:
                done.set_result(None)

        self._inbox.put(run)
        return done

    async def barrier(self) -> None:
        """Returns when the rows of every batch answered so far have gone to captures and drift windows."""
        await asyncio.wrap_future(self.run_between_batches(lambda: None))

    def shutdown(self, timeout: float) -> bool:
        """Computes what is queued, without waiting for company, and ends the thread. False if that took too long."""
        if not self._thread.is_alive():
            return True
        self._inbox.put(self._close)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _close(self) -> None:
        self._closing = True

    def _run(self) -> None:
        torch.set_num_threads(self._threads)
        wait_until = 0
        while True:
            self._receive(wait_until)
            wait_until = self._step()
            if self._closing and wait_until == NEVER:
                break
        for engine in self._engines:
            left = engine.clear()
            if left:
                engine.fail(left, Draining("the server stops"))

    def _receive(self, wait_until: int) -> None:
        """Takes everything out of the inbox; waits for something to come until `wait_until` (ns) at the latest."""
        inbox = self._inbox
        try:
            if wait_until == NEVER:
                item = inbox.get()
            elif wait_until:
                item = inbox.get(timeout=max(0.0, (wait_until - time.monotonic_ns()) * 1e-9))
            else:
                item = inbox.get_nowait()
            while True:
                if isinstance(item, list):
                    for request in item:
                        request.engine.add(request)
                else:
                    item()
                item = inbox.get_nowait()
        except queue.Empty:
            return

    def _step(self) -> int:
        """Runs one batch, if there is one to run. Returns when to look again: 0 at once, NEVER on arrival only, else
        ns."""
        wait_until = NEVER
        for engine in sorted(self._engines, key=_oldest) if len(self._engines) > 1 else self._engines:
            if engine.oldest == NEVER:
                continue
            try:
                decision, version = engine.decide(time.monotonic_ns(), flush=self._closing)
            except Exception as error:
                # Nothing in the policy may raise; if it does, its requests fail and the others are served on.
                _log.exception("batching of model %s failed", engine.name)
                engine.fail(engine.clear(), BatchFailed(f"{type(error).__name__}: {error}"))
                continue
            if decision.batch:
                engine.run(decision.batch, decision.version, version)
                return 0
            wait_until = min(wait_until, decision.wait_until)
        return wait_until


def _oldest(engine: Any) -> int:
    oldest: int = engine.oldest
    return oldest
