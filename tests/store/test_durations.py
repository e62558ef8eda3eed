from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimtab.store.durations import format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "microseconds"),
    [
        ("30d", 2_592_000_000_000),
        ("1d 12h", 129_600_000_000),
        ("1.5h", 5_400_000_000),
        ("90s", 90_000_000),
        (250, 250_000_000),
        ("250", 250_000_000),
        ("5ms", 5_000),
        ("7us", 7),
        ("0s", 0),
        (0, 0),
        ("2 min", 120_000_000),
        ("1w", 604_800_000_000),
    ],
)
def test_durations(text: object, microseconds: int) -> None:
    assert parse_duration(text) == microseconds


@pytest.mark.parametrize(
    "text", ["", "soon", "-1h", -1, 1.5, True, None, "1x", "h", "1h later", [1], "9999999999999999d"]
)
def test_no_durations(text: object) -> None:
    with pytest.raises(ValueError, match="expected a duration such as"):
        parse_duration(text)


@given(st.integers(0, 1 << 53))
def test_what_is_formatted_reads_back(microseconds: int) -> None:
    assert parse_duration(format_duration(microseconds)) == microseconds
