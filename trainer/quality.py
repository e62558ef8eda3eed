"""Realised quality: how good the answers were that were given, per version, over the rows that have matured.

Rows mature with their whole cohort, so versions are compared at equal label age. Per version the newest WINDOW rows
count: what it was worth long ago says little about a stream that moves.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from trimtab.models.metrics import metrics_of
from trimtab.models.tasks import Task
from trimtab.trainer.dataset import Part

__all__ = ["Quality", "Realised"]

WINDOW = 5000
"""Rows of one version that are remembered."""
MOST_VERSIONS = 8
"""Versions that are remembered, the newest."""
LEAST_ROWS = 50
"""Fewer rows than this are not reported."""


@dataclass(frozen=True)
class Realised:
    """One version's quality."""

    version: int
    rows: int
    metrics: dict[str, float]


@dataclass
class _Window:
    predictions: list[NDArray[np.float32]] = field(default_factory=list)
    labels: list[NDArray[Any]] = field(default_factory=list)
    weights: list[NDArray[np.float32]] = field(default_factory=list)
    held: int = 0
    rows: int = 0
    """All that ever matured."""
    changed: bool = False


class Quality:
    """See the module. One thread."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._versions: dict[int, _Window] = {}

    def add(self, part: Part) -> None:
        """Takes matured rows with what was served for them; rows that nobody served do not count."""
        for version in np.unique(part.versions).tolist():
            if version <= 0:
                continue
            chosen = part.versions == version
            window = self._versions.setdefault(int(version), _Window())
            window.predictions.append(part.served[chosen])
            window.labels.append(part.table.labels[chosen])
            window.weights.append(part.table.weights[chosen])
            window.rows += int(chosen.sum())
            window.held += int(chosen.sum())
            window.changed = True
            while window.held - len(window.labels[0]) >= WINDOW:
                window.held -= len(window.labels[0])
                for values in (window.predictions, window.labels, window.weights):
                    values.pop(0)
        for version in sorted(self._versions)[:-MOST_VERSIONS]:
            del self._versions[version]

    def news(self) -> list[Realised]:
        """The versions whose quality changed since the last call."""
        found = []
        for version, window in self._versions.items():
            if window.changed and window.held >= LEAST_ROWS:
                window.changed = False
                metrics = metrics_of(self._task, *(np.concatenate(values) for values in _parts(window)))
                finite = {name: value for name, value in metrics.items() if np.isfinite(value)}
                found.append(Realised(version, window.rows, finite))
        return found

    def recent_loss(self) -> tuple[float, int]:
        """Mean realised loss of the newest version's window, and the rows behind it; (nan, 0) without any."""
        if not self._versions:
            return float("nan"), 0
        window = self._versions[max(self._versions)]
        predictions, labels, weights = (np.concatenate(values) for values in _parts(window))
        losses = self._task.losses_of(predictions, labels)
        return float(np.average(losses, weights=weights)), len(labels)


def _parts(window: _Window) -> tuple[list[Any], list[Any], list[Any]]:
    return window.predictions, window.labels, window.weights
