"""Which columns become features, as what, and why the others do not. Pure: profiles in, roles out.

A wrong feature is worse than a missing one: a column that is known only after the event makes a model that is perfect
on paper and useless when it serves. So what is suspicious is left out, named, and comes back with --include.

  id            a value of its own in (nearly) each row, a counter, or an id by name with mostly distinct values
  leak          alone gives AUC > 0.95 (R² > 0.99)
  after         rows without a value (nearly) all have one label that is otherwise not so common; or a name like
                final_*, *_actual, or the label's own words, together with AUC ≥ 0.75 (R² ≥ 0.5)
  empty         nothing, or one single value, in the training rows
  type          times (give what matters of them as numbers) and types that a request cannot bring
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from trimtab.cli.errors import DataError
from trimtab.cli.profile import ColumnProfile, Profile
from trimtab.cli.target import Target

__all__ = ["LEAK_AUC", "LEAK_R2", "MOST_CATEGORIES", "Role", "assign"]

LEAK_AUC = 0.95
LEAK_R2 = 0.99
MOST_CATEGORIES = 32
_HINT_AUC, _HINT_R2 = 0.85, 0.8
_NAMED_AUC, _NAMED_R2 = 0.75, 0.5
_PURE, _PURE_ROWS, _PURE_BASE = 0.995, 30, 0.8

_ID_WORDS = frozenset(
    {"id", "ids", "uuid", "guid", "key", "pk", "index", "idx", "rownum", "hash", "number", "nr", "no"}
)
# fmt: off
_AFTER_WORDS = frozenset((
    "actual", "actually", "outcome", "result", "results", "final", "finally", "resolved", "resolution", "closed",
    "settled", "settlement", "chargeback", "refund", "refunded", "cancelled", "canceled", "cancellation",
    "completed", "completion", "after", "target", "label", "truth", "realised", "realized", "observed", "churned",
    "defaulted", "paid",
))
# fmt: on
# fmt: off
_BEFORE_WORDS = frozenset((
    "lag", "lagged", "prev", "previous", "last", "past", "yesterday", "ago", "rolling", "before", "prior",
    "forecast", "planned", "sched", "scheduled",
))
# fmt: on


@dataclass(frozen=True)
class Role:
    """What a column is in the project."""

    column: str
    use: Literal["feature", "excluded", "label", "time", "label time", "key"]
    type: str = ""
    """Features: "real", "boolean", "integer" or "string"."""
    distinct: int = 0
    reason: str = ""
    """Why it is excluded."""
    kind: str = ""
    """Excluded: "id", "leak", "after", "empty", "type" or "asked"."""
    hint: str = ""
    """Features: what makes it suspicious."""


def assign(
    found: Profile,
    target: Target,
    *,
    time: str = "",
    label_time: str = "",
    key: Sequence[str] = (),
    exclude: Collection[str] = (),
    include: Collection[str] = (),
) -> list[Role]:
    """The role of every column of the profile. Raises DataError for an included column that cannot be a feature."""
    roles = []
    for name, column in found.columns.items():
        if name == time and name not in include:
            roles.append(Role(name, "time"))
        elif name == label_time:
            roles.append(Role(name, "label time"))
        elif name in exclude:
            roles.append(Role(name, "excluded", reason="--exclude", kind="asked"))
        elif name in key and name not in include:
            roles.append(Role(name, "key"))
        else:
            roles.append(_feature(column, target, forced=name in include))
    return roles


def _feature(column: ColumnProfile, target: Target, *, forced: bool) -> Role:
    kind, reason = _unfit(column)
    if kind and forced:
        raise DataError(f"--include {column.name}: {reason}")
    if not kind and not forced:
        kind, reason = _suspect(column, target)
    if kind:
        return Role(column.name, "excluded", distinct=column.distinct, reason=reason, kind=kind)
    return Role(column.name, "feature", feature_type(column), column.distinct, hint=_hint(column, target))


def feature_type(column: ColumnProfile) -> str:
    """The type of a feature: few distinct whole numbers are categories, more are real numbers."""
    if column.kind in ("boolean", "string"):
        return column.kind
    few = 2 <= column.distinct <= MOST_CATEGORIES
    if column.kind == "integer":
        return "integer" if few else "real"
    # Whole numbers with gaps are often written as floats; without gaps, a float is meant to be one.
    return "integer" if few and column.whole_all and column.missing_all else "real"


def _unfit(column: ColumnProfile) -> tuple[str, str]:
    if column.kind == "time":
        return "type", f"a time ({column.arrow}); give what matters of it (hour, weekday, age) as numbers"
    if column.kind == "other":
        return "type", f"type {column.arrow}; features are numbers, booleans or strings"
    if column.name.startswith("_"):
        return "type", "names that start with an underscore are the captures' own; rename it"
    return "", ""


def _suspect(column: ColumnProfile, target: Target) -> tuple[str, str]:
    present = column.rows - column.missing
    if present == 0:
        return "empty", "no value in the training rows"
    if column.distinct == 1 and column.missing == 0:
        return "empty", "one and the same value in all training rows: nothing to learn from it yet"
    if column.looks_like_time:
        return "type", "its values are times; give what matters of them (hour, weekday, age) as numbers"
    name_words = words(column.name)
    share = column.unique_share
    if column.kind == "string" and present >= 100 and share > 0.5:
        return "id", f"{column.distinct:,} distinct strings in {present:,} rows: an id or free text"
    if present >= 200 and share >= 0.99 and column.rising >= 0.99:
        return "id", "a value of its own in each row, always rising or falling: a counter"
    if column.kind == "integer" and present >= 1000 and share >= 0.999:
        return "id", "a value of its own in each row: an id"
    if name_words & _ID_WORDS and present >= 100 and share > 0.5 and (column.whole or column.kind == "string"):
        return "id", f"an id by its name, {column.distinct:,} distinct values in {present:,} rows"
    leak = LEAK_R2 if target.task == "regression" else LEAK_AUC
    if column.strength > leak:
        return "leak", f"alone gives {_measure(target)} {column.strength:.3f}: too good to be known beforehand"
    if column.missing_says is not None:
        label, pure, rows = column.missing_says
        base = target.counts[label] / max(sum(target.counts.values()), 1)
        if rows >= _PURE_ROWS and pure >= _PURE and base <= _PURE_BASE:
            return "after", (
                f"{pure:.1%} of the {rows:,} rows without it have label {label} ({base:.0%} of all do): "
                "filled in after the event"
            )
    named = _NAMED_R2 if target.task == "regression" else _NAMED_AUC
    if column.strength >= named and (why := _named_after(column.name, target.column)):
        return "after", f"{why}, and alone gives {_measure(target)} {column.strength:.3f}"
    return "", ""


def _hint(column: ColumnProfile, target: Target) -> str:
    hints = []
    strong = _HINT_R2 if target.task == "regression" else _HINT_AUC
    if not math.isnan(column.strength) and column.strength > strong:
        hints.append(f"alone gives {_measure(target)} {column.strength:.3f}")
    if why := _named_after(column.name, target.column):
        hints.append(why)
    return "; ".join(hints)


def _named_after(name: str, label: str) -> str:
    own = words(name)
    if own & _BEFORE_WORDS:
        return ""
    after = sorted(own & _AFTER_WORDS)
    if after:
        return f"its name says {after[0]!r}"
    shared = sorted(word for word in own & words(label) if len(word) >= 4)
    return f"its name shares {shared[0]!r} with the label's" if shared else ""


def words(name: str) -> set[str]:
    """The lower-case words of a column's name: `arrDelay_actual` has arr, delay and actual."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)}


def _measure(target: Target) -> str:
    return "R²" if target.task == "regression" else "AUC"
