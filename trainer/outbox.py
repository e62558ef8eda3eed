"""What MLflow has yet to be told: messages in a small SQLite database, delivered in order, at least once.

The trainer puts and goes on; the tracker's thread drains. A message is deleted only when it was delivered, so neither
a dead tracking server nor a killed trainer loses one; whoever delivers must take a message twice. After a failure
nothing is tried for a while, which doubles up to RETRY_LAST. The number of messages is bounded: beyond `most` the
oldest go, and are counted; so is one that can never be delivered. Messages are JSON.

Beside them the outbox remembers small JSON values, for what must be known across restarts.

One lock guards the connection, and is never held while a message is delivered. A database that is corrupt is set
aside: what MLflow is told is a copy, and no reason not to train.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.store.errors import StoreError
from trimtab.store.files import make_dir

__all__ = ["Message", "MessageRefused", "Outbox"]

MOST = 10_000
RETRY_FIRST, RETRY_LAST = 1.0, 60.0
"""Seconds between attempts."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS messages (sequence INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT UNIQUE, kind TEXT, body TEXT);
CREATE TABLE IF NOT EXISTS memory (name TEXT PRIMARY KEY, body TEXT);
"""
_FIRST = "SELECT sequence, kind, body FROM messages ORDER BY sequence LIMIT 1"
_OLDEST = "DELETE FROM messages WHERE sequence IN (SELECT sequence FROM messages ORDER BY sequence LIMIT ?)"


class MessageRefused(Exception):
    """Raised by who delivers: this message can never be delivered, and would hold up all others."""


@dataclass(frozen=True)
class Message:
    """One thing to tell."""

    sequence: int
    kind: str
    body: dict[str, Any]


class Outbox:
    """The outbox at `path`. Any thread may use it; one at a time may drain. Calls raise StoreError where the database
    cannot be used."""

    def __init__(self, path: Path, *, most: int = MOST, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self.dropped = 0
        """Messages given up since the start: too many waited, or they could not be delivered."""
        self._most = most
        self._clock = clock
        self._delay = RETRY_FIRST
        self._retry_at: float | None = None
        self._lock = threading.Lock()
        make_dir(path.parent)
        try:
            self._connection = _connect(path)
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF not in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
                raise StoreError(f"cannot open {path}: {error}") from error
            aside = path.with_name(f"{path.name}.damaged")
            print(f"trainer: {path} is no outbox ({error}); it is now {aside.name}", file=sys.stderr, flush=True)
            with self._errors("replace"):
                _set_aside(path, aside)
                self._connection = _connect(path)

    def put(self, key: str, kind: str, body: dict[str, Any]) -> None:
        """Adds a message, durable when this returns; one of the same key that still waits is replaced."""
        text = json.dumps(body)
        with self._transaction() as connection:
            connection.execute("DELETE FROM messages WHERE key = ?", (key,))
            connection.execute("INSERT INTO messages (key, kind, body) VALUES (?, ?, ?)", (key, kind, text))
            over = max(_count(connection) - self._most, 0)
            if over:
                connection.execute(_OLDEST, (over,))
        self.dropped += over

    def drain(self, deliver: Callable[[Message], None], *, hurry: bool = False) -> bool:
        """Delivers what waits, oldest first, and says whether all of it was; not before the time to try again has
        come, unless in a `hurry`.

        Raises what `deliver` raised, but for MessageRefused, which gives the message up. The message stays then, and
        the time until the next attempt doubles.
        """
        if self.retry_seconds() and not hurry:
            return False
        try:
            while (message := self.first()) is not None:
                try:
                    deliver(message)
                except MessageRefused as error:
                    self.dropped += 1
                    print(f"trainer: MLflow was not told of {message.kind}: {error}", file=sys.stderr, flush=True)
                self._remove(message.sequence)
                self._delay = RETRY_FIRST
        except Exception:
            self._retry_at = self._clock() + self._delay
            self._delay = min(2 * self._delay, RETRY_LAST)
            raise
        self._retry_at = None
        return True

    def retry_seconds(self) -> float:
        """How long after a failure to wait still; 0: do not."""
        return 0.0 if self._retry_at is None else max(self._retry_at - self._clock(), 0.0)

    def first(self) -> Message | None:
        """The oldest message. Rows that are no messages are removed and counted."""
        while True:
            with self._lock, self._errors("read"):
                row = self._connection.execute(_FIRST).fetchone()
            if row is None:
                return None
            try:
                body = json.loads(row[2])
                if isinstance(body, dict):
                    return Message(int(row[0]), str(row[1]), body)
            except (ValueError, TypeError):
                pass
            self._remove(row[0])
            self.dropped += 1

    def __len__(self) -> int:
        with self._lock, self._errors("read"):
            return _count(self._connection)

    def remember(self, name: str, value: Any) -> None:
        """Keeps a JSON value for `recall`, across restarts."""
        with self._transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO memory VALUES (?, ?)", (name, json.dumps(value)))

    def recall(self, name: str) -> Any:
        """What `remember` kept; None if it kept nothing."""
        with self._lock, self._errors("read"):
            row = self._connection.execute("SELECT body FROM memory WHERE name = ?", (name,)).fetchone()
            return None if row is None else json.loads(row[0])

    def close(self) -> None:
        """Idempotent."""
        with self._lock:
            self._connection.close()

    def _remove(self, sequence: int) -> None:
        with self._transaction() as connection:
            connection.execute("DELETE FROM messages WHERE sequence = ?", (sequence,))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._errors("write"):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                # SQLite has rolled back by itself after some errors, such as a full disk.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _errors(self, action: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, ValueError, OSError) as error:
            raise StoreError(f"cannot {action} {self.path}: {error}") from error


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, check_same_thread=False, timeout=30.0, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.executescript(_SCHEMA)
        connection.execute("SELECT key, kind, body FROM messages LIMIT 1")
    except BaseException:
        connection.close()
        raise
    return connection


def _count(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT count(*) FROM messages").fetchone()[0])


def _set_aside(path: Path, aside: Path) -> None:
    os.replace(path, aside)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
