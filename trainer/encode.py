"""Labelled rows on their way into training: as tables (raw columns in a slab) and encoded (a program's features and
ids).

A raw table is compact and fits any program; encoded rows fit one program and feed a module. Both are in canonical
order, oldest first, and hold for every row a label, a weight and its data time. `RowSource` is what sampling draws
from: it gives rows by position, so history may stay raw in memory (tens of bytes a row) and be encoded a batch at a
time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from trimtab._native import Slab
from trimtab.kernels.cpu import CpuExecutor
from trimtab.kernels.slabs import slab_from_arrow, slab_to_arrow
from trimtab.models.tasks import Task
from trimtab.store.settings import ModelSettings
from trimtab.trainer.errors import RowsUnfit

__all__ = ["EncodedRows", "RowSource", "SlabSource", "TrainingTable", "task_of", "training_table"]

Integers = NDArray[np.int64] | NDArray[np.int32]


@dataclass(frozen=True)
class EncodedRows:
    """Rows as a module takes them."""

    features: NDArray[np.float32]
    """[n, F]"""
    ids: NDArray[np.int64]
    """[n, C]"""
    labels: NDArray[Any]
    """[n] of `Task.label_dtype`."""
    weights: NDArray[np.float32]
    """[n]"""
    time_us: NDArray[np.int64]
    """[n] data time of the request."""

    def __post_init__(self) -> None:
        lengths = {len(part) for part in (self.features, self.ids, self.labels, self.weights, self.time_us)}
        if len(lengths) != 1:
            raise ValueError(f"encoded rows: expected parts of one length, got {sorted(lengths)}")

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, positions: Integers) -> EncodedRows:
        """The rows at these positions, in this order."""
        return EncodedRows(
            self.features[positions],
            self.ids[positions],
            self.labels[positions],
            self.weights[positions],
            self.time_us[positions],
        )

    def slice(self, start: int, stop: int) -> EncodedRows:
        """Rows [start, stop), as views."""
        part = slice(start, stop)
        return EncodedRows(
            self.features[part], self.ids[part], self.labels[part], self.weights[part], self.time_us[part]
        )

    @classmethod
    def joined(cls, parts: list[EncodedRows]) -> EncodedRows:
        """All rows, one part after the other; at least one part."""
        return cls(
            np.concatenate([part.features for part in parts]),
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.labels for part in parts]),
            np.concatenate([part.weights for part in parts]),
            np.concatenate([part.time_us for part in parts]),
        )


class RowSource(Protocol):
    """Rows in canonical order that can be drawn by position: encoded ones, or a table with its program."""

    def __len__(self) -> int: ...

    def take(self, positions: Integers) -> EncodedRows:
        """The rows at these positions, in this order."""
        ...


@dataclass
class TrainingTable:
    """Labelled rows with their raw columns. `extend` grows it in place; nothing else changes it."""

    slab: Slab
    labels: NDArray[Any]
    """[n] of `Task.label_dtype`."""
    weights: NDArray[np.float32]
    """[n]"""
    time_us: NDArray[np.int64]
    """[n] data time of the request."""
    dropped: int = 0
    """Rows left out because their label is unknown."""

    def __post_init__(self) -> None:
        lengths = {self.slab.rows, len(self.labels), len(self.weights), len(self.time_us)}
        if len(lengths) != 1:
            raise ValueError(f"training table: expected parts of one length, got {sorted(lengths)}")

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, positions: Integers) -> TrainingTable:
        """A copy of the rows at these positions, in this order."""
        slab = Slab(self.slab.schema)
        slab.extend(self.slab, np.ascontiguousarray(positions, dtype=np.int32))
        return TrainingTable(slab, self.labels[positions], self.weights[positions], self.time_us[positions])

    def slice(self, start: int, stop: int) -> TrainingTable:
        """A copy of rows [start, stop)."""
        slab = Slab(self.slab.schema)
        slab.extend(self.slab, None, start, stop)
        part = slice(start, stop)
        return TrainingTable(slab, self.labels[part], self.weights[part], self.time_us[part])

    def extend(self, other: TrainingTable) -> None:
        """Appends the other table's rows."""
        self.slab.extend(other.slab)
        self.labels = np.concatenate([self.labels, other.labels])
        self.weights = np.concatenate([self.weights, other.weights])
        self.time_us = np.concatenate([self.time_us, other.time_us])

    def in_order(self) -> TrainingTable:
        """This table if its rows are in order of time, else a copy that is; rows of one time keep their order."""
        if len(self) < 2 or bool((np.diff(self.time_us) >= 0).all()):
            return self
        return self.select(np.argsort(self.time_us, kind="stable"))

    def batches(self, rows: int = 65_536) -> Iterator[pa.RecordBatch]:
        """The raw columns as Arrow batches, as received: what fitting a program reads."""
        names = list(self.slab.schema.names)
        whole = pa.RecordBatch.from_arrays(slab_to_arrow(self.slab), names=names)
        for start in range(0, len(self), rows):
            yield whole.slice(start, rows)

    def encode(self, executor: CpuExecutor) -> EncodedRows:
        """All rows through the executor's program."""
        features, ids = executor.run(self.slab)
        return EncodedRows(features, ids, self.labels, self.weights, self.time_us)


