"""What a replay reads from its server's state when it is over: whether every answer was what its version computes,
the versions with their verdicts, drift, and how many labels found their rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from trimtab._native import Slab
from trimtab.cli.replay_data import Stream
from trimtab.cli.replay_run import Played
from trimtab.models.errors import ModelError
from trimtab.models.version import load_version
from trimtab.store.errors import StoreError
from trimtab.store.files import read_lines
from trimtab.store.project import ModelPaths
from trimtab.store.versions import VersionStore

__all__ = ["TOLERANCE", "drift_windows", "joined_labels", "mixed_answers", "predictions_of", "version_rows"]

TOLERANCE = 1e-4
"""How far an answer may be from the version's own prediction: batches of other sizes round differently."""
_BATCH = 16_384


def predictions_of(store: VersionStore, number: int, slab: Slab, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """float32 [n, K]: what a version predicts for these rows of a slab. Raises VersionUnfit."""
    version = load_version(store, number)
    part, found = Slab(slab.schema), []
    for start in range(0, len(rows), _BATCH):
        part.clear()
        part.extend(slab, rows[start : start + _BATCH].astype(np.int32))
        found.append(version.predict(part))
    return np.concatenate(found) if found else np.zeros((0, version.task.width), np.float32)


def mixed_answers(paths: ModelPaths, stream: Stream, played: Played) -> int:
    """Answers with a row that the version they claim does not compute, or with another version's weights.

    Each claimed version is loaded from the state and predicts its rows again. Raises StoreError."""
    store = VersionStore(paths.versions)
    mixed = 0
    for number in sorted({version for _, _, version, _ in played.claims}):
        claims = [claim for claim in played.claims if claim[2] == number]
        rows = np.concatenate([np.arange(start, stop) for start, stop, _, _ in claims])
        try:
            weights = store.manifest(number).weights
            expected = predictions_of(store, number, stream.slab, rows + stream.start)
        except (StoreError, ModelError):
            mixed += len(claims)  # It cannot have been this version.
            continue
        wrong = ~(np.abs(played.predictions[rows] - expected) <= TOLERANCE).all(axis=1)
        owner = np.repeat(np.arange(len(claims)), [stop - start for start, stop, _, _ in claims])
        rows_wrong = np.bincount(owner, weights=wrong, minlength=len(claims)) > 0
        named_wrong = np.array([claim[3] != weights for claim in claims])
        mixed += int((rows_wrong | named_wrong).sum())
    return mixed


def version_rows(paths: ModelPaths, played: Played) -> list[dict[str, Any]]:
    """Every version: its last verdict and reason, when in data time, what it was trained on, and rows it served."""
    store = VersionStore(paths.versions)
    served = dict(zip(*(part.tolist() for part in np.unique(played.versions, return_counts=True)), strict=True))
    published = set(store.numbers())
    found: dict[int, dict[str, Any]] = {}
    for line in store.decisions():
        manifest = store.manifest(line.version) if line.version in published else None
        trained = manifest.rows_trained if manifest is not None else int(line.metrics.get("rows_trained", 0))
        found[line.version] = {
            "version": line.version,
            "verdict": line.verdict,
            "reason": line.reason,
            "recipe": line.recipe,
            "rows_trained": trained,
            "rows_served": int(served.get(line.version, 0)),
            "data_time_us": int(line.metrics.get("data_time_us", 0)),
            "difference": line.metrics.get("difference"),
            "low": line.metrics.get("low"),
            "high": line.metrics.get("high"),
            "parent": manifest.parent if manifest is not None else None,
            "weights": manifest.weights if manifest is not None else "",
        }
    return [found[number] for number in sorted(found)]


def drift_windows(paths: ModelPaths) -> list[dict[str, Any]]:
    """Every closed window: its time and rows, each feature's effect (PSI), and the features that alarmed."""
    from trimtab.kernels.drift import DriftWindow

    found = []
    for text in read_lines(paths.drift):
        window = DriftWindow.from_json(text.decode())
        effects = {}
        for feature in window.features:
            by_name = {statistic.name: statistic.effect for statistic in feature.statistics}
            effects[feature.feature] = by_name.get("psi", 0.0)
        found.append(
            {
                "window": window.window,
                "start_us": window.start_us,
                "end_us": window.end_us,
                "rows": window.rows,
                "effects": effects,
                "alarms": list(window.alarms),
            }
        )
    return found


def joined_labels(stream: Stream, paths: ModelPaths, end_us: int) -> int:
    """How many labels the trainer had joined to their rows at this data time. Reads the state again as the trainer
    would. Raises StoreError."""
    from trimtab.trainer.dataset import Dataset

    dataset = Dataset(stream.model, paths)
    try:
        dataset.advance(end_us)
        return dataset.counts["matched"]
    finally:
        dataset.close()
