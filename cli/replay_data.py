"""The rows that a replay sends, as they were received: features in a slab, labels encoded, and when each became known.

Replay and the process of the scheduled baseline read the same file through this module, and so see the same rows. All
rows are in memory: tens of bytes a row.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from trimtab._native import Slab
from trimtab.cli.errors import DataError
from trimtab.cli.history import cut_of, label_times
from trimtab.cli.replay_plan import NEVER, Span, label_delay_us
from trimtab.cli.tables import Table, open_table
from trimtab.kernels.slabs import slab_from_arrow
from trimtab.models.tasks import Task
from trimtab.store.project import Project
from trimtab.store.settings import ModelSettings
from trimtab.trainer.encode import TrainingTable, encode_column, task_of, with_keys_as_text

__all__ = ["Source", "Stream", "open_stream"]


@dataclass(frozen=True)
class Source:
    """Where the rows come from, and how late labels are."""

    path: str
    """CSV or Parquet."""
    same: bool = True
    """Whether this is the file that the project was made from."""
    delay: Span | None = None
    """How late labels are, in place of the project's column."""
    label_time: str = ""
    """A column of times at which labels became known, in place of the project's."""

    def to_json(self) -> str:
        """For another process."""
        delay = None if self.delay is None else [self.delay.rows, self.delay.us]
        return json.dumps({"path": self.path, "same": self.same, "delay": delay, "label_time": self.label_time})

    @classmethod
    def from_json(cls, text: str) -> Source:
        """What `to_json` wrote."""
        items: dict[str, Any] = json.loads(text)
        delay = None if items["delay"] is None else Span(*items["delay"])
        return cls(items["path"], items["same"], delay, items["label_time"])


@dataclass(frozen=True)
class Stream:
    """All rows of the data in order of time; rows [start, n) are replayed."""

    model: ModelSettings
    task: Task
    slab: Slab
    labels: NDArray[Any]
    """[n] encoded; 0 where unknown."""
    labelled: NDArray[np.bool_]
    """[n] whether the label is known at all."""
    sent: NDArray[np.bool_]
    """[n] whether it is ever sent: an absent label that means the negative is known, but nobody sends it."""
    time_us: NDArray[np.int64]
    known_us: NDArray[np.int64]
    """[n] when the label becomes known; NEVER where it does not."""
    start: int
    timed: bool
    """Whether the times are the data's own."""

    def __len__(self) -> int:
        return len(self.labels)

    def truth(self, row: int) -> float | str:
        """A row's label as a client would send it."""
        return self.task.decode_label(self.labels[row])

    def table(self) -> TrainingTable:
        """The labelled rows as the trainer's own code takes them."""
        ones = np.ones(len(self), np.float32)
        table = TrainingTable(self.slab, self.labels, ones, self.time_us)
        return table if self.labelled.all() else table.select(np.flatnonzero(self.labelled))


def open_stream(project: Project, source: Source, model: str | None = None) -> Stream:
    """Reads the data of a replay. Raises DataError, UsageError, KernelError."""
    settings = project.model(model)
    data = project.data
    with open_table(source.path, time=data.time or None) as table:
        label = settings.label
        wanted = list(dict.fromkeys([*settings.feature_names, label.column]))
        table.require(*wanted)
        extra = [key for key in settings.extra_keys if key in table.names]
        raw = table.read(list(dict.fromkeys([*wanted, *extra])))
        time_us = table.time_us
        known_us = _known(table, source, data.label_time)
        start = _start(project, table, source, settings)
        timed = table.time is not None
    if start >= len(time_us):
        raise DataError(
            f"{source.path}: the model was trained on all of its {len(time_us):,} rows; none is left to replay"
        )
    task = task_of(settings)
    labels, known = encode_column(raw.column(label.column), task, absent_means=label.absent_means)
    given: NDArray[np.bool_] = np.asarray(raw.column(label.column).is_valid().to_numpy(), dtype=np.bool_)
    sent = known & given & (known_us != NEVER)
    absent = known & ~given
    known_us = np.where(absent, time_us + label.horizon, np.where(known, known_us, NEVER))
    if not known[start:].any():
        raise DataError(f"{source.path}: no replayed row has a label in {label.column!r}")
    slab = slab_from_arrow(with_keys_as_text(raw, settings), settings.request_schema())
    return Stream(settings, task, slab, labels, known, sent, time_us, known_us, start, timed)


def _known(table: Table, source: Source, column: str) -> NDArray[np.int64]:
    if source.delay is not None:
        return label_delay_us(table.time_us, source.delay)
    return label_times(table, source.label_time or column)


def _start(project: Project, table: Table, source: Source, settings: ModelSettings) -> int:
    """How many of the oldest rows are skipped, because the model was trained on them."""
    if source.same or project.data.until:
        return cut_of(table, project.data)
    if table.time is None:
        return 0
    newest = _newest_trained(project, settings)
    return int(np.searchsorted(table.time_us, newest, "right"))


def _newest_trained(project: Project, settings: ModelSettings) -> int:
    from trimtab.trainer.dataset import history_path, load_history

    times = load_history(
        history_path(project.model_state(settings.name)), settings.request_schema(), task_of(settings)
    ).time_us
    return int(times.max()) if len(times) else -(1 << 62)
