"""The dataset on real segments and labels: restarts, deletion, damage, the training data's round trip."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from trimtab._native import Slab
from trimtab.kernels.slabs import slab_from_arrow, slab_to_arrow
from trimtab.store.captures import CaptureWriter
from trimtab.store.errors import StoreError
from trimtab.store.ids import new_request_id
from trimtab.store.label_rows import LabelRow
from trimtab.store.labels import LabelStore
from trimtab.store.project import ModelPaths
from trimtab.store.segment import sealed_segments
from trimtab.trainer.dataset import HISTORY_ROWS, Dataset, Part, history_path, load_history, save_history
from trimtab.trainer.encode import TrainingTable, task_of
from trimtab.trainer.errors import RowsUnfit

from .tables import HOUR_US, make_arrow, make_model, make_table

ROWS = 20
"""Of an hour."""
LABEL: dict[str, Any] = {"column": "y", "horizon": "2h", "cohort": "1h"}


class Served:
    """The server's side: what it captured and which labels it stored."""

    def __init__(self, root: Path, task: str = "binary", **label: Any) -> None:
        self.paths = ModelPaths(root / "m")
        self.model = make_model(task, label=LABEL | label)
        self.schema = self.model.request_schema()
        self.width = task_of(self.model).width
        self.arrow = make_arrow(2000, task)
        self.captures = CaptureWriter(self.paths.captures, self.schema, self.width, self.model.capture, lockstep=True)
        self.labels = LabelStore(self.paths.labels)
        self.ids: dict[int, NDArray[np.uint8]] = {}

    def hour(self, hour: int, *, seal: bool = True) -> None:
        """Captures an hour's rows, those of the table at the same place."""
        columns = self.arrow.slice(hour * ROWS, ROWS)
        names = list(self.schema.names)
        slab = slab_from_arrow(columns.select(names), self.schema)
        ids = np.frombuffer(b"".join(new_request_id() for _ in range(ROWS)), np.uint8).reshape(ROWS, 16)
        times = hour * HOUR_US + np.arange(ROWS, dtype=np.int64)
        predictions = np.full((ROWS, self.width), hour / 100, np.float32)
        self.captures.offer(slab, ids, np.zeros(ROWS, np.int32), times, 1 + hour // 3, predictions)
        self.ids[hour] = ids
        if seal:
            self.captures.seal()

    def label(self, hour: int, *, rows: slice = slice(None), value: Any = None, late_us: int = 0) -> None:
        """Stores the labels of an hour's rows, or of some."""
        truth: list[Any] = self.arrow.column("y").to_pylist()[hour * ROWS : (hour + 1) * ROWS]
        values = truth if value is None else [value] * ROWS
        observed = (hour + 1) * HOUR_US + late_us
        stored = [
            LabelRow(self.ids[hour][i].tobytes(), 0, None, "", values[i], 1.0, observed, "") for i in range(ROWS)[rows]
        ]
        self.labels.submit(stored).result()

    def close(self) -> None:
        self.captures.close()
        self.labels.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path)
    yield served
    served.close()


@contextmanager
def opened(served: Served) -> Iterator[Dataset]:
    dataset = Dataset(served.model, served.paths)
    yield dataset
    dataset.close()


def play(served: Served, dataset: Dataset, hours: range) -> None:
    """Hour by hour: the labels of the hour before last, the rows, then the advance."""
    for hour in hours:
        if hour:
            served.label(hour - 1)
        served.hour(hour)
        dataset.advance((hour + 1) * HOUR_US)


def content(part: Part) -> dict[str, Any]:
    """Everything of some rows, comparable."""
    table = part.table
    columns = [array.to_pylist() for array in slab_to_arrow(table.slab)]
    arrays = (table.labels, table.weights, table.time_us, part.served, part.versions)
    return {"columns": columns, "arrays": [array.tolist() for array in arrays]}


def everything(dataset: Dataset) -> dict[str, Any]:
    return content(dataset.rows(0, dataset.end_of(dataset.marks)))


def digest(dataset: Dataset) -> str:
    return dataset.content_hash("", 0, dataset.end_of(dataset.marks))


def test_rows_are_those_served_with_their_labels(served: Served) -> None:
    with opened(served) as dataset:
        play(served, dataset, range(4))
        part = dataset.rows(0, dataset.end_of(dataset.marks))
        assert len(part.table) == 3 * ROWS
        expected = served.arrow.slice(0, 3 * ROWS)
        names = list(served.schema.names)
        slab = slab_from_arrow(expected.select(names), served.schema)
        assert [a.to_pylist() for a in slab_to_arrow(part.table.slab)] == [a.to_pylist() for a in slab_to_arrow(slab)]
        assert part.table.labels.tolist() == [float(value == "yes") for value in expected.column("y").to_pylist()]
        assert part.versions.tolist() == [1] * 3 * ROWS
        assert part.served[:, 0].tolist() == pytest.approx(np.repeat([0.0, 0.01, 0.02], ROWS).tolist())
        assert dataset.counts["matured"] == 3 * ROWS
        assert dataset.counts["waiting"] == ROWS


