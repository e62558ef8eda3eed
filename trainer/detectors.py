"""Change detectors on what the live version's answers turned out to cost: River's ADWIN and Page-Hinkley on losses and,
for classes, DDM on whether the answer was wrong.

Rows come as they mature with their cohorts, in order of their time, so a change is found once its labels are there:
late labels delay detection and nothing else. A loss enters as loss / (1 + loss): the detectors' bounds hold for values
in [0, 1], and one hopeless row must not look like a change. A detector that has spoken starts anew, as do all of them
when another version goes live: a new version's losses are to be compared with its own. Only rises are told; that a
model got better needs nobody.

Rates, measured on stationary losses (tests/trainer/test_detectors.py): in 400,000 rows ADWIN and Page-Hinkley did not
speak at all, DDM three times. River's KSWIN is left out: it spoke 27 times in 20,000, and takes 500 times as long.

The detectors live in memory: after a restart of the trainer they begin with the rows that mature then. Turned down:
River's objects pickled beside the trainer's state, as a pickle that somebody else put there would run his code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from trimtab.models.tasks import Task

__all__ = ["Change", "ErrorDetectors"]


@dataclass(frozen=True)
class Change:
    """A rise that a detector saw. detector: adwin, page_hinkley (means of losses) or ddm (error rates). before, after:
    means since the detector began, and of the newest RECENT rows. time_us: of the row at which it spoke."""

    detector: str
    version: int
    time_us: int
    rows: int
    before: float
    after: float

    @property
    def message(self) -> str:
        """For people."""
        what = "error rate" if self.detector == "ddm" else "realised loss"
        return (
            f"{self.detector}: the {what} of version {self.version} rose from {self.before:.4f} to {self.after:.4f} "
            f"within {self.rows:,} labelled rows"
        )


RECENT = 200
"""Rows whose mean a change is told with."""


class _Watch:
    """One detector, with what it takes to tell of a change."""

    def __init__(self, name: str, make: Callable[[], Any], boolean: bool) -> None:
        self.name = name
        self._make = make
        self._boolean = boolean
        self._begin()

    def _begin(self) -> None:
        self._detector = self._make()
        self._rows, self._sum = 0, 0.0
        self._recent: list[float] = []

    def add(self, values: NDArray[np.float64], bounded: NDArray[np.float64], times: NDArray[np.int64]) -> list[Any]:
        """Pairs of position and (rows, before, after) of rises."""
        found = []
        for position, (value, taken) in enumerate(zip(values.tolist(), bounded.tolist(), strict=True)):
            self._rows += 1
            self._sum += value
            self._recent.append(value)
            if len(self._recent) > 2 * RECENT:
                del self._recent[:RECENT]
            self._detector.update(bool(taken) if self._boolean else taken)
            if not self._detector.drift_detected:
                continue
            newest = self._recent[-RECENT:]
            after = sum(newest) / len(newest)
            before = (self._sum - sum(newest)) / max(self._rows - len(newest), 1)
            if after > before:
                found.append((int(times[position]), self._rows, before, after))
            self._begin()
        return found


class ErrorDetectors:
    """See the module. One thread."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._version = 0
        self._watches: list[_Watch] = []

    def add(
        self, version: int, served: NDArray[np.float32], labels: NDArray[Any], times: NDArray[np.int64]
    ) -> list[Change]:
        """Takes matured rows that the live version served: predictions [n, K] as served, labels [n], µs [n]. Rows whose
        loss is not finite are passed over."""
        if version != self._version:
            self._version, self._watches = version, self._made()
        order = np.argsort(times, kind="stable")
        served, labels, times = served[order], labels[order], times[order]
        losses = self._task.losses_of(served, labels)
        known = np.isfinite(losses)
        losses, times = losses[known], times[known]
        wrong = self._wrong(served[known], labels[known])
        found = []
        for watch in self._watches:
            values, bounded = (wrong, wrong) if watch.name == "ddm" else (losses, losses / (1.0 + losses))
            found += [Change(watch.name, version, *one) for one in watch.add(values, bounded, times)]
        return sorted(found, key=lambda change: change.time_us)

    def _wrong(self, served: NDArray[np.float32], labels: NDArray[Any]) -> NDArray[np.float64]:
        if self._task.kind == "regression":
            return np.zeros(0)
        answers = served.argmax(axis=1) if self._task.kind == "multiclass" else served.reshape(len(served)) > 0.5
        truth = labels if self._task.kind == "multiclass" else labels > 0.5
        return np.asarray(answers != truth, np.float64)

    def _made(self) -> list[_Watch]:
        import river.drift  # half a second, which a start does not wait for

        drift: Any = river.drift

        watches = [
            _Watch("adwin", lambda: drift.ADWIN(delta=0.002), False),
            _Watch("page_hinkley", lambda: drift.PageHinkley(min_instances=RECENT, mode="up"), False),
        ]
        if self._task.kind != "regression":
            watches.append(_Watch("ddm", lambda: drift.binary.DDM(warm_start=RECENT), True))
        return watches
