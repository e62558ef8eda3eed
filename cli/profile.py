"""What a data file is like: two passes over its rows, in bounded memory.

The first takes an even sample of the training rows and counts what is missing; types, bins and strengths come from
the sample. The second counts every row into bins of the sample by time, which shows what drifts. Nothing outside the
training rows decides about a column, since nothing outside them would have been known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from trimtab.cli.strength import Coder, numbers, strength
from trimtab.cli.tables import Table
from trimtab.cli.target import Target

__all__ = ["SAMPLE_ROWS", "ColumnProfile", "Kind", "Profile", "TimeBins", "profile"]

SAMPLE_ROWS = 50_000
TIME_BINS = 24
_STRENGTH_CODES = 128
_DRIFT_CODES = 10
_BARS = 24

Kind = Literal["boolean", "integer", "real", "string", "time", "other"]


@dataclass
class ColumnProfile:
    """One column. Counts are of the sample unless they say "all"."""

    name: str
    arrow: str
    """Its type in the file."""
    kind: Kind
    rows: int = 0
    """Rows of the sample."""
    missing: int = 0
    distinct: int = 0
    missing_all: int = 0
    whole: bool = False
    """Numbers: all are whole."""
    whole_all: bool = True
    """Numbers: all are whole in all rows."""
    rising: float = 0.0
    """Share of steps from row to row, in order of time, that go up (or down, if those are more), of all distinct
    values."""
    strength: float = math.nan
    """See `trimtab.cli.strength`."""
    missing_says: tuple[str, float, int] | None = None
    """Classifiers: the commonest class among rows without a value, its share there, and how many rows that are."""
    low: float = math.nan
    high: float = math.nan
    mean: float = math.nan
    quantiles: tuple[float, ...] = ()
    """Numbers: 5, 25, 50, 75 and 95 %."""
    bars: tuple[tuple[str, int], ...] = ()
    """What the report draws: bins or categories with their counts."""
    looks_like_time: bool = False
    """Text that reads as times, or numbers that do and are close to the row's own."""
    psi: tuple[float, ...] = ()
    """Population stability index of each time bin against the training rows."""
    missing_by_time: tuple[float, ...] = ()
    mean_by_time: tuple[float, ...] = ()

    @property
    def unique_share(self) -> float:
        """Distinct values per value."""
        present = self.rows - self.missing
        return self.distinct / present if present else 0.0

    @property
    def missing_share(self) -> float:
        """Of the sample."""
        return self.missing / self.rows if self.rows else 0.0


@dataclass
class TimeBins:
    """Rows in order, cut into bins of (about) equally many."""

    start_us: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    label: list[float] = field(default_factory=list)
    """Mean label (positive share) of each bin; multiclass: share of the commonest class."""


@dataclass
class Profile:
    """The whole file."""

    rows: int
    training_rows: int
    sample_rows: int
    columns: dict[str, ColumnProfile]
    bins: TimeBins
    label_sample: NDArray[np.float64]


