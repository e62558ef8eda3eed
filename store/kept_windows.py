"""Sketches of drift windows that last: the newest closed ones, the open one, and the one that was pinned.

    drift/00000007.arrow   a closed window
    drift/open.arrow       the window of data time that was open when it was saved
    drift/pin.arrow        what windows are compared with in place of the training data

Each file is a sketch as Sketch.to_bytes writes it, so that it can be pinned anywhere, with notes in its metadata: what
it is of, and a checksum. Files are replaced as one step. One that is damaged is passed over and logged: windows inform,
they decide nothing. One writer: the server's drift thread, or, where no server runs, a command.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from trimtab.kernels.errors import KernelError, SketchError
from trimtab.kernels.sketch import Sketch
from trimtab.store.errors import StoreError, WindowDamaged, WindowUnknown
from trimtab.store.files import make_dir, os_errors, write_atomic

__all__ = ["KeptWindow", "WindowFolder", "read_sketch_file", "sketch_file"]

_log = logging.getLogger(__name__)
_MOST_BYTES = 256 << 20
_NOTES = b"trimtab.notes"
_OPEN = "open.arrow"


@dataclass(frozen=True)
class KeptWindow:
    """Of what a kept sketch is. start_us, end_us: data time, µs UTC. version: that served it last."""

    number: int
    start_us: int
    end_us: int
    rows: int
    version: int


class WindowFolder:
    """The folder of one model. See the module."""

    def __init__(self, directory: Path, keep: int = 200) -> None:
        """Touches nothing yet. `keep`: how many closed windows."""
        self.directory = directory
        self._keep = keep
        self._known: dict[int, KeptWindow] = {}

    def numbers(self) -> list[int]:
        """The numbers of the closed windows that are kept, ascending."""
        names = [path.stem for path in self.directory.glob("*.arrow")]
        return sorted(int(name) for name in names if name.isdecimal())

    def add(self, window: KeptWindow, sketch: Sketch) -> None:
        """Keeps a closed window, and no more than may be. Raises StoreError."""
        make_dir(self.directory)
        write_atomic(self._path(window.number), sketch_file(sketch, asdict(window)))
        self._known[window.number] = window
        self._retire()

    def load(self, number: int) -> tuple[KeptWindow, Sketch]:
        """A closed window. Raises WindowUnknown, WindowDamaged."""
        path = self._path(number)
        if not path.exists():
            raise WindowUnknown(f"window {number} is not kept; {self._range()}")
        sketch, notes = read_sketch_file(path)
        try:
            window = KeptWindow(**{name: int(notes[name]) for name in KeptWindow.__dataclass_fields__})
        except (KeyError, TypeError, ValueError) as error:
            raise WindowDamaged(f"{path}: no notes of a drift window: {error}") from None
        self._known[number] = window
        return window, sketch

    def merged(self, first: int, last: int) -> tuple[int, Sketch]:
        """How many of the windows [first, last] are kept whole, and their sum. Raises WindowUnknown where none is,
        SketchError where they are of several specs."""
        total: Sketch | None = None
        found = 0
        for number in self.numbers():
            if not first <= number <= last:
                continue
            try:
                sketch = self.load(number)[1]
            except StoreError as error:
                _log.warning("%s", error)
                continue
            if total is None:
                total = Sketch(sketch.spec)
            if sketch.spec.hash != total.spec.hash:
                raise SketchError(f"window {number} is of other columns than those before it: take fewer windows")
            total.merge(sketch)
            found += 1
        if total is None:
            what = f"window {first} is" if first == last else f"windows {first}-{last} are"
            raise WindowUnknown(f"{what} not kept; {self._range()}")
        return found, total

    def between(self, start_us: int, end_us: int) -> list[KeptWindow]:
        """The closed windows within a span of data time, ascending by number."""
        numbers = self.numbers()
        for number in numbers:
            if number not in self._known:
                try:
                    self.load(number)
                except StoreError as error:
                    _log.warning("%s", error)
                    # Looked at once: a span that no time is within.
                    self._known[number] = KeptWindow(number, 1, 0, 0, 0)
        known = [self._known[number] for number in numbers]
        return [one for one in known if start_us <= one.start_us < one.end_us <= end_us]

    # --- the open one

    def save_open(self, sketch: Sketch, start_us: int, end_us: int, after: int) -> None:
        """Saves the open window; `after` is the number of the last one that closed. Raises StoreError."""
        make_dir(self.directory)
        notes = {"start_us": start_us, "end_us": end_us, "after": after}
        write_atomic(self.directory / _OPEN, sketch_file(sketch, notes))

    def read_open(self, length_us: int, after: int) -> tuple[Sketch, int, int] | None:
        """The sketch, start and end of the open window as it was saved last; None where there is none, or it is of
        another length or has closed since."""
        path = self.directory / _OPEN
        if not path.exists():
            return None
        try:
            sketch, notes = read_sketch_file(path)
            start_us, end_us, closed = (int(notes[name]) for name in ("start_us", "end_us", "after"))
        except (StoreError, KeyError, TypeError, ValueError) as error:
            _log.warning("%s is passed over: %s", path, error)
            return None
        return (sketch, start_us, end_us) if (end_us - start_us, closed) == (length_us, after) else None

    def drop_open(self) -> None:
        """The open window has closed. Raises StoreError."""
        with os_errors("remove", self.directory / _OPEN):
            (self.directory / _OPEN).unlink(missing_ok=True)

    def _path(self, number: int) -> Path:
        return self.directory / f"{number:08d}.arrow"

    def _retire(self) -> None:
        numbers = self.numbers()
        sizes = {number: self._path(number).stat().st_size for number in numbers}
        total = sum(sizes.values())
        for i, number in enumerate(numbers[:-1]):
            if len(numbers) - i <= self._keep and total <= _MOST_BYTES:
                break
            with os_errors("remove", self._path(number)):
                self._path(number).unlink(missing_ok=True)
            self._known.pop(number, None)
            total -= sizes[number]

    def _range(self) -> str:
        numbers = self.numbers()
        return f"{numbers[0]} to {numbers[-1]} are" if numbers else "none is"


def sketch_file(sketch: Sketch, notes: Mapping[str, Any]) -> bytes:
    """A sketch's bytes with notes, which are JSON values, in the metadata."""
    with pa.ipc.open_file(pa.BufferReader(sketch.to_bytes())) as reader:
        table = reader.read_all()
    text = json.dumps({**notes, "checksum": _checksum(sketch)}, sort_keys=True)
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), _NOTES: text.encode()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def read_sketch_file(path: Path) -> tuple[Sketch, dict[str, Any]]:
    """A sketch that was written to a file, and its notes: none where Sketch.to_bytes wrote it. Raises StoreError,
    WindowDamaged."""
    with os_errors("read", path):
        data = path.read_bytes()
    try:
        sketch = Sketch.from_bytes(data)
        with pa.ipc.open_file(pa.BufferReader(data)) as reader:
            notes: Any = json.loads((reader.schema.metadata or {}).get(_NOTES, b"{}"))
    except (KernelError, pa.ArrowException, ValueError) as error:
        raise WindowDamaged(f"{path}: no sketch: {error}") from None
    if not isinstance(notes, dict) or notes.get("checksum", _checksum(sketch)) != _checksum(sketch):
        raise WindowDamaged(f"{path}: damaged: its counts are not those that were written")
    return sketch, notes


def _checksum(sketch: Sketch) -> str:
    return hashlib.sha256(sketch.counts.tobytes() + sketch.moments.tobytes() + sketch.joint.tobytes()).hexdigest()
