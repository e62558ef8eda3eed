"""Labels: an upsert log in SQLite. What is acknowledged is on disk, and says what became of it.

Threads. `submit` may be called from any thread and returns a future; one thread owns the connection that writes. It
stores what waits in one transaction (WAL, synchronous=FULL: one fsync for all) and then resolves the futures: group
commit. A lone submitter is not made to wait; where the last group had several, the thread waits up to `delay` for the
next one to fill. Other processes read through LabelReader, a read-only connection.

What becomes of a label, against what is stored for the same row and output:

    accepted    nothing is stored yet, or its observed_at is later than that of the current revision, which it
    supersedes duplicate   a revision with the same value and observed_at is stored; or its value is the current one
    and its observed_at
                earlier: what was known is learnt again, out of order. Not stored.
    conflict    another value, with the same observed_at as the current revision's or an earlier one: stored as a
    revision
                that is not the current one
    invalid     it is no label at all (see `refusal`): not stored

Whether a label is late, or for a row that was never captured, is not known here: the trainer's join counts these.

A value is stored as a JSON scalar; nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trimtab.store import label_table
from trimtab.store.errors import StoreError
from trimtab.store.files import make_dir, now_us
from trimtab.store.label_rows import LabelRow, Outcome, StoredLabel, refusal
from trimtab.store.label_table import sqlite_errors

__all__ = ["LabelReader", "LabelRow", "LabelStore", "Outcome", "StoredLabel", "refusal"]

_log = logging.getLogger(__name__)

# Most labels of one transaction (a single submission may have more): bounds the wait of those in it.
_GROUP = 20_000


@dataclass(frozen=True)
class _Work:
    """Something to do within a transaction, how many labels it is about, and who waits for it."""

    run: Callable[[], Any]
    size: int
    erases: bool = False
    future: Future[Any] = field(default_factory=Future)


class LabelStore:
    """The label database at `path`, for the one process that writes it."""

    def __init__(self, path: Path | str, *, delay: float = 0.002) -> None:
        """Opens or makes the database. `delay`: longest wait, in seconds, for more labels to commit together.

        Raises LabelsDamaged where the file is something else or corrupt, StoreError where it cannot be opened.
        """
        self._path = Path(path)
        self._delay = delay
        make_dir(self._path.parent)
        self._queue: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        # Used by the writer thread alone once that runs.
        self._connection = label_table.connect(self._path)
        with sqlite_errors("read", self._path):
            self._count = int(self._connection.execute("SELECT count(*) FROM labels").fetchone()[0])
        self._added = 0
        self._thread = threading.Thread(target=self._run, name="trimtab-labels", daemon=True)
        self._thread.start()

    def submit(self, labels: Sequence[LabelRow]) -> Future[list[Outcome]]:
        """Stores the labels, all or none. The future resolves to an outcome for each once they are on disk.

        It fails with StoreError (DiskFull) where they cannot be stored; they are not stored then, and may be sent
        again.
        It may be cancelled until their transaction begins, and then they are not stored either.
        """
        return self._put(_Work(lambda: self._store(labels), len(labels)))

    def forget(self, request_ids: Sequence[bytes]) -> int:
        """Deletes all revisions of these requests' labels, from the file's free pages too; gives their number.

        Waits for it. Labels given by business key are not found by a request id. Raises StoreError.
        """
        rows: int = self._put(_Work(lambda: self._forget(request_ids), 1, erases=True)).result()
        return rows

    def count(self) -> int:
        """Revisions stored."""
        return self._count

    def close(self) -> None:
        """Stores what was submitted and closes the database. Idempotent."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._thread.join()

    def _put(self, work: _Work) -> Future[Any]:
        with self._lock:
            if self._closed:
                raise StoreError("labels are closed")
            self._queue.put(work)
        return work.future

    # From here on: the writer thread.

    def _run(self) -> None:
        several = False
        while True:
            first = self._queue.get()
            if first is None:
                break
            group, ended = self._gather(first, self._delay if several else 0.0)
            self._commit(group)
            several = len(group) > 1
            if ended:
                break
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()

    def _gather(self, first: _Work, delay: float) -> tuple[list[_Work], bool]:
        """What waits, and what comes within `delay`; and whether that was the last."""
        group = [first]
        size = first.size
        deadline = time.monotonic() + delay
        while size < _GROUP:
            try:
                work = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            if work is None:
                return group, True
            group.append(work)
            size += work.size
        return group, False

    def _commit(self, group: Sequence[_Work]) -> None:
        """One transaction for the group: all of it lasts, or none."""
        # From here on nobody can cancel; a future that was cancelled while it waited must not be resolved.
        group = [work for work in group if work.future.set_running_or_notify_cancel()]
        if not group:
            return
        self._added = 0
        try:
            with sqlite_errors("write", self._path), self._transaction():
                results = [work.run() for work in group]
        except Exception as error:
            if not isinstance(error, StoreError):
                _log.exception("labels cannot be stored")
            for work in group:
                work.future.set_exception(error)
            return
        self._count += self._added
        if any(work.erases for work in group):
            with contextlib.suppress(sqlite3.Error):
                label_table.scrub(self._connection)
        for work, result in zip(group, results, strict=True):
            work.future.set_result(result)

    @contextlib.contextmanager
    def _transaction(self) -> Any:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            # SQLite has rolled back by itself after some errors, such as a full disk.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def _store(self, labels: Sequence[LabelRow]) -> list[Outcome]:
        outcomes = label_table.store(self._connection, labels, now_us())
        self._added += sum(outcome in (Outcome.ACCEPTED, Outcome.CONFLICT) for outcome in outcomes)
        return outcomes

    def _forget(self, request_ids: Sequence[bytes]) -> int:
        rows = label_table.forget(self._connection, request_ids)
        self._added -= rows
        return rows


class LabelReader:
    """Reads the label database at `path`, which another process writes. One thread at a time.

    Where there is no database yet there are no labels; it is looked for again at every call.
    """

    def __init__(self, path: Path | str) -> None:
        """Raises LabelsDamaged where the file is something else or corrupt, StoreError where it cannot be opened."""
        self._path = Path(path)
        self._connection = label_table.connect_read_only(self._path)

    def last_sequence(self) -> int:
        """The newest revision's; 0 if there is none. Raises StoreError."""
        connection = self._connected()
        if connection is None:
            return 0
        with sqlite_errors("read", self._path):
            return int(connection.execute("SELECT coalesce(max(sequence), 0) FROM labels").fetchone()[0])

    def since(self, sequence: int, limit: int = 100_000) -> list[StoredLabel]:
        """Up to `limit` revisions stored after `sequence`, in the order of storing. Raises StoreError.

        A revision read earlier loses `current` when a later one supersedes it: that later one is in a later answer.
        """
        connection = self._connected()
        if connection is None:
            return []
        with sqlite_errors("read", self._path):
            try:
                return label_table.read_since(connection, sequence, limit)
            except (ValueError, TypeError) as error:
                raise StoreError(f"{self._path}: a label after {sequence} cannot be read: {error}") from error

    def close(self) -> None:
        """Idempotent."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connected(self) -> sqlite3.Connection | None:
        if self._connection is None:
            self._connection = label_table.connect_read_only(self._path)
        return self._connection
