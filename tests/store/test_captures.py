"""The capture writer: what is offered comes back as it was, in bounds, whatever a crash left behind."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from trimtab.store import segments as segments_module
from trimtab.store.captures import CaptureWriter
from trimtab.store.errors import DiskFull, SegmentGone, StoreError
from trimtab.store.ids import new_request_id
from trimtab.store.sampling import hash_unit
from trimtab.store.segment import INDEX, SegmentInfo, read_segment, sealed_segments
from trimtab.store.settings import CaptureSettings

from .rows import SCHEMA, Rows, columns, make_rows

# Nothing by itself: these tests flush and seal when they want to.
QUIET: dict[str, Any] = {"flush_seconds": 3600.0, "seal_seconds": 3600.0}
Make = Callable[..., CaptureWriter]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    writers = []

    def factory(
        *, width: int = 1, lockstep: bool = False, on_damage: Any = None, on_sealed: Any = None, **settings: Any
    ) -> CaptureWriter:
        policy = CaptureSettings(**(QUIET | settings))
        writer = CaptureWriter(
            tmp_path / "captures", SCHEMA, width, policy, lockstep=lockstep, on_damage=on_damage, on_sealed=on_sealed
        )
        writers.append(writer)
        return writer

    yield factory
    for writer in writers:
        writer.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "captures"


def stored(folder: Path) -> pa.Table:
    return pa.concat_tables([read_segment(folder, info) for info in sealed_segments(folder)])


def stored_ids(folder: Path) -> list[bytes]:
    return [
        value for info in sealed_segments(folder) for value in read_segment(folder, info)["_request_id"].to_pylist()
    ]


def test_rows_come_back_as_received(make: Make, folder: Path) -> None:
    writer = make()
    rows = make_rows(200, seed=1, time_us=1_356_998_400_000_000)
    rows.rows[:] = np.arange(200)
    rows.offer(writer, version=7)
    assert writer.seal() == 200
    table = stored(folder)
    assert table.drop_columns([name for name in table.column_names if name.startswith("_")]).to_pydict() == columns(
        200, 1
    )
    assert table["_request_id"].to_pylist() == rows.ids()
    assert table["_row"].to_pylist() == list(range(200))
    assert table["_time"].cast(pa.int64()).to_pylist() == rows.time_us.tolist()
    assert set(table["_version"].to_pylist()) == {7}
    assert set(table["_inclusion"].to_pylist()) == {1.0}
    assert np.array_equal(table["_prediction"].to_numpy(), rows.predictions[:, 0])
    assert [str(table.schema.field(name).type) for name in ("_request_id", "_time", "_prediction")] == [
        "fixed_size_binary[16]",
        "timestamp[us, tz=UTC]",
        "float",
    ]


@pytest.mark.parametrize("rate", [1.0, 0.4], ids=["all kept", "some kept"])
def test_requests_of_several_rows_come_back_as_their_rows(make: Make, folder: Path, rate: float) -> None:
    writer = make(sample="rate", rate=rate)
    counts = np.array([3, 1, 60, 7, 2, 120, 1, 6], np.int32)
    rows = make_rows(200, seed=1)
    first = np.cumsum(counts) - counts
    times = rows.time_us[first]
    # Which are kept is up to their ids: these are as random as the issued ones, and the same in every run.
    ids = np.random.default_rng(4).integers(0, 256, (len(counts), 16), np.uint8)
    writer.offer_requests(rows.slab, ids, counts, times, 7, rows.predictions)
    writer.seal()
    owners = np.repeat(np.arange(len(counts)), counts)
    kept = np.flatnonzero(hash_unit(ids)[owners] < rate)
    assert 0 < len(kept) <= 200
    assert (len(kept) == 200) == (rate == 1.0)
    table = stored(folder)
    assert table["_request_id"].to_pylist() == [ids[owner].tobytes() for owner in owners[kept]]
    assert table["_row"].to_pylist() == (np.arange(200) - first[owners])[kept].tolist()
    assert table["_time"].cast(pa.int64()).to_pylist() == times[owners][kept].tolist()
    assert table["flight"].to_pylist() == [columns(200, 1)["flight"][row] for row in kept]
    assert np.array_equal(table["_prediction"].to_numpy(), rows.predictions[kept, 0])
    assert writer.stats().sampled_out == 200 - len(kept)


def test_several_outputs_are_a_list(make: Make, folder: Path) -> None:
    writer = make(width=3)
    rows = make_rows(10, width=3)
    rows.offer(writer)
    writer.seal()
    assert np.array_equal(np.array(stored(folder)["_prediction"].to_pylist(), np.float32), rows.predictions)


def test_sealed_files_are_plain_arrow(make: Make, folder: Path) -> None:
    writer = make()
    make_rows(50).offer(writer)
    writer.seal()
    (path,) = folder.glob("*.arrow")
    frame = pd.read_feather(path)
    assert len(frame) == 50
    assert str(frame["_time"].dtype) == "datetime64[us, UTC]"
    assert frame["distance"].isna().any()
    with pa.memory_map(str(path)) as source:
        assert pa.ipc.open_file(source).read_all().num_rows == 50


def test_a_part_of_a_batch(make: Make, folder: Path) -> None:
    writer = make()
    rows = make_rows(20)
    rows.offer(writer, start=5, stop=9)
    rows.offer(writer, start=18)
    writer.seal()
    assert stored_ids(folder) == [*rows.ids()[5:9], *rows.ids()[18:]]
    assert stored(folder)["distance"].to_pylist() == columns(20, 0)["distance"][5:9] + columns(20, 0)["distance"][18:]


def test_the_caller_may_reuse_everything(make: Make, folder: Path) -> None:
    writer = make()
    rows = make_rows(20)
    ids = rows.ids()
    rows.offer(writer)
    rows.slab.clear()
    for array in (rows.rows, rows.time_us, rows.predictions):
        array[:] = 99
    writer.seal()
    assert stored_ids(folder) == ids
    assert stored(folder)["distance"].to_pylist() == columns(20, 0)["distance"]
    assert 99 not in stored(folder)["_row"].to_pylist()


def test_sampled_rows_are_the_ones_that_are_stored(make: Make, folder: Path) -> None:
    writer = make(sample="rate", rate=0.5)
    rows = make_rows(400)
    rows.offer(writer, start=100)
    stats = writer.stats()
    writer.seal()
    assert stats.rows + stats.sampled_out == 300
    table = stored(folder)
    assert table.num_rows == stats.rows
    distance = dict(zip(rows.ids(), columns(400, 0)["distance"], strict=True))
    assert [distance[value] for value in table["_request_id"].to_pylist()] == table["distance"].to_pylist()
    assert not set(table["_request_id"].to_pylist()) & set(rows.ids()[:100])
    assert set(table["_inclusion"].to_pylist()) == {0.5}


def test_wrong_shapes_are_refused(make: Make) -> None:
    writer = make()
    rows = make_rows(5)
    rows.predictions = np.zeros((5, 2), np.float32)
    with pytest.raises(ValueError, match=r"expected predictions \[n, 1\], got \[5, 2\]"):
        rows.offer(writer)
    rows.predictions = np.zeros(5, np.float32)
    rows.offer(writer)
    rows.rows = rows.rows[:4]
    with pytest.raises(ValueError, match="arrays of the slab's 5 rows"):
        rows.offer(writer)


def test_flush_and_seal_thresholds(make: Make, folder: Path) -> None:
    sealed: list[SegmentInfo] = []
    done = threading.Event()

    def on_sealed(info: SegmentInfo) -> None:
        sealed.append(info)
        # What may stay behind: less than a flush unwritten, and less than a segment unsealed.
        if sum(entry.rows for entry in sealed) > 310 - 50 - 100:
            done.set()

    writer = make(flush_rows=50, seal_rows=100, on_sealed=on_sealed, lockstep=True)
    for seed in range(31):
        make_rows(10, seed).offer(writer)
    assert done.wait(30)
    assert sealed == sealed_segments(folder)
    assert all(info.rows >= 100 for info in sealed)
    assert writer.stats().dropped == 0


def test_rows_are_sealed_by_age(make: Make, folder: Path) -> None:
    done = threading.Event()
    writer = make(flush_seconds=0.01, seal_seconds=0.02, on_sealed=lambda info: done.set())
    make_rows(3).offer(writer)
    assert done.wait(30)
    assert len(stored_ids(folder)) == 3


def test_what_finds_no_room_is_dropped_and_counted(make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer is held up at the disk; offer neither waits nor keeps more than it may."""
    arrived, leave = threading.Event(), threading.Event()
    original = segments_module.SegmentFolder.write

    def slow(self: Any, batch: pa.RecordBatch) -> None:
        arrived.set()
        assert leave.wait(30)
        original(self, batch)

    monkeypatch.setattr(segments_module.SegmentFolder, "write", slow)
    writer = make(flush_rows=10)
    make_rows(10).offer(writer)
    assert arrived.wait(30)
    for seed in range(10):
        make_rows(9, seed).offer(writer)
    stats = writer.stats()
    assert (stats.rows, stats.dropped, stats.pending) == (50, 50, 40)
    leave.set()
    assert writer.seal() == 50
    assert len(stored_ids(folder)) == 50


