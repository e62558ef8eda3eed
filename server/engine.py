"""One model's serving on the Python side: its versions, and what a batch goes through on a compute thread.

Requests never come here. The native hub (csrc/hub.h) decodes, checks, admits and queues them, decides what becomes a
batch and of which version, and encodes the answers; a batch comes out with its rows read into a slab.

Threads and ownership:
  compute   `run` owns the drift sketch and the keeper. A batch was resolved to one version when it formed, and is
            computed, answered and captured with that one.
  swap      `install` replaces the table of loaded versions as a whole, then tells the hub; the next batch sees it. The
            table before is kept, for a batch that formed just before.

  stage     `put_to_sleep` and `wake_up`: requests for a version that sleeps wait in the hub (idle.py).
  watchdog  `give_up` answers a batch in place of the compute thread, where that takes too long. Whoever holds
            `_answering` answers; `_computing` says whether there is still something to answer.

Answers leave before the rows go to the capture writer: a client does not wait for it. Whoever needs the captures of
everything that was answered goes through the compute thread first (ComputeThread.run_between_batches).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from trimtab._native import Batch, BatchPolicy, Hub, QueuePolicy, Schema, Slab, TensorSchema, TensorSlab
from trimtab.kernels.sketch import Sketch
from trimtab.models.faults import first_line, is_fault, is_out_of_memory, let_go
from trimtab.models.loading import Version, inputs_of, labels_of, outputs_of
from trimtab.models.tensors import TensorVersion
from trimtab.models.version import LoadedVersion
from trimtab.server.errors import DeviceLost, NotFound, OutOfMemory, Stalled, status_number
from trimtab.server.keeping import Capture, ClosedWindow, Keeper, OpenWindow
from trimtab.server.statistics import ModelCounts
from trimtab.store.settings import BatchingSettings, ModelSettings

__all__ = ["Engine", "Table", "batch_policy"]

_log = logging.getLogger(__name__)
_LOOK_SECONDS = 0.002


@dataclass(frozen=True, slots=True)
class Table:
    """Which versions are loaded, and which aliases stand for which of them. Replaced as a whole."""

    live: Version
    loaded: Mapping[int, Version]
    aliases: Mapping[str, int] = field(default_factory=dict)


class Engine:
    """See the module."""

    def __init__(
        self,
        settings: ModelSettings,
        *,
        hub: Hub,
        capture: Capture | None,
        on_window: Callable[[ClosedWindow], None] | None,
        max_queue_bytes: int = 1 << 30,
        lockstep: bool = False,
        on_open: Callable[[OpenWindow], None] | None = None,
        opened: OpenWindow | None = None,
        on_live: Callable[[LoadedVersion], None] | None = None,
        on_fault: Callable[[str], None] | None = None,
    ) -> None:
        """Registers the model with the hub. `on_window` is called on the compute thread with each closed drift window;
        in lockstep their rows and data times alone decide when. `on_open` and `opened`: see Keeper. `on_live` is
        called with each version of columns that goes live; `on_fault`, on the compute thread, with what happened where
        a batch found the GPU lost."""
        self.settings = settings
        self.name = settings.name
        self.schema: Schema | TensorSchema
        self.keeper: Keeper | None = None
        """None for a model that takes tensors: nothing of its rows is kept."""
        if settings.takes_tensors:
            self.schema = settings.tensor_schema()
        else:
            self.schema = settings.request_schema()
            drift = settings.drift
            timing = (0.0, 0) if lockstep else (drift.window_seconds, drift.max_rows_per_second)
            self.keeper = Keeper(
                self.schema,
                drift.window_rows,
                capture,
                on_window,
                *timing,
                window_us=drift.window,
                lockstep=lockstep,
                on_open=on_open,
                opened=opened,
                joint_rows=(None if lockstep else drift.joint_rows_per_second) if drift.joint else 0,
            )
        self.inputs, self.outputs = inputs_of(settings), outputs_of(settings)
        """(name, datatype, dimensions after the rows) of each tensor."""
        self.policy = settings.batching
        self._hub = hub
        self._on_live = on_live
        self._on_fault = on_fault
        self._table: Table | None = None
        self._before: Table | None = None
        self._answering = threading.Lock()
        self._computing: tuple[Batch, float] | None = None
        self._stalled = self._closed = False
        self._used: dict[int, float] = {}
        self.on_wanted: Callable[[int], None] = lambda _: None
        """Called on the compute thread with a version that sleeps and was asked for."""
        policy = batch_policy(settings.batching, max_queue_bytes)
        hub.add_model(self.name, self.schema, self.outputs, policy, labels=labels_of(settings))

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
    def stalled(self) -> bool:
        """Whether a batch was given up and has not come to an end yet: the model takes no requests."""
        return self._stalled

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return self._hub.waiting(self.name)

    @property
    def counts(self) -> ModelCounts:
        """What the model has done since the server started; a copy."""
        return ModelCounts.of(self._hub.statistics(self.name))

    @property
    def recent(self) -> Slab | None:
        """A copy of some rows served lately, where rows are kept."""
        return self.keeper.recent if self.keeper is not None else None

    def install(self, live: Version, loaded: Mapping[int, Version], aliases: Mapping[str, int] | None = None) -> None:
        """From the next batch on, `live` answers; `loaded` may be asked for by number or alias. Called by the swap
        alone."""
        names = dict(aliases or {})
        self._before, self._table = self._table, Table(live, MappingProxyType(dict(loaded)), MappingProxyType(names))
        self._hub.install(self.name, live.number, sorted({live.number, *loaded}), names)
        changed = self._before is None or self._before.live is not live
        if changed and self._on_live is not None and isinstance(live, LoadedVersion):
            self._on_live(live)

    def used(self, number: int) -> float:
        """When a batch of the version was last computed, by the monotonic clock; 0.0: not yet."""
        return self._used.get(number, 0.0)

    def put_to_sleep(self, number: int) -> bool:
        """Has requests for a loaded version wait until `wake_up`; False where there are any, or a batch of it is being
        computed, as one that stalls may be."""
        try:
            if self._closed or not self._hub.put_to_sleep(self.name, number):
                return False
        except ValueError:  # it was unloaded just now
            return False
        # Looked at last: a batch that was given up is none to the hub, and is computed still.
        if self._stalled:
            self.wake_up(number)
            return False
        return True

    def wake_up(self, number: int) -> None:
        """Has the version compute again."""
        with contextlib.suppress(ValueError):  # it was unloaded just now
            if not self._closed:
                self._hub.wake_up(self.name, number)

    def refuse_waiting(self, number: int, code: int, message: str) -> None:
        """Answers what waits for a version that sleeps."""
        with contextlib.suppress(ValueError):  # it was unloaded just now
            if not self._closed:
                self._hub.clear_version(self.name, number, code, message)

    async def leave(self, timeout: float) -> bool:
        """Has the hub refuse new requests, and returns when those that it has are answered; False where that took too
        long."""
        gone = status_number(NotFound(""))
        self._hub.pause(self.name, gone, f"model {self.name!r} was unloaded")
        end = time.monotonic() + timeout
        while self._hub.waiting(self.name) or self._hub.in_flight(self.name):
            if time.monotonic() > end:
                return False
            # The hub has no event for this; it ends within a batch or two.
            await asyncio.sleep(_LOOK_SECONDS)
        return True

    def close(self) -> None:
        """Takes the model out of the hub; what still waits is answered NOT_FOUND."""
        self._closed = True
        self._hub.remove_model(self.name)

    # --- the watchdog

    def give_up(self, seconds: float) -> bool:
        """Answers the batch that is being computed, if it has been for longer than that, and stops taking requests.
        Whether it did."""
        computing = self._computing
        if computing is None or time.monotonic() - computing[1] < seconds or self._closed:
            return False
        code = status_number(Stalled(""))
        why = f"model {self.name!r} stalls: a batch has taken more than {seconds:g} s (stall_seconds)"
        with self._answering:
            if self._computing is not computing:
                return False
            self._computing = None
            self._stalled = True
            # In this order nothing of the model can become a batch beside the one that stalls.
            self._hub.pause(self.name, code, why)
            self._hub.clear(code, why, self.name)
            computing[0].fail(code, why)
        return True

    # --- the compute thread

    def recover(self) -> None:
        """Takes requests again, now that the batch that was given up has come to an end."""
        self._stalled = False
        if not self._closed:
            self._hub.pause(self.name, 0)

    def close_windows(self, data_time_us: int) -> None:
        """Data time is this far: drift windows that end by then close."""
        live = self._table.live if self._table is not None else None
        if self.keeper is not None and isinstance(live, LoadedVersion):
            self.keeper.close_until(data_time_us, live)

    def run(self, batch: Batch) -> None:
        """Computes, answers and keeps a batch. Whatever goes wrong is answered too, and never raised."""
        done = self._run(batch)
        self._used[batch.version] = time.monotonic()
        if not done:
            # Only now: the error's traceback held the tensors of the batch.
            let_go()

    def _run(self, batch: Batch) -> bool:
        """As `run`; False where there was no memory for the batch."""
        computing = self._computing = (batch, time.monotonic())
        try:
            version = self._version(batch.version)
            slab = batch.slab
            if isinstance(version, TensorVersion):
                assert isinstance(slab, TensorSlab)
                self._answer(computing, version.weights, version.run_in_parts(slab, self.policy.max_batch_size))
                return True
            assert isinstance(slab, Slab)
            assert self.keeper is not None
            times = batch.times_us
            sketch = self.keeper.sketch(version, self.table.live, slab.rows, times)
            predictions = self._predict(version, slab, sketch)
            if not self._answer(computing, version.weights, [predictions]):
                return True
        except NotFound as error:
            self._fail(computing, error, str(error))
            return True
        except Exception as error:
            _log.exception("model %s: a batch of version %d failed", self.name, batch.version)
            self._fail(computing, *self._answer_to(error, batch))
            return not is_out_of_memory(error)
        try:
            self.keeper.keep(slab, batch.request_ids, batch.counts, times, version, predictions, sketch)
        except Exception:
            # The requests are answered; that their rows are lost is for the log.
            _log.exception("model %s: rows of a batch could not be kept", self.name)
        return True

    def _answer(self, computing: tuple[Batch, float], weights: str, outputs: Sequence[NDArray[Any]]) -> bool:
        """False where the batch was given up meanwhile."""
        with self._answering:
            if self._computing is not computing:
                return False
            computing[0].answer(weights, outputs)
            self._computing = None
            return True

    def _fail(self, computing: tuple[Batch, float], error: Exception, message: str) -> None:
        with self._answering:
            if self._computing is computing:
                self._computing = None
                computing[0].fail(status_number(error), message)

    def _answer_to(self, error: Exception, batch: Batch) -> tuple[Exception, str]:
        what = f"{type(error).__name__}: {error}"
        if is_out_of_memory(error):
            text = f"model {self.name!r}: no memory left for a batch of {batch.slab.rows} rows; send fewer at a time"
            return OutOfMemory(text), f"{text} ({first_line(error)})"
        if is_fault(error):
            text = f"model {self.name!r}: the GPU is lost to this server, which restarts: {first_line(error)}"
            if self._on_fault is not None:
                self._on_fault(text)
            return DeviceLost(text), text
        return error, what

    def _version(self, number: int) -> Version:
        for table in (self._table, self._before):
            if table is not None:
                version = table.live if table.live.number == number else table.loaded.get(number)
                if version is not None:
                    return version
        raise NotFound(f"model {self.name!r}: version {number} is not loaded any more")

    def _predict(self, version: LoadedVersion, slab: Slab, sketch: Sketch | None) -> NDArray[np.float32]:
        most = self.policy.max_batch_size
        if slab.rows <= most:
            return version.predict(slab, sketch)
        parts = [
            version.predict(slab, sketch, start, min(start + most, slab.rows)) for start in range(0, slab.rows, most)
        ]
        return np.concatenate(parts)


def batch_policy(batching: BatchingSettings, max_queue_bytes: int) -> BatchPolicy:
    """The settings of [model.batching] in the hub's form."""
    policies = [batching.queue_policy(level) for level in range(1, max(batching.priority_levels, 1) + 1)]
    levels = [
        QueuePolicy(
            delay=policy.timeout_action == "DELAY",
            default_timeout=policy.default_timeout_microseconds * 1e-6,
            allow_timeout_override=policy.allow_timeout_override,
            max_queue_size=policy.max_queue_size,
        )
        for policy in policies
    ]
    return BatchPolicy(
        max_batch_size=batching.max_batch_size,
        max_queue_delay=batching.max_queue_delay_microseconds * 1e-6,
        preferred=list(batching.preferred_batch_size),
        split_oversize=batching.oversize == "split",
        preserve_ordering=batching.preserve_ordering,
        max_queue_bytes=max_queue_bytes,
        levels=levels,
        default_level=max(batching.default_priority_level - 1, 0),
    )
