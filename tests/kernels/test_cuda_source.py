"""What is generated for a program: the same text for the same shape, and the numbers beside it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trimtab.kernels import operations as ops
from trimtab.kernels.cuda import chunks_of
from trimtab.kernels.cuda_items import items_of
from trimtab.kernels.cuda_scaling import scaled_of
from trimtab.kernels.cuda_source import source_of
from trimtab.kernels.cuda_tables import NARROW, WIDE, Compiled, Layout
from trimtab.kernels.program import Chain, ColumnProgram, Field, RealField, SketchSpec

from tests.kernels.programs import programs
from tests.kernels.test_cuda_parity import all_ops, standard

MOST_SHARED = 227 * 1024  # bytes of a block on sm_90


def one_field(*chain: ops.Operation) -> ColumnProgram:
    return ColumnProgram((Field("x", "real"),), (Chain(0, chain),), SketchSpec((RealField("x", (0.0, 1.0)),)))


@settings(max_examples=100, deadline=None)
@given(programs())
def test_equal_programs_give_equal_text(program: ColumnProgram) -> None:
    twin = ColumnProgram.from_json(program.to_json())
    assert source_of(items_of(program)[0]) == source_of(items_of(twin)[0])
    if program.chains:
        for layout in (WIDE, NARROW):
            words = Compiled.of(program).tables(layout, False).words
            assert words.tobytes() == Compiled.of(twin).tables(layout, False).words.tobytes()


def test_fitted_numbers_are_not_in_the_text() -> None:
    first = one_field(ops.Impute(0.5, True), ops.Clip(-1.0, 2.0), ops.Standardise(0.25, 3.0))
    other = one_field(ops.Impute(7.0, True), ops.Clip(-9.0, 9.0), ops.Standardise(2.0, 0.1))
    assert Compiled.of(first).source == Compiled.of(other).source
    words = [Compiled.of(program).tables(WIDE, False).words.tobytes() for program in (first, other)]
    assert words[0] != words[1]


@pytest.mark.parametrize(
    "chain",
    [
        (ops.Impute(0.5, False), ops.Clip(-1.0, 2.0), ops.Standardise(0.25, 3.0)),
        (ops.Impute(0.5, True), ops.Standardise(0.25, 3.0)),
        (ops.Impute(0.5, True), ops.Clip(-1.0, 2.0), ops.Standardise(0.25, 1e-45)),  # beyond float32 at the bounds
        (ops.Log1p(),),
        (ops.Bucketise((0.0, 1.0)),),
    ],
)
def test_another_shape_is_another_text(chain: tuple[ops.Operation, ...]) -> None:
    usual = one_field(ops.Impute(0.5, True), ops.Clip(-1.0, 2.0), ops.Standardise(0.25, 3.0))
    assert Compiled.of(one_field(*chain)).source != Compiled.of(usual).source


def test_a_thousand_equal_columns_are_one_function() -> None:
    compiled = Compiled.of(standard(1000))
    assert compiled.source == Compiled.of(standard(1)).source
    assert set(compiled.kinds) == {0}
    assert compiled.tables(WIDE, False).groups == 32  # of 32 features, 128 bytes


@pytest.mark.parametrize(
    ("chain", "fill"),
    [
        ((ops.Impute(9.0, False), ops.Clip(-1.0, 2.0)), 2.0),
        ((ops.Clip(-1.0, 2.0), ops.Impute(9.0, False)), 9.0),  # imputed after the clip: not clipped
        ((ops.Clip(-1.0, 2.0),), 0.0),
        ((ops.Impute(9.0, False), ops.Standardise(1.0, 4.0)), 2.0),
        ((ops.Impute(9.0, False), ops.Standardise(1.0, 0.0)), 0.0),
        ((ops.Standardise(1.0, 0.0),), 0.0),
    ],
)
def test_what_missing_gives(chain: tuple[ops.Operation, ...], fill: float) -> None:
    scaled = scaled_of(chain)
    assert scaled is not None
    assert scaled.fill == fill


@pytest.mark.parametrize(
    "chain",
    [
        (ops.Clip(-1.0, 2.0), ops.Clip(0.0, 1.0)),
        (ops.Standardise(0.0, 1.0), ops.Clip(-1.0, 2.0)),
        (ops.Standardise(0.0, 1.0), ops.Impute(0.0, False)),
        (ops.Standardise(0.0, 1.0), ops.MinMax(0.0, 1.0)),
        (ops.Log1p(),),
    ],
)
def test_chains_that_go_op_by_op(chain: tuple[ops.Operation, ...]) -> None:
    assert scaled_of(chain) is None


def test_texts_are_staged_on_the_host() -> None:
    compiled = Compiled.of(all_ops())
    read = {all_ops().fields[chain.field].name for chain in compiled.staged}
    assert read == {"s", "n"}  # and what is crossed with s
    assert "hash_byte" not in compiled.source


@settings(max_examples=60, deadline=None)
@given(programs(), st.sampled_from([WIDE, NARROW]), st.booleans())
def test_groups_cover_all_features(program: ColumnProgram, layout: Layout, matrix: bool) -> None:
    """Every group's shared memory is there, and the tiles' features and the spread ones are each written once."""
    compiled = Compiled.of(program)
    if compiled.refusal is not None:
        return
    tables = compiled.tables(layout, matrix)
    assert tables.shared_bytes <= MOST_SHARED
    groups = tables.words[: 16 * tables.groups].reshape(-1, 16)
    assert groups[:, 1].sum() == len(compiled.items)
    tiled = [feature for group in groups for feature in range(group[2], group[2] + group[3])]
    spread: list[int] = []
    starts = np.cumsum([0, *(chain.width for chain in program.chains)])
    for item in compiled.items:
        if item.chain is not None and item.width == 0:
            spread += range(starts[item.chain], starts[item.chain + 1])
    assert sorted(tiled + spread) == list(range(program.n_features))


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 1 << 30), st.integers(1, 300), st.integers(1, 70), st.sampled_from([128, 256, 1024]))
def test_chunks(rows: int, processors: int, groups: int, tile_rows: int) -> None:
    tables = dataclasses.replace(Compiled.of(standard(1)).tables(WIDE, False), groups=groups, tile_rows=tile_rows)
    chunk, blocks = chunks_of(rows, tables, processors)
    assert chunk % tile_rows == 0
    assert (blocks - 1) * chunk < rows <= blocks * chunk
    assert blocks <= max(3 * processors // groups, 1)


def test_nothing_to_do_is_refused() -> None:
    program = ColumnProgram((Field("x", "real"),), (), SketchSpec((RealField("x", ()),)))
    assert Compiled.of(program).refusal is None  # it counts
    features = Compiled.of(one_field(ops.Bucketise((0.0,)), ops.OneHot()))
    assert features.refusal is None
