"""What a caller has – lists, NumPy, pandas, Arrow – as columns, and columns as the tensors that the model's metadata
asks for.

Pure; knows nothing of gRPC. pandas and pyarrow are never imported: whoever passes their objects has.

  wire type asked for   taken                                   missing (None, NaN, NaT, pd.NA, null)
  FP32, FP64            numbers, booleans                       NaN
  BOOL                  booleans; numbers that are 0 or 1       sent as FP32 with NaN
  INT32, INT64          whole numbers, booleans                 INT64_MIN
  BYTES                 strings, bytes, whole numbers (as text) empty

A whole number for an FP32 input goes as FP32 where that is exact (below 2^24), else as INT64 or FP64: the server
rounds once, as it did in training.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from trimtab.client.errors import InvalidInput
from trimtab.client.types import Rows, Tensor

__all__ = ["PACKED", "Encoded", "encode_rows"]

PACKED = "features"
"""Name of the one tensor that stands for all features, where all are real numbers."""

_INT64_MIN = np.iinfo(np.int64).min
_EXACT = 1 << 24


@dataclass(frozen=True)
class Encoded:
    """An input tensor ready for the wire: little-endian, row-major bytes."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True)
class _Column:
    """Values of kind bool, int, float or str (dtype object: str or bytes); where `missing`, they mean nothing."""

    values: NDArray[Any]
    missing: NDArray[np.bool_] | None = None


def encode_rows(rows: Rows, inputs: Sequence[Tensor]) -> tuple[list[Encoded], int]:
    """The input tensors for `rows`, and their number. Raises InvalidInput, naming the column, what was expected, what
    came."""
    if isinstance(rows, np.ndarray):
        return _packed(rows, inputs)
    if isinstance(rows, Mapping):
        given: dict[str, Any] = dict(rows)
        _check_names(given, inputs)
        if given and all(_is_scalar(value) for value in given.values()):
            given = {name: [value] for name, value in given.items()}
    else:
        given = _table_columns(rows, inputs)
    tensors: list[Encoded] = []
    for tensor in inputs:
        values = given[tensor.name]
        if _is_scalar(values):
            raise InvalidInput(f"input {tensor.name!r}: expected a column of values, came {type(values).__name__}")
        tensors.append(_encode(tensor, _column(tensor.name, values)))
    lengths = {tensor.shape[0] for tensor in tensors}
    if len(lengths) > 1:
        each = ", ".join(f"{tensor.name!r} {tensor.shape[0]}" for tensor in tensors[:8])
        raise InvalidInput(f"expected columns of one length, came {each}")
    count = lengths.pop() if lengths else 0
    if count == 0:
        raise InvalidInput("expected at least one row, came none")
    return tensors, count


def _packed(values: NDArray[Any], inputs: Sequence[Tensor]) -> tuple[list[Encoded], int]:
    names = [tensor.name for tensor in inputs]
    other = next((tensor for tensor in inputs if not tensor.datatype.startswith("FP")), None)
    if other is not None:
        raise InvalidInput(
            f"a NumPy array is for models whose inputs are all real numbers; {other.name!r} is {other.datatype}: "
            "pass a dict of columns, a DataFrame or an Arrow table"
        )
    width = inputs[0].shape[-1] if names == [PACKED] else len(names)
    if values.ndim == 1 and len(values) == width:
        values = values.reshape(1, width)
    if values.ndim != 2 or values.shape[1] != width or len(values) == 0:
        raise InvalidInput(
            f"expected an array of shape [rows, {width}] (columns {_some(names)}), came {list(values.shape)}"
        )
    if values.dtype.kind not in "fiub":
        raise InvalidInput(f"expected an array of numbers, came dtype {values.dtype}")
    if values.dtype.kind in "iu" and values.size and max(abs(int(values.max())), abs(int(values.min()))) > _EXACT:
        # Through FP64, which the server rounds once; exact to 2^53.
        return [_tensor(PACKED, "FP64", values.astype("<f8"))], len(values)
    with np.errstate(over="ignore"):
        return [_tensor(PACKED, "FP32", values.astype("<f4"))], len(values)


