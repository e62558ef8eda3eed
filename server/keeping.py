"""What becomes of a batch's rows after they were answered: captures, the open drift window, a copy of recent rows.

Everything here happens on the compute thread; nothing waits for a disk. `recent` is read by other threads: it is never
changed, only replaced.

Drift windows are of rows, or of data time ([model.drift] window). One of rows closes at the end of a batch. One of time
closes when a row of a later one comes, or when data time is moved past its end; nothing is made of a time without rows.
A batch whose requests lie in two windows or more is counted after it was answered, each request in its own window: the
cut is exact, no prediction depends on it, and it costs a second pass over the columns of that batch alone. The open
window is handed over now and then (`on_open`) and when the server stops, so that the next one goes on with it.

Columns that run on a GPU count there (LoadedVersion.settle): a window's sketch has all of its rows once the versions
that counted in it were settled, which is before anything looks at it.

What a window sums up of rows as a whole (kernels/joint_spec.py) costs a microsecond a row, so that only some are taken:
`joint_rows` a second, spread over a batch, of one batch in `_JOINT_SECONDS` at most. A window of a busy time so has as
many of them as one of a quiet time as long.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from trimtab._native import Schema, Slab
from trimtab.kernels.sketch import Sketch
from trimtab.models.version import LoadedVersion
from trimtab.server.allowance import Allowance
from trimtab.server.data_time import WindowGrid
from trimtab.store.files import now_us

__all__ = ["Capture", "ClosedWindow", "Keeper", "OpenWindow"]

_log = logging.getLogger(__name__)
_RECENT_ROWS = 256
_RECENT_BATCHES = 256
_SAVE_SECONDS = 30.0
"""Of an open window, what a crash can cost."""
_JOINT_SECONDS, _JOINT_ROWS = 0.002, 64
"""Least time between two batches of which rows are taken, and rows that are worth while taking of a larger one."""


@dataclass(frozen=True, slots=True)
class ClosedWindow:
    """What was served in one drift window. start_us, end_us: of rows, the first and last data time; of data time, its
    span, end not included."""

    sketch: Sketch
    version: LoadedVersion
    start_us: int
    end_us: int


@dataclass(frozen=True, slots=True)
class OpenWindow:
    """A window of data time that is not over yet, as it is saved."""

    sketch: Sketch
    start_us: int
    end_us: int


class Capture(Protocol):
    """Where served rows go: trimtab.store.captures.CaptureWriter."""

    def offer_requests(
        self,
        slab: Slab,
        request_ids: NDArray[np.uint8],
        counts: NDArray[np.int32],
        time_us: NDArray[np.int64],
        version: int,
        predictions: NDArray[np.float32],
    ) -> None:
        """Copies the rows of a batch, or leaves them and counts; does not wait for a disk. Ids [m, 16], numbers of rows
        and data times [m] are of its requests."""


@dataclass(slots=True)
class _Window:
    """A drift window that is open."""

    sketch: Sketch
    spec_hash: str
    opened: float
    """On the monotonic clock, seconds."""
    start_us: int = 1 << 62
    end_us: int = -(1 << 62)
    version: LoadedVersion | None = None
    """That counted last; None in a window that an earlier server began, until a row comes."""
    rows: int = 0
    """Of batches that were counted, in the sketch or on a device still."""


class Keeper:
    """See the module."""

    def __init__(
        self,
        schema: Schema,
        window_rows: int,
        capture: Capture | None,
        on_window: Callable[[ClosedWindow], None] | None,
        window_seconds: float = 0.0,
        rows_per_second: int = 0,
        *,
        window_us: int = 0,
        lockstep: bool = False,
        on_open: Callable[[OpenWindow], None] | None = None,
        opened: OpenWindow | None = None,
        joint_rows: int | None = 0,
    ) -> None:
        """Without `capture` nothing is captured, without `on_window` nothing is sketched. A window closes once it has
        so many rows and has been open for so long; with `window_us` it is of so much data time instead, `on_open` is
        given the open one now and then, and `opened` is the one to go on with. Of more than `rows_per_second`, unless
        0, whole batches are not sketched. `joint_rows`: see the module; None: all, whenever they come."""
        self.recent: Slab | None = None
        """A copy of some rows served lately."""
        self._schema = schema
        self._window_rows = window_rows
        self._window_seconds = window_seconds
        self._capture = capture
        self._on_window = on_window
        self._window: _Window | None = None
        self._grid = WindowGrid(window_us) if window_us else None
        self._lockstep = lockstep
        self._on_open = on_open
        self._saved = time.monotonic()
        self._apart = self._inside = False
        if self._grid is not None and opened is not None:
            self._grid.begin(opened.start_us)
            spec_hash = opened.sketch.spec.hash
            self._window = _Window(opened.sketch, spec_hash, self._saved, opened.start_us, opened.end_us)
        self._counting: list[LoadedVersion] = []
        self._until_recent = 0
        self._allowed = Allowance(rows_per_second) if rows_per_second else None
        self._joint = Allowance(joint_rows) if joint_rows else None
        self._joint_all = joint_rows is None
        self._joint_due = 0.0
        self.sketched_rows = 0
        """Rows that were counted in a drift window."""
        self.unsketched_rows = 0
        """Rows of the live version that were left out of the drift windows, there being more than may be counted."""
        self.late_rows = 0
        """Rows that were counted in a later window than that of their data time, which had closed."""

    def sketch(
        self, version: LoadedVersion, live: object, rows: int, times: NDArray[np.int64] | None = None
    ) -> Sketch | None:
        """What a batch of this version and so many rows is to be counted in while it is computed: only the live
        version's predictions are watched, of more rows than may be counted whole batches are not, and what lies in
        several windows by its requests' data times [n] is counted by `keep`."""
        self._apart = False
        if self._on_window is None or version is not live:
            return None
        if self._allowed is not None:
            if self._allowed.left(time.monotonic()) <= 0.0:
                self.unsketched_rows += rows
                return None
            self._allowed.take(rows)
        self.sketched_rows += rows
        if self._grid is not None:
            assert times is not None
            found = self._sketch_in_time(times, version)
        else:
            found = self._sketch_now(version)
        # Last: a window that closes to make way for this batch's settles, and forgets who counted.
        if not self.counts(version):
            self._counting.append(version)
        return found

    def _sketch_now(self, version: LoadedVersion) -> Sketch:
        spec = version.program.sketch
        if self._window is None or self._window.spec_hash != spec.hash:
            # Another spec: what was counted by the old one can be compared with nothing any more.
            self.settle()
            self._window = _Window(Sketch(spec), spec.hash, time.monotonic())
        return self._window.sketch

    def counts(self, version: LoadedVersion) -> bool:
        """Whether a device may have counted by this version what no sketch has yet. Any thread, while no batch of it is
        computed."""
        return any(version is one for one in self._counting)

    def settle(self) -> None:
        """Brings what devices have counted into the sketches that it was counted for. On the compute thread."""
        for version in self._counting:
            version.settle()
        self._counting.clear()

    def keep(
        self,
        slab: Slab,
        ids: NDArray[np.uint8],
        counts: NDArray[np.int32],
        times: NDArray[np.int64],
        version: LoadedVersion,
        predictions: NDArray[np.float32],
        sketch: Sketch | None,
    ) -> None:
        """Takes a computed batch: its requests' ids [n, 16], numbers of rows and data times [n], and the sketch it was
        counted in."""
        if self._capture is not None:
            self._capture.offer_requests(slab, ids, counts, times, version.number, predictions)
        summed = self._summed(slab.rows) if sketch is not None or self._apart else 0
        if sketch is not None:
            self._sum_jointly(slab, version, sketch, 0, slab.rows, summed)
        if self._grid is not None and (sketch is not None or self._apart):
            self._extend_in_time(slab, counts, times, version, predictions, summed)
        elif sketch is not None:
            self._extend(times, version, slab.rows)
        self._until_recent -= 1
        if self._until_recent < 0:
            recent = Slab(self._schema)
            recent.extend(slab, stop=min(slab.rows, _RECENT_ROWS))
            self.recent = recent
            self._until_recent = _RECENT_BATCHES

    def _extend(self, times: NDArray[np.int64], version: LoadedVersion, rows: int) -> None:
        window = self._window
        assert window is not None
        window.rows += rows
        window.start_us = min(window.start_us, int(times.min()))
        window.end_us = max(window.end_us, int(times.max()))
        old = time.monotonic() >= window.opened + self._window_seconds
        if old and window.rows >= self._window_rows:
            self.settle()
            self._window = None
            assert self._on_window is not None
            self._on_window(ClosedWindow(window.sketch, version, window.start_us, window.end_us))

    def _summed(self, rows: int) -> int:
        """How many of a batch's rows are summed up as a whole."""
        if self._joint is None:
            return rows if self._joint_all else 0
        now = time.monotonic()
        left = self._joint.left(now)
        if now < self._joint_due or left < min(rows, _JOINT_ROWS):
            return 0
        taken = min(rows, int(left))
        self._joint.take(taken)
        self._joint_due = now + _JOINT_SECONDS
        return taken

    @staticmethod
    def _sum_jointly(slab: Slab, version: LoadedVersion, sketch: Sketch, start: int, stop: int, taken: int) -> None:
        """Adds so many of the rows [start, stop), evenly, to the joint part of the sketch that counted them."""
        if taken and len(sketch.joint):
            version.sum_jointly(slab, start + np.arange(taken, dtype=np.int64) * (stop - start) // taken, sketch)

    # --- windows of data time

    def close_until(self, data_time_us: int, live: LoadedVersion) -> None:
        """Data time is this far: the window that ends by then closes, and no row is counted before it any more."""
        if self._grid is None:
            return
        window = self._window
        if window is not None and window.end_us <= data_time_us:
            self._close(window, live)
        self._grid.begin(data_time_us)

    def suspend(self) -> None:
        """Hands the open window over, to be gone on with by the next server. When the compute thread has ended."""
        try:
            self.settle()
        except Exception:
            # A lost GPU takes what it has counted with it, and must not keep the rest from being saved.
            _log.exception("rows of the open drift window are lost")
        window, self._window = self._window, None
        if self._grid is not None and window is not None and window.sketch.rows and self._on_open is not None:
            self._on_open(OpenWindow(window.sketch, window.start_us, window.end_us))

    def _sketch_in_time(self, times: NDArray[np.int64], version: LoadedVersion) -> Sketch | None:
        window = self._window
        first, last = int(times.min()), int(times.max())
        if window is not None and window.version is version and window.start_us <= first and last < window.end_us:
            # Nearly always; also where they are ahead of the clock, which is not before the window's start.
            self._inside = True
            return window.sketch
        self._inside = False
        start, end = self._place(np.array([first, last])).tolist()
        self._apart = start != end
        return None if self._apart else self._at(start, version).sketch

    def _place(self, times: NDArray[np.int64]) -> NDArray[np.int64]:
        assert self._grid is not None
        return self._grid.place(times, None if self._lockstep else now_us())

    def _at(self, start_us: int, version: LoadedVersion) -> _Window:
        """The window that begins there, open: one that is open and is another closes. Starts never go back."""
        assert self._grid is not None
        spec = version.program.sketch
        window = self._window
        if window is not None and (window.start_us != start_us or window.spec_hash != spec.hash):
            self._close(window, version)
            window = None
        if window is None:
            self._grid.begin(start_us)
            self._saved = time.monotonic()
            window = _Window(Sketch(spec), spec.hash, self._saved, start_us, start_us + self._grid.length_us)
            self._window = window
        window.version = version
        return window

    def _close(self, window: _Window, live: LoadedVersion) -> None:
        self.settle()
        self._window = None
        version = window.version or live
        if version.program.sketch.hash != window.spec_hash:
            _log.warning("%d rows of a drift window are left out: other columns serve now", window.sketch.rows)
        elif window.sketch.rows and self._on_window is not None:
            self._on_window(ClosedWindow(window.sketch, version, window.start_us, window.end_us))

    def _extend_in_time(
        self,
        slab: Slab,
        counts: NDArray[np.int32],
        times: NDArray[np.int64],
        version: LoadedVersion,
        predictions: NDArray[np.float32],
        summed: int,
    ) -> None:
        if not self._inside:
            starts = self._place(times)
            self.late_rows += int(counts[times < starts].sum())
            if self._apart:
                self._count_apart(slab, counts, starts, version, predictions, summed)
        window = self._window
        now = time.monotonic()
        if self._on_open is not None and window is not None and now >= self._saved + _SAVE_SECONDS:
            self._saved = now
            self.settle()
            self._on_open(OpenWindow(window.sketch.copy(), window.start_us, window.end_us))

    def _count_apart(
        self,
        slab: Slab,
        counts: NDArray[np.int32],
        starts: NDArray[np.int64],
        version: LoadedVersion,
        predictions: NDArray[np.float32],
        summed: int,
    ) -> None:
        ends = np.cumsum(counts)
        for start in np.unique(starts).tolist():
            sketch = self._at(start, version).sketch
            for first, stop in _runs(starts == start):
                begin, end = int(ends[first] - counts[first]), int(ends[stop - 1])
                version.count(slab, predictions[begin:end], sketch, begin, end)
                share = -(-summed * (end - begin) // max(slab.rows, 1))
                self._sum_jointly(slab, version, sketch, begin, end, share)


def _runs(chosen: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """[first, stop) of each run of True."""
    edges = np.flatnonzero(np.diff(chosen, prepend=False, append=False))
    return [(int(first), int(stop)) for first, stop in edges.reshape(-1, 2)]