def profile(
    table: Table,
    target: Target,
    training_rows: int,
    *,
    skip: Sequence[str] = (),
    tell: Callable[[int], None] | None = None,
) -> Profile:
    """Profiles every column but the label and those to skip. `tell` is called with rows read (of 2 · table.rows)."""
    tell = tell or (lambda rows: None)
    names = [name for name in table.names if name != target.column and name not in skip]
    columns = {name: ColumnProfile(name, str(kind := table.schema.field(name).type), _kind(kind)) for name in names}
    sample = _sample(table, [target.column, *names], training_rows, columns, tell)
    labels = target.encode(_array(sample, target.column))
    step = max(1, training_rows // SAMPLE_ROWS)
    sample_times = table.time_us[:training_rows:step][: len(sample)]
    coders: dict[str, Coder] = {}
    for column in columns.values():
        _describe(column, _array(sample, column.name), labels, target, sample_times)
        if column.kind not in ("time", "other"):
            coders[column.name] = Coder.of(_array(sample, column.name), _DRIFT_CODES)
    bins = _by_time(table, target, training_rows, columns, coders, tell)
    return Profile(table.rows, training_rows, len(sample), columns, bins, labels)


def _kind(kind: pa.DataType) -> Kind:
    if pa.types.is_boolean(kind):
        return "boolean"
    if pa.types.is_integer(kind) or pa.types.is_null(kind):
        return "integer"
    if pa.types.is_floating(kind):
        return "real"
    if pa.types.is_string(kind):
        return "string"
    return "time" if pa.types.is_temporal(kind) and not pa.types.is_duration(kind) else "other"


def _array(table: pa.Table, name: str) -> Any:
    column = table.column(name).combine_chunks()
    array: Any = column.chunk(0) if isinstance(column, pa.ChunkedArray) and column.num_chunks == 1 else column
    return array.cast(pa.int64()) if pa.types.is_null(array.type) else array


def _sample(
    table: Table, names: list[str], training_rows: int, columns: dict[str, ColumnProfile], tell: Callable[[int], None]
) -> pa.Table:
    step = max(1, training_rows // SAMPLE_ROWS)
    parts: list[pa.RecordBatch] = []
    position = 0
    for batch in table.iter_batches(names):
        for name, column in columns.items():
            array: Any = batch.column(names.index(name))
            column.missing_all += _missing(array)
            if column.kind == "real" and column.whole_all:
                values = np.asarray(array.to_numpy(zero_copy_only=False))
                column.whole_all = bool(((np.floor(values) == values) | np.isnan(values)).all())
        rows = np.arange(-position % step, min(batch.num_rows, training_rows - position), step)
        if len(rows):
            parts.append(batch.take(rows))
        position += batch.num_rows
        tell(batch.num_rows)
    return pa.Table.from_batches(parts)


def _missing(array: Any) -> int:
    if pa.types.is_floating(array.type):
        return int(np.isnan(np.asarray(array.to_numpy(zero_copy_only=False))).sum())
    return int(array.null_count)


def _describe(
    column: ColumnProfile, sample: Any, labels: NDArray[np.float64], target: Target, times: NDArray[np.int64]
) -> None:
    column.rows = len(sample)
    column.missing = _missing(sample)
    if column.kind in ("time", "other"):
        return
    gone = np.asarray(sample.is_null().to_numpy(zero_copy_only=False), dtype=bool)
    if column.kind == "string":
        counted = sorted(sample.drop_null().value_counts().to_pylist(), key=lambda i: (-i["counts"], i["values"]))
        column.distinct = len(counted)
        rest = sum(item["counts"] for item in counted[_BARS - 1 :])
        column.bars = tuple((item["values"], item["counts"]) for item in counted[: _BARS - 1])
        if rest:
            column.bars += (("(others)", rest),)
        column.looks_like_time = _reads_as_time(sample)
    else:
        values = numbers(sample)
        gone |= np.isnan(values)
        _describe_numbers(column, values[np.isfinite(values)])
        column.looks_like_time = _is_epoch(values, times)
    coder = Coder.of(sample, _STRENGTH_CODES)
    column.strength = strength(coder.codes(sample), coder.size, labels, target.task)
    if target.task != "regression":
        told = labels[gone & ~np.isnan(labels)]
        if len(told):
            classes, counts = np.unique(told, return_counts=True)
            top = int(counts.argmax())
            column.missing_says = (target.classes[int(classes[top])], float(counts[top] / len(told)), len(told))


def _describe_numbers(column: ColumnProfile, values: NDArray[np.float64]) -> None:
    if len(values) == 0:
        return
    distinct, counts = np.unique(values, return_counts=True)
    column.distinct = len(distinct)
    column.whole = bool((np.floor(values) == values).all())
    column.low, column.high, column.mean = float(distinct[0]), float(distinct[-1]), float(values.mean())
    column.quantiles = tuple(float(q) for q in np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95]))
    steps = np.diff(values)
    if len(steps):
        column.rising = float(max((steps > 0).mean(), (steps < 0).mean()))
    if len(distinct) <= _BARS:
        column.bars = tuple((f"{value:g}", int(n)) for value, n in zip(distinct, counts, strict=True))
        return
    # Without the tails, which would squeeze everything into one bar.
    low, high = np.quantile(values, [0.005, 0.995])
    if low == high:
        low, high = distinct[0], distinct[-1]
    bars, edges = np.histogram(np.clip(values, low, high), _BARS, (low, high))
    column.bars = tuple((f"{edges[i]:.4g} – {edges[i + 1]:.4g}", int(n)) for i, n in enumerate(bars))


