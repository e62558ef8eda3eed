"""Closed windows as the drift thread compares them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from trimtab.kernels.sketch import Sketch
from trimtab.kernels.sketch_spec import SketchSpec
from trimtab.protos.v1 import trimtab_pb2 as pb
from trimtab.server.drift import DriftWatch
from trimtab.server.events import EventBus
from trimtab.server.keeping import ClosedWindow, OpenWindow
from trimtab.store.kept_windows import WindowFolder
from trimtab.store.settings import DriftSettings

SPEC = SketchSpec((), (0.25, 0.5, 0.75))


def predictions(seed: int, rows: int, low: float = 0.0) -> Sketch:
    sketch = Sketch(SPEC)
    sketch.add_predictions(np.random.default_rng(seed).uniform(low, 1.0, rows).astype(np.float32))
    sketch.counts[0] = rows
    return sketch


def version(reference: str = "a") -> Any:
    manifest = SimpleNamespace(files={"reference.arrow": reference})
    return SimpleNamespace(number=1, manifest=manifest, reference=predictions(0, 4000), scores=None)


def window(number: int, made: Any, low: float = 0.0) -> ClosedWindow:
    return ClosedWindow(predictions(number, 100, low), made, number * 1000, number * 1000 + 900)


async def reports_of(path: Path, settings: DriftSettings, windows: list[ClosedWindow]) -> list[pb.DriftReport]:
    path.mkdir(exist_ok=True)  # noqa: ASYNC240
    found: list[pb.DriftReport] = []
    take: Callable[[pb.DriftReport], None] = found.append
    watch = DriftWatch("m", path / "drift.jsonl", settings, EventBus(), take)
    for one in windows:
        watch.put(one)
    await asyncio.wait_for(watch.settled(), 30)
    watch.close()
    assert watch.failures == 0
    return found


async def test_each_window_alone(tmp_path: Path) -> None:
    made = version()
    found = await reports_of(tmp_path, DriftSettings(), [window(i, made) for i in range(1, 4)])
    assert [(one.rows, one.start_us, one.end_us) for one in found] == [
        (100, 1000, 1900),
        (100, 2000, 2900),
        (100, 3000, 3900),
    ]


async def test_sliding_windows_are_the_newest_ones_together(tmp_path: Path) -> None:
    made = version()
    windows = [window(i, made) for i in range(1, 6)]
    kept = [one.sketch.copy() for one in windows]
    found = await reports_of(tmp_path, DriftSettings(sliding=3), windows)
    assert [(one.rows, one.start_us, one.end_us) for one in found] == [
        (100, 1000, 1900),
        (200, 1000, 2900),
        (300, 1000, 3900),
        (300, 2000, 4900),
        (300, 3000, 5900),
    ]
    assert [one.sketch == before for one, before in zip(windows, kept, strict=True)] == [True] * 5
    assert [one.window for one in found] == [1, 2, 3, 4, 5]


async def test_what_is_too_little_for_one_window_shows_in_several(tmp_path: Path) -> None:
    made = version()
    windows = [window(i, made, low=0.12) for i in range(1, 13)]
    alone = await reports_of(tmp_path / "alone", DriftSettings(min_effect=0.0), windows)
    together = await reports_of(tmp_path / "together", DriftSettings(min_effect=0.0, sliding=12), windows)
    assert together[-1].features[0].adjusted_p_value < 1e-6
    assert min(one.features[0].adjusted_p_value for one in alone) > together[-1].features[0].adjusted_p_value


async def test_another_reference_begins_anew(tmp_path: Path) -> None:
    first, second = version("a"), version("b")
    found = await reports_of(
        tmp_path, DriftSettings(sliding=4), [window(1, first), window(2, first), window(3, second), window(4, second)]
    )
    assert [one.rows for one in found] == [100, 200, 100, 200]


@pytest.mark.parametrize("sliding", [0, 1001])
def test_the_number_of_windows_is_bounded(sliding: int) -> None:
    with pytest.raises(ValueError, match="sliding"):
        DriftSettings(sliding=sliding)


# --- windows that are kept


def folder(path: Path) -> WindowFolder:
    return WindowFolder(path / "drift")


async def test_closed_windows_are_kept_and_no_more_than_may_be(tmp_path: Path) -> None:
    made = version()
    windows = [window(i, made) for i in range(1, 8)]
    await reports_of(tmp_path, DriftSettings(sliding=3, keep_windows=4), windows)
    kept = folder(tmp_path)
    assert kept.numbers() == [4, 5, 6, 7]
    for number in kept.numbers():
        told, sketch = kept.load(number)
        assert sketch == windows[number - 1].sketch
        assert (told.start_us, told.end_us, told.rows, told.version) == (number * 1000, number * 1000 + 900, 100, 1)


async def test_numbers_go_on_after_a_restart(tmp_path: Path) -> None:
    made = version()
    await reports_of(tmp_path, DriftSettings(), [window(i, made) for i in range(1, 4)])
    (tmp_path / "drift_monitor.json").unlink()
    (tmp_path / "drift.jsonl").unlink()
    found = await reports_of(tmp_path, DriftSettings(), [window(4, made)])
    assert [one.window for one in found] == [4]


async def test_too_few_rows_are_kept_and_not_compared(tmp_path: Path) -> None:
    made = version()
    settings = DriftSettings(window=3600, window_rows=250, sliding=3)
    found = await reports_of(tmp_path, settings, [window(i, made) for i in range(1, 6)])
    assert [(one.window, one.rows) for one in found] == [(3, 300), (4, 300), (5, 300)]
    assert folder(tmp_path).numbers() == [1, 2, 3, 4, 5]


def test_by_time_a_row_is_enough_unless_the_file_says_otherwise() -> None:
    assert DriftSettings().least_rows == DriftSettings(window=3600).least_rows == 1
    assert DriftSettings(window=3600, window_rows=70).least_rows == 70
    assert DriftSettings(window_rows=70).least_rows == 1


@pytest.mark.parametrize("window", ["", "1ms", -1, "fortnight"])
def test_a_window_is_a_second_at_least(window: Any) -> None:
    with pytest.raises(ValueError, match="window"):
        DriftSettings(window=window)


async def test_the_open_window_is_for_the_next_server(tmp_path: Path) -> None:
    hour = 3_600_000_000
    settings, made = DriftSettings(window=3600), version()
    watch = DriftWatch("m", tmp_path / "drift.jsonl", settings, EventBus(), lambda _: None)
    assert watch.opened is None
    watch.put(ClosedWindow(predictions(1, 50), made, 0, hour))
    watch.save(OpenWindow(predictions(2, 70), hour, 2 * hour))
    watch.close()

    def left(of: DriftSettings) -> OpenWindow | None:
        again = DriftWatch("m", tmp_path / "drift.jsonl", of, EventBus(), lambda _: None)
        again.close()
        return again.opened

    assert left(settings) == OpenWindow(predictions(2, 70), hour, 2 * hour)
    assert left(DriftSettings(window=7200)) is None
    assert left(DriftSettings()) is None
    # It has closed since: its rows are in the window that was kept, and would count twice.
    saved = (tmp_path / "drift" / "open.arrow").read_bytes()
    await reports_of(tmp_path, settings, [ClosedWindow(predictions(2, 70), made, hour, 2 * hour)])
    assert not (tmp_path / "drift" / "open.arrow").exists()
    (tmp_path / "drift" / "open.arrow").write_bytes(saved)
    assert left(settings) is None
    for damaged in (b"", saved[:-20], b"ARROW1" * 50):
        (tmp_path / "drift" / "open.arrow").write_bytes(damaged)
        assert left(settings) is None
