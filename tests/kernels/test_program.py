"""The IR: stable hashes, hostile JSON, the grammar of chains, and native code's own refusal of what Python would never
send."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from trimtab._native import CompiledProgram, Schema, Slab, sketch_values
from trimtab.kernels import operations as ops
from trimtab.kernels.errors import ProgramError
from trimtab.kernels.program import CategoryField, Chain, ColumnProgram, Field, RealField, SketchSpec
from trimtab.kernels.reference import hash_of
from trimtab.kernels.schema import FeatureSpec, Transform, parse_transforms


def example() -> ColumnProgram:
    """Every op once."""
    fields = (
        Field("x", "real"),
        Field("n", "integer"),
        Field("s", "string"),
        Field("b", "boolean"),
        Field("id", "string"),
    )
    chains = (
        Chain(0, (ops.Impute(0.5, True), ops.Clip(-1.0, 2.0), ops.Standardise(0.1, 1.5))),
        Chain(0, (ops.SignedLog(), ops.Robust(0.0, 2.0), ops.QuantileNormal((-1.0, 1.0), (0.0, 1.0)))),
        Chain(0, (ops.PiecewiseLinear((0.0, 0.5, 1.0)),)),
        Chain(1, (ops.Log1p(), ops.MinMax(0.0, 3.0), ops.Cyclic(24.0))),
        Chain(1, (ops.Bucketise((1.0, 2.0)), ops.OneHot())),
        Chain(1, (ops.Vocabulary((3, 1, 2)), ops.Embedding())),
        Chain(2, (ops.Vocabulary(("b", "é")),)),
        Chain(2, (ops.HashBucket(10),)),
        Chain(2, (ops.Cross(1, 100),)),
        Chain(3, ()),
    )
    summaries = (
        RealField("x", (0.0, 1.0), -2.0, 2.0, 0.5),
        RealField("n", (1.0,)),
        CategoryField("s", ("b", "é"), 1),
        RealField("b", (0.5,), 0.0, 1.0),
    )
    return ColumnProgram(fields, chains, SketchSpec(summaries, (0.25, 0.5)), 1)


def test_names_and_sizes() -> None:
    program = example()
    assert program.feature_names == (
        *("x", "x.missing", "x", "x.ple_0", "x.ple_1", "n.sin", "n.cos"),
        *(f"n.bin.one_hot_{i}" for i in range(1, 6)),
        "b",
    )
    assert program.n_features == len(program.feature_names)
    assert program.id_names == ("n", "s", "s.hash", "s.cross.n")
    assert program.id_sizes == (6, 5, 13, 103)
    assert program.schema.names == ["x", "n", "s", "b", "id"]
    assert program.schema.keys == 1


def test_hash_is_stable() -> None:
    """A change of this hash makes every stored program another one: it needs a new FORMAT."""
    assert example().hash == "61dc22a2a908c0b911847f1c3265ab68cfc431b6aca2a04fa89de55f526ffb8c"
    assert example().sketch.hash == "b52c8367880ff1567ad271885950d9031b60400c72cde0db916b103e04b4a41c"


def test_category_hashes_are_stable() -> None:
    """MurmurHash3's finaliser over value + golden ratio, and over FNV-1a."""
    assert hash_of(0) == 0x9CA066F1A4AB2EEA
    assert hash_of(-1) == 0x25B775FAECA8F520
    assert hash_of("é") == 0x9D55CCB9BA86763B


GOOD: dict[str, Any] = json.loads(example().to_json())