def test_advance_gives_what_matured_and_nothing_twice(served: Served) -> None:
    with opened(served) as dataset:
        served.hour(0)
        assert dataset.advance(HOUR_US) is None
        served.label(0)
        served.hour(1)
        served.label(1)
        part = dataset.advance(2 * HOUR_US)
        assert part is not None
        assert len(part.table) == 2 * ROWS
        assert content(part) == everything(dataset)
        assert dataset.advance(2 * HOUR_US) is None
        assert dataset.marks == 2


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_restart_in_the_middle_changes_nothing(served: Served, tmp_path: Path, stop: int) -> None:
    with opened(served) as whole:
        with opened(served) as first:
            play(served, first, range(stop))
            first.flush()
            before = everything(first)
        whole.advance(stop * HOUR_US)
        with opened(served) as second:
            assert everything(second) == before
            assert second.marks == first.marks
            play(served, second, range(stop, 7))
            whole.advance(7 * HOUR_US)
            assert everything(second) == everything(whole)
            assert digest(second) == digest(whole)


def test_restart_uses_the_labels_that_were_known_then(served: Served) -> None:
    with opened(served) as dataset:
        play(served, dataset, range(3))
        dataset.flush()
        before, hashed = everything(dataset), digest(dataset)
    for hour in range(2):
        served.label(hour, value="no", late_us=HOUR_US)
    with opened(served) as again:
        assert everything(again) == before
        assert digest(again) == hashed
        again.advance(3 * HOUR_US)
        assert again.counts["late"] == 2 * ROWS


def test_marks_that_were_not_flushed_are_found_anew(served: Served) -> None:
    with opened(served) as dataset:
        play(served, dataset, range(4))
        before = everything(dataset)
    with opened(served) as again:
        assert again.marks == 0
        again.advance(4 * HOUR_US)
        assert everything(again) == before


def test_torn_mark_is_cut_off(served: Served) -> None:
    with opened(served) as dataset:
        play(served, dataset, range(4))
        dataset.flush()
        before = everything(dataset)
    marks = served.paths.trainer / "matured.jsonl"
    marks.write_bytes(marks.read_bytes()[:-3])
    with opened(served) as again:
        assert again.marks == 2
        again.advance(4 * HOUR_US)
        again.flush()
        assert everything(again) == before
    with opened(served) as once_more:
        assert everything(once_more) == before


def test_mark_that_is_none_is_one_line(served: Served) -> None:
    served.paths.trainer.mkdir(parents=True)
    (served.paths.trainer / "matured.jsonl").write_bytes(b"nonsense\n")
    with pytest.raises(StoreError, match=r"matured\.jsonl"):
        Dataset(served.model, served.paths)


def test_forgotten_rows_are_gone_after_a_restart(served: Served) -> None:
    with opened(served) as dataset:
        play(served, dataset, range(4))
        dataset.flush()
        marks = dataset.marks
    gone = [served.ids[1][i].tobytes() for i in range(5)]
    assert served.captures.forget(gone) == 5
    served.labels.forget(gone)
    with opened(served) as again:
        assert again.marks == marks
        assert len(again.rows(0, again.end_of(marks)).table) == 3 * ROWS - 5
        assert again.end_of(1) == ROWS
        assert again.end_of(2) == 2 * ROWS - 5
        play(served, again, range(4, 6))
        assert again.marks == marks + 2


def test_cohort_that_is_gone_altogether_keeps_its_mark(served: Served) -> None:
    with opened(served) as dataset:
        play(served, dataset, range(4))
        dataset.flush()
    served.captures.forget([value.tobytes() for value in served.ids[1]])
    with opened(served) as again:
        assert again.marks == 3
        assert again.end_of(2) == again.end_of(1) == ROWS


