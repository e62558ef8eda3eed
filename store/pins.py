"""A pinned drift reference: a sketch that windows are compared with in place of the live version's training data.

One file, `drift/pin.arrow`: the sketch, and in its notes where it is from. It is written by the server, or by
`trimtab drift --pin` where none runs. It fits a version whose columns are sketched in the same way; while it does not
fit the live one, windows are compared with that one's training data.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from trimtab.kernels.errors import SketchError
from trimtab.kernels.sketch import Sketch
from trimtab.kernels.sketch_spec import SketchSpec
from trimtab.store.errors import PinUnfit, StoreError
from trimtab.store.files import fsync_dir, make_dir, now_us, os_errors, sha256_bytes, write_atomic
from trimtab.store.kept_windows import WindowFolder, read_sketch_file, sketch_file

__all__ = ["Pin", "PinFile", "check_fit", "pin_of_bytes", "pin_of_windows"]

_log = logging.getLogger(__name__)
_SHOWN = 5


@dataclass(frozen=True)
class Pin:
    """A pinned sketch."""

    sketch: Sketch
    origin: str
    """Where it is from: "windows 3-9", a file, an MLflow URI."""
    sha256: str
    """Of the bytes that it came as, hex."""
    pinned_us: int = 0
    """When, µs UTC; 0: not yet."""

    @property
    def rows(self) -> int:
        """Rows that the sketch has seen."""
        return self.sketch.rows


class PinFile:
    """The pin of one model. Any process may read; who may write, see the module."""

    def __init__(self, directory: Path) -> None:
        """`directory`: state/NAME/drift."""
        self._path = directory / "pin.arrow"

    def read(self) -> Pin | None:
        """The pin; None where there is none, or its file is damaged, which is logged."""
        if not self._path.exists():
            return None
        try:
            sketch, notes = read_sketch_file(self._path)
            return Pin(sketch, str(notes["origin"]), str(notes["sha256"]), int(notes["pinned_us"]))
        except (StoreError, KeyError, TypeError, ValueError) as error:
            _log.warning("%s is passed over: %s", self._path, error)
            return None

    def write(self, pin: Pin) -> Pin:
        """Makes it the pin from now on, lastingly; with its time. Raises StoreError."""
        pin = Pin(pin.sketch, pin.origin, pin.sha256, now_us())
        notes = {"origin": pin.origin, "sha256": pin.sha256, "pinned_us": pin.pinned_us, "rows": pin.rows}
        make_dir(self._path.parent)
        write_atomic(self._path, sketch_file(pin.sketch, notes))
        return pin

    def remove(self) -> None:
        """Nothing is pinned from now on, lastingly. Raises StoreError."""
        with os_errors("remove", self._path):
            if self._path.exists():
                self._path.unlink()
                fsync_dir(self._path.parent)


def pin_of_windows(folder: WindowFolder, first: int, last: int) -> Pin:
    """Of kept windows, merged. Raises WindowUnknown, SketchError."""
    found, sketch = folder.merged(first, last)
    wanted = last - first + 1
    origin = f"window {first}" if first == last else f"windows {first}-{last}"
    missing = "" if found == wanted else f" ({found} of them are kept)"
    return Pin(sketch, origin + missing, sha256_bytes(sketch.to_bytes()))


def pin_of_bytes(data: bytes, origin: str) -> Pin:
    """Of a sketch file's contents. Raises PinUnfit."""
    try:
        return Pin(Sketch.from_bytes(data), origin, sha256_bytes(data))
    except SketchError as error:
        raise PinUnfit(f"{origin}: expected a sketch such as a version's reference.arrow: {error}") from None


def check_fit(pin: Pin, expected: SketchSpec, version: int) -> None:
    """Raises PinUnfit, saying what was expected and what came, unless windows of the version may be compared with
    it."""
    if not pin.rows:
        raise PinUnfit(f"{pin.origin}: expected a sketch of rows, and it has seen none")
    came = pin.sketch.spec
    if came.hash == expected.hash:
        return
    ours, theirs = ({field.name: field for field in spec.fields} for spec in (expected, came))
    changes = [
        f"without {_listed(ours.keys() - theirs.keys())}" if ours.keys() - theirs.keys() else "",
        f"with {_listed(theirs.keys() - ours.keys())}" if theirs.keys() - ours.keys() else "",
    ]
    refitted = {name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name]}
    refitted |= {"prediction"} if expected.prediction_edges != came.prediction_edges else set()
    if refitted:
        changes.append(f"with other edges or categories of {_listed(refitted)} (it was fitted to other data)")
    if not changes[0] and not changes[1] and not refitted and expected.joint != came.joint:
        changes.append("with another way of comparing columns together, or none (it is of an older or newer fit)")
    told = ", ".join(filter(None, changes)) or "with its columns in another order"
    raise PinUnfit(
        f"expected a sketch as version {version} counts (spec {expected.hash[:12]}); {pin.origin} is one {told} "
        f"(spec {came.hash[:12]})"
    )


def _listed(names: set[str]) -> str:
    shown = sorted(names)[:_SHOWN]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