def _reads_as_time(sample: Any) -> bool:
    from trimtab.cli.errors import DataError
    from trimtab.cli.tables import times_of

    some = sample.drop_null().slice(0, 200)
    if len(some) == 0:
        return False
    try:
        times_of(some, "")
    except DataError:
        return False
    return True


def _is_epoch(values: NDArray[np.float64], times: NDArray[np.int64]) -> bool:
    """Whether numbers read as times since the epoch and lie within a year of the rows' own times."""
    known = np.isfinite(values)
    if known.sum() < 10 or len(times) != len(values) or np.median(times) < 1e14:
        return False
    middle = float(np.median(np.abs(values[known])))
    for scale in (1e6, 1e3, 1.0, 1e-3):
        off = np.abs(values[known] * scale - times[known])
        if 1e14 < middle * scale < 1e16 and np.mean(off < 366 * 86_400e6) > 0.9:
            return True
    return False


def _by_time(
    table: Table,
    target: Target,
    training_rows: int,
    columns: dict[str, ColumnProfile],
    coders: dict[str, Coder],
    tell: Callable[[int], None],
) -> TimeBins:
    count = max(1, min(TIME_BINS, table.rows // 50))
    starts = np.linspace(0, table.rows, count + 1).astype(np.int64)
    # The training rows are a bin of their own on the way: PSI is against them.
    cells = {name: np.zeros((count + 1) * coder.size) for name, coder in coders.items()}
    sums = {name: np.zeros(count) for name in coders if coders[name].edges is not None}
    label_sums, label_rows = np.zeros(count), np.zeros(count)
    names = [target.column, *coders]
    position = 0
    common = float(max(range(len(target.classes)), key=lambda i: target.counts[target.classes[i]], default=0))
    for batch in table.iter_batches(names):
        rows = np.arange(position, position + batch.num_rows)
        of_row = np.searchsorted(starts, rows, side="right") - 1
        labels = target.encode(batch.column(0))
        known = ~np.isnan(labels)
        shown = (labels == common).astype(np.float64) if target.task == "multiclass" else labels
        label_sums += np.bincount(of_row[known], shown[known], count)
        label_rows += np.bincount(of_row[known], minlength=count)
        training = int(np.clip(training_rows - position, 0, batch.num_rows))
        for place, (name, coder) in enumerate(coders.items(), 1):
            array: Any = batch.column(place)
            array = array.cast(pa.int64()) if pa.types.is_null(array.type) else array
            codes = coder.codes(array)
            cells[name] += np.bincount(of_row * coder.size + codes, minlength=(count + 1) * coder.size)
            cells[name][-coder.size :] += np.bincount(codes[:training], minlength=coder.size)
            if name in sums:
                values = numbers(array)
                finite = np.isfinite(values)
                sums[name] += np.bincount(of_row[finite], values[finite], count)
        position += batch.num_rows
        tell(batch.num_rows)
    for name, coder in coders.items():
        grid = cells[name].reshape(count + 1, coder.size)
        per_bin, reference = grid[:-1], grid[-1]
        columns[name].psi = tuple(_psi(reference, row) for row in per_bin)
        columns[name].missing_by_time = tuple(per_bin[:, -1] / np.maximum(per_bin.sum(axis=1), 1))
        if name in sums:
            present = per_bin[:, :-1].sum(axis=1)
            columns[name].mean_by_time = tuple(np.where(present > 0, sums[name] / np.maximum(present, 1), np.nan))
    with np.errstate(invalid="ignore"):
        means = label_sums / label_rows
    return TimeBins(
        [int(table.time_us[start]) for start in starts[:-1]], np.diff(starts).tolist(), [float(mean) for mean in means]
    )


def _psi(reference: NDArray[np.float64], window: NDArray[np.float64]) -> float:
    """Population stability index, with half a row in each cell so that empty ones stay finite."""
    if reference.sum() == 0 or window.sum() == 0:
        return math.nan
    p = (reference + 0.5) / (reference + 0.5).sum()
    q = (window + 0.5) / (window + 0.5).sum()
    return float(((q - p) * np.log(q / p)).sum())
