"""Sketches of windows on disk, and what damage does to them."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimtab.kernels.errors import SketchError
from trimtab.kernels.sketch import Sketch
from trimtab.kernels.sketch_spec import RealField, SketchSpec
from trimtab.store.errors import StoreError, WindowDamaged, WindowUnknown
from trimtab.store.kept_windows import KeptWindow, WindowFolder, read_sketch_file, sketch_file
from trimtab.store.windows import window_start, window_starts

SPEC = SketchSpec((RealField("x", (0.5,), 0.0, 1.0),), (0.25, 0.5, 0.75))


def sketch(seed: int, spec: SketchSpec = SPEC, rows: int = 50) -> Sketch:
    made = Sketch(spec)
    made.add_predictions(np.random.default_rng(seed).random(rows, np.float32))
    made.counts[0] = rows
    return made


def window(number: int, hour: int | None = None) -> KeptWindow:
    start = (number if hour is None else hour) * 100
    return KeptWindow(number, start, start + 100, 50, 3)


@pytest.fixture
def folder(tmp_path: Path) -> WindowFolder:
    made = WindowFolder(tmp_path / "drift", 5)
    for number in range(1, 6):
        made.add(window(number), sketch(number))
    return made


def test_what_was_added_is_there_for_another_process(folder: WindowFolder) -> None:
    again = WindowFolder(folder.directory)
    assert again.numbers() == [1, 2, 3, 4, 5]
    assert again.load(3) == (window(3), sketch(3))


def test_a_kept_window_is_a_sketch_for_any_reader(folder: WindowFolder) -> None:
    assert Sketch.from_bytes((folder.directory / "00000002.arrow").read_bytes()) == sketch(2)


def test_the_oldest_go_by_number_and_by_bytes(folder: WindowFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.add(window(6), sketch(6))
    assert folder.numbers() == [2, 3, 4, 5, 6]
    size = (folder.directory / "00000006.arrow").stat().st_size
    monkeypatch.setattr("trimtab.store.kept_windows._MOST_BYTES", 2 * size + size // 2)
    folder.add(window(7), sketch(7))
    assert folder.numbers() == [6, 7]
    monkeypatch.setattr("trimtab.store.kept_windows._MOST_BYTES", 1)
    folder.add(window(8), sketch(8))
    assert folder.numbers() == [8]


def test_ranges_are_summed(folder: WindowFolder) -> None:
    wanted = Sketch(SPEC)
    for number in (2, 3, 4):
        wanted.merge(sketch(number))
    assert folder.merged(2, 4) == (3, wanted)
    assert folder.merged(5, 900) == (1, sketch(5))


def test_what_is_not_kept_is_said(folder: WindowFolder) -> None:
    with pytest.raises(WindowUnknown, match=r"windows 9-12 are not kept; 1 to 5 are"):
        folder.merged(9, 12)
    with pytest.raises(WindowUnknown, match=r"window 9 is not kept; 1 to 5 are"):
        folder.load(9)
    with pytest.raises(WindowUnknown, match="none is"):
        WindowFolder(folder.directory / "nowhere").merged(1, 1)


def test_windows_of_other_columns_are_not_summed(folder: WindowFolder) -> None:
    folder.add(window(6), sketch(6, SketchSpec((), (0.25,))))
    with pytest.raises(SketchError):
        folder.merged(5, 6)


def test_windows_within_a_span_of_time(folder: WindowFolder) -> None:
    folder.add(window(6, hour=3), sketch(6))
    assert [one.number for one in folder.between(300, 500)] == [3, 4, 6]
    assert [one.number for one in WindowFolder(folder.directory).between(300, 500)] == [3, 4, 6]
    assert folder.between(301, 400) == []


def test_damaged_windows_are_passed_over(folder: WindowFolder, caplog: pytest.LogCaptureFixture) -> None:
    (folder.directory / "00000003.arrow").write_bytes(b"nothing of the kind")
    (folder.directory / "00000004.arrow").write_bytes(sketch(4).to_bytes())
    again = WindowFolder(folder.directory)
    assert again.merged(1, 9)[0] == 3
    assert "00000003.arrow" in caplog.text
    assert [one.number for one in again.between(0, 1 << 60)] == [1, 2, 5]
    with pytest.raises(WindowDamaged, match="no notes of a drift window"):
        again.load(4)


@given(st.integers(0, 1 << 32))
def test_no_flipped_byte_gives_other_counts(seed: int) -> None:
    path = Path("/tmp") / f"trimtab-kept-{random.Random(seed).getrandbits(64):x}.arrow"
    data = bytearray(sketch_file(sketch(1), {}))
    place = seed % len(data)
    data[place] ^= 1 << (seed >> 29) % 8
    path.write_bytes(data)
    try:
        found, _ = read_sketch_file(path)
    except StoreError:
        return
    finally:
        path.unlink()
    # The spec's own text is not under the checksum, but then it is another spec, and fits nothing.
    assert found.counts.tobytes() == sketch(1).counts.tobytes()


def test_notes_do_not_change_a_sketch() -> None:
    made = sketch(9)
    with pa.ipc.open_file(pa.BufferReader(sketch_file(made, {"a": 1}))) as reader:
        assert b"trimtab.notes" in reader.schema.metadata
    assert Sketch.from_bytes(sketch_file(made, {"a": 1})) == made


@given(st.integers(-(1 << 59), 1 << 59), st.integers(1, 1 << 58))
def test_every_time_is_in_the_window_that_begins_before_it(time_us: int, length_us: int) -> None:
    start = window_start(time_us, length_us)
    assert start <= time_us < start + length_us
    assert (start - 4 * 86_400_000_000) % length_us == 0
    assert window_starts(np.array([time_us]), length_us).tolist() == [start]
