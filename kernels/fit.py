"""Fitting: from features with chains of transforms, and rows, to a column program.

Streaming, in memory bounded by the number of columns: the first pass takes samples (for everything that is a quantile)
and frequencies (for vocabularies); each further pass, of which there are as many as means and deviations stand behind
one another in the longest chain (usually none or one), takes exact moments. What a later op sees is what the ops before
it, fitted already, make of the raw values. Missing and infinite raw values are never fitted on: imputation does not
move quantiles or means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from trimtab.kernels import grammar
from trimtab.kernels import operations as ops
from trimtab.kernels.errors import FitError, ProgramError
from trimtab.kernels.fit_ops import fit_by_moments, fit_by_sample, needs_moments, to_fp32
from trimtab.kernels.operations import Operation
from trimtab.kernels.program import Chain, ColumnProgram, Field
from trimtab.kernels.reference import real_op
from trimtab.kernels.schema import FeatureSpec, FieldType, Transform
from trimtab.kernels.sketch_edges import joint_spec, number_field
from trimtab.kernels.sketch_spec import DEFAULT_PREDICTION_EDGES, CategoryField, RealField, SketchField, SketchSpec
from trimtab.kernels.slabs import MISSING_INTEGER, Values, column_values, compute
from trimtab.kernels.summaries import Frequencies, Moments, Sample, row_priorities

__all__ = ["Batches", "default_transforms", "fit_program"]

SKETCH_COUNTED = 64
SKETCH_VALUES = 1000

Batches = Callable[[], Iterator[pa.RecordBatch]]


def default_transforms(kind: FieldType, n_distinct: int, *, max_categories: int = 32) -> tuple[Transform, ...]:
    """The chain that `init` writes for a column with so many distinct values.

    real: impute, piecewise_linear. boolean: impute. string: vocabulary. integer: vocabulary up to `max_categories`
    distinct values, else as a real.
    """
    if kind == "boolean":
        return (Transform("impute"),)
    if kind == "string" or (kind == "integer" and n_distinct <= max_categories):
        return (Transform("vocabulary"),)
    return Transform("impute"), Transform("piecewise_linear")


def fit_program(
    specs: Sequence[FeatureSpec],
    batches: Batches,
    *,
    keys: Sequence[str | Field] = (),
    sketch: SketchSpec | None = None,
    prediction_edges: Sequence[float] = DEFAULT_PREDICTION_EDGES,
) -> ColumnProgram:
    """Fits a program to the rows that `batches()` yields, the same rows each time it is called.

    keys: the model's key columns, captured with the features; those named without a type take it from the first batch,
    those that are features already are not repeated. sketch: a spec to keep instead of fitting one. The same batches
    give the same program, bit for bit. Raises FitError without rows, ColumnError on a column that is absent or of
    another type, ProgramError where specs do not fit together.
    """
    if not specs:
        raise FitError("a program needs at least one feature")
    names = [spec.name for spec in specs]
    columns = [_Column(spec) for spec in specs]
    rows = 0
    arrow: pa.Schema | None = None
    for batch in batches():
        arrow = batch.schema
        priorities = row_priorities(rows, batch.num_rows)
        rows += batch.num_rows
        for column in columns:
            column.first_pass(column_values(batch, column.spec.name, column.spec.type), priorities)
    if not rows or arrow is None:
        raise FitError("no rows to fit a column program on")
    fits = [_ChainFit(column, transforms, names) for column in columns for transforms in column.spec.branches()]
    while waiting := [fit for fit in fits if not fit.advance()]:
        for batch in batches():
            cache: dict[str, Values] = {}
            for fit in waiting:
                name, kind = fit.column.spec.name, fit.column.spec.type
                if name not in cache:
                    cache[name] = column_values(batch, name, kind)
                fit.add(cache[name])
        for fit in waiting:
            fit.finish_pass()
    fields = [Field(spec.name, spec.type) for spec in specs]
    key_fields = [_key(key, arrow) for key in keys if (key if isinstance(key, str) else key.name) not in names]
    if sketch is None:
        summaries = tuple(column.sketch_field() for column in columns)
        joint = joint_spec(summaries, [column.sample for column in columns], [column.counts for column in columns])
        sketch = SketchSpec(summaries, tuple(map(to_fp32, prediction_edges)), joint)
    positions = {name: i for i, name in enumerate(names)}
    chains = tuple(Chain(positions[fit.column.spec.name], tuple(fit.done)) for fit in fits)
    return ColumnProgram((*fields, *key_fields), chains, sketch, len(key_fields))


@dataclass
class _Column:
    """What the first pass learns about a feature's column."""

    spec: FeatureSpec
    sample: Sample = field(default_factory=Sample)
    frequencies: Frequencies = field(init=False)
    counts: list[int] = field(default_factory=list)
    """Of the most frequent categories, when the pass is over: those that the sketch counts and one more."""

    def __post_init__(self) -> None:
        op_names = {transform.op for transform in self.spec.transforms}
        self.category = self.spec.type == "string" or bool(op_names and op_names <= grammar.CATEGORY | grammar.RENDER)
        self.counted = self.category or "vocabulary" in op_names
        most = max((t.integer("max") for t in self.spec.transforms if t.op == "vocabulary"), default=0)
        self.frequencies = Frequencies(max(100_000, 4 * most))

    def first_pass(self, values: Values, priorities: NDArray[np.uint64]) -> None:
        if self.counted:
            self.frequencies.add(_categories(values))
        if not self.category:
            self.sample.add(_reals(values), priorities)

    def vocabulary(self) -> Transform | None:
        return next((transform for transform in self.spec.transforms if transform.op == "vocabulary"), None)

    def values(self, transform: Transform | None) -> tuple[int, ...] | tuple[str, ...]:
        limit, least = (transform.integer("max"), transform.integer("min_count")) if transform else (SKETCH_VALUES, 1)
        return ops.categories(self.frequencies.most_common(limit, least), f"vocabulary of {self.spec.name!r}")

    def sketch_field(self) -> SketchField:
        name = self.spec.name
        if self.category:
            values = self.values(self.vocabulary())
            self.counts = self.frequencies.highest(SKETCH_COUNTED + 1)
            return CategoryField(name, values, min(len(values), SKETCH_COUNTED), self.frequencies.novel)
        if self.spec.type == "boolean":
            return RealField(name, (0.5,), 0.0, 1.0)
        return number_field(name, self.sample)


