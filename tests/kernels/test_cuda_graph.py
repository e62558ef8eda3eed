"""Columns in captured batches: one launch, made once for a bucket, is right for every batch that is staged for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from trimtab._native import Schema, Slab
from trimtab.kernels.cpu import CpuExecutor
from trimtab.kernels.cuda_graph import GraphColumns
from trimtab.kernels.cuda_tables import Compiled
from trimtab.kernels.errors import ExecutorError
from trimtab.kernels.program import ColumnProgram
from trimtab.kernels.reference import run_reference
from trimtab.kernels.sketch import Sketch

from tests.kernels.cuda_on_cpu.emulation import SANITIZED, EmulatedDevice, HostMemory
from tests.kernels.programs import assert_same_sketch, bounds, numbers_program, programs, slabs
from tests.kernels.test_cuda_parity import NARROW_ALWAYS, ORDERS, WIDE_ALWAYS, as_columns, matrix_of, slab_of, standard


class Bucket:
    """A launch for so many rows, with its staged buffer and outputs."""

    def __init__(self, columns: GraphColumns, rows: int) -> None:
        program = columns.program
        self.columns, self.rows = columns, rows
        self._staged = HostMemory(columns.size(rows))
        self._features = HostMemory(4 * rows * columns.pitch)
        self._ids = HostMemory(max(8 * rows * program.n_ids, 16))
        for memory in (self._features, self._ids):
            memory.values[:] = 0
        features, ids = self._features, self._ids
        self.features = features.values.view(np.float32).reshape(rows, columns.pitch)[:, : program.n_features]
        self.ids = ids.values[: 8 * rows * program.n_ids].view(np.int64).reshape(rows, program.n_ids)
        self._launch = columns.launcher(rows, self._staged.pointer, features.pointer, ids.pointer)

    def run(
        self, slab: Slab, sketch: Sketch | None = None, start: int = 0, stop: int | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        stop = slab.rows if stop is None else stop
        self.columns.write(self._staged.values, self.rows, slab, sketch, start, stop)
        self._launch()
        return self.features[: stop - start], self.ids[: stop - start]


def check(bucket: Bucket, slab: Slab, start: int = 0, stop: int | None = None) -> Sketch:
    """Features and ids as the CPU has them; the CPU's sketch of the rows."""
    program, stop = bucket.columns.program, slab.rows if stop is None else stop
    expected = Sketch(program.sketch)
    features, ids = CpuExecutor(program).run(slab, expected, start, stop)
    found, found_ids = bucket.run(slab, None, start, stop)
    np.testing.assert_array_equal(found, features)
    np.testing.assert_array_equal(found_ids, ids)
    return expected


@cache
def numbers(rows: int) -> tuple[ColumnProgram, Slab]:
    return numbers_program(rows)


@pytest.mark.parametrize("processors", [WIDE_ALWAYS, NARROW_ALWAYS])
@pytest.mark.parametrize("order", ORDERS)
def test_any_number_of_rows_by_one_launch(processors: int, order: int) -> None:
    """Several blocks, of which the last have no rows; nothing of an earlier batch is counted again."""
    rows = 1100
    program, slab = numbers(rows)
    bucket = Bucket(GraphColumns(program, EmulatedDevice(order, processors)), rows)
    total, expected = Sketch(program.sketch), Sketch(program.sketch)
    for start, stop in ((0, rows), (3, 4), (0, 0), (100, 357), (rows - 1, rows), (1, 1026)):
        expected.merge(check(bucket, slab, start, stop))
        bucket.run(slab, total, start, stop)
    bucket.columns.close()()
    assert_same_sketch(program, total, expected)
    assert total.rows == expected.rows > 0


@pytest.mark.slow
@pytest.mark.skipif(SANITIZED, reason="builds a kernel for each example")
@settings(max_examples=8, deadline=None)
@given(st.data())
def test_random_programs(data: st.DataObject) -> None:
    program = data.draw(programs())
    if Compiled.of(program).refusal is not None:
        return
    bucket = Bucket(GraphColumns(program, EmulatedDevice(data.draw(st.sampled_from(ORDERS)), NARROW_ALWAYS)), 32)
    total, expected_total = Sketch(program.sketch), Sketch(program.sketch)
    for _ in range(3):
        slab = data.draw(slabs(program))
        expected, expected_ids, expected_sketch = run_reference(program, slab)
        features, ids = bucket.run(slab, total)
        assert (np.abs(features.astype(np.float64) - expected) <= bounds(program, slab, expected)).all()
        np.testing.assert_array_equal(ids, expected_ids)
        expected_total.merge(expected_sketch)
    bucket.columns.close()()
    assert_same_sketch(program, total, expected_total)


def test_same_batches_same_bits_in_any_order_of_threads() -> None:
    found = set()
    for order in ORDERS:
        program = standard(33)
        columns = GraphColumns(program, EmulatedDevice(order, NARROW_ALWAYS))
        sketch = Sketch(program.sketch)
        for rows in (257, 5):
            matrix = matrix_of(rows, 33)
            slab = slab_of(program, [np.ascontiguousarray(column) for column in matrix.T])
            Bucket(columns, 300).run(slab, sketch)
        columns.close()()
        found.add(sketch.to_bytes())
    assert len(found) == 1


