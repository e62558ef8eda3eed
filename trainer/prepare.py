"""A table made ready for a search: checked, cut by time, its columns fitted, encoded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from trimtab.kernels.cpu import CpuExecutor
from trimtab.kernels.fit import default_transforms, fit_program
from trimtab.kernels.program import ColumnProgram, Field
from trimtab.kernels.schema import FeatureSpec
from trimtab.kernels.sketch_spec import DEFAULT_PREDICTION_EDGES, SketchSpec
from trimtab.models.tasks import Task
from trimtab.trainer.encode import EncodedRows, TrainingTable
from trimtab.trainer.errors import RowsUnfit

__all__ = ["check_rows", "encoded", "newest_block", "program_for", "thinned", "with_defaults"]

MIN_ROWS = 100
TOO_LARGE = 1e12


def check_rows(table: TrainingTable, task: Task) -> None:
    if len(table) < MIN_ROWS:
        raise RowsUnfit(f"{len(table)} labelled rows to train on; at least {MIN_ROWS} are needed")
    distinct = np.unique(table.labels)
    if task.kind != "regression" and len(distinct) < 2:
        raise RowsUnfit(f"all {len(table)} labelled rows are {task.decode_label(distinct[0])!r}: nothing to learn")
    if not np.isfinite(table.weights).all() or (table.weights < 0).any() or table.weights.sum() <= 0:
        raise RowsUnfit("weights: expected finite numbers >= 0, not all 0")


def newest_block(time_us: NDArray[np.int64], share: float) -> int:
    """Where the newest `share` of the rows begins, moved so that no time lies on both sides where that can be had."""
    rows = len(time_us)
    wanted = min(max(round(rows * (1.0 - share)), 1), rows - 1)
    at = int(np.searchsorted(time_us, time_us[wanted], "left"))
    if at < rows // 4:
        at = int(np.searchsorted(time_us, time_us[wanted], "right"))
    return at if rows // 4 <= at < rows else wanted


def thinned(rows: EncodedRows, most: int) -> EncodedRows:
    """At most so many of the rows, evenly over time."""
    if len(rows) <= most:
        return rows
    return rows.take(np.linspace(0, len(rows) - 1, most).astype(np.int64))


def with_defaults(spec: FeatureSpec, table: TrainingTable) -> FeatureSpec:
    if spec.transforms:
        return spec
    distinct = 0
    if spec.type == "integer":
        distinct = len(np.unique(table.slab.integers(table.slab.schema.names.index(spec.name))))
    return FeatureSpec(spec.name, spec.type, default_transforms(spec.type, distinct))


def program_for(
    table: TrainingTable, specs: Sequence[FeatureSpec], task: Task, sketch: SketchSpec | None
) -> ColumnProgram:
    schema = table.slab.schema
    features = len(schema.names) - schema.keys
    keys = [
        Field(name, kind)  # type: ignore[arg-type]  # the schema's types are field types
        for name, kind in zip(schema.names[features:], schema.types[features:], strict=True)
    ]
    edges: Sequence[float] = DEFAULT_PREDICTION_EDGES
    if task.kind == "regression":
        quantiles = np.quantile(table.labels, np.arange(1, 32) / 32, method="inverted_cdf").astype(np.float32)
        edges = [float(edge) for edge in np.unique(quantiles)]
    return fit_program(specs, table.batches, keys=keys, sketch=sketch, prediction_edges=edges)


def encoded(table: TrainingTable, program: ColumnProgram) -> EncodedRows:
    rows = table.encode(CpuExecutor(program))
    # Executors never emit NaN or infinities, but an unclipped infinity leaves them as the largest float32.
    largest = np.abs(rows.features).max(axis=0, initial=0.0)
    if (largest > TOO_LARGE).any():
        name = program.feature_names[int(np.argmax(largest))]
        raise RowsUnfit(f"feature {name!r} has values beyond {TOO_LARGE:g} after its transforms: add clip to its chain")
    return rows
