"""The table of hostile.py: what holds, what does not, and that both are shown."""

from __future__ import annotations

import copy
import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
ROW: dict[str, Any] = {
    "case": "PING flood",
    "hostile": {"got": {"GOAWAY ENHANCE_YOUR_CALM": 3}, "frames": 1500, "after_s": {"p50": 0.002, "max": 1.5}},
    "memory": {"before": 900_000_000, "peak": 950_000_000, "after": 900_000_000},
    "descriptors": {"before": 26, "peak": 30, "after": 27},
    "good": {"answered": 2000, "failed": 0, "latency": {"p50": 200.0, "p99": 4000.0}},
    "good_alone": {"answered": 2000, "failed": 0, "latency": {"p50": 190.0, "p99": 3000.0}},
}


def _load(name: str) -> Any:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def script() -> Any:
    return _load("hostile")


def test_a_row_that_holds(script: Any) -> None:
    assert script.holds(ROW)
    line = script.table([ROW]).splitlines()[-1]
    assert "3 × GOAWAY ENHANCE_YOUR_CALM (1,500 frames)" in line
    assert (
        "| 2 ms, 1.5 s | 900 / 950 / 900 | 26 / 30 / 27 | 2,000, 0 | 0.19 ms → 0.20 ms | 3.00 ms → 4.00 ms | yes |"
        in line
    )


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("good", "failed", 1),
        ("good", "answered", 0),
        ("memory", "peak", 9_000_000_000),
        ("descriptors", "after", 100),
        ("hostile", "error", "did not end"),
    ],
)
def test_what_does_not_hold(script: Any, part: str, name: str, value: Any) -> None:
    row = copy.deepcopy(ROW)
    row[part][name] = value
    assert not script.holds(row)
    assert script.table([row]).endswith("| NO |")


def test_growth_is_late_against_early() -> None:
    grown = _load("_cases").grown
    assert grown([900, 900, 100, 100, 100, 100, 130, 130]) == 30
    assert grown([1, 2, 3]) == 0.0