def test_rows_that_are_not_to_be_counted_are_not() -> None:
    program, slab = numbers(40)
    bucket = Bucket(GraphColumns(program, EmulatedDevice()), 64)
    sketch = Sketch(program.sketch)
    bucket.run(slab, sketch)
    bucket.run(slab)
    bucket.run(slab)
    bucket.columns.close()()
    assert sketch.rows == 40
    bucket.columns.close()()
    assert sketch.rows == 40


def test_each_sketch_has_its_rows() -> None:
    program, slab = numbers(40)
    bucket = Bucket(GraphColumns(program, EmulatedDevice()), 64)
    sketches = [Sketch(program.sketch) for _ in range(3)]
    for step, (start, stop) in enumerate([(0, 10), (10, 30), (5, 6), (0, 40), (39, 40), (2, 2)]):
        bucket.run(slab, sketches[step % 3], start, stop)
    bucket.columns.close()()
    assert [sketch.rows for sketch in sketches] == [50, 21, 1]
    expected = Sketch(program.sketch)
    CpuExecutor(program).run(slab, expected, 10, 30)
    CpuExecutor(program).run(slab, expected, 39, 40)
    assert_same_sketch(program, sketches[1], expected)


def test_batches_go_on_while_a_sketch_is_read() -> None:
    """What they count is in neither epoch that is being read."""
    program, slab = numbers(40)
    bucket = Bucket(GraphColumns(program, EmulatedDevice()), 64)
    first, second = Sketch(program.sketch), Sketch(program.sketch)
    bucket.run(slab, first)
    read = bucket.columns.close()
    bucket.run(slab, second, 0, 7)
    read()
    assert (first.rows, second.rows) == (40, 0)
    bucket.run(slab, second, 0, 5)
    bucket.columns.close()()
    assert (first.rows, second.rows) == (40, 12)


def test_closing_again_waits_for_the_read_before() -> None:
    program, slab = numbers(40)
    bucket = Bucket(GraphColumns(program, EmulatedDevice()), 64)
    first, second = Sketch(program.sketch), Sketch(program.sketch)
    bucket.run(slab, first)
    read = bucket.columns.close()
    bucket.run(slab, second)
    done: list[Callable[[], None]] = []
    thread = threading.Thread(target=lambda: done.append(bucket.columns.close()))
    thread.start()
    assert not done
    read()
    thread.join(30)
    done[0]()
    assert (first.rows, second.rows) == (40, 40)


def test_a_read_that_fails_does_not_stop_the_next() -> None:
    program, slab = numbers(40)
    device = EmulatedDevice()
    bucket = Bucket(GraphColumns(program, device), 64)
    sketch = Sketch(program.sketch)
    bucket.run(slab, sketch)
    plain = device.aside

    def failing(*_: Any) -> None:
        raise RuntimeError("the GPU is lost")

    device.aside = failing  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="lost"):
        bucket.columns.close()()
    device.aside = plain  # type: ignore[method-assign]
    bucket.run(slab, sketch, 0, 3)
    bucket.columns.close()()
    assert sketch.rows in (3, 43)


def test_what_is_wrong_is_refused_before_anything_is_written() -> None:
    program, slab = numbers(40)
    bucket = Bucket(GraphColumns(program, EmulatedDevice()), 32)
    with pytest.raises(ExecutorError, match=r"at most 32 rows within \[0, 40\), came \[0, 40\)"):
        bucket.run(slab)
    for start, stop in ((-1, 3), (39, 41), (5, 4)):
        with pytest.raises(ExecutorError, match="rows within"):
            bucket.run(slab, None, start, stop)
    with pytest.raises(ExecutorError, match="program's schema"):
        bucket.run(Slab(Schema(["z"], ["real"])))
    with pytest.raises(ExecutorError, match="the sketch's spec is not the program's"):
        bucket.run(slab, Sketch(standard(2).sketch), 0, 1)


def test_nothing_is_allocated_by_a_batch() -> None:
    program, slab = numbers(40)
    device = EmulatedDevice()
    bucket = Bucket(GraphColumns(program, device), 64)
    sketch = Sketch(program.sketch)
    before = bucket.columns.nbytes

    def refuse(_: int) -> Any:
        raise AssertionError("allocates")

    device.memory = refuse  # type: ignore[method-assign]
    bucket.run(slab, sketch)
    bucket.columns.close()()
    assert bucket.columns.nbytes == before > 0
    assert sketch.rows == 40


def test_columns_of_a_table_are_those_of_a_slab() -> None:
    """The helpers of the other tests and these look at the same rows."""
    program = standard(3)
    matrix = matrix_of(9, 3)
    slab = slab_of(program, [np.ascontiguousarray(column) for column in matrix.T])
    found, _ = Bucket(GraphColumns(program, EmulatedDevice()), 16).run(slab)
    expected, _ = CpuExecutor(program).run(as_columns(program, matrix))
    np.testing.assert_array_equal(found, expected)
