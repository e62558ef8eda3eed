"""What commands print: JSON that is JSON, numbers and times for people."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from trimtab.cli.output import Output, number, when


def test_json_has_no_nan_no_numpy_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(as_json=True)
    output.say("for people")
    output.table(("a",), [("b",)])
    with output.progress("work", total=3) as bar:
        bar.advance()
        bar.update(completed=2, text="so far")
    output.result({"a": math.nan, "b": np.arange(2), "c": {"d": np.float32(1.5), "e": Path("x")}, "f": (1, None, True)})
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"a": None, "b": [0, 1], "c": {"d": 1.5, "e": "x"}, "f": [1, None, True]}
    assert captured.err == ""


def test_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output()
    output.table(("name", "n"), [("[bold]x[/bold]", 3), (None, 14)], title="Things", right=("n",))
    output.result({"a": 1})
    lines = capsys.readouterr().out.split("\n")
    assert lines[0] == "Things"
    assert "[bold]x[/bold]    3" in "\n".join(lines)
    assert not any(line.endswith(" ") for line in lines)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (math.nan, "–"),
        (math.inf, "inf"),
        (1234567, "1,234,567"),
        (0.5, "0.5000"),
        (1e-9, "1e-09"),
        (0.0, "0.0000"),
        (2.5e12, "2.5e+12"),
        ("x", "x"),
        (True, "True"),
    ],
)
def test_numbers(value: object, text: str) -> None:
    assert number(value) == text


def test_times() -> None:
    assert when(0) == "–"
    assert when(1_357_000_000_000_000) == "2013-01-01 00:26:40"
    assert when(1 << 62).endswith("µs")
