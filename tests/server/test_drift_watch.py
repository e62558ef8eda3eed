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
from trimtab.store.pins import pin_of_windows
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


# --- the season before


HOUR = 3_600_000_000


def hourly(number: int, made: Any, low: float = 0.0, rows: int = 100) -> ClosedWindow:
    return ClosedWindow(predictions(number, rows, low), made, number * HOUR, (number + 1) * HOUR)


def seasonal(**settings: Any) -> DriftSettings:
    return DriftSettings(window=3600, reference="3h", min_effect=0.0, alpha=0.5, persistence=1, **settings)


def in_a_row(report: pb.DriftReport) -> int:
    return report.features[0].persistence


async def test_windows_are_compared_with_those_of_a_season_before(tmp_path: Path) -> None:
    made = version()
    # Every third hour is another world; there is no hour 7.
    hours = [1, 2, 3, 4, 5, 6, 8, 9, 10, 12]
    windows = [hourly(hour, made, low=0.9 if hour % 3 == 0 else 0.0, rows=100 + hour) for hour in hours]
    found = await reports_of(tmp_path, seasonal(), windows)
    assert [(one.reference, one.reference_rows) for one in found] == [
        ("training", 4000),
        ("training", 4000),
        ("training", 4000),
        ("window 1, 3h earlier", 101),
        ("window 2, 3h earlier", 102),
        ("window 3, 3h earlier", 103),
        ("window 5, 3h earlier", 105),
        ("window 6, 3h earlier", 106),
        ("training", 4000),
        ("window 8, 3h earlier", 109),
    ]
    effects = {hour: one.features[0].statistics[0].effect for hour, one in zip(hours, found, strict=True)}
    assert effects[3] > 3.0
    assert max(effects[6], effects[9], effects[12]) < 0.5


async def test_another_kind_of_reference_counts_anew(tmp_path: Path) -> None:
    made = version()
    windows = [hourly(hour, made, low=0.05 * hour) for hour in range(1, 7)]
    found = await reports_of(tmp_path, seasonal(), windows)
    assert [in_a_row(one) for one in found][2:] == [in_a_row(found[1]) + 1, 1, 2, 3]


async def test_the_season_goes_on_after_a_restart(tmp_path: Path) -> None:
    made = version()
    windows = [hourly(hour, made, low=0.05 * hour) for hour in range(1, 8)]
    at_once = await reports_of(tmp_path / "at_once", seasonal(), windows)
    first = await reports_of(tmp_path / "twice", seasonal(), windows[:5])
    second = await reports_of(tmp_path / "twice", seasonal(), windows[5:])
    assert [*first, *second] == at_once


async def test_sliding_windows_have_as_many_a_season_before(tmp_path: Path) -> None:
    made = version()
    windows = [hourly(hour, made, rows=100 + hour) for hour in range(1, 7)]
    found = await reports_of(tmp_path, seasonal(sliding=2), windows)
    assert [(one.reference, one.reference_rows, one.rows) for one in found][3:] == [
        # Hour 3 has none before it.
        ("window 1, 3h earlier", 101, 207),
        ("2 windows, 3h earlier", 203, 209),
        ("2 windows, 3h earlier", 205, 211),
    ]


async def test_several_seasons_are_summed(tmp_path: Path) -> None:
    made = version()
    windows = [hourly(hour, made, rows=100 + hour) for hour in (1, 4, 5, 7, 10, 11, 13)]
    found = await reports_of(tmp_path, seasonal(seasons=3), windows)
    assert [(one.reference, one.reference_rows) for one in found] == [
        ("training", 4000),
        ("window 1, 3h earlier", 101),
        ("training", 4000),
        ("2 windows, 3h to 6h earlier", 205),
        ("3 windows, 3h to 9h earlier", 312),
        # Hour 8 has none; hours 5 and 2.
        ("window 3, 3h to 6h earlier", 105),
        ("3 windows, 3h to 9h earlier", 321),
    ]


async def test_windows_that_slide_over_more_than_a_season_count_no_row_twice(tmp_path: Path) -> None:
    made = version()
    windows = [hourly(hour, made, rows=100 + hour) for hour in range(1, 13)]
    found = await reports_of(tmp_path, seasonal(sliding=5, seasons=3), windows)
    newest = found[-1]
    assert newest.rows == sum(100 + hour for hour in range(8, 13))
    # Of hours 8 to 12 those 3, 6 and 9 before that are not among them.
    assert newest.reference_rows == sum(100 + hour for hour in range(1, 8))


async def test_too_few_rows_are_no_season(tmp_path: Path) -> None:
    made = version()
    windows = [hourly(hour, made, rows=50 if hour == 1 else 100) for hour in range(1, 6)]
    found = await reports_of(tmp_path, seasonal(window_rows=60), windows)
    assert [one.reference for one in found] == ["training", "training", "training", "window 2, 3h earlier"]


async def test_a_season_of_other_columns_is_none(tmp_path: Path) -> None:
    other = SketchSpec((), (0.5,))

    def of_other(number: int) -> ClosedWindow:
        sketch = Sketch(other)
        sketch.add_predictions(np.full(100, 0.25, np.float32))
        sketch.counts[0] = 100
        manifest = SimpleNamespace(files={"reference.arrow": "b"})
        made: Any = SimpleNamespace(number=2, manifest=manifest, reference=sketch.copy(), scores=None)
        return ClosedWindow(sketch, made, number * HOUR, (number + 1) * HOUR)

    made = version()
    windows = [*(hourly(hour, made) for hour in range(1, 4)), *(of_other(hour) for hour in range(4, 9))]
    found = await reports_of(tmp_path, seasonal(), windows)
    assert [one.reference for one in found] == [*["training"] * 6, "window 4, 3h earlier", "window 5, 3h earlier"]


async def test_a_pin_goes_before_the_season(tmp_path: Path) -> None:
    made, found = version(), []
    take: Callable[[pb.DriftReport], None] = found.append
    watch = DriftWatch("m", tmp_path / "drift.jsonl", seasonal(), EventBus(), take)
    for hour in range(1, 5):
        watch.put(hourly(hour, made))
    await watch.pin(lambda kept: pin_of_windows(kept, 1, 2), made)
    watch.put(hourly(5, made))
    await watch.pin(None, made)
    watch.put(hourly(6, made))
    await asyncio.wait_for(watch.settled(), 30)
    watch.close()
    assert [one.reference for one in found][3:] == ["window 1, 3h earlier", "windows 1-2", "window 3, 3h earlier"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"reference": "7d"}, "expected a multiple of window .not given."),
        ({"reference": "90m", "window": "1h"}, "expected a multiple of window .1h."),
        ({"reference": "0", "window": "1h"}, "expected a multiple of window"),
        ({"reference": "last week", "window": "1h"}, "expected 'training', or a duration"),
        ({"reference": "28d", "window": "1h"}, "keep_windows: expected at least 673"),
        ({"reference": "7d", "window": "1h", "sliding": 40}, "keep_windows: expected at least 208"),
        ({"reference": "7d", "window": "1h", "seasons": 4}, "keep_windows: expected at least 673"),
    ],
)
def test_seasons_that_mean_nothing_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DriftSettings(**given)
