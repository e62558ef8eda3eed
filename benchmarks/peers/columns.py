"""Rivals at column work, in a process and an environment of their own: NumPy, numba, polars, scikit-learn, ONNX
Runtime, and Evidently, whylogs and datasketches for statistics alone.

The program reads one JSON object a line, {"way", "rows", "columns", "data", "sketch", "seconds"}, and answers each with
{"samples": [µs of a call, ...]} or {"absent": why}. Run as a program by `Rivals`, which the benchmark imports.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    for name in ("OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS", "NUMBA_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ[name] = "1"
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from _column_data import CENTER, EDGES, FILL, HIGH, LOW, MOST, SCALE, SHIFT, Floats, samples_us, values_of
from numpy.typing import NDArray

PACKAGES = [
    "numpy", "pandas<3", "numba", "polars", "scikit-learn", "onnx", "onnxruntime",
    "evidently", "whylogs", "datasketches",
]  # fmt: skip
Call = Callable[[], Any]


def in_numpy(values: Floats, sketched: bool) -> Call:
    columns, rows = values.shape
    features = np.empty((rows, columns), np.float32)

    def run() -> None:
        for i, x in enumerate(values):
            missing = np.isnan(x)
            features[:, i] = (np.clip(np.where(missing, FILL, x), LOW, HIGH) - SHIFT) / SCALE
            if sketched:
                known = x[~missing]
                finite = known[np.isfinite(known)].astype(np.float64)
                np.bincount(np.searchsorted(EDGES, known, side="right"), minlength=len(EDGES) + 1)
                if len(finite):
                    d = finite - CENTER
                    _ = finite.min(), finite.max(), d.sum(), (d * d).sum(), np.count_nonzero(np.abs(finite) > MOST)

    return run


def in_numba(values: Floats, sketched: bool) -> Call:
    """One read of each value; blocks of rows, whose outputs stay in the cache; a search without branches."""
    numba: Any = importlib.import_module("numba")
    columns, rows = values.shape
    features = np.empty((rows, columns), np.float32)
    counts, moments = np.zeros((columns, 36), np.int64), np.zeros((columns, 4))
    inverse = np.float32(1) / SCALE

    def loop(x: Floats, out: Floats, edges: Floats, found: NDArray[np.int64], sums: NDArray[np.float64]) -> None:
        for first in range(0, x.shape[1], 128):
            last = min(first + 128, x.shape[1])
            for i in range(x.shape[0]):
                low, high, total, square = np.float32(np.inf), np.float32(-np.inf), 0.0, 0.0
                for j in range(first, last):
                    value = x[i, j]
                    missing = value != value
                    filled = FILL if missing else value
                    out[j, i] = (min(max(filled, LOW), HIGH) - SHIFT) * inverse
                    if sketched:
                        if missing:
                            found[i, 0] += 1
                            continue
                        place = 16 if edges[15] <= value else 0
                        place += 8 if edges[place + 7] <= value else 0
                        place += 4 if edges[place + 3] <= value else 0
                        place += 2 if edges[place + 1] <= value else 0
                        place += 1 if edges[place] <= value else 0
                        found[i, 4 + place] += 1
                        if abs(value) > MOST:
                            found[i, 1] += 1
                            if abs(value) == np.inf:
                                found[i, 2 + (value > 0)] += 1
                                continue
                        d = np.float64(value) - CENTER
                        low, high = min(low, value), max(high, value)
                        total += d
                        square += d * d
                if sketched:
                    sums[i, 0] = min(sums[i, 0], low)
                    sums[i, 1] = max(sums[i, 1], high)
                    sums[i, 2] += total
                    sums[i, 3] += square

    compiled = numba.njit(loop)
    return lambda: compiled(values, features, EDGES, counts, moments)


def in_polars(values: Floats, sketched: bool) -> Call:
    polars: Any = importlib.import_module("polars")
    table = polars.DataFrame({f"x{i}": x for i, x in enumerate(values)})
    everything = polars.all().fill_nan(FILL).clip(LOW, HIGH)
    features = (everything - SHIFT) / SCALE
    if not sketched:
        return lambda: table.select(features).to_numpy()
    edges = polars.Series(EDGES)
    counted = [
        polars.all().is_nan().sum().name.prefix("missing_"),
        polars.all().is_infinite().sum().name.prefix("infinite_"),
        (polars.all().abs() > MOST).sum().name.prefix("unseen_"),
        polars.all().nan_min().name.prefix("minimum_"),
        polars.all().nan_max().name.prefix("maximum_"),
        polars.all().drop_nans().cast(polars.Float64).mean().name.prefix("mean_"),
        polars.all().drop_nans().cast(polars.Float64).var().name.prefix("variance_"),
    ]

    def run() -> None:
        table.select(features).to_numpy()
        table.select(counted)
        for column in table:
            edges.search_sorted(column.drop_nans(), side="right").value_counts()

    return run


def in_sklearn(values: Floats, sketched: bool) -> Call:
    if sketched:
        raise NotImplementedError("scikit-learn has no sketch")
    pipeline: Any = importlib.import_module("sklearn.pipeline")
    impute: Any = importlib.import_module("sklearn.impute")
    preprocessing: Any = importlib.import_module("sklearn.preprocessing")
    steps = pipeline.make_pipeline(
        impute.SimpleImputer(), preprocessing.FunctionTransformer(np.clip, kw_args={"a_min": LOW, "a_max": HIGH}),
        preprocessing.StandardScaler(),
    )  # fmt: skip
    rows = np.ascontiguousarray(values.T)
    steps.fit(np.random.default_rng(0).normal(size=(500, len(values))).astype(np.float32))
    return lambda: steps.transform(rows)


def in_onnxruntime(values: Floats, sketched: bool) -> Call:
    if sketched:
        raise NotImplementedError("ONNX Runtime has no sketch")
    onnx: Any = importlib.import_module("onnx")
    runtime: Any = importlib.import_module("onnxruntime")
    width = len(values)
    node, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    steps = [
        node("Imputer", ["x"], ["filled"], domain="ai.onnx.ml", imputed_value_floats=[float(FILL)] * width,
             replaced_value_float=float("nan")),
        node("Clip", ["filled", "low", "high"], ["clipped"]),
        node("Scaler", ["clipped"], ["y"], domain="ai.onnx.ml", offset=[float(SHIFT)] * width,
             scale=[float(1 / SCALE)] * width),
    ]  # fmt: skip
    bounds = [onnx.numpy_helper.from_array(bound, name) for bound, name in ((LOW, "low"), (HIGH, "high"))]
    shape = [None, width]
    graph = onnx.helper.make_graph(
        steps,
        "columns",
        [value("x", onnx.TensorProto.FLOAT, shape)],
        [value("y", onnx.TensorProto.FLOAT, shape)],
        bounds,
    )
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("ai.onnx.ml", 3)]
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    rows = np.ascontiguousarray(values.T)
    return lambda: session.run(None, {"x": rows})


def _frame(values: Floats) -> Any:
    pandas: Any = importlib.import_module("pandas")
    return pandas.DataFrame({f"x{i}": x for i, x in enumerate(values)})


def in_evidently(values: Floats, sketched: bool) -> Call:
    """PSI of one half of the rows against the other: a value counts once."""
    if not sketched:
        raise NotImplementedError("Evidently computes no features")
    evidently: Any = importlib.import_module("evidently")
    presets: Any = importlib.import_module("evidently.presets")
    frame = _frame(values)
    half = len(frame) // 2
    now, before = frame.iloc[:half].reset_index(drop=True), frame.iloc[half:].reset_index(drop=True)
    return lambda: evidently.Report([presets.DataDriftPreset(num_method="psi")]).run(now, before)


def in_whylogs(values: Floats, sketched: bool) -> Call:
    if not sketched:
        raise NotImplementedError("whylogs computes no features")
    os.environ["WHYLOGS_NO_ANALYTICS"] = "True"
    whylogs: Any = importlib.import_module("whylogs")
    frame = _frame(values)
    return lambda: whylogs.log(frame)


def in_datasketches(values: Floats, sketched: bool) -> Call:
    """A KLL quantile sketch a column."""
    if not sketched:
        raise NotImplementedError("datasketches computes no features")
    datasketches: Any = importlib.import_module("datasketches")

    def run() -> None:
        for x in values:
            datasketches.kll_floats_sketch(200).update(x)

    return run


WAYS: dict[str, Callable[[Floats, bool], Call]] = {
    "numpy": in_numpy, "numba": in_numba, "polars": in_polars, "sklearn": in_sklearn, "onnxruntime": in_onnxruntime,
    "evidently": in_evidently, "whylogs": in_whylogs, "datasketches": in_datasketches,
}  # fmt: skip


class Rivals:
    """The rivals' process. Raises peers.setup.Absent where their environment cannot be made."""

    def __init__(self, pinned: set[int] | None = None) -> None:
        from peers.setup import environment

        python = environment(
            "columns", PACKAGES, "numba, polars, sklearn, onnxruntime, evidently, whylogs, datasketches"
        )
        self._process = subprocess.Popen(
            [str(python), __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        if pinned is not None:
            os.sched_setaffinity(self._process.pid, pinned)
        self.versions: dict[str, str] = self._ask({"versions": True})

    def samples(self, **case: Any) -> list[float] | None:
        """µs of a call, or None where that way cannot do the case."""
        answer = self._ask(case)
        found: list[float] | None = answer.get("samples")
        return found

    def _ask(self, question: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(question), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the rivals' process ended")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()

    def __enter__(self) -> Rivals:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@functools.lru_cache(maxsize=1)
def _values(data: str, rows: int, columns: int) -> Floats:
    return values_of(data, rows, columns)


def answer(question: dict[str, Any], kept: dict[tuple[Any, ...], Call | str]) -> dict[str, Any]:
    """One case; what it calls is made once, for as long as the shape and the data stay the same."""
    if "versions" in question:
        from importlib.metadata import version

        return {name: version(name) for name in (package.split("<")[0] for package in PACKAGES)}
    shape = (question["rows"], question["columns"], question["data"])
    if kept and next(iter(kept))[:3] != shape:
        kept.clear()
    key = (*shape, question["way"], question["sketch"])
    if key not in kept:
        try:
            kept[key] = WAYS[question["way"]](_values(question["data"], *shape[:2]), question["sketch"])
        except (NotImplementedError, ImportError) as error:
            kept[key] = str(error)
    call = kept[key]
    return {"absent": call} if isinstance(call, str) else {"samples": samples_us(call, question["seconds"])}


def main() -> None:
    kept: dict[tuple[Any, ...], Call | str] = {}
    said = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # packages print
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line), kept)), file=said, flush=True)


if __name__ == "__main__":
    main()
