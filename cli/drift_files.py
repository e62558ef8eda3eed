"""Two files compared, column by column, in bounded memory: the reference is read twice, the current rows once.

The first pass fits what a sketch counts (quantile edges, vocabularies) to the reference; further passes fill one
sketch of the reference and one a window of the current rows, by the native executor. Everything that is judged comes
from the sketches alone, which take some hundred bytes a column and window: memory does not grow with rows.

P-values are adjusted (Benjamini-Hochberg) over all columns, those of windows over all columns and windows. A column
has drifted where its adjusted p-value is at most alpha and its effect, the PSI, at least min_effect: at many rows
everything is significant, at few rows effects are large by chance.

Values are rounded to float32, as in serving: what differs by less is one value here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from trimtab._native import ColumnTable
from trimtab.cli.drift_columns import Column, Left
from trimtab.cli.drift_rows import NO_TIME, Rows
from trimtab.cli.drift_values import ColumnValues, NewValue
from trimtab.cli.errors import DataError, UsageError
from trimtab.cli.output import number
from trimtab.kernels.cores import cores
from trimtab.kernels.cpu import CpuExecutor
from trimtab.kernels.divergences import benjamini_hochberg
from trimtab.kernels.drift import FeatureStatistics, Statistic, compare
from trimtab.kernels.evidently import Verdict
from trimtab.kernels.fit_sketch import fit_sketch
from trimtab.kernels.joint import MIN_EFFECT, JointDrift, compare_jointly, even_sample
from trimtab.kernels.program import ColumnProgram
from trimtab.kernels.sketch import FieldSummary, Sketch
from trimtab.kernels.sketch_spec import CategoryField
from trimtab.kernels.slabs import arrays_from_arrow
from trimtab.store.durations import format_duration
from trimtab.store.windows import window_start, window_starts

__all__ = [
    "MOST_WINDOWS",
    "Comparison",
    "FileDrift",
    "Moment",
    "Window",
    "compare_rows",
    "sketch_rows",
    "with_verdicts",
]

MOST_WINDOWS = 1000


@dataclass(frozen=True)
class Window:
    """A stretch of data time, µs UTC, and how many current rows it has."""

    start_us: int
    end_us: int
    rows: int


@dataclass(frozen=True)
class Moment:
    """A column in one window. effect: the PSI; mean: of the finite values, NaN where there are none."""

    effect: float
    adjusted_p_value: float
    missing_rate: float
    unseen_rate: float
    mean: float
    buckets: tuple[int, ...]


@dataclass(frozen=True)
class FileDrift:
    """What is said of one column. unseen: beyond the reference's range, or a value it does not have. buckets: what the
    names say, then nothing else; missing and unseen values are in the rates. quantiles: of numbers, by
    drift_values.SHARES. new_values: of categories, the most frequent ones that the reference does not have."""

    column: Column
    statistics: tuple[Statistic, ...]
    effect: float
    p_value: float
    adjusted_p_value: float
    drifted: bool
    missing_rate: float
    reference_missing_rate: float
    unseen_rate: float
    reference_unseen_rate: float
    mean: float
    reference_mean: float
    bucket_names: tuple[str, ...]
    buckets: tuple[int, ...]
    reference_buckets: tuple[int, ...]
    over_time: tuple[Moment, ...]
    evidently: Verdict | None = None
    quantiles: tuple[float, ...] = ()
    reference_quantiles: tuple[float, ...] = ()
    new_values: tuple[NewValue, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """The whole answer: features by effect, largest first; windows by time; columns that were left out."""

    reference_rows: int
    rows: int
    untimed_rows: int
    features: tuple[FileDrift, ...]
    windows: tuple[Window, ...]
    left: tuple[Left, ...]
    joint: JointDrift | None = None
    """Of the columns together, by a sample of rows; `alarm`: whether they have drifted. None: too few rows."""
    joint_over_time: tuple[JointDrift | None, ...] = ()
    """By window."""


def compare_rows(
    reference: Rows,
    current: Rows,
    columns: Sequence[Column],
    left: Sequence[Left],
    *,
    window_us: int = 0,
    alpha: float = 0.01,
    min_effect: float = 0.1,
) -> Comparison:
    """Reads both sides and compares them; `window_us` 0: no windows. Raises DataError, and UsageError where there would
    be too many windows."""
    clock, count = current.clock, 1
    if window_us and clock is not None:
        low, high = clock.first if current.low is None else max(clock.first, current.low), clock.last
        count = (window_start(high, window_us) - window_start(low, window_us)) // window_us + 1
        if count > MOST_WINDOWS:
            raise UsageError(
                f"--window {format_duration(window_us)} makes {count:,} windows of {current.table.path}; give one of "
                f"which at most {MOST_WINDOWS:,} fit into its times"
            )
    names = [column.field.name for column in columns]
    program = fit_sketch([column.field for column in columns], reference.batches(names))
    values_before, values_now = ColumnValues(program), ColumnValues(program)
    before = sketch_rows(program, reference, 0, values_before)[0][NO_TIME]
    windows, untimed = sketch_rows(program, current, window_us, values_now, count)
    now = Sketch(program.sketch)
    for sketch in windows.values():
        now.merge(sketch)
    if not now.rows:
        raise DataError(f"{current.table.path}: no row to compare is left")
    timed = sorted(start for start in windows if start != NO_TIME)
    found = compare(before, now)[:-1]  # without the prediction, which files do not have
    by_window = [compare(before, windows[start])[:-1] for start in timed]
    adjusted = benjamini_hochberg([one.p_value for one in found])
    flat = benjamini_hochberg([one.p_value for window in by_window for one in window])
    features = []
    for i, (column, one, p_value) in enumerate(zip(columns, found, adjusted, strict=True)):
        moments = tuple(
            _moment(window[i], flat[w * len(columns) + i], windows[timed[w]].field(i))
            for w, window in enumerate(by_window)
        )
        drifted = p_value <= alpha and one.effect >= min_effect
        told = _feature(column, one, p_value, drifted, before.field(i), now.field(i), moments)
        field = program.sketch.fields[i]
        features.append(
            replace(
                told,
                quantiles=values_now.quantiles(i),
                reference_quantiles=values_before.quantiles(i),
                new_values=values_now.new_values(i, field) if isinstance(field, CategoryField) else (),
            )
        )
    features.sort(key=lambda feature: (-feature.effect, feature.adjusted_p_value))
    spans = tuple(Window(start, start + window_us, windows[start].rows) for start in timed)
    joint = _judged_jointly([compare_jointly(before, now)], alpha)[0]
    by_time = _judged_jointly([compare_jointly(before, windows[start]) for start in timed], alpha)
    return Comparison(before.rows, now.rows, untimed, tuple(features), spans, tuple(left), joint, tuple(by_time))


def _judged_jointly(found: Sequence[JointDrift | None], alpha: float) -> list[JointDrift | None]:
    """Which have drifted, by p-values that are adjusted over all of them."""
    adjusted = iter(benjamini_hochberg([one.p_value for one in found if one is not None]))
    return [one and replace(one, alarm=next(adjusted) <= alpha and one.effect >= MIN_EFFECT) for one in found]


def sketch_rows(
    program: ColumnProgram, rows: Rows, window_us: int, values: ColumnValues | None = None, windows: int = 1
) -> tuple[dict[int, Sketch], int]:
    """A sketch for each window's start, those without a window (no length given, no time) under NO_TIME; and how many
    rows have no time. All rows go to `values`, too, and a sample of them to the sketches' joint parts."""
    executor = CpuExecutor(program)
    threads, whole = cores(), rows.count()
    names = [field.name for field in program.fields]
    sketches: dict[int, Sketch] = {} if window_us else {NO_TIME: Sketch(program.sketch)}
    untimed = seen = 0
    for batch, times in rows.timed(names, times=bool(window_us)):
        starts = _starts(times, window_us) if window_us and times is not None else None
        arrays = arrays_from_arrow(batch, program.schema)
        if values is not None:
            values.add(arrays)
        taken = even_sample(seen, batch.num_rows, whole, len(names), windows)
        seen += batch.num_rows
        if starts is None:
            borrowed = ColumnTable(program.schema, arrays)
            executor.run(borrowed, sketches[NO_TIME], threads=threads)
            executor.sum_jointly(borrowed, taken, sketches[NO_TIME])
            continue
        if (starts[1:] < starts[:-1]).any():
            order = np.argsort(starts, kind="stable")
            arrays = arrays_from_arrow(batch.take(pa.array(order, pa.int64())), program.schema)
            starts = starts[order]
            taken = np.flatnonzero(np.isin(order, taken))  # the same rows, wherever they lie now
        borrowed = ColumnTable(program.schema, arrays)
        cuts = [0, *(np.flatnonzero(np.diff(starts)) + 1).tolist(), len(starts)]
        for first, stop in pairwise(cuts):
            start = int(starts[first])
            if start not in sketches:
                sketches[start] = Sketch(program.sketch)
            executor.run(borrowed, sketches[start], first, stop, threads=threads)
            inside = taken[np.searchsorted(taken, first) : np.searchsorted(taken, stop)]
            executor.sum_jointly(borrowed, inside, sketches[start])
            untimed += stop - first if start == NO_TIME else 0
    return sketches, untimed


