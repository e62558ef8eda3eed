"""The data report: nothing from elsewhere, everything escaped, and it opens in a real browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from trimtab.cli.init import InitOptions, Made, prepare_project
from trimtab.cli.profile_report import render_report
from trimtab.cli.svg import columns_chart, line_chart, share_bars, sparkline

from . import files

VOID = {"meta"}


class Checker(HTMLParser):
    """Every tag closed, no script, nothing fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            assert name not in ("src", "href", "srcset", "onload", "onclick"), (tag, name)
            assert "url(" not in (value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> without a start"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def report(tmp_path: Path, table: pa.Table, label: str, **options: str) -> tuple[str, Made]:
    data = files.parquet(table, tmp_path / "data.parquet")
    made = prepare_project(data, InitOptions(label, **options), tmp_path / "made", report=True)  # type: ignore[arg-type]
    text = (tmp_path / "made" / "report.html").read_text()
    assert text == render_report(made, data)
    return text, made


@pytest.mark.parametrize(
    ("table", "label", "time"),
    [(files.loans(), "bad", "opened"), (files.digits(), "kind", ""), (files.meters(), "kwh", "")],
    ids=["binary", "multiclass", "regression"],
)
def test_self_contained_and_complete(tmp_path: Path, table: pa.Table, label: str, time: str) -> None:
    text, made = report(tmp_path, table, label, time=time)
    checker = Checker()
    checker.feed(text)
    assert not checker.open
    assert not checker.tags & {"script", "link", "img", "iframe", "object", "embed"}
    assert "http://" not in text
    assert "https://" not in text
    assert "@import" not in text
    assert "prefers-color-scheme: dark" in text
    assert "nan" not in re.sub(r"<[^>]*>", " ", text).lower().split()
    for role in made.roles:
        if role.use in ("feature", "excluded"):
            assert role.column in checker.text
        assert role.reason in checker.text


def test_hostile_names_and_values_are_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'&"
    rng = np.random.default_rng(0)
    table = pa.table(
        {evil: rng.choice([evil, "b"], 300), "x": rng.normal(size=300), "y": rng.choice([evil, "no"], 300)}
    )
    text, _ = report(tmp_path, table, "y")
    assert "<script" not in text
    checker = Checker()
    checker.feed(text)
    assert evil in checker.text


def test_it_opens_in_a_browser(tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium is installed")
    text, _ = report(tmp_path, files.loans(), "bad", time="opened")
    assert text
    page = (tmp_path / "made" / "report.html").as_uri()
    common = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    common += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000"]
    # Any network at all would fail: there is no resolver and no proxy.
    common += ["--host-resolver-rules=MAP * ~NOTFOUND", "--proxy-server=127.0.0.1:1"]
    drawn = subprocess.run([*common, "--dump-dom", page], capture_output=True, text=True, timeout=90)
    assert drawn.returncode == 0, drawn.stderr
    assert "<h2>What was assumed</h2>" in drawn.stdout
    assert drawn.stdout.count("<details>") >= 10
    picture = tmp_path / "page.png"
    subprocess.run([*common, f"--screenshot={picture}", page], capture_output=True, timeout=90, check=True)
    assert picture.stat().st_size > 20_000


def test_charts_of_nothing_and_of_gaps() -> None:
    nan = float("nan")
    assert sparkline([]) == sparkline([nan]) == ""
    assert columns_chart([]) == ""
    assert line_chart([nan, nan], ["a", "b"]) == ""
    assert line_chart([1.0, nan, 2.0], ["a", "b", "c"]).count("<polyline") == 2
    assert "nan" not in line_chart([1.0, nan, 1.0], ["a", "b", "c"])
    assert "<td" in share_bars([("a", 0)])
    assert sparkline([0.0, 0.0], filled=True)
    assert "more" in share_bars([(str(i), 1) for i in range(20)])
