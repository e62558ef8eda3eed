"""CSV and Parquet files as tables: typed columns, streamed in batches, in the order of time where that is asked for.

Memory stays bounded: one batch, plus 16 bytes a row for times and order. A CSV is parsed once, into an Arrow file in a
temporary folder that is memory-mapped from then on; a column that turns out not to be what its beginning looked like
(an integer column with a 1.5 in row 900,000) is widened, and the file read again. A Parquet file is read as it is,
unless its rows are not in the order of time: then it is spooled to such an Arrow file too, from which rows can be
taken in any order.

Every complaint is a DataError of one line that names the file, and the column where there is one.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from trimtab.cli.errors import DataError, one_line

__all__ = ["BATCH_ROWS", "ROW_US", "Table", "open_table", "times_of"]

BATCH_ROWS = 65_536
_BATCH_VALUES = 1 << 25
ROW_US = 1_000_000
"""Without a time column, row i has data time i · ROW_US."""

_DELIMITERS = (",", ";", "\t", "|")
_CONVERSION = re.compile(
    r"In CSV column #(\d+): (?:Row #(\d+): )?CSV conversion error to ([^:]+): invalid value '(.*)'"
)


class _Source(Protocol):
    """Rows in the file's order."""

    schema: pa.Schema
    rows: int

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]: ...

    def random(self) -> _Arrow | None:
        """Itself, where rows can be taken in any order."""


