"""Arrow types into slabs and back, and borrowed."""

from __future__ import annotations

import decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from trimtab._native import ColumnTable, Schema, Slab
from trimtab.kernels.cpu import CpuExecutor
from trimtab.kernels.errors import ColumnError
from trimtab.kernels.program import CategoryField, ColumnProgram, Field, RealField, SketchSpec
from trimtab.kernels.sketch import Sketch
from trimtab.kernels.slabs import rows_from_arrow, slab_from_arrow, slab_to_arrow

D = decimal.Decimal


def through(kind: str, column: Any) -> list[Any]:
    table = pa.table({"other": pa.nulls(len(column)), "c": column})
    slab = slab_from_arrow(table, Schema(["c"], [kind]))
    assert slab.rows == len(column)
    (array,) = slab_to_arrow(slab)
    array.validate(full=True)
    assert (
        array.type == {"real": pa.float32(), "boolean": pa.bool_(), "integer": pa.int64(), "string": pa.string()}[kind]
    )
    return array.to_pylist()


@pytest.mark.parametrize(
    ("kind", "column", "expected"),
    [
        *(
            ("real", pa.array([1, None, 3], t), [1.0, None, 3.0])
            for t in (pa.int8(), pa.uint64(), pa.float16(), pa.float64())
        ),
        (
            "real",
            pa.array([0.1, float("nan"), float("inf"), 1e300]),
            [float(np.float32(0.1)), None, float("inf"), float("inf")],
        ),
        ("real", pa.array([D("1.5"), None]), [1.5, None]),
        ("real", pa.array([True, None]), [1.0, None]),
        ("real", pa.nulls(2), [None, None]),
        ("real", pa.array([2.5, None, 2.5]).dictionary_encode(), [2.5, None, 2.5]),
        ("real", pa.chunked_array([[1.0], [], [2.0]]), [1.0, 2.0]),
        ("real", pa.chunked_array([], pa.float32()), []),
        ("real", pa.array([9.0, 1.0, None, 2.0]).slice(1, 2), [1.0, None]),
        ("boolean", pa.array([True, False, None]), [True, False, None]),
        ("boolean", pa.array([1, 0, None]), [True, False, None]),
        ("boolean", pa.array([1.0, -0.0, float("nan")]), [True, False, None]),
        ("integer", pa.array([1, None, (1 << 63) - 1]), [1, None, (1 << 63) - 1]),
        ("integer", pa.array([-(1 << 63)]), [None]),
        ("integer", pa.array([1.0, None, float("nan"), -3.0]), [1, None, None, -3]),
        ("integer", pa.array([D("12"), None]), [12, None]),
        ("integer", pa.array([True, False, None]), [1, 0, None]),
        ("integer", pa.array([7], pa.uint64()), [7]),
        ("integer", pa.nulls(1), [None]),
        *(
            ("string", pa.array(["é", "", None, "ab"], t), ["é", None, None, "ab"])
            for t in (pa.string(), pa.large_string(), pa.string_view())
        ),
        ("string", pa.array(["x", None, "x"]).dictionary_encode(), ["x", None, "x"]),
        ("string", pa.array(["a", "bc", "", "d"]).slice(1, 3), ["bc", None, "d"]),
        ("string", pa.chunked_array([["a"], ["b"]]), ["a", "b"]),
        ("string", pa.array([1, None, -5]), ["1", None, "-5"]),
        ("string", pa.nulls(1), [None]),
        ("string", pa.array([], pa.string()), []),
        ("string", pa.array([None, ""]), [None, None]),
    ],
)
def test_accepted(kind: str, column: Any, expected: list[Any]) -> None:
    assert through(kind, column) == expected


