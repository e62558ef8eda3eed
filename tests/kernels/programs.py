"""Random column programs and hostile rows for them, and what two executors' results are held to."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from trimtab._native import Slab
from trimtab.kernels import operations as ops
from trimtab.kernels.grammar import FieldType
from trimtab.kernels.operations import FP32_MAX, Operation
from trimtab.kernels.program import CategoryField, Chain, ColumnProgram, Field, RealField, SketchField, SketchSpec
from trimtab.kernels.sketch import Sketch

MISSING = -(1 << 63)
TINY = float(np.finfo(np.float32).smallest_subnormal)
HOSTILE = [0.0, -0.0, 1.0, -1.0, 0.5, 1e-30, 3.0, -7.25, TINY, -TINY, 1.1754944e-38, FP32_MAX, -FP32_MAX, 16777217.0]
TEXTS = ["", "a", "b", "A", "é", "日本", "a b", "a\0", "x" * 300]
INTEGERS = [0, 1, 2, -1, 1 << 24, (1 << 24) + 1, (1 << 63) - 1, MISSING + 1, MISSING]

fp32 = st.one_of(st.sampled_from([float(np.float32(x)) + 0.0 for x in HOSTILE]), st.floats(-1e6, 1e6, width=32)).map(
    lambda x: x + 0.0
)
edges = st.lists(fp32, max_size=12, unique=True).map(lambda x: tuple(sorted(x)))
scales = st.one_of(st.just(0.0), st.floats(1e-3, 1e6))
texts = st.lists(st.sampled_from(TEXTS[1:]), unique=True, max_size=6).map(tuple)
integers = st.lists(st.sampled_from(INTEGERS[:-1]), unique=True, max_size=6).map(tuple)


@st.composite
def quantile_normal(draw: st.DrawFn) -> Operation:
    knots = draw(edges)
    share = st.floats(0, 1)
    return ops.QuantileNormal(knots, tuple(sorted(draw(st.lists(share, min_size=len(knots), max_size=len(knots))))))


exact = st.one_of(
    st.builds(ops.Impute, fp32, st.booleans()),
    st.tuples(fp32, fp32).map(lambda pair: ops.Clip(min(pair), max(pair))),
)
computing = st.one_of(
    st.builds(ops.Log1p),
    st.builds(ops.SignedLog),
    st.builds(ops.Standardise, st.floats(-1e6, 1e6), scales),
    st.builds(ops.MinMax, fp32, scales),
    st.builds(ops.Robust, fp32, scales),
    quantile_normal(),
)
spreading = st.one_of(st.builds(ops.PiecewiseLinear, edges), st.builds(ops.Cyclic, st.floats(1e-3, 1e6)))


@st.composite
def chains(draw: st.DrawFn, field: int, types: list[FieldType]) -> Chain:
    kind = types[field]
    shape = draw(st.sampled_from(["real", "bins", "category"]))
    if kind == "string" or (kind != "real" and shape == "category"):
        crossable = [i for i, other in enumerate(types) if other != "real"]
        terminal: Operation = draw(
            st.one_of(
                st.builds(ops.Vocabulary, texts if kind == "string" else integers),
                st.builds(ops.HashBucket, st.integers(1, 20)),
                st.builds(ops.Cross, st.sampled_from(crossable), st.integers(1, 20)),
            )
        )
        return Chain(field, (terminal, *draw(st.sampled_from([(), (ops.OneHot(),), (ops.Embedding(),)]))))
    before = draw(st.lists(exact, max_size=3, unique_by=lambda op: op.op))
    if shape == "bins":
        return Chain(
            field, (*before, draw(st.builds(ops.Bucketise, edges)), *draw(st.sampled_from([(), (ops.OneHot(),)])))
        )
    before += draw(st.lists(computing, max_size=3))
    return Chain(field, (*before, *draw(st.one_of(st.just(()), st.tuples(spreading)))))


@st.composite
def sketch_fields(draw: st.DrawFn, name: str, kind: FieldType) -> SketchField:
    if kind == "string" or (kind != "real" and draw(st.booleans())):
        values: Any = draw(texts if kind == "string" else integers)
        return CategoryField(name, values, draw(st.integers(0, len(values))))
    low, high = sorted([draw(fp32), draw(fp32)])
    return RealField(name, draw(edges), low, high, draw(fp32))


@st.composite
def programs(draw: st.DrawFn) -> ColumnProgram:
    types: list[FieldType] = draw(
        st.lists(st.sampled_from(["real", "boolean", "integer", "string"]), min_size=1, max_size=4)
    )
    fields = tuple(Field(f"f{i}", kind) for i, kind in enumerate(types))
    made = [draw(chains(i, types)) for i in range(len(types)) for _ in range(draw(st.integers(0, 3)))]
    spec = SketchSpec(tuple(draw(sketch_fields(field.name, field.type)) for field in fields), (0.25, 0.5, 0.75))
    keys = draw(st.integers(0, 2))
    return ColumnProgram((*fields, *(Field(f"k{i}", "string") for i in range(keys))), tuple(made), spec, keys)


def values_of(program: ColumnProgram) -> list[float]:
    """Every number that the program compares with, so that rows fall onto and beside edges."""
    found: list[float] = []
    for op in (op for chain in program.chains for op in chain.operations):
        found += [*getattr(op, "edges", ()), *getattr(op, "knots", ())]
    return found + [edge for field in program.sketch.fields if isinstance(field, RealField) for edge in field.edges]


@st.composite
def slabs(draw: st.DrawFn, program: ColumnProgram) -> Slab:
    rows = draw(st.integers(0, 30))
    special = np.asarray([*HOSTILE, np.nan, np.inf, -np.inf, *values_of(program)], np.float32)
    with np.errstate(over="ignore", under="ignore"):
        special = np.concatenate([special, np.nextafter(special, np.float32(np.inf))])
    random = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    columns: list[Any] = []
    for field in program.fields:
        if field.type == "real":
            columns.append(
                np.where(random.random(rows) < 0.7, random.choice(special, rows), random.normal(size=rows)).astype(
                    np.float32
                )
            )
        elif field.type == "boolean":
            columns.append(random.choice(np.asarray([0, 1, np.nan], np.float32), rows))
        elif field.type == "integer":
            columns.append(random.choice(np.asarray(INTEGERS, np.int64), rows))
        else:
            parts = [TEXTS[i].encode() for i in random.integers(0, len(TEXTS), rows)]
            offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int32)
            columns.append((offsets, np.frombuffer(b"".join(parts), np.uint8)))
    slab = Slab(program.schema)
    slab.append_columns(columns)
    return slab


def bounds(program: ColumnProgram, slab: Slab, features: np.ndarray) -> np.ndarray:
    """2^-22 of the largest magnitude on the way, as far as it is seen from outside: no more than the promised bound."""
    columns = []
    for chain in program.chains:
        kind = program.fields[chain.field].type
        raw = np.zeros(slab.rows)
        if kind == "integer":
            raw = np.abs(slab.integers(chain.field).astype(np.float64))
        elif kind != "string":
            raw = np.abs(slab.reals(chain.field).astype(np.float64))
        raw = np.where(np.isfinite(raw), raw, 0.0)
        through_one = any(
            isinstance(op, (ops.QuantileNormal, ops.Cyclic, ops.Log1p, ops.SignedLog)) for op in chain.operations
        )
        columns += [np.maximum(raw, 1.0 if through_one else 0.0)] * chain.width
    raw = np.stack(columns, 1) if columns else np.zeros(features.shape)
    return np.maximum(raw, np.abs(features)) * 2.0**-22 + 2.0**-149


def assert_same_sketch(program: ColumnProgram, a: Sketch, b: Sketch) -> None:
    np.testing.assert_array_equal(a.counts, b.counts)
    mine, theirs = a.moments.reshape(-1, 4), b.moments.reshape(-1, 4)
    np.testing.assert_array_equal(mine[:, :2].view(np.int64), theirs[:, :2].view(np.int64))  # extremes, bit for bit
    rows = max(a.rows, 1)
    for i, field in enumerate(program.sketch.fields):
        if isinstance(field, RealField) and np.isfinite(mine[i, 0]):
            largest = max(abs(mine[i, 0] - field.shift), abs(mine[i, 1] - field.shift))
            assert abs(mine[i, 2] - theirs[i, 2]) <= largest * rows * 1e-15
            assert abs(mine[i, 3] - theirs[i, 3]) <= largest**2 * rows * 1e-15


def numbers_program(n: int) -> tuple[ColumnProgram, Slab]:
    fields = (Field("x", "real"), Field("s", "string"))
    program = ColumnProgram(
        fields,
        (
            Chain(0, (ops.Impute(0.25, True), ops.Standardise(0.1, 0.9))),
            Chain(0, (ops.PiecewiseLinear((-1.0, 0.0, 2.0)),)),
            Chain(1, (ops.Vocabulary(("a", "b")),)),
        ),
        SketchSpec((RealField("x", (-0.5, 0.5), -1.0, 1.0, 0.125), CategoryField("s", ("a", "b"), 1))),
    )
    random = np.random.default_rng(7)
    reals = random.normal(size=n).astype(np.float32)
    reals[::11] = np.nan
    parts = [b"a", b"b", b"", b"zz"]
    chosen = [parts[i] for i in random.integers(0, 4, n)]
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in chosen])]).astype(np.int32)
    slab = Slab(program.schema)
    slab.append_columns([reals, (offsets, np.frombuffer(b"".join(chosen), np.uint8))])
    return program, slab