def _check_names(given: Mapping[str, Any], inputs: Sequence[Tensor]) -> None:
    names = [tensor.name for tensor in inputs]
    for name in given:
        if name not in names:
            alike = {other.lower(): other for other in names}
            near = [alike[found] for found in difflib.get_close_matches(str(name).lower(), alike, 1)]
            hint = f"did you mean {near[0]!r}?" if near else f"the model takes {_some(names)}"
            raise InvalidInput(f"unknown input {name!r}; {hint}")
    _check_missing(given, names)


def _check_missing(given: Mapping[str, Any], names: Sequence[str]) -> None:
    absent = [name for name in names if name not in given]
    if absent:
        raise InvalidInput(f"missing input {_some(absent)}; the model takes {_some(names)}")


def _table_columns(rows: Any, inputs: Sequence[Tensor]) -> dict[str, Any]:
    """The inputs' columns of a DataFrame or Arrow table; columns that the model does not take are left alone."""
    if hasattr(rows, "column_names"):
        table_names: list[Any] = list(rows.column_names)
    elif hasattr(rows, "schema") and hasattr(rows, "column"):
        table_names = list(rows.schema.names)
    elif hasattr(rows, "columns") and hasattr(rows, "__getitem__"):
        table_names = list(rows.columns)
    else:
        raise InvalidInput(
            f"expected a dict of columns, a NumPy array, a DataFrame or an Arrow table, came {type(rows).__name__}"
        )
    names = [tensor.name for tensor in inputs]
    _check_missing(dict.fromkeys(table_names), names)
    twice = next((name for name in names if table_names.count(name) > 1), None)
    if twice is not None:
        raise InvalidInput(f"input {twice!r}: expected one column of this name, came several")
    if hasattr(rows, "schema"):
        return {name: rows.column(table_names.index(name)) for name in names}
    return {name: rows[name] for name in names}


def _is_scalar(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float | str | bytes | np.generic) or _is_na(value)


def _is_na(value: object) -> bool:
    return (
        value is None or type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and value != value)
    )


def _column(name: str, values: Any) -> _Column:
    module = type(values).__module__.partition(".")[0]
    if module == "pyarrow":
        return _from_arrow(name, values)
    if module == "pandas":
        return _from_pandas(name, values)
    if isinstance(values, np.ma.MaskedArray):
        return _Column(np.asarray(values.filled(0)), np.ma.getmaskarray(values).reshape(-1))
    if not isinstance(values, np.ndarray):
        values = _from_objects(name, list(values)) if not hasattr(values, "__array__") else np.asarray(values)
        if isinstance(values, _Column):
            return values
    if values.ndim == 2 and values.shape[1] == 1:
        values = values.reshape(len(values))
    if values.ndim != 1:
        raise InvalidInput(f"input {name!r}: expected a column [rows], came an array {list(values.shape)}")
    if values.dtype.kind in "biuf":
        return _Column(values)
    if values.dtype.kind in "US":
        return _Column(values.astype(object))
    if values.dtype.kind == "O" or hasattr(values.dtype, "na_object"):
        return _from_objects(name, values.tolist())
    raise InvalidInput(f"input {name!r}: expected numbers, booleans or strings, came dtype {values.dtype}")