class Table:
    """A data file as a table of `rows` rows. Row order is the file's, or the order of time after `open_table(...,
    time=...)`.

    `time_us` has each row's data time in µs UTC. A context manager: leaving it removes temporary files.
    """

    def __init__(self, path: Path, source: _Source, folder: Path | None) -> None:
        self.path = path
        self.time: str | None = None
        """The time column; None: file order."""
        self.rows = source.rows
        self.schema = source.schema
        self._source = source
        self._folder = folder
        self._order: NDArray[np.int64] | None = None
        self._time_us: NDArray[np.int64] | None = None

    @property
    def names(self) -> list[str]:
        """The columns' names, in the file's order."""
        return list(self.schema.names)

    @property
    def time_us(self) -> NDArray[np.int64]:
        """int64 [rows]: data times, ascending where the table is in the order of time."""
        if self._time_us is None:
            self._time_us = np.arange(self.rows, dtype=np.int64) * ROW_US
        return self._time_us

    @property
    def was_sorted(self) -> bool:
        """Whether the file itself has its rows in this order."""
        return self._order is None

    def require(self, *names: str) -> None:
        """Raises DataError for a column that the file does not have, naming the nearest that it has."""
        for name in names:
            if name not in self.schema.names:
                import difflib

                near = difflib.get_close_matches(name, self.names, 1)
                hint = f"did you mean {near[0]!r}?" if near else "it has " + _listed(self.names)
                raise DataError(f"{self.path}: no column {name!r}; {hint}")

    def iter_batches(
        self, columns: Sequence[str] | None = None, *, start: int = 0, stop: int | None = None, rows: int = BATCH_ROWS
    ) -> Iterator[pa.RecordBatch]:
        """Rows [start, stop) as batches of at most `rows` rows, in the table's order. Raises DataError."""
        names = self.names if columns is None else list(columns)
        self.require(*names)
        stop = self.rows if stop is None else min(stop, self.rows)
        if start >= stop:
            return
        with _complaints(self.path):
            if self._order is not None:
                source = self._source.random()
                assert source is not None
                for first in range(start, stop, rows):
                    yield source.take(self._order[first : min(first + rows, stop)], names)
                return
            position = 0
            for batch in self._source.batches(names):
                low, high = max(start - position, 0), min(stop - position, batch.num_rows)
                for first in range(low, high, rows):
                    yield batch.slice(first, min(rows, high - first))
                position += batch.num_rows
                if position >= stop:
                    return

    def read(self, columns: Sequence[str] | None = None, *, start: int = 0, stop: int | None = None) -> pa.Table:
        """Rows [start, stop) at once. Raises DataError."""
        names = self.names if columns is None else list(columns)
        batches = list(self.iter_batches(names, start=start, stop=stop))
        return pa.Table.from_batches(batches, pa.schema([self.schema.field(name) for name in names]))

    def times(self, column: str) -> NDArray[np.int64]:
        """int64 [rows]: a time column in µs UTC, INT64_MIN where there is none, in the table's order. Raises
        DataError."""
        self.require(column)
        if pa.types.is_integer(kind := self.schema.field(column).type) or pa.types.is_floating(kind):
            # At once: the size of all its numbers tells their unit.
            whole: Any = self.read([column]).column(0).combine_chunks()
            return times_of(whole, column, self.path)
        parts = [times_of(batch.column(0), column, self.path) for batch in self.iter_batches([column])]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def sort(self, time: str) -> None:
        """Brings the rows into the order of the column `time`; rows of one time stay in the file's order."""
        times = self.times(time)
        missing = times == np.iinfo(np.int64).min
        if missing.any():
            raise DataError(f"{self.path}: column {time!r}: row {int(missing.argmax()) + 1} has no time")
        if self._order is not None:
            raise DataError(f"{self.path} was sorted before")  # never by our own callers
        if len(times) and (np.diff(times) < 0).any():
            order = np.argsort(times, kind="stable")
            if self._source.random() is None:
                self._spool()
            self._order, times = order, times[order]
        self._time_us, self.time = times, time

    def close(self) -> None:
        """Removes temporary files."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _spool(self) -> None:
        folder = _temporary()
        try:
            with _complaints(self.path):
                source = _write_arrow(folder, self.schema, self._source.batches(self.names))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self.close()
        self._source, self._folder = source, folder


def open_table(path: Path | str, *, time: str | None = None, fast: bool = False) -> Table:
    """The table of a CSV or Parquet file, in the order of the column `time` if one is given. `fast`: Parquet's float32
    columns stay so, and all cores read. Raises DataError."""
    path = Path(path)
    with _complaints(path):
        if path.is_dir():
            raise DataError(f"{path} is a folder; a CSV or Parquet file was expected")
        with path.open("rb") as file:
            head = file.read(8192)
        if not head:
            raise DataError(f"{path} is empty; a CSV or Parquet file was expected")
        table = _open_parquet(path, fast) if head[:4] == b"PAR1" else _open_csv(path, head)
    try:
        if table.rows == 0:
            raise DataError(f"{path} has a header but no rows")
        if time:
            table.sort(time)
    except BaseException:
        table.close()
        raise
    return table


def times_of(
    array: pa.Array[Any], column: str, path: Path | str = "", *, largest: float | None = None
) -> NDArray[np.int64]:
    """int64 [n] µs UTC of a column of times: timestamps and dates (without a zone: UTC), ISO 8601 text, or numbers
    since the epoch (seconds, or ms, µs, ns by their size, or by that of the `largest` of the column that the array is
    a part of). INT64_MIN where there is none. Raises DataError."""
    where = f"{path}: " if str(path) else ""
    kind = array.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
        array = array.cast(kind)
    try:
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            array.validate(full=True)
    except pa.ArrowInvalid:
        raise DataError(f"{where}column {column!r} has text that is not UTF-8") from None
    try:
        if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
            return _numeric_times(array, largest)
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            array = array.cast(pa.timestamp("us", "UTC") if _zoned(array) else pa.timestamp("us"))
        elif pa.types.is_date(kind) or pa.types.is_timestamp(kind):
            zone = kind.tz if pa.types.is_timestamp(kind) else None
            array = array.cast(pa.timestamp("us", zone), safe=False)
        elif not pa.types.is_null(kind):
            raise DataError(f"{where}column {column!r}: expected times, came {kind}")
        integers = array.cast(pa.int64()).fill_null(np.iinfo(np.int64).min)
        return np.asarray(integers.to_numpy(zero_copy_only=False), dtype=np.int64)
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{where}column {column!r}: expected times such as 2013-01-31T17:00:00Z, came "
            f"{_offender(array)!r} ({one_line(str(error))[:80]})"
        ) from None


def _numeric_times(array: pa.Array[Any], largest: float | None) -> NDArray[np.int64]:
    if pa.types.is_integer(array.type):
        missing = np.asarray(array.is_null().to_numpy(zero_copy_only=False), dtype=bool)
        values = np.asarray(array.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False))
    else:
        floats = np.asarray(array.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
        missing = ~np.isfinite(floats)
        values = np.where(missing, 0.0, floats)
    if largest is None:
        largest = float(np.abs(values).max()) if len(values) else 0.0
    # Seconds reach 1e11 in the year 5138, milliseconds were there in 1973.
    scale = 1e6 if largest < 1e11 else 1e3 if largest < 1e14 else 1.0 if largest < 1e17 else 1e-3
    if scale >= 1 and values.dtype.kind == "i":
        times = values * int(scale)
    elif values.dtype.kind == "i":
        times = values // 1000
    else:
        times = np.round(values * scale).astype(np.int64)
    times = times.astype(np.int64)
    times[missing] = np.iinfo(np.int64).min
    return times


def _zoned(array: pa.Array[Any]) -> bool:
    first: Any = array.drop_null().slice(0, 1)
    return len(first) > 0 and re.search(r"(Z|[+-]\d\d:?\d\d)$", str(first[0].as_py())) is not None


def _offender(array: pa.Array[Any]) -> str:
    """The first text that is no time."""
    for text in array.drop_null().to_pylist():
        single: Any = pa.array([text])
        try:
            single.cast(pa.timestamp("us", "UTC") if _zoned(single) else pa.timestamp("us"))
        except pa.ArrowInvalid:
            return str(text)[:40]
    return ""


class _Parquet:
    """A Parquet file, streamed."""

    def __init__(self, path: Path, fast: bool = False) -> None:
        self._path = path
        self._fast = fast
        with pq.ParquetFile(path) as file:
            self.rows: int = file.metadata.num_rows
            self.schema: pa.Schema = _plain_schema(file.schema_arrow, keep=(pa.float32(),) if fast else ())

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        schema = pa.schema([self.schema.field(name) for name in columns])
        with pq.ParquetFile(self._path, pre_buffer=False) as file:
            for batch in file.iter_batches(
                self._rows_a_batch(len(columns)), columns=list(columns), use_threads=self._fast
            ):
                yield _cast(batch, schema)

    def _rows_a_batch(self, columns: int) -> int:
        """Of many columns fewer rows, so that a batch is about 128 MB at most."""
        return max(min(BATCH_ROWS, _BATCH_VALUES // max(columns, 1)), _BATCH_VALUES >> 12) if self._fast else BATCH_ROWS

    def random(self) -> _Arrow | None:
        return None


class _Arrow:
    """An Arrow file of our own, memory-mapped."""

    def __init__(self, path: Path) -> None:
        self._reader = ipc.open_file(pa.memory_map(str(path)))
        self.schema: pa.Schema = self._reader.schema
        counts = [self._reader.get_batch(i).num_rows for i in range(self._reader.num_record_batches)]
        self._starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
        self.rows = int(self._starts[-1])

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        for i in range(self._reader.num_record_batches):
            yield self._reader.get_batch(i).select(list(columns))

    def random(self) -> _Arrow:
        return self

    def take(self, rows: NDArray[np.int64], columns: Sequence[str]) -> pa.RecordBatch:
        """The rows at these positions, in this order."""
        owners = np.searchsorted(self._starts, rows, side="right") - 1
        by_owner = np.argsort(owners, kind="stable")
        parts = []
        for owner in np.unique(owners):
            inside = rows[by_owner[owners[by_owner] == owner]] - self._starts[owner]
            parts.append(self._reader.get_batch(int(owner)).select(list(columns)).take(inside))
        back = np.empty(len(rows), np.int64)
        back[by_owner] = np.arange(len(rows))
        gathered = parts[0] if len(parts) == 1 else pa.Table.from_batches(parts).combine_chunks().to_batches()[0]
        return gathered if len(parts) == 1 and (np.diff(back) == 1).all() else gathered.take(back)


def _open_parquet(path: Path, fast: bool) -> Table:
    return Table(path, _Parquet(path, fast), None)


def _open_csv(path: Path, head: bytes) -> Table:
    delimiter = _check_text(path, head)
    folder = _temporary()
    try:
        types: dict[str, pa.DataType] = {}
        while True:
            try:
                return Table(path, _parse_csv(path, folder, delimiter, types), folder)
            except pa.ArrowInvalid as error:
                column, wider = _widened(path, error, delimiter)
                if types.get(column) == wider:
                    raise
                types[column] = wider
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _parse_csv(path: Path, folder: Path, delimiter: str, types: dict[str, pa.DataType]) -> _Arrow:
    with _csv(path, delimiter, types) as reader:
        if len(set(reader.schema.names)) < len(reader.schema.names):
            twice = next(name for name in reader.schema.names if reader.schema.names.count(name) > 1)
            raise DataError(f"{path}: two columns are called {twice!r}")
        return _write_arrow(folder, _plain_schema(reader.schema), iter(reader))


@contextmanager
def _csv(path: Path, delimiter: str, types: dict[str, pa.DataType]) -> Iterator[pcsv.CSVStreamingReader]:
    stream: Any  # a NativeFile: open_csv takes it, its stubs do not say so
    with (
        pa.input_stream(str(path), compression="detect") as stream,
        pcsv.open_csv(
            stream,
            read_options=pcsv.ReadOptions(use_threads=False, block_size=4 << 20),
            parse_options=pcsv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pcsv.ConvertOptions(column_types=types, strings_can_be_null=True),
        ) as reader,
    ):
        yield reader


def _widened(path: Path, error: pa.ArrowInvalid, delimiter: str) -> tuple[str, pa.DataType]:
    """The column that a conversion error is about and the type to read it as instead; re-raises other errors."""
    found = _CONVERSION.search(str(error))
    if found is None:
        raise error
    with _csv(path, delimiter, {}) as reader:
        column = reader.schema.names[int(found.group(1))]
    came, value = found.group(3).strip(), found.group(4)
    if came == "null" and value.lstrip("+-").isdigit():
        return column, pa.int64()
    if came in ("null", "int64") and _is_number(value):
        return column, pa.float64()
    return column, pa.string()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _check_text(path: Path, head: bytes) -> str:
    """The delimiter of a CSV's first line. Raises DataError for what is no text."""
    if path.suffix not in (".gz", ".bz2", ".zst", ".lz4", ".br"):
        try:
            head.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            # A character may be cut at the end of what was read.
            if error.start < len(head) - 3:
                raise DataError(f"{path} is neither Parquet nor UTF-8 text (byte {error.start} is not)") from None
        if b"\0" in head:
            raise DataError(f"{path} is neither Parquet nor CSV: it has zero bytes")
    else:
        with pa.input_stream(str(path), compression="detect") as stream:
            head = stream.read(8192)
    line = head.decode("utf-8", "replace").lstrip("\ufeff").partition("\n")[0]
    return max(_DELIMITERS, key=line.count)


