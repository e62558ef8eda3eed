"""Labels: the outcome of each against an oracle, group commit, and a database that is not one."""

from __future__ import annotations

import dataclasses
import pickle
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trimtab.store.errors import LabelsDamaged, StoreError
from trimtab.store.ids import new_request_id
from trimtab.store.labels import LabelReader, LabelRow, LabelStore, Outcome, refusal

A, D, C, X = Outcome.ACCEPTED, Outcome.DUPLICATE, Outcome.CONFLICT, Outcome.INVALID


def label(request_id: bytes | None = bytes(16), value: float | str = 1.0, at: int = 100, **more: object) -> LabelRow:
    base = LabelRow(request_id, 0, None, "", value, 1.0, at, "test")
    return dataclasses.replace(base, **more)  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "flights" / "labels.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[LabelStore]:
    store = LabelStore(path)
    yield store
    store.close()


def send(store: LabelStore, *labels: LabelRow) -> list[Outcome]:
    return store.submit(labels).result(30)


def test_labels_come_back_in_order(store: LabelStore, path: Path) -> None:
    ids = [new_request_id() for _ in range(3)]
    rows = [
        label(ids[0], 0.5, 7, row=3, weight=2.5, source="chargeback"),
        label(ids[1], "ja ☃", 8, output="reason"),
        label(None, -1.0, 9, key="UA\x1f17"),
    ]
    assert send(store, *rows) == [A, A, A]
    reader = LabelReader(path)
    stored = reader.since(0)
    fields = [field.name for field in dataclasses.fields(LabelRow)]
    assert [LabelRow(*(getattr(entry, name) for name in fields)) for entry in stored] == rows
    assert [(entry.sequence, entry.revision, entry.current) for entry in stored] == [
        (1, 1, True),
        (2, 1, True),
        (3, 1, True),
    ]
    assert all(entry.received_at_us > 0 for entry in stored)
    assert reader.last_sequence() == 3
    assert [entry.sequence for entry in reader.since(1, limit=1)] == [2]
    reader.close()


@pytest.mark.parametrize(
    ("sent", "outcomes", "current"),
    [
        ([(1.0, 5), (1.0, 5)], [A, D], (1.0, 5)),
        ([(1.0, 5), (0.0, 6)], [A, A], (0.0, 6)),
        ([(1.0, 5), (1.0, 6)], [A, A], (1.0, 6)),
        ([(1.0, 5), (0.0, 5)], [A, C], (1.0, 5)),
        ([(1.0, 5), (0.0, 4)], [A, C], (1.0, 5)),
        ([(1.0, 5), (1.0, 4)], [A, D], (1.0, 5)),
        ([(1.0, 5), (0.0, 4), (0.0, 4)], [A, C, D], (1.0, 5)),
        ([(1.0, 5), (0.0, 4), (0.0, 6)], [A, C, A], (0.0, 6)),
        ([("a", 5), ("b", 6), ("a", 5)], [A, A, D], ("b", 6)),
    ],
)
def test_outcomes(
    store: LabelStore,
    path: Path,
    sent: list[tuple[float | str, int]],
    outcomes: list[Outcome],
    current: tuple[float | str, int],
) -> None:
    """The same whether labels come in one call or in several."""
    together, apart = new_request_id(), new_request_id()
    assert send(store, *(label(together, value, at) for value, at in sent)) == outcomes
    assert [send(store, label(apart, value, at))[0] for value, at in sent] == outcomes
    reader = LabelReader(path)
    holding = [(entry.value, entry.observed_at_us) for entry in reader.since(0) if entry.current]
    assert holding == [current, current]
    reader.close()


def test_rows_outputs_and_keys_are_apart(store: LabelStore) -> None:
    same = new_request_id()
    rows = [label(same), label(same, row=1), label(same, output="b"), label(None, key="k"), label()]
    assert send(store, *rows) == [A] * 5
    assert send(store, *rows) == [D] * 5


TARGETS = [bytes([i]) * 16 for i in range(3)]
SENT = st.lists(st.tuples(st.sampled_from(TARGETS), st.sampled_from([0.0, 1.0]), st.integers(0, 4)), max_size=12)


