"""Fitting: every parameter against NumPy on the same rows, the edge cases, determinism and bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trimtab.kernels import operations as ops
from trimtab.kernels.cpu import CpuExecutor
from trimtab.kernels.errors import ColumnError, FitError, ProgramError
from trimtab.kernels.fit import default_transforms, fit_program
from trimtab.kernels.operations import Operation
from trimtab.kernels.program import CategoryField, ColumnProgram, Field, RealField
from trimtab.kernels.schema import FeatureSpec, Transform
from trimtab.kernels.sketch_edges import EDGE_RANKS
from trimtab.kernels.slabs import slab_from_arrow
from trimtab.kernels.summaries import Frequencies, Moments, Sample, row_priorities

Column = tuple[str, Any, list[Any]]


def cut(table: pa.Table, size: int) -> Callable[[], Iterator[pa.RecordBatch]]:
    return lambda: iter(table.to_batches(max_chunksize=size))


def fit(*columns: Column, size: int = 1000, **rest: Any) -> ColumnProgram:
    table = pa.table({name: values for name, values, _ in columns})
    kinds = {"i": "integer", "s": "string", "b": "boolean"}
    specs = [
        FeatureSpec(name, kinds.get(name[0], "real"), tuple(map(Transform.parse, chain)))  # type: ignore[arg-type]
        for name, _, chain in columns
    ]
    return fit_program(specs, cut(table, size), **rest)


def ops_of(program: ColumnProgram) -> list[list[Operation]]:
    return [list(chain.operations) for chain in program.chains]


RANDOM = np.random.default_rng(3)
VALUES = np.where(RANDOM.random(5000) < 0.1, np.nan, RANDOM.lognormal(size=5000)).astype(np.float32)
KNOWN = np.sort(VALUES[~np.isnan(VALUES)].astype(np.float64))


def quantile(share: float) -> float:
    return float(np.quantile(KNOWN, share, method="inverted_cdf"))


def test_parameters_against_numpy() -> None:
    program = fit(
        ("x", VALUES, ["impute", "clip", "standardise", {"op": "piecewise_linear", "bins": 4}, "min_max"]),
        ("y", VALUES, [{"op": "bucketise", "bins": 4}, {"op": "impute", "strategy": "mean", "flag": False}, "robust"]),
        ("z", VALUES, ["log1p", "standardise", {"op": "quantile_normal", "knots": 3}]),
        size=333,
    )
    (impute, clip, standardise, encoding), (min_max,), (bins,), (mean, robust), (_, scaled, normal) = ops_of(program)
    low, high = quantile(0.001), quantile(0.999)
    clipped = np.clip(KNOWN, low, high)
    assert impute == ops.Impute(quantile(0.5), True)
    assert clip == ops.Clip(low, high)
    assert isinstance(standardise, ops.Standardise)
    assert standardise.shift == pytest.approx(clipped.mean(), rel=1e-12)
    assert standardise.scale == pytest.approx(clipped.std(), rel=1e-12)
    standardised = (clipped - standardise.shift) / standardise.scale
    shares = [np.float32(np.quantile(standardised, q / 4, method="inverted_cdf")) for q in range(5)]
    assert encoding == ops.PiecewiseLinear(tuple(map(float, shares)))
    assert min_max == ops.MinMax(KNOWN[0], KNOWN[-1] - KNOWN[0])
    assert robust == ops.Robust(quantile(0.5), quantile(0.75) - quantile(0.25))
    assert isinstance(bins, ops.Bucketise)
    assert len(bins.edges) == 3
    assert mean == ops.Impute(float(np.float32(KNOWN.mean())), False)
    assert isinstance(scaled, ops.Standardise)
    assert scaled.shift == pytest.approx(np.log1p(KNOWN).mean(), rel=1e-12)
    assert isinstance(normal, ops.QuantileNormal)
    assert normal.probabilities == (0.0, 0.5, 1.0)


def test_missing_rows_do_not_move_what_follows_an_impute() -> None:
    (_, with_impute), (without,) = ops_of(fit(("x", VALUES, ["impute", "standardise"]), ("y", VALUES, ["standardise"])))
    assert with_impute == without


def test_vocabulary_by_frequency_then_value() -> None:
    texts = ["b"] * 3 + ["a"] * 3 + ["c"] * 5 + ["once", None, ""]
    numbers = [7] * 3 + [-7] * 3 + [1] * 5 + [99, None, None]
    program = fit(
        ("s", texts, ["vocabulary"]), ("i", pa.array(numbers), [{"op": "vocabulary", "max": 2, "min_count": 1}])
    )
    assert ops_of(program) == [[ops.Vocabulary(("c", "a", "b"))], [ops.Vocabulary((1, -7))]]
    assert program.id_sizes == (6, 5)
    assert program.sketch.fields == (
        CategoryField("s", ("c", "a", "b"), 3, 2 / 12),  # of twelve rows one had a value of its own: that, and ± 1
        CategoryField("i", (1, -7), 2, 2 / 12),
    )


ALL_REAL: list[Any] = [
    ["impute"],
    ["clip", "standardise"],
    ["standardise"],
    ["min_max"],
    ["robust"],
    ["quantile_normal"],
    ["bucketise"],
    ["piecewise_linear"],
    [{"op": "cyclic", "period": 7.0}],
    [{"op": "impute", "strategy": "mean"}, "log1p"],
]


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([None] * 50, [0.0, 1.5, float("inf")]),
        ([4.0] * 50, [4.0, 1e30, None, float("-inf")]),
        ([float("inf"), float("-inf"), float("nan")], [0.0, None]),
        ([float(np.finfo(np.float32).smallest_subnormal)] * 3 + [0.0], [0.0, 1.0]),
        ([-3.4e38, 3.4e38], [0.0, 3.4e38, float("inf")]),
    ],
    ids=["all missing", "constant", "no finite value", "denormal", "extreme"],
)
def test_columns_without_spread_give_finite_features(values: list[Any], shown: list[Any]) -> None:
    columns = [(f"x{i}", pa.array(values, pa.float32()), chain) for i, chain in enumerate(ALL_REAL)]
    program = fit(*columns)
    slab = slab_from_arrow(pa.table({name: pa.array(shown, pa.float32()) for name, *_ in columns}), program.schema)
    features, ids = CpuExecutor(program).run(slab)
    assert np.isfinite(features).all()
    assert (ids >= 1).all()
    assert ColumnProgram.from_json(program.to_json()) == program


def test_constant_column_is_zero_after_scaling() -> None:
    # 0.1 has no exact mean: a variance made of rounding errors would blow up what differs from it.
    program = fit(
        *((f"x{i}", np.full(999, 0.1, np.float32), [op]) for i, op in enumerate(("standardise", "min_max", "robust")))
    )
    assert [operations[0].to_json()["scale"] for operations in ops_of(program)] == [0.0, 0.0, 0.0]
    slab = slab_from_arrow(pa.table({f"x{i}": np.asarray([0.1, 5.0], np.float32) for i in range(3)}), program.schema)
    assert (CpuExecutor(program).run(slab)[0] == 0).all()


def test_robust_of_mostly_tied_values() -> None:
    values = np.asarray([0.0] * 80 + list(range(20)), np.float32)
    assert ops_of(fit(("x", values, ["robust"]))) == [[ops.Robust(0.0, 14.0)]]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.one_of(st.none(), st.floats(width=32)), min_size=1, max_size=60), st.integers(1, 60))
def test_same_program_however_the_rows_are_cut(values: list[float | None], size: int) -> None:
    column = pa.array(values, pa.float32())
    chain = ["impute", "clip", {"op": "piecewise_linear", "bins": 3}, "robust", "quantile_normal", "vocabulary"][:-1]
    whole, again, parts = (fit(("x", column, chain), size=n) for n in (1000, 1000, size))
    assert whole == again == parts


def test_moments_in_batches() -> None:
    values = RANDOM.normal(1e6, 1.0, 10_000)
    moments = Moments()
    for part in np.array_split(values, 37):
        moments.add(part)
    assert moments.mean == pytest.approx(values.mean(), rel=1e-15)
    assert moments.deviation == pytest.approx(values.std(), rel=1e-9)


def test_sample_of_many_rows_is_bounded_and_close() -> None:
    sample, half = Sample(2000), Sample(2000)
    values = RANDOM.normal(size=200_000).astype(np.float32)
    for first in range(0, len(values), 7000):
        part = values[first : first + 7000]
        sample.add(part, row_priorities(first, len(part)))
    for first in range(0, len(values), 50_000):
        part = values[first : first + 50_000]
        half.add(part, row_priorities(first, len(part)))
    kept = sample.values()
    assert len(kept) == 2000
    np.testing.assert_array_equal(kept, half.values())
    assert (sample.minimum, sample.maximum) == (values.min(), values.max())
    ranks = np.searchsorted(np.sort(values), np.quantile(kept, [0.1, 0.5, 0.9])) / len(values)
    assert np.abs(ranks - [0.1, 0.5, 0.9]).max() < 5 * 0.5 / np.sqrt(2000)


def test_frequencies_forget_the_rare() -> None:
    frequencies = Frequencies(limit=100)
    for i in range(50):
        frequencies.add(np.concatenate([np.arange(1000 + 40 * i, 1040 + 40 * i), [5, 5, 6]]))
    assert frequencies.most_common(2) == [5, 6]
    assert len(frequencies.most_common(10_000)) <= 100


def test_sketch_spec_of_a_fit() -> None:
    program = fit(
        ("x", VALUES, ["impute"]),
        ("i", pa.array([1, 2, 2, 3] * 1250), ["standardise"]),
        ("b", pa.array([True, False, None, True, True] * 1000), []),
        ("s", ["u", "v"] * 2500, [{"op": "hash_bucket", "buckets": 4}]),
    )
    x, i, b, s = program.sketch.fields
    assert isinstance(x, RealField)
    assert x.edges == tuple(sorted({quantile(rank / 1000) for rank in EDGE_RANKS}))
    assert (x.low, x.high, x.shift) == (KNOWN[0], KNOWN[-1], quantile(0.5))
    assert i == RealField("i", (1.0, 2.0, 3.0, float(np.nextafter(np.float32(3), np.float32(4)))), 1.0, 3.0, 2.0)
    assert b == RealField("b", (0.5,), 0.0, 1.0)
    assert s == CategoryField("s", ("u", "v"), 2)
    kept = fit(("x", VALUES[:10], ["impute"]), sketch=fit(("x", VALUES, ["impute"])).sketch)
    assert kept.sketch.fields == (x,)


def test_keys_are_captured_and_no_features() -> None:
    table = pa.table({"x": [1.0, 2.0], "i": [1, 2], "id": ["a", "b"], "when": [5, 6], "b": [True, False]})
    specs = [FeatureSpec("x", "real", (Transform("impute"),))]
    program = fit_program(specs, cut(table, 10), keys=["id", "x", "when", Field("i", "string"), "b"])
    assert program.fields[1:] == (
        Field("id", "string"),
        Field("when", "integer"),
        Field("i", "string"),
        Field("b", "boolean"),
    )
    assert program.keys == 4
    with pytest.raises(FitError, match="'nothing'"):
        fit_program(specs, cut(table, 10), keys=["nothing"])


def test_what_cannot_be_fitted() -> None:
    table = pa.table({"x": [1.0], "t": pa.array([0], pa.timestamp("us"))})
    with pytest.raises(FitError, match="at least one feature"):
        fit_program([], cut(table, 1))
    with pytest.raises(FitError, match="no rows"):
        fit_program([FeatureSpec("x", "real")], cut(table.slice(0, 0), 1))
    with pytest.raises(ColumnError, match="'y'"):
        fit_program([FeatureSpec("y", "real")], cut(table, 1))
    with pytest.raises(ColumnError, match="timestamp"):
        fit_program([FeatureSpec("t", "real")], cut(table, 1))
    with pytest.raises(ProgramError, match="'y', which is no feature"):
        fit(("i", [1], [{"op": "cross", "with": "y"}]))


def test_default_transforms() -> None:
    def names(*arguments: Any) -> list[str]:
        return [transform.op for transform in default_transforms(*arguments)]

    assert names("real", 5) == ["impute", "piecewise_linear"] == names("integer", 1000)
    assert names("integer", 5) == ["vocabulary"] == names("string", 10**6)
    assert names("boolean", 2) == ["impute"]