class _ChainFit:
    """One branch on its way to a chain: `done` holds the fitted ops, `_todo` the transforms that are not."""

    def __init__(self, column: _Column, transforms: Sequence[Transform], names: Sequence[str]) -> None:
        self.column = column
        self.done: list[Operation] = []
        self._todo = list(transforms)
        self._names = names
        self._moments = Moments()

    def advance(self) -> bool:
        """Fits what needs no further pass; True when nothing is left."""
        while self._todo and not needs_moments(self._todo[0]):
            transform = self._todo.pop(0)
            self.done.append(self._without_values(transform) or fit_by_sample(transform, self._sampled()))
        return not self._todo

    def add(self, values: Values) -> None:
        """One batch of a further pass."""
        self._moments.add(self._through(_reals(values)))

    def finish_pass(self) -> None:
        """The end of a further pass: fits the op that waited for it."""
        self.done.append(fit_by_moments(self._todo.pop(0), self._moments))
        self._moments = Moments()

    def _without_values(self, transform: Transform) -> Operation | None:
        match transform.op:
            case "vocabulary":
                return ops.Vocabulary(self.column.values(transform))
            case "hash_bucket":
                return ops.HashBucket(transform.integer("buckets"))
            case "cross":
                other = str(transform.get("with"))
                if other not in self._names:
                    raise ProgramError(f"feature {self.column.spec.name!r}: cross with {other!r}, which is no feature")
                return ops.Cross(self._names.index(other), transform.integer("buckets"))
            case "embedding":
                return ops.Embedding()
            case "one_hot":
                return ops.OneHot()
            case _:
                return None

    def _sampled(self) -> NDArray[np.float64]:
        return np.sort(self._through(self.column.sample.values()))

    def _through(self, raw: NDArray[np.float32]) -> NDArray[np.float64]:
        values = raw[np.isfinite(raw)].astype(np.float64)
        for op in self.done:
            values = real_op(op, values)
        return values


def _reals(values: Values) -> NDArray[np.float32]:
    if not isinstance(values, np.ndarray):
        raise ProgramError("a string has no real value")  # the grammar keeps this from happening
    if values.dtype == np.int64:
        return np.where(values == MISSING_INTEGER, np.float32(np.nan), values.astype(np.float32))
    return values.astype(np.float32, copy=False)


def _categories(values: Values) -> NDArray[np.int64] | pa.StringArray:
    if not isinstance(values, np.ndarray):
        known: pa.StringArray = compute.filter(values, compute.not_equal(values, ""))
        return known
    if values.dtype == np.int64:
        integers: NDArray[np.int64] = values[values != MISSING_INTEGER].astype(np.int64, copy=False)
        return integers
    return values[~np.isnan(values)].astype(np.int64)


def _key(key: str | Field, schema: pa.Schema) -> Field:
    if isinstance(key, Field):
        return key
    index = schema.get_field_index(key)
    if index < 0:
        raise FitError(f"key column {key!r} is not in the data; there are {schema.names[:50]}")
    kind = schema.field(index).type
    if pa.types.is_boolean(kind):
        return Field(key, "boolean")
    if pa.types.is_integer(kind):
        return Field(key, "integer")
    return Field(key, "real" if pa.types.is_floating(kind) or pa.types.is_decimal(kind) else "string")