@given(SENT, st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_any_order_of_labels_against_an_oracle(
    tmp_path_factory: pytest.TempPathFactory, sent: list[tuple[bytes, float, int]], group: int
) -> None:
    history: dict[bytes, list[tuple[float, int]]] = {}
    current: dict[bytes, tuple[float, int]] = {}
    expected = []
    for target, value, at in sent:
        if (value, at) in history.get(target, []):
            expected.append(D)
        elif target not in current or at > current[target][1]:
            current[target] = (value, at)
            history.setdefault(target, []).append((value, at))
            expected.append(A)
        elif value == current[target][0]:
            expected.append(D)
        else:
            history[target].append((value, at))
            expected.append(C)
    path = tmp_path_factory.mktemp("labels") / "labels.sqlite"
    store = LabelStore(path, delay=0.0)
    futures = [
        store.submit([label(target, value, at) for target, value, at in sent[i : i + group]])
        for i in range(0, len(sent), group)
    ]
    assert [outcome for future in futures for outcome in future.result(30)] == expected
    store.close()
    reader = LabelReader(path)
    stored = reader.since(0)
    assert {e.request_id: (e.value, e.observed_at_us) for e in stored if e.current} == current
    for target, revisions in history.items():
        own = [entry for entry in stored if entry.request_id == target]
        assert [(entry.value, entry.observed_at_us) for entry in own] == revisions
        assert [entry.revision for entry in own] == list(range(1, len(own) + 1))
    reader.close()


@given(st.permutations([(value, at) for at, value in enumerate([1.0, 0.0, 0.0, 1.0, 0.0])]), st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_the_order_of_coming_does_not_change_what_holds(
    tmp_path_factory: pytest.TempPathFactory, sent: list[tuple[float, int]], group: int
) -> None:
    path = tmp_path_factory.mktemp("labels") / "labels.sqlite"
    store = LabelStore(path)
    for i in range(0, len(sent), group):
        send(store, *(label(value=value, at=at) for value, at in sent[i : i + group]))
    store.close()
    reader = LabelReader(path)
    assert [(entry.value, entry.observed_at_us) for entry in reader.since(0) if entry.current] == [(0.0, 4)]
    reader.close()


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (label(value=float("nan")), "value: expected a finite number"),
        (label(value=float("inf")), "value: expected a finite number"),
        (label(value="x" * 5000), "value: expected at most 4096 bytes"),
        (label(value="a\0b"), "value: expected no NUL"),
        (label(value="\ud800"), "value: expected text that has a UTF-8 form"),
        (label(weight=0.0), "weight: expected a number > 0"),
        (label(weight=float("nan")), "weight: expected a number > 0"),
        (label(row=-1), "row: expected 0 to"),
        (label(row=1 << 31), "row: expected 0 to"),
        (label(at=1 << 63), "observed_at: expected"),
        (label(b"short"), "request id: expected 16 bytes, got 5"),
        (label(key="k"), "either a request id or a key"),
        (dataclasses.replace(label(), request_id=None), "either a request id or a key"),
    ],
)
def test_what_is_no_label_is_refused_and_the_rest_is_stored(store: LabelStore, bad: LabelRow, why: str) -> None:
    assert why in (refusal(bad) or "")
    good = label(new_request_id())
    assert send(store, bad, good, bad) == [X, A, X]
    assert store.count() == 1


def test_numbers_that_are_equal_are_one_value(store: LabelStore) -> None:
    rows = [label(value=0.0), label(value=-0.0), label(value=0), label(value=False)]
    assert send(store, *rows) == [A, D, D, D]


