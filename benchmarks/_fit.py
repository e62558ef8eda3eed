"""Fits for ever, as the trainer does beside a server: its recipe, one thread, as nice as the supervisor makes it.

Prints a line before each fit. Stopped and continued by signals from a benchmark.
"""

from __future__ import annotations

import os

import numpy as np
import pyarrow as pa
import torch
from trimtab.kernels.fit import fit_program
from trimtab.kernels.schema import FeatureSpec, Transform
from trimtab.models.tasks import Task
from trimtab.trainer.encode import EncodedRows
from trimtab.trainer.recipe import Recipe, fit_recipe

ROWS, FEATURES, NICE = 20_000, 32, 10


def main() -> None:
    os.nice(NICE)
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    values = rng.normal(size=(ROWS, FEATURES)).astype(np.float32)
    table = pa.RecordBatch.from_pydict({f"x{i}": values[:, i] for i in range(FEATURES)})
    chain = (Transform("impute"), Transform("standardise"))
    program = fit_program([FeatureSpec(f"x{i}", "real", chain) for i in range(FEATURES)], lambda: iter([table]))
    features = np.zeros((ROWS, program.n_features), np.float32)
    features[:, :FEATURES] = values
    labels = (values[:, 0] > 0).astype(np.float32)
    times = np.arange(ROWS, dtype=np.int64)
    rows = EncodedRows(features, np.zeros((ROWS, 0), np.int64), labels, np.ones(ROWS, np.float32), times)
    seed = 0
    while True:
        print(seed, flush=True)
        fit_recipe(Recipe(widths=(128,)), rows, program, Task.of("binary", ["no", "yes"], "yes"), seed)
        seed += 1


if __name__ == "__main__":
    main()
