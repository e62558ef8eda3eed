"""A small fitted program over every field type, and rows for it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from trimtab.kernels.fit import fit_program
from trimtab.kernels.program import ColumnProgram
from trimtab.kernels.schema import FeatureSpec, Transform

SPECS = (
    FeatureSpec("x", "real", (Transform("impute"), Transform("piecewise_linear"))),
    FeatureSpec("flag", "boolean", (Transform("impute"),)),
    FeatureSpec("code", "integer", (Transform("vocabulary"),)),
    FeatureSpec("city", "string", (Transform("vocabulary"),)),
)


def make_rows(rows: int, seed: int = 0) -> pa.RecordBatch:
    """Rows with missing values in every column."""
    generator = np.random.default_rng(seed)
    missing = generator.random((4, rows)) < 0.1
    cities = np.array(["Oslo", "Bergen", "Tromsø"])[generator.integers(0, 3, rows)]
    columns = [
        pa.array(generator.normal(size=rows).astype(np.float32), mask=missing[0]),
        pa.array(generator.random(rows) < 0.5, mask=missing[1]),
        pa.array(generator.integers(0, 5, rows), mask=missing[2]),
        pa.array(cities.tolist(), mask=missing[3]),
    ]
    return pa.RecordBatch.from_arrays(columns, names=[spec.name for spec in SPECS])


def make_program() -> ColumnProgram:
    """Fitted on 500 rows."""
    return fit_program(SPECS, lambda: iter([make_rows(500)]))