def _starts(times: NDArray[np.int64], window_us: int) -> NDArray[np.int64]:
    starts = window_starts(times, window_us)
    starts[times == NO_TIME] = NO_TIME
    return starts


def _moment(one: FeatureStatistics, adjusted: float, summary: FieldSummary) -> Moment:
    buckets = tuple(int(count) for count in summary.buckets)
    return Moment(one.effect, adjusted, one.missing_rate, one.unseen_rate, summary.mean, buckets)


def _feature(
    column: Column,
    one: FeatureStatistics,
    adjusted: float,
    drifted: bool,
    before: FieldSummary,
    now: FieldSummary,
    moments: tuple[Moment, ...],
) -> FileDrift:
    return FileDrift(
        column,
        one.statistics,
        one.effect,
        one.p_value,
        adjusted,
        drifted,
        one.missing_rate,
        one.reference_missing_rate,
        one.unseen_rate,
        one.reference_unseen_rate,
        now.mean,
        before.mean,
        _bucket_names(before),
        tuple(int(count) for count in now.buckets),
        tuple(int(count) for count in before.buckets),
        moments,
    )


def _bucket_names(summary: FieldSummary) -> tuple[str, ...]:
    field = summary.field
    if isinstance(field, CategoryField):
        return (*(str(value) for value in field.values[: field.counted]), "other known values")
    if field.edges == (0.5,) and (field.low, field.high) == (0.0, 1.0):
        return "0", "1"
    if not field.edges:
        return ("all values",)
    edges = [number(edge) for edge in field.edges]
    inner = [f"{low} to {high}" for low, high in pairwise(edges)]
    return (f"below {edges[0]}", *inner, f"{edges[-1]} and above")


def with_verdicts(comparison: Comparison, verdicts: dict[str, Verdict | None]) -> Comparison:
    """The comparison with another judge's word on which columns drift."""
    features = []
    for feature in comparison.features:
        verdict = verdicts.get(feature.column.field.name)
        features.append(replace(feature, evidently=verdict, drifted=verdict is not None and verdict.drifted))
    return replace(comparison, features=tuple(features))
