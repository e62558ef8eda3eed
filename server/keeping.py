"""What becomes of a batch's rows after they were answered: captures, the open drift window, a copy of recent rows.

Everything here happens on the compute thread; nothing waits for a disk. `recent` is read by other threads: it is never
changed, only replaced.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from trimtab._native import Schema, Slab
from trimtab.kernels.sketch import Sketch
from trimtab.models.version import LoadedVersion

__all__ = ["Capture", "ClosedWindow", "Keeper"]

_RECENT_ROWS = 256
_RECENT_BATCHES = 256


@dataclass(frozen=True, slots=True)
class ClosedWindow:
    """What was served in one drift window."""

    sketch: Sketch
    version: LoadedVersion
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
    ) -> None:
        """Without `capture` nothing is captured, without `on_window` nothing is sketched. A window closes once it has
        so many rows and has been open for so long. Of more than `rows_per_second`, unless 0, whole batches are not
        sketched."""
        self.recent: Slab | None = None
        """A copy of some rows served lately."""
        self._schema = schema
        self._window_rows = window_rows
        self._window_seconds = window_seconds
        self._capture = capture
        self._on_window = on_window
        self._window: _Window | None = None
        self._until_recent = 0
        self._rate = rows_per_second
        self._allowed = float(rows_per_second)
        self._refilled = 0.0
        self.sketched_rows = 0
        """Rows that were counted in a drift window."""
        self.unsketched_rows = 0
        """Rows of the live version that were left out of the drift windows, there being more than may be counted."""

    def sketch(self, version: LoadedVersion, live: object, rows: int) -> Sketch | None:
        """What a batch of this version and so many rows is to be counted in: only the live version's predictions are
        watched, and of more rows than may be counted whole batches are not."""
        if self._on_window is None or version is not live:
            return None
        if self._rate and not self._allows(rows):
            self.unsketched_rows += rows
            return None
        self.sketched_rows += rows
        spec = version.program.sketch
        if self._window is None or self._window.spec_hash != spec.hash:
            # Another spec: what was counted by the old one can be compared with nothing any more.
            self._window = _Window(Sketch(spec), spec.hash, time.monotonic())
        return self._window.sketch

    def _allows(self, rows: int) -> bool:
        """Takes from what is allowed, of which a second's worth may have been saved up; a batch may overdraw it."""
        now = time.monotonic()
        self._allowed = min(self._allowed + (now - self._refilled) * self._rate, float(self._rate))
        self._refilled = now
        if self._allowed <= 0.0:
            return False
        self._allowed -= rows
        return True

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
        if sketch is not None:
            self._extend(times, version)
        self._until_recent -= 1
        if self._until_recent < 0:
            recent = Slab(self._schema)
            recent.extend(slab, stop=min(slab.rows, _RECENT_ROWS))
            self.recent = recent
            self._until_recent = _RECENT_BATCHES

    def _extend(self, times: NDArray[np.int64], version: LoadedVersion) -> None:
        window = self._window
        assert window is not None
        window.start_us = min(window.start_us, int(times.min()))
        window.end_us = max(window.end_us, int(times.max()))
        old = time.monotonic() >= window.opened + self._window_seconds
        if old and window.sketch.rows >= self._window_rows:
            self._window = None
            assert self._on_window is not None
            self._on_window(ClosedWindow(window.sketch, version, window.start_us, window.end_us))
