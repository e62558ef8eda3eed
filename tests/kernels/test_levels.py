"""The dispatch levels of the CPU executor: each against the oracle, and to the bit against the others."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from trimtab._native import CPU_LEVEL, CPU_LEVELS, Slab, sketch_values
from trimtab.kernels import operations as ops
from trimtab.kernels.cpu import CpuExecutor
from trimtab.kernels.errors import ProgramError
from trimtab.kernels.operations import FP32_MAX, Operation
from trimtab.kernels.program import Chain, ColumnProgram, Field, RealField, SketchSpec
from trimtab.kernels.reference import run_reference
from trimtab.kernels.sketch import Sketch
from trimtab.kernels.sketch_spec import MOMENTS, PREFIX

Floats = NDArray[np.float32]
TINY = float(np.finfo(np.float32).smallest_subnormal)
HOSTILE = [0.0, -0.0, TINY, -TINY, 1e-38, FP32_MAX, -FP32_MAX, np.nan, np.inf, -np.inf, 0.5, -3.0]
ROWS = [0, 1, 2, 3, 7, 8, 15, 16, 17, 23, 24, 47, 48, 63, 64, 65, 511, 512, 513, 1023, 1024, 1025]
EDGES = [0, 1, 15, 16, 31, 32, 63, 64, 300]
levels = pytest.mark.parametrize("level", CPU_LEVELS)


def column(seed: int, rows: int, hostile: float) -> Floats:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=rows).astype(np.float32)
    return np.where(rng.random(rows) < hostile, rng.choice(np.asarray(HOSTILE, np.float32), rows), values).astype(
        np.float32
    )


def edges_of(count: int) -> tuple[float, ...]:
    return tuple(np.unique(np.random.default_rng(count).normal(size=count).astype(np.float32)).tolist())


def slab_of(program: ColumnProgram, columns: list[Any]) -> Slab:
    slab = Slab(program.schema)
    slab.append_columns(columns)
    return slab


def run(
    program: ColumnProgram, slab: Slab, level: str, start: int = 0, stop: int = -1
) -> tuple[Floats, NDArray[np.int64], Sketch]:
    sketch = Sketch(program.sketch)
    features, ids = CpuExecutor(program, level).run(slab, sketch, start, stop)
    alone, _ = CpuExecutor(program, level).run(slab, None, start, stop)
    assert alone.tobytes() == features.tobytes()  # with a sketch the loops are others
    return features, ids, sketch


def same_bits(a: Sketch, b: Sketch) -> bool:
    return a.counts.tobytes() == b.counts.tobytes() and a.moments.tobytes() == b.moments.tobytes()


def sums_of(values: Floats, shift: float) -> tuple[float, float]:
    """Sum and sum of squares as the contract defines them: eight lanes, added in a fixed order."""
    lanes = np.zeros((2, 8))
    for row, x in enumerate(values.astype(np.float64)):
        d = x - shift if np.isfinite(x) else 0.0
        lanes[:, row % 8] += d, d * d
    a, b, c, d, e, f, g, h = lanes.T
    first, second = ((a + e) + (c + g)) + ((b + f) + (d + h))
    return float(first), float(second)


CHAINS: list[tuple[Operation, ...]] = [
    (ops.Impute(0.25, True), ops.Clip(-1.0, 1.5), ops.Standardise(0.1, 0.9)),
    (ops.Impute(0.25, False), ops.Standardise(0.1, 0.9)),
    (ops.Clip(-1.0, 1.5), ops.Impute(7.0, True), ops.MinMax(-1.0, 2.5)),
    (ops.Clip(-0.0, 0.0), ops.Robust(0.3, 1e-6)),
    (ops.Standardise(0.5, 0.0),),
    (ops.Impute(1.0, True), ops.Standardise(3.0, 0.0)),
    (ops.Standardise(0.0, 1e-300),),
    (),
    (ops.Impute(-0.0, False),),
    (ops.Robust(1e30, 1e30), ops.MinMax(0.0, 2.0)),
    (ops.Log1p(), ops.Standardise(0.1, 2.0)),
    (ops.Bucketise((-0.5, 0.0, 0.5)),),
]


def mixed_program() -> ColumnProgram:
    """Every chain on a field of its own, then all again on one field: groups of all widths, flags, and chains between
    them that the inner loops do not take."""
    fields = tuple(Field(f"x{i}", "integer" if i % 5 == 3 else "real") for i in range(len(CHAINS)))
    chains = [Chain(i, operations) for i, operations in enumerate(CHAINS)]
    chains += [Chain(0, operations) for operations in CHAINS[:10]] * 2
    sketch = SketchSpec(
        tuple(
            RealField(field.name, edges_of(EDGES[i % len(EDGES)]), -1.0, 1.25, 0.125 * i)
            for i, field in enumerate(fields)
        )
    )
    return ColumnProgram(fields, tuple(chains), sketch)


def mixed_slab(program: ColumnProgram, rows: int, hostile: float) -> Slab:
    rng = np.random.default_rng(rows)
    integers = np.asarray([0, 1, -1, 7, (1 << 24) + 1, -(1 << 63)])
    return slab_of(
        program,
        [
            rng.choice(integers, rows) if field.type == "integer" else column(i, rows, hostile)
            for i, field in enumerate(program.fields)
        ],
    )


@levels
@pytest.mark.parametrize("hostile", [0.0, 0.05, 0.9])
@pytest.mark.parametrize("rows", ROWS)
def test_every_chain_at_every_size(level: str, rows: int, hostile: float) -> None:
    program = mixed_program()
    slab = mixed_slab(program, rows, hostile)
    expected, expected_ids, expected_sketch = run_reference(program, slab)
    features, ids, sketch = run(program, slab, level)
    assert np.isfinite(features).all()
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(sketch.counts, expected_sketch.counts)
    # The largest intermediate is the raw value, the shift or the feature.
    largest = np.maximum(np.abs(expected), 1e30 if hostile else 2.0**25)
    assert (np.abs(features - expected) <= largest * 2.0**-22).all()
    moments, expected_moments = sketch.moments.reshape(-1, MOMENTS), expected_sketch.moments.reshape(-1, MOMENTS)
    assert moments[:, :2].tobytes() == expected_moments[:, :2].tobytes()
    for i, field in enumerate(program.sketch.fields):
        if program.fields[i].type == "real":
            assert isinstance(field, RealField)
            assert tuple(moments[i, 2:]) == sums_of(slab.reals(i), field.shift)


@levels
@pytest.mark.parametrize("rows", ROWS)
def test_ordinary_features_to_the_last_bit(level: str, rows: int) -> None:
    """Impute, clip and scale in float64 and round once: the oracle's own fp32 value, but for a tie that the product
    with the inverse decides in another way."""
    program = mixed_program()
    slab = mixed_slab(program, rows, 0.1)
    expected = run_reference(program, slab)[0][:, :3].astype(np.float32)
    features = run(program, slab, level)[0][:, :3]
    np.testing.assert_array_max_ulp(features, expected, 1)
    assert np.count_nonzero(features != expected) <= rows // 100


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(ROWS), st.integers(0, 40), st.sampled_from([0.0, 0.2, 1.0]), st.integers(0, 3))
def test_all_levels_give_the_same_bits(rows: int, start: int, hostile: float, seed: int) -> None:
    program = mixed_program()
    slab = mixed_slab(program, rows + start + seed, hostile)
    first = run(program, slab, CPU_LEVELS[0], start, start + rows)
    for level in CPU_LEVELS[1:]:
        features, ids, sketch = run(program, slab, level, start, start + rows)
        assert features.tobytes() == first[0].tobytes()
        assert ids.tobytes() == first[1].tobytes()
        assert same_bits(sketch, first[2])


@levels
@pytest.mark.parametrize("start", [1, 3, 5, 8, 513])
def test_rows_from_the_middle_count_as_rows_alone(level: str, start: int) -> None:
    program = mixed_program()
    slab = mixed_slab(program, 1600, 0.1)
    alone = Slab(program.schema)
    alone.extend(slab, start=start, stop=start + 1040)
    whole, expected = run(program, slab, level, start, start + 1040), run(program, alone, level)
    assert whole[0].tobytes() == expected[0].tobytes()
    assert same_bits(whole[2], expected[2])


@levels
@pytest.mark.parametrize("count", EDGES)
@pytest.mark.parametrize("rows", [1, 7, 24, 48, 64, 513, 2000])
def test_values_on_and_beside_edges(level: str, count: int, rows: int) -> None:
    edges = np.asarray(edges_of(count), np.float32)
    around = np.concatenate([edges, np.nextafter(edges, np.float32(-np.inf)), np.asarray(HOSTILE, np.float32)])
    values = np.random.default_rng(rows).choice(around, rows)
    counts = np.zeros(PREFIX + len(edges) + 1, np.uint64)
    moments = np.asarray([np.inf, -np.inf, 0.0, 0.0])
    sketch_values(values, edges, -1.0, 1.0, 0.0, counts, moments, level)
    known = values[~np.isnan(values)]
    bins = np.bincount(np.searchsorted(edges, known, side="right"), minlength=len(edges) + 1)
    np.testing.assert_array_equal(counts[PREFIX:], bins)
    assert counts[0] == rows - len(known)
    assert counts[1] == np.count_nonzero((known < -1.0) | (known > 1.0))
    assert tuple(moments[2:]) == sums_of(values, 0.0)


@levels
@pytest.mark.parametrize("value", [0.3, np.nan, np.inf, -np.inf, -0.0, -FP32_MAX])
def test_one_value_for_all_rows(level: str, value: float) -> None:
    rows = 5000
    program = ColumnProgram(
        (Field("x", "real"),),
        (Chain(0, (ops.Impute(0.5, True), ops.Standardise(0.1, 0.9))),),
        SketchSpec((RealField("x", edges_of(31), -1.0, 1.0, 0.125),)),
    )
    slab = slab_of(program, [np.full(rows, value, np.float32)])
    _, _, expected = run_reference(program, slab)
    features, _, sketch = run(program, slab, level)
    np.testing.assert_array_equal(sketch.counts, expected.counts)
    assert np.unique(features, axis=0).shape == (1, 2)


def test_the_best_level_is_the_default() -> None:
    assert CPU_LEVELS[-1] == "portable"
    assert os.environ.get("TRIMTAB_CPU", CPU_LEVELS[0]) == CPU_LEVEL
    order = ["v4_popcnt", "v4", "v3", "v2", "portable"]
    assert all(order.index(a) < order.index(b) for a, b in pairwise(CPU_LEVELS))


def test_unknown_level() -> None:
    with pytest.raises(ProgramError, match=r"this machine has .*portable"):
        CpuExecutor(mixed_program(), "v9")


def imported(level: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *(["-S"] if sys.flags.no_site else []), "-c"]
    return subprocess.run(
        [*command, "from trimtab._native import CPU_LEVEL; print(CPU_LEVEL)"],
        env={**os.environ, "TRIMTAB_CPU": level},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("level", [*CPU_LEVELS, ""])
def test_level_from_the_environment(level: str) -> None:
    done = imported(level)
    assert done.stdout.strip() == (level or CPU_LEVELS[0]), done.stderr


def test_level_that_this_machine_lacks() -> None:
    done = imported("v5")
    assert done.returncode != 0
    assert 'ImportError: TRIMTAB_CPU: no CPU level "v5": this machine has ' in done.stderr
