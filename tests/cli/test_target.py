"""Which task a label column is, its classes, and its positive one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from trimtab.cli.errors import DataError, UserError
from trimtab.cli.tables import open_table
from trimtab.cli.target import Target, detect

from . import files


def of(tmp_path: Path, values: Any, task: str = "", positive: str = "") -> Target:
    path = files.parquet(pa.table({"y": values}), tmp_path / "y.parquet")
    with open_table(path) as table:
        return detect(table, "y", task, positive)


@pytest.mark.parametrize(
    ("values", "task", "classes"),
    [
        ([True, False, None], "binary", ("false", "true")),
        ([0, 1, 0], "binary", ("0", "1")),
        ([0.0, 1.0, float("nan")], "binary", ("0", "1")),
        ([2, 1, 2], "binary", ("2", "1")),
        (["no", "yes"], "binary", ("no", "yes")),
        (["late", "on time"], "binary", ("on time", "late")),
        (["a", "a", "b", ""], "binary", ("a", "b")),
        (["b", "c", "a"], "multiclass", ("a", "b", "c")),
        ([10, 9, 2], "multiclass", ("2", "9", "10")),
        ([0.5, 1.5, 2.5], "regression", ()),
        (list(range(30)), "regression", ()),
        ([float(i) for i in range(30)], "regression", ()),
    ],
)
def test_found(tmp_path: Path, values: Any, task: str, classes: tuple[str, ...]) -> None:
    found = of(tmp_path, values)
    assert (found.task, found.classes) == (task, classes)


def test_given(tmp_path: Path) -> None:
    assert of(tmp_path, [0, 1, 2], "regression").task == "regression"
    assert of(tmp_path, list(range(30)), "multiclass").classes[-1] == "29"
    assert of(tmp_path, [0, 1], positive="0").positive == "0"
    assert of(tmp_path, [True, False], positive="0").positive == "false"
    assert of(tmp_path, ["Y", "N"], positive="n").positive == "N"


@pytest.mark.parametrize(
    ("values", "task", "positive", "said"),
    [
        ([1, 1], "", "", "'1' in every row"),
        ([None, None], "", "", "missing in every row"),
        ([1, 2, 3], "binary", "", "3 distinct values, not 2"),
        ([1, 2], "multiclass", "", "that is a binary task"),
        (["a", "b", "c"], "regression", "", "not a number"),
        ([1, 2], "binary", "3", "has '1' and '2', not '3'"),
        (["a", "b", "c"], "", "a", "--positive is for binary"),
        ([0.5, 1.5, 3.0], "", "1", "--positive is for binary"),
        ([1, 2], "ranking", "", "--task: expected"),
        ([f"s{i}" for i in range(60)], "", "", "60 distinct values"),
        (pa.array([0, 1]).cast(pa.timestamp("s")), "", "", "expected numbers, booleans or strings"),
        ([0.0, float("inf")], "", "", "infinite"),
    ],
)
def test_what_cannot_be_a_label(tmp_path: Path, values: Any, task: str, positive: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        of(tmp_path, values, task, positive)


def test_a_label_that_is_not_there(tmp_path: Path) -> None:
    path = files.parquet(files.digits(10), tmp_path / "x.parquet")
    with open_table(path) as table, pytest.raises(DataError, match="no column 'kinds'"):
        detect(table, "kinds")


def test_encoding(tmp_path: Path) -> None:
    binary = of(tmp_path, ["no", "yes", "no"])
    found = binary.encode(pa.array(["yes", "no", None, "", "yes"]))
    assert np.array_equal(found, [1, 0, np.nan, np.nan, 1], equal_nan=True)
    assert of(tmp_path, [0.0, 1.0]).encode(pa.array([1.0, None])).tolist()[0] == 1.0
    numbers = of(tmp_path, [0.5, 1.5, 2.5])
    assert np.array_equal(numbers.encode(pa.array([2, None])), [2.0, np.nan], equal_nan=True)
    assert binary.counts == {"no": 2, "yes": 1}