def test_lockstep_waits_for_room_and_drops_nothing(make: Make, folder: Path) -> None:
    writer = make(flush_rows=4, lockstep=True, max_rows_per_second=1)
    ids = []
    for seed in range(40):
        rows = make_rows(37, seed)
        ids += rows.ids()
        rows.offer(writer)
    writer.seal()
    assert writer.stats().dropped == 0
    assert stored_ids(folder) == ids


def test_sealing_nothing_makes_no_file(make: Make, folder: Path) -> None:
    writer = make()
    assert writer.seal() == 0
    assert sealed_segments(folder) == []


def test_only_one_process_writes(make: Make) -> None:
    make()
    with pytest.raises(StoreError, match="in use by another process"):
        make()


def test_a_closed_writer(make: Make, folder: Path) -> None:
    writer = make()
    rows = make_rows(5)
    rows.offer(writer)
    writer.close()
    writer.close()
    assert stored_ids(folder) == rows.ids()
    rows.offer(writer)
    assert writer.stats().dropped == 5
    with pytest.raises(StoreError, match="closed"):
        writer.seal()


def test_numbering_goes_on_after_a_restart(make: Make, folder: Path) -> None:
    for seed in range(3):
        writer = make()
        make_rows(5, seed).offer(writer)
        writer.close()
    assert [info.sequence for info in sealed_segments(folder)] == [1, 2, 3]