def _write_arrow(folder: Path, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> _Arrow:
    path = folder / "rows.arrow"
    with pa.OSFile(str(path), "wb") as sink, ipc.new_file(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(_cast(batch, schema))
    return _Arrow(path)


def _plain_schema(schema: pa.Schema, keep: Sequence[pa.DataType] = ()) -> pa.Schema:
    """Fewer types to think of: int64, float64, bool, string, timestamps; others, and `keep`, as they are."""
    kinds = [(field.name, field.type if field.type in keep else _plain_type(field.type)) for field in schema]
    return pa.schema([pa.field(name, kind) for name, kind in kinds])


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_uint64(kind):
        return kind
    if pa.types.is_integer(kind):
        return pa.int64()
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return pa.float64()
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    return kind


def _cast(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    if batch.schema.equals(schema):
        return batch
    columns = []
    for field in schema:
        column = batch.column(field.name)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        columns.append(column if column.type == field.type else column.cast(field.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _temporary() -> Path:
    return Path(tempfile.mkdtemp(prefix="trimtab-"))


@contextmanager
def _complaints(path: Path) -> Iterator[None]:
    """Arrow's errors as DataErrors of one line."""
    try:
        yield
    except FileNotFoundError as error:
        if error.filename is not None and Path(error.filename) != path:
            raise
        raise DataError(f"no file {path}") from None
    except pa.ArrowException as error:
        text = one_line(str(error)).rstrip(".")
        raise DataError(f"{path}: {text[:200]}") from None


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:12]))
    return shown + (f" and {len(names) - 12} more" if len(names) > 12 else "")
