"""The CUDA kernel, run on the CPU from the very source that a GPU gets, against the oracle and the CPU executor.

Features equal the CPU executor's (0 and -0 are equal), so they keep the CPU's bound against the oracle; ids, counts,
minima and maxima are the oracle's. Every case runs with threads and blocks in several orders: what depends on a barrier
that is missing does not come out the same.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from trimtab._native import ColumnTable, Slab
from trimtab.kernels import operations as ops
from trimtab.kernels.cpu import CpuExecutor
from trimtab.kernels.cuda import CudaExecutor, DeviceArray, DeviceRows
from trimtab.kernels.cuda_compile import CSRC
from trimtab.kernels.cuda_device import cuda_device
from trimtab.kernels.cuda_tables import NARROW, WIDE, Compiled
from trimtab.kernels.errors import ExecutorError
from trimtab.kernels.operations import Operation
from trimtab.kernels.program import CategoryField, Chain, ColumnProgram, Field, RealField, SketchSpec
from trimtab.kernels.reference import run_reference
from trimtab.kernels.sketch import Sketch

from tests.kernels.cuda_on_cpu.emulation import SANITIZED, EmulatedDevice
from tests.kernels.programs import HOSTILE, MISSING, TEXTS, assert_same_sketch, bounds, programs, slabs

Floats = NDArray[np.float32]
ORDERS = (0, 1, 7)
WIDE_ALWAYS, NARROW_ALWAYS = 1, 10_000
"""Numbers of processors at which the executor takes the one layout or the other for what these tests run."""
ROWS = (1, 31, 33, 1023, 1025)
WIDTHS = (1, 3, 65)
MANY = 5_001 if os.environ.get("TRIMTAB_SMALL") else 70_001
"""Rows on a GPU; fewer where a sanitizer watches."""


def edges_of(count: int) -> tuple[float, ...]:
    return tuple(np.unique(np.random.default_rng(count).normal(size=count).astype(np.float32)).tolist())


def standard(width: int, edges: int = 31, flag: bool = False) -> ColumnProgram:
    """Impute, clip, standardise, moments and a histogram."""
    fields = tuple(Field(f"x{i}", "real") for i in range(width))
    chain = (ops.Impute(0.25, flag), ops.Clip(-3.0, 3.0), ops.Standardise(0.1, 0.9))
    spec = SketchSpec(tuple(RealField(field.name, edges_of(edges), -2.5, 2.5, 0.125) for field in fields))
    return ColumnProgram(fields, tuple(Chain(i, chain) for i in range(width)), spec)


def matrix_of(rows: int, width: int, hostile: float = 0.1) -> Floats:
    random = np.random.default_rng(1000 * rows + width)
    values = random.normal(size=(rows, width)).astype(np.float32)
    special = np.asarray([*HOSTILE, np.nan, np.inf, -np.inf], np.float32)
    return np.where(random.random(values.shape) < hostile, random.choice(special, values.shape), values).astype(
        np.float32
    )


def as_columns(program: ColumnProgram, matrix: Floats) -> ColumnTable:
    return ColumnTable(program.schema, [np.ascontiguousarray(column) for column in matrix.T])


def slab_of(program: ColumnProgram, columns: list[Any]) -> Slab:
    slab = Slab(program.schema)
    slab.append_columns(columns)
    return slab


def check(program: ColumnProgram, rows: Slab | ColumnTable, executor: CudaExecutor) -> tuple[bytes, bytes, bytes]:
    """Holds the executor to the CPU's; what it gave, to the bit."""
    expected_sketch = Sketch(program.sketch)
    expected, expected_ids = CpuExecutor(program).run(rows, expected_sketch)
    sketch = Sketch(program.sketch)
    features, ids = executor.run(rows, sketch)
    np.testing.assert_array_equal(features, expected)
    np.testing.assert_array_equal(ids, expected_ids)
    assert_same_sketch(program, sketch, expected_sketch)
    return features.tobytes(), ids.tobytes(), sketch.to_bytes()


def check_all(program: ColumnProgram, rows: Slab | ColumnTable, processors: int) -> None:
    found = {check(program, rows, CudaExecutor(program, EmulatedDevice(order, processors))) for order in ORDERS}
    assert len(found) == 1