def _from_objects(name: str, items: list[Any]) -> _Column:
    missing = np.fromiter((_is_na(item) for item in items), np.bool_, len(items))
    kinds = {type(item) for item, absent in zip(items, missing, strict=True) if not absent}
    mask = missing if missing.any() else None
    if all(issubclass(kind, bool | np.bool_) for kind in kinds) and kinds:
        return _Column(np.array([False if absent else bool(i) for i, absent in zip(items, missing, strict=True)]), mask)
    if all(issubclass(kind, str | bytes) for kind in kinds) and kinds:
        texts = np.empty(len(items), dtype=object)
        texts[:] = ["" if absent else i for i, absent in zip(items, missing, strict=True)]
        return _Column(texts, mask)
    whole = all(issubclass(kind, int | np.integer | np.bool_) for kind in kinds) and bool(kinds)
    try:
        if whole:
            return _Column(
                np.array([0 if gone else int(i) for i, gone in zip(items, missing, strict=True)], np.int64), mask
            )
        if any(issubclass(kind, str | bytes) for kind in kinds):
            raise TypeError
        return _Column(
            np.array([np.nan if gone else float(i) for i, gone in zip(items, missing, strict=True)], np.float64)
        )
    except OverflowError:
        raise InvalidInput(f"input {name!r}: expected integers within 64 bits") from None
    except (TypeError, ValueError):
        came = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise InvalidInput(f"input {name!r}: expected numbers, booleans or strings, came {came}") from None


def _from_pandas(name: str, series: Any) -> _Column:
    dtype = series.dtype
    if isinstance(dtype, np.dtype) and dtype.kind in "biuf":
        return _Column(series.to_numpy())
    kind = getattr(dtype, "kind", "O")
    if kind in "mM":
        raise InvalidInput(f"input {name!r}: expected numbers, booleans or strings, came dtype {dtype}")
    missing = np.asarray(series.isna(), dtype=np.bool_)
    if kind in "biu" and not isinstance(dtype, np.dtype) and type(dtype).__name__ != "CategoricalDtype":
        target = {"b": np.bool_, "i": np.int64, "u": np.uint64}[kind]
        values = series.to_numpy(dtype=target, na_value=target(0)) if missing.any() else series.to_numpy(dtype=target)
        return _Column(values, missing if missing.any() else None)
    if kind == "f" and type(dtype).__name__ != "CategoricalDtype":
        return _Column(series.to_numpy(dtype=np.float64, na_value=np.nan))
    return _from_objects(name, series.to_numpy(dtype=object).tolist())


def _from_arrow(name: str, array: Any) -> _Column:
    if hasattr(array, "combine_chunks"):
        array = array.combine_chunks()
        if hasattr(array, "num_chunks"):
            raise InvalidInput(f"input {name!r}: expected less than 2 GiB of text in one request")
    if hasattr(array, "dictionary_decode"):
        array = array.dictionary_decode()
    kind = str(array.type)
    if kind.startswith(("timestamp", "date", "time", "duration", "list", "struct", "map", "large_list", "fixed_size")):
        raise InvalidInput(f"input {name!r}: expected numbers, booleans or strings, came {kind}")
    if "string" in kind or "binary" in kind or kind == "null" or kind.startswith("decimal"):
        return _from_objects(name, array.to_pylist())
    missing = np.asarray(array.is_null().to_numpy(zero_copy_only=False), dtype=np.bool_)
    if missing.any():
        if kind in ("double", "float", "halffloat"):
            return _Column(np.asarray(array.to_numpy(zero_copy_only=False)))
        array = array.fill_null(False if kind == "bool" else 0)
        return _Column(np.asarray(array.to_numpy(zero_copy_only=False)), missing)
    return _Column(np.asarray(array.to_numpy(zero_copy_only=False)))


def _encode(tensor: Tensor, column: _Column) -> Encoded:
    kind = tensor.datatype
    if kind == "BYTES":
        return _bytes(tensor, column)
    if column.values.dtype.kind == "O":
        if column.missing is not None and column.missing.all():
            column = _Column(np.full(len(column.values), np.nan))
        else:
            raise _wrong(tensor, "strings")
    if kind in ("FP32", "FP64", "FP16"):
        return _real(tensor, column)
    if kind == "BOOL":
        if column.values.dtype.kind == "b" and column.missing is None:
            return _tensor(tensor.name, "BOOL", column.values)
        return _boolean(tensor, column)
    if kind.startswith(("INT", "UINT")):
        return _integer(tensor, column)
    raise InvalidInput(f"input {tensor.name!r}: this client does not know the datatype {kind}")


