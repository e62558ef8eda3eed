"""The columns together: sums that are exact whoever takes them, a test that holds its level, and what it sees."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from trimtab._native import CPU_LEVELS, ColumnTable, Slab
from trimtab.kernels import divergences
from trimtab.kernels.cpu import CpuExecutor
from trimtab.kernels.drift import JOINT, DriftMonitor, DriftWindow
from trimtab.kernels.errors import ExecutorError, ProgramError, SketchError
from trimtab.kernels.fit_sketch import fit_sketch
from trimtab.kernels.joint import LEAST_ROWS, JointDrift, compare_jointly, even_sample
from trimtab.kernels.joint_spec import FREQUENCIES, LENGTH, ONE, TURN, WIDTH, JointSpec
from trimtab.kernels.program import ColumnProgram, Field, SketchSpec
from trimtab.kernels.reference import reference_joint
from trimtab.kernels.sketch import Sketch
from trimtab.kernels.sketch_edges import joint_spec
from trimtab.kernels.sketch_spec import CategoryField, RealField
from trimtab.kernels.slabs import rows_from_arrow, slab_from_arrow
from trimtab.kernels.summaries import Sample

from tests.kernels.programs import programs, slabs

Floats = NDArray[np.float32]
MASK = (1 << 64) - 1


@st.composite
def with_joint(draw: st.DrawFn) -> ColumnProgram:
    program = draw(programs())
    score = st.floats(-8.0, 8.0).map(lambda x: round(x, 3))
    scores = tuple(
        tuple(draw(st.lists(score, min_size=field.buckets, max_size=field.buckets))) if draw(st.booleans()) else ()
        for field in program.sketch.fields
    )
    alone = tuple(draw(st.integers(0, field.buckets)) for field in program.sketch.fields)
    joint = JointSpec(scores, alone, draw(st.integers(0, 1 << 62)))
    spec = SketchSpec(program.sketch.fields, program.sketch.prediction_edges, joint)
    return ColumnProgram(program.fields, program.chains, spec, program.keys)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_native_sums_are_the_references_at_any_level_and_cut(data: st.DataObject) -> None:
    program = data.draw(with_joint())
    slab = data.draw(slabs(program))
    taken = data.draw(st.lists(st.integers(0, slab.rows - 1), max_size=300)) if slab.rows else []
    expected = reference_joint(program, slab, taken)
    for level in CPU_LEVELS:
        executor = CpuExecutor(program, level)
        whole, parts = Sketch(program.sketch), [Sketch(program.sketch) for _ in range(3)]
        executor.sum_jointly(slab, np.asarray(taken, np.int64), whole)
        assert whole.joint.tolist() == expected.tolist()
        for i, part in enumerate(parts):
            executor.sum_jointly(slab, np.asarray(taken[i::3], np.int64), part)
        parts[2].merge(parts[0])
        parts[2].merge(parts[1])
        assert parts[2] == whole
        assert Sketch.from_bytes(whole.to_bytes()) == whole
        assert whole.copy() == whole
    assert not whole.counts.any()  # the joint part is apart from the others
    whole.clear()
    assert not whole.joint.any()


def test_wherever_rows_lie() -> None:
    values = np.random.default_rng(0).normal(size=(1000, 5)).astype(np.float32)
    values[::7, 2] = np.nan
    program = fitted({f"x{i}": values[:, i] for i in range(5)})
    columns = [np.ascontiguousarray(values[:, i]) for i in range(5)]
    slab = Slab(program.schema)
    slab.append_columns(columns)
    found = []
    for rows in (slab, ColumnTable(program.schema, columns), ColumnTable(program.schema, values)):
        sketch = Sketch(program.sketch)
        CpuExecutor(program).sum_jointly(rows, np.arange(3, 1000, 3), sketch)
        found.append(sketch.joint.tolist())
    assert found[0] == found[1] == found[2] == reference_joint(program, slab, range(3, 1000, 3)).tolist()


# --- the phases, said a second time


def mix(h: int) -> int:
    h = (h ^ h >> 30) * 0xBF58476D1CE4E5B9 & MASK
    h = (h ^ h >> 27) * 0x94D049BB133111EB & MASK
    return h ^ h >> 31


def normal(seed: int, field: int, row: int, frequency: int) -> float:
    """Twelve uniform numbers of 16 bits, four a word, lowest first."""
    start = mix(mix(seed) + field & MASK)
    total = 0
    for i in range(12):
        place = (row * FREQUENCIES + frequency) * 12 + i
        word = mix(start + 0x9E3779B97F4A7C15 * (place // 4 + 1) & MASK)
        total += 2 * (word >> 16 * (place % 4) & 0xFFFF) - 65535
    return total / 131072


@given(st.integers(0, (1 << 63) - 1), st.integers(1, 6))
@settings(max_examples=20, deadline=None)
def test_phases_by_their_definition(seed: int, buckets: int) -> None:
    scores = tuple(float(i) for i in range(buckets))
    table = JointSpec((scores, ()), (0, buckets - 1), seed).phases([buckets, buckets])
    assert table.shape == (2 * (buckets + 2), FREQUENCIES)
    unit = TURN / 6.283185307179586 * (1 / np.sqrt(2.0))
    for k in (0, 7, FREQUENCIES - 1):
        own = normal(seed, 0, buckets + 2, k)
        for i in range(buckets):
            assert int(table[i, k]) == int(np.floor(own * unit * scores[i] + 0.5)) % TURN
            place = i if i < buckets - 1 else buckets + 1  # the last one is as unseen values are
            assert int(table[buckets + 2 + i, k]) == int(np.floor(normal(seed, 1, place, k) * unit + 0.5)) % TURN
        for i in (buckets, buckets + 1):  # missing, unseen
            assert int(table[i, k]) == int(np.floor(normal(seed, 0, i, k) * unit + 0.5)) % TURN


def test_mean_products_are_the_kernel() -> None:
    """Over many seeds: exp(-d²/2F), d between numbers that of their scores, between categories the root of 2."""
    scores = (-1.5, 0.0, 2.0)
    seeds, kernel = 400, np.zeros((3, 3))
    category = 0.0
    for seed in range(seeds):
        turned = JointSpec((scores, ()), (0, 3), seed).phases([3, 3]).astype(np.float64) / TURN * 2 * np.pi
        numbers, categories = turned[:3], turned[5:8]
        kernel += np.cos(numbers[:, None] - numbers[None]).mean(axis=2) / seeds
        category += float(np.cos(categories[0] - categories[1]).mean()) / seeds
    distance = np.subtract.outer(np.asarray(scores), np.asarray(scores))
    np.testing.assert_allclose(kernel, np.exp(-(distance**2) / 4), atol=0.02)
    assert category == pytest.approx(np.exp(-2 / 4), abs=0.02)


def test_spec_is_kept_by_json_and_part_of_the_hash() -> None:
    field = RealField("x", (0.0,))
    bare = SketchSpec((field,))
    assert set(bare.to_json()) == {"fields", "prediction_edges"}  # hashes of older versions stay
    whole = SketchSpec((field,), joint=JointSpec(((-0.5, 0.5),), (0,)))
    assert SketchSpec.from_json(json.loads(json.dumps(whole.to_json()))) == whole
    assert whole.hash != bare.hash
    assert not len(Sketch(bare).joint)


@pytest.mark.parametrize(
    "joint",
    [
        {"seed": 1, "scores": [[0.0]], "alone": [0]},
        {"seed": 1, "scores": [], "alone": []},
        {"seed": 1, "scores": [[]], "alone": []},
        {"seed": 1, "scores": [[]], "alone": [3]},
        {"seed": 1, "scores": [[]], "alone": [-1]},
        {"seed": 1, "scores": [[0.0, 17.0]], "alone": [0]},
        {"seed": 1, "scores": [[0.0, "a"]], "alone": [0]},
        {"seed": -1, "scores": [[]], "alone": [0]},
        {"seed": True, "scores": [[]], "alone": [0]},
        {"scores": [[]], "alone": [0]},
        {"seed": 1, "scores": [[]]},
        {"seed": 1, "scores": [[]], "alone": [0], "frequencies": 64},
        [],
    ],
)
def test_spec_that_is_damaged_is_refused(joint: Any) -> None:
    value = {**SketchSpec((RealField("x", (0.0,)),)).to_json(), "joint": joint}
    with pytest.raises(ProgramError):
        SketchSpec.from_json(value)


@pytest.mark.parametrize("damage", [b"", b"AAAA", b"!!!!", None])
def test_sums_that_are_damaged_are_refused(damage: bytes | None) -> None:
    spec = SketchSpec((RealField("x", (0.0,)),), joint=JointSpec(((),), (2,)))
    with pa.ipc.open_file(pa.BufferReader(Sketch(spec).to_bytes())) as reader:
        table = reader.read_all()
    metadata = dict(table.schema.metadata or {})
    metadata.pop(b"trimtab.joint")
    if damage is not None:
        metadata[b"trimtab.joint"] = damage
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema.with_metadata(metadata)) as writer:
        writer.write_table(table.replace_schema_metadata(metadata))
    with pytest.raises(SketchError, match="damaged"):
        Sketch.from_bytes(bytes(sink.getvalue()))


def test_what_does_not_fit_is_refused_and_adds_nothing() -> None:
    program = fitted({"x": np.arange(100, dtype=np.float32)})
    executor, sketch = CpuExecutor(program), Sketch(program.sketch)
    rows = ColumnTable(program.schema, [np.arange(10, dtype=np.float32)])
    for taken in ([0, 10], [-1], [1 << 60]):
        with pytest.raises(ExecutorError, match="beyond the end"):
            executor.sum_jointly(rows, np.asarray(taken, np.int64), sketch)
    with pytest.raises(ExecutorError):
        executor.sum_jointly(rows, np.zeros(2, np.int32), sketch)  # type: ignore[arg-type]
    other = fitted({"y": np.arange(100, dtype=np.float32)})
    with pytest.raises(ExecutorError, match="spec"):
        executor.sum_jointly(rows, np.arange(3), Sketch(other.sketch))
    with pytest.raises(ExecutorError, match="schema"):
        CpuExecutor(other).sum_jointly(rows, np.arange(3), Sketch(other.sketch))
    bare = ColumnProgram(program.fields, (), SketchSpec(program.sketch.fields))
    with pytest.raises(ExecutorError, match="no joint part"):
        CpuExecutor(bare).sum_jointly(rows, np.arange(3), Sketch(bare.sketch))
    assert not sketch.joint.any()


# --- the test


def test_tail_of_weighted_squares() -> None:
    for count, weight in ((1, 3.0), (4, 0.5), (30, 1e-4)):
        for p in (0.9, 0.5, 0.1, 0.01, 1e-4, 1e-9):
            value = weight * stats.chi2.isf(p, count)
            assert divergences.weighted_chi_square_tail(np.full(count, weight), value) == pytest.approx(p, rel=0.12)
    weights = np.asarray([5.0, 2.0, 1.0, 0.3, 0.3, 0.0])
    drawn = (weights * np.random.default_rng(1).normal(size=(400_000, 6)) ** 2).sum(axis=1)
    for value in (0.1, 2.0, float(weights.sum()), 15.0, 40.0):
        share = float((drawn > value).mean())
        assert divergences.weighted_chi_square_tail(weights, value) == pytest.approx(share, rel=0.05, abs=1e-3)
    assert divergences.weighted_chi_square_tail(np.zeros(3), 1.0) == 1.0
    assert divergences.weighted_chi_square_tail(weights, 0.0) == 1.0
    assert divergences.weighted_chi_square_tail(weights, 1e9) == 0.0


def fitted(columns: dict[str, Any], kind: Any = "real") -> ColumnProgram:
    return fit_sketch([Field(name, kind) for name in columns], [pa.record_batch(columns)])


def sketched(program: ColumnProgram, columns: dict[str, Any]) -> Sketch:
    rows, sketch = rows_from_arrow(pa.record_batch(columns), program.schema), Sketch(program.sketch)
    executor = CpuExecutor(program)
    executor.run(rows, sketch)
    executor.sum_jointly(rows, np.arange(len(next(iter(columns.values()))), dtype=np.int64), sketch)
    return sketch


def correlated(random: np.random.Generator, rows: int, rho: float, width: int = 6) -> dict[str, Any]:
    x = random.normal(size=(rows, width)).astype(np.float32)
    x[:, 1] = np.float32(rho) * x[:, 0] + np.float32(np.sqrt(1 - rho * rho)) * x[:, 1]
    return {f"x{i}": x[:, i] for i in range(width)}


def many_valued(random: np.random.Generator, rows: int) -> dict[str, Any]:
    """Most values of a thousand are rare, and some not in the reference at all."""
    weights = 1.0 / np.arange(1, 1001)
    chosen = random.choice(1000, (2, rows), p=weights / weights.sum())
    return {name: np.char.add("v", one.astype(str)) for name, one in zip("ab", chosen, strict=True)}


def alike(random: np.random.Generator, rows: int) -> dict[str, Any]:
    """Days of a month and texts, all as frequent, some ten rows each: which are the most frequent is chance."""
    return {name: np.char.add(name, random.integers(0, 31, rows).astype(str)) for name in ("day", "text")}


def rare(random: np.random.Generator, rows: int, width: int = 6) -> dict[str, Any]:
    return {f"x{i}": np.where(random.random(rows) < 0.03, "rare", "usual") for i in range(width)}


@pytest.mark.parametrize("rows", [LEAST_ROWS, 400])
@pytest.mark.parametrize("kind", ["numbers", "rare", "many-valued", "alike"])
def test_without_drift_p_values_hold_their_level(kind: str, rows: int) -> None:
    random = np.random.default_rng(7)

    def draw(count: int) -> dict[str, Any]:
        if kind == "many-valued":
            return many_valued(random, count)
        if kind == "alike":
            return alike(random, count)
        return correlated(random, count, 0.5) if kind == "numbers" else rare(random, count)

    p_values = []
    for _ in range(15):
        reference = draw(300 if kind == "alike" else 2000)
        program = fitted(reference, "real" if kind == "numbers" else "string")
        before = sketched(program, reference)
        found = [compare_jointly(before, sketched(program, draw(rows))) for _ in range(20)]
        p_values += [one.p_value for one in found if one is not None]
    assert len(p_values) == 300
    for level in (0.05, 0.01):
        hits = int((np.asarray(p_values) <= level).sum())
        assert stats.binomtest(hits, 300, level, alternative="greater").pvalue > 0.001, (kind, rows, level, hits)


def test_a_changed_dependence_is_seen_that_no_column_shows() -> None:
    random = np.random.default_rng(3)
    reference = correlated(random, 5000, 0.0)
    program = fitted(reference)
    monitor = DriftMonitor(sketched(program, reference), alpha=0.01, min_effect=0.1, persistence=2)
    quiet = monitor.observe(sketched(program, correlated(random, 2000, 0.0)), 0, 1)
    assert quiet.joint is not None
    assert quiet.joint.p_value > 0.01
    for window in (1, 2):
        found = monitor.observe(sketched(program, correlated(random, 2000, 0.7)), window, window + 1)
        assert found.joint is not None
        assert (found.joint.rows, found.joint.reference_rows) == (2000, 5000)
        assert found.joint.persistence == window
        assert found.joint.p_value < 1e-6
        assert found.joint.effect > 0.01
        assert 0.01 < found.joint.mmd < 0.5
        assert not any(feature.adjusted_p_value <= 0.01 for feature in found.features)
        assert found.alarms == ((JOINT,) if window == 2 else ())
        assert DriftWindow.from_json(found.to_json()) == found
        monitor = DriftMonitor.from_json(monitor.to_json(), monitor.reference)
    monitor.begin_anew()
    again = monitor.observe(sketched(program, correlated(random, 2000, 0.7)), 3, 4)
    assert again.joint is not None
    assert again.joint.persistence == 1


def test_effects_do_not_grow_with_rows_and_are_of_one_column() -> None:
    random = np.random.default_rng(5)
    found: dict[tuple[int, int], JointDrift] = {}
    for width in (4, 16):
        reference = correlated(random, 20_000, 0.0, width)
        program = fitted(reference)
        before = sketched(program, reference)
        for rows in (2000, 20_000):
            moved = correlated(random, rows, 0.0, width)
            moved["x2"] = moved["x2"] + np.float32(0.5)
            one = compare_jointly(before, sketched(program, moved))
            assert one is not None
            found[width, rows] = one
    for (width, _), one in found.items():
        # About d²/2, as this column's frequencies happen to be.
        assert 0.5**2 / 4 < one.effect < 0.5**2
        assert one.effect == pytest.approx(found[width, 20_000].effect, rel=0.3)
    assert found[4, 20_000].p_value < found[4, 2000].p_value


def test_what_cannot_be_told() -> None:
    def columns(rows: int) -> dict[str, Any]:
        return {"x": np.arange(rows, dtype=np.float32), "y": np.arange(rows, dtype=np.float32)}

    program = fitted(columns(500))
    whole, few = sketched(program, columns(500)), sketched(program, columns(LEAST_ROWS - 1))
    one = {"x": np.arange(500, dtype=np.float32)}
    alone = sketched(fitted(one), one)
    assert compare_jointly(alone, alone) is None
    assert compare_jointly(whole, few) is None
    assert compare_jointly(few, whole) is None
    bare = Sketch(SketchSpec((RealField("x", (0.0,)),)))
    assert compare_jointly(bare, bare) is None
    with pytest.raises(SketchError):
        compare_jointly(whole, bare)


def test_constant_columns() -> None:
    constant = {"x": np.full(500, 3.0, np.float32), "y": np.full(500, np.nan, np.float32)}
    program = fitted(constant)
    before = sketched(program, constant)
    same = compare_jointly(before, sketched(program, constant))
    assert same is not None
    assert (same.mmd, same.effect, same.p_value) == (0.0, 0.0, 1.0)
    other = {"x": np.full(500, np.nan, np.float32), "y": np.full(500, np.nan, np.float32)}
    changed = compare_jointly(before, sketched(program, other))
    assert changed is not None
    assert changed.p_value < 1e-6
    assert 1.0 < changed.effect < 1000.0  # of the change, not of what rounding left of a spread
    assert 0.1 < changed.mmd <= 2.0
    json.dumps(asdict(changed), allow_nan=False)


@pytest.mark.parametrize("columns", [1, 64, 1000, 100_000])
@pytest.mark.parametrize("rows", [10, 5000, 1_000_000])
def test_samples_are_even_whatever_the_batches(rows: int, columns: int) -> None:
    whole = even_sample(0, rows, rows, columns)
    cuts = [0, rows // 3, rows // 3, rows // 2, rows]
    parts = [a + even_sample(a, b - a, rows, columns) for a, b in pairwise(cuts)]
    assert np.concatenate(parts).tolist() == whole.tolist()
    wanted = min(rows, max(min(32768, (1 << 22) // columns), 400))
    assert len(whole) == pytest.approx(wanted, rel=0.25)
    if wanted < rows:
        assert whole.mean() == pytest.approx(rows / 2, rel=0.1)


def test_windows_have_rows_enough_of_their_own() -> None:
    for windows, columns in ((400, 10), (1000, 64), (1000, 1000)):
        taken = len(even_sample(0, 1_000_000, 1_000_000, columns, windows))
        assert taken == pytest.approx(min(1000 * windows, (1 << 26) // columns), rel=0.05)


@pytest.mark.parametrize(
    ("counts", "counted", "alone"),
    [
        ([150, 150], 2, 2),  # none is left
        ([150, 5], 2, 1),
        ([10, 10, 9, 9], 4, 0),  # a fifth one may be there, and which are the first is chance
        ([1000, 900, 400, 390, 380], 4, 2),
        ([1000, 1000, 990, 985], 3, 0),
        ([1000, 1000, 990], 3, 3),
        ([12], 1, 1),
        ([10], 1, 0),
        ([], 0, 0),
    ],
)
def test_which_values_stand_alone(counts: list[int], counted: int, alone: int) -> None:
    field = CategoryField("c", tuple(range(counted)), counted)
    assert joint_spec([field], [Sample()], [counts]).alone == (alone,)


def test_layout() -> None:
    values = np.random.default_rng(0).normal(size=100).astype(np.float32)
    program = fitted({"x": values})
    joint = sketched(program, {"x": values}).joint
    assert len(joint) == LENGTH == 1 + WIDTH + WIDTH * (WIDTH + 1) // 2
    assert joint[0] == 100
    squares = joint[1 + WIDTH :][np.cumsum([0, *range(WIDTH, 1, -1)])] / ONE**2
    # Every cosine's square and its sine's are 1 together.
    np.testing.assert_allclose(squares[:FREQUENCIES] + squares[FREQUENCIES:], 100.0, rtol=1e-3)
    slab = slab_from_arrow(pa.record_batch({"x": values}), program.schema)
    assert reference_joint(program, slab, []).tolist() == [0] * LENGTH