@pytest.mark.slow
@pytest.mark.skipif(SANITIZED, reason="builds a kernel for each example")
@settings(max_examples=12, deadline=None)
@given(st.data())
def test_random_programs(data: st.DataObject) -> None:
    program = data.draw(programs())
    slab = data.draw(slabs(program))
    if Compiled.of(program).refusal is not None:
        return
    executor = CudaExecutor(program, EmulatedDevice(data.draw(st.sampled_from(ORDERS)), NARROW_ALWAYS))
    expected, expected_ids, expected_sketch = run_reference(program, slab)
    sketch = Sketch(program.sketch)
    features, ids = executor.run(slab, sketch)
    assert (np.abs(features.astype(np.float64) - expected) <= bounds(program, slab, expected)).all()
    np.testing.assert_array_equal(ids, expected_ids)
    assert_same_sketch(program, sketch, expected_sketch)
    check(program, slab, executor)


@cache
def all_ops() -> ColumnProgram:
    """Every op on every type that takes it, with few edges and many."""
    fields = (
        Field("x", "real"),
        Field("n", "integer"),
        Field("b", "boolean"),
        Field("s", "string"),
        Field("y", "real"),
    )
    shares = tuple(np.linspace(0.0, 1.0, 40).tolist())
    few = tuple(np.linspace(0.0, 1.0, 5).tolist())
    numbers: list[tuple[Operation, ...]] = [
        (),
        (ops.Impute(0.5, True), ops.Log1p()),
        (ops.SignedLog(), ops.Standardise(0.5, 3.0)),
        (ops.MinMax(-2.0, 0.0),),
        (ops.Impute(0.5, False), ops.Clip(-1.0, 2.0), ops.Robust(0.25, 1.5), ops.Clip(-0.5, 0.5)),
        (ops.Impute(0.5, True), ops.QuantileNormal(edges_of(40), shares)),
        (ops.QuantileNormal(edges_of(5), few),),
        (ops.QuantileNormal((), ()),),
        (ops.Cyclic(3.0),),
        (ops.Impute(0.0, True), ops.Cyclic(24.0)),
        (ops.Bucketise(edges_of(20)),),
        (ops.Impute(0.5, True), ops.Clip(-1.0, 1.0), ops.Bucketise(edges_of(300))),
        (ops.Bucketise(edges_of(3)), ops.OneHot()),
        (ops.Impute(0.5, True), ops.Bucketise(edges_of(40)), ops.OneHot()),
        (ops.Impute(0.5, True), ops.PiecewiseLinear(edges_of(9))),
        (ops.SignedLog(), ops.PiecewiseLinear(edges_of(70))),
        (ops.PiecewiseLinear((1.0,)),),
    ]
    texts: list[tuple[Operation, ...]] = [
        (ops.Vocabulary(("a", "é")),),
        (ops.Vocabulary(("b",)), ops.OneHot()),
        (ops.HashBucket(7),),
        (ops.Cross(1, 11),),
        (ops.Cross(3, 5), ops.OneHot()),
    ]
    integers: list[tuple[Operation, ...]] = [
        (ops.Vocabulary((5, -1, 1 << 40, 0)),),
        (ops.Vocabulary(tuple(range(100, 0, -1))), ops.OneHot()),
        (ops.HashBucket(1 << 24),),
        (ops.Cross(2, 1000),),
        (ops.Cross(3, 9), ops.Embedding()),
    ]
    booleans: list[tuple[Operation, ...]] = [
        (ops.Impute(0.5, True), ops.Standardise(0.5, 0.5)),
        (ops.Vocabulary((1, 0)),),
        (ops.HashBucket(3),),
        (ops.Cross(2, 4),),
    ]
    of_field = {0: numbers, 1: integers + numbers, 2: booleans, 3: texts, 4: numbers[:1]}
    chains = tuple(Chain(field, chain) for field, some in of_field.items() for chain in some)
    sketch = (
        RealField("x", edges_of(200), -2.0, 2.0, 0.5),
        CategoryField("n", (5, -1, 1 << 40, 0), 2),
        CategoryField("b", (0,), 1),
        CategoryField("s", ("é", "b", "a"), 2),
        RealField("y", edges_of(7), -1.0, 1.0, 0.0),
    )
    return ColumnProgram(fields, chains, SketchSpec(sketch))


