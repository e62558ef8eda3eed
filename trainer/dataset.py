"""What a model may be trained on: its training data, then every row that matured, in canonical order.

The rows come from sealed capture segments and the label log, through the join. Nothing of them is written again: a
line of `matured.jsonl` per matured cohort says which labels and segments were known when it matured, and that is
enough to find the same rows with the same labels after a restart (or rows fewer, where captures expired or were
deleted). What the first version was trained on lies in `history.arrow`, written by `trimtab train`.

Rows are consumed by marks: `end_of(marks)` is where the first `marks` cohorts end. Everything is in memory, raw (tens
of bytes a row); features are encoded as they are drawn.

One thread, the trainer's worker, uses this.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from trimtab._native import Slab
from trimtab.kernels.slabs import slab_from_arrow, slab_to_arrow
from trimtab.models.tasks import Task
from trimtab.store.errors import SegmentDamaged, SegmentGone, StoreError
from trimtab.store.files import append_line, make_dir, os_errors, read_lines, write_atomic
from trimtab.store.labels import LabelReader
from trimtab.store.project import ModelPaths
from trimtab.store.segment import SegmentIndex, SegmentInfo, read_segment
from trimtab.store.settings import ModelSettings
from trimtab.trainer.encode import EncodedRows, RowSource, TrainingTable, task_of
from trimtab.trainer.errors import RowsUnfit
from trimtab.trainer.join import Joiner, JoinSettings, Matured, Maturity

__all__ = ["Dataset", "History", "Part", "Prefix", "history_path", "save_history"]

HISTORY_ROWS = 200_000
"""Most rows of the training data that are kept for later refreshes: the newest."""

_LABELS_AT_ONCE = 100_000


@dataclass(frozen=True)
class Part:
    """Rows [start, stop) of the dataset, with what was served for them."""

    table: TrainingTable
    served: NDArray[np.float32]
    """[n, K] predictions as served."""
    versions: NDArray[np.int32]
    """[n] the versions that served them."""


@dataclass(frozen=True)
class Prefix:
    """The first rows of a source, as a source."""

    source: RowSource
    rows: int

    def __len__(self) -> int:
        return self.rows

    def take(self, positions: NDArray[np.int64] | NDArray[np.int32]) -> EncodedRows:
        """The rows at these positions, in this order."""
        return self.source.take(positions)


class Dataset:
    """See the module."""

    def __init__(self, model: ModelSettings, paths: ModelPaths) -> None:
        """Reads the training data and what matured before. Raises StoreError, RowsUnfit."""
        self.task = task_of(model)
        self.schema = model.request_schema()
        self.unusable = 0
        """Matured rows whose label is none of the task's."""
        self._paths = paths
        self._marks_path = paths.trainer / "matured.jsonl"
        self.damaged = 0
        """Segments that could not be read."""
        self._index = SegmentIndex(paths.captures)
        self._unread: deque[SegmentInfo] = deque()
        """Segments that were listed, and not read yet; oldest first."""
        self._labels = LabelReader(paths.labels)
        label = model.label
        self._joiner = Joiner(
            JoinSettings(label.cohort, label.horizon, label.absent_means == "negative", label.key),
            self.schema,
            self.task.width,
        )
        self.table = load_history(history_path(paths), self.schema, self.task)
        self.first = len(self.table)
        """Rows of the training data, which come before all others."""
        self._served = np.zeros((0, self.task.width), np.float32)
        self._versions = np.zeros(0, np.int32)
        self._ends = [self.first]
        """Where each matured cohort ends, beginning with the training data."""
        self._waiting: list[Part] = []
        self._unwritten: list[Maturity] = []
        self._restore()

    @property
    def counts(self) -> dict[str, int]:
        """What became of rows and labels, by name."""
        return {
            **self._joiner.counts.as_dict(),
            "unusable": self.unusable,
            "damaged_segments": self.damaged,
            "waiting": self._joiner.waiting,
        }

    @property
    def marks(self) -> int:
        """Cohorts that have matured."""
        return len(self._ends) - 1

    @property
    def label_sequence(self) -> int:
        """The newest label revision that was read."""
        return self._joiner.label_sequence

    def end_of(self, marks: int) -> int:
        """The number of rows in the training data and the first `marks` cohorts."""
        return self._ends[min(marks, self.marks)]

    def advance(self, now_us: int) -> Part | None:
        """Takes what was sealed and labelled since, and gives the rows that matured at data time `now_us`.

        Raises StoreError.
        """
        self._read_segments()
        self._read_labels()
        matured, marks = self._joiner.advance(now_us)
        for rows, mark in zip(matured, marks, strict=True):
            self._append(rows, mark)
        if not matured:
            return None
        parts = self._waiting[-len(matured) :]
        return parts[0] if len(parts) == 1 else _joined(parts)

    def rows(self, start: int, stop: int) -> Part:
        """Copies of rows [start, stop)."""
        self._merge()
        first = self.first
        served = np.full((max(min(stop, first) - start, 0), self.task.width), np.nan, np.float32)
        part = slice(max(start - first, 0), max(stop - first, 0))
        return Part(
            self.table.slice(start, stop),
            np.concatenate([served, self._served[part]]),
            np.concatenate([np.zeros(len(served), np.int32), self._versions[part]]),
        )

    def flush(self) -> None:
        """Makes the marks durable. Raises StoreError."""
        if not self._unwritten:
            return
        lines = "\n".join(json.dumps(astuple(mark)) for mark in self._unwritten)
        make_dir(self._paths.trainer)
        # A crash may leave the first of them: each stands for itself.
        append_line(self._marks_path, lines)
        self._unwritten = []

    def content_hash(self, previous: str, start: int, stop: int) -> str:
        """sha256 over rows [start, stop) and the hash of what came before them: a snapshot's identity."""
        part = self.rows(start, stop)
        table = part.table
        digest = hashlib.sha256(previous.encode())
        for array in (table.labels, table.weights, table.time_us, part.versions):
            digest.update(np.ascontiguousarray(array).tobytes())
        for index, kind in enumerate(table.slab.schema.types):
            if kind == "string":
                offsets, data = table.slab.strings(index)
                digest.update(offsets.tobytes())
                digest.update(data.tobytes())
            else:
                values = table.slab.integers(index) if kind == "integer" else table.slab.reals(index)
                digest.update(values.tobytes())
        return digest.hexdigest()

    def close(self) -> None:
        """Idempotent."""
        self._labels.close()

    # --- inside

    def _append(self, matured: Matured, mark: Maturity, *, written: bool = False) -> None:
        part = self._part(matured)
        self._waiting.append(part)
        self._ends.append(self._ends[-1] + len(part.table))
        if not written:
            self._unwritten.append(mark)

    def _part(self, matured: Matured) -> Part:
        task = self.task
        absent = np.array([value is None for value in matured.values], np.bool_)
        values = [0.0 if value is None else value for value in matured.values]
        labels, known = task.try_encode(values)
        if absent.any():
            # Only a binary model's absent labels mean something; the negative is its class 0.
            labels[absent] = 0
            known[absent] = task.kind == "binary"
        keep = np.flatnonzero(known)
        self.unusable += len(known) - len(keep)
        table = TrainingTable(matured.slab, labels, matured.weights, matured.time_us)
        if len(keep) < len(known):
            table = table.select(keep)
        return Part(table, matured.predictions[keep], matured.versions[keep])

    def _merge(self) -> None:
        """Moves the rows that wait into the table, all at once: appending each by itself would copy the table as
        often."""
        if self._waiting:
            joined = _joined(self._waiting)
            self.table.extend(joined.table)
            self._served = np.concatenate([self._served, joined.served])
            self._versions = np.concatenate([self._versions, joined.versions])
            self._waiting = []

    def _read_segments(self, until: int | None = None) -> None:
        self._find_segments()
        while self._unread and (until is None or self._unread[0].sequence <= until):
            info = self._unread.popleft()
            try:
                table = read_segment(self._paths.captures, info)
            except SegmentGone:
                # Expired, or rewritten since the index was read: then the new one takes its place.
                self._find_segments()
                continue
            except SegmentDamaged as error:
                # Its rows are lost, and no reason to lose those of all others.
                self.damaged += 1
                print(f"trainer: {error}; its rows are left out", file=sys.stderr, flush=True)
                continue
            self._joiner.add_segment(table, info.sequence)

    def _find_segments(self) -> None:
        """Reads what is new in the index: only that, as there may be thousands of segments."""
        changes = self._index.refresh()
        if not changes.added and not changes.removed:
            return
        gone = {info.name for info in changes.removed}
        # A segment that was rewritten after it was read holds nothing new.
        new = [info for info in changes.added if info.sequence > self._joiner.segment_sequence]
        unread = [info for info in self._unread if info.name not in gone] + new
        self._unread = deque(sorted(unread, key=lambda info: (info.sequence, info.generation)))

    def _read_labels(self) -> None:
        while labels := self._labels.since(self._joiner.label_sequence, _LABELS_AT_ONCE):
            self._joiner.add_labels(labels)

    def _restore(self) -> None:
        """Matures again what had matured, each cohort with the labels and segments that were known then."""
        try:
            marks = [Maturity(*map(int, json.loads(line))) for line in read_lines(self._marks_path)]
        except (TypeError, ValueError) as error:
            raise StoreError(f"{self._marks_path} has a line that is no mark ({error}); put back a copy") from error
        for mark in marks:
            self._read_segments(mark.segment_sequence)
            while self._joiner.label_sequence < mark.label_sequence:
                missing = mark.label_sequence - self._joiner.label_sequence
                labels = self._labels.since(self._joiner.label_sequence, min(missing, _LABELS_AT_ONCE))
                labels = [label for label in labels if label.sequence <= mark.label_sequence]
                if not labels:
                    break
                self._joiner.add_labels(labels)
            matured = self._joiner.release(mark)
            if matured is None:
                self._ends.append(self._ends[-1])
            else:
                self._append(matured, mark, written=True)


