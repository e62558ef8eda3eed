"""One model's serving: admission on the loop's side, batches on the compute thread's side.

Threads and ownership:
  loop      `submit` checks and admits a request, and hands it to the compute thread's inbox.
  compute   `add`, `decide`, `run` own the queue, the slab, the drift sketch and the counts. A batch reads which
            version is live once, in `decide`, and is computed, answered and captured with that one.
  swap      `install` replaces the table of loaded versions as a whole; the next batch sees it.

There is no lock. How much waits is the difference of two counters, each with one writer (loop, compute). The table is
never changed in place. Answers go back with one call_soon_threadsafe a batch.

Answers leave before the rows go to the capture writer: a client does not wait for it. Whoever needs the captures of
everything that was answered goes through the compute thread first (ComputeThread.run_between_batches).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from trimtab._native import InferRequest, Slab, WireError, encode_infer_responses
from trimtab.kernels.sketch import Sketch
from trimtab.models.version import LoadedVersion
from trimtab.server.batching import LIVE, Decision, Policy, Queue, Waiting
from trimtab.server.errors import BatchFailed, DeadlinePassed, InvalidRequest, NotFound, QueueFull
from trimtab.server.keeping import Capture, ClosedWindow, Keeper
from trimtab.server.statistics import ModelCounts
from trimtab.store.ids import format_id, new_request_id
from trimtab.store.settings import ModelSettings

__all__ = ["Engine", "Request", "Table"]

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False, kw_only=True)
class Request(Waiting):
    """A request that waits, and where its answer goes."""

    engine: Engine
    decoded: InferRequest
    wanted: list[str] | None
    """Outputs asked for; None: all."""
    time_us: int
    """Data time of its rows."""
    size: int
    """Bytes of its message."""
    future: asyncio.Future[bytes]


@dataclass(frozen=True, slots=True)
class Table:
    """Which versions are loaded. Replaced as a whole."""

    live: LoadedVersion
    loaded: Mapping[int, LoadedVersion]


class Engine:
    """See the module."""

    def __init__(
        self,
        settings: ModelSettings,
        *,
        loop: asyncio.AbstractEventLoop,
        inbox: Callable[[Request], None],
        capture: Capture | None,
        on_window: Callable[[ClosedWindow], None] | None,
        max_queue_bytes: int = 1 << 30,
    ) -> None:
        """`inbox` takes requests to the compute thread; `on_window` is called there with each closed drift window."""
        self.settings = settings
        self.name = settings.name
        self.schema = settings.request_schema()
        self.policy = _policy(settings, max_queue_bytes)
        self.counts = ModelCounts()
        self.keeper = Keeper(self.schema, settings.drift.window_rows, capture, on_window)
        self._table: Table | None = None
        self._loop = loop
        self._inbox = inbox
        self._queue: Queue[Request] = Queue(self.policy)
        self._slab = Slab(self.schema)
        self._submitted = self._submitted_bytes = 0
        self._left = self._left_bytes = 0

    # --- any thread

    @property
    def table(self) -> Table:
        """The versions that are loaded. Raises NotFound before the first one is."""
        if self._table is None:
            raise NotFound(f"model {self.name!r} has no version yet")
        return self._table

    @property
    def ready(self) -> bool:
        """Whether a version serves."""
        return self._table is not None

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return self._submitted - self._left

    def install(self, live: LoadedVersion, loaded: Mapping[int, LoadedVersion]) -> None:
        """From the next batch on, `live` answers; `loaded` may be asked for by number. Called by the swap alone."""
        self._table = Table(live, MappingProxyType(dict(loaded)))

    # --- the loop

    def submit(self, decoded: InferRequest, size: int, remaining: float | None) -> Request:
        """Checks a request of `size` bytes with `remaining` seconds to live, admits it and queues it.

        Its `future` gets the encoded answer. Raises WireError, InvalidRequest, NotFound, QueueFull, DeadlinePassed.
        """
        table = self.table
        version = LIVE if not decoded.model_version else self._version(decoded.model_version, table)
        rows = decoded.check(self.schema)
        now = time.monotonic_ns()
        deadline = self.policy.deadline(now, remaining, _timeout(decoded))
        if deadline <= now:
            raise DeadlinePassed("the deadline passed before the request was queued")
        if not self.policy.admits(self.waiting, self._submitted_bytes - self._left_bytes + size):
            raise QueueFull(
                f"model {self.name!r}: {self.waiting} requests wait (max_queue_size {self.policy.max_queue_size}); "
                "try again later"
            )
        request = Request(
            rows,
            version,
            now,
            deadline,
            engine=self,
            decoded=decoded,
            wanted=self._wanted(decoded.requested_outputs, table.live),
            time_us=time.time_ns() // 1000 if decoded.time_us is None else decoded.time_us,
            size=size,
            future=self._loop.create_future(),
        )
        self._submitted += 1
        self._submitted_bytes += size
        self._inbox(request)
        return request

    def _version(self, text: str, table: Table) -> int:
        number = int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else -1
        if number not in table.loaded:
            known = ", ".join(map(str, sorted(table.loaded)))
            raise NotFound(f"model {self.name!r} has no version {text!r} loaded; loaded: {known}")
        return number

    def _wanted(self, names: list[str], live: LoadedVersion) -> list[str] | None:
        if not names:
            return None
        known = [name for name, _, _ in live.task.outputs()]
        for name in names:
            if name not in known:
                raise InvalidRequest(f"output {name!r}: expected one of {known}")
        return names

    # --- the compute thread

    def add(self, request: Request) -> None:
        """Queues a request from the inbox."""
        self._queue.add(request)

    @property
    def oldest(self) -> int:
        """Arrival of the request that has waited longest, ns."""
        return self._queue.oldest

    def decide(self, now: int, *, flush: bool) -> tuple[Decision[Request], LoadedVersion | None]:
        """What to do at `now` (ns), with the version for it; answers what has expired."""
        table = self.table
        decision = self._queue.decide(now, table.live.number, flush=flush)
        if decision.expired:
            self._leave(decision.expired)
            self.counts.expired += len(decision.expired)
            self.fail(decision.expired, DeadlinePassed("the deadline passed in the queue; the work was not done"))
        if decision.cancelled:
            self._leave(decision.cancelled)
            self.counts.cancelled += len(decision.cancelled)
        version = table.live if decision.version == table.live.number else table.loaded.get(decision.version)
        return decision, version

    def run(self, batch: list[Request], number: int, version: LoadedVersion | None) -> None:
        """Computes and answers a batch of requests. Whatever goes wrong is answered too, and never raised."""
        self._leave(batch)
        began = time.monotonic_ns()
        try:
            if version is None:
                raise NotFound(f"model {self.name!r}: version {number} is not loaded any more")
            self._compute(batch, version, began)
        except Exception as error:
            self.counts.failure(number, [request.arrived for request in batch], time.monotonic_ns())
            reason = error if isinstance(error, NotFound) else BatchFailed(f"{type(error).__name__}: {error}")
            self.fail(batch, reason)

    def fail(self, batch: Sequence[Request], error: Exception) -> None:
        """Answers all requests of a batch with one error, but those that are answered already."""
        self._call(_raise, batch, error)

    def clear(self) -> list[Request]:
        """Takes all that waits out of the queue."""
        gone = self._queue.clear()
        self._leave(gone)
        return gone

    def _leave(self, requests: Sequence[Request]) -> None:
        self._left += len(requests)
        self._left_bytes += sum(request.size for request in requests)

    def _compute(self, batch: list[Request], version: LoadedVersion, began: int) -> None:
        slab = self._slab
        slab.clear()
        batch = self._read(batch, slab, version.number)
        if not batch:
            return
        counts = [request.rows for request in batch]
        read = time.monotonic_ns()
        sketch = self.keeper.sketch(version, self.table.live)
        predictions = self._predict(version, slab, sketch)
        computed = time.monotonic_ns()
        ids = [new_request_id() for _ in batch]
        (name, datatype, _) = version.task.outputs()[0]
        answers = encode_infer_responses(
            self.name,
            str(version.number),
            version.weights,
            [request.decoded.id for request in batch],
            [format_id(request_id) for request_id in ids],
            counts,
            [(name, datatype, predictions)],
            [request.wanted for request in batch],
        )
        encoded = time.monotonic_ns()
        # Counted first, so that whoever has an answer finds it in the statistics.
        arrived = [request.arrived for request in batch]
        self.counts.batch(version.number, arrived, slab.rows, (began, read, computed, encoded))
        self._call(_answer, batch, answers)
        times = np.array([request.time_us for request in batch], np.int64)
        try:
            self.keeper.keep(slab, ids, counts, times, version, predictions, sketch)
        except Exception:
            # The requests are answered; that their rows are lost is for the log.
            _log.exception("model %s: rows of a batch could not be kept", self.name)
        if slab.rows > 4 * self.policy.max_batch_size:
            # The memory of an unusually large request is not kept for ever.
            self._slab = Slab(self.schema)

    def _read(self, batch: list[Request], slab: Slab, number: int) -> list[Request]:
        """Fills the slab; a request that cannot be read fails alone."""
        good = []
        for request in batch:
            try:
                request.decoded.append_to(slab)
            except (WireError, ValueError) as error:
                self.counts.failure(number, [request.arrived], time.monotonic_ns())
                self.fail([request], InvalidRequest(str(error)))
            else:
                good.append(request)
        return good

    def _predict(self, version: LoadedVersion, slab: Slab, sketch: Sketch | None) -> NDArray[np.float32]:
        most = self.policy.max_batch_size
        if slab.rows <= most:
            return version.predict(slab, sketch)
        parts = [
            version.predict(slab, sketch, start, min(start + most, slab.rows)) for start in range(0, slab.rows, most)
        ]
        return np.concatenate(parts)

    def _call(self, function: Callable[..., None], batch: Sequence[Request], result: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, batch, result)
        except RuntimeError:
            # The loop is closed: a second signal ended the process' patience, and nobody waits any more.
            return


def _answer(batch: Sequence[Request], answers: Sequence[bytes]) -> None:
    for request, answer in zip(batch, answers, strict=True):
        if not request.future.done():
            request.future.set_result(answer)


def _raise(batch: Sequence[Request], error: Exception) -> None:
    for request in batch:
        if not request.future.done():
            request.future.set_exception(error)


def _timeout(decoded: InferRequest) -> int | None:
    value = decoded.parameters.get("timeout")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidRequest(f"parameter 'timeout': expected microseconds (an integer, 0 or more), got {value!r}")
    return value


def _policy(settings: ModelSettings, max_queue_bytes: int) -> Policy:
    batching = settings.batching
    return Policy(
        max_batch_size=batching.max_batch_size,
        max_queue_delay=batching.max_queue_delay_microseconds * 1000,
        preferred=tuple(sorted(batching.preferred_batch_size)),
        max_queue_size=batching.max_queue_size,
        max_queue_bytes=max_queue_bytes,
        default_timeout=batching.default_timeout_microseconds * 1000,
    )
