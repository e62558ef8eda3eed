"""From a file's columns to rows to train on: labels read, unknown ones dropped and counted, order kept."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from trimtab.kernels.cpu import CpuExecutor
from trimtab.kernels.errors import ColumnError
from trimtab.trainer.encode import EncodedRows, SlabSource, encode_column, task_of, training_table
from trimtab.trainer.errors import RowsUnfit
from trimtab.trainer.prepare import program_for

from .tables import make_arrow, make_model, make_table


def with_labels(values: list[object], kind: pa.DataType | None = None) -> pa.Table:
    table = make_arrow(len(values))
    return table.set_column(table.column_names.index("y"), "y", pa.array(values, kind))


def test_unknown_labels_are_dropped_and_counted() -> None:
    table = training_table(with_labels(["yes", None, "no", "perhaps", "yes"]), make_model())
    assert table.labels.tolist() == [1.0, 0.0, 1.0]
    assert table.dropped == 2
    assert table.time_us.tolist() == [0, 2_000_000, 4_000_000]
    assert len(table) == table.slab.rows == 3


def test_absent_labels_are_negatives_where_the_project_says_so() -> None:
    model = make_model(label={"column": "y", "absent_means": "negative"})
    table = training_table(with_labels(["yes", None, "perhaps"]), model)
    assert table.labels.tolist() == [1.0, 0.0]
    assert table.dropped == 1


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_label_columns_of_several_types(kind: pa.DataType) -> None:
    labels, known = encode_column(
        pa.chunked_array([pa.array(["yes", None], kind), pa.array(["no"], kind)]), task_of(make_model())
    )
    assert labels[known].tolist() == [1.0, 0.0]


def test_numbers_as_labels() -> None:
    values = pa.array([1.5, None, float("nan")])
    labels, known = encode_column(values, task_of(make_model("regression")))
    assert known.tolist() == [True, False, False]
    assert labels[0] == 1.5


def test_no_known_label_at_all() -> None:
    with pytest.raises(RowsUnfit, match="no row of 2"):
        training_table(with_labels(["?", "!"]), make_model())
    with pytest.raises(RowsUnfit, match="no label column 'y'"):
        training_table(make_arrow(3).drop_columns(["y"]), make_model())


def test_missing_feature_column_is_named() -> None:
    with pytest.raises(ColumnError, match="'city'"):
        training_table(make_arrow(3).drop_columns(["city"]), make_model())


def test_keys_are_text_and_may_be_absent() -> None:
    for table in (make_arrow(3), make_arrow(3).drop_columns(["order"])):
        found = training_table(table, make_model())
        assert found.slab.schema.names == ["x", "z", "city", "order"]
        assert found.slab.schema.keys == 1


def test_rows_out_of_order_are_put_in_order_stably() -> None:
    table = make_table(6)
    table.time_us = np.array([3, 1, 2, 1, 0, 3], dtype=np.int64)
    ordered = table.in_order()
    assert ordered.time_us.tolist() == [0, 1, 1, 2, 3, 3]
    x = table.slab.reals(0)
    np.testing.assert_array_equal(ordered.slab.reals(0), x[[4, 1, 3, 2, 0, 5]])
    assert make_table(3).in_order().time_us.tolist() == [0, 0, 0]


def test_a_slab_source_gives_the_rows_that_encoding_gives() -> None:
    table = make_table(200)
    executor = CpuExecutor(program_for(table, make_model().specs(), task_of(make_model()), None))
    rows, source = table.encode(executor), SlabSource(table, executor)
    positions = np.array([5, 5, 199, 0])
    expected, found = rows.take(positions), source.take(positions)
    for name in ("features", "ids", "labels", "weights", "time_us"):
        np.testing.assert_array_equal(getattr(expected, name), getattr(found, name))
    assert len(source) == 200
    joined = EncodedRows.joined([rows.slice(0, 50), rows.slice(50, 200)])
    np.testing.assert_array_equal(joined.features, rows.features)


def test_tables_grow_in_place() -> None:
    table, more = make_table(10), make_table(5, seed=1)
    table.extend(more)
    assert len(table) == table.slab.rows == 15
    np.testing.assert_array_equal(table.slice(10, 15).slab.reals(0), more.slab.reals(0))


def test_parts_of_different_lengths_are_refused() -> None:
    rows = make_table(4)
    with pytest.raises(ValueError, match="one length"):
        type(rows)(rows.slab, rows.labels[:3], rows.weights, rows.time_us)
    with pytest.raises(ValueError, match="one length"):
        EncodedRows(np.zeros((2, 1), np.float32), np.zeros((1, 0), np.int64), rows.labels, rows.weights, rows.time_us)