def test_many_submitters_at_once(store: LabelStore, path: Path) -> None:
    shared = [label(new_request_id(), float(i)) for i in range(50)]
    outcomes: list[Outcome] = []

    def submitter() -> None:
        for i in range(0, 50, 5):
            outcomes.extend(send(store, *shared[i : i + 5]))

    threads = [threading.Thread(target=submitter) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (outcomes.count(A), outcomes.count(D)) == (50, 250)
    assert store.count() == 50


def test_forgetting_leaves_no_trace(store: LabelStore, path: Path) -> None:
    gone, kept = new_request_id(), new_request_id()
    send(store, label(gone, "a secret diagnosis"), label(gone, "another", 200), label(kept))
    assert store.forget([gone, new_request_id()]) == 2
    assert store.count() == 1
    reader = LabelReader(path)
    assert [entry.request_id for entry in reader.since(0)] == [kept]
    # A number is not used again: a reader that saw it does not take a new label for it.
    send(store, label(new_request_id()))
    assert reader.since(3)[0].sequence == 4
    reader.close()
    store.close()
    assert all(b"secret" not in file.read_bytes() for file in path.parent.iterdir())


def test_labels_survive_a_restart(path: Path) -> None:
    store = LabelStore(path)
    request_id = new_request_id()
    send(store, label(request_id))
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.submit([label()])
    store = LabelStore(path)
    assert store.count() == 1
    assert send(store, label(request_id)) == [D]
    store.close()


def test_what_was_submitted_before_closing_is_stored(path: Path) -> None:
    store = LabelStore(path)
    futures = [store.submit([label(new_request_id()) for _ in range(100)]) for _ in range(20)]
    store.close()
    assert all(future.result(0) == [A] * 100 for future in futures)


def test_cancelling_what_waits_harms_nobody(store: LabelStore, path: Path) -> None:
    """As when a caller goes away: another connection holds the writer up while one of two submissions is cancelled."""
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    running = store.submit([label(new_request_id())])
    while not running.running():
        pass
    waiting, other = store.submit([label(new_request_id())]), store.submit([label(new_request_id())])
    assert waiting.cancel()
    assert not running.cancel()
    blocker.execute("ROLLBACK")
    blocker.close()
    assert running.result(30) == other.result(30) == [A]
    assert send(store, label(new_request_id())) == [A]
    assert store.count() == 3


def test_a_reader_before_there_is_a_database(path: Path) -> None:
    reader = LabelReader(path)
    assert (reader.last_sequence(), reader.since(0)) == (0, [])
    store = LabelStore(path)
    send(store, label())
    assert reader.last_sequence() == 1
    reader.close()
    store.close()


def test_a_reader_cannot_write(store: LabelStore, path: Path) -> None:
    reader = LabelReader(path)
    assert reader._connection is not None
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader._connection.execute("DELETE FROM labels")
    reader.close()


@pytest.mark.parametrize("kind", ["text", "foreign", "newer"])
def test_a_file_that_is_no_label_database(path: Path, kind: str) -> None:
    path.parent.mkdir()
    if kind == "text":
        path.write_text("these are not the labels\n" * 100)
    elif kind == "foreign":
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE labels(x)")
        connection.close()
    else:
        LabelStore(path).close()
        with sqlite3.connect(path) as connection:
            connection.execute("PRAGMA user_version = 99")
        connection.close()
    for opener in (LabelStore, LabelReader):
        with pytest.raises(LabelsDamaged) as caught:
            opener(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_database_that_is_corrupt_inside(path: Path) -> None:
    store = LabelStore(path)
    send(store, *(label(new_request_id(), "x" * 500) for _ in range(500)))
    store.close()
    data = bytearray(path.read_bytes())
    data[4096 * 3 : 4096 * 20] = bytes(4096 * 17)
    path.write_bytes(data)
    reader = LabelReader(path)
    with pytest.raises(LabelsDamaged, match=r"labels.sqlite is not a label database, or is corrupt"):
        reader.since(0)
    reader.close()


def test_a_planted_pickle_is_text_that_makes_no_sense(store: LabelStore, path: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.mkdir, (tmp_path / "exploded",)

    send(store, label())
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE labels SET value = ?", (pickle.dumps(Bomb(), 0).decode(),))
    connection.close()
    reader = LabelReader(path)
    with pytest.raises(StoreError, match="a label after 0 cannot be read"):
        reader.since(0)
    reader.close()
    assert not (tmp_path / "exploded").exists()
