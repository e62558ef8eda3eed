"""Rows that are borrowed, and rows that threads share: the same bits as a slab on one thread."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from trimtab._native import CPU_LEVELS, ColumnTable, Schema, Slab
from trimtab.kernels import operations as ops
from trimtab.kernels.cpu import CpuExecutor
from trimtab.kernels.errors import ExecutorError
from trimtab.kernels.program import CategoryField, Chain, ColumnProgram, Field, RealField, SketchSpec
from trimtab.kernels.reference import run_reference
from trimtab.kernels.sketch import Sketch

Floats = NDArray[np.float32]
HOSTILE = np.asarray([0.0, -0.0, 1e-45, -1e38, np.nan, np.inf, -np.inf, 3.0], np.float32)
CHUNK = 16384
levels = pytest.mark.parametrize("level", CPU_LEVELS)


def real_program(width: int) -> ColumnProgram:
    """Every fifth field by another way than the inner loops, every seventh with many edges."""
    fields = tuple(Field(f"x{i}", "real") for i in range(width))
    usual = (ops.Impute(0.25, True), ops.Clip(-3.0, 3.0), ops.Standardise(0.1, 0.9))
    other = (ops.Impute(0.0, False), ops.SignedLog())
    chains = tuple(Chain(i, other if i % 5 == 4 else usual) for i in range(width))
    few, many = (tuple(np.linspace(-2.0, 2.0, n, dtype=np.float32).tolist()) for n in (15, 90))
    reals = tuple(
        RealField(field.name, many if i % 7 == 6 else few, -2.5, 2.5, 0.125) for i, field in enumerate(fields)
    )
    return ColumnProgram(fields, chains, SketchSpec(reals))


def matrix_of(rows: int, width: int, hostile: float = 0.05) -> Floats:
    rng = np.random.default_rng(rows * 1000 + width)
    values = rng.normal(size=(rows, width)).astype(np.float32)
    return np.where(rng.random(values.shape) < hostile, rng.choice(HOSTILE, values.shape), values).astype(np.float32)


def slab_of(program: ColumnProgram, matrix: Floats) -> Slab:
    slab = Slab(program.schema)
    slab.append_columns([np.ascontiguousarray(column) for column in matrix.T])
    return slab


def outcome(
    executor: CpuExecutor, rows: Slab | ColumnTable, threads: int = 1, **span: int
) -> tuple[bytes, bytes, Sketch]:
    sketch = Sketch(executor.program.sketch)
    features, ids = executor.run(rows, sketch, threads=threads, **span)
    return features.tobytes(), ids.tobytes(), sketch


@levels
@pytest.mark.parametrize("width", [1, 3, 15, 16, 17, 40, 1000])
@pytest.mark.parametrize("rows", [0, 1, 2, 17, 511, 1030])
def test_rows_and_columns_as_a_slab(level: str, width: int, rows: int) -> None:
    program = real_program(width)
    matrix = matrix_of(rows, width)
    executor = CpuExecutor(program, level)
    expected = outcome(executor, slab_of(program, matrix))
    columns = [np.ascontiguousarray(column) for column in matrix.T]
    assert outcome(executor, ColumnTable(program.schema, columns)) == expected
    assert outcome(executor, ColumnTable(program.schema, matrix)) == expected
    _, _, reference = run_reference(program, slab_of(program, matrix))
    np.testing.assert_array_equal(expected[2].counts, reference.counts)


@levels
@pytest.mark.parametrize("rows", [CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 700])
def test_threads_change_no_bit(level: str, rows: int) -> None:
    program = real_program(20)
    matrix = matrix_of(rows, 20)
    executor = CpuExecutor(program, level)
    expected = outcome(executor, slab_of(program, matrix))
    for threads in (2, 3, 9):
        assert outcome(executor, slab_of(program, matrix), threads) == expected
        assert outcome(executor, ColumnTable(program.schema, matrix), threads) == expected


def test_levels_agree_on_chunks() -> None:
    program = real_program(18)
    matrix = matrix_of(2 * CHUNK + 5, 18)
    found = [outcome(CpuExecutor(program, level), ColumnTable(program.schema, matrix), 2) for level in CPU_LEVELS]
    assert all(one == found[0] for one in found)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_span_of_borrowed_rows(data: Any) -> None:
    width = data.draw(st.integers(1, 34))
    rows = data.draw(st.integers(0, 600))
    start = data.draw(st.integers(0, rows))
    stop = data.draw(st.integers(start, rows))
    program = real_program(width)
    matrix = matrix_of(rows, width, data.draw(st.sampled_from([0.0, 0.3, 1.0])))
    executor = CpuExecutor(program, data.draw(st.sampled_from(CPU_LEVELS)))
    span = {"start": start, "stop": stop}
    expected = outcome(executor, slab_of(program, matrix), **span)
    assert outcome(executor, ColumnTable(program.schema, matrix), **span) == expected
    exact = np.frombuffer(bytearray(matrix.tobytes()), np.float32).reshape(rows, width)
    assert outcome(executor, ColumnTable(program.schema, exact), **span) == expected


def mixed_program() -> ColumnProgram:
    fields = (Field("n", "integer"), Field("b", "boolean"), Field("s", "string"), Field("x", "real"))
    chains = (
        Chain(0, (ops.Impute(0.0, True), ops.Standardise(1.0, 2.0))),
        Chain(1, (ops.Vocabulary((0, 1)), ops.Embedding())),
        Chain(2, (ops.Vocabulary(("a", "bé")), ops.OneHot())),
        Chain(2, (ops.HashBucket(7), ops.Embedding())),
        Chain(3, (ops.Impute(0.0, False),)),
    )
    sketch = SketchSpec(
        (
            RealField("n", (0.0, 2.0), -5.0, 5.0, 0.0),
            CategoryField("b", (0, 1), 2),
            CategoryField("s", ("a", "bé"), 2),
            RealField("x", (0.0,), -1.0, 1.0, 0.0),
        )
    )
    return ColumnProgram(fields, chains, sketch)


def mixed_columns(rows: int) -> list[Any]:
    rng = np.random.default_rng(rows)
    texts = [["", "a", "bé", "other"][i] for i in rng.integers(0, 4, rows)]
    lengths = [len(text.encode()) for text in texts]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return [
        rng.choice(np.asarray([0, 3, -(1 << 63)]), rows),
        rng.choice(np.asarray([0.0, 1.0, np.nan], np.float32), rows),
        (offsets, np.frombuffer("".join(texts).encode(), np.uint8)),
        rng.normal(size=rows).astype(np.float32),
    ]


@levels
def test_columns_of_every_type(level: str) -> None:
    program = mixed_program()
    columns = mixed_columns(2 * CHUNK + 3)
    slab = Slab(program.schema)
    slab.append_columns(columns)
    executor = CpuExecutor(program, level)
    expected = outcome(executor, slab)
    table = ColumnTable(program.schema, columns)
    assert outcome(executor, table) == expected
    assert outcome(executor, table, 4) == expected


def test_the_arrays_are_kept_alive() -> None:
    program = real_program(5)
    expected = outcome(CpuExecutor(program), ColumnTable(program.schema, matrix_of(100, 5)))
    table = ColumnTable(program.schema, matrix_of(100, 5))
    gc.collect()
    np.full((100, 5), np.nan, np.float32)  # what would take freed memory
    assert outcome(CpuExecutor(program), table) == expected


def test_many_callers_share_an_executor() -> None:
    program = real_program(16)
    matrix = matrix_of(2 * CHUNK + 9, 16)
    executor = CpuExecutor(program)
    table = ColumnTable(program.schema, matrix)
    expected = outcome(executor, table)
    with ThreadPoolExecutor(4) as pool:
        assert all(one == expected for one in pool.map(lambda _: outcome(executor, table, 3), range(12)))


@levels
def test_large_outputs_are_the_same_wherever_they_begin(level: str) -> None:
    """Features of more than 8 MiB are written past the caches where they lie on whole cache lines."""
    program = ColumnProgram(
        tuple(Field(f"x{i}", "real") for i in range(16)),
        tuple(Chain(i, (ops.Impute(0.25, False), ops.Standardise(0.1, 0.9))) for i in range(16)),
        SketchSpec(tuple(RealField(f"x{i}", (0.0,), -2.5, 2.5, 0.125) for i in range(16))),
    )
    rows = (8 << 20) // 64 + 13
    table = ColumnTable(program.schema, matrix_of(rows, 16))
    executor = CpuExecutor(program, level)
    memory = np.empty(rows * 16 + 32, np.float32)
    places = [memory[(-memory.ctypes.data % 64) // 4 + offset :][: rows * 16].reshape(rows, 16) for offset in (0, 1)]
    found = []
    for place in places:
        executor.run(table, None, 0, -1, place, threads=2)
        found.append(place.tobytes())
    made, _ = executor.run(table)
    assert made.ctypes.data % 64 == 0
    assert found[0] == found[1] == made.tobytes()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.zeros((3, 2), np.float32), r"float32 array \[rows, 3\], came float32 of shape \(3, 2\)"),
        (np.zeros((3, 3)), "came float64"),
        (np.zeros((3, 6), np.float32)[:, ::2], "contiguous"),
        (np.zeros(3, np.float32), r"of shape \(3,\)"),
        ([np.zeros(2, np.float32)] * 2, "expected 3 columns, came 2"),
        ([np.zeros(2, np.float32)] * 2 + [np.zeros(3, np.float32)], 'column "x2".*2 rows as the first column, came 3'),
        ([np.zeros(2)] * 3, 'column "x0".*contiguous float32'),
    ],
)
def test_arrays_that_do_not_fit(values: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        ColumnTable(Schema(["x0", "x1", "x2"], ["real"] * 3), values)


def test_what_cannot_be_a_matrix() -> None:
    with pytest.raises(ValueError, match="not every field of the schema is real"):
        ColumnTable(mixed_program().schema, np.zeros((2, 4), np.float32))
    offsets = np.asarray([0, 5], np.int32)
    with pytest.raises(ValueError, match="ascending offsets within 2 bytes"):
        ColumnTable(Schema(["s"], ["string"]), [(offsets, np.zeros(2, np.uint8))])
    with pytest.raises(ValueError, match="int32 offsets"):
        ColumnTable(Schema(["s"], ["string"]), [(np.zeros(1, np.int64), np.zeros(0, np.uint8))])


def test_runs_that_are_refused() -> None:
    program = real_program(3)
    executor = CpuExecutor(program)
    table = ColumnTable(program.schema, matrix_of(4, 3))
    assert (len(table), table.rows) == (4, 4)
    with pytest.raises(ExecutorError, match="at least one thread"):
        executor.run(table, threads=0)
    with pytest.raises(ExecutorError, match=r"within \[0, 4\)"):
        executor.run(table, stop=5)
    other = ColumnTable(Schema(["a", "b", "c"], ["real"] * 3), matrix_of(4, 3))
    with pytest.raises(ExecutorError, match="schema"):
        executor.run(other)
