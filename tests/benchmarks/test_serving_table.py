"""The README's serving figures are those of the committed result."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("serving_table", ROOT / "benchmarks" / "serving_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RESULT = {
    "environment": {"cpu": "a processor", "cores": 2, "date": "2026-01-02T03:04:05+00:00", "commit": "abc"},
    "rows": [{"case": "ratio", "name": "rows1_vs_triton", "median": 20.0, "low": 19.0, "high": 21.0, "pairs": 8}],
    "summary": {"rows1_vs_triton": 20.0, "swap_failed": 0},
}


def test_ratios_come_with_their_intervals_and_absent_figures_not_at_all(script: ModuleType) -> None:
    text = script.table(RESULT)
    assert "| … against Triton | 20.0 × (19.0 × – 21.0 ×) |" in text
    assert "| … failed requests | 0 |" in text
    assert "MLServer" not in text


def test_a_second_update_changes_nothing(script: ModuleType) -> None:
    text = f"before\n{script.BEGIN}\nold\n{script.END}\nafter\n"
    once = script.updated(text, RESULT)
    assert "old" not in once
    assert once.startswith("before\n")
    assert once.endswith("\nafter\n")
    assert script.updated(once, RESULT) == once


def test_missing_markers_are_an_error(script: ModuleType) -> None:
    with pytest.raises(ValueError, match="expected the lines"):
        script.updated("no table here", RESULT)


def test_the_readme_is_current(script: ModuleType) -> None:
    if not script.RESULT.exists():
        pytest.skip("no serving result is committed")
    text = script.README.read_text()
    assert script.updated(text, json.loads(script.RESULT.read_text())) == text
