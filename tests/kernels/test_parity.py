"""Reference and native executor against each other, on random programs and hostile rows."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from trimtab._native import CPU_LEVELS, Slab
from trimtab.kernels.cpu import CpuExecutor
from trimtab.kernels.errors import ProgramError
from trimtab.kernels.program import ColumnProgram
from trimtab.kernels.reference import run_reference
from trimtab.kernels.sketch import Sketch

from tests.kernels.programs import assert_same_sketch, bounds, programs, slabs


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_reference_and_native_agree(data: st.DataObject) -> None:
    program = data.draw(programs())
    slab = data.draw(slabs(program))
    expected, expected_ids, expected_sketch = run_reference(program, slab)
    sketch = Sketch(program.sketch)
    features, ids = CpuExecutor(program).run(slab, sketch)
    assert features.dtype == np.float32
    assert features.shape == (slab.rows, program.n_features) == (slab.rows, len(program.feature_names))
    assert ids.dtype == np.int64
    assert ids.shape == (slab.rows, program.n_ids) == (slab.rows, len(program.id_names))
    assert np.isfinite(features).all()
    assert (np.abs(features.astype(np.float64) - expected) <= bounds(program, slab, expected)).all()
    np.testing.assert_array_equal(ids, expected_ids)
    assert ((ids >= 1) & (ids < np.asarray(program.id_sizes, np.int64))).all()
    assert_same_sketch(program, sketch, expected_sketch)
    for level in CPU_LEVELS:
        again = Sketch(program.sketch)
        other_features, other_ids = CpuExecutor(program, level).run(slab, again)
        assert other_features.tobytes() == features.tobytes()
        assert other_ids.tobytes() == ids.tobytes()
        assert again.to_bytes() == sketch.to_bytes()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_row_alone_equals_row_in_batch(data: st.DataObject) -> None:
    program = data.draw(programs())
    slab = data.draw(slabs(program))
    executor = CpuExecutor(program)
    whole, parts = Sketch(program.sketch), Sketch(program.sketch)
    features, ids = executor.run(slab, whole)
    for row in range(slab.rows):
        alone = Slab(program.schema)
        alone.extend(slab, start=row, stop=row + 1)
        for got_features, got_ids in (executor.run(alone, parts), executor.run(slab, None, row, row + 1)):
            assert got_features.tobytes() == features[row].tobytes()
            assert got_ids.tobytes() == ids[row].tobytes()
    np.testing.assert_array_equal(whole.counts, parts.counts)


@settings(max_examples=150, deadline=None)
@given(programs())
def test_json_round_trip(program: ColumnProgram) -> None:
    again = ColumnProgram.from_json(program.to_json())
    assert again == program
    assert again.hash == program.hash
    assert again.to_json() == program.to_json()
    assert again.sketch.hash == program.sketch.hash


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=3),
    st.just([]),
    st.just({}),
    st.just([1.0, 0.5]),
)


def mutate(draw: st.DrawFn, value: Any) -> Any:
    """One node of a JSON value replaced, dropped or doubled."""
    if isinstance(value, dict) and value and draw(st.integers(0, 3)):
        key = draw(st.sampled_from(sorted(value)))
        if not draw(st.integers(0, 9)):
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: mutate(draw, value[key])}
    if isinstance(value, list) and value and draw(st.integers(0, 3)):
        i = draw(st.integers(0, len(value) - 1))
        return [*value[:i], mutate(draw, value[i]), *value[i:][draw(st.integers(0, 1)) :]]
    return draw(JUNK)


@st.composite
def damaged(draw: st.DrawFn) -> str:
    value = json.loads(draw(programs()).to_json())
    for _ in range(draw(st.integers(1, 2))):
        value = mutate(draw, value)
    return json.dumps(value)


@settings(max_examples=300, deadline=None)
@given(damaged(), st.data())
def test_damaged_json_is_refused_or_runs(text: str, data: st.DataObject) -> None:
    try:
        program = ColumnProgram.from_json(text)
    except ProgramError:
        return
    slab = data.draw(slabs(program))
    expected, expected_ids, _ = run_reference(program, slab)
    features, ids = CpuExecutor(program).run(slab)
    assert features.shape == expected.shape
    np.testing.assert_array_equal(ids, expected_ids)
