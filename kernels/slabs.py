"""Arrow tables, slabs and borrowed rows: the one place that says which Arrow type may stand for which field type.

  real      integers, floats, decimals, booleans            float32, null → NaN
  boolean   booleans; numbers that are 0 or 1               float32 0 or 1, null and NaN → NaN
  integer   integers, booleans; floats and decimals that are integral    int64, null and NaN → INT64_MIN
  string    strings; integers (as decimal text)             UTF-8, null → empty

A dictionary-encoded column counts as its values; a column of type null is all missing. Anything else (timestamps,
lists, text for a number) is refused by name. Columns that the schema does not name are ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray
from trimtab._native import ColumnTable, Schema, Slab
from trimtab.kernels.errors import ColumnError

if TYPE_CHECKING:
    Array = pa.Array[Any]

MISSING_INTEGER = -(1 << 63)
_ACCEPTED = {
    "real": "numbers or booleans",
    "boolean": "booleans, or numbers that are 0 or 1",
    "integer": "whole numbers within 64 bits",
    "string": "strings",
}

Reals = NDArray[np.float32]
Integers = NDArray[np.int64]
Texts = tuple[NDArray[np.int32], NDArray[np.uint8]]
Values = Reals | Integers | pa.StringArray

compute: Any = pyarrow.compute  # whose stubs know few of its overloads


def slab_from_arrow(table: pa.Table | pa.RecordBatch, schema: Schema) -> Slab:
    """A new slab with the table's rows. Raises ColumnError, which names the column, what was expected and what came."""
    slab = Slab(schema)
    slab.append_columns(arrays_from_arrow(table, schema))
    return slab


def rows_from_arrow(table: pa.Table | pa.RecordBatch, schema: Schema) -> ColumnTable:
    """The table's rows where they lie: columns of the field's own type (float32, int64, strings) without nulls are
    borrowed, others converted. For whoever reads them once; raises ColumnError as slab_from_arrow does."""
    return ColumnTable(schema, arrays_from_arrow(table, schema))


def arrays_from_arrow(table: pa.Table | pa.RecordBatch, schema: Schema) -> list[Reals | Integers | Texts]:
    """The columns of a ColumnTable of the schema, borrowed where that can be. Raises as slab_from_arrow does."""
    columns: list[Reals | Integers | Texts] = []
    for name, kind in zip(schema.names, schema.types, strict=True):
        values = column_values(table, name, kind)
        columns.append(
            text_buffers(values) if isinstance(values, pa.Array) else np.require(values, requirements=("C", "A"))
        )
    return columns


def slab_to_arrow(slab: Slab) -> list[Array]:
    """One array per field, as received: float32, bool, int64 or utf8, with nulls for missing values."""
    return [_column_to_arrow(slab, i, kind) for i, kind in enumerate(slab.schema.types)]