class SlabSource:
    """A table that is encoded as it is drawn from: memory stays that of the raw columns, a batch costs O(batch)."""

    def __init__(self, table: TrainingTable, executor: CpuExecutor) -> None:
        self._table, self._executor = table, executor
        self._slab = Slab(table.slab.schema)

    def __len__(self) -> int:
        return len(self._table)

    def take(self, positions: Integers) -> EncodedRows:
        """The rows at these positions, in this order."""
        self._slab.clear()
        self._slab.extend(self._table.slab, np.ascontiguousarray(positions, dtype=np.int32))
        features, ids = self._executor.run(self._slab)
        table = self._table
        return EncodedRows(features, ids, table.labels[positions], table.weights[positions], table.time_us[positions])


def task_of(model: ModelSettings) -> Task:
    """The task that a project's model has, before its target's scale is known."""
    return Task.of(model.task, model.classes, model.positive)


def training_table(
    table: pa.Table,
    model: ModelSettings,
    *,
    labels: pa.ChunkedArray[Any] | pa.Array[Any] | None = None,
    weights: NDArray[np.float32] | None = None,
    time_us: NDArray[np.int64] | None = None,
) -> TrainingTable:
    """The labelled rows of a table in the file's order.

    `labels` default to the model's label column, `weights` to 1, `time_us` to a second per row. A row whose label is
    missing counts as a negative where the model's absent labels do, and is dropped and counted otherwise, as is one
    whose label the task does not know. Raises RowsUnfit where no label is known, ColumnError for the features'
    columns.
    """
    column = model.label.column
    if labels is None:
        if column not in table.column_names:
            raise RowsUnfit(f"no label column {column!r}; the data has {table.column_names[:50]}")
        labels = table.column(column)
    times = np.arange(len(table), dtype=np.int64) * 1_000_000 if time_us is None else time_us
    encoded, known = encode_column(labels, task_of(model), absent_means=model.label.absent_means)
    if not known.any():
        sample = labels.slice(0, 3).to_pylist()
        raise RowsUnfit(f"no row of {len(table)} has a label that the task knows; {column!r} starts with {sample}")
    kept = np.flatnonzero(known)
    if len(kept) < len(table):
        table = table.filter(pa.array(known))
    ones = np.ones(len(kept), dtype=np.float32) if weights is None else np.asarray(weights, dtype=np.float32)[kept]
    slab = slab_from_arrow(with_keys_as_text(table, model), model.request_schema())
    return TrainingTable(slab, encoded[kept], ones, times[kept], int(len(known) - len(kept)))


def with_keys_as_text(table: pa.Table, model: ModelSettings) -> pa.Table:
    """The table with key columns that are no features as text, which is how requests bring them."""
    for key in model.extra_keys:
        if key not in table.column_names:
            blank = pa.nulls(len(table), pa.string())
            table = table.append_column(key, blank)
        elif not pa.types.is_string(table.schema.field(key).type):
            table = table.set_column(table.column_names.index(key), key, pc.cast(table.column(key), pa.string()))
    return table


def encode_column(
    labels: pa.ChunkedArray[Any] | pa.Array[Any], task: Task, *, absent_means: str = "unknown"
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """([n] encoded labels, [n] whether each is known) of a column of any scalar type."""
    array: Any = pa.concat_arrays(labels.chunks) if isinstance(labels, pa.ChunkedArray) else labels
    if not pa.types.is_dictionary(array.type):
        array = array.dictionary_encode()
    # Each distinct value is read once; a null's index is null.
    values, known = task.try_encode(array.dictionary.to_pylist())
    positions = array.indices.fill_null(len(values)).to_numpy(zero_copy_only=False)
    absent_known = absent_means == "negative" and task.kind == "binary"
    return np.append(values, values.dtype.type(0))[positions], np.append(known, absent_known)[positions]
