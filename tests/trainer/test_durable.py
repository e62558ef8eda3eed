"""The workflow database: nothing in it is ever unpickled, and runs that cannot be resumed end with a reason."""

from __future__ import annotations

import base64
import os
import pickle
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from trimtab.store.project import Project
from trimtab.store.versions import VersionStore
from trimtab.trainer.durable import SCHEMA

from .stream import MODEL, make_project, serving


class Payload:
    """A pickle of this makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def planted(path: Path) -> str:
    return base64.b64encode(pickle.dumps(Payload(path))).decode()


def test_the_payload_works_where_it_is_loaded(tmp_path: Path) -> None:
    pickle.loads(base64.b64decode(planted(tmp_path / "executed")))  # noqa: S301
    assert (tmp_path / "executed").is_dir()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose workflow database has one finished run."""
    made = make_project(tmp_path_factory.mktemp("durable") / "project")
    with serving(made) as server:
        server.play(40, 76)
        assert server.stop() == 0
    return made


def fill(database: Path, payload: str) -> int:
    """Puts the payload in every text and blob column of every table, as rows of a run that is pending."""
    connection = sqlite3.connect(database)
    try:
        version = connection.execute("SELECT application_version FROM workflow_status LIMIT 1").fetchone()
        assert version == (SCHEMA,)
        columns = [row[1] for row in connection.execute("PRAGMA table_info(workflow_status)")]
        template = dict(
            zip(columns, connection.execute("SELECT * FROM workflow_status LIMIT 1").fetchone(), strict=True)
        )
        runs = [
            ("plant-pickled", SCHEMA, "py_pickle"),
            ("plant-unnamed", SCHEMA, None),
            ("plant-foreign", "0", "portable_json"),
        ]
        for name, schema, serialization in runs:
            row = {
                **template,
                "workflow_uuid": f"{MODEL}-refresh-{name}",
                "status": "PENDING",
                "inputs": payload,
                "output": payload,
                "error": payload,
                "request": payload,
                "application_version": schema,
                "serialization": serialization,
                "completed_at": None,
            }
            marks = ", ".join("?" for _ in row)
            connection.execute(f"INSERT INTO workflow_status ({', '.join(row)}) VALUES ({marks})", tuple(row.values()))
        changed = connection.execute(
            "UPDATE operation_outputs SET output = ?, error = ?, serialization = 'py_pickle'", (payload, payload)
        ).rowcount
        connection.commit()
        return changed
    finally:
        connection.close()


@pytest.mark.slow
def test_a_pickle_planted_in_every_column_is_never_executed(project: Project, tmp_path: Path) -> None:
    executed = tmp_path / "executed"
    payload = planted(executed)
    assert fill(project.state / "dbos.sqlite", payload) > 0
    labels = sqlite3.connect(project.model_state(MODEL).labels)
    labels.execute("UPDATE labels SET source = ?", (payload,))
    labels.commit()
    labels.close()
    with serving(project) as server:
        server.play(76, 80)
        assert server.stop() == 0
    assert not executed.exists()
    store = VersionStore(project.model_state(MODEL).versions)
    reasons = {store.owner(line.version): line.reason for line in store.decisions() if line.verdict == "abandoned"}
    assert "pickle" in reasons[f"{MODEL}-refresh-plant-pickled"]
    assert "schema 0" in reasons[f"{MODEL}-refresh-plant-foreign"]


def test_dbos_itself_cannot_unpickle_in_this_process(tmp_path: Path) -> None:
    executed = tmp_path / "executed"
    code = f"""
from trimtab.trainer.durable import refuse_pickle
from trimtab.trainer.errors import PickleRefused
refuse_pickle()
from dbos import _serialization as s
refused = 0
for attempt in (
    lambda: s.deserialize_value({planted(executed)!r}, "py_pickle", s.DBOSPortableJSON),
    lambda: s.deserialize_args({planted(executed)!r}, "py_pickle", s.DBOSPortableJSON),
    lambda: s.DefaultSerializer().deserialize({planted(executed)!r}),
    lambda: s.deserialize_exception({planted(executed)!r}, "py_pickle", s.DBOSPortableJSON),
):
    try:
        attempt()
    except PickleRefused:
        refused += 1
print(refused)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "4"
    assert not executed.exists()