def rows_of_all(rows: int, seed: int, hostile: float) -> list[Any]:
    random = np.random.default_rng(seed)
    special = np.asarray(
        [*HOSTILE, np.nan, np.inf, -np.inf, *edges_of(300)[:150], *edges_of(40), *edges_of(9)], np.float32
    )

    def reals() -> Floats:
        plain = random.normal(size=rows).astype(np.float32)
        return np.where(random.random(rows) < hostile, random.choice(special, rows), plain).astype(np.float32)

    parts = [TEXTS[i].encode() for i in random.integers(0, len(TEXTS), rows)]
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int32)
    integers = random.choice(np.asarray([0, 1, 5, -1, 100, 50, 1 << 40, (1 << 63) - 1, MISSING + 1, MISSING]), rows)
    booleans = random.choice(np.asarray([0, 1, np.nan], np.float32), rows)
    return [reals(), integers, booleans, (offsets, np.frombuffer(b"".join(parts), np.uint8)), reals()]


@cache
def all_ops_on(order: int, processors: int) -> CudaExecutor:
    return CudaExecutor(all_ops(), EmulatedDevice(order, processors))


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 600),
    st.integers(0, 1 << 30),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.sampled_from(ORDERS),
    st.sampled_from([WIDE_ALWAYS, NARROW_ALWAYS]),
)
def test_every_op_on_hostile_rows(rows: int, seed: int, hostile: float, order: int, processors: int) -> None:
    check(all_ops(), slab_of(all_ops(), rows_of_all(rows, seed, hostile)), all_ops_on(order, processors))


def test_every_op_against_the_oracle() -> None:
    program = all_ops()
    slab = slab_of(program, rows_of_all(700, 3, 0.5))
    expected, expected_ids, expected_sketch = run_reference(program, slab)
    sketch = Sketch(program.sketch)
    features, ids = all_ops_on(0, WIDE_ALWAYS).run(slab, sketch)
    assert (np.abs(features.astype(np.float64) - expected) <= bounds(program, slab, expected)).all()
    np.testing.assert_array_equal(ids, expected_ids)
    assert_same_sketch(program, sketch, expected_sketch)


@pytest.mark.parametrize("processors", [WIDE_ALWAYS, NARROW_ALWAYS])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", ROWS)
def test_odd_shapes(rows: int, width: int, processors: int) -> None:
    for program in (standard(width), standard(width, 5, flag=True)):
        matrix = matrix_of(rows, width)
        check_all(program, as_columns(program, matrix), processors)
        check_all(program, ColumnTable(program.schema, matrix), processors)


@pytest.mark.parametrize("rows", [1, 1025, 5000])
def test_rows_and_columns_are_the_same(rows: int) -> None:
    """And so do spans of them, whose columns begin anywhere."""
    program = standard(36, 30, flag=True)
    matrix = matrix_of(rows, 36)
    executor = CudaExecutor(program, EmulatedDevice(0, WIDE_ALWAYS))
    expected = check(program, as_columns(program, matrix), executor)
    assert check(program, ColumnTable(program.schema, matrix), executor) == expected
    for start, stop in ((0, rows), (rows // 3, rows), (rows // 2, rows // 2)):
        by_rows, by_columns, by_cpu = (Sketch(program.sketch) for _ in range(3))
        found = executor.run(ColumnTable(program.schema, matrix), by_rows, start, stop)[0]
        assert executor.run(as_columns(program, matrix), by_columns, start, stop)[0].tobytes() == found.tobytes()
        CpuExecutor(program).run(as_columns(program, matrix), by_cpu, start, stop)
        assert by_rows == by_columns
        assert_same_sketch(program, by_rows, by_cpu)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 15, 16, 31, 32, 63, 64, 1000, 4096])
def test_histograms_of_any_number_of_edges(count: int) -> None:
    program = standard(2, count)
    edges = np.asarray(edges_of(count), np.float32)
    near = np.concatenate([edges, np.nextafter(edges, np.float32(9)), np.nextafter(edges, np.float32(-9))])
    matrix = np.concatenate([matrix_of(900, 2), np.stack([near, near[::-1]], 1)])
    check(program, as_columns(program, matrix), CudaExecutor(program, EmulatedDevice()))


