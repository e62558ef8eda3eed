"""The ops outside of the inner loops (logarithms, bins, spreads, lookups, hashes) at every dispatch level: against the
oracle, and to the bit against each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import ndtri
from trimtab._native import CPU_LEVELS, Slab
from trimtab.kernels import operations as ops
from trimtab.kernels.cpu import CpuExecutor
from trimtab.kernels.operations import FIRST_ID, FP32_MAX, NULL, OOV, Operation
from trimtab.kernels.program import Chain, ColumnProgram, Field
from trimtab.kernels.reference import hash_of, run_reference
from trimtab.kernels.sketch import Sketch
from trimtab.kernels.sketch_spec import CategoryField, RealField, SketchSpec

TINY = float(np.finfo(np.float32).smallest_subnormal)
HOSTILE = [0.0, -0.0, TINY, -TINY, 1e-38, 1e-7, FP32_MAX, -FP32_MAX, np.nan, np.inf, -np.inf, 0.5, -3.0, 16777217.0]
ROWS = [1, 15, 16, 17, 511, 512, 513, 1500]
COUNTS = [0, 1, 2, 15, 16, 31, 32, 63, 64, 101, 127, 128, 1000, 4096]
MISSING = -(1 << 63)


def spec_of(fields: tuple[Field, ...]) -> SketchSpec:
    return SketchSpec(
        tuple(CategoryField(f.name, (), 0) if f.type == "string" else RealField(f.name, ()) for f in fields)
    )


def program_of(kind: Any, *chains: tuple[Operation, ...]) -> ColumnProgram:
    fields = (Field("x", kind),)
    return ColumnProgram(fields, tuple(Chain(0, chain) for chain in chains), spec_of(fields))


def slab_of(program: ColumnProgram, *columns: Any) -> Slab:
    slab = Slab(program.schema)
    slab.append_columns(list(columns))
    return slab


def texts_of(values: list[str]) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    parts = [value.encode() for value in values]
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int32)
    return offsets, np.frombuffer(b"".join(parts), np.uint8)


def edges_of(count: int) -> tuple[float, ...]:
    return tuple(np.unique(np.random.default_rng(count).normal(size=count).astype(np.float32)).tolist())


def values_near(edges: tuple[float, ...], rows: int) -> NDArray[np.float32]:
    """On, just below and just above edges, far from them, and what is hostile."""
    random = np.random.default_rng(rows)
    special = np.asarray([*HOSTILE, *edges[:200]], np.float32)
    with np.errstate(over="ignore", under="ignore"):
        special = np.concatenate([special, np.nextafter(special, np.float32(9)), np.nextafter(special, np.float32(-9))])
    normal = random.normal(size=rows).astype(np.float32)
    return np.where(random.random(rows) < 0.6, random.choice(special, rows), normal).astype(np.float32)


def run_all(program: ColumnProgram, slab: Slab) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """What every level gives, to the bit, also for a row alone."""
    found = [CpuExecutor(program, level).run(slab) for level in CPU_LEVELS]
    features, ids = found[0]
    for other_features, other_ids in found[1:]:
        assert other_features.tobytes() == features.tobytes()
        assert other_ids.tobytes() == ids.tobytes()
    last = slab.rows - 1
    alone, alone_ids = CpuExecutor(program).run(slab, None, last, last + 1)
    assert alone.tobytes() == features[last].tobytes()
    assert alone_ids.tobytes() == ids[last].tobytes()
    return features, ids


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("count", COUNTS)
def test_bins_of_any_number_of_edges(count: int, rows: int) -> None:
    edges = edges_of(count)
    program = program_of(
        "real",
        (ops.Bucketise(edges),),
        (ops.Impute(0.25, True), ops.Clip(-1.0, 1.0), ops.Bucketise(edges)),
        (ops.Bucketise(edges[:40]), ops.OneHot()),
        (ops.Impute(0.5, True), ops.SignedLog(), ops.PiecewiseLinear(edges[:70])),
        (ops.PiecewiseLinear(edges),),
    )
    slab = slab_of(program, values_near(edges, rows))
    features, ids = run_all(program, slab)
    expected, expected_ids, _ = run_reference(program, slab)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(features, expected, rtol=2.0**-23, atol=2.0**-23)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 64, 101, 4096])
def test_quantiles_of_any_number_of_knots(count: int) -> None:
    knots = edges_of(count)
    shares = tuple(np.sort(np.random.default_rng(1).random(len(knots))).tolist())
    program = program_of("real", (ops.QuantileNormal(knots, shares),), (ops.Standardise(0.1, 3.0),))
    doubles = program_of("real", (ops.Standardise(0.1, 0.3), ops.QuantileNormal(knots, shares)))  # no longer fp32
    for each in (program, doubles):
        slab = slab_of(each, values_near(knots, 1500))
        features, _ = run_all(each, slab)
        expected, _, _ = run_reference(each, slab)
        np.testing.assert_allclose(features, expected, rtol=2.0**-22, atol=2.0**-22)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(HOSTILE), st.floats(width=32)), min_size=1, max_size=40))
def test_logarithms_are_those_of_numpy(values: list[float]) -> None:
    raw = np.asarray(values, np.float32)
    program = program_of("real", (ops.Log1p(),), (ops.SignedLog(),))
    features, _ = run_all(program, slab_of(program, raw))
    exact = np.where(np.isnan(raw), 0.0, raw).astype(np.float64)
    log1p = np.log1p(np.maximum(exact, 0.0))
    signed = np.copysign(np.log1p(np.abs(exact)), exact)
    for column, expected in zip(features.T, (log1p, signed), strict=True):
        np.testing.assert_allclose(column, np.clip(expected, -FP32_MAX, FP32_MAX), rtol=2.0**-23, atol=TINY)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.one_of(st.sampled_from(HOSTILE), st.floats(-1e6, 1e6, width=32)), min_size=1, max_size=40),
    st.sampled_from([1.0, 7.0, 24.0, 1e-3, 365.25, 1e30]),
)
def test_angles_are_those_of_numpy(values: list[float], period: float) -> None:
    raw = np.asarray(values, np.float32)
    program = program_of("real", (ops.Cyclic(period),))
    features, _ = run_all(program, slab_of(program, raw))
    with np.errstate(invalid="ignore"):
        turns = raw.astype(np.float64) / period
        known = np.isfinite(turns)
        angle = 2 * np.pi * np.where(known, turns - np.floor(turns), 0.0)
    np.testing.assert_allclose(features[:, 0], np.where(known, np.sin(angle), 0.0), rtol=0, atol=2.0**-24)
    np.testing.assert_allclose(features[:, 1], np.where(known, np.cos(angle), 0.0), rtol=0, atol=2.0**-24)


def test_normal_quantiles_over_the_whole_range() -> None:
    knots = (0.0, 1.0)
    program = program_of("real", (ops.QuantileNormal(knots, knots),))
    p = np.concatenate([np.linspace(0, 1, 10_001), np.logspace(-8, -1, 2000), 1 - np.logspace(-7, -1, 2000)])
    raw = p.astype(np.float32)
    features, _ = run_all(program, slab_of(program, raw))
    exact = np.clip(raw.astype(np.float64), 1e-7, 1 - 1e-7)
    np.testing.assert_allclose(features[:, 0], ndtri(exact), rtol=2.0**-22, atol=2.0**-40)


def distinct_texts(count: int) -> list[str]:
    """Texts that are easily taken for one another: alike in their first or last bytes, or but for their length."""
    random = np.random.default_rng(count)
    found: dict[str, None] = dict.fromkeys(["a", "a\0", "a\0\0", "x" * 16, "x" * 17, "x" * 16 + "\0", "é" * 8, "é" * 9])
    while len(found) < count:
        stem = "common stem of many values"[: random.integers(0, 27)]
        found[stem + "".join(random.choice(list("ab\0日"), random.integers(1, 12))) + "."] = None
    return list(found)[:count]


@pytest.mark.parametrize("count", [1, 2, 7, 128, 129, 3000, 30_000])
def test_texts_in_vocabularies_of_all_sizes(count: int) -> None:
    texts = distinct_texts(2 * count + 20)
    known = tuple(texts[::2][:count])
    random = np.random.default_rng(0)
    rows = [texts[i] for i in random.integers(0, len(texts), 1500)] + ["", *texts[:9]]
    program = program_of("string", (ops.Vocabulary(known),))
    _, ids = run_all(program, slab_of(program, texts_of(rows)))
    position = {value: FIRST_ID + i for i, value in enumerate(known)}
    assert ids[:, 0].tolist() == [NULL if not row else position.get(row, OOV) for row in rows]


@pytest.mark.parametrize("count", [1, 2, 7, 128, 129, 3000, 30_000])
@pytest.mark.parametrize("span", ["dense", "sparse", "extreme"])
def test_integers_in_vocabularies_of_all_sizes(count: int, span: str) -> None:
    random = np.random.default_rng(count)
    high = {"dense": 3 * count, "sparse": 1 << 40, "extreme": (1 << 63) - 1}[span]
    low = -high if span == "extreme" else -5
    values = np.unique(np.concatenate([random.integers(low, high, 2 * count), [low, high - 1, 0]]))
    known = random.permutation(values)[:count]
    rows = np.concatenate([random.choice(values, 1500), [MISSING, MISSING + 1, (1 << 63) - 1, 0, -1], values[:9]])
    program = program_of("integer", (ops.Vocabulary(tuple(known.tolist())),))
    _, ids = run_all(program, slab_of(program, rows))
    position = {value: FIRST_ID + i for i, value in enumerate(known.tolist())}
    assert ids[:, 0].tolist() == [NULL if row == MISSING else position.get(row, OOV) for row in rows.tolist()]


@pytest.mark.parametrize("rows", [1, 2, 31, 32, 33, 512, 700])
@pytest.mark.parametrize("buckets", [1, 2, 3, 1021, 1 << 24])
def test_hashes_of_texts_of_all_lengths(buckets: int, rows: int) -> None:
    random = np.random.default_rng(rows)
    values = ["".join(random.choice(list("ab\0é日"), random.integers(0, 40))) for _ in range(rows)]
    program = program_of("string", (ops.HashBucket(buckets),), (ops.Cross(0, buckets),))
    slab = slab_of(program, texts_of(values))
    _, ids = run_all(program, slab)
    assert ids[:, 0].tolist() == [FIRST_ID + hash_of(value) % buckets if value else NULL for value in values]
    np.testing.assert_array_equal(ids, run_reference(program, slab)[1])


def test_many_chains_of_all_kinds_side_by_side() -> None:
    """More columns and ids than go together, flags, and chains of the inner loops between them."""
    fields = (Field("x", "real"), Field("n", "integer"), Field("s", "string"), Field("b", "boolean"))
    numbers: list[tuple[Operation, ...]] = [
        (ops.Impute(0.5, True), ops.Log1p()),
        (ops.Cyclic(3.0),),
        (ops.Bucketise(edges_of(20)),),
        (ops.Bucketise(edges_of(3)), ops.OneHot()),
        (ops.Impute(0.5, True), ops.PiecewiseLinear(edges_of(9))),
        (ops.PiecewiseLinear(()),),
        (ops.Impute(0.5, True), ops.Standardise(0.1, 2.0)),
        (ops.Impute(0.0, True), ops.Cyclic(2.0)),
    ]
    texts: list[tuple[Operation, ...]] = [
        (ops.Vocabulary(("a", "b")),),
        (ops.Vocabulary(("b",)), ops.OneHot()),
        (ops.HashBucket(7),),
        (ops.HashBucket(5), ops.OneHot()),
        (ops.Cross(1, 11),),
        (ops.Cross(3, 11), ops.Embedding()),
    ]
    chains = [Chain(field, operations) for _ in range(4) for field in (0, 1) for operations in numbers]
    chains += [Chain(2, operations) for _ in range(5) for operations in texts]
    chains += [Chain(3, (ops.Vocabulary((1,)),)), Chain(3, (ops.Log1p(),)), Chain(0, (ops.Log1p(),))]
    program = ColumnProgram(fields, tuple(chains), spec_of(fields))
    random = np.random.default_rng(5)
    rows = 1100
    words = [["", "a", "b", "c"][i] for i in random.integers(0, 4, rows)]
    booleans = random.choice(np.asarray([0, 1, np.nan], np.float32), rows)
    integers = random.choice(np.asarray([0, 1, -1, (1 << 24) + 1, MISSING, 5]), rows)
    slab = slab_of(program, values_near(edges_of(20), rows), integers, texts_of(words), booleans)
    features, ids = run_all(program, slab)
    expected, expected_ids, _ = run_reference(program, slab)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(features, expected, rtol=2.0**-21, atol=2.0**-22)


@pytest.mark.parametrize("counted", [0, 1, 200, 251, 252, 253, 300])
@pytest.mark.parametrize("rows", [1, 255, 256, 257, 512, 5000])
def test_categories_are_counted(counted: int, rows: int) -> None:
    known = tuple(f"v{i}" for i in range(320))
    fields = (Field("s", "string"),)
    program = ColumnProgram(fields, (), SketchSpec((CategoryField("s", known, counted),)))
    random = np.random.default_rng(rows)
    chosen = random.choice([*known[:4], "", "new", *known[190:]], rows).tolist()
    slab = slab_of(program, texts_of([*chosen, "v0"]))
    expected = run_reference(program, slab)[2]
    for level in CPU_LEVELS:
        sketch = Sketch(program.sketch)
        CpuExecutor(program, level).run(slab, sketch)
        np.testing.assert_array_equal(sketch.counts, expected.counts)
