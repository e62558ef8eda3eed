"""Streams of rows with a truth that can be learned and that moves, as tables and encoded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from trimtab.store.project import Project
from trimtab.store.settings import ModelSettings
from trimtab.trainer.encode import TrainingTable, training_table

HOUR_US = 3_600_000_000


def make_model(task: str = "binary", **sections: dict[str, Any]) -> ModelSettings:
    """A project's model over two reals, a category and a key."""
    classes = {"binary": ["no", "yes"], "multiclass": ["a", "b", "c"], "regression": []}[task]
    model: dict[str, Any] = {
        "name": "m",
        "task": task,
        "feature": [
            {"name": "x", "type": "real", "transforms": ["impute", "piecewise_linear"]},
            {"name": "z", "type": "real", "transforms": ["impute", "standardise"]},
            {"name": "city", "type": "string", "transforms": ["vocabulary"]},
        ],
        "label": {"column": "y", "key": ["order"]},
        **sections,
    }
    if classes:
        model["classes"] = classes
    if task == "binary":
        model["positive"] = "yes"
    return Project.from_dict({"model": [model]}, "/").models[0]


def make_arrow(rows: int, task: str = "binary", *, seed: int = 0, shift: float = 0.0) -> pa.Table:
    """Rows whose label follows from x and city; `shift` moves what it follows from over the stream."""
    generator = np.random.default_rng(seed)
    x, z = generator.normal(size=(2, rows))
    city = generator.integers(0, 4, rows)
    moved = shift * np.arange(rows) / rows
    signal = 1.5 * np.tanh(2 * x) + np.array([-1.0, 0.0, 0.5, 1.0])[city] + moved
    noise = generator.logistic(size=rows)
    label: list[Any]
    if task == "binary":
        label = np.where(signal + noise > 0, "yes", "no").tolist()
    elif task == "multiclass":
        label = np.array(["a", "b", "c"])[np.digitize(signal + noise, [-1.0, 1.0])].tolist()
    else:
        label = (50.0 + 10.0 * (signal + 0.3 * noise)).tolist()
    names = np.array(["Oslo", "Bergen", "Tromsø", "Bodø"])[city].tolist()
    missing = generator.random(rows) < 0.05
    return pa.table(
        {
            "x": pa.array(x, mask=missing),
            "z": z,
            "city": names,
            "order": np.arange(rows),
            "y": label,
        }
    )


def make_table(rows: int, task: str = "binary", *, seed: int = 0, shift: float = 0.0) -> TrainingTable:
    """The same as a training table, ten rows an hour."""
    times: NDArray[np.int64] = np.arange(rows, dtype=np.int64) // 10 * HOUR_US
    return training_table(make_arrow(rows, task, seed=seed, shift=shift), make_model(task), time_us=times)
