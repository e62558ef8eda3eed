"""DBOS, made safe and quick: the one place that knows how it is set up.

What is ours to decide: the database (SQLite under state/ by default, in WAL mode with full syncs: a workflow of eight
steps costs 40 ms instead of 200), the application version (our own schema number: a computed one would strand every
pending run after an edit), portable JSON for everything that is stored, and no pickle: DBOS keeps a deserialiser for
rows that say they are pickled, and such a row would be code from a database. It is replaced by one that raises before
DBOS reads anything.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import sqlalchemy as sa
from dbos import DBOS
from dbos import _serialization as serialization
from sqlalchemy import event
from trimtab.trainer.errors import PickleRefused

__all__ = ["SCHEMA", "abandon_foreign", "refuse_pickle", "running"]

SCHEMA = "1"
"""Grows with every change to the workflow's steps or to what they take and return."""

EXECUTOR = "trainer"


class _Refusing(serialization.Serializer):
    """Stands in for the pickle serialiser."""

    def serialize(self, data: Any) -> NoReturn:
        raise PickleRefused(f"workflow: a {type(data).__name__} was to be stored as a pickle; only JSON is")

    def deserialize(self, serialized_data: str) -> NoReturn:
        raise PickleRefused("workflow: a row of the database claims to be a pickle; it was not read")

    def name(self) -> str:
        return "py_pickle"


def refuse_pickle() -> None:
    """Replaces DBOS's pickle serialiser, wherever DBOS holds it, by one that raises."""
    refusing = _Refusing()
    serialization.DBOSDefaultSerializer = refusing

    class NoPickle:
        """What DBOS's modules see in place of the pickle module."""

        @staticmethod
        def loads(*_: Any, **__: Any) -> NoReturn:
            raise PickleRefused("workflow: a row of the database claims to be a pickle; it was not read")

        dumps = load = dump = loads

    setattr(serialization, "pickle", NoPickle)  # noqa: B010 - it is no public name


def open_engine(database: Path) -> sa.Engine:
    """SQLite in WAL mode, every commit synced."""
    engine = sa.create_engine(f"sqlite:///{database}", connect_args={"timeout": 30})

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")

    return engine


def launch(engine: sa.Engine, database: Path) -> None:
    """Sets DBOS up over the database and resumes what was pending. Call `refuse_pickle` first."""
    logging.getLogger("dbos").setLevel(logging.ERROR)
    DBOS(
        config={
            "name": "trimtab",
            "system_database_engine": engine,
            "system_database_url": f"sqlite:///{database}",
            "application_version": SCHEMA,
            "executor_id": EXECUTOR,
            "log_level": "ERROR",
            "serializer": serialization.DBOSPortableJSON,
            "notification_listener_polling_interval_sec": 1.0,
        }
    )
    DBOS.launch()


def abandon_foreign(engine: sa.Engine) -> list[tuple[str, str]]:
    """Marks pending runs that this code cannot resume as errors; gives (workflow id, why) of each.

    Those are runs of another schema number, and runs whose stored input is not portable JSON.
    """
    gone: list[tuple[str, str]] = []
    if not sa.inspect(engine).has_table("workflow_status"):
        return gone
    with engine.begin() as connection:
        rows = connection.execute(
            sa.text(
                "SELECT workflow_uuid, application_version, serialization FROM workflow_status "
                "WHERE status IN ('PENDING', 'ENQUEUED', 'DELAYED')"
            )
        ).all()
        for workflow, version, kind in rows:
            if version != SCHEMA:
                why = f"begun by workflow schema {version}, and this is schema {SCHEMA}"
            elif kind not in (None, serialization.DBOSPortableJSON.name()):
                why = f"its stored input is {kind!r}, and only {serialization.DBOSPortableJSON.name()!r} is read"
            else:
                continue
            connection.execute(
                sa.text("UPDATE workflow_status SET status = 'CANCELLED' WHERE workflow_uuid = :id"), {"id": workflow}
            )
            gone.append((str(workflow), why))
    return gone


@contextlib.contextmanager
def running(database: Path, on_abandoned: Callable[[str, str], None]) -> Iterator[sa.Engine]:
    """DBOS for the length of a block. What cannot be resumed is abandoned first, and told with its reason."""
    refuse_pickle()
    engine = open_engine(database)
    for workflow, why in abandon_foreign(engine):
        on_abandoned(workflow, why)
    launch(engine, database)
    try:
        yield engine
    finally:
        DBOS.destroy(workflow_completion_timeout_sec=0)
