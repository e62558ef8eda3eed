"""What each op of a column program costs, in nanoseconds a value, on one core: 262,144 rows of 16 columns, all with the
same chain, through CpuExecutor without a sketch. Held against the time to copy the raw values and write the results
(`memcpy`), and against NumPy, and scikit-learn and polars where they are installed and have the op.

An op that emits several features a value (one-hot, piecewise linear) is charged per raw value. Strings are what a
request brings: UTF-8 bytes behind offsets. Environment: TRIMTAB_CPU measures another dispatch level, CASES (parts of
names, with commas) only some cases.

Usage: python benchmarks/column_ops.py [--quick] [--json FILE]
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("POLARS_MAX_THREADS", "1")

import numpy as np
from _harness import arguments, quantiles, report
from numpy.typing import NDArray
from trimtab._native import CPU_LEVELS, Slab, keep_freed_memory
from trimtab.kernels import operations as ops
from trimtab.kernels.cpu import CpuExecutor
from trimtab.kernels.grammar import FieldType
from trimtab.kernels.operations import Operation
from trimtab.kernels.program import Chain, ColumnProgram, Field
from trimtab.kernels.sketch import Sketch
from trimtab.kernels.sketch_spec import CategoryField, RealField, SketchField, SketchSpec

ROWS, COLUMNS = 262_144, 16
Values = Any  # a NumPy array of numbers, or of strings
Rival = Callable[[Values], Any]


@dataclass(frozen=True)
class Case:
    """One op. `data` makes a column; `rivals` compute the same of one column."""

    name: str
    kind: FieldType
    operations: tuple[Operation, ...]
    data: Callable[[np.random.Generator], Values]
    rivals: dict[str, Rival] = field(default_factory=dict)
    sketched: SketchField | None = None


def normal(random: np.random.Generator) -> Values:
    values = random.normal(size=ROWS).astype(np.float32)
    values[random.random(ROWS) < 0.02] = np.nan
    return values


def positive(random: np.random.Generator) -> Values:
    return np.exp(3 * normal(random))


def hours(random: np.random.Generator) -> Values:
    return random.integers(0, 240, ROWS).astype(np.float32) / np.float32(10)


def edges_of(count: int) -> tuple[float, ...]:
    sample = np.random.default_rng(0).normal(size=100_000)
    return tuple(np.unique(np.quantile(sample, np.arange(1, count + 1) / (count + 1)).astype(np.float32)).tolist())


def words(count: int, least: int, most: int) -> list[str]:
    """Distinct words of mixed lengths."""
    random = np.random.default_rng(count)
    letters = np.asarray(list("abcdefghijklmnopqrstuvwxyz0123456789"))
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(random.choice(letters, random.integers(least, most + 1)))] = None
    return list(found)


def chosen(values: Any) -> Callable[[np.random.Generator], Values]:
    """Rows that hold one of the values, the first ones more often (Zipf), 2 % something else or nothing."""
    known = np.asarray(values)
    other: Any = np.asarray(["", "never seen"]) if known.dtype.kind == "U" else np.asarray([-(1 << 63), -7])

    def draw(random: np.random.Generator) -> Values:
        ranks = np.floor(np.exp(random.random(ROWS) * np.log(len(known)))).astype(np.int64) - 1
        found = known[random.permutation(len(known))[ranks]] if known.dtype.kind != "U" else known[ranks]
        unknown = random.random(ROWS) < 0.02
        return np.where(unknown, random.choice(other, ROWS), found)

    return draw


def sklearn_fitted(name: str, sample: Values, **options: Any) -> Rival:
    preprocessing: Any = importlib.import_module("sklearn.preprocessing")
    fitted = getattr(preprocessing, name)(**options).fit(sample.reshape(-1, 1))
    return lambda x: fitted.transform(x.reshape(-1, 1))


def real_cases() -> Iterator[Case]:
    random = np.random.default_rng(1)
    sample = random.normal(size=(20_000, 1)).astype(np.float32)
    have_sklearn = find_spec("sklearn") is not None

    def filled(x: Values) -> Values:
        return np.where(np.isnan(x), np.float32(0), x)

    impute = ops.Impute(0.0, False)
    yield Case("min_max", "real", (impute, ops.MinMax(-3.0, 6.0)), normal, {"numpy": lambda x: (filled(x) + 3) / 6})
    yield Case("robust", "real", (impute, ops.Robust(0.1, 1.3)), normal, {"numpy": lambda x: (filled(x) - 0.1) / 1.3})
    yield Case(
        "log1p", "real", (impute, ops.Log1p(), ops.Standardise(1.0, 2.0)), positive,
        {"numpy": lambda x: (np.log1p(np.maximum(filled(x), 0)) - 1) / 2},
    )  # fmt: skip
    yield Case(
        "signed_log", "real", (impute, ops.SignedLog(), ops.Standardise(1.0, 2.0)), normal,
        {"numpy": lambda x: (np.copysign(np.log1p(np.abs(filled(x))), x) - 1) / 2},
    )  # fmt: skip
    knots = edges_of(101)
    shares = tuple(np.linspace(0, 1, len(knots)).tolist())
    rivals: dict[str, Rival] = {}
    if have_sklearn:
        rivals["sklearn"] = sklearn_fitted("QuantileTransformer", sample, n_quantiles=101, output_distribution="normal")
    yield Case("quantile_normal", "real", (impute, ops.QuantileNormal(knots, shares)), normal, rivals)
    yield Case(
        "cyclic", "real", (ops.Cyclic(24.0),), hours,
        {"numpy": lambda x: (np.sin(x * np.float32(0.2617994)), np.cos(x * np.float32(0.2617994)))},
    )  # fmt: skip
    for count in (15, 31, 63, 255, 4095):
        edges = edges_of(count)
        array = np.asarray(edges, np.float32)
        searched = {"numpy": lambda x, array=array: np.searchsorted(array, x, side="right")}
        yield Case(f"bucketise_{len(edges)}", "real", (ops.Bucketise(edges),), normal, searched)
    rivals = {}
    if have_sklearn:
        discretizer = sklearn_fitted(
            "KBinsDiscretizer", sample, n_bins=16, encode="onehot-dense", strategy="quantile", dtype=np.float32,
            quantile_method="averaged_inverted_cdf",
        )  # fmt: skip
        rivals["sklearn"] = lambda x: discretizer(filled(x))
    yield Case("bucketise_15_one_hot", "real", (ops.Bucketise(edges_of(15)), ops.OneHot()), normal, rivals)
    low, high = np.asarray(edges_of(17)[:-1], np.float32), np.asarray(edges_of(17)[1:], np.float32)
    yield Case(
        "piecewise_linear_16", "real", (ops.PiecewiseLinear(edges_of(17)),), normal,
        {"numpy": lambda x: np.clip((filled(x)[:, None] - low) / (high - low), 0, 1)},
    )  # fmt: skip


def category_cases() -> Iterator[Case]:
    have_sklearn, polars = find_spec("sklearn") is not None, None
    if find_spec("polars") is not None:
        polars = importlib.import_module("polars")

    def rivals_of(values: Any) -> dict[str, Rival]:
        table = {value: i for i, value in enumerate(values)}
        found: dict[str, Rival] = {"dict": lambda x: [table.get(value, -1) for value in x]}
        if have_sklearn and isinstance(values[0], str):
            encoder: Any = importlib.import_module("sklearn.preprocessing").OrdinalEncoder(
                categories=[np.asarray(sorted(values))], handle_unknown="use_encoded_value", unknown_value=-1
            )
            encoder.fit(np.asarray(values).reshape(-1, 1))
            found["sklearn"] = lambda x: encoder.transform(x.reshape(-1, 1))
        if polars is not None:
            ids = polars.DataFrame({"value": values, "id": np.arange(len(values), dtype=np.int32)})
            found["polars"] = lambda x: x.to_frame("value").join(ids, on="value", how="left", maintain_order="left")
        return found

    small, middle, large = words(26, 2, 3), words(1000, 4, 18), words(100_000, 6, 24)
    for name, values in (("26", small), ("1000", middle), ("100000", large)):
        known = tuple(values)
        yield Case(f"vocabulary_{name}", "string", (ops.Vocabulary(known),), chosen(values), rivals_of(values))
    random = np.random.default_rng(3)
    for count in (26, 1000, 1_000_000):
        keys = [int(key) for key in np.unique(random.integers(0, 1 << 40, count))]
        rivals = rivals_of(keys)
        yield Case(f"vocabulary_int_{count}", "integer", (ops.Vocabulary(tuple(keys)),), chosen(keys), rivals)
    dense = tuple(range(300))
    yield Case("vocabulary_int_dense_300", "integer", (ops.Vocabulary(dense),), chosen(dense), rivals_of(dense))
    hashed: dict[str, Rival] = {}
    if polars is not None:
        hashed["polars"] = lambda x: x.hash() % 1021
    yield Case("hash_bucket_short", "string", (ops.HashBucket(1021),), chosen(small), hashed)
    yield Case("hash_bucket_long", "string", (ops.HashBucket(1021),), chosen(large), hashed)
    yield Case("hash_bucket_int", "integer", (ops.HashBucket(1021),), chosen(keys), hashed)
    yield Case("cross_strings", "string", (ops.Cross(0, 4099),), chosen(middle))
    yield Case("vocabulary_26_one_hot", "string", (ops.Vocabulary(tuple(small)), ops.OneHot()), chosen(small))
    counted = CategoryField("", tuple(middle), 64)
    yield Case("category_sketch", "string", (), chosen(middle), sketched=counted)


def program_of(case: Case) -> ColumnProgram:
    fields = tuple(Field(f"x{i}", case.kind) for i in range(COLUMNS))
    chains = tuple(Chain(i, case.operations) for i in range(COLUMNS)) if case.sketched is None else ()
    plain: SketchField = RealField("", ()) if case.kind != "string" else CategoryField("", (), 0)
    made = type(case.sketched or plain)
    parameters = {key: value for key, value in vars(case.sketched or plain).items() if key != "name"}
    return ColumnProgram(fields, chains, SketchSpec(tuple(made(one.name, **parameters) for one in fields)))


def native(kind: FieldType, column: Values) -> Any:
    if kind != "string":
        return column.astype(np.float32 if kind == "real" else np.int64)
    parts = [text.encode() for text in column.tolist()]
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int32)
    return offsets, np.frombuffer(b"".join(parts), np.uint8)


def aligned(width: int, kind: Any) -> NDArray[Any]:
    """[ROWS, width] from a cache line's start, so that whole lines can be written past the caches."""
    size = ROWS * width * np.dtype(kind).itemsize
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(kind).reshape(ROWS, width)


