"""The files of a captures folder, from the writer's side: one open segment, sealed ones, the index, recovery, deletion.

Knows no threads: everything is called by the capture writer's one. See captures.py for the protocol of the files.
"""

from __future__ import annotations

import bisect
import fcntl
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from trimtab.store.errors import SegmentDamaged, StoreError
from trimtab.store.files import append_line, fsync_dir, make_dir, os_errors, write_atomic, write_new
from trimtab.store.frames import FrameFile, recover
from trimtab.store.retention import expired
from trimtab.store.segment import INDEX, SegmentIndex, SegmentInfo, describe, index_line, read_segment
from trimtab.store.settings import CaptureSettings

__all__ = ["SegmentFolder"]

_log = logging.getLogger(__name__)

_OPEN = ".open"
_SEALED = ".arrow"
_ASIDE = ".tmp"
# An open segment is held in memory too, so that sealing need not read it back.
_OPEN_BYTES = 64 << 20
# The index is rewritten once it has this many more lines than twice what it needs.
_INDEX_SLACK = 1000


class SegmentFolder:
    """Holds the folder's lock from creation to close()."""

    def __init__(
        self,
        directory: Path,
        schema: pa.Schema,
        settings: CaptureSettings,
        report: Callable[[str], None],
        on_sealed: Callable[[SegmentInfo], None] | None = None,
    ) -> None:
        """Makes the folder if need be and recovers what a crash left in it; `report` gets a line per damage.

        Raises StoreError, also where another process writes this folder.
        """
        self._directory = directory
        self._schema = schema
        self._settings = settings
        self._report = report
        self._on_sealed = on_sealed
        self._open: FrameFile | None = None
        self._batches: list[pa.RecordBatch] = []
        self.open_rows = 0
        self._sealed_rows = self._sealed_bytes = 0
        self._newest_us = -(1 << 62)
        make_dir(directory)
        self._lock = self._take_lock()
        try:
            self._index = SegmentIndex(directory)
            self._index.refresh()
            for info in self._index.segments():
                self._count(info)
            self._sequence = self._index.last_sequence
            self._recover()
        except BaseException:
            self.close()
            raise

    @property
    def size(self) -> int:
        """Bytes of all segments."""
        return self._sealed_bytes + (self._open.size if self._open is not None else 0)

    @property
    def rows(self) -> int:
        """In all segments."""
        return self._sealed_rows + self.open_rows

    @property
    def segments(self) -> int:
        """Sealed ones."""
        return len(self._index)

    def full_with(self, rows: int) -> bool:
        """Whether the open segment with so many rows more would have to be sealed."""
        size = self._open.size if self._open is not None else 0
        return self.open_rows + rows >= self._settings.seal_rows or size >= min(
            _OPEN_BYTES, self._settings.max_bytes // 8
        )

    def write(self, batch: pa.RecordBatch) -> None:
        """Appends the batch to the open segment. Raises StoreError; nothing of the batch is there then."""
        if self._open is None:
            self._open = FrameFile(self._path(self._sequence + 1, _OPEN), self._schema)
        self._open.append(batch)
        self._batches.append(batch)
        self.open_rows += batch.num_rows

    def seal(self, more: pa.RecordBatch | None = None) -> int:
        """Makes a sealed segment of the open one and `more`, and enforces the budgets; gives the rows sealed.

        Raises StoreError; the open segment is as it was then, and `more` is still the caller's.
        """
        batches = [*self._batches, *([more] if more is not None else [])]
        if not batches:
            return 0
        table = pa.Table.from_batches(batches)
        self._publish(self._sequence + 1, table)
        opened, self._open = self._open, None
        self._batches, self.open_rows = [], 0
        # The rows are sealed: what fails from here on must not make the caller seal them again.
        try:
            if opened is not None:
                opened.remove()
            self._expire()
        except StoreError as error:
            _log.warning("%s; will be tried again", error)
        return table.num_rows

    def forget(self, request_ids: Sequence[bytes]) -> int:
        """Takes these requests out of the sealed segments, for good; gives the number of rows. Raises StoreError."""
        wanted = sorted(set(request_ids))
        values = pa.array(wanted, pa.binary(16))
        rows = 0
        for info in self._index.segments():
            at = bisect.bisect_left(wanted, info.first_id)
            if at < len(wanted) and wanted[at] <= info.last_id:
                rows += self._forget_in(info, values)
        return rows

    def close(self) -> None:
        """Leaves the files as they are and gives up the lock."""
        if self._open is not None:
            self._open.close()
            self._open = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _publish(self, sequence: int, table: pa.Table, replaces: SegmentInfo | None = None) -> None:
        """Writes a sealed segment, lists it, and deletes the one that it replaces."""
        generation = f".{replaces.generation + 1}" if replaces is not None else ""
        path = self._path(sequence, f"{generation}{_SEALED}")
        data = _arrow_file(table)
        info = describe(path.name, table, data)
        aside = path.with_name(f".{path.name}{_ASIDE}")
        with os_errors("write", path):
            aside.unlink(missing_ok=True)
            write_new(aside, data)
            os.rename(aside, path)
            fsync_dir(self._directory)
        try:
            removed = [replaces.name] if replaces is not None else []
            append_line(self._directory / INDEX, index_line(add=info, remove=removed, why="forgotten"))
        except StoreError:
            # Not listed, so not sealed: whoever asked may ask again.
            path.unlink(missing_ok=True)
            raise
        self._sequence = max(self._sequence, sequence)
        self._index.refresh()
        self._count(info)
        if replaces is not None:
            self._count(replaces, -1)
            self._delete(replaces)
        elif self._on_sealed is not None:
            self._on_sealed(info)

    def _unlist(self, gone: Sequence[SegmentInfo], why: str) -> None:
        """Takes segments from the index, then from the disk."""
        append_line(self._directory / INDEX, index_line(remove=[info.name for info in gone], why=why))
        self._index.refresh()
        for info in gone:
            self._count(info, -1)
            self._delete(info)
        if self._index.lines > 2 * len(self._index) + _INDEX_SLACK:
            write_atomic(self._directory / INDEX, self._index.compacted().encode())
            self._index.refresh()

    def _expire(self) -> None:
        gone = expired(
            self._index.segments(), self._settings, rows=self.rows, size=self.size, newest_us=self._newest_us
        )
        if gone:
            self._unlist(gone, "retention")

    def _forget_in(self, info: SegmentInfo, values: Any) -> int:
        try:
            table = read_segment(self._directory, info)
        except SegmentDamaged as error:
            self._report(f"{error}; deleted, since rows to be forgotten may be in it")
            self._unlist([info], "damaged")
            return 0
        rest = table.filter(pc.invert(pc.is_in(table["_request_id"], value_set=values)))
        if rest.num_rows == 0:
            self._unlist([info], "forgotten")
        elif rest.num_rows < table.num_rows:
            self._publish(info.sequence, rest, replaces=info)
        return int(table.num_rows - rest.num_rows)

    def _recover(self) -> None:
        with os_errors("list", self._directory):
            names = sorted(os.listdir(self._directory))
        for name in names:
            if name.endswith(_ASIDE):
                (self._directory / name).unlink(missing_ok=True)
        known = self._index.last_sequence
        for name in names:
            number = name.partition(".")[0]
            if number.isdecimal() and name.endswith(_SEALED) and name not in self._index:
                self._recover_sealed(name, int(number) > known)
        missing = [info for info in self._index.segments() if not (self._directory / info.name).exists()]
        if missing:
            self._report(f"{self._directory}: sealed segments are gone: {', '.join(info.name for info in missing)}")
            self._unlist(missing, "missing")
        for name in names:
            if name.endswith(_OPEN) and name.removesuffix(_OPEN).isdecimal():
                self._recover_open(name)

    def _recover_sealed(self, name: str, fresh: bool) -> None:
        """A sealed file that is not listed: a seal was cut short (fresh), or a deletion or rewriting."""
        path = self._directory / name
        if fresh and path.is_file() and not path.is_symlink():
            try:
                with os_errors("read", path):
                    data = path.read_bytes()
                table = pa.ipc.open_file(pa.py_buffer(data)).read_all()
                table.validate(full=True)
                info = describe(name, table, data)
            except (StoreError, pa.ArrowException, KeyError, TypeError) as error:
                self._report(f"{path}: unlisted and not whole ({' '.join(str(error).split())}); deleted")
            else:
                append_line(self._directory / INDEX, index_line(add=info))
                self._index.refresh()
                self._count(info)
                self._sequence = max(self._sequence, info.sequence)
                return
        with os_errors("remove", path):
            path.unlink()

    def _recover_open(self, name: str) -> None:
        path = self._directory / name
        sequence = int(name.removesuffix(_OPEN))
        if sequence > self._index.last_sequence:
            with os_errors("read", path):
                found = recover(path.read_bytes())
            if found.damage:
                rows = sum(batch.num_rows for batch in found.batches)
                self._report(f"{path}: {found.damage}; {rows} rows before it are kept")
            if found.batches:
                self._publish(sequence, pa.Table.from_batches(found.batches))
        with os_errors("remove", path):
            path.unlink()

    def _count(self, info: SegmentInfo, sign: int = 1) -> None:
        self._sealed_rows += sign * info.rows
        self._sealed_bytes += sign * info.bytes
        if sign > 0:
            self._newest_us = max(self._newest_us, info.last_time_us)

    def _delete(self, info: SegmentInfo) -> None:
        with os_errors("remove", self._directory / info.name):
            (self._directory / info.name).unlink(missing_ok=True)

    def _path(self, sequence: int, suffix: str) -> Path:
        return self._directory / f"{sequence:012d}{suffix}"

    def _take_lock(self) -> int:
        path = self._directory / ".lock"
        with os_errors("lock", path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                raise StoreError(f"{self._directory} is in use by another process") from None
        return descriptor


def _arrow_file(table: pa.Table) -> memoryview:
    """The table as an Arrow IPC file. Its size is found first, so that memory is taken once and not in steps."""

    def write(sink: Any) -> None:
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)

    size = pa.MockOutputStream()
    write(size)
    data = pa.allocate_buffer(size.size())
    write(pa.FixedSizeBufferWriter(data))
    return memoryview(data)
