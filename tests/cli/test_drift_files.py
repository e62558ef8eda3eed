"""`trimtab drift` for files: what it finds, says and refuses, as a process; hostile values; bounded memory."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trimtab.cli.drift_run import FileOptions, drift_of_files
from trimtab.cli.output import Output
from trimtab.kernels.sketch_edges import EDGE_RANKS

from . import files
from .test_report import Checker

DAY_US = 24 * files.HOUR_US
MONDAY_US = 1_356_912_000_000_000  # 2012-12-31


def table(rows: int, seed: int = 0, shift: float = 0.0, days: float = 28.0) -> pa.Table:
    rng = np.random.default_rng(seed)
    time = MONDAY_US + np.sort(rng.integers(0, int(days * DAY_US), rows))
    return pa.table(
        {
            "time": pa.array(time).cast(pa.timestamp("us")),
            "same": rng.normal(size=rows),
            "moved": rng.normal(shift, 1.0, rows),
            "grade": rng.choice(["a", "b", "ü"], rows, p=[0.6 - shift / 2, 0.4 + shift / 2 - 0.1, 0.1]),
            "rooms": rng.integers(0, 5, rows),
            "gap": pa.array(rng.normal(size=rows), mask=rng.random(rows) < 0.1 + shift / 2),
            "online": rng.random(rows) < 0.5,
        }
    )


def drift(*arguments: str | Path) -> dict[str, Any]:
    done = files.trimtab("drift", *arguments, "--json")
    assert done.code == 0, done.err
    found: dict[str, Any] = done.json
    found["by_name"] = {feature["feature"]: feature for feature in found["features"]}
    return found


def test_what_has_moved_is_found_and_the_rest_is_not(tmp_path: Path) -> None:
    before = files.parquet(table(6000), tmp_path / "a.parquet")
    now = tmp_path / "b.csv"
    pcsv.write_csv(table(4000, 1, 0.6), now)
    said = drift(before, now, "--time", "time")
    assert {name for name, one in said["by_name"].items() if one["drifted"]} == {"moved", "gap", "grade"}
    assert said["drifted"] == 3
    assert (said["reference"]["rows"], said["current"]["rows"]) == (6000, 4000)
    effects = [one["effect"] for one in said["features"]]
    assert effects == sorted(effects, reverse=True)
    gap = said["by_name"]["gap"]
    held = pq.read_table(before).column("gap").null_count / 6000
    assert gap["reference_missing_rate"] == pytest.approx(held)
    assert gap["missing_rate"] == pytest.approx(0.4, abs=0.05)
    for one in said["features"]:
        assert one["p_value"] <= one["adjusted_p_value"] <= 1
    people = files.trimtab("drift", before, now, "--time", "time")
    assert people.code == 0
    assert re.search(r"moved +0\.\d+ .* drifted", people.out)


def test_counts_are_those_of_the_values(tmp_path: Path) -> None:
    a, b = table(3000), table(2000, 1, 0.3)
    said = drift(files.parquet(a, tmp_path / "a.parquet"), files.parquet(b, tmp_path / "b.parquet"))
    grade = said["by_name"]["grade"]
    for side, counts in ((a, grade["reference_buckets"]), (b, grade["buckets"])):
        values = side.column("grade").to_pylist()
        assert counts == [values.count(name) for name in grade["bucket_names"][:-1]] + [0]
    moved = said["by_name"]["moved"]
    assert moved["mean"] == pytest.approx(np.mean(b.column("moved").to_numpy()), rel=1e-5)
    assert sum(moved["buckets"]) == 2000
    shares = np.diff([0, *EDGE_RANKS, 1000]) / 1000
    np.testing.assert_allclose(moved["reference_buckets"], 3000 * shares, atol=2)


def test_windows_add_up_and_show_when_it_began(tmp_path: Path) -> None:
    before = files.parquet(table(4000), tmp_path / "a.parquet")
    early, late = table(2000, 1, 0.0, 14.0), table(2000, 2, 1.0, 14.0)
    late = late.set_column(0, "time", pa.array(np.asarray(late.column("time").cast(pa.int64())) + 14 * DAY_US))
    early = early.set_column(0, "time", early.column("time").cast(pa.int64()))
    mixed = pa.concat_tables([late, early])  # not in the order of time
    said = drift(before, files.parquet(mixed, tmp_path / "b.parquet"), "--time", "time", "--window", "7d")
    assert [window["start_us"] for window in said["windows"]] == [MONDAY_US + i * 7 * DAY_US for i in range(4)]
    assert sum(window["rows"] for window in said["windows"]) == 4000
    moments = said["by_name"]["moved"]["over_time"]
    assert max(moment["effect"] for moment in moments[:2]) < 0.1
    assert min(moment["effect"] for moment in moments[2:]) > 0.5
    totals = np.sum([moment["buckets"] for moment in moments], axis=0)
    assert totals.tolist() == said["by_name"]["moved"]["buckets"]


def test_one_file_is_cut_at_a_time(tmp_path: Path) -> None:
    rows = table(4000)
    path = files.parquet(rows, tmp_path / "a.parquet")
    times = np.asarray(rows.column("time").cast(pa.int64()))
    said = drift(path, "--time", "time", "--until", "2013-01-07")
    assert said["reference"]["rows"] == int((times < MONDAY_US + 7 * DAY_US).sum())
    assert said["current"]["rows"] == 4000 - said["reference"]["rows"]
    assert said["reference"]["until_us"] == said["current"]["from_us"] == MONDAY_US + 7 * DAY_US
    middle = drift(path, "--time", "time")["reference"]["until_us"]
    assert middle == times[0] + (times[-1] - times[0] + 1) // 2


def test_columns_that_do_not_fit_are_named(tmp_path: Path) -> None:
    before = pa.table({"x": [1.0, 2.0], "text": ["a", "b"], "gone": [1, 2], "when": pa.array([1, 2], pa.date32())})
    now = pa.table({"x": [1, 2], "text": [1, 2], "new": [1, 2], "when": pa.array([1, 2], pa.date32())})
    a, b = files.parquet(before, tmp_path / "a.parquet"), files.parquet(now, tmp_path / "b.parquet")
    said = drift(a, b)
    assert {one["column"]: one["why"] for one in said["not_compared"]} == {
        "text": "type mismatch",
        "gone": "missing",
        "new": "new",
        "when": "not comparable",
    }
    assert list(said["by_name"]) == ["x"]
    assert said["by_name"]["x"]["reference_type"] == "double"
    assert "text: type mismatch: string in the reference, int64" in files.trimtab("drift", a, b).out
    assert "did you mean 'gone'" in files.fails("drift", a, b, "--columns", "gonne")
    assert "'gone': missing" in files.fails("drift", a, b, "--columns", "gone")


def test_what_cannot_be_is_refused_in_one_line(tmp_path: Path) -> None:
    path = files.parquet(table(100), tmp_path / "a.parquet")
    empty, header = tmp_path / "empty.csv", tmp_path / "header.csv"
    empty.write_text("")
    header.write_text("a,b\n")
    assert "is empty" in files.fails("drift", path, empty)
    assert "no rows" in files.fails("drift", header, path)
    assert "no file" in files.fails("drift", path, tmp_path / "none.csv")
    assert "needs --time" in files.fails("drift", path, code=2)
    assert "needs --time" in files.fails("drift", path, path, "--window", "7d", code=2)
    assert "expected a duration" in files.fails("drift", path, "--time", "time", "--window", "often", code=2)
    assert "windows" in files.fails("drift", path, "--time", "time", "--window", "1s", code=2)
    assert "no rows on one side" in files.fails("drift", path, "--time", "time", "--until", "1999-01-01")
    assert "expected a time" in files.fails("drift", path, "--time", "time", "--until", "soon", code=2)
    assert "go with files" in files.fails("drift", "--html", "x.html", code=2)
    assert "do not go with files" in files.fails("drift", path, path, "--windows", "3", code=2)
    assert "expected times" in files.fails("drift", path, path, "--time", "grade")


@pytest.mark.parametrize("mode", ["trimtab", "evidently"])
def test_text_that_is_not_utf8(tmp_path: Path, mode: str) -> None:
    bytes_ = [None, pa.py_buffer(np.array([0, 1, 2], np.int32)), pa.py_buffer(b"\xff\xfe")]
    bad = files.parquet(pa.table({"x": pa.Array.from_buffers(pa.string(), 2, bytes_)}), tmp_path / "bad.parquet")
    good = files.parquet(pa.table({"x": ["a", "b"]}), tmp_path / "good.parquet")
    for pair in ((good, bad), (bad, good)):
        said = files.fails("drift", *pair, "--mode", mode)
        assert said == f"trimtab: {bad}: column 'x' has text that is not UTF-8"


def test_types_that_files_have(tmp_path: Path) -> None:
    from decimal import Decimal

    rows = pa.table(
        {
            "decimal": [Decimal("1.5"), Decimal("2")],
            "huge": pa.array([2**64 - 1, 2], pa.uint64()),
            "dictionary": pa.array(["a", "b"]).dictionary_encode(),
            "half": pa.array(np.array([1, 2], np.float16)),
            "": [1, 2],
            "list": [[1], [2]],
        }
    )
    path = files.parquet(rows, tmp_path / "a.parquet")
    said = drift(path, path)
    assert set(said["by_name"]) == {"decimal", "huge", "dictionary", "half"}
    assert said["drifted"] == 0
    packed = tmp_path / "b.csv.gz"
    with pa.output_stream(str(packed), compression="gzip") as sink:
        pcsv.write_csv(table(50), sink)
    assert drift(packed, packed, "--time", "time")["current"]["rows"] == 50


def test_the_report_is_whole_and_opens_in_a_browser(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'&"
    rng = np.random.default_rng(0)
    a, b = table(3000), table(3000, 1, 0.5)
    a = a.append_column(evil, pa.array(rng.choice([evil, "b"], 3000)))
    b = b.append_column(evil, pa.array(rng.choice([evil, "c"], 3000))).append_column("extra", a.column("same"))
    paths = files.parquet(a, tmp_path / "a.parquet"), files.parquet(b, tmp_path / "b.parquet")
    page = tmp_path / "report.html"
    done = files.trimtab("drift", *paths, "--time", "time", "--window", "7d", "--html", page)
    assert done.code == 0, done.err
    text = page.read_text()
    checker = Checker()
    checker.feed(text)
    assert not checker.open
    assert not checker.tags & {"script", "link", "img", "iframe", "object", "embed"}
    assert not re.search(r"https?://|@import|<script", text)
    assert "nan" not in re.sub(r"<[^>]*>", " ", text).lower().split()
    for part in (evil, "Benjamini-Hochberg", "extra", "only in", "unseen values", "Distribution over time"):
        assert part in checker.text
    assert checker.text.index("Not compared") < checker.text.index("largest effect first")
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium is installed")
    common = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    common += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000"]
    common += ["--host-resolver-rules=MAP * ~NOTFOUND", "--proxy-server=127.0.0.1:1"]
    drawn = subprocess.run([*common, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=90)
    assert drawn.returncode == 0, drawn.stderr
    assert drawn.stdout.count("<details>") == 7


def test_columns_that_go_together_otherwise(tmp_path: Path) -> None:
    """The same columns, those of one half in another order: each as it was."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=40_000)
    both = pa.table(
        {
            "time": pa.array(MONDAY_US + np.arange(40_000) * 60_000_000).cast(pa.timestamp("us")),
            "x": x,
            "y": np.concatenate([x[:20_000] + rng.normal(size=20_000), rng.permutation(x[20_000:] * np.sqrt(2))]),
            "z": rng.normal(size=40_000),
        }
    )
    path = files.parquet(both, tmp_path / "both.parquet")
    page = tmp_path / "report.html"
    said = drift(path, "--time", "time", "--window", "2d", "--html", page)
    assert said["drifted"] == 0
    assert said["joint"]["drifted"]
    assert said["joint"]["p_value"] < 1e-6
    assert 10_000 < said["joint"]["rows"] < 22_000
    assert [one["drifted"] for one in said["joint_over_time"] if one["rows"] > 2000] == [True] * 6
    assert "Columns together" in page.read_text()
    halves = [files.parquet(both[at : at + 10_000], tmp_path / f"{at}.parquet") for at in (0, 10_000)]
    same = drift(*halves)
    assert not same["joint"]["drifted"]
    assert same["joint"]["p_value"] > 0.001
    few = drift(files.parquet(both[:50], tmp_path / "a.parquet"), files.parquet(both[50:100], tmp_path / "b.parquet"))
    assert few["joint"] is None
    text = files.trimtab("drift", path, "--time", "time")
    assert "columns together, by" in text.out
    assert "drifted" in text.out