@pytest.mark.parametrize("values", [0.5, -0.0, np.nan, np.inf, 1e-45])
def test_constant_columns(values: float) -> None:
    program = standard(8)
    check_all(program, as_columns(program, np.full((700, 8), values, np.float32)), WIDE_ALWAYS)


def test_many_sketched_fields_without_chains() -> None:
    fields = tuple(Field(f"x{i}", "real") for i in range(70))
    some = tuple(RealField(f"x{i}", edges_of(500 if i == 9 else 20), -1.0, 1.0, 0.5) for i in range(70))
    program = ColumnProgram(fields, (Chain(3, ()), Chain(40, (ops.Cyclic(2.0),))), SketchSpec(some))
    matrix = matrix_of(700, 70)
    check_all(program, as_columns(program, matrix), WIDE_ALWAYS)
    check_all(program, ColumnTable(program.schema, matrix), WIDE_ALWAYS)


def test_same_launches_same_bits() -> None:
    program = standard(40)
    table = as_columns(program, matrix_of(5000, 40))
    executor = CudaExecutor(program, EmulatedDevice(0))
    found = {check(program, table, executor) for _ in range(3)}
    found |= {check(program, table, CudaExecutor(program, EmulatedDevice(order))) for order in (1, 2, 3)}
    assert len(found) == 1


def test_batches_merge_to_one() -> None:
    program = standard(9)
    matrix = matrix_of(3000, 9)
    table = as_columns(program, matrix)
    whole, parts, at_once = (Sketch(program.sketch) for _ in range(3))
    CpuExecutor(program).run(table, whole)
    executor = CudaExecutor(program, EmulatedDevice())
    spans = ((0, 1), (1, 700), (700, 701), (701, 3000))
    for start, stop in spans:
        executor.run(table, parts, start, stop)
    for start, stop in spans:
        executor.launch(table, start, stop)
    executor.collect(at_once)
    assert_same_sketch(program, parts, whole)
    assert_same_sketch(program, at_once, whole)


def test_launches_go_to_the_open_epoch() -> None:
    program = standard(3)
    table = as_columns(program, matrix_of(500, 3))
    executor = CudaExecutor(program, EmulatedDevice())
    expected = Sketch(program.sketch)
    CpuExecutor(program).run(table, expected)
    sketch = Sketch(program.sketch)
    executor.collect(sketch)
    assert sketch == Sketch(program.sketch)
    for _ in range(4):  # both epochs, each cleared after it was read
        executor.launch(table)
        executor.launch(table, counted=False)
        sketch = Sketch(program.sketch)
        executor.collect(sketch)
        assert_same_sketch(program, sketch, expected)
    features, _ = executor.run(table)
    assert features.tobytes() == CpuExecutor(program).run(table)[0].tobytes()
    sketch = Sketch(program.sketch)
    executor.collect(sketch)
    assert sketch.rows == 0


def test_what_is_refused() -> None:
    program = standard(2)
    executor = CudaExecutor(program, EmulatedDevice())
    with pytest.raises(ExecutorError, match="spec"):
        executor.collect(Sketch(standard(2, 5).sketch))
    with pytest.raises(ExecutorError, match="schema"):
        executor.launch(as_columns(standard(3), matrix_of(2, 3)))
    assert executor.launch(as_columns(program, matrix_of(0, 2))) is None


def view(array: DeviceArray) -> NDArray[Any]:
    """What PyTorch or CuPy would see of it, on a device whose memory is the host's."""
    described: Any = type("Described", (), {"__array_interface__": array.__cuda_array_interface__})()
    return np.asarray(described)