def _joined(parts: Sequence[Part]) -> Part:
    slab = Slab(parts[0].table.slab.schema)
    for part in parts:
        slab.extend(part.table.slab)
    table = TrainingTable(
        slab,
        np.concatenate([part.table.labels for part in parts]),
        np.concatenate([part.table.weights for part in parts]),
        np.concatenate([part.table.time_us for part in parts]),
    )
    served = np.concatenate([part.served for part in parts])
    return Part(table, served, np.concatenate([part.versions for part in parts]))


# --- the training data of the first version


@dataclass(frozen=True)
class History:
    """Names of the columns of history.arrow beside the features."""

    label: str = "_label"
    weight: str = "_weight"
    time: str = "_time"


_NAMES = History()


def history_path(paths: ModelPaths) -> Path:
    """Where `trimtab train` leaves the rows that it trained on."""
    return paths.trainer / "history.arrow"


def save_history(path: Path, table: TrainingTable) -> None:
    """Writes the newest HISTORY_ROWS rows of a training table, for later refreshes to replay. Raises StoreError."""
    if len(table) > HISTORY_ROWS:
        table = table.slice(len(table) - HISTORY_ROWS, len(table))
    names = [*table.slab.schema.names, _NAMES.label, _NAMES.weight, _NAMES.time]
    arrays: list[pa.Array[Any]] = [
        *slab_to_arrow(table.slab),
        pa.array(table.labels),
        pa.array(table.weights),
        pa.array(table.time_us),
    ]
    batch = pa.RecordBatch.from_arrays(arrays, names=names)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    with os_errors("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, sink.getvalue().to_pybytes())


def load_history(path: Path, schema: Any, task: Task) -> TrainingTable:
    """What `save_history` wrote; no rows where there is no file. Raises RowsUnfit where it is damaged or of another
    schema."""
    empty = TrainingTable(Slab(schema), np.zeros(0, task.label_dtype), np.zeros(0, np.float32), np.zeros(0, np.int64))
    if not path.exists():
        return empty
    try:
        table = pa.ipc.open_file(pa.BufferReader(path.read_bytes())).read_all()
        slab = slab_from_arrow(table.select(list(schema.names)).combine_chunks(), schema)
        columns = [table.column(name).to_numpy() for name in (_NAMES.label, _NAMES.weight, _NAMES.time)]
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise RowsUnfit(f"{path} cannot be read ({error}); `trimtab train --again` writes it") from error
    labels, weights, times = columns
    return TrainingTable(slab, labels.astype(task.label_dtype), weights.astype(np.float32), times.astype(np.int64))