@pytest.mark.parametrize(
    ("kind", "column", "message"),
    [
        ("real", ["1.0"], "came string"),
        ("real", pa.array([0], pa.timestamp("us")), r"came timestamp\[us\]; give times as numbers"),
        ("integer", pa.array([0], pa.date32()), "give times as numbers"),
        ("real", [[1.0]], "came list"),
        ("boolean", [0, 2], "row 1 is 2"),
        ("boolean", [0.5], "row 0 is 0.5"),
        ("boolean", ["true"], "came string"),
        ("integer", [1.5], "row 0 is 1.5"),
        ("integer", [float("inf")], "row 0 is inf"),
        ("integer", [1, 2**63], "whole numbers within 64 bits"),
        ("integer", [9.3e18], r"row 0 is 9.3e\+18"),
        ("integer", [D("1.5")], "came decimal"),
        ("integer", ["1"], "came string"),
        ("string", [1.5], "came double"),
        ("string", [True], "came bool"),
        ("string", [b"\xff"], "came binary"),
    ],
)
def test_refused_by_name(kind: str, column: Any, message: str) -> None:
    if isinstance(column, list) and column == [1, 2**63]:
        column = pa.array(column, pa.uint64())
    with pytest.raises(ColumnError, match=f"column 'c': expected {kind}.*{message}"):
        slab_from_arrow(pa.table({"c": column}), Schema(["c"], [kind]))


def test_absent_and_doubled_columns() -> None:
    schema = Schema(["x"], ["real"])
    with pytest.raises(ColumnError, match=r"column 'x': expected a real column, came none; there are \['y'\]"):
        slab_from_arrow(pa.table({"y": [1]}), schema)
    with pytest.raises(ColumnError, match="came several"):
        slab_from_arrow(pa.table([pa.array([1]), pa.array([2])], ["x", "x"]), schema)


def test_record_batch() -> None:
    batch = pa.record_batch({"s": ["a", None], "x": [1.0, 2.0]})
    slab = slab_from_arrow(batch, Schema(["x", "s"], ["real", "string"], 1))
    assert [array.to_pylist() for array in slab_to_arrow(slab)] == [[1.0, 2.0], ["a", None]]


def test_arrays_outlive_the_slab() -> None:
    slab = slab_from_arrow(pa.table({"x": [1.0], "s": ["a"]}), Schema(["x", "s"], ["real", "string"]))
    arrays = slab_to_arrow(slab)
    slab.clear()
    slab.append_columns([np.zeros(1, np.float32), (np.asarray([0, 1], np.int32), np.frombuffer(b"z", np.uint8))])
    del slab
    assert [array.to_pylist() for array in arrays] == [[1.0], ["a"]]


def sketched(rows: Slab | ColumnTable, program: ColumnProgram) -> Sketch:
    sketch = Sketch(program.sketch)
    CpuExecutor(program).run(rows, sketch)
    return sketch


def test_borrowed_rows_are_those_of_a_slab() -> None:
    fields = (Field("x", "real"), Field("i", "integer"), Field("b", "boolean"), Field("s", "string"))
    counted = (RealField("x", (0.0,), -1.0, 1.0), CategoryField("i", (1, 2), 2), RealField("b", (0.5,), 0.0, 1.0))
    program = ColumnProgram(fields, (), SketchSpec((*counted, CategoryField("s", ("é",), 1))))
    columns = {
        "s": pa.array(["é", None, "other"]).dictionary_encode(),
        "b": pa.array([True, None, False]),
        "x": pa.array([9.0, 0.5, None, -2.0], pa.float32()).slice(1, 3),
        "i": pa.array([1, None, 7], pa.uint8()),
    }
    for table in (
        pa.table(columns),
        pa.record_batch(columns),
        pa.table(columns).slice(1, 1),
        pa.table(columns).slice(3),
    ):
        expected = sketched(slab_from_arrow(table, program.schema), program)
        assert sketched(rows_from_arrow(table, program.schema), program) == expected
        assert expected.rows == table.num_rows


def test_columns_of_the_fields_own_type_are_not_copied() -> None:
    program = ColumnProgram((Field("x", "real"),), (), SketchSpec((RealField("x", (), -9.0, 9.0),)))
    values = np.zeros(100, np.float32)
    rows = rows_from_arrow(
        pa.table({"x": pa.Array.from_buffers(pa.float32(), 100, [None, pa.py_buffer(values)])}), program.schema
    )
    values[:] = 5.0
    assert sketched(rows, program).field(0).mean == 5.0
