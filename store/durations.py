"""Durations as people write them: "30d", "1h", "90s", or a whole number, which counts seconds.

Data without a time column has row i at i seconds, so there the same whole number counts rows.
"""

from __future__ import annotations

import re

__all__ = ["format_duration", "parse_duration"]

_UNITS_US = {
    "us": 1,
    "ms": 1_000,
    "s": 1_000_000,
    "m": 60_000_000,
    "min": 60_000_000,
    "h": 3_600_000_000,
    "d": 86_400_000_000,
    "w": 604_800_000_000,
}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(us|ms|s|min|m|h|d|w)")
_LARGEST_US = 1 << 62


def parse_duration(value: object) -> int:
    """The duration in µs. Takes `"1d 12h"`, `"90s"`, `"250"` (seconds) or 250. Raises ValueError saying what was
    expected."""
    result: float | int | None = None
    if isinstance(value, int) and not isinstance(value, bool):
        result = value * 1_000_000
    elif isinstance(value, str):
        text = value.strip()
        if text.isascii() and text.isdigit():
            result = int(text) * 1_000_000
        elif text and not _PART.sub("", text).strip():
            result = sum(round(float(number) * _UNITS_US[unit]) for number, unit in _PART.findall(text))
    if result is None or not 0 <= result < _LARGEST_US:
        raise ValueError(f'expected a duration such as "30d", "1h", "90s" or a whole number of seconds, got {value!r}')
    return int(result)


def format_duration(microseconds: int) -> str:
    """The shortest single unit that holds the duration exactly: 90 s is "90s", an hour is "1h", nothing is "0s"."""
    for unit in ("d", "h", "m", "s", "ms"):
        if microseconds % _UNITS_US[unit] == 0 and (microseconds or unit == "s"):
            return f"{microseconds // _UNITS_US[unit]}{unit}"
    return f"{microseconds}us"