def test_damaged_segment_costs_its_rows_only(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    with opened(served) as dataset:
        for hour in range(3):
            served.hour(hour)
            served.label(hour)
        damaged = served.paths.captures / sealed_segments(served.paths.captures)[1].name
        data = bytearray(damaged.read_bytes())
        data[len(data) // 2] ^= 1
        damaged.chmod(0o644)
        damaged.write_bytes(data)
        dataset.advance(3 * HOUR_US)
        assert dataset.end_of(dataset.marks) == 2 * ROWS
        assert dataset.counts["damaged_segments"] == 1
        assert "its rows are left out" in capsys.readouterr().err
        play(served, dataset, range(3, 5))
        assert dataset.counts["damaged_segments"] == 1


def test_unknown_classes_are_left_out_and_counted(served: Served) -> None:
    with opened(served) as dataset:
        served.hour(0)
        served.label(0, rows=slice(0, 15))
        served.label(0, rows=slice(15, ROWS), value="perhaps")
        part = dataset.advance(HOUR_US)
        assert part is not None
        assert len(part.table) == len(part.served) == len(part.versions) == 15
        assert dataset.counts["unusable"] == 5


def test_absent_labels_are_negatives_where_they_mean_that(tmp_path: Path) -> None:
    served = Served(tmp_path, absent_means="negative")
    with opened(served) as dataset:
        served.hour(0)
        served.label(0, rows=slice(0, 3), value="yes")
        assert dataset.advance(2 * HOUR_US) is None
        part = dataset.advance(3 * HOUR_US)
        assert part is not None
        assert part.table.labels.tolist() == [1.0] * 3 + [0.0] * (ROWS - 3)
    served.close()


@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_other_tasks(tmp_path: Path, task: str) -> None:
    served = Served(tmp_path, task)
    with opened(served) as dataset:
        play(served, dataset, range(3))
        part = dataset.rows(0, dataset.end_of(dataset.marks))
        truth: list[Any] = served.arrow.column("y").to_pylist()[: 2 * ROWS]
        expected = ["abc".index(value) for value in truth] if task == "multiclass" else truth
        assert part.table.labels.tolist() == pytest.approx(expected)
        assert part.served.shape == (2 * ROWS, served.width)
    served.close()


# --- the training data


def test_history_comes_first_and_comes_back_as_saved(served: Served) -> None:
    history = make_table(100, seed=5)
    # The same columns as requests have.
    save_history(history_path(served.paths), _without_key(history, served))
    with opened(served) as dataset:
        assert dataset.first == dataset.end_of(0) == 100
        play(served, dataset, range(3))
        part = dataset.rows(90, 110)
        assert part.table.labels[:10].tolist() == history.labels[90:].tolist()
        assert part.table.time_us[:10].tolist() == history.time_us[90:].tolist()
        assert np.isnan(part.served[:10]).all()
        assert not np.isnan(part.served[10:]).any()
        assert part.versions.tolist() == [0] * 10 + [1] * 10
        dataset.flush()
        hashed = digest(dataset)
    with opened(served) as again:
        assert digest(again) == hashed


def test_history_is_bounded_to_the_newest(served: Served) -> None:
    rows = HISTORY_ROWS + 10
    slab = Slab(served.schema)
    one = _without_key(make_table(1), served).slab
    slab.extend(one, np.zeros(rows, np.int32))
    times = np.arange(rows, dtype=np.int64)
    table = TrainingTable(slab, np.zeros(rows, np.float32), np.ones(rows, np.float32), times)
    path = history_path(served.paths)
    save_history(path, table)
    loaded = load_history(path, served.schema, task_of(served.model))
    assert len(loaded) == HISTORY_ROWS
    assert loaded.time_us[0] == 10


@pytest.mark.parametrize("data", [b"", b"ARROW1\0\0 torn", b"\x80\x04K\x01."])
def test_damaged_history_is_one_line(served: Served, data: bytes) -> None:
    path = history_path(served.paths)
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    with pytest.raises(RowsUnfit, match=r"history\.arrow cannot be read"):
        Dataset(served.model, served.paths)


def test_hash_depends_on_every_part(served: Served) -> None:
    save_history(history_path(served.paths), _without_key(make_table(50), served))
    with opened(served) as dataset:
        whole = dataset.content_hash("", 0, 50)
        assert whole == dataset.content_hash("", 0, 50)
        others = {dataset.content_hash("x", 0, 50), dataset.content_hash("", 0, 49), dataset.content_hash("", 1, 50)}
        dataset.table.labels[7] = 1 - dataset.table.labels[7]
        others.add(dataset.content_hash("", 0, 50))
        assert len(others) == 4
        assert whole not in others


def _without_key(table: TrainingTable, served: Served) -> TrainingTable:
    """The table with just the columns of the served schema."""
    batch = next(table.batches())
    names = list(served.schema.names)
    slab = slab_from_arrow(batch.select(names), served.schema)
    return TrainingTable(slab, table.labels, table.weights, table.time_us)
