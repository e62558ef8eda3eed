"""Which columns of two tables can be compared, and as what.

Pure: schemas in, pairs and remarks out. Types may differ where numbers stay numbers (an integer column with a gap
comes back from CSV as floats); text against numbers is a mismatch, which is named and not compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
from trimtab.cli.tables import Table
from trimtab.kernels.program import Field

__all__ = ["Column", "Left", "pair_columns"]


@dataclass(frozen=True)
class Column:
    """A column that both sides have. The types are Arrow's names, as in the files."""

    field: Field
    reference_type: str
    current_type: str


@dataclass(frozen=True)
class Left:
    """A column that is not compared, and why: missing in current, only in current, type mismatch, or not a type that
    has a distribution here."""

    column: str
    why: str
    detail: str


def pair_columns(
    reference: Table, current: Table, wanted: Sequence[str] = (), time: str = ""
) -> tuple[list[Column], list[Left]]:
    """What to compare, in the reference's order, and what not. Raises DataError for a wanted column that neither side
    has."""
    for name in wanted:
        if name not in current.names:
            reference.require(name)
    before = {field.name: field.type for field in reference.schema}
    now = {field.name: field.type for field in current.schema}
    columns: list[Column] = []
    left: list[Left] = []
    for name in dict.fromkeys([*before, *now]):
        if name == time or (wanted and name not in wanted):
            continue
        if name not in now:
            left.append(Left(name, "missing", f"not in {current.path}; {before[name]} in {reference.path}"))
        elif name not in before:
            left.append(Left(name, "new", f"only in {current.path} ({now[name]})"))
        else:
            paired = _pair(name, before[name], now[name])
            columns.append(paired) if isinstance(paired, Column) else left.append(paired)
    return columns, left


def _pair(name: str, before: pa.DataType, now: pa.DataType) -> Column | Left:
    kinds = [_kind(before), _kind(now)]
    for kind, arrow in zip(kinds, (before, now), strict=True):
        if kind == "other":
            return Left(name, "not comparable", f"{arrow} has no distribution here; numbers, booleans and text do")
    known = {kind for kind in kinds if kind != "null"}
    if not name:
        return Left(name, "not comparable", "a column without a name")
    if "string" in known and len(known) > 1:
        return Left(name, "type mismatch", f"{before} in the reference, {now} in the current rows")
    # Nothing but gaps on both sides, or numbers of two kinds: numbers.
    kind = known.pop() if len(known) == 1 else "real"
    fields = {"boolean": Field(name, "boolean"), "integer": Field(name, "integer"), "string": Field(name, "string")}
    return Column(fields.get(kind, Field(name, "real")), str(before), str(now))


def _kind(arrow: pa.DataType) -> str:
    if pa.types.is_null(arrow):
        return "null"
    if pa.types.is_boolean(arrow):
        return "boolean"
    if pa.types.is_uint64(arrow) or pa.types.is_floating(arrow) or pa.types.is_decimal(arrow):
        return "real"
    if pa.types.is_integer(arrow):
        return "integer"
    return "string" if pa.types.is_string(arrow) else "other"
