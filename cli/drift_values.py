"""What `trimtab drift` learns of values beside the sketches: quantiles of numbers, frequent values of categories; and
how these and the columns together are told to a person.

A sketch counts what its reference knew: bins between the reference's edges, the reference's values. These tell what the
rows hold, whatever it is: where numbers lie on each side, and which values are new. In bounded memory, per side, over
all windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from trimtab.cli.output import number, p_value
from trimtab.kernels.cores import cores, on_all_cores
from trimtab.kernels.frequent import FrequentValues
from trimtab.kernels.program import ColumnProgram
from trimtab.kernels.quantiles import QuantileSketch, add_to_quantiles
from trimtab.kernels.sketch_spec import CategoryField
from trimtab.kernels.slabs import MISSING_INTEGER, Integers, Reals, Texts

if TYPE_CHECKING:
    from trimtab.client import types as client
    from trimtab.kernels import joint as kernels

__all__ = ["NEW_VALUES", "SHARES", "ColumnValues", "NewValue", "tell_joint", "tell_new"]

SHARES = (0.01, 0.5, 0.99)
"""The quantiles that are told."""
NEW_VALUES = 10
"""Most new values that are told of a column."""


@dataclass(frozen=True)
class NewValue:
    """A value that the reference does not have. rows: how many current rows have it, never too many; too few by at most
    1/32,768 of the rows, and exact up to 65,536 different values."""

    value: str | int
    rows: int


class ColumnValues:
    """One side's values, by column of a program. Booleans are passed over: their sketch says all."""

    def __init__(self, program: ColumnProgram) -> None:
        self._columns: list[QuantileSketch | FrequentValues | None] = []
        for field, spec in zip(program.fields, program.sketch.fields, strict=True):
            if field.type == "boolean":
                self._columns.append(None)
            else:
                self._columns.append(FrequentValues() if isinstance(spec, CategoryField) else QuantileSketch())

    def add(self, columns: Sequence[Reals | Integers | Texts]) -> None:
        """Adds a batch's rows, as `arrays_from_arrow` gives them."""

        frequent: list[tuple[FrequentValues, Integers | Texts]] = []
        sketches: list[QuantileSketch] = []
        numbers: list[Reals] = []
        for kept, values in zip(self._columns, columns, strict=True):
            if isinstance(kept, FrequentValues):
                frequent.append((kept, values if isinstance(values, tuple) else values.astype(np.int64, copy=False)))
            elif kept is not None and not isinstance(values, tuple):
                sketches.append(kept)
                numbers.append(_numbers(values))
        add_to_quantiles(sketches, numbers, cores())
        on_all_cores(lambda i: frequent[i][0].add(frequent[i][1]), len(frequent))

    def quantiles(self, index: int) -> tuple[float, ...]:
        """Those of SHARES, within 2^-8 of the exact ones; none of a column that is no number."""
        kept = self._columns[index]
        return tuple(kept.quantiles(SHARES)) if isinstance(kept, QuantileSketch) else ()

    def new_values(self, index: int, known: CategoryField) -> tuple[NewValue, ...]:
        """The most frequent ones that `known` does not have, the most frequent first."""
        kept = self._columns[index]
        if not isinstance(kept, FrequentValues):
            return ()
        before = frozenset(known.values)
        found = (NewValue(value, rows) for value, rows in kept.counted() if value not in before)
        return tuple(one for one, _ in zip(found, range(NEW_VALUES), strict=False))


def tell_new(values: Sequence[NewValue], rows: int) -> str:
    """New values for a person, with their shares of all rows."""
    return ", ".join(f"{str(one.value)[:40]!r} {one.rows / rows:.2%}" for one in values)


def tell_joint(found: kernels.JointDrift | client.JointDrift) -> str:
    """How the columns go together, for a person."""
    alarm = ""
    if found.alarm:
        alarm = f"; alarm, {found.persistence} windows in a row" if found.persistence else "; drifted"
    return (
        f"columns together, by {found.rows:,} rows against {found.reference_rows:,}: MMD {number(found.mmd, 3)}, "
        f"effect {number(found.effect, 3)}, p {p_value(found.p_value)}{alarm}"
    )


def _numbers(values: Reals | Integers) -> Reals:
    if values.dtype == np.float32:
        return values.astype(np.float32, copy=False)
    return np.where(values == MISSING_INTEGER, np.float32(np.nan), values.astype(np.float32))