# --- retention and forgetting ---


def test_the_oldest_segments_go_and_readers_notice(make: Make, folder: Path) -> None:
    writer = make(max_rows=25)
    listed: list[SegmentInfo] = []
    for seed in range(5):
        make_rows(10, seed).offer(writer)
        writer.seal()
        listed = listed or sealed_segments(folder)
    assert [info.sequence for info in sealed_segments(folder)] == [4, 5]
    assert sorted(path.name for path in folder.glob("*.arrow")) == ["000000000004.arrow", "000000000005.arrow"]
    with pytest.raises(SegmentGone):
        read_segment(folder, listed[0])
    stats = writer.stats()
    assert (stats.stored_rows, stats.segments) == (20, 2)
    assert stats.bytes == sum(info.bytes for info in sealed_segments(folder))


def test_old_rows_go_by_the_datas_own_time(make: Make, folder: Path) -> None:
    writer = make(max_age="1h")
    for hours in (0, 1, 3):
        make_rows(5, time_us=hours * 3_600_000_000).offer(writer)
        writer.seal()
    assert [info.sequence for info in sealed_segments(folder)] == [3]


def test_the_index_is_rewritten_when_most_of_it_is_gone(
    make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments_module, "_INDEX_SLACK", 10)
    writer = make(max_rows=10)
    for seed in range(30):
        make_rows(5, seed).offer(writer)
        writer.seal()
        assert len(sealed_segments(folder)) <= 2
    assert len((folder / INDEX).read_bytes().splitlines()) < 25
    writer.close()
    writer = make()
    make_rows(1).offer(writer)
    writer.seal()
    assert [info.sequence for info in sealed_segments(folder)] == [29, 30, 31]


