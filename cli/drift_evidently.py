"""Both sides' values as Evidently would be given them, and its word on each column (kernels/evidently.py).

Exact while a side has at most as many rows as are kept (below); of larger ones numbers are judged by an even
pseudo-random sample of rows, which moves a Wasserstein distance by about 1 / √(rows kept) deviations. The counts that
choose the test, and categories, are of all rows.

A column's kind is Evidently's: text is categorical while at most half of its values differ (beyond, it is text, which
is not judged here), integers without a gap while they have at most ten values, judged by the current side as
Evidently's reports do; booleans are categorical.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from trimtab.cli.drift_columns import Column
from trimtab.cli.drift_rows import Rows
from trimtab.kernels.evidently import INTEGER_VALUES, Verdict, judge_counts, judge_numbers
from trimtab.kernels.slabs import compute
from trimtab.kernels.summaries import row_priorities

__all__ = ["judge", "kept_rows"]

_MOST_ROWS, _LEAST_ROWS, _MOST_VALUES = 100_000, 2_000, 20_000_000
_DISTINCT = 100_000


class _Values:
    """One side's column. Counted up to so many different values (`too_many`: there are more, and counts are of no
    use): text, which is no categories then, to _DISTINCT, numbers to INTEGER_VALUES."""

    def __init__(self, text: bool) -> None:
        self.text = text
        self.counts: Counter[Hashable] = Counter()
        self.rows = 0
        """Values that are there and finite."""
        self.gaps = False
        self.whole = True
        self.too_many = False
        self._most = _DISTINCT if text else INTEGER_VALUES
        self._parts: list[NDArray[np.float64]] = []

    def add(self, array: Any, chosen: NDArray[np.bool_]) -> None:
        self.gaps |= array.null_count > 0
        if self.text:
            self._count(array.drop_null())
            return
        self.whole &= pa.types.is_integer(array.type)
        floats = array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        values: NDArray[np.float64] = np.asarray(floats, np.float64)
        finite = np.isfinite(values)
        self._count(pa.array(values[finite] + 0.0, pa.float64()))
        self._parts.append(values[finite & chosen])

    def _count(self, known: Any) -> None:
        self.rows += len(known)
        if self.too_many:
            return
        counted = compute.value_counts(known)
        if len(counted) <= self._most:
            for value, count in zip(counted.field(0).to_pylist(), counted.field(1).to_pylist(), strict=True):
                self.counts[value] += count
        self.too_many = max(len(counted), len(self.counts)) > self._most

    def numbers(self) -> NDArray[np.float64]:
        return np.concatenate(self._parts) if self._parts else np.zeros(0)


def kept_rows(columns: int) -> int:
    """Rows of a side up to which the answer is exact."""
    return min(max(_MOST_VALUES // max(columns, 1), _LEAST_ROWS), _MOST_ROWS)


def judge(reference: Rows, current: Rows, columns: Sequence[Column]) -> dict[str, Verdict | None]:
    """Evidently's word on each column; None where it would refuse (no values) or is not followed (text)."""
    before, now = _collect(reference, columns), _collect(current, columns)
    return {column.field.name: _judge(column, a, b) for column, a, b in zip(columns, before, now, strict=True)}


def _judge(column: Column, before: _Values, now: _Values) -> Verdict | None:
    if column.field.type == "string":
        if now.too_many or before.too_many or len(now.counts) > now.rows * 0.5:
            return None
        return judge_counts(before.counts, now.counts)
    few = now.whole and not now.gaps and not now.too_many
    if column.field.type == "boolean" or few:
        return judge_counts(*(_counted(side) for side in (before, now)))
    return judge_numbers(before.numbers(), now.numbers(), before.rows)


def _counted(side: _Values) -> Mapping[Hashable, int]:
    if not side.too_many:
        return side.counts
    values, numbers = np.unique(side.numbers(), return_counts=True)
    return dict(zip(values.tolist(), numbers.tolist(), strict=True))


def _collect(rows: Rows, columns: Sequence[Column]) -> list[_Values]:
    kept = [_Values(column.field.type == "string") for column in columns]
    share = min(1.0, kept_rows(len(columns)) / max(rows.table.rows, 1))
    limit = np.uint64(min(int(share * 2.0**64), 2**64 - 1))
    names = [column.field.name for column in columns]
    done = 0
    for batch in rows.batches(names):
        chosen = row_priorities(done, batch.num_rows) <= limit
        done += batch.num_rows
        for name, values in zip(names, kept, strict=True):
            values.add(batch.column(name), chosen)
    return kept