def rival_column(name: str, column: Values) -> Values:
    if name == "dict":
        return column.tolist()
    if name == "polars":
        return importlib.import_module("polars").Series("value", column.tolist())
    return column


def ns_per_value(call: Callable[[], Any], values: int, seconds: float) -> dict[str, Any]:
    call()
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(samples) < 3:
        began = time.perf_counter_ns()
        call()
        samples.append((time.perf_counter_ns() - began) / values)
    return {"ns_per_value": float(np.percentile(samples, 20)), "time": quantiles(samples, "ns/value")}


def measure(case: Case, level: str, seconds: float) -> list[dict[str, Any]]:
    program = program_of(case)
    columns = [case.data(np.random.default_rng(i)) for i in range(COLUMNS)]
    slab = Slab(program.schema)
    slab.append_columns([native(case.kind, column) for column in columns])
    features = aligned(program.n_features, np.float32)
    ids = aligned(program.n_ids, np.int64)
    sketch = Sketch(program.sketch) if case.sketched is not None else None
    executor = CpuExecutor(program, level)
    values = ROWS * COLUMNS
    rows = [{"way": level, **ns_per_value(lambda: executor.run(slab, sketch, 0, -1, features, ids), values, seconds)}]
    taken = np.zeros(slab.nbytes, np.uint8)
    given = np.zeros(max(features.nbytes + ids.nbytes, 1), np.uint8)

    def copy() -> None:  # reads what is read once and writes what is written once
        taken.max()
        given[:] = 1

    rows.append({"way": "memory", **ns_per_value(copy, values, seconds / 4)})
    for name, rival in case.rivals.items():
        column = rival_column(name, columns[0])
        rows.append({"way": name, **ns_per_value(lambda: rival(column), ROWS, seconds / 2)})  # noqa: B023
    return [{"case": case.name, "rows": ROWS, "columns": COLUMNS, **row} for row in rows]


def main() -> None:
    keep_freed_memory()
    level = os.environ.get("TRIMTAB_CPU") or CPU_LEVELS[0]
    options = arguments(__doc__ or "")
    wanted = os.environ.get("CASES", "").split(",")
    rows: list[dict[str, Any]] = []
    for case in (*real_cases(), *category_cases()):
        if wanted != [""] and not any(name in case.name for name in wanted):
            continue
        rows += measure(case, level, 0.2 if options.quick else 0.5)
        print(*(f"{row['case']}/{row['way']} {row['ns_per_value']:.2f}" for row in rows if row["case"] == case.name),
              file=sys.stderr)  # fmt: skip
    summary = {f"{row['case']}_{row['way']}": row["ns_per_value"] for row in rows}
    report(rows, summary, options.json)


if __name__ == "__main__":
    main()
