"""Specs fitted for files: independent of batches, right about kinds, fit for the executor."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from trimtab.kernels.cpu import CpuExecutor
from trimtab.kernels.errors import FitError
from trimtab.kernels.fit_sketch import MAX_CATEGORIES, fit_sketch
from trimtab.kernels.program import Field
from trimtab.kernels.sketch import Sketch
from trimtab.kernels.sketch_edges import EDGE_RANKS
from trimtab.kernels.sketch_spec import CategoryField, RealField
from trimtab.kernels.slabs import slab_from_arrow

FIELDS = (
    Field("x", "real"),
    Field("few", "integer"),
    Field("many", "integer"),
    Field("flag", "boolean"),
    Field("text", "string"),
    Field("none", "integer"),
)


def rows(count: int = 5000) -> pa.Table:
    rng = np.random.default_rng(0)
    return pa.table(
        {
            "x": pa.array(rng.normal(size=count), mask=rng.random(count) < 0.1),
            "few": rng.integers(0, MAX_CATEGORIES, count),
            "many": rng.integers(0, MAX_CATEGORIES + 1, count),
            "flag": rng.random(count) < 0.5,
            "text": rng.choice(["", "a", "ü"], count),
            "none": pa.nulls(count, pa.int64()),
        }
    )


@pytest.mark.parametrize("size", [1, 7, 1000, 5000])
def test_batches_do_not_matter(size: int) -> None:
    table = rows(500 if size == 1 else 5000)
    assert fit_sketch(FIELDS, table.to_batches(size)).hash == fit_sketch(FIELDS, table.to_batches()).hash


def test_kinds_and_ranges() -> None:
    table = rows()
    program = fit_sketch(FIELDS, table.to_batches())
    x, few, many, flag, text, none = program.sketch.fields
    values = table.column("x").drop_null().to_numpy().astype(np.float32)
    assert isinstance(x, RealField)
    assert (x.low, x.high, len(x.edges)) == (values.min(), values.max(), len(EDGE_RANKS))
    assert isinstance(few, CategoryField)
    assert set(few.values) == set(range(MAX_CATEGORIES))
    assert isinstance(many, RealField)
    assert flag == RealField("flag", (0.5,), 0.0, 1.0)
    assert isinstance(text, CategoryField)
    assert set(text.values) == {"a", "ü"}
    assert none == RealField("none", (), 0.0, 0.0)


def test_the_program_only_sketches() -> None:
    table = rows()
    program = fit_sketch(FIELDS, table.to_batches())
    sketch = Sketch(program.sketch)
    features, ids = CpuExecutor(program).run(slab_from_arrow(table, program.schema), sketch)
    assert (features.shape, ids.shape) == ((5000, 0), (5000, 0))
    for name, summary in zip(table.column_names, sketch.fields, strict=True):
        gone = sum(value is None or value == "" for value in table.column(name).to_pylist())
        assert (summary.rows, summary.missing, summary.unseen) == (5000, gone, 0)


def test_no_rows() -> None:
    with pytest.raises(FitError, match="no rows"):
        fit_sketch(FIELDS, [])
