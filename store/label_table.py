"""The table of labels: its SQL, and the rules of what becomes of a label. Knows no threads; transactions are the
caller's.

    labels(sequence, request_id, row, key, output, revision, current, value, weight, observed_at_us, received_at_us,
    source)

A label's target is (request_id, row, output), or (key, output). Its revisions are numbered from 1; one of them is
current.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from trimtab.store.errors import DiskFull, LabelsDamaged, StoreError
from trimtab.store.label_rows import LabelRow, Outcome, StoredLabel, decode_value, encode_value, refusal

__all__ = ["connect", "connect_read_only", "forget", "read_since", "scrub", "sqlite_errors", "store"]

_APPLICATION_ID = 0x5452494D  # "TRIM"
_FORMAT = 1

_SCHEMA = """
CREATE TABLE labels(
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    request_id BLOB, row INTEGER NOT NULL, key TEXT, output TEXT NOT NULL,
    revision INTEGER NOT NULL, current INTEGER NOT NULL,
    value TEXT NOT NULL, weight REAL NOT NULL,
    observed_at_us INTEGER NOT NULL, received_at_us INTEGER NOT NULL, source TEXT NOT NULL,
    CHECK ((request_id IS NULL) <> (key IS NULL))
) STRICT;
CREATE UNIQUE INDEX labels_by_request ON labels(request_id, row, output, revision) WHERE request_id IS NOT NULL;
CREATE UNIQUE INDEX labels_by_key ON labels(key, output, revision) WHERE key IS NOT NULL;
"""
_INSERT = """
INSERT OR IGNORE INTO labels
    (request_id, row, key, output, revision, current, value, weight, observed_at_us, received_at_us, source)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_REVISIONS = "SELECT sequence, revision, current, value, observed_at_us FROM labels WHERE "
_BY_REQUEST = _REVISIONS + "request_id = ? AND row = ? AND output = ? ORDER BY revision"
_BY_KEY = _REVISIONS + "key = ? AND output = ? ORDER BY revision"
_SINCE = """
SELECT sequence, revision, current, request_id, row, key, output, value, weight, observed_at_us, received_at_us, source
FROM labels WHERE sequence > ? ORDER BY sequence LIMIT ?
"""


def connect(path: Path) -> sqlite3.Connection:
    """A connection that writes, to a database that is made if there is none. Raises LabelsDamaged, StoreError."""
    with sqlite_errors("open", path):
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            # What forget deletes must not stay readable in free pages.
            connection.execute("PRAGMA secure_delete = ON")
            if not connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
                connection.executescript(
                    f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {_FORMAT};"
                    f"PRAGMA application_id = {_APPLICATION_ID}; COMMIT;"
                )
            _check_format(connection, path)
        except BaseException:
            connection.close()
            raise
    return connection


def connect_read_only(path: Path) -> sqlite3.Connection | None:
    """A connection that only reads; None if there is no database yet. Raises LabelsDamaged, StoreError."""
    if not path.exists():
        return None
    with sqlite_errors("open", path):
        uri = f"file:{quote(str(path.absolute()))}?mode=ro"
        connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=5.0)
        try:
            made = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
            if made:
                _check_format(connection, path)
        except BaseException:
            connection.close()
            raise
    if not made:
        connection.close()
        return None
    return connection


def store(connection: sqlite3.Connection, labels: Sequence[LabelRow], received_at_us: int) -> list[Outcome]:
    """Stores the labels within the caller's transaction; what became of each."""
    wrong = [refusal(label) is not None for label in labels]
    valid = [label for label, bad in zip(labels, wrong, strict=True) if not bad]
    outcomes = iter(_store_valid(connection, valid, received_at_us))
    return [Outcome.INVALID if bad else next(outcomes) for bad in wrong]


def forget(connection: sqlite3.Connection, request_ids: Sequence[bytes]) -> int:
    """Deletes all revisions of these requests' labels; their number."""
    cursor = connection.executemany("DELETE FROM labels WHERE request_id = ?", [(value,) for value in request_ids])
    return cursor.rowcount


def scrub(connection: sqlite3.Connection) -> None:
    """Takes what was deleted out of the write-ahead log too, as far as readers allow it now."""
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def read_since(connection: sqlite3.Connection, sequence: int, limit: int) -> list[StoredLabel]:
    """Up to `limit` revisions after `sequence`, in order."""
    return [
        StoredLabel(number, revision, bool(current), request_id, row, key, output, decode_value(value), *rest)
        for number, revision, current, request_id, row, key, output, value, *rest in connection.execute(
            _SINCE, (sequence, limit)
        )
    ]


@contextlib.contextmanager
def sqlite_errors(action: str, path: Path) -> Iterator[None]:
    """Turns SQLite's errors into one line that names the file: DiskFull, LabelsDamaged or StoreError."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            raise DiskFull(f"cannot {action} {path}: the disk is full; free some space") from error
        if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            raise LabelsDamaged(
                f"{path} is not a label database, or is corrupt ({error}); put back a copy or move it away"
            ) from error
        raise StoreError(f"cannot {action} {path}: {error}") from error


def _store_valid(connection: sqlite3.Connection, labels: Sequence[LabelRow], received_at_us: int) -> list[Outcome]:
    # Almost always every label is its row's first: then one statement does for all.
    connection.execute("SAVEPOINT firsts")
    rows = [_columns(label, 1, True, received_at_us) for label in labels]
    if connection.executemany(_INSERT, rows).rowcount == len(rows) or not rows:
        connection.execute("RELEASE firsts")
        return [Outcome.ACCEPTED] * len(rows)
    connection.execute("ROLLBACK TO firsts")
    connection.execute("RELEASE firsts")
    return [_store_one(connection, label, received_at_us) for label in labels]


def _store_one(connection: sqlite3.Connection, label: LabelRow, received_at_us: int) -> Outcome:
    if label.request_id is not None:
        found = connection.execute(_BY_REQUEST, (label.request_id, label.row, label.output))
    else:
        found = connection.execute(_BY_KEY, (label.key, label.output))
    revisions = found.fetchall()
    value = encode_value(label.value)
    if any((stored, at) == (value, label.observed_at_us) for _, _, _, stored, at in revisions):
        return Outcome.DUPLICATE
    holds = next((revision for revision in revisions if revision[2]), None)
    newest = revisions[-1][1] if revisions else 0
    if holds is None or label.observed_at_us > holds[4]:
        if holds is not None:
            connection.execute("UPDATE labels SET current = 0 WHERE sequence = ?", (holds[0],))
        connection.execute(_INSERT, _columns(label, newest + 1, True, received_at_us))
        return Outcome.ACCEPTED
    if value == holds[3]:
        return Outcome.DUPLICATE
    connection.execute(_INSERT, _columns(label, newest + 1, False, received_at_us))
    return Outcome.CONFLICT


def _columns(label: LabelRow, revision: int, current: bool, received_at_us: int) -> tuple[object, ...]:
    return (
        label.request_id,
        label.row,
        label.key,
        label.output,
        revision,
        current,
        encode_value(label.value),
        label.weight,
        label.observed_at_us,
        received_at_us,
        label.source,
    )


def _check_format(connection: sqlite3.Connection, path: Path) -> None:
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application != _APPLICATION_ID:
        raise LabelsDamaged(f"{path} is another program's database; move it away")
    if version != _FORMAT:
        raise LabelsDamaged(f"{path} has format {version}, expected {_FORMAT}: it was written by another release")
