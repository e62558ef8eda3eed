"""Which columns become features: a table with every trap, and names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from trimtab.cli.errors import DataError
from trimtab.cli.profile import profile
from trimtab.cli.roles import Role, assign, words
from trimtab.cli.tables import open_table
from trimtab.cli.target import detect

from . import files


def roles(tmp_path: Path, table: pa.Table, label: str, time: str = "", **options: Any) -> dict[str, Role]:
    with open_table(files.parquet(table, tmp_path / "x.parquet"), time=time or None) as opened:
        target = detect(opened, label)
        found = profile(opened, target, opened.rows // 2)
        return {role.column: role for role in assign(found, target, time=time, **options)}


def test_every_trap_is_seen(tmp_path: Path) -> None:
    found = roles(tmp_path, files.loans(6000), "bad", "opened", label_time="outcome_at")
    uses = {name: role.kind or role.type or role.use for name, role in found.items()}
    assert uses == {
        "opened": "time",
        "loan_id": "id",
        "row": "id",
        "income": "real",
        "age": "real",
        "grade": "string",
        "children": "integer",
        "rooms": "integer",
        "online": "boolean",
        "country": "empty",
        "closed": "type",
        "recovered": "after",
        "final_balance": "after",
        "score_actual": "leak",
        "note": "id",
        "outcome_at": "label time",
    }
    assert all(role.reason for role in found.values() if role.use == "excluded")


def test_asked_for_and_back_again(tmp_path: Path) -> None:
    found = roles(
        tmp_path,
        files.loans(),
        "bad",
        "opened",
        exclude=["age"],
        include=["score_actual", "loan_id", "note", "country"],
        key=["row"],
    )
    assert found["age"].kind == "asked"
    assert found["row"].use == "key"
    assert {found[name].use for name in ("score_actual", "loan_id", "note", "country")} == {"feature"}
    assert "AUC" in found["score_actual"].hint


def test_a_key_is_a_feature_only_when_included(tmp_path: Path) -> None:
    found = roles(tmp_path, files.loans(), "bad", key=["grade"], include=["grade"])
    assert found["grade"].use == "feature"


@pytest.mark.parametrize("name", ["closed", "_hidden"])
def test_what_cannot_be_a_feature_cannot_be_included(tmp_path: Path, name: str) -> None:
    table = files.loans(200).append_column("_hidden", pa.array(np.arange(200) % 3))
    with pytest.raises(DataError, match=f"--include {name}"):
        roles(tmp_path, table, "bad", include=[name])


def test_times_in_disguise(tmp_path: Path) -> None:
    table = files.loans(1000)
    epoch = np.array(table.column("closed").cast(pa.int64()))
    table = table.append_column("closed_s", pa.array(epoch // 10**6))
    table = table.append_column("closed_text", table.column("closed").cast(pa.string()))
    found = roles(tmp_path, table, "bad", "opened")
    assert found["closed_s"].kind == "type"
    assert found["closed_text"].kind == "type"


def test_an_empty_column_and_an_unsupported_one(tmp_path: Path) -> None:
    table = files.digits(400)
    table = table.append_column("nothing", pa.nulls(400))
    table = table.append_column("lists", pa.array([[1]] * 400))
    found = roles(tmp_path, table, "kind")
    assert found["nothing"].kind == "empty"
    assert found["lists"].kind == "type"


def test_a_lag_of_the_label_is_not_from_after_the_event(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    price = np.cumsum(rng.normal(size=2000)) * 0.1 + rng.normal(size=2000)
    table = pa.table(
        {"price": price, "price_lag": np.roll(price, 1), "price_next": price + rng.normal(size=2000) * 0.3}
    )
    found = roles(tmp_path, table, "price")
    assert found["price_lag"].use == "feature"
    assert found["price_next"].kind in ("after", "leak")


def test_floats_are_categories_only_where_gaps_made_them_floats(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    whole = rng.integers(0, 5, 1000).astype(float)
    table = pa.table(
        {
            "gaps": pa.array(whole, mask=rng.random(1000) < 0.1),
            "full": whole,
            # Whole in the training rows only.
            "later": pa.array(np.where(np.arange(1000) < 600, whole, whole + 0.5), mask=rng.random(1000) < 0.1),
            "many": rng.integers(0, 1000, 1000),
            "y": rng.random(1000) < 0.5,
        }
    )
    found = roles(tmp_path, table, "y")
    types = {name: role.type for name, role in found.items()}
    assert types == {"gaps": "integer", "full": "real", "later": "real", "many": "real"}


def test_words_of_names() -> None:
    assert words("arrDelay_actual2") == {"arr", "delay", "actual", "2"}
    assert words("HTTPStatus-code") == {"http", "status", "code"}