def _real(tensor: Tensor, column: _Column) -> Encoded:
    values, missing = column.values, column.missing
    large = (
        values.dtype.kind in "iu" and values.size > 0 and max(abs(int(values.max())), abs(int(values.min()))) > _EXACT
    )
    if large and missing is None and values.dtype.kind == "i":
        return _tensor(tensor.name, "INT64", values.astype("<i8"))
    wide = large or tensor.datatype == "FP64"
    with np.errstate(over="ignore"):
        floats = values.astype("<f8" if wide else "<f4")
    if missing is not None:
        floats[missing] = np.nan
    return _tensor(tensor.name, "FP64" if wide else "FP32", floats)


def _boolean(tensor: Tensor, column: _Column) -> Encoded:
    floats = column.values.astype("<f4")
    if column.missing is not None:
        floats[column.missing] = np.nan
    wrong = ~((floats == 0) | (floats == 1) | np.isnan(floats))
    if wrong.any():
        raise InvalidInput(f"input {tensor.name!r}: expected booleans (or 0 and 1), came {floats[wrong.argmax()]:g}")
    return _tensor(tensor.name, "FP32", floats)


def _integer(tensor: Tensor, column: _Column) -> Encoded:
    values, missing = column.values, column.missing
    if values.dtype.kind == "f":
        gone = np.isnan(values)
        missing = gone if missing is None else gone | missing
        wrong = ~missing & ~((np.floor(values) == values) & (values >= -(2.0**63)) & (values < 2.0**63))
        if wrong.any():
            raise InvalidInput(f"input {tensor.name!r}: expected whole numbers, came {values[wrong.argmax()]:g}")
        values = np.where(missing, 0, values)
    elif values.dtype.kind == "u" and values.size and int(values.max()) > np.iinfo(np.int64).max:
        raise InvalidInput(f"input {tensor.name!r}: expected integers within 64 bits, came {int(values.max())}")
    integers = values.astype("<i8")
    if missing is not None:
        integers[missing] = _INT64_MIN
    return _tensor(tensor.name, "INT64", integers)


def _bytes(tensor: Tensor, column: _Column) -> Encoded:
    values, missing = column.values, column.missing
    if values.dtype.kind in "iu":
        texts = [str(int(value)).encode() for value in values]
    elif values.dtype.kind == "O":
        try:
            texts = [item if isinstance(item, bytes) else str(item).encode() for item in values]
        except UnicodeEncodeError as error:
            raise InvalidInput(
                f"input {tensor.name!r}: expected text that UTF-8 can hold, came {error.object!r:.60}"
            ) from None
    elif values.dtype.kind == "f" and np.isnan(values).all():
        texts = [b""] * len(values)
    else:
        raise _wrong(tensor, {"b": "booleans", "f": "real numbers"}[values.dtype.kind])
    if missing is not None:
        texts = [b"" if gone else text for text, gone in zip(texts, missing, strict=True)]
    data = b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    return Encoded(tensor.name, "BYTES", (len(texts), 1), data)


def _tensor(name: str, datatype: str, values: NDArray[Any]) -> Encoded:
    shape = values.shape if values.ndim == 2 else (len(values), 1)
    return Encoded(name, datatype, tuple(map(int, shape)), np.ascontiguousarray(values).tobytes())


def _wrong(tensor: Tensor, came: str) -> InvalidInput:
    expected = {"BYTES": "strings", "BOOL": "booleans"}.get(tensor.datatype, "numbers")
    return InvalidInput(f"input {tensor.name!r}: expected {expected} ({tensor.datatype}), came {came}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:12])) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