@pytest.mark.parametrize("aligned", [True, False])
def test_rows_that_are_on_the_device(aligned: bool) -> None:
    program = standard(6, flag=True)
    matrix = matrix_of(700, 6)
    expected = CpuExecutor(program).run(as_columns(program, matrix))[0]
    executor = CudaExecutor(program, EmulatedDevice())
    skipped = 0 if aligned else 1
    columns = [np.ascontiguousarray(np.concatenate([np.zeros(skipped, np.float32), column])) for column in matrix.T]
    addresses = np.asarray([column.ctypes.data + 4 * skipped for column in columns], np.uint64)
    wide = np.zeros((700, 8 + skipped), np.float32)
    wide[:, skipped : 6 + skipped] = matrix
    sources = (
        DeviceRows(700, columns=addresses.ctypes.data, columns_aligned=False),
        DeviceRows(700, matrix=wide.ctypes.data + 4 * skipped, pitch=8 + skipped),
    )
    counted = []
    for rows in sources:
        output = executor.launch_on(rows)
        assert output is not None
        assert output.features.strides[0] % 16 == 0
        np.testing.assert_array_equal(view(output.features), expected)
        sketch = Sketch(program.sketch)
        executor.collect(sketch)
        counted.append(sketch)
    assert counted[0] == counted[1]
    assert executor.launch_on(DeviceRows(0)) is None


def test_ids_on_the_device() -> None:
    executor, slab = all_ops_on(0, NARROW_ALWAYS), slab_of(all_ops(), rows_of_all(50, 1, 0.5))
    output = executor.launch(slab, counted=False)
    assert output is not None
    np.testing.assert_array_equal(view(output.ids), CpuExecutor(all_ops()).run(slab)[1])
    with pytest.raises(ExecutorError, match="texts"):
        executor.launch_on(DeviceRows(1))


KERNEL = (CSRC / "cuda" / "kernel.h").read_text()
BARRIERS = KERNEL.count("__syncthreads();")


def counted_only(width: int) -> ColumnProgram:
    program = standard(width, 40)
    return ColumnProgram(program.fields, (), program.sketch)


@pytest.mark.slow
@pytest.mark.skipif(SANITIZED, reason="runs kernels that read what is not there yet")
@pytest.mark.parametrize("left_out", range(BARRIERS))
def test_every_barrier_is_needed(left_out: int) -> None:
    """Of the kernel, and of the emulation: where one is left out, some order of threads gives something else."""
    parts = KERNEL.split("__syncthreads();")
    text = "__syncthreads();".join(parts[: left_out + 1]) + "__syncthreads();".join(parts[left_out + 1 :])

    def outcome(program: ColumnProgram, order: int, matrix: bool, kernel: str = KERNEL) -> Any:
        device = EmulatedDevice(order, WIDE_ALWAYS, lambda source: source.replace(INCLUDED, kernel))
        values = matrix_of(1500, len(program.fields))
        rows = ColumnTable(program.schema, values) if matrix else as_columns(program, values)
        sketch = Sketch(program.sketch)
        features, _ = CudaExecutor(program, device).run(rows, sketch)
        return features.tobytes(), sketch.to_bytes()

    def is_seen(program: ColumnProgram, matrix: bool) -> bool:
        expected = outcome(program, 0, matrix)
        return any(outcome(program, order, matrix, text) != expected for order in range(12))

    cases = ((standard(20, 40), True), (standard(20, 40), False), (counted_only(20), True), (counted_only(2), False))
    assert any(is_seen(*case) for case in cases)


INCLUDED = '#include "cuda/kernel.h"'


@pytest.mark.gpu
@pytest.mark.parametrize("matrix", [False, True])
def test_on_the_gpu(matrix: bool) -> None:
    device = cuda_device()
    if isinstance(device, str):
        pytest.skip(device)
    for program in (standard(65), standard(64, 200, flag=True), standard(3)):
        executor = CudaExecutor(program, device)
        for rows in (*ROWS, MANY):
            values = matrix_of(rows, len(program.fields))
            table = ColumnTable(program.schema, values) if matrix else as_columns(program, values)
            assert len({check(program, table, executor) for _ in range(3)}) == 1
    if not matrix:
        executor = CudaExecutor(all_ops(), device)
        for rows in (*ROWS, MANY):
            check(all_ops(), slab_of(all_ops(), rows_of_all(rows, rows, 0.5)), executor)


def test_layouts_are_both_tried() -> None:
    """What the other tests rely on."""
    program = standard(64)
    table = as_columns(program, matrix_of(700, 64))
    for processors, layout in ((WIDE_ALWAYS, WIDE), (NARROW_ALWAYS, NARROW)):
        device = EmulatedDevice(0, processors)
        CudaExecutor(program, device).run(table)
        assert device.launches[0].blocks[1] == Compiled.of(program).tables(layout, False).groups
