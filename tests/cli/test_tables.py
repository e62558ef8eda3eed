"""CSV and Parquet reading: the same table whichever it is, in any order; every wrong file in one line."""

from __future__ import annotations

import gzip
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trimtab.cli import tables
from trimtab.cli.errors import DataError
from trimtab.cli.tables import open_table, times_of

from . import files

MISSING = np.iinfo(np.int64).min


@pytest.mark.parametrize("write", [files.parquet, files.csv])
def test_csv_and_parquet_are_the_same_table(tmp_path: Path, write: Any) -> None:
    table = files.loans(300)
    with open_table(write(table, tmp_path / "loans.data")) as opened:
        assert opened.rows == 300
        assert opened.names == table.column_names
        read = opened.read()
    for name in table.column_names:
        if not pa.types.is_temporal(table.schema.field(name).type):
            assert read.column(name).to_pylist() == table.column(name).to_pylist(), name


@settings(max_examples=25, deadline=None)
@given(
    times=st.lists(st.integers(0, 20), min_size=1, max_size=60),
    rows=st.integers(1, 70),
    start=st.integers(0, 70),
    stop=st.none() | st.integers(0, 70),
    suffix=st.sampled_from(["csv", "parquet"]),
)
def test_any_slice_of_the_sorted_table(
    tmp_path_factory: pytest.TempPathFactory, times: list[int], rows: int, start: int, stop: int | None, suffix: str
) -> None:
    table = pa.table({"t": times, "place": list(range(len(times))), "s": [f"é{value}" for value in times]})
    path = tmp_path_factory.mktemp("sort") / f"data.{suffix}"
    (files.csv if suffix == "csv" else files.parquet)(table, path)
    oracle = pd.DataFrame(table.to_pydict()).sort_values("t", kind="stable").iloc[start:stop]
    with open_table(path, time="t") as opened:
        batches = list(opened.iter_batches(["place", "s"], start=start, stop=stop, rows=rows))
        assert all(0 < batch.num_rows <= rows for batch in batches)
        assert [value for batch in batches for value in batch.column(0).to_pylist()] == oracle["place"].tolist()
        assert [value for batch in batches for value in batch.column(1).to_pylist()] == oracle["s"].tolist()
        assert opened.time_us.tolist() == [value * 1_000_000 for value in sorted(times)]


def test_sorting_takes_rows_across_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "BATCH_ROWS", 100)
    order = np.random.default_rng(0).permutation(5000)
    path = files.parquet(pa.table({"t": order, "x": order * 2.0}), tmp_path / "x.parquet")
    with open_table(path, time="t") as opened:
        assert not opened.was_sorted
        assert opened.read(["x"]).column("x").to_pylist() == (np.arange(5000) * 2.0).tolist()
        part = next(opened.iter_batches(["x"], start=1234, stop=1236))
        assert part.column(0).to_pylist() == [2468.0, 2470.0]


def test_without_time_a_row_is_a_second(tmp_path: Path) -> None:
    with open_table(files.parquet(files.digits(10), tmp_path / "x.parquet")) as opened:
        assert opened.time_us.tolist() == [i * 1_000_000 for i in range(10)]