def test_the_same_rows_are_sampled_whatever_their_order_and_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    rows = table(60_000, 4).take(pa.array(rng.permutation(60_000)))
    before = files.parquet(table(5000), tmp_path / "a.parquet")
    now = files.parquet(rows, tmp_path / "b.parquet")
    text = tmp_path / "b.csv"
    pcsv.write_csv(rows, text)
    by_parquet = drift(before, now, "--time", "time", "--window", "7d")
    assert drift(before, text, "--time", "time", "--window", "7d")["joint"] == by_parquet["joint"]
    assert drift(before, now)["joint"] == by_parquet["joint"]
    assert all(one["rows"] > 1000 for one in by_parquet["joint_over_time"][:4])


def test_rows_without_a_time_are_on_neither_side_and_told(tmp_path: Path) -> None:
    rows = table(1000)
    gap = pa.array([None if i % 5 == 0 else at for i, at in enumerate(rows["time"].to_pylist())], pa.timestamp("us"))
    path = files.parquet(rows.set_column(0, "time", gap), tmp_path / "a.parquet")
    said = drift(path, "--time", "time")
    assert said["untimed_rows"] == 200
    assert said["reference"]["rows"] + said["current"]["rows"] == 800
    assert "200 rows without a time are on neither side" in files.trimtab("drift", path, "--time", "time").out