def test_forgetting_takes_rows_out_everywhere(make: Make, folder: Path) -> None:
    writer = make()
    batches = [make_rows(10, seed) for seed in range(4)]
    for rows in batches[:3]:
        rows.offer(writer)
        writer.seal()
    batches[3].offer(writer)
    listed = sealed_segments(folder)
    wanted = [batches[0].ids()[3], batches[0].ids()[4], *batches[1].ids(), batches[3].ids()[0]]
    assert writer.forget([*wanted, new_request_id()]) == 13
    left = [value for rows in batches for value in rows.ids() if value not in wanted]
    assert stored_ids(folder) == left
    assert [info.name for info in sealed_segments(folder)] == [
        "000000000001.1.arrow",
        "000000000003.arrow",
        "000000000004.1.arrow",
    ]
    assert sorted(path.name for path in folder.glob("*.arrow")) == [info.name for info in sealed_segments(folder)]
    with pytest.raises(SegmentGone):
        read_segment(folder, listed[0])
    on_disk = b"".join(path.read_bytes() for path in folder.iterdir() if path.suffix in (".arrow", ".open"))
    assert not any(value in on_disk for value in wanted)
    assert writer.stats().stored_rows == len(left)
    assert writer.forget(wanted) == 0


def test_forgetting_removes_a_segment_that_cannot_be_read(make: Make, folder: Path) -> None:
    damages: list[str] = []
    writer = make(on_damage=damages.append)
    rows = make_rows(10)
    rows.offer(writer)
    writer.seal()
    path = folder / sealed_segments(folder)[0].name
    path.write_bytes(path.read_bytes()[:-1])
    assert writer.forget([rows.ids()[0]]) == 0
    assert sealed_segments(folder) == []
    assert not path.exists()
    assert len(damages) == 1
    assert "deleted, since rows to be forgotten may be in it" in damages[0]


# --- what a crash left ---


def abandon(folder: Path, batches: list[Rows]) -> bytes:
    """An open segment with a frame per batch, as a killed writer leaves it; its bytes."""
    writer = CaptureWriter(folder, SCHEMA, 1, CaptureSettings(**QUIET))
    for rows in batches:
        rows.offer(writer)
        writer.flush()
    (path,) = folder.glob("*.open")
    data = path.read_bytes()
    writer.close()
    for sealed in folder.glob("*.arrow"):
        sealed.unlink()
    (folder / INDEX).unlink()
    path.write_bytes(data)
    return data


@pytest.mark.parametrize("cut", [0, 1, 100])
def test_an_open_segment_is_sealed_at_the_next_start(make: Make, folder: Path, cut: int) -> None:
    batches = [make_rows(10, seed) for seed in range(3)]
    data = abandon(folder, batches)
    (folder / "000000000001.open").write_bytes(data[: len(data) - cut])
    damages: list[str] = []
    writer = make(on_damage=damages.append)
    whole = batches if cut == 0 else batches[:2]
    assert stored_ids(folder) == [value for rows in whole for value in rows.ids()]
    assert list(folder.glob("*.open")) == []
    assert writer.stats().damaged == len(damages) == (cut > 0)
    assert not cut or "torn frame" in damages[0]
    make_rows(4).offer(writer)
    assert writer.seal() == 4
    assert sealed_segments(folder)[-1].sequence == 2


def test_an_open_segment_that_was_sealed_already_is_not_sealed_twice(make: Make, folder: Path) -> None:
    data = abandon(folder, [make_rows(10)])
    make().close()
    (folder / "000000000001.open").write_bytes(data)
    make()
    assert len(stored_ids(folder)) == 10
    assert list(folder.glob("*.open")) == []


def test_a_sealed_file_that_was_not_listed_yet_is_listed(make: Make, folder: Path) -> None:
    data = abandon(folder, [make_rows(10)])
    make().close()
    (folder / INDEX).unlink()
    (folder / "000000000001.open").write_bytes(data)
    assert make().stats().damaged == 0
    assert len(stored_ids(folder)) == 10
    assert list(folder.glob("*.open")) == []


