"""What MLflow has yet to be told: messages in a small SQLite database, delivered in order, at least once.

The trainer puts and goes on; the tracker's thread delivers. A message is deleted only when it was delivered, so
neither a dead tracking server nor a killed trainer loses one; whoever delivers must take a message twice. The number
of messages is bounded: beyond MOST the oldest go, and are counted. Messages are JSON.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.store.errors import StoreError
from trimtab.store.files import make_dir

__all__ = ["Message", "Outbox"]

MOST = 10_000

_SCHEMA = """
CREATE TABLE IF NOT EXISTS messages (sequence INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT UNIQUE, kind TEXT, body TEXT);
CREATE TABLE IF NOT EXISTS memory (name TEXT PRIMARY KEY, body TEXT);
"""


@dataclass(frozen=True)
class Message:
    """One thing to tell."""

    sequence: int
    kind: str
    body: dict[str, Any]


class Outbox:
    """The outbox at `path`. Any thread may use it. Every call raises StoreError where the database cannot be used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.dropped = 0
        """Messages that were given up because too many waited."""
        self._lock = threading.Lock()
        make_dir(path.parent)
        with self._open("open"):
            self._connection = sqlite3.connect(path, check_same_thread=False, timeout=30.0, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.executescript(_SCHEMA)

    def put(self, key: str, kind: str, body: dict[str, Any]) -> None:
        """Adds a message; one of the same key that still waits is replaced."""
        with self._lock, self._open("write"):
            self._connection.execute("DELETE FROM messages WHERE key = ?", (key,))
            self._connection.execute(
                "INSERT INTO messages (key, kind, body) VALUES (?, ?, ?)", (key, kind, json.dumps(body))
            )
            over = len(self) - MOST
            if over > 0:
                self._connection.execute(
                    "DELETE FROM messages WHERE sequence IN (SELECT sequence FROM messages ORDER BY sequence LIMIT ?)",
                    (over,),
                )
                self.dropped += over

    def first(self) -> Message | None:
        """The oldest message."""
        with self._lock, self._open("read"):
            row = self._connection.execute(
                "SELECT sequence, kind, body FROM messages ORDER BY sequence LIMIT 1"
            ).fetchone()
        return None if row is None else Message(int(row[0]), str(row[1]), json.loads(row[2]))

    def delivered(self, message: Message) -> None:
        """Deletes it."""
        with self._lock, self._open("write"):
            self._connection.execute("DELETE FROM messages WHERE sequence = ?", (message.sequence,))

    def __len__(self) -> int:
        return int(self._connection.execute("SELECT count(*) FROM messages").fetchone()[0])

    def remember(self, name: str, value: Any) -> None:
        """Keeps a JSON value for `recall`, across restarts."""
        with self._lock, self._open("write"):
            self._connection.execute("INSERT OR REPLACE INTO memory VALUES (?, ?)", (name, json.dumps(value)))

    def recall(self, name: str) -> Any:
        """What `remember` kept; None if it kept nothing."""
        with self._lock, self._open("read"):
            row = self._connection.execute("SELECT body FROM memory WHERE name = ?", (name,)).fetchone()
        return None if row is None else json.loads(row[0])

    def close(self) -> None:
        """Idempotent."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def _open(self, action: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, ValueError) as error:
            raise StoreError(f"cannot {action} {self.path}: {error}") from error