def edited(path: str, value: object) -> str:
    document = json.loads(json.dumps(GOOD))
    node = document
    *parents, last = (int(part) if part.isdigit() else part for part in path.split("/"))
    for part in parents:
        node = node[part]
    node[last] = value
    return json.dumps(document)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("[]", "expected an object"),
        ("[" * 100_000, "nested too deeply"),
        ('{"format":1,"format":1}', "twice"),
        ('{"format":NaN}', "not a number"),
        ('{"format":' + "9" * 5000 + "}", "not valid JSON"),
        ("{}", "format"),
        (edited("format", 2), "format"),
        (edited("surprise", 1), "unknown keys"),
        (edited("keys", 5), "no feature"),
        (edited("keys", True), "integer"),
        (edited("fields/0/name", "n"), "twice"),
        (edited("fields/0/name", "\ud800"), "Unicode"),
        (edited("fields/0/type", "float"), "unknown type"),
        (edited("chains/0/field", 4), "features"),
        (edited("chains/0/field", -1), "integer in"),
        (edited("chains/0/field", 2), "needs a number"),
        (edited("chains/0/ops/0/op", "lookup"), "unknown op"),
        (edited("chains/0/ops/0/op", ["impute"]), "unknown op"),
        (edited("chains/0/ops/0/value", 0.1), "not a float32"),
        (edited("chains/0/ops/0/value", None), "expected a number"),
        (edited("chains/0/ops/0/value", 1e39), "not a float32"),
        (edited("chains/0/ops/0/value", int("9" * 400)), "finite"),
        (edited("chains/0/ops/1/low", 3.0), "above high"),
        (edited("chains/0/ops/2/scale", -1.0), ">= 0"),
        (edited("chains/2/ops/0/edges", [0.0, 0.0]), "increasing"),
        (edited("chains/2/ops/0/edges", "ab"), "list"),
        (edited("chains/1/ops/2/probabilities", [0.5, 0.25]), "non-decreasing"),
        (edited("chains/1/ops/2/probabilities", [0.5]), "2 knots, 1"),
        (edited("chains/3/ops/2/period", 0), "period"),
        (edited("chains/5/ops/0/values", ["a"]), "must hold int"),
        (edited("chains/6/ops/0/values", ["a", "a"]), "twice"),
        (edited("chains/6/ops/0/values", ["a", 1]), "integer"),
        (edited("chains/6/ops/0/values", [""]), "missing value"),
        (edited("chains/5/ops/0/values", [True]), "integer"),
        (edited("chains/5/ops/0/values", [-(1 << 63)]), "integer in"),
        (edited("chains/7/ops/0/buckets", 0), "integer in"),
        (edited("chains/8/ops/0/other", 0), "is real"),
        (edited("chains/8/ops/0/other", 4), "cross with field"),
        (edited("chains/9/ops", [{"op": "one_hot"}]), "directly follow"),
        (edited("sketch/fields/0/name", "y"), "not the program's features"),
        (edited("sketch/fields/0/kind", "category"), "keys"),
        (edited("sketch/fields/0/edges", [1.0, 0.0]), "increasing"),
        (edited("sketch/fields/2/counted", 3), "integer in"),
        (edited("sketch/prediction_edges", [0.1]), "not a float32"),
    ],
)
def test_from_json_refuses(text: str, message: str) -> None:
    with pytest.raises(ProgramError, match=message):
        ColumnProgram.from_json(text)


@pytest.mark.parametrize(
    ("kind", "transforms", "message"),
    [
        ("string", [], "needs one of"),
        ("string", ["standardise"], "needs a number"),
        ("real", ["vocabulary"], "needs a boolean, integer or string"),
        ("integer", ["impute", "vocabulary"], "cannot follow impute"),
        ("real", ["standardise", "bucketise"], "may only follow"),
        ("real", ["one_hot"], "directly follow"),
        ("real", ["bucketise", "impute", "one_hot"], "directly follow"),
        ("real", ["impute", "impute"], "twice"),
        ("real", ["lookup"], "reserved"),
        ("real", ["standardize"], "did you mean 'standardise'"),
        ("real", [{"op": "clip", "lo": 1.0}], "did you mean 'low'"),
        ("real", [{"op": "clip", "low": 2, "high": 1}], "above high"),
        ("real", [{"op": "clip", "low": "1"}], "expected float"),
        ("real", [{"op": "clip", "low": float("nan")}], "expected -3.40282e"),
        ("real", [{"op": "impute", "strategy": "mode"}], "expected one of"),
        ("real", [{"op": "impute", "flag": 1}], "expected bool"),
        ("real", [{"op": "cyclic"}], "'period' is required"),
        ("real", [{"op": "bucketise", "bins": 0}], "expected 1 to 1024"),
        ("real", [{"low": 1}], "key 'op'"),
        ("real", [3], "expected a name or a table"),
        ("text", ["impute"], "unknown type"),
    ],
)
def test_chain_that_means_nothing(kind: Any, transforms: list[Any], message: str) -> None:
    with pytest.raises(ProgramError, match=message):
        FeatureSpec("x", kind, parse_transforms(transforms))


def test_branches_start_from_the_raw_value() -> None:
    spec = FeatureSpec(
        "x", "integer", parse_transforms(["vocabulary", "one_hot", "impute", "bucketise", "log1p", "standardise"])
    )
    assert [[transform.op for transform in branch] for branch in spec.branches()] == [
        ["vocabulary", "one_hot"],
        ["impute", "bucketise"],
        ["log1p", "standardise"],
    ]


