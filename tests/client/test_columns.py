"""Whatever a caller has, the server stores the same rows as training would from the same data: the native decoder and
trimtab.kernels.slabs are the oracle."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimtab._native import Schema, Slab, decode_infer
from trimtab.client.columns import encode_rows
from trimtab.client.errors import InvalidInput
from trimtab.client.messages import infer_request
from trimtab.client.types import Rows, Tensor
from trimtab.kernels.slabs import slab_from_arrow, slab_to_arrow

TYPES = {"x": "real", "i": "integer", "b": "boolean", "s": "string"}
WIRE = {"real": "FP32", "integer": "INT64", "boolean": "BOOL", "string": "BYTES"}
INPUTS = tuple(Tensor(name, WIRE[kind], (-1, 1)) for name, kind in TYPES.items())
SCHEMA = Schema(list(TYPES), list(TYPES.values()))


def received(rows: Rows, schema: Schema = SCHEMA, inputs: tuple[Tensor, ...] = INPUTS) -> list[list[Any]]:
    """The columns as the server stores them."""
    request, count = infer_request("m", inputs, rows)
    decoded = decode_infer(request.SerializeToString())
    assert decoded.check(schema) == count
    slab = Slab(schema)
    decoded.append_to(slab)
    return [column.to_pylist() for column in slab_to_arrow(slab)]


def trained(table: pa.Table) -> list[list[Any]]:
    """The columns as training stores them."""
    return [column.to_pylist() for column in slab_to_arrow(slab_from_arrow(table, SCHEMA))]


REALS = st.none() | st.floats(allow_nan=False, width=64)
INTEGERS = st.none() | st.integers(-(2**63) + 1, 2**63 - 1)
TEXTS = st.none() | st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
ROWS = st.lists(st.tuples(REALS, INTEGERS, st.none() | st.booleans(), TEXTS), min_size=1, max_size=20)


@given(ROWS)
def test_every_form_arrives_as_training_reads_it(rows: list[tuple[Any, ...]]) -> None:
    columns: dict[str, Any] = {name: [row[place] for row in rows] for place, name in enumerate(TYPES)}
    kinds = {"x": pa.float64(), "i": pa.int64(), "b": pa.bool_(), "s": pa.string()}
    table = pa.table({name: pa.array(columns[name], kinds[name]) for name in TYPES})
    expected = trained(table)
    forms: list[Rows] = [
        columns,
        table,
        table.to_batches()[0],
        {name: table.column(name) for name in TYPES},
        {name: np.array(values, dtype=object) for name, values in columns.items()},
        pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in columns.items()}),
        pd.DataFrame(
            {name: pd.array(columns[name], dtype=kind) for name, kind in
             {"x": "Float64", "i": "Int64", "b": "boolean", "s": "string"}.items()}
        ),
        table.to_pandas(types_mapper=pd.ArrowDtype),
    ]  # fmt: skip
    for form in forms:
        assert received(form) == expected


@given(st.lists(INTEGERS.filter(lambda value: value is not None), min_size=1))
def test_whole_numbers_for_a_real_are_rounded_as_in_training(values: list[int]) -> None:
    inputs, schema = (Tensor("x", "FP32", (-1, 1)),), Schema(["x"], ["real"])
    table = pa.table({"x": pa.array(values, pa.int64())})
    expected = [column.to_pylist() for column in slab_to_arrow(slab_from_arrow(table, schema))]
    for form in ({"x": values}, {"x": np.array(values)}, table, table.to_pandas()):
        assert received(form, schema, inputs) == expected


def test_small_whole_numbers_go_as_fp32_and_large_ones_wider() -> None:
    inputs = (Tensor("x", "FP32", (-1, 1)),)

    def sent(values: Any) -> str:
        return encode_rows({"x": values}, inputs)[0][0].datatype

    assert sent([1, -(2**24)]) == "FP32"
    assert sent([2**24 + 1]) == "INT64"
    assert sent([2**24 + 1, None]) == "FP64"
    assert sent([0.1]) == "FP32"


@pytest.mark.parametrize("gone", [None, math.nan, pd.NA, pd.NaT, np.nan, np.float32("nan")])
def test_every_missing_value_is_missing(gone: Any) -> None:
    columns = {name: [gone, value] for name, value in {"x": 1.5, "i": 7, "b": True, "s": "a"}.items()}
    if isinstance(gone, np.float32):
        columns = {name: [float(gone), value] for name, (_, value) in columns.items()}
    assert received(columns) == [[None, 1.5], [None, 7], [None, True], [None, "a"]]


def test_a_column_that_is_all_missing_fits_every_type() -> None:
    assert received({name: [None, None] for name in TYPES}) == [[None, None]] * 4
    assert received({name: np.array([np.nan, np.nan]) for name in TYPES}) == [[None, None]] * 4


def test_one_row_of_plain_values() -> None:
    assert received({"x": 1, "i": 2, "b": False, "s": "z"}) == [[1.0], [2], [False], ["z"]]


def test_categories_dictionaries_and_masked_arrays() -> None:
    frame = pd.DataFrame({"x": [1.0, 2.0], "i": [1, 2], "b": [True, False], "s": ["u", None]})
    frame["s"], frame["i"] = frame["s"].astype("category"), frame["i"].astype("category")
    assert received(frame) == [[1.0, 2.0], [1, 2], [True, False], ["u", None]]
    coded = {
        "x": np.ma.MaskedArray([1.0, 2.0], [False, True]),
        "i": np.array([[1], [2]], dtype=np.uint8),
        "b": np.array([0.0, np.nan]),
        "s": pa.array(["u", "u"]).dictionary_encode(),
    }
    assert received(coded) == [[1.0, None], [1, 2], [False, None], ["u", "u"]]


def test_whole_numbers_stand_for_strings_as_in_training() -> None:
    assert received({"x": [0], "i": [0], "b": [0], "s": [7]})[3] == ["7"]


def test_columns_of_a_table_that_the_model_does_not_take_are_left_alone() -> None:
    frame = pd.DataFrame({"x": [1.0], "i": [1], "b": [True], "s": ["u"], "late": [pd.Timestamp(0)]})
    assert received(frame)[0] == [1.0]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"x": ["a"]}, "input 'x': expected numbers (FP32), came strings"),
        ({"x": [1.0, "a"]}, "input 'x': expected numbers, booleans or strings, came float, str"),
        ({"i": [1.5]}, "input 'i': expected whole numbers, came 1.5"),
        ({"i": [2**64]}, "input 'i': expected integers within 64 bits"),
        ({"i": np.array([2**63], np.uint64)}, "input 'i': expected integers within 64 bits"),
        ({"i": [math.inf]}, "input 'i': expected whole numbers, came inf"),
        ({"b": [2]}, "input 'b': expected booleans (or 0 and 1), came 2"),
        ({"b": ["yes"]}, "input 'b': expected booleans (BOOL), came strings"),
        ({"s": [1.5]}, "input 's': expected strings (BYTES), came real numbers"),
        ({"s": [True]}, "input 's': expected strings (BYTES), came booleans"),
        ({"s": ["\ud800"]}, "input 's': expected text that UTF-8 can hold"),
        ({"x": [object()]}, "input 'x': expected numbers, booleans or strings, came object"),
        ({"x": np.zeros((1, 2))}, "input 'x': expected a column [rows], came an array [1, 2]"),
        ({"x": np.array(["2020-01-01"], "M8[s]")}, "came dtype datetime64[s]"),
        ({"x": pd.Series([pd.Timestamp(0)])}, "came dtype datetime64"),
        ({"x": pa.array([[1]])}, "came list<"),
        ({"x": [1.0, 2.0]}, "expected columns of one length, came 'x' 2, 'i' 1"),
        ({"y": [1]}, "unknown input 'y'"),
        ({"X": [1]}, "unknown input 'X'; did you mean 'x'?"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(columns: dict[str, Any], said: str) -> None:
    good: dict[str, Any] = {"x": [1.0], "i": [1], "b": [True], "s": ["a"]}
    with pytest.raises(InvalidInput) as caught:
        encode_rows({**good, **columns}, INPUTS)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_column_is_named() -> None:
    with pytest.raises(InvalidInput, match="missing input 'b', 's'; the model takes 'x', 'i', 'b', 's'"):
        encode_rows({"x": [1], "i": [1]}, INPUTS)


def test_no_rows_and_no_table() -> None:
    with pytest.raises(InvalidInput, match="at least one row"):
        encode_rows({name: [] for name in TYPES}, INPUTS)
    with pytest.raises(InvalidInput, match="came int"):
        encode_rows(3, INPUTS)  # type: ignore[arg-type]


REAL_INPUTS = (Tensor("a", "FP32", (-1, 1)), Tensor("b", "FP32", (-1, 1)))


def test_an_array_is_packed() -> None:
    schema = Schema(["a", "b"], ["real", "real"])
    for values in (np.array([[1.0, np.nan], [3.0, 4.0]]), np.array([[1, 2**24 + 2]]), np.array([1.0, 2.0])):
        rows = received(values, schema, REAL_INPUTS)
        plain = np.atleast_2d(values).T.tolist()
        assert rows == [[None if v != v else float(np.float32(v)) for v in column] for column in plain]


@pytest.mark.parametrize("values", [np.zeros((2, 3)), np.zeros((0, 2)), np.zeros(3), np.zeros((1, 1, 2))])
def test_an_array_of_another_shape(values: Any) -> None:
    with pytest.raises(InvalidInput, match=r"expected an array of shape \[rows, 2\] \(columns 'a', 'b'\), came"):
        encode_rows(values, REAL_INPUTS)


def test_an_array_for_a_model_with_other_inputs() -> None:
    with pytest.raises(InvalidInput, match="'i' is INT64: pass a dict of columns"):
        encode_rows(np.zeros((1, 4)), INPUTS)
