"""Sealed capture segments: immutable Arrow IPC files, and the index that says which of them there are.

A segment `000000000042.arrow` is written aside, made to last, renamed, and only then listed in index.jsonl; what is
deleted is taken from the index first and from the disk second. So every listed file is whole, and its sha256 is
known. A segment that `forget` rewrites gets a new name, `000000000042.1.arrow`, listed in the same line that takes
the old one out.

The index is append-only, one JSON object a line: {"add": segment, "remove": [names], "why": ...}. Other processes
read it and the segments at any time without a lock: a torn last line is not read yet, and a file that vanished since
it was listed is SegmentGone (list again). The writer rewrites the index now and then, as one step, when most of it is
about what is gone.
"""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from trimtab.store.errors import SegmentDamaged, SegmentGone, StoreError
from trimtab.store.files import os_errors, sha256_bytes

__all__ = [
    "INDEX",
    "Changes",
    "SegmentIndex",
    "SegmentInfo",
    "describe",
    "index_line",
    "read_segment",
    "sealed_segments",
]

INDEX = "index.jsonl"
# SegmentInfo has a field of the type's name.
_Id = bytes


@dataclass(frozen=True, slots=True)
class SegmentInfo:
    """One sealed segment. Times are data times in µs; ids are the smallest and the largest request id in it."""

    name: str
    rows: int
    bytes: int
    sha256: str
    first_time_us: int
    last_time_us: int
    first_id: _Id
    last_id: _Id

    @property
    def sequence(self) -> int:
        """Place in the order of writing; a rewritten segment keeps it."""
        return int(self.name.partition(".")[0])

    @property
    def generation(self) -> int:
        """How many times it was rewritten."""
        middle = self.name.split(".")[1:-1]
        return int(middle[0]) if middle else 0

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self) | {"first_id": self.first_id.hex(), "last_id": self.last_id.hex()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SegmentInfo:
        """What to_dict gave. Raises TypeError, ValueError or KeyError on anything else."""
        ids: dict[str, Any] = {key: _Id.fromhex(data[key]) for key in ("first_id", "last_id")}
        info = cls(**(data | ids))
        if Path(info.name).name != info.name or info.sequence < 0:
            raise ValueError(f"segment name {info.name!r}")
        return info


@dataclass(frozen=True, slots=True)
class Changes:
    """What happened to an index since it was last read, in order."""

    added: list[SegmentInfo]
    removed: list[SegmentInfo]


class SegmentIndex:
    """The index of a captures folder as of the last refresh, which reads only the lines that are new. One thread at a
    time."""

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory)
        self._path = self.directory / INDEX
        self._live: dict[str, SegmentInfo] = {}
        self._last = 0
        self._sorted = True
        self._lines = 0
        self._offset = 0
        self._head = b""

    def refresh(self) -> Changes:
        """Reads what is new in the index. Raises StoreError where a whole line makes no sense."""
        before = self._live
        with os_errors("read", self._path):
            try:
                with open(self._path, "rb") as file:
                    head = file.readline()
                    if head != self._head:
                        # The writer replaced it (or made it): every edition begins with a line of its own.
                        self._live, self._lines, self._offset, self._head = {}, 0, 0, head
                    file.seek(self._offset)
                    data = file.read()
            except FileNotFoundError:
                data = b""
        data = data[: data.rfind(b"\n") + 1]
        added: dict[str, SegmentInfo] = {}
        removed: list[SegmentInfo] = []
        for line in data.split(b"\n")[:-1]:
            self._lines += 1
            self._apply(line, added, removed)
        self._offset += len(data)
        if before is not self._live:
            removed = [info for name, info in before.items() if name not in self._live]
            added = {name: info for name, info in self._live.items() if name not in before}
        return Changes(list(added.values()), removed)

    def segments(self) -> list[SegmentInfo]:
        """The sealed segments as of the last refresh, oldest first."""
        if not self._sorted:
            self._live = dict(sorted(self._live.items(), key=lambda item: (item[1].sequence, item[1].generation)))
            self._sorted = True
        return list(self._live.values())

    @property
    def last_sequence(self) -> int:
        """The largest sequence ever listed, deleted ones included; 0: none."""
        return self._last

    @property
    def lines(self) -> int:
        """Lines that the index takes on disk."""
        return self._lines

    def __len__(self) -> int:
        return len(self._live)

    def __contains__(self, name: str) -> bool:
        return name in self._live

    def compacted(self) -> str:
        """The text of an index that says the same in as few lines as can be."""
        head = json.dumps({"last": self._last, "edition": os.urandom(8).hex()})
        return "".join(f"{line}\n" for line in [head, *(index_line(add=info) for info in self.segments())])

    def _apply(self, line: bytes, added: dict[str, SegmentInfo], removed: list[SegmentInfo]) -> None:
        try:
            entry = json.loads(line)
            self._last = max(self._last, int(entry.get("last", 0)))
            for name in entry.get("remove", ()):
                gone = self._live.pop(str(name), None)
                if gone is not None and added.pop(gone.name, None) is None:
                    removed.append(gone)
            if "add" in entry:
                info = SegmentInfo.from_dict(entry["add"])
                self._sorted = self._sorted and info.sequence > self._last
                self._last = max(self._last, info.sequence)
                self._live[info.name] = added[info.name] = info
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise StoreError(f"{self._path}: line {self._lines} is no line of a segment index ({error})") from error


