"""`trimtab drift` tells where numbers lie and which values are new, exactly enough, for any kind of column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from trimtab.cli.drift_values import NEW_VALUES, SHARES, ColumnValues, tell_new
from trimtab.kernels.fit_sketch import fit_sketch
from trimtab.kernels.program import Field
from trimtab.kernels.quantiles import RELATIVE_ERROR
from trimtab.kernels.sketch_spec import CategoryField
from trimtab.kernels.slabs import arrays_from_arrow

from . import files

FIELDS = (
    Field("x", "real"),
    Field("many", "integer"),
    Field("few", "integer"),
    Field("text", "string"),
    Field("flag", "boolean"),
)


def rows(count: int, texts: list[str], few: list[int]) -> pa.RecordBatch:
    random = np.random.default_rng(count)
    return pa.record_batch(
        {
            "x": pa.array(np.exp(random.normal(size=count) * 5), mask=random.random(count) < 0.1),
            "many": pa.array(random.integers(-1000, 1000, count), mask=random.random(count) < 0.1),
            "few": pa.array(random.choice(few, count)),
            "text": pa.array(random.choice(texts, count)),
            "flag": pa.array(random.random(count) < 0.5),
        }
    )


def test_quantiles_and_new_values_by_column() -> None:
    before, now = rows(3000, ["a", "b"], [1, 2]), rows(4000, ["b", "new", "newer", ""], [2, -5])
    program = fit_sketch(FIELDS, [before])
    values = ColumnValues(program)
    for start in range(0, now.num_rows, 700):
        values.add(arrays_from_arrow(now.slice(start, 700), program.schema))
    for index, name in ((0, "x"), (1, "many")):
        exact = np.quantile(now.column(name).drop_null().to_numpy(), SHARES, method="inverted_cdf")
        np.testing.assert_allclose(values.quantiles(index), exact, rtol=RELATIVE_ERROR + 2.0**-23)
    assert [values.quantiles(index) for index in (2, 3, 4)] == [(), (), ()]
    for index, name, new in ((2, "few", [-5]), (3, "text", ["new", "newer"])):
        spec = program.sketch.fields[index]
        assert isinstance(spec, CategoryField)
        held: list[Any] = now.column(name).to_pylist()
        expected = sorted(((value, held.count(value)) for value in new), key=lambda pair: (-pair[1], pair[0]))
        assert [(one.value, one.rows) for one in values.new_values(index, spec)] == expected


def test_only_the_most_frequent_new_values_are_told() -> None:
    program = fit_sketch(FIELDS[3:4], [pa.record_batch({"text": ["a"]})])
    values = ColumnValues(program)
    now = [f"v{i:02}" for i in range(40) for _ in range(i + 1)]
    values.add(arrays_from_arrow(pa.record_batch({"text": now}), program.schema))
    spec = program.sketch.fields[0]
    assert isinstance(spec, CategoryField)
    found = values.new_values(0, spec)
    assert [one.value for one in found] == [f"v{i}" for i in range(39, 39 - NEW_VALUES, -1)]
    assert tell_new(found[:1], len(now)) == "'v39' 4.88%"


@pytest.mark.parametrize("evil", ["\x1b[31mred", "<b>bold</b>"])
def test_the_command_says_which_values_are_new(tmp_path: Path, evil: str) -> None:
    before, now = rows(3000, ["a", "b"], [1, 2]), rows(4000, ["a", "b", evil], [1, 2])
    paths = [
        files.parquet(pa.Table.from_batches([batch]), tmp_path / name)
        for batch, name in ((before, "a.parquet"), (now, "b.parquet"))
    ]
    page = tmp_path / "report.html"
    done = files.trimtab("drift", *paths, "--html", page)
    assert done.code == 0, done.err
    assert f"text: values that the reference does not have: {evil!r} 3" in done.out
    assert "\x1b[31m" not in done.out
    text = page.read_text()
    assert "new values:" in text
    assert "1 %, median, 99 %:" in text
    assert "<b>bold" not in text
    said = files.trimtab("drift", *paths, "--json").json
    by_name = {one["feature"]: one for one in said["features"]}
    assert [one["value"] for one in by_name["text"]["new_values"]] == [evil]
    assert len(by_name["x"]["quantiles"]) == len(by_name["x"]["reference_quantiles"]) == len(SHARES)
    assert by_name["few"]["new_values"] == []
