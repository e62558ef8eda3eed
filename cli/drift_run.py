"""`trimtab drift` for files: opens them, says which rows are the reference, compares, shows.

Two files: the first is the reference. One file with a time column: its rows before a time are, by default before the
middle of the span of its times. The same file is read once for both sides where it has to be parsed (CSV).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trimtab.cli.drift_columns import pair_columns
from trimtab.cli.drift_files import Comparison, FileDrift, compare_rows, with_verdicts
from trimtab.cli.drift_rows import Clock, Rows
from trimtab.cli.drift_values import tell_joint, tell_new
from trimtab.cli.errors import DataError, UsageError
from trimtab.cli.output import Output, number, p_value, when
from trimtab.cli.tables import Table, open_table
from trimtab.kernels.evidently import DRIFT_SHARE
from trimtab.kernels.joint import MIN_EFFECT
from trimtab.store.durations import format_duration, parse_duration

if TYPE_CHECKING:
    from trimtab.cli.output import Task
    from trimtab.kernels.joint import JointDrift

__all__ = ["FileOptions", "drift_of_files"]

Mode = Literal["trimtab", "evidently"]
_SHOWN = 20
_TOLD = 0.001  # share of unseen rows from which a person is told which values they hold


@dataclass(frozen=True)
class FileOptions:
    """What was asked for. current None: one file, cut at the time `until`, or in the middle."""

    reference: Path
    current: Path | None = None
    columns: tuple[str, ...] = ()
    time: str = ""
    window: str = ""
    until: str = ""
    html: Path | None = None
    mode: Mode = "trimtab"
    alpha: float = 0.01
    min_effect: float = 0.1
    everything: bool = False

    def check(self) -> int:
        """The length of a window in µs, 0 for none. Raises UsageError where options do not fit together."""
        if self.current is None and not self.time:
            raise UsageError("one file needs --time COLUMN, to be cut at a time; or give two: REFERENCE CURRENT")
        if self.until and (self.current is not None or not self.time):
            raise UsageError("--until cuts one file at a time; it goes with --time and without a second file")
        if not self.window:
            return 0
        if not self.time:
            raise UsageError("--window needs --time COLUMN, which says which window a row is in")
        try:
            length = parse_duration(self.window)
        except ValueError as error:
            raise UsageError(f"--window: {error}") from None
        if not length:
            raise UsageError('--window: expected a duration such as "7d", got nothing')
        return length


def drift_of_files(options: FileOptions, output: Output) -> None:
    """Compares and shows. Raises UsageError and DataError."""
    window_us = options.check()
    with ExitStack() as stack:
        with output.progress("reading"):
            first = stack.enter_context(_open(options.reference))
            second = first if options.current is None else stack.enter_context(_open(options.current))
            clock = Clock(second, options.time) if options.time else None
        columns, left = pair_columns(first, second, options.columns, options.time)
        if not columns:
            why = "; ".join(f"{one.column!r}: {one.why}, {one.detail}" for one in left[:5]) or "there is none"
            raise DataError(f"no column to compare: {why}")
        passes = (4 if options.mode == "evidently" else 3) * 1.0
        with output.progress("comparing", total=passes * (first.rows + second.rows) * 0.5) as task:
            reference, current, cut = _sides(options, first, second, clock, task)
            untimed = clock.missing if cut is not None and clock is not None else 0
            found = compare_rows(
                reference,
                current,
                columns,
                left,
                window_us=window_us,
                alpha=options.alpha,
                min_effect=options.min_effect,
            )
            if options.mode == "evidently":
                from trimtab.cli.drift_evidently import judge

                found = with_verdicts(found, judge(reference, current, columns))
    if untimed:
        found = replace(found, untimed_rows=untimed)
    statement = _statement(options, found, cut, window_us)
    if options.html is not None:
        from trimtab.cli.drift_report import drift_report

        options.html.write_text(drift_report(found, _title(options), statement), encoding="utf-8")
        output.note(f"report: {options.html}")
    _show(options, found, statement, output)
    output.result(_json(options, found, cut))


def _open(path: Path) -> Table:
    table = open_table(path, fast=True)
    if len(set(table.names)) < len(table.names):
        twice = next(name for name in table.names if table.names.count(name) > 1)
        table.close()
        raise DataError(f"{path}: two columns are called {twice!r}")
    return table


def _sides(
    options: FileOptions, first: Table, second: Table, clock: Clock | None, task: Task
) -> tuple[Rows, Rows, int | None]:
    """Both sides, and where one file was cut."""
    if first is not second or clock is None:
        return Rows(first, tell=task.advance), Rows(second, clock, tell=task.advance), None
    cut = _until(options) if options.until else clock.first + (clock.last - clock.first + 1) // 2
    if not clock.first < cut <= clock.last:
        raise DataError(
            f"{first.path}: no rows on one side of {when(cut)}; its times go from {when(clock.first)} to "
            f"{when(clock.last)}"
        )
    return (
        Rows(first, clock, high=cut, tell=task.advance),
        Rows(first, clock, low=cut, tell=task.advance),
        cut,
    )


def _until(options: FileOptions) -> int:
    import pyarrow as pa
    from trimtab.cli.tables import times_of

    text: Any = pa.array([options.until])
    try:
        if re.fullmatch(r"-?[0-9]+(\.[0-9]*)?", options.until):
            text = text.cast(pa.float64())
        return int(times_of(text, options.time)[0])
    except DataError:
        raise UsageError(f"--until: expected a time such as 2013-07-01, got {options.until!r}") from None


def _title(options: FileOptions) -> str:
    if options.current is None:
        return f"Drift in {options.reference.name}"
    return f"Drift: {options.current.name} against {options.reference.name}"


def _statement(options: FileOptions, found: Comparison, cut: int | None, window_us: int) -> list[str]:
    """What was compared and how, for people."""
    sides = f"The reference is {options.reference} ({found.reference_rows:,} rows), compared with {options.current} "
    if cut is not None:
        sides = (
            f"The reference is {options.reference} before {when(cut)} UTC by {options.time} "
            f"({found.reference_rows:,} rows), compared with what follows "
        )
    lines = [f"{sides}({found.rows:,} rows): columns compared {len(found.features)}, left out {len(found.left)}."]
    if options.mode == "evidently":
        from trimtab.cli.drift_evidently import kept_rows

        drifted = sum(feature.drifted for feature in found.features)
        judged = sum(feature.evidently is not None for feature in found.features)
        verdict = "drifts" if judged and drifted / judged >= DRIFT_SHARE else "does not drift"
        lines.append(
            f"Judged as Evidently does by default, without a correction for looking at many columns: {drifted} of "
            f"{judged} columns drift; the data set {verdict} (share {DRIFT_SHARE:g}). "
            f"Exact up to {kept_rows(len(found.features)):,} rows a side; numbers of larger ones are judged by a "
            "sample of so many. PSI, p-values and charts are Trimtab's, of all rows."
        )
    else:
        lines.append(
            f"A column has drifted where its p-value, adjusted over all columns (Benjamini-Hochberg, false discovery "
            f"rate {options.alpha:g}), is at most {options.alpha:g} and its effect, the population stability index "
            f"(PSI), at least {options.min_effect:g}. Rank and effect do not grow with the number of rows."
        )
    lines.append(
        "Numbers are counted in bins of 4.6 % of the reference rows each, finer in the tails (0.1 to 3.2 %); missing "
        "values count as a bin of their own. Unseen: beyond the reference's range, or a value "
        "that it does not have."
    )
    if found.joint is not None:
        lines.append(
            "Columns together: how they depend on one another, and all else that rows as a whole show: the maximum "
            "mean discrepancy (MMD) of random Fourier features of a sample of rows. They have drifted where its own "
            f"p-value is at most {options.alpha:g} and its effect at least {MIN_EFFECT:g}."
        )
    if cut is not None and found.untimed_rows:
        lines.append(f"{found.untimed_rows:,} rows without a time are on neither side.")
    if found.windows:
        apart = found.untimed_rows if cut is None else 0
        untimed = f" {apart:,} rows without a time are in none." if apart else ""
        lines.append(
            f"Windows of {format_duration(window_us)} by {options.time}, from multiples of it since a Monday, UTC; "
            f"their p-values are adjusted over all columns and windows.{untimed}"
        )
    return lines


def _show(options: FileOptions, found: Comparison, statement: Sequence[str], output: Output) -> None:
    output.say(statement[0])
    for one in found.left:
        output.say(f"  {one.column}: {one.why}: {one.detail}")
    if options.mode == "evidently":
        output.say(statement[1])
    shown = found.features if options.everything else found.features[:_SHOWN]
    rest = len(found.features) - len(shown)
    judge = ("test", "score") if options.mode == "evidently" else ("KS", "adjusted p")
    heads = ("column", "PSI", *judge, "missing", "was", "unseen", "mean", "was mean", "")
    windows = ("peak PSI",) if found.windows else ()
    output.table(
        (*heads[:-1], *windows, ""),
        [_row(options, feature) for feature in shown],
        title=f"{rest} more columns: --all" if rest else None,
        right=tuple(head for head in (*heads[1:-1], *windows) if head != "test"),
    )
    if cut_off := found.untimed_rows if options.current is None else 0:
        output.say(f"  {cut_off:,} rows without a time are on neither side")
    if found.joint is not None:
        output.say(f"  {tell_joint(found.joint)}")
    for feature in shown:
        if feature.new_values and feature.unseen_rate >= _TOLD:
            told = tell_new(feature.new_values[:3], found.rows)
            output.say(f"  {feature.column.field.name}: values that the reference does not have: {told}")


def _row(options: FileOptions, feature: FileDrift) -> tuple[object, ...]:
    statistics = {one.name: one.value for one in feature.statistics}
    verdict = feature.evidently
    judged: tuple[object, ...] = (number(statistics.get("ks"), 3), p_value(feature.adjusted_p_value))
    if options.mode == "evidently":
        judged = ("–", "–") if verdict is None else (verdict.test, number(verdict.score, 3))
    peak = max((moment.effect for moment in feature.over_time), default=None)
    return (
        feature.column.field.name,
        number(feature.effect, 3),
        *judged,
        f"{feature.missing_rate:.1%}",
        f"{feature.reference_missing_rate:.1%}",
        f"{feature.unseen_rate:.1%}",
        number(feature.mean, 3),
        number(feature.reference_mean, 3),
        *(() if peak is None else (number(peak, 3),)),
        "drifted" if feature.drifted else "",
    )


def _json(options: FileOptions, found: Comparison, cut: int | None) -> dict[str, Any]:
    evidently = options.mode == "evidently"
    judged = [feature for feature in found.features if feature.evidently is not None] if evidently else found.features
    drifted = sum(feature.drifted for feature in found.features)
    said: dict[str, Any] = {
        "mode": options.mode,
        "reference": {"path": options.reference, "rows": found.reference_rows, "until_us": cut},
        "current": {"path": options.current or options.reference, "rows": found.rows, "from_us": cut},
        "alpha": None if evidently else options.alpha,
        "min_effect": None if evidently else options.min_effect,
        "correction": None if evidently else "benjamini-hochberg",
        "drifted": drifted,
        "features": [_feature_json(feature) for feature in found.features],
        "windows": [asdict(window) for window in found.windows],
        "joint": _joint_json(found.joint),
        "joint_over_time": [_joint_json(one) for one in found.joint_over_time],
        "untimed_rows": found.untimed_rows,
        "not_compared": [asdict(one) for one in found.left],
    }
    if evidently:
        share = drifted / len(judged) if judged else 0.0
        said["dataset"] = {"share": share, "threshold": DRIFT_SHARE, "drifted": share >= DRIFT_SHARE}
    return said


def _joint_json(found: JointDrift | None) -> dict[str, Any] | None:
    if found is None:
        return None
    said = asdict(found)
    return {key: said[key] for key in ("mmd", "effect", "p_value", "rows", "reference_rows")} | {"drifted": found.alarm}


def _feature_json(feature: FileDrift) -> dict[str, Any]:
    said = asdict(feature)
    column = said.pop("column")
    kind = column.pop("field")
    if feature.evidently is None:
        said.pop("evidently")
    return {"feature": kind["name"], "type": kind["type"], **column, **said}
