"""What is predicted: the task, its classes and its positive one, found from the label column.

  boolean, or two distinct values          binary
  strings, up to 50 distinct               multiclass
  whole numbers, up to 20 distinct         multiclass
  other numbers                            regression

Pure but for reading the table. Labels are looked at in all rows: a class that turns up later must be known now.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from trimtab.cli.errors import DataError, UsageError
from trimtab.cli.tables import Table

__all__ = ["Target", "detect"]

_MOST_STRINGS = 50
_MOST_NUMBERS = 20
_MOST_COUNTED = 10_000
_YES = ("true", "yes", "y", "t", "1", "positive", "pos", "fraud", "churn", "default", "late", "failed", "up")


@dataclass(frozen=True)
class Target:
    """The label column as a task."""

    column: str
    task: str
    """"binary", "multiclass" or "regression"."""
    classes: tuple[str, ...] = ()
    """In the order of the outputs; binary: the negative, then the positive one."""
    why: str = ""
    """How the task was found, for the table of assumptions."""
    missing: int = 0
    """Rows without a label."""
    counts: dict[str, int] = field(default_factory=dict)
    """Rows of each class."""

    @property
    def positive(self) -> str:
        """The positive class of a binary task, else empty."""
        return self.classes[-1] if self.task == "binary" else ""

    def encode(self, labels: pa.Array[Any]) -> NDArray[np.float64]:
        """float64 [n]: class positions (binary: 0 and 1) or values; NaN where there is no label."""
        if self.task == "regression":
            return np.asarray(labels.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
        encoded: Any = texts(labels).dictionary_encode()
        places = {name: place for place, name in enumerate(self.classes)}
        table = np.array([places.get(text, np.nan) for text in encoded.dictionary.to_pylist()] + [np.nan])
        codes = np.asarray(encoded.indices.fill_null(len(table) - 1).to_numpy(zero_copy_only=False))
        return np.asarray(table[codes], dtype=np.float64)


def detect(table: Table, column: str, task: str = "", positive: str = "") -> Target:
    """The target of a table's label column. Raises DataError, UsageError."""
    table.require(column)
    kind = table.schema.field(column).type
    if not (
        pa.types.is_boolean(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_string(kind)
        or pa.types.is_null(kind)
    ):
        raise DataError(f"{table.path}: label {column!r}: expected numbers, booleans or strings, came {kind}")
    if task not in ("", "binary", "multiclass", "regression"):
        raise UsageError(f"--task: expected binary, multiclass or regression, got {task!r}")
    numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    counts, missing, whole = _counted(table, column, numeric)
    if not counts:
        raise DataError(f"{table.path}: label {column!r} is missing in every row")
    if len(counts) == 1:
        raise DataError(f"{table.path}: label {column!r} is {next(iter(counts))!r} in every row: nothing to learn")
    found, why = _task_of(len(counts), numeric, whole, str(kind))
    chosen = task or found
    why = f"--task {task}" if task else why
    if chosen == "regression":
        if not numeric:
            raise UsageError(f"--task regression: label {column!r} is {kind}, not a number")
        if positive:
            raise UsageError("--positive is for binary tasks, and this one is regression")
        return Target(column, "regression", (), why, missing)
    if len(counts) > (1000 if task else _MOST_STRINGS):
        raise DataError(
            f"{table.path}: label {column!r} has {'more than ' if len(counts) > _MOST_COUNTED else ''}"
            f"{min(len(counts), _MOST_COUNTED)} distinct values; a classifier's label has at most {_MOST_STRINGS} "
            "(--task multiclass: 1000)"
        )
    if chosen == "binary" and len(counts) != 2:
        raise UsageError(f"--task binary: label {column!r} has {len(counts)} distinct values, not 2")
    if chosen == "multiclass" and len(counts) == 2:
        raise UsageError(f"--task multiclass: label {column!r} has 2 distinct values; that is a binary task")
    classes = sorted(counts, key=_order)
    if chosen == "binary":
        chosen_positive = _positive(classes, counts, positive, column)
        classes.sort(key=lambda name: name == chosen_positive)
    elif positive:
        raise UsageError("--positive is for binary tasks, and this one is multiclass")
    return Target(column, chosen, tuple(classes), why, missing, {name: counts[name] for name in classes})


def texts(labels: Any) -> Any:
    """Labels as the texts that classes are called by: false, true; whole numbers without a decimal point."""
    kind = labels.type
    if pa.types.is_floating(kind):
        values = labels.to_pylist()
        return pa.array([None if v is None or v != v else _number_text(v) for v in values], pa.string())
    if pa.types.is_string(kind):
        return pc.if_else(pc.equal(labels, pa.scalar("")), pa.scalar(None, pa.string()), labels)
    return labels.cast(pa.string())


def _number_text(value: float) -> str:
    return str(int(value)) if value.is_integer() else repr(value)


def _counted(table: Table, column: str, numeric: bool) -> tuple[dict[str, int], int, bool]:
    """Rows by label text (stops counting new ones when there are too many), rows without, and whether all are whole."""
    counts: Counter[str] = Counter()
    missing, whole = 0, True
    for batch in table.iter_batches([column]):
        array: Any = batch.column(0)
        if pa.types.is_floating(array.type):
            values = np.asarray(array.to_numpy(zero_copy_only=False), dtype=np.float64)
            known = values[~np.isnan(values)]
            if np.isinf(known).any():
                raise DataError(f"{table.path}: label {column!r} has infinite values")
            missing += len(values) - len(known)
            whole = whole and bool((np.floor(known) == known).all())
            distinct, numbers = np.unique(known, return_counts=True)
            if len(counts) <= _MOST_COUNTED:
                counts.update({_number_text(float(v)): int(n) for v, n in zip(distinct, numbers, strict=True)})
            continue
        array = texts(array)
        missing += array.null_count
        if len(counts) <= _MOST_COUNTED:
            for item in array.drop_null().value_counts().to_pylist():
                counts[item["values"]] += item["counts"]
    return dict(counts), missing, whole and numeric


def _task_of(distinct: int, numeric: bool, whole: bool, kind: str) -> tuple[str, str]:
    if distinct == 2:
        return "binary", "two distinct values"
    if not numeric:
        return "multiclass", f"{distinct} distinct values"
    if whole and distinct <= _MOST_NUMBERS:
        return "multiclass", f"{distinct} distinct whole numbers"
    return "regression", f"numbers ({kind}), {'many' if distinct > _MOST_NUMBERS else distinct} distinct"


def _positive(classes: list[str], counts: dict[str, int], wanted: str, column: str) -> str:
    if wanted:
        for name in classes:
            if name == wanted or name.lower() == wanted.lower() or _same_number(name, wanted):
                return name
        raise UsageError(f"--positive: label {column!r} has {classes[0]!r} and {classes[1]!r}, not {wanted!r}")
    likely = [name for name in classes if name.lower() in _YES]
    if len(likely) == 1:
        return likely[0]
    return min(classes, key=lambda name: (counts[name], name))


def _same_number(one: str, other: str) -> bool:
    try:
        return float(one) == float(other)
    except ValueError:
        return {one.lower(), other.lower()} in ({"true", "1"}, {"false", "0"})


def _order(name: str) -> tuple[int, float, str]:
    try:
        return 0, float(name), name
    except ValueError:
        return 1, 0.0, name