def test_transform_to_toml_and_back() -> None:
    for value in ("impute", {"op": "clip", "low": 0.0, "high": 1.0}, {"op": "cross", "with": "y", "buckets": 8}):
        assert Transform.parse(value).to_toml() == value
    assert Transform.of("cross", with_="y").get("buckets") == 4096
    assert Transform.parse({"op": "clip", "low": 0}) == Transform.of("clip", low=0.0)
    with pytest.raises(ProgramError, match="list"):
        parse_transforms("impute")


REAL_SKETCH = ("real", [0.0, 1.0, 0.0], [], [], 0)


@pytest.mark.parametrize(
    ("chains", "sketch"),
    [
        ([(2, [])], None),
        ([(1, [])], None),
        ([(0, [("nothing", [], [], [])])], None),
        ([(0, [("impute", [], [1], [])])], None),
        ([(0, [("impute", [float("nan")], [1], [])])], None),
        ([(0, [("impute", [0.1], [1], [])])], None),
        ([(0, [("impute", [0.0], [], [])])], None),
        ([(0, [("clip", [1.0, 0.0], [], [])])], None),
        ([(0, [("standardise", [0.0, -1.0], [], [])])], None),
        ([(0, [("quantile_normal", [0.0, 1.0, 0.5], [], [])])], None),
        ([(0, [("quantile_normal", [0.0, 2.0], [], [])])], None),
        ([(0, [("bucketise", [1.0, 1.0], [], [])])], None),
        ([(0, [("piecewise_linear", [float("inf")], [], [])])], None),
        ([(0, [("piecewise_linear", [float(i) for i in range(5000)], [], [])])], None),
        ([(0, [("cyclic", [0.0], [], [])])], None),
        ([(0, [("bucketise", [], [], []), ("clip", [0.0, 1.0], [], [])])], None),
        ([(0, [("vocabulary", [], [], [])])], None),
        ([(1, [("vocabulary", [], [1], [])])], None),
        ([(1, [("vocabulary", [], [], [b"a", b"a"])])], None),
        ([(1, [("hash_bucket", [], [0], [])])], None),
        ([(1, [("hash_bucket", [], [1 << 40], [])])], None),
        ([(1, [("cross", [], [0, 5], [])])], None),
        ([(1, [("cross", [], [-1, 5], [])])], None),
        ([(1, [("cross", [], [1], [])])], None),
        ([(0, [("one_hot", [], [], [])])], None),
        ([(1, [("hash_bucket", [], [5], []), ("one_hot", [], [], []), ("embedding", [], [], [])])], None),
        ([], []),
        ([], [REAL_SKETCH, REAL_SKETCH]),
        ([], [("real", [0.0], [], [], 0), ("category", [], [], [b"a"], 1)]),
        ([], [REAL_SKETCH, ("category", [], [], [b"a"], 2)]),
        ([], [REAL_SKETCH, ("other", [], [], [], 0)]),
        ([], [("category", [], [1], [], 1), ("category", [], [], [b"a"], 1)]),
    ],
)
def test_native_refuses(chains: Any, sketch: Any) -> None:
    good = [REAL_SKETCH, ("category", [], [], [b"a"], 1)]
    with pytest.raises(ValueError, match="column program"):
        CompiledProgram(Schema(["x", "s"], ["real", "string"]), chains, good if sketch is None else sketch)


def test_native_refuses_short_arrays() -> None:
    schema = Schema(["x"], ["real"])
    program = CompiledProgram(schema, [], [REAL_SKETCH])
    slab = Slab(schema)
    slab.append_columns([np.zeros(2, np.float32)])
    counts, moments = np.zeros(6, np.uint64), np.zeros(4)
    program.run(slab, counts, moments)
    with pytest.raises(ValueError, match="counts"):
        program.run(slab, counts[:5], moments)
    with pytest.raises(ValueError, match="moments"):
        program.run(slab, counts, moments[:3])
    with pytest.raises(ValueError, match="both"):
        program.run(slab, counts, None)
    read_only = counts.copy()
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match="writeable"):
        program.run(slab, read_only, moments)
    with pytest.raises(ValueError, match="counts"):
        sketch_values(np.zeros(1, np.float32), np.zeros(3, np.float32), 0.0, 1.0, 0.0, counts, moments)
