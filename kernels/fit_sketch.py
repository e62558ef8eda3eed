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
from trimtab.kernels.cores import cores, on_all_cores
from trimtab.kernels.errors import FitError
from trimtab.kernels.fit import SKETCH_COUNTED
from trimtab.kernels.frequent import FrequentValues
from trimtab.kernels.program import ColumnProgram, Field
from trimtab.kernels.sketch_edges import joint_spec, number_field
from trimtab.kernels.sketch_spec import CategoryField, RealField, SketchField, SketchSpec
from trimtab.kernels.slabs import MISSING_INTEGER, Values, column_values
from trimtab.kernels.summaries import SAMPLE_SIZE, Sample, add_to_samples, row_priorities

__all__ = ["KNOWN_VALUES", "MAX_CATEGORIES", "fit_sketch"]

KNOWN_VALUES = 20_000
"""Most values of a string that count as seen."""
MAX_CATEGORIES = 32
"""Integers of at most so many different values are categories, of more they are numbers; as `default_transforms`."""

# All columns' samples together, so that they fit into memory however many columns there are.
_SAMPLED_VALUES = 1 << 23


def fit_sketch(fields: Sequence[Field], batches: Iterable[pa.RecordBatch]) -> ColumnProgram:
    """A program that sketches `fields`, with edges and vocabularies from these rows. The same rows, however cut into
    batches, give the same program. Raises FitError without rows, ColumnError on a column that is absent or of another
    type."""
    size = max(min(SAMPLE_SIZE, _SAMPLED_VALUES // max(len(fields), 1)), _SAMPLED_VALUES >> 11)
    columns = [_Column(field, size) for field in fields]
    rows = 0
    for batch in batches:
        values = [column_values(batch, column.field.name, column.field.type) for column in columns]
        numbers: dict[int, NDArray[np.float32]] = {}
        on_all_cores(partial(_see, columns, values, numbers), len(columns))
        samples = [columns[i].sample for i in numbers]
        add_to_samples(samples, [*numbers.values()], row_priorities(rows, batch.num_rows), cores())
        rows += batch.num_rows
    if not rows:
        raise FitError("no rows to fit a sketch on")
    found: dict[int, SketchField] = {}
    on_all_cores(lambda i: found.update({i: columns[i].summary()}), len(columns))
    summaries = tuple(found[i] for i in range(len(columns)))
    joint = joint_spec(summaries, [column.sample for column in columns], [column.counts for column in columns])
    return ColumnProgram(tuple(fields), (), SketchSpec(summaries, joint=joint))


def _see(columns: Sequence[_Column], values: Sequence[Values], numbers: dict[int, NDArray[np.float32]], i: int) -> None:
    if (found := columns[i].add(values[i])) is not None:
        numbers[i] = found


class _Column:
    """What the pass learns about one column."""

    def __init__(self, field: Field, sample_size: int) -> None:
        self.field = field
        self._frequencies = FrequentValues()
        self._few: set[int] | None = set()  # an integer's values, None once they are many
        self.sample = Sample(sample_size)
        self.counts: list[int] = []
        """Of the most frequent categories, when the pass is over: those that are counted and one more."""

    def add(self, values: Values) -> NDArray[np.float32] | None:
        """Adds a batch's categories; returns its numbers, which the sample wants."""
        if not isinstance(values, np.ndarray):
            self._frequencies.add(values)
            return None
        if values.dtype == np.int64:
            known = values != MISSING_INTEGER
            if self._few is not None:
                present = np.unique(values[known])
                self._few.update(present[: MAX_CATEGORIES + 1].tolist())
                if len(self._few) > MAX_CATEGORIES:
                    self._few = None
                else:
                    self._frequencies.add(values.astype(np.int64, copy=False))
            return np.where(known, values.astype(np.float32), np.float32(np.nan))
        return values.astype(np.float32, copy=False) if self.field.type == "real" else None

    def summary(self) -> SketchField:
        name = self.field.name
        if self.field.type == "boolean":
            return RealField(name, (0.5,), 0.0, 1.0)
        if self.field.type == "string" or (self.field.type == "integer" and self._few):
            pairs = self._frequencies.counted()[:KNOWN_VALUES]
            self.counts = [count for _, count in pairs[: SKETCH_COUNTED + 1]]
            values = ops.categories([value for value, _ in pairs], f"values of {name!r}")
            return CategoryField(name, values, min(len(values), SKETCH_COUNTED), self._frequencies.novel)
        return number_field(name, self.sample)