def test_columns_that_begin_as_something_else(tmp_path: Path) -> None:
    path = tmp_path / "wide.csv"
    lines = ["1,2,,true,,2020-01-01"] * 600_000
    path.write_text("\n".join(["i,s,n,b,f,d", *lines, "1.5,zz,7,maybe,0.5,soon"]) + "\n")
    with open_table(path) as opened:
        kinds = {field.name: str(field.type) for field in opened.schema}
        assert kinds == {"i": "double", "s": "string", "n": "int64", "b": "string", "f": "double", "d": "string"}
        assert opened.read(start=600_000).to_pylist() == [
            {"i": 1.5, "s": "zz", "n": 7, "b": "maybe", "f": 0.5, "d": "soon"}
        ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiters_quotes_and_missing_values(tmp_path: Path, delimiter: str) -> None:
    path = tmp_path / "x.csv"
    rows = [["a", "b", "c"], ["1", '"x, y;\nz"', ""], ["", "NA", "2.5"]]
    path.write_text("\n".join(delimiter.join(row) for row in rows) + "\n")
    with open_table(path) as opened:
        assert opened.read().to_pylist() == [
            {"a": 1, "b": "x, y;\nz", "c": None},
            {"a": None, "b": None, "c": 2.5},
        ]


def test_a_compressed_csv_and_one_with_a_mark(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "x.csv.gz", "wb") as file:
        file.write(b"a,b\n1,2\n")
    (tmp_path / "bom.csv").write_bytes(b"\xef\xbb\xbfa,b\n1,2\n")
    for name in ("x.csv.gz", "bom.csv"):
        with open_table(tmp_path / name) as opened:
            assert opened.read().to_pylist() == [{"a": 1, "b": 2}]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"a,b\n", "no rows"),
        (b"a,b\n1,2\n1,2,3\n", "Expected 2 columns, got 3"),
        (b"a,a\n1,2\n", "two columns are called 'a'"),
        (b"PAR1 and then nothing of the kind", "Parquet"),
        (bytes(range(256)), "neither Parquet nor UTF-8"),
        (b"a,b\n\0,\0\n", "zero bytes"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 100, "neither Parquet nor UTF-8"),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "wrong.csv"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        open_table(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_file_a_folder_and_a_truncated_parquet(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file"):
        open_table(tmp_path / "nothing.csv")
    with pytest.raises(DataError, match="is a folder"):
        open_table(tmp_path)
    whole = files.parquet(files.loans(200), tmp_path / "x.parquet")
    whole.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"x\.parquet"):
        open_table(whole)


def test_a_damaged_page_is_one_line(tmp_path: Path) -> None:
    path = files.parquet(files.loans(2000), tmp_path / "x.parquet")
    data = bytearray(path.read_bytes())
    data[100:400] = os.urandom(300)
    path.write_bytes(bytes(data))
    with open_table(path) as opened, pytest.raises((DataError, OSError)):
        opened.read()


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    with open_table(files.parquet(files.digits(10), tmp_path / "x.parquet")) as opened:
        with pytest.raises(DataError, match="no column 'kinds'; did you mean 'kind'"):
            opened.require("kinds")
        with pytest.raises(DataError, match="it has 'x', 'y', 'shape', 'kind'"):
            opened.read(["zzz"])


def test_temporary_files_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    path = files.csv(files.loans(50), tmp_path / "x.csv")
    with open_table(path, time="opened"):
        assert list((tmp_path / "temporary").iterdir())
    assert not list((tmp_path / "temporary").iterdir())
    (tmp_path / "bad.csv").write_text("a,b\n1\n")
    with pytest.raises(DataError):
        open_table(tmp_path / "bad.csv")
    assert not list((tmp_path / "temporary").iterdir())


NOON = datetime(2013, 1, 31, 12, tzinfo=UTC)
NOON_US = int(NOON.timestamp()) * 1_000_000


@pytest.mark.parametrize(
    "array",
    [
        pa.array(["2013-01-31 12:00:00", None]),
        pa.array(["2013-01-31T12:00:00Z", None]),
        pa.array(["2013-01-31T14:00:00+02:00", None]),
        pa.array([NOON, None], pa.timestamp("ns", "America/New_York")),
        pa.array([NOON.replace(tzinfo=None), None], pa.timestamp("s")),
        pa.array([NOON_US // 10**6, None]),
        pa.array([NOON_US / 10**6, float("nan")]),
        pa.array([NOON_US // 1000, None]),
        pa.array([NOON_US, None]),
        pa.array([NOON_US * 1000, None]),
        pa.array(["2013-01-31 12:00:00", None]).dictionary_encode(),
    ],
    ids=lambda array: str(array.type),
)
def test_times_of_every_kind(array: Any) -> None:
    assert times_of(array, "t").tolist() == [NOON_US, MISSING]


def test_dates_and_what_is_no_time() -> None:
    day = [NOON_US - 12 * files.HOUR_US]
    assert times_of(pa.array([NOON.date()]), "t").tolist() == day
    assert times_of(pa.array(["2013-01-31"]), "t").tolist() == day
    with pytest.raises(DataError, match=r"column .t.: expected times .* came .soon."):
        times_of(pa.array(["2013-01-31", "soon"]), "t")
    with pytest.raises(DataError, match="expected times, came bool"):
        times_of(pa.array([True]), "t")


def test_a_row_without_a_time(tmp_path: Path) -> None:
    path = files.csv(pa.table({"t": pa.array([1, None, 3]), "x": [1, 2, 3]}), tmp_path / "x.csv")
    with pytest.raises(DataError, match="column 't': row 2 has no time"):
        open_table(path, time="t")
