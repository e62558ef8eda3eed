"""The history that a project was made from: its data file in the order of time, cut into what is trained on and what
came later.

Knows nothing of models. A row may be trained on if it lies before the cut and its label was known by then.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from trimtab.cli.errors import DataError, UsageError
from trimtab.cli.tables import Table, open_table, times_of
from trimtab.store.project import Project
from trimtab.store.settings import DataSettings

__all__ = ["DEFAULT_SHARE", "History", "cut_of", "data_path", "label_times", "open_history"]

DEFAULT_SHARE = 0.3
"""Share of the oldest rows that is trained on by default."""


@dataclass
class History:
    """A data file in the order of time. A context manager: leaving it removes temporary files."""

    table: Table
    cut: int
    """Rows [0, cut) are trained on."""
    label_us: NDArray[np.int64]
    """int64 [rows]: when each row's label became known; INT64_MAX where it never did."""

    @property
    def cut_us(self) -> int:
        """The data time at which training ends: that of the first row after the cut."""
        times = self.table.time_us
        return int(times[self.cut]) if self.cut < len(times) else np.iinfo(np.int64).max

    def trainable(self) -> NDArray[np.bool_]:
        """bool [cut]: rows before the cut whose label was known at the cut."""
        return np.asarray(self.label_us[: self.cut] <= self.cut_us)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.table.close()


def open_history(project: Project, *, label_delay_us: int = 0) -> History:
    """The history of the project's [data]. `label_delay_us`: how long after its row a label is known, without a
    column that says so. Raises DataError."""
    data = project.data
    table = open_table(data_path(project), time=data.time or None)
    try:
        return History(table, cut_of(table, data), label_times(table, data.label_time, label_delay_us))
    except BaseException:
        table.close()
        raise


def data_path(project: Project) -> Path:
    """The data file of a project. Raises DataError where trimtab.toml names none."""
    if not project.data.path:
        raise DataError(f"{project.directory / 'trimtab.toml'}: [data] path is empty; name the file to train on")
    return project.directory / project.data.path


def cut_of(table: Table, data: DataSettings) -> int:
    """How many of the oldest rows are trained on. Raises UsageError, DataError."""
    if data.until:
        if not data.time:
            raise UsageError("until needs a time column")
        return int(np.searchsorted(table.time_us, _moment(table, data.time, data.until), side="left"))
    if data.train_rows:
        if data.train_rows > table.rows:
            raise UsageError(f"{data.train_rows:,} rows to train on; {table.path} has {table.rows:,}")
        return data.train_rows
    return round(table.rows * DEFAULT_SHARE)


def label_times(table: Table, column: str, delay_us: int = 0) -> NDArray[np.int64]:
    """int64 [rows]: when each row's label became known, not before the row itself; INT64_MAX where the column has no
    time."""
    if not column:
        return table.time_us + delay_us
    times = table.times(column)
    never = times == np.iinfo(np.int64).min
    known = np.maximum(times, table.time_us)
    known[never] = np.iinfo(np.int64).max
    return known


def _moment(table: Table, column: str, text: str) -> int:
    kind = table.schema.field(column).type
    try:
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            return _numeric_moment(table, column, float(text))
        return int(times_of(pa.array([text]), column)[0])
    except (ValueError, DataError):
        raise UsageError(f"until: expected a value of the time column {column!r} ({kind}), got {text!r}") from None


def _numeric_moment(table: Table, column: str, value: float) -> int:
    # In the column's own unit, which the size of its numbers decides: the scale that its first row was read with.
    first = float(next(table.iter_batches([column], stop=1)).column(0)[0].as_py())
    scale = table.time_us[0] / first if first else 1e6
    exact = min((1e6, 1e3, 1.0, 1e-3), key=lambda one: abs(one - scale))
    return round(value * exact)
