"""The open segment: whatever happens to its tail, whole frames before it come back and nothing else does."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trimtab.store.errors import StoreError
from trimtab.store.frames import FrameFile, recover

SCHEMA = pa.schema([pa.field("number", pa.int64()), pa.field("text", pa.utf8())])


def batch(i: int) -> pa.RecordBatch:
    numbers = list(range(i * 10, i * 10 + 3 + i))
    return pa.RecordBatch.from_pydict({"number": numbers, "text": [f"row {n}" for n in numbers]}, schema=SCHEMA)


@functools.cache
def written() -> tuple[bytes, tuple[int, ...]]:
    """An open segment of five frames, and where the file ended after each (the first: magic and schema)."""
    with tempfile.TemporaryDirectory() as folder:
        file = FrameFile(Path(folder) / "1.open", SCHEMA)
        ends = [file.size]
        for i in range(5):
            file.append(batch(i))
            ends.append(file.size)
        file.close()
        return file.path.read_bytes(), tuple(ends)


def whole_before(position: int) -> list[pa.RecordBatch]:
    """The batches whose frames end at or before a position."""
    ends = written()[1]
    return [batch(i) for i in range(5) if ends[i + 1] <= position and ends[0] <= position]


POSITIONS = st.integers(0, len(written()[0]) - 1)


def test_what_was_written_comes_back() -> None:
    found = recover(written()[0])
    assert found.damage == ""
    assert found.batches == [batch(i) for i in range(5)]


@given(POSITIONS)
@settings(max_examples=300)
def test_torn(position: int) -> None:
    data, ends = written()
    found = recover(data[:position])
    assert found.batches == whole_before(position)
    clean = position in (0, 8, *ends)
    assert (found.damage == "") == clean


@given(POSITIONS, st.integers(1, 5000))
@settings(max_examples=300)
def test_zeroed(position: int, length: int) -> None:
    data = bytearray(written()[0])
    zeroed = data[position : position + length]
    data[position : position + length] = bytes(len(zeroed))
    found = recover(bytes(data))
    if any(zeroed):
        first = position + next(i for i, byte in enumerate(zeroed) if byte)
        assert found.batches == whole_before(first)
        assert found.damage
    else:
        assert len(found.batches) == 5


@given(POSITIONS, st.integers(0, 7))
@settings(max_examples=300)
def test_flipped(position: int, bit: int) -> None:
    data = bytearray(written()[0])
    data[position] ^= 1 << bit
    found = recover(bytes(data))
    assert found.batches == whole_before(position)
    assert found.damage


@given(st.binary(min_size=1, max_size=200))
def test_a_tail_of_anything(tail: bytes) -> None:
    found = recover(written()[0] + tail)
    assert found.batches == [batch(i) for i in range(5)]
    assert found.damage


@given(st.binary(max_size=400))
def test_anything_at_all(data: bytes) -> None:
    recover(data)
    recover(b"TRIMTAB\x01" + data)


def test_a_frame_that_is_well_formed_but_no_batch() -> None:
    from trimtab.store.frames import _frame

    data = written()[0]
    found = recover(data + b"".join(_frame(pa.py_buffer(b"not a message at all"))))
    assert len(found.batches) == 5
    assert "not an Arrow message" in found.damage
    assert "\n" not in found.damage


def test_the_message_says_where_and_how_much() -> None:
    data, ends = written()
    assert recover(data[:-1]).damage == f"torn frame at byte {ends[4]}; {len(data) - 1 - ends[4]} bytes lost"


def test_a_file_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "1.open").write_bytes(b"mine")
    with pytest.raises(StoreError, match="file exists"):
        FrameFile(tmp_path / "1.open", SCHEMA)
    assert (tmp_path / "1.open").read_bytes() == b"mine"
