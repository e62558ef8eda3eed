"""The index of sealed segments, as readers in other processes see it."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimtab.store.errors import SegmentDamaged, SegmentGone, StoreError
from trimtab.store.segment import INDEX, SegmentIndex, SegmentInfo, index_line, read_segment, sealed_segments


def info(sequence: int, generation: int = 0) -> SegmentInfo:
    middle = f".{generation}" if generation else ""
    return SegmentInfo(
        f"{sequence:012d}{middle}.arrow", 5, 100, "ab" * 32, sequence, sequence + 1, bytes(16), b"\xff" * 16
    )


def write(folder: Path, *lines: str, mode: str = "a") -> None:
    with open(folder / INDEX, mode) as file:
        file.writelines(f"{line}\n" for line in lines)


def test_no_index_has_no_segments(tmp_path: Path) -> None:
    assert sealed_segments(tmp_path) == []
    assert sealed_segments(tmp_path / "none") == []


def test_an_entry_reads_back() -> None:
    assert SegmentInfo.from_dict(info(42, 3).to_dict()) == info(42, 3)
    assert (info(42, 3).sequence, info(42, 3).generation, info(42).generation) == (42, 3, 0)


def test_additions_and_removals_are_seen_as_they_come(tmp_path: Path) -> None:
    index = SegmentIndex(tmp_path)
    assert index.refresh().added == []
    write(tmp_path, index_line(add=info(1)), index_line(add=info(2)))
    assert index.refresh().added == [info(1), info(2)]
    write(tmp_path, index_line(remove=[info(1).name], why="retention"), index_line(add=info(3)))
    changes = index.refresh()
    assert (changes.added, changes.removed) == ([info(3)], [info(1)])
    assert index.segments() == [info(2), info(3)]
    assert index.last_sequence == 3


def test_a_rewritten_segment_keeps_its_place(tmp_path: Path) -> None:
    write(tmp_path, *(index_line(add=info(i)) for i in (1, 2, 3)))
    write(tmp_path, index_line(add=info(2, 1), remove=[info(2).name], why="forgotten"))
    assert sealed_segments(tmp_path) == [info(1), info(2, 1), info(3)]


def test_a_torn_last_line_is_not_there_yet(tmp_path: Path) -> None:
    line = index_line(add=info(2))
    write(tmp_path, index_line(add=info(1)))
    with open(tmp_path / INDEX, "a") as file:
        file.write(line[:20])
    assert sealed_segments(tmp_path) == [info(1)]
    with open(tmp_path / INDEX, "a") as file:
        file.write(line[20:] + "\n")
    assert sealed_segments(tmp_path) == [info(1), info(2)]


def test_a_first_line_that_is_torn(tmp_path: Path) -> None:
    line = index_line(add=info(1))
    (tmp_path / INDEX).write_text(line[:30])
    assert sealed_segments(tmp_path) == []
    (tmp_path / INDEX).write_text(line + "\n")
    assert sealed_segments(tmp_path) == [info(1)]


@pytest.mark.parametrize("line", ["nonsense", "[]", "1", '{"add": {}}', '{"add": 1}', '{"remove": 1}', "\x80\x04."])
def test_a_broken_line_is_named(tmp_path: Path, line: str) -> None:
    write(tmp_path, index_line(add=info(1)), line)
    with pytest.raises(StoreError, match=rf"{INDEX}: line 2 is no line of a segment index"):
        sealed_segments(tmp_path)


def test_a_name_that_leads_elsewhere(tmp_path: Path) -> None:
    write(tmp_path, index_line(add=info(1)).replace("000000000001.arrow", "../000000000001.arrow"))
    with pytest.raises(StoreError, match="segment name"):
        sealed_segments(tmp_path)


@given(st.lists(st.integers(0, 5), max_size=60))
def test_a_rewritten_index_says_the_same(tmp_path_factory: pytest.TempPathFactory, steps: list[int]) -> None:
    """Additions (0-2), removals of the oldest (3), rewritings (4), compactions (5), and a reader that follows."""
    folder = tmp_path_factory.mktemp("index")
    writer, reader = SegmentIndex(folder), SegmentIndex(folder)
    live: list[SegmentInfo] = []
    seen: list[SegmentInfo] = []
    sequence = 0
    for step in steps:
        if step <= 2:
            sequence += 1
            live.append(info(sequence))
            write(folder, index_line(add=live[-1]))
        elif step == 3 and live:
            write(folder, index_line(remove=[live.pop(0).name], why="retention"))
        elif step == 4 and live:
            old, live[0] = live[0], info(live[0].sequence, live[0].generation + 1)
            write(folder, index_line(add=live[0], remove=[old.name], why="forgotten"))
        elif step == 5:
            writer.refresh()
            aside = folder / "aside"
            aside.write_text(writer.compacted())
            aside.rename(folder / INDEX)
            assert writer.last_sequence == sequence
        if step % 2:
            changes = reader.refresh()
            seen = [entry for entry in seen if entry not in changes.removed] + changes.added
            assert sorted(seen, key=lambda entry: entry.sequence) == live == reader.segments()
    fresh = SegmentIndex(folder)
    fresh.refresh()
    assert fresh.segments() == live
    assert fresh.last_sequence == sequence


def test_files_that_are_not_what_was_listed(tmp_path: Path) -> None:
    with pytest.raises(SegmentGone, match="list again"):
        read_segment(tmp_path, info(1))
    path = tmp_path / info(1).name
    path.write_bytes(b"ARROW1\0\0 not really")
    with pytest.raises(SegmentDamaged, match="expected sha256 abababab"):
        read_segment(tmp_path, info(1))
    with pytest.raises(SegmentDamaged, match="is not an Arrow file"):
        read_segment(tmp_path, info(1), verify=False)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, pa.schema([("x", pa.int8())])) as writer:
        writer.write_table(pa.table({"x": pa.array([1, 2], pa.int8())}))
    with pytest.raises(SegmentDamaged, match="expected 5 rows, found 2"):
        read_segment(tmp_path, info(1), verify=False)
    path.unlink()
    path.symlink_to("/etc/hostname")
    with pytest.raises(SegmentDamaged, match="cannot be read"):
        read_segment(tmp_path, info(1))
