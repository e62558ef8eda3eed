"""A disk that is really full: writing ends in one clear line or a counter, what was there stays, and it goes on after.

A small tmpfs where the tests may mount one; everywhere, a limit on file sizes in a process of its own.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from trimtab.store.captures import CaptureWriter
from trimtab.store.errors import DiskFull
from trimtab.store.files import append_line, read_lines, write_atomic
from trimtab.store.ids import new_request_id
from trimtab.store.labels import LabelReader, LabelRow, LabelStore, Outcome
from trimtab.store.segment import read_segment, sealed_segments
from trimtab.store.settings import CaptureSettings
from trimtab.store.versions import Manifest, VersionStore

from .rows import SCHEMA, make_rows


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, leave: int = 0) -> Path:
    """Takes all space but `leave` bytes."""
    path = folder / "filler"
    with open(path, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
        file.truncate(max(0, file.tell() - leave))
    return path


def test_captures_drop_and_count_and_recover(small_disk: Path) -> None:
    folder = small_disk / "captures"
    writer = CaptureWriter(folder, SCHEMA, 1, CaptureSettings(flush_seconds=3600.0, seal_seconds=3600.0))
    first = make_rows(100)
    first.offer(writer)
    writer.seal()
    filler = fill(small_disk)
    make_rows(5000, 1).offer(writer)
    writer.flush()
    stats = writer.stats()
    assert (stats.rows, stats.dropped) == (100, 5000)
    assert "no space left on device" in stats.error
    make_rows(50, 2).offer(writer)
    with pytest.raises(DiskFull, match=r"cannot write .*captures.*: no space left on device; free some space"):
        writer.seal()
    filler.unlink()
    last = make_rows(10, 3)
    last.offer(writer)
    writer.seal()
    stats = writer.stats()
    assert stats.error == ""
    assert stats.rows + stats.dropped == 5160
    writer.close()
    stored = [
        value for info in sealed_segments(folder) for value in read_segment(folder, info)["_request_id"].to_pylist()
    ]
    assert len(stored) == stats.rows
    assert set(stored) >= {*first.ids(), *last.ids()}


def test_labels_are_refused_whole_and_accepted_later(small_disk: Path) -> None:
    store = LabelStore(small_disk / "labels.sqlite")
    kept = [LabelRow(new_request_id(), 0, None, "", 1.0, 1.0, 5, "") for _ in range(10)]
    store.submit(kept).result(30)
    filler = fill(small_disk)
    many = [LabelRow(new_request_id(), 0, None, "", "x" * 1000, 1.0, 5, "") for _ in range(500)]
    with pytest.raises(DiskFull, match=r"cannot write .*labels.sqlite: the disk is full"):
        store.submit(many).result(30)
    assert store.count() == 10
    filler.unlink()
    assert store.submit(many).result(30) == [Outcome.ACCEPTED] * 500
    store.close()
    reader = LabelReader(small_disk / "labels.sqlite")
    assert len(reader.since(0)) == 510
    reader.close()


def test_versions_and_logs_stay_whole(small_disk: Path) -> None:
    store = VersionStore(small_disk / "versions")
    assert store.allocate("w") == 1
    write_atomic(small_disk / "live.json", b"old")
    append_line(small_disk / "log", "one")
    fill(small_disk, leave=4096)
    with pytest.raises(DiskFull, match=r"cannot write version .*versions/1: no space left"):
        store.publish(1, {"weights.safetensors": bytes(1 << 20)}, Manifest(version=1))
    assert store.numbers() == []
    with pytest.raises(DiskFull):
        write_atomic(small_disk / "live.json", bytes(1 << 20))
    with pytest.raises(DiskFull):
        append_line(small_disk / "log", "x" * (1 << 20))
    assert (small_disk / "live.json").read_bytes() == b"old"
    assert read_lines(small_disk / "log") == [b"one"]


def test_a_limit_on_file_sizes(tmp_path: Path) -> None:
    """In a process of its own, since the limit is a process's. The script prints what each part ended in."""
    script = textwrap.dedent(
        f"""
        import resource, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        import rows
        from trimtab.store.captures import CaptureWriter
        from trimtab.store.errors import StoreError
        from trimtab.store.ids import new_request_id
        from trimtab.store.labels import LabelRow, LabelStore
        from trimtab.store.settings import CaptureSettings
        folder = Path({str(tmp_path)!r})
        writer = CaptureWriter(folder / "captures", rows.SCHEMA, 1, CaptureSettings(flush_seconds=3600.0))
        store = LabelStore(folder / "labels.sqlite")
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        rows.make_rows(10_000).offer(writer)
        writer.flush()
        print(writer.stats().dropped)
        try:
            store.submit(
                [LabelRow(new_request_id(), 0, None, "", "x" * 1000, 1.0, 5, "") for _ in range(1000)]
            ).result()
        except StoreError as error:
            print(type(error).__name__, error)
        store.close()
        writer.close()
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    dropped, refused = done.stdout.splitlines()
    assert dropped == "10000"
    assert "labels.sqlite" in refused
    assert "Traceback" not in done.stderr