def index_line(*, add: SegmentInfo | None = None, remove: Sequence[str] = (), why: str = "") -> str:
    """One line of the index, without its newline."""
    entry: dict[str, Any] = {}
    if add is not None:
        entry["add"] = add.to_dict()
    if remove:
        entry |= {"remove": list(remove), "why": why}
    return json.dumps(entry, separators=(",", ":"))


_KNOWN_INDEXES = 16
_indexes: OrderedDict[Path, SegmentIndex] = OrderedDict()
_indexes_lock = threading.Lock()


def sealed_segments(directory: Path | str) -> list[SegmentInfo]:
    """The sealed segments of a captures folder, oldest first; none if there is no index yet. Any process, any thread.

    Remembers what it read of the last few folders, so calling it often costs little. Raises StoreError.
    """
    key = Path(directory).absolute()
    with _indexes_lock:
        index = _indexes.setdefault(key, SegmentIndex(key))
        _indexes.move_to_end(key)
        if len(_indexes) > _KNOWN_INDEXES:
            _indexes.popitem(last=False)
        index.refresh()
        return index.segments()


def read_segment(directory: Path | str, info: SegmentInfo, verify: bool = True) -> pa.Table:
    """The segment's rows; see captures.py for the columns. `verify` compares its sha256 with the index.

    Raises SegmentGone if it was deleted or rewritten since it was listed, SegmentDamaged if it is not what was sealed.
    """
    path = Path(directory) / info.name
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        with open(descriptor, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        raise SegmentGone(f"segment {info.name} was deleted or rewritten after it was listed; list again") from None
    except OSError as error:
        raise SegmentDamaged(f"segment {path} cannot be read: {os.strerror(error.errno or 0).lower()}") from error
    if verify and (found := sha256_bytes(data)) != info.sha256:
        raise SegmentDamaged(f"segment {path}: expected sha256 {info.sha256[:16]}…, found {found[:16]}…")
    try:
        table = pa.ipc.open_file(pa.py_buffer(data)).read_all()
    except (pa.ArrowException, OSError) as error:
        raise SegmentDamaged(f"segment {path} is not an Arrow file: {' '.join(str(error).split())}") from error
    if table.num_rows != info.rows:
        raise SegmentDamaged(f"segment {path}: expected {info.rows} rows, found {table.num_rows}")
    return table


def describe(name: str, table: pa.Table, data: bytes | memoryview) -> SegmentInfo:
    """The index entry of a segment with these rows (at least one) and these bytes."""
    ids = pc.min_max(table["_request_id"])
    times = pc.min_max(table["_time"].cast(pa.int64()))
    return SegmentInfo(
        name=name,
        rows=table.num_rows,
        bytes=len(data),
        sha256=sha256_bytes(data),
        first_time_us=times["min"].as_py(),
        last_time_us=times["max"].as_py(),
        first_id=ids["min"].as_py(),
        last_id=ids["max"].as_py(),
    )
