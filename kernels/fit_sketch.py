"""What to count of columns that no model describes: a sketch's spec, fitted to the rows of a reference.

One pass in bounded memory. Numbers get quantile edges, strings and integers of few values their vocabularies. The
result is a column program without chains: an executor that runs it computes no features and fills sketches only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from trimtab.kernels import operations as ops
from trimtab.kernels.cores import on_all_cores
from trimtab.kernels.errors import FitError
from trimtab.kernels.fit import SKETCH_BINS, SKETCH_COUNTED
from trimtab.kernels.fit_ops import to_fp32
from trimtab.kernels.frequent import FrequentValues
from trimtab.kernels.program import ColumnProgram, Field
from trimtab.kernels.sketch_spec import CategoryField, RealField, SketchField, SketchSpec
from trimtab.kernels.slabs import MISSING_INTEGER, Values, column_values
from trimtab.kernels.summaries import Sample, row_priorities

__all__ = ["KNOWN_VALUES", "MAX_CATEGORIES", "fit_sketch"]

KNOWN_VALUES = 20_000
"""Most values of a string that count as seen."""
MAX_CATEGORIES = 32
"""Integers of at most so many different values are categories, of more they are numbers; as `default_transforms`."""


def fit_sketch(fields: Sequence[Field], batches: Iterable[pa.RecordBatch]) -> ColumnProgram:
    """A program that sketches `fields`, with edges and vocabularies from these rows. The same rows, however cut into
    batches, give the same program. Raises FitError without rows, ColumnError on a column that is absent or of another
    type."""
    columns = [_Column(field) for field in fields]
    rows = 0
    for batch in batches:
        priorities = row_priorities(rows, batch.num_rows)
        rows += batch.num_rows
        sampled = np.flatnonzero(priorities <= max((column.limit for column in columns), default=np.uint64(0)))
        values = [column_values(batch, column.field.name, column.field.type) for column in columns]
        on_all_cores(partial(_add, columns, values, priorities, sampled), len(columns))
    if not rows:
        raise FitError("no rows to fit a sketch on")
    return ColumnProgram(tuple(fields), (), SketchSpec(tuple(column.summary() for column in columns)))


def _add(
    columns: Sequence[_Column],
    values: Sequence[Values],
    priorities: NDArray[np.uint64],
    sampled: NDArray[np.intp],
    i: int,
) -> None:
    columns[i].add(values[i], priorities, sampled)


class _Column:
    """What the pass learns about one column."""

    def __init__(self, field: Field) -> None:
        self.field = field
        self._frequencies = FrequentValues()
        self._few: set[int] | None = set()  # an integer's values, None once they are many
        self._sample = Sample()

    @property
    def limit(self) -> np.uint64:
        """Rows of a larger priority are not in the sample any more."""
        return self._sample.limit if self.field.type in ("real", "integer") else np.uint64(0)

    def add(self, values: Values, priorities: NDArray[np.uint64], sampled: NDArray[np.intp]) -> None:
        if not isinstance(values, np.ndarray):
            self._frequencies.add(values)
        elif values.dtype == np.int64:
            known = values != MISSING_INTEGER
            if self._few is not None:
                present = np.unique(values[known])
                self._few.update(present[: MAX_CATEGORIES + 1].tolist())
                if len(self._few) > MAX_CATEGORIES:
                    self._few = None
                else:
                    self._frequencies.add(values.astype(np.int64, copy=False))
            self._sample.add(np.where(known, values.astype(np.float32), np.float32(np.nan)), priorities, sampled)
        elif self.field.type == "real":
            self._sample.add(values.astype(np.float32, copy=False), priorities, sampled)

    def summary(self) -> SketchField:
        name = self.field.name
        if self.field.type == "boolean":
            return RealField(name, (0.5,), 0.0, 1.0)
        if self.field.type == "string" or (self.field.type == "integer" and self._few):
            values = ops.categories(self._frequencies.most_common(KNOWN_VALUES), f"values of {name!r}")
            return CategoryField(name, values, min(len(values), SKETCH_COUNTED), self._frequencies.novel)
        sample = self._sample.values()
        if not len(sample):
            return RealField(name, (), 0.0, 0.0)
        steps = np.arange(1, SKETCH_BINS) / SKETCH_BINS
        edges = np.unique(np.quantile(sample, steps, method="inverted_cdf") + np.float32(0))
        shift = to_fp32(float(np.quantile(sample, 0.5, method="inverted_cdf")))
        return RealField(name, tuple(edges.tolist()), self._sample.minimum, self._sample.maximum, shift)
