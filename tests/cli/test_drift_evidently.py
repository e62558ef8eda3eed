"""`--mode evidently` against the Evidently package on the same files.

The package is no dependency: it runs in an interpreter of its own, this one or that of $TRIMTAB_EVIDENTLY_PYTHON. What
it said once (0.7.23) is kept below, so that the arithmetic is checked without it, too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from . import files

SCRIPT = """
import json, sys, warnings
warnings.simplefilter("ignore")
import pandas as pd
from evidently import Report
from evidently.presets import DataDriftPreset
reference, current = (pd.read_parquet(path) for path in sys.argv[1:])
said = Report([DataDriftPreset()]).run(current, reference).dict()
found = {}
for metric in said["metrics"]:
    config = metric["config"]
    if config["type"].endswith("ValueDrift"):
        found[config["column"]] = (config["method"], float(metric["value"]))
    else:
        found[""] = ("share", float(metric["value"]["share"]))
print(json.dumps(found))
"""
NAMES = {
    "K-S p_value": "ks",
    "chi-square p_value": "chisquare",
    "Z-test p_value": "z",
    "Wasserstein distance (normed)": "wasserstein",
    "Jensen-Shannon distance": "jensenshannon",
}

# Rows of the reference, shift: what version 0.7.23 said; "" is the share of columns that drift.
SAID = {
    (1000, 0.1): {
        "": ("share", 0.46153846153846156),
        "same": ("ks", 0.8729162398715546),
        "moved": ("ks", 0.36861478478416443),
        "heavy": ("ks", 0.35058365079118536),
        "four": ("chisquare", 3.209279426370703e-05),
        "two": ("z", 0.16270408813549464),
        "one": ("z", 1.0),
        "gaps": ("ks", 0.0),
        "wide": ("ks", 0.33314057297788874),
        "count": ("chisquare", 0.0007471497332102663),
        "flag": ("z", 0.00017033230300156355),
        "grade": ("chisquare", 4.3266114530585205e-23),
        "new": ("chisquare", 0.0),
        "sex": ("z", 0.9082515899118702),
    },
    (1001, 0.05): {
        "": ("share", 0.15384615384615385),
        "same": ("wasserstein", 0.03137978126550551),
        "moved": ("wasserstein", 0.04013438157960643),
        "heavy": ("wasserstein", 0.029388920332665592),
        "four": ("jensenshannon", 0.03085106814464917),
        "two": ("jensenshannon", 0.013811528647511222),
        "one": ("jensenshannon", 0.0),
        "gaps": ("ks", 0.0),
        "wide": ("wasserstein", 0.05292138714054062),
        "count": ("jensenshannon", 0.06635461376205878),
        "flag": ("jensenshannon", 0.04138538764205167),
        "grade": ("jensenshannon", 0.06774931709758589),
        "new": ("jensenshannon", 0.35361365011097334),
        "sex": ("z", 0.5664696875396085),
    },
}


def side(rows: int, seed: int, shift: float) -> pa.Table:
    rng = np.random.default_rng(seed)
    gaps = rng.normal(3 + shift, 1e-4, rows)
    gaps[rng.random(rows) < 0.05] = np.inf
    return pa.table(
        {
            "same": rng.normal(size=rows),
            "moved": rng.normal(shift, 1, rows),
            "heavy": rng.standard_cauchy(rows) * (1 + shift),
            "four": rng.choice([1.5, 2.5, 3.5, 4.5], rows, p=[0.4 - shift / 2, 0.3, 0.2, 0.1 + shift / 2]),
            "two": rng.choice([0.0, 1.0], rows, p=[0.5 + shift / 2, 0.5 - shift / 2]),
            "one": np.full(rows, 7.25),
            "gaps": pa.array(gaps, mask=rng.random(rows) < 0.1 + shift),
            "count": rng.poisson(1 + shift, rows).clip(0, 8),
            "wide": rng.integers(0, 1000, rows),
            "flag": rng.random(rows) < 0.5 + shift,
            "grade": rng.choice(["a", "b", "ü", "<c>"], rows, p=[0.5 - shift, 0.3, 0.1, 0.1 + shift]),
            "new": rng.choice(["x", "y"] + ["z"] * (seed % 2), rows),
            "sex": pa.array(rng.choice(["f", "m"], rows), mask=rng.random(rows) < 0.2),
        }
    )


def pair(folder: Path, rows: int, shift: float) -> tuple[Path, Path]:
    reference = files.parquet(side(rows, 2, 0.0), folder / "reference.parquet")
    return reference, files.parquet(side(rows * 3 // 4, 3, shift), folder / "current.parquet")


def interpreter() -> str:
    python = os.environ.get("TRIMTAB_EVIDENTLY_PYTHON", sys.executable)
    found = subprocess.run([python, "-c", "import evidently.presets"], capture_output=True, timeout=120)
    if found.returncode:
        pytest.skip("Evidently is not installed (TRIMTAB_EVIDENTLY_PYTHON: an interpreter that has it)")
    return python


def judged(folder: Path, rows: int, shift: float) -> tuple[dict[str, Any], dict[str, Any]]:
    said = files.trimtab("drift", *pair(folder, rows, shift), "--mode", "evidently", "--json", "--all")
    assert said.code == 0, said.err
    return said.json, {feature["feature"]: feature["evidently"] for feature in said.json["features"]}


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "shift"), [(200, 0.0), (1000, 0.1), (1001, 0.05), (20_000, 0.1)])
def test_the_same_tests_scores_and_share_as_the_package(tmp_path: Path, rows: int, shift: float) -> None:
    python = interpreter()
    said, found = judged(tmp_path, rows, shift)
    paths = (tmp_path / "reference.parquet", tmp_path / "current.parquet")
    theirs = subprocess.run([python, "-c", SCRIPT, *map(str, paths)], capture_output=True, text=True, timeout=300)
    assert theirs.returncode == 0, theirs.stderr
    expected = json.loads(theirs.stdout.strip().split("\n")[-1])
    assert said["dataset"]["share"] == pytest.approx(expected.pop("")[1])
    assert set(expected) == set(found)
    for name, (test, score) in expected.items():
        assert found[name]["test"] == NAMES[test], name
        assert found[name]["score"] == pytest.approx(score, rel=1e-9, abs=1e-12), name


@pytest.mark.parametrize(("rows", "shift"), SAID)
def test_what_the_package_once_said(tmp_path: Path, rows: int, shift: float) -> None:
    said, found = judged(tmp_path, rows, shift)
    expected = dict(SAID[rows, shift])
    assert said["dataset"]["share"] == pytest.approx(expected.pop("")[1])
    assert set(expected) == set(found)
    for name, (test, score) in expected.items():
        assert found[name]["test"] == test, name
        assert found[name]["score"] == pytest.approx(score, rel=1e-9, abs=1e-12), name
        small = found[name]["threshold"] == 0.05
        assert found[name]["drifted"] == (score < 0.05 if small else score >= 0.1)


def test_text_is_left_alone_and_empty_columns_have_no_verdict(tmp_path: Path) -> None:
    rows = pa.table({"id": [f"u{i}" for i in range(40)], "none": pa.nulls(40, pa.float64()), "x": list(range(40))})
    path = files.parquet(rows, tmp_path / "a.parquet")
    said = files.trimtab("drift", path, path, "--mode", "evidently", "--json").json
    verdicts = {feature["feature"]: feature.get("evidently") for feature in said["features"]}
    assert verdicts["id"] is None
    assert verdicts["none"] is None
    assert verdicts["x"]["test"] == "ks"
    assert said["dataset"] == {"share": 0.0, "threshold": 0.5, "drifted": False}


def test_a_sample_of_a_large_file_is_near_the_whole(tmp_path: Path) -> None:
    """The numbers of 150,000 rows are judged by 100,000: within five deviations of what all of them give."""
    from scipy.stats import wasserstein_distance

    a, b = (np.random.default_rng(seed).normal(0.1 * seed, 1, 150_000) for seed in (0, 1))
    paths = [files.parquet(pa.table({"x": x}), tmp_path / f"{i}.parquet") for i, x in enumerate((a, b))]
    verdict = files.trimtab("drift", *paths, "--mode", "evidently", "--json").json["features"][0]["evidently"]
    assert verdict["test"] == "wasserstein"
    assert verdict["score"] == pytest.approx(wasserstein_distance(a, b) / a.std(), abs=5 / 100_000**0.5)