@pytest.mark.parametrize("until", ["²", "1e400", "--5", "nan"])
def test_until_that_is_no_time_is_refused(tmp_path: Path, until: str) -> None:
    path = files.parquet(table(100), tmp_path / "a.parquet")
    said = files.fails("drift", path, "--time", "time", f"--until={until}", code=2)
    assert "--until: expected a time" in said


def test_a_time_column_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    broken = pa.StringArray.from_buffers(2, pa.py_buffer(np.asarray([0, 2, 4], np.int32)), pa.py_buffer(b"\xff\xfeab"))
    path = files.parquet(pa.table({"time": broken, "x": [1.0, 2.0]}), tmp_path / "a.parquet")
    assert "'time' has text that is not UTF-8" in files.fails("drift", path, "--time", "time")


@pytest.mark.slow
def test_memory_does_not_grow_with_rows(tmp_path: Path) -> None:
    """Two million rows take hardly more than sixty thousand: most of 180 MB of values must never be held at once."""
    code = (
        "import resource, sys; from trimtab.cli.app import main\n"
        "assert main(['drift', sys.argv[1], sys.argv[1], '--time', 'time', '--window', '1d', '--json']) == 0\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
    )
    rng = np.random.default_rng(0)
    peaks = []
    for batches in (1, 32):
        path = tmp_path / f"{batches}.parquet"
        schema = pa.schema([("time", pa.int64())] + [(f"x{i}", pa.float64()) for i in range(10)])
        with pq.ParquetWriter(path, schema) as writer:
            for i in range(batches):
                values = [pa.array(rng.normal(size=65_536)) for _ in range(10)]
                times = pa.array(1_500_000_000 + i * 65_536 + np.arange(65_536))
                writer.write_batch(pa.record_batch([times, *values], schema=schema))
        command = [sys.executable, "-c", code, str(path)]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stderr.split()[-1]))
    assert peaks[1] - peaks[0] < 64_000, peaks  # KiB


