"""Pinned references: what is said of those that do not fit, and what lasts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from trimtab.kernels.sketch import Sketch
from trimtab.kernels.sketch_spec import CategoryField, RealField, SketchSpec
from trimtab.store.errors import PinUnfit
from trimtab.store.kept_windows import KeptWindow, WindowFolder
from trimtab.store.pins import Pin, PinFile, check_fit, pin_of_bytes, pin_of_windows

X, CITY = RealField("x", (0.5,)), CategoryField("city", ("Oslo", "Riga"), 2)
SPEC = SketchSpec((X, CITY))


def pin(spec: SketchSpec = SPEC, rows: int = 5) -> Pin:
    sketch = Sketch(spec)
    sketch.counts[0] = rows
    return Pin(sketch, "somewhere", "abc")


def test_a_pin_lasts_until_it_is_removed(tmp_path: Path) -> None:
    file = PinFile(tmp_path / "drift")
    assert file.read() is None
    written = file.write(pin())
    assert written.pinned_us > 0
    assert PinFile(tmp_path / "drift").read() == written
    file.remove()
    file.remove()
    assert file.read() is None


@pytest.mark.parametrize("keep", [0, 1, 100, -10])
def test_damage_is_no_pin(tmp_path: Path, keep: int) -> None:
    file = PinFile(tmp_path)
    file.write(pin())
    path = tmp_path / "pin.arrow"
    path.write_bytes(path.read_bytes()[:keep])
    assert file.read() is None


def test_a_sketch_without_notes_is_no_pin(tmp_path: Path) -> None:
    (tmp_path / "pin.arrow").write_bytes(pin().sketch.to_bytes())
    assert PinFile(tmp_path).read() is None


def test_equal_specs_fit() -> None:
    check_fit(pin(SketchSpec((RealField("x", (0.5,)), CITY))), SPEC, 3)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (SketchSpec((X,)), "one without city"),
        (SketchSpec((X, CITY, RealField("y", ()))), "one with y"),
        (SketchSpec((CITY, X)), "one with its columns in another order"),
        (SketchSpec((RealField("x", (0.75,)), CITY)), r"one with other edges or categories of x \(it was fitted"),
        (SketchSpec((X, CITY), (0.25,)), "other edges or categories of prediction"),
        (
            SketchSpec(tuple(RealField(f"f{i}", ()) for i in range(9))),
            "without city, x, with f0, f1, f2, f3, f4 and 4 more",
        ),
    ],
)
def test_what_does_not_fit_says_how(spec: SketchSpec, said: str) -> None:
    with pytest.raises(
        PinUnfit, match=f"expected a sketch as version 3 counts .spec {SPEC.hash[:12]}.; somewhere is .*{said}"
    ):
        check_fit(pin(spec), SPEC, 3)


def test_no_rows_are_nothing_to_compare_with() -> None:
    with pytest.raises(PinUnfit, match="has seen none"):
        check_fit(pin(rows=0), SPEC, 3)


def test_of_bytes() -> None:
    made = pin_of_bytes(pin().sketch.to_bytes(), "file.arrow")
    assert (made.sketch, made.origin, len(made.sha256)) == (pin().sketch, "file.arrow", 64)
    for junk in (b"", b"ARROW1", np.random.default_rng(0).bytes(500)):
        with pytest.raises(PinUnfit, match=r"file\.arrow: expected a sketch"):
            pin_of_bytes(junk, "file.arrow")


def test_of_windows_says_how_many_there_are(tmp_path: Path) -> None:
    folder = WindowFolder(tmp_path)
    for number in (3, 4, 6):
        folder.add(KeptWindow(number, number, number + 1, 5, 1), pin().sketch)
    assert (pin_of_windows(folder, 3, 4).origin, pin_of_windows(folder, 3, 4).rows) == ("windows 3-4", 10)
    assert pin_of_windows(folder, 3, 6).origin == "windows 3-6 (3 of them are kept)"
    assert pin_of_windows(folder, 6, 6).origin == "window 6"
