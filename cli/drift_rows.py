"""The rows of one side of a comparison, streamed: a whole table, or the part of it within a span of data time.

Nothing is kept: a batch at a time, as often as asked for. Times are read in a first pass over their column alone,
which finds the span and, for numbers since the epoch, their unit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from trimtab.cli.errors import DataError
from trimtab.cli.tables import Table, times_of

__all__ = ["NO_TIME", "Clock", "Rows"]

NO_TIME = int(np.iinfo(np.int64).min)


class Clock:
    """Data times of a table's batches, by the column `time`. Raises DataError where no row has a time."""

    def __init__(self, table: Table, time: str) -> None:
        table.require(time)
        self.time = time
        self._path = table.path
        self._largest: float | None = None
        kind = table.schema.field(time).type
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            self._largest = 0.0
            for batch in table.iter_batches([time]):
                values = np.abs(np.asarray(batch.column(0).to_numpy(zero_copy_only=False), np.float64))
                known = values[np.isfinite(values)]
                self._largest = max(self._largest, float(known.max()) if len(known) else 0.0)
        self.first, self.last, self.missing = np.iinfo(np.int64).max, NO_TIME, 0
        for batch in table.iter_batches([time]):
            times = self.of(batch)
            known_times = times[times != NO_TIME]
            self.missing += len(times) - len(known_times)
            if len(known_times):
                self.first = min(self.first, int(known_times.min()))
                self.last = max(self.last, int(known_times.max()))
        if self.last == NO_TIME:
            raise DataError(f"{table.path}: column {time!r}: no row has a time")

    def of(self, batch: pa.RecordBatch) -> NDArray[np.int64]:
        """int64 [n] µs UTC, NO_TIME where there is none."""
        return times_of(batch.column(self.time), self.time, self._path, largest=self._largest)


@dataclass(frozen=True)
class Rows:
    """One side. `low`, `high`: which times belong to it, in µs, low included; rows without a time do where both are
    open."""

    table: Table
    clock: Clock | None = None
    low: int | None = None
    high: int | None = None
    tell: Callable[[int], None] = lambda rows: None

    @property
    def bounded(self) -> bool:
        """Whether only a part of the table belongs to it."""
        return self.low is not None or self.high is not None

    def count(self) -> int:
        """How many rows there are; where only a part belongs to it, by a pass over their times."""
        if not self.bounded or self.clock is None:
            return self.table.rows
        times = (self.clock.of(batch) for batch in self.table.iter_batches([self.clock.time]))
        return sum(int(self._belong(found).sum()) for found in times)

    def _belong(self, times: NDArray[np.int64]) -> NDArray[np.bool_]:
        kept: NDArray[np.bool_] = times != NO_TIME
        if self.low is not None:
            kept &= times >= self.low
        if self.high is not None:
            kept &= times < self.high
        return kept

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """One pass over these columns."""
        return (batch for batch, _ in self.timed(columns, times=False))

    def timed(
        self, columns: Sequence[str], *, times: bool = True
    ) -> Iterator[tuple[pa.RecordBatch, NDArray[np.int64] | None]]:
        """One pass, each batch with its times if they are asked for and there is a clock."""
        timed = self.clock if times or self.bounded else None
        names = list(columns)
        asked = [*names, timed.time] if timed is not None and timed.time not in names else names
        for batch in self.table.iter_batches(asked):
            read = batch.num_rows
            self._check_text(batch)
            found = None if timed is None else timed.of(batch)
            if found is not None and self.bounded:
                kept = self._belong(found)
                if not kept.all():
                    batch, found = batch.filter(pa.array(kept)), found[kept]
            if batch.num_rows:
                yield batch.select(names), found
            self.tell(read)

    def _check_text(self, batch: pa.RecordBatch) -> None:
        """Parquet promises UTF-8, and writers break the promise."""
        for field, column in zip(batch.schema, batch.columns, strict=True):
            if pa.types.is_string(field.type):
                try:
                    column.validate(full=True)
                except pa.ArrowInvalid:
                    raise DataError(f"{self.table.path}: column {field.name!r} has text that is not UTF-8") from None