numbers = st.one_of(st.none(), st.floats(width=64), st.sampled_from([0.0, -0.0, 1e308, -1e308, 5e-324, float("inf")]))
integers = st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.integers(0, 3))
texts = st.one_of(st.none(), st.text(max_size=5), st.sampled_from(["", "a", "ü", "\0", "<b>", "𝄞"]))
COLUMNS = {"number": numbers, "integer": integers, "text": texts, "flag": st.one_of(st.none(), st.booleans())}
TYPES = {"number": pa.float64(), "integer": pa.int64(), "text": pa.string(), "flag": pa.bool_()}


@st.composite
def hostile(draw: st.DrawFn) -> pa.Table:
    rows = draw(st.integers(1, 30))
    columns: dict[str, Any] = {"nothing": pa.nulls(rows), "one": pa.array([draw(st.floats())] * rows)}
    for name, values in COLUMNS.items():
        columns[name] = pa.array(draw(st.lists(values, min_size=rows, max_size=rows)), TYPES[name])
    times = draw(st.lists(st.one_of(st.none(), st.integers(0, 10**9)), min_size=rows - 1, max_size=rows - 1))
    columns["time"] = pa.array([5, *times], pa.int64())
    return pa.table(columns)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=hostile(), now=hostile(), mode=st.sampled_from(["trimtab", "evidently"]))
def test_hostile_values(before: pa.Table, now: pa.Table, mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        a, b = (files.parquet(rows, Path(folder) / f"{name}.parquet") for name, rows in (("a", before), ("b", now)))
        page = Path(folder) / "r.html"
        options = FileOptions(a, b, (), "time", "365d", "", page, mode, everything=True)  # type: ignore[arg-type]
        drift_of_files(options, Output())
        checker = Checker()
        checker.feed(page.read_text(encoding="utf-8"))
        assert not checker.open
        capsys.readouterr()
        drift_of_files(options, Output(as_json=True))
        said = capsys.readouterr().out
    assert '"number"' in said
    import json

    found = json.loads(said)
    assert len(found["features"]) == 6
    assert sum(window["rows"] for window in found["windows"]) + found["untimed_rows"] == now.num_rows
    for feature in found["features"]:
        name = feature["feature"]
        missing = now.column(name).to_pylist()
        gone = sum(value is None or value != value or value == "" or value == -(2**63) for value in missing)
        assert feature["missing_rate"] == pytest.approx(gone / now.num_rows)
        assert feature["effect"] >= 0
        assert 0 <= feature["adjusted_p_value"] <= 1
        if mode == "trimtab" and before.column(name).equals(now.column(name)):
            assert not feature["drifted"]