def test_an_unlisted_file_that_is_no_segment_is_deleted_and_reported(make: Make, folder: Path) -> None:
    folder.mkdir()
    (folder / "000000000001.arrow").write_bytes(b"half a fi")
    (folder / ".000000000002.arrow.tmp").write_bytes(b"half a fi")
    damages: list[str] = []
    make(on_damage=damages.append)
    assert len(damages) == 1
    assert "unlisted and not whole" in damages[0]
    assert sorted(path.name for path in folder.iterdir()) == [".lock"]


def test_leftovers_of_deletion_and_rewriting_are_deleted(make: Make, folder: Path) -> None:
    writer = make()
    for seed in range(2):
        make_rows(10, seed).offer(writer)
        writer.seal()
    writer.close()
    first, second = sealed_segments(folder)
    (folder / "000000000001.1.arrow").write_bytes((folder / first.name).read_bytes())
    text = (folder / INDEX).read_text().splitlines()
    (folder / INDEX).write_text("\n".join([*text, '{"remove":["000000000002.arrow"],"why":"retention"}']) + "\n")
    assert make().stats().damaged == 0
    assert sorted(path.name for path in folder.glob("*.arrow")) == [first.name]
    assert second not in sealed_segments(folder)


def test_a_listed_file_that_is_gone_is_reported(make: Make, folder: Path) -> None:
    writer = make()
    make_rows(10).offer(writer)
    writer.close()
    (folder / "000000000001.arrow").unlink()
    damages: list[str] = []
    make(on_damage=damages.append)
    assert "sealed segments are gone: 000000000001.arrow" in damages[0]
    assert sealed_segments(folder) == []


def test_a_torn_index_line_costs_nothing(make: Make, folder: Path) -> None:
    writer = make()
    for seed in range(2):
        make_rows(10, seed).offer(writer)
        writer.seal()
    writer.close()
    data = (folder / INDEX).read_bytes()
    (folder / INDEX).write_bytes(data[:-9])
    make()
    assert len(stored_ids(folder)) == 20


# --- a disk that is full, by fault injection (test_full_disk.py has a real one) ---


def test_a_full_disk_drops_and_counts_then_recovers(make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = make(flush_rows=10, seal_rows=10_000)
    make_rows(5).offer(writer)
    writer.flush()

    def full(*_: object) -> None:
        raise DiskFull("cannot write: no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("trimtab.store.frames.FrameFile.append", full)
        patch.setattr(segments_module, "write_new", full)
        make_rows(7).offer(writer)
        writer.flush()
        stats = writer.stats()
        assert (stats.rows, stats.dropped, stats.stored_rows) == (5, 7, 5)
        assert stats.error == "cannot write: no space left on device"
        with pytest.raises(DiskFull):
            writer.seal()
    make_rows(3).offer(writer)
    assert writer.seal() == 8
    assert writer.stats().error == ""
    assert len(stored_ids(folder)) == 8


def test_a_seal_whose_cleaning_up_fails_is_still_a_seal(
    make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = make(max_rows=10)
    make_rows(8).offer(writer)
    writer.flush()

    def full(*_: object) -> None:
        raise DiskFull("cannot append: no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(segments_module.SegmentFolder, "_expire", full)
        make_rows(8, 1).offer(writer)
        assert writer.seal() == 16
    assert writer.seal() == 0
    assert len(stored_ids(folder)) == len(set(stored_ids(folder))) == 16
    make_rows(4, 2).offer(writer)
    writer.seal()
    assert len(stored_ids(folder)) == 4


def test_in_lockstep_a_full_disk_does_not_hang(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = make(flush_rows=2, lockstep=True)

    def full(*_: object) -> None:
        raise DiskFull("cannot write: no space left on device")

    monkeypatch.setattr(segments_module.SegmentFolder, "write", full)
    for seed in range(20):
        make_rows(50, seed).offer(writer)
    writer.flush()
    stats = writer.stats()
    assert stats.rows == 0
    assert stats.dropped == 1000
