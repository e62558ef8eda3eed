"""The outbox: order, at least once, bounds, back-off, restarts, and files that are not what they should be."""

from __future__ import annotations

import os
import pickle
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from trimtab.store.errors import StoreError
from trimtab.trainer.outbox import RETRY_FIRST, RETRY_LAST, Message, MessageRefused, Outbox


class Clock:
    """A monotonic clock that moves when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Receiver:
    """Takes messages, unless told to fail."""

    def __init__(self) -> None:
        self.got: list[int] = []
        self.attempts = 0
        self.error: Exception | None = None

    def __call__(self, message: Message) -> None:
        self.attempts += 1
        if self.error is not None:
            raise self.error
        self.got.append(message.body["n"])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m" / "outbox.sqlite"


def fill(outbox: Outbox, count: int) -> None:
    for n in range(count):
        outbox.put(f"key {n}", "number", {"n": n})


def test_delivers_in_order_and_once(path: Path) -> None:
    outbox, receiver = Outbox(path), Receiver()
    fill(outbox, 5)
    assert outbox.drain(receiver)
    assert receiver.got == [0, 1, 2, 3, 4]
    assert len(outbox) == 0
    assert outbox.drain(receiver)
    assert receiver.attempts == 5
    outbox.close()


def test_same_key_replaces_what_waits(path: Path) -> None:
    outbox, receiver = Outbox(path), Receiver()
    outbox.put("live", "number", {"n": 1})
    outbox.put("other", "number", {"n": 2})
    outbox.put("live", "number", {"n": 3})
    assert outbox.drain(receiver)
    assert receiver.got == [2, 3]
    outbox.close()


def test_put_while_delivering_is_delivered_too(path: Path) -> None:
    outbox = Outbox(path)
    got: list[int] = []

    def deliver(message: Message) -> None:
        got.append(message.body["n"])
        if len(got) == 1:
            # The same key as the message under way: both must arrive.
            outbox.put("key 0", "number", {"n": 7})

    fill(outbox, 1)
    assert outbox.drain(deliver)
    assert got == [0, 7]
    outbox.close()


def test_failure_keeps_the_message_and_backs_off(path: Path) -> None:
    clock = Clock()
    outbox, receiver = Outbox(path, clock=clock), Receiver()
    fill(outbox, 2)
    receiver.error = ConnectionError("gone")
    waits = []
    for _ in range(9):
        with pytest.raises(ConnectionError):
            outbox.drain(receiver)
        waits.append(outbox.retry_seconds())
        assert not outbox.drain(receiver), "not before its time"
        clock.now += waits[-1]
    assert waits == [min(RETRY_FIRST * 2**i, RETRY_LAST) for i in range(9)]
    assert receiver.attempts == 9
    receiver.error = None
    assert outbox.drain(receiver)
    assert receiver.got == [0, 1]
    receiver.error = ConnectionError("gone again")
    fill(outbox, 1)
    with pytest.raises(ConnectionError):
        outbox.drain(receiver)
    assert outbox.retry_seconds() == RETRY_FIRST, "a delivery resets the back-off"
    outbox.close()


def test_hurry_does_not_wait(path: Path) -> None:
    outbox, receiver = Outbox(path, clock=Clock()), Receiver()
    fill(outbox, 1)
    receiver.error = ConnectionError("gone")
    with pytest.raises(ConnectionError):
        outbox.drain(receiver)
    receiver.error = None
    assert outbox.drain(receiver, hurry=True)
    assert receiver.got == [0]
    assert outbox.retry_seconds() == 0.0
    outbox.close()


def test_refused_message_does_not_hold_up_the_others(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outbox = Outbox(path)
    got = []

    def deliver(message: Message) -> None:
        if message.body["n"] == 1:
            raise MessageRefused("never heard of it")
        got.append(message.body["n"])

    fill(outbox, 3)
    assert outbox.drain(deliver)
    assert got == [0, 2]
    assert outbox.dropped == 1
    assert "never heard of it" in capsys.readouterr().err
    outbox.close()


def test_oldest_are_dropped_and_counted_beyond_the_bound(path: Path) -> None:
    outbox, receiver = Outbox(path, most=3), Receiver()
    fill(outbox, 8)
    assert len(outbox) == 3
    assert outbox.dropped == 5
    outbox.drain(receiver)
    assert receiver.got == [5, 6, 7]
    outbox.close()


def test_restart_finds_what_waited_and_what_was_remembered(path: Path) -> None:
    outbox = Outbox(path)
    fill(outbox, 3)
    outbox.remember("written", 4)
    outbox.remember("written", 5)
    outbox.close()
    outbox.close()
    again, receiver = Outbox(path), Receiver()
    assert again.recall("written") == 5
    assert again.recall("never") is None
    again.drain(receiver)
    assert receiver.got == [0, 1, 2]
    again.close()


_WRITER = """
import sys
from pathlib import Path
from trimtab.trainer.outbox import Outbox
outbox = Outbox(Path(sys.argv[1]))
n = 0
while True:
    outbox.put("live", "live", {"n": n})
    outbox.put(f"key {n}", "number", {"n": n})
    print(n, flush=True)
    n += 1
"""


def test_kill_9_loses_nothing_that_was_put(path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while int(process.stdout.readline()) < 30:
        pass
    os.kill(process.pid, signal.SIGKILL)
    rest = process.stdout.read().split()
    process.stdout.close()
    process.wait()
    last = int(rest[-1]) if rest else 30
    outbox = Outbox(path)
    got: list[Message] = []
    outbox.drain(got.append)
    outbox.close()
    numbers = [message.body["n"] for message in got if message.kind == "number"]
    assert numbers == list(range(len(numbers)))
    assert last < len(numbers) <= last + 2
    # Replaced over and over, each time as one step: it is there, once.
    assert [message.body["n"] - last in (0, 1, 2) for message in got if message.kind == "live"] == [True]


def test_planted_pickles_and_nonsense_are_removed_not_executed(path: Path, tmp_path: Path) -> None:
    trap = tmp_path / "executed"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(trap),)

    Outbox(path).close()
    with sqlite3.connect(path) as connection:
        for key, body in (("a", pickle.dumps(Evil())), ("b", "not json"), ("c", "[1]"), ("d", None), ("e", '{"n": 9}')):
            connection.execute("INSERT INTO messages (key, kind, body) VALUES (?, 'number', ?)", (key, body))
    connection.close()
    outbox, receiver = Outbox(path), Receiver()
    assert outbox.drain(receiver)
    assert receiver.got == [9]
    assert outbox.dropped == 4
    assert not trap.exists()
    outbox.close()


def test_file_that_is_no_database_is_set_aside(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.parent.mkdir()
    path.write_bytes(b"this is not a database, by any stretch" * 100)
    outbox, receiver = Outbox(path), Receiver()
    fill(outbox, 1)
    assert outbox.drain(receiver)
    outbox.close()
    assert path.with_name("outbox.sqlite.damaged").exists()
    assert "outbox.sqlite.damaged" in capsys.readouterr().err


def test_unusable_folder_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "outbox.sqlite").mkdir()
    with pytest.raises(StoreError, match=r"outbox\.sqlite"):
        Outbox(tmp_path / "outbox.sqlite")


def test_closed_outbox_is_a_store_error(path: Path) -> None:
    outbox = Outbox(path)
    outbox.close()
    for use in (lambda: outbox.put("k", "k", {}), lambda: len(outbox), outbox.first, lambda: outbox.recall("x")):
        with pytest.raises(StoreError):
            use()
