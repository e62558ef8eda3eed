"""Sketches: what is counted, merging, and bytes."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from trimtab._native import sketch_values
from trimtab.kernels.cpu import CpuExecutor
from trimtab.kernels.errors import ProgramError, SketchError
from trimtab.kernels.program import CategoryField, ColumnProgram, Field, RealField, SketchSpec
from trimtab.kernels.sketch import Sketch
from trimtab.kernels.sketch_spec import PREFIX
from trimtab.kernels.slabs import slab_from_arrow

INF = float("inf")
SPEC = SketchSpec(
    (RealField("x", (0.0, 1.0), -1.0, 2.0, 0.5), CategoryField("s", ("a", "b", "c"), 2), RealField("n", ())),
    (0.25, 0.5),
)
PROGRAM = ColumnProgram((Field("x", "real"), Field("s", "string"), Field("n", "integer")), (), SPEC)


def sketch_of(x: list[float | None], s: list[str | None] | None = None, n: list[int | None] | None = None) -> Sketch:
    columns = {"x": pa.array(x, pa.float32()), "s": s or ["a"] * len(x), "n": n or [1] * len(x)}
    sketch = Sketch(SPEC)
    CpuExecutor(PROGRAM).run(slab_from_arrow(pa.table(columns), PROGRAM.schema), sketch)
    return sketch


def test_what_is_counted() -> None:
    sketch = sketch_of(
        [-0.0, 0.5, 1.0, None, INF, -INF, 3.0],
        ["a", "b", "c", None, "zz", "", "a"],
        [None, 1, 2, 3, 4, 5, (1 << 24) + 1],
    )
    assert sketch.rows == 7
    x, s, n = sketch.fields
    assert (x.rows, x.missing, x.unseen, x.negative_infinite, x.positive_infinite) == (7, 1, 3, 1, 1)
    assert x.buckets.tolist() == [1, 2, 3]
    assert (x.minimum, x.maximum) == (0.0, 3.0)
    assert not np.signbit(x.minimum)
    assert x.mean == pytest.approx(np.mean([0, 0.5, 1, 3]))
    assert x.variance == pytest.approx(np.var([0, 0.5, 1, 3]))
    assert (s.rows, s.missing, s.unseen, s.buckets.tolist()) == (7, 2, 1, [2, 1, 1])
    assert np.isnan(s.mean)
    assert (n.missing, n.buckets.tolist(), n.maximum) == (1, [6], float(1 << 24))
    assert s.missing_rate == 2 / 7
    assert s.unseen_rate == 1 / 7


def test_empty_sketch() -> None:
    sketch = Sketch(SPEC)
    summary = sketch.field(0)
    assert (sketch.rows, summary.rows, summary.missing_rate, summary.unseen_rate) == (0, 0, 0.0, 0.0)
    assert np.isnan([summary.minimum, summary.maximum, summary.mean, summary.variance]).all()
    assert Sketch.from_bytes(sketch.to_bytes()) == sketch


def test_predictions() -> None:
    sketch = Sketch(SPEC)
    sketch.add_predictions(np.asarray([[0.1], [0.25], [np.nan], [0.9]], np.float32))
    sketch.add_predictions(np.zeros(0, np.float32))
    prediction = sketch.prediction
    assert (prediction.rows, prediction.missing, prediction.buckets.tolist()) == (4, 1, [1, 1, 1])
    assert prediction.mean == pytest.approx((0.1 + 0.25 + 0.9) / 3, rel=1e-6)
    assert sketch.rows == 0


def test_predictions_of_several_outputs_count_by_their_largest() -> None:
    one, other = Sketch(SPEC), Sketch(SPEC)
    values = np.asarray([[0.1, 0.2, 0.7], [0.3, np.nan, 0.9], [-0.5, -0.25, -1.0]], np.float32)
    one.add_predictions(values)
    other.add_predictions(values.max(axis=1))
    assert one == other
    assert one.prediction.missing == 1
    empty = Sketch(SPEC)
    empty.add_predictions(np.zeros((0, 3), np.float32))
    assert empty == Sketch(SPEC)


@pytest.mark.parametrize("edges", [0, 1, 31, 64, 65, 200])
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 300])
@pytest.mark.parametrize("hostile", [False, True])
def test_blocks_of_values_count_as_each_value_alone(edges: int, rows: int, hostile: bool) -> None:
    """Against NumPy, to the bit: a block that holds NaN or an infinity goes another way than the one beside it."""
    rng = np.random.default_rng(rows)
    bounds = np.unique(rng.normal(size=edges).astype(np.float32))
    values = np.concatenate([bounds[: rows // 2], rng.normal(size=rows).astype(np.float32)])[:rows]
    values[rng.integers(0, rows)] = -0.0
    if hostile:
        values[rng.integers(0, rows, 3)] = [np.nan, INF, -INF]
    counts = np.zeros(PREFIX + len(bounds) + 1, np.uint64)
    moments = np.array([INF, -INF, 0.0, 0.0])
    sketch_values(values, bounds, -0.5, 0.5, 0.125, counts, moments)

    known, finite = ~np.isnan(values), np.isfinite(values)
    outside = np.count_nonzero((values[known] < -0.5) | (values[known] > 0.5))
    infinite = [np.count_nonzero(values == -INF), np.count_nonzero(values == INF)]
    bins = np.bincount(np.searchsorted(bounds, values[known], side="right"), minlength=len(bounds) + 1)
    np.testing.assert_array_equal(counts, [np.count_nonzero(~known), outside, *infinite, *bins])
    shifted = np.where(finite, values.astype(np.float64) - 0.125, 0.0)
    lanes = np.zeros((2, 8))
    for row, d in enumerate(shifted):
        lanes[:, row % 8] += d, d * d
    a, b, c, d, e, f, g, h = lanes.T
    expected = ((a + e) + (c + g)) + ((b + f) + (d + h))
    assert moments[2:].tobytes() == expected.tobytes()
    if finite.any():
        assert (moments[0], moments[1]) == (values[finite].min(), values[finite].max())
        assert not np.signbit(moments[:2][moments[:2] == 0]).any()


def test_merge_equals_the_whole() -> None:
    values: list[float | None] = [0.25, -3.5, None, 7.0, INF, 0.0]
    parts = [sketch_of(values[:2]), sketch_of(values[2:3]), sketch_of(values[3:])]
    merged = Sketch(SPEC)
    for part in parts:
        part.add_predictions(np.asarray([0.5], np.float32))
        merged.merge(part)
    whole = sketch_of(values)
    whole.add_predictions(np.full(3, 0.5, np.float32))
    assert merged == whole  # these sums are exact
    backwards = parts[2].copy()
    backwards.merge(parts[1])
    backwards.merge(parts[0])
    np.testing.assert_array_equal(backwards.counts, whole.counts)
    backwards.clear()
    assert backwards == Sketch(SPEC)
    assert parts[2].rows == 3


def test_merge_of_other_spec() -> None:
    with pytest.raises(SketchError, match="different specs"):
        Sketch(SPEC).merge(Sketch(SketchSpec(SPEC.fields, (0.5,))))


def test_specs_say_what_share_of_values_is_novel() -> None:
    known = SketchSpec((CategoryField("s", ("a",), 1),))
    novel = SketchSpec((CategoryField("s", ("a",), 1, 0.25),))
    assert "novel" not in str(known.to_json())  # hashes of specs that were made without stay as they are
    assert known.hash != novel.hash
    assert SketchSpec.from_json(novel.to_json()) == novel
    assert SketchSpec.from_json(known.to_json()) == known
    for wrong in (-0.1, 1.5, float("nan"), "x"):
        with pytest.raises(ProgramError, match="novel"):
            CategoryField("s", ("a",), 1, wrong)  # type: ignore[arg-type]


def test_bytes_round_trip() -> None:
    sketch = sketch_of([0.1, None, INF], ["a", "é", None])
    sketch.add_predictions(np.asarray([0.5], np.float32))
    data = sketch.to_bytes()
    again = Sketch.from_bytes(data)
    assert again == sketch
    assert again.spec.hash == SPEC.hash
    assert again.to_bytes() == data
    assert len(data) < 4096
    with pa.ipc.open_file(pa.BufferReader(data)) as reader:  # readable without this package
        assert reader.read_all().column("field").to_pylist() == ["x", "s", "n", "prediction"]


def test_damaged_bytes() -> None:
    data = sketch_of([0.1]).to_bytes()
    for wrong in (b"", b"x" * 100, data[:-1], data[: len(data) // 2], data[10:]):
        with pytest.raises(SketchError, match="damaged"):
            Sketch.from_bytes(wrong)
    with pytest.raises(SketchError):
        Sketch.from_bytes(data.replace(b'"kind":"real"', b'"kind":"rael"'))
    with pytest.raises(SketchError):
        Sketch.from_bytes(data.replace(b'"edges":[0.0,1.0]', b'"edges":[1.0,0.0]'))
    sink = pa.BufferOutputStream()
    table = pa.table({"field": ["x"]})
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(SketchError, match="Arrow schema"):
        Sketch.from_bytes(bytes(sink.getvalue()))