def column_values(table: pa.Table | pa.RecordBatch, name: str, kind: str) -> Values:
    """One column as a slab would hold it: float32, int64, or a StringArray without nulls. Raises ColumnError."""
    index = table.schema.get_field_index(name)
    if index < 0:
        if name in table.schema.names:
            raise ColumnError(f"column {name!r}: expected one column of this name, came several")
        raise ColumnError(f"column {name!r}: expected a {kind} column, came none; there are {table.schema.names[:50]}")
    array: Any = table.column(index)
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks() if array.num_chunks != 1 else array.chunk(0)
        if isinstance(array, pa.ChunkedArray):  # more bytes than one array can offset
            raise ColumnError(f"column {name!r}: expected less than 2 GiB of text at once; pass smaller batches")
    came = array.type
    if pa.types.is_dictionary(came):
        array = array.dictionary_decode()
    try:
        return _CONVERSIONS[kind](array)
    except (_Unfit, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        detail = f": {error}" if isinstance(error, _Unfit) and str(error) else ""
        advice = "; give times as numbers" if pa.types.is_temporal(came) else ""
        raise ColumnError(
            f"column {name!r}: expected {kind} ({_ACCEPTED[kind]}), came {came}{detail}{advice}"
        ) from None


class _Unfit(Exception):
    """The array is of the wrong type, or one of its values does not fit."""


def _real(array: Any) -> NDArray[np.float32]:
    kind = array.type
    if pa.types.is_boolean(kind) or pa.types.is_null(kind):
        array = array.cast(pa.uint8()).cast(pa.float32())
    elif pa.types.is_decimal(kind):
        array = array.cast(pa.float64()).cast(pa.float32(), safe=False)
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
        array = array if pa.types.is_float32(kind) else array.cast(pa.float32(), safe=False)  # a cast copies
    else:
        raise _Unfit
    if array.null_count:
        array = array.fill_null(float("nan"))
    return np.asarray(array.to_numpy(zero_copy_only=False), dtype=np.float32)


def _boolean(array: Any) -> NDArray[np.float32]:
    values = _real(array)
    wrong = ~((values == 0) | (values == 1) | np.isnan(values))
    if wrong.any():
        raise _Unfit(f"row {int(wrong.argmax())} is {values[wrong.argmax()]:g}")
    return values + np.float32(0)


def _integer(array: Any) -> NDArray[np.int64]:
    kind = array.type
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        if pa.types.is_decimal(kind):
            return _integer(array.cast(pa.decimal128(38, 0)).cast(pa.int64()))
        if array.null_count:
            array = array.fill_null(float("nan"))
        floats = np.asarray(array.to_numpy(zero_copy_only=False), dtype=np.float64)
        missing = np.isnan(floats)
        wrong = ~missing & ~((np.floor(floats) == floats) & (floats >= -(2.0**63)) & (floats < 2.0**63))
        if wrong.any():
            raise _Unfit(f"row {int(wrong.argmax())} is {floats[wrong.argmax()]:g}")
        integers = np.where(missing, 0.0, floats).astype(np.int64)
        integers[missing] = MISSING_INTEGER
        return integers
    if not (pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)):
        raise _Unfit
    if pa.types.is_boolean(kind):
        array = array.cast(pa.uint8())
    array = array.cast(pa.int64())  # safe: a uint64 above the range is an error
    if array.null_count:
        array = array.fill_null(MISSING_INTEGER)
    return np.asarray(array.to_numpy(zero_copy_only=False), dtype=np.int64)


def _string(array: Any) -> pa.StringArray:
    kind = array.type
    text = pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if text or pa.types.is_null(kind) or pa.types.is_integer(kind):
        array = array.cast(pa.string())
    elif not pa.types.is_string(kind):
        raise _Unfit
    filled: pa.StringArray = array.fill_null("") if array.null_count else array
    return filled


_CONVERSIONS: dict[str, Callable[[Any], Values]] = {
    "real": _real,
    "boolean": _boolean,
    "integer": _integer,
    "string": _string,
}


def text_buffers(array: pa.StringArray) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    rows = len(array)
    _, offset_buffer, byte_buffer = array.buffers()
    if rows == 0 or offset_buffer is None:
        return np.zeros(rows + 1, np.int32), np.zeros(0, np.uint8)
    offsets = np.frombuffer(memoryview(offset_buffer), np.int32)[array.offset : array.offset + rows + 1]
    if byte_buffer is None:
        return np.zeros(rows + 1, np.int32), np.zeros(0, np.uint8)
    data = np.frombuffer(memoryview(byte_buffer), np.uint8)[offsets[0] : offsets[-1]]
    return np.ascontiguousarray(offsets - offsets[0]), data


def array_of(kind: pa.DataType, values: NDArray[Any], missing: NDArray[np.bool_] | None = None) -> Array:
    """An Arrow array over the memory of `values`, of the width that `kind` has, with nulls where `missing`.

    As pa.array gives it, which imports pandas the first time, for seconds, with the interpreter's lock.
    """
    bits = None
    if missing is not None and missing.any():
        bits = pa.py_buffer(np.packbits(~missing, bitorder="little").data)
    data = np.packbits(values, bitorder="little") if pa.types.is_boolean(kind) else np.ascontiguousarray(values)
    return pa.Array.from_buffers(kind, len(values), [bits, pa.py_buffer(data.data)])


def _column_to_arrow(slab: Slab, index: int, kind: str) -> Array:
    # The slab's views are true only until it changes; what is handed out is a copy.
    if kind == "integer":
        integers = np.array(slab.integers(index))
        return array_of(pa.int64(), integers, integers == MISSING_INTEGER)
    if kind == "string":
        offsets, data = slab.strings(index)
        rows = len(offsets) - 1
        text = pa.StringArray.from_buffers(rows, pa.py_buffer(offsets.tobytes()), pa.py_buffer(data.tobytes()))
        known: Array = compute.if_else(offsets[1:] == offsets[:-1], pa.scalar(None, pa.string()), text)
        return known
    reals = np.array(slab.reals(index))
    missing = np.isnan(reals)
    if kind == "boolean":
        return array_of(pa.bool_(), reals == 1, missing)
    return array_of(pa.float32(), reals, missing)
