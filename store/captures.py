"""The capture writer: served rows and predictions, kept on disk without ever holding up serving.

Threads. The compute thread calls `offer`: it decides what to keep (sampling.py) and copies that into a Pending under
a short lock. The writer's own thread takes the whole Pending, turns it into Arrow, and does everything that touches
the disk; whoever wants something of the disk (seal, flush, forget, close) puts a command in its queue and waits for
it. So files have one writer and need no lock, and commands run in order, each after all rows offered before it.

Bounds. A Pending holds a few flushes' worth of rows; what does not fit is dropped and counted. In lockstep `offer`
waits for room instead. When the disk is full, rows are dropped and counted, and the writer tries again with the next
flush.

Files. The open segment (frames.py) `N.open` takes a frame at every flush; sealing writes the same rows aside as
`N.arrow`, makes them last, renames, lists them (segment.py), then deletes `N.open`. On start:
- `N.open` whose N was listed already is deleted; any other gives its whole frames, up to the first bad one, to a sealed
  segment of the same N, and what was bad is reported;
- `N.arrow` that is not listed is listed if it reads whole and its N never was, and deleted if not (a crash cut short
  a seal, a
  deletion or a rewriting);
- a listed file that is not there is taken from the index and reported.
Only one process may write a folder: it holds a lock on `.lock`.

Turned down: writing through a memory map (a full disk is then a SIGBUS), and one long Arrow stream as the open
segment (with zeroed or flipped bytes it reads back as clean data).
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from trimtab._native import Schema, Slab
from trimtab.store.errors import StoreError
from trimtab.store.pending import Pending, arrow_schema
from trimtab.store.priority import yield_to_others
from trimtab.store.sampling import Kept, Sampler
from trimtab.store.segment import SegmentInfo
from trimtab.store.segments import SegmentFolder
from trimtab.store.settings import CaptureSettings

__all__ = ["CaptureStats", "CaptureWriter"]

_log = logging.getLogger(__name__)

# Flushes' worth of rows that may wait while the writer is at the disk.
_PENDING_FLUSHES = 4


@dataclass(frozen=True, slots=True)
class CaptureStats:
    """What became of the rows offered since the start, and what lies on disk now."""

    rows: int
    """Rows kept."""
    dropped: int
    """Rows lost to the rate cap, to a full queue, or to a disk that took no more."""
    sampled_out: int
    """Rows that the sampling policy left out."""
    pending: int
    """Rows kept that are not on disk yet."""
    bytes: int
    """Bytes of all segments."""
    segments: int
    """Sealed segments."""
    stored_rows: int
    """Rows in sealed segments and the open one."""
    damaged: int
    """Damages found: torn or corrupt open segments, missing files."""
    error: str
    """Why rows are being dropped now; empty: they are not."""


class CaptureWriter:
    """Keeps what `offer` brings in the folder `directory`. Methods may be called from any thread; `offer` from one at
    a time."""

    def __init__(
        self,
        directory: Path | str,
        schema: Schema,
        prediction_width: int,
        settings: CaptureSettings,
        *,
        seed: int = 0,
        lockstep: bool = False,
        on_damage: Callable[[str], None] | None = None,
        on_sealed: Callable[[SegmentInfo], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Recovers what a crash left, then starts the writer thread. Raises StoreError.

        `seed` salts the hash that samples. `on_damage` gets one line per damage found, also from within this call;
        `on_sealed` each new segment. Both are called on the writer thread (or here) and must be quick.
        """
        self._schema = schema
        self._width = prediction_width
        self._settings = settings
        self._lockstep = lockstep
        self._clock = clock
        self._on_damage = on_damage
        self._arrow_schema = arrow_schema(schema, prediction_width)
        self._sampler = Sampler(settings, seed=seed, capped=not lockstep)
        self._limit = _PENDING_FLUSHES * settings.flush_rows
        # Guards all below, and wakes both the writer (work) and offer in lockstep (room).
        self._changed = threading.Condition()
        self._commands: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        # One fills while the other is at the disk.
        self._pending, self._spare = (Pending(schema, prediction_width, self._limit) for _ in range(2))
        self._first_offer = 0.0
        self._rows = self._dropped = self._sampled_out = self._damaged = 0
        self._error = ""
        self._closing = False
        # Belongs to the writer thread alone from here on.
        self._folder = SegmentFolder(Path(directory), self._arrow_schema, settings, self._report, on_sealed)
        self._opened = 0.0
        self._unwritten: pa.RecordBatch | None = None
        self._thread = threading.Thread(target=self._run, name="trimtab-capture", daemon=True)
        self._thread.start()

    def offer(
        self,
        slab: Slab,
        request_ids: NDArray[np.uint8],
        rows: NDArray[np.int32],
        time_us: NDArray[np.int64],
        version: int,
        predictions: NDArray[np.float32],
        start: int = 0,
        stop: int = -1,
    ) -> None:
        """Keeps (a sample of) rows [start, stop) of a served batch; stop = -1 is its end. Copies; the caller may
        reuse all.

        `slab`, `request_ids` [n, 16], `rows` [n] (place in the request), `time_us` [n] (data time) and `predictions`
        [n, K] are of the whole batch. Never waits, except in lockstep: rows that find no room are dropped and
        counted. Raises nothing but ValueError on arrays of other shapes.
        """
        if predictions.ndim == 1:
            predictions = predictions.reshape(-1, 1)
        count = slab.rows
        if {len(request_ids), len(rows), len(time_us), len(predictions)} != {count}:
            raise ValueError(f"offer: expected arrays of the slab's {count} rows")
        if predictions.shape[1] != self._width:
            raise ValueError(f"offer: expected predictions [n, {self._width}], got {list(predictions.shape)}")
        all_rows = slice(start, count if stop < 0 else stop)
        kept = self._sampler.decide(request_ids[all_rows], predictions[all_rows], self._clock())
        part = all_rows if kept.indices is None else kept.indices + np.int32(start)
        self._store(slab, part, kept, request_ids[part], rows[part], time_us[part], version, predictions[part])

    def offer_requests(
        self,
        slab: Slab,
        request_ids: NDArray[np.uint8],
        counts: NDArray[np.int32],
        time_us: NDArray[np.int64],
        version: int,
        predictions: NDArray[np.float32],
    ) -> None:
        """As `offer`, of a batch whose requests have these ids [m, 16], numbers of rows and data times [m]: what is
        then the same for many rows is only written down for those that are kept."""
        rows = slab.rows
        if rows == len(counts):
            self.offer(slab, request_ids, np.zeros(rows, np.int32), time_us, version, predictions)
            return
        kept = self._sampler.decide_requests(request_ids, counts, self._clock())
        if kept is None:  # each row decides for itself, or all are kept
            places = np.arange(rows, dtype=np.int32) - np.repeat(np.cumsum(counts, dtype=np.int32) - counts, counts)
            ids, times = np.repeat(request_ids, counts, axis=0), np.repeat(time_us, counts)
            self.offer(slab, ids, places, times, version, predictions)
            return
        indices, owners = kept.indices, kept.owners
        assert indices is not None
        assert owners is not None
        if not len(owners):
            with self._changed:
                self._sampled_out += kept.sampled_out
                self._dropped += kept.capped
            return
        places = indices - (np.cumsum(counts, dtype=np.int32) - counts)[owners]
        predictions = predictions.reshape(-1, self._width)[indices]
        self._store(slab, indices, kept, request_ids[owners], places, time_us[owners], version, predictions)

    def _store(
        self,
        slab: Slab,
        part: slice | NDArray[np.int32],
        kept: Kept,
        request_ids: NDArray[np.uint8],
        rows: NDArray[np.int32],
        time_us: NDArray[np.int64],
        version: int,
        predictions: NDArray[np.float32],
    ) -> None:
        """Copies `part` of the slab, of which all else is, as far as there is room."""
        total = len(kept.inclusion)
        with self._changed:
            self._sampled_out += kept.sampled_out
            self._dropped += kept.capped
            done = 0
            while done < total:
                fitting = min(total - done, self._room())
                if fitting == 0:
                    self._dropped += total - done
                    break
                end = done + fitting
                take = slice(part.start + done, part.start + end) if isinstance(part, slice) else part[done:end]
                self._pending.append(
                    slab,
                    take,
                    request_ids[done:end],
                    rows[done:end],
                    time_us[done:end],
                    version,
                    kept.inclusion[done:end],
                    predictions[done:end],
                )
                self._rows += fitting
                done = end
                self._wake_writer(fitting)

    def flush(self) -> None:
        """All rows offered are on disk, in the open segment or a sealed one, when it returns, or counted as dropped."""
        self._ask(self._write)

    def seal(self) -> int:
        """All rows offered are in sealed segments when it returns; gives the number of rows newly sealed.

        Raises StoreError if they cannot be: what is in the open segment stays there, what is not is dropped and
        counted.
        """
        rows: int = self._ask(self._seal)
        return rows

    def forget(self, request_ids: Sequence[bytes]) -> int:
        """Deletes the rows of these requests for good; gives their number. Raises StoreError; asking again is safe
        then."""

        def erase() -> int:
            self._seal()
            return self._folder.forget(request_ids)

        rows: int = self._ask(erase)
        return rows

    def close(self) -> None:
        """Seals, and stops the writer. What cannot be sealed stays in the open segment, for the next start.
        Idempotent."""
        with self._changed:
            if self._closing:
                return
        try:
            self.seal()
        except StoreError as error:
            self._report(f"captures are not sealed: {error}")
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        self._folder.close()

    def stats(self) -> CaptureStats:
        """What became of the rows so far."""
        with self._changed:
            return CaptureStats(
                rows=self._rows,
                dropped=self._dropped,
                sampled_out=self._sampled_out,
                pending=self._pending.rows,
                bytes=self._folder.size,
                segments=self._folder.segments,
                stored_rows=self._folder.rows,
                damaged=self._damaged,
                error=self._error,
            )

    def _room(self) -> int:
        """Rows that may be offered now. In lockstep waits until there are some, unless the disk takes none."""
        if self._lockstep:
            self._changed.wait_for(lambda: self._pending.rows < self._limit or self._closing or bool(self._error))
        return 0 if self._closing else self._limit - self._pending.rows

    def _wake_writer(self, added: int) -> None:
        """The writer sleeps until there is a first row, whose age it then watches, or a flush's worth."""
        pending = self._pending.rows
        if pending == added:
            self._first_offer = self._clock()
        if pending == added or pending >= self._settings.flush_rows > pending - added:
            self._changed.notify_all()

    def _ask(self, command: Callable[[], Any]) -> Any:
        """Runs the command on the writer thread, after all rows offered so far were flushed, and gives what it
        gives."""
        future: Future[Any] = Future()
        with self._changed:
            if self._closing:
                raise StoreError("captures are closed")
            self._commands.append((command, future))
            self._changed.notify_all()
        return future.result()

    def _report(self, message: str) -> None:
        with self._changed:
            self._damaged += 1
        _log.warning("%s", message)
        if self._on_damage is not None:
            self._on_damage(message)

    # From here on: the writer thread.

    def _run(self) -> None:
        yield_to_others()
        while True:
            with self._changed:
                while not (self._commands or self._closing) and (rest := self._idle_seconds()) != 0.0:
                    self._changed.wait(rest)
                if self._closing and not self._commands:
                    return
                pending = self._pending
                self._pending, self._spare = self._spare, pending
                commands = list(self._commands)
                self._commands.clear()
                self._changed.notify_all()
            self._take(pending)
            pending.clear()
            for command, future in commands:
                try:
                    future.set_result(command())
                except Exception as error:
                    future.set_exception(error)
            self._settle()

    def _idle_seconds(self) -> float | None:
        """How long there is nothing to do: 0.0 for none, None for until woken."""
        due = []
        if self._pending.rows >= self._settings.flush_rows:
            return 0.0
        if self._pending.rows:
            due.append(self._first_offer + self._settings.flush_seconds)
        if self._folder.open_rows:
            due.append(self._opened + self._settings.seal_seconds)
        return max(0.0, min(due) - self._clock()) if due else None

    def _take(self, pending: Pending) -> None:
        """Turns rows into a batch that is on no disk yet. A defect in that costs the rows, never the thread."""
        if not pending.rows:
            return
        try:
            self._unwritten = pending.to_batch(self._arrow_schema)
        except Exception as error:
            _log.exception("rows cannot be captured")
            self._drop(pending.rows, f"rows cannot be captured: {error}")

    def _settle(self) -> None:
        """Writes what no command has written, and seals a segment that is full or old."""
        old = self._folder.open_rows > 0 and self._clock() >= self._opened + self._settings.seal_seconds
        unwritten = self._unwritten.num_rows if self._unwritten is not None else 0
        if old or self._folder.full_with(unwritten):
            with contextlib.suppress(StoreError):
                self._seal()
        self._write()

    def _seal(self) -> int:
        """Seals the open segment together with what was not written yet, which so needs no frame."""
        self._opened = self._clock()
        try:
            rows = self._folder.seal(self._unwritten)
        except StoreError as error:
            # A full open segment may take no more: memory and disk stay bounded while nothing can be sealed.
            if self._unwritten is not None and self._folder.full_with(0):
                self._drop(self._unwritten.num_rows, str(error))
                self._unwritten = None
            self._set_error(str(error))
            raise
        self._unwritten = None
        self._set_error("")
        return rows

    def _write(self) -> None:
        """Puts what was not written yet into the open segment."""
        batch, self._unwritten = self._unwritten, None
        if batch is None:
            return
        if not self._folder.open_rows:
            self._opened = self._clock()
        try:
            self._folder.write(batch)
        except StoreError as error:
            self._drop(batch.num_rows, str(error))
        else:
            self._set_error("")

    def _drop(self, rows: int, error: str) -> None:
        with self._changed:
            self._rows -= rows
            self._dropped += rows
        self._set_error(error)

    def _set_error(self, error: str) -> None:
        with self._changed:
            if error and not self._error:
                _log.error("captures drop rows: %s", error)
            elif self._error and not error:
                _log.warning("captures are written again")
            self._error = error
            self._changed.notify_all()
