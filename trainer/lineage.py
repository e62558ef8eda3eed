"""What the trainer remembers of one model between retrainings, in `trainer/state.json`: written aside and renamed.

The lineage is the challenger that refreshes continue, and the evidence gathered about it since the live version last
changed. Both lie in files that the state names; a workflow writes new ones and changes the state as its last act, so
that a workflow that dies leaves the old lineage whole.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from trimtab.store.errors import StoreError
from trimtab.store.files import os_errors, write_atomic

__all__ = ["EvidenceRows", "TrainerState"]

STATE = "state.json"


class TrainerState(BaseModel):
    """See the module. A new one is made for every change."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    marks: int = 0
    """Matured cohorts that a workflow has consumed."""
    snapshot: str = ""
    """Content hash of all rows consumed."""
    live: int = 0
    """The version that the lineage challenges; 0: none yet."""
    challenger: str = ""
    """File of the challenger's state, relative to the trainer's folder; empty: it starts from the live version."""
    evidence: str = ""
    """File of the evidence, likewise; empty: none yet."""
    last_workflow: str = ""
    """The workflow whose outcome this is."""
    workflows: int = 0
    data_time_us: int = -(1 << 62)
    """The newest data time that was heard of."""
    started_us: int | None = None
    retrained_us: int | None = None
    searched_us: int | None = None
    alarms: tuple[str, ...] = ()
    """Features whose drift alarmed since the last retraining."""
    drift_window: int = -1
    """The newest drift window that was taken in."""
    expected_loss: float | None = None
    """Mean loss of the live version's rows when it went live."""

    @classmethod
    def load(cls, folder: Path) -> TrainerState:
        """The state in the trainer's folder; a new one where there is none. Raises StoreError where it is damaged."""
        path = folder / STATE
        with os_errors("read", path):
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                return cls()
        try:
            return cls.model_validate_json(data)
        except ValueError as error:
            raise StoreError(
                f"{path} cannot be read; delete it and the trainer starts from the live version"
            ) from error

    def save(self, folder: Path) -> None:
        """Durable when it returns. Raises StoreError."""
        with os_errors("write", folder / STATE):
            folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / STATE, self.model_dump_json(indent=1).encode() + b"\n")

    def with_(self, **changes: Any) -> TrainerState:
        """A copy with these fields changed."""
        return self.model_copy(update=changes)


class EvidenceRows:
    """Paired losses and what belongs to them, one entry per row, oldest first. Immutable."""

    def __init__(
        self,
        challenger: NDArray[np.float64],
        live: NDArray[np.float64],
        time_us: NDArray[np.int64],
        weights: NDArray[np.float32],
        positions: NDArray[np.int64],
    ) -> None:
        """`positions`: of the rows in the dataset, for slices and baselines."""
        self.challenger, self.live, self.time_us = challenger, live, time_us
        self.weights, self.positions = weights, positions

    @classmethod
    def empty(cls) -> EvidenceRows:
        """No rows."""
        none = np.zeros(0)
        return cls(none, none, np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.int64))

    def __len__(self) -> int:
        return len(self.challenger)

    def joined(self, other: EvidenceRows) -> EvidenceRows:
        """This followed by the other."""
        mine, theirs = self.arrays(), other.arrays()
        return EvidenceRows(**{name: np.concatenate([mine[name], theirs[name]]) for name in mine})

    def arrays(self) -> dict[str, NDArray[Any]]:
        """By name."""
        return {
            "challenger": self.challenger,
            "live": self.live,
            "time_us": self.time_us,
            "weights": self.weights,
            "positions": self.positions,
        }

    def to_bytes(self) -> bytes:
        """As safetensors."""
        return save_arrays({name: np.ascontiguousarray(values) for name, values in self.arrays().items()})

    @classmethod
    def from_bytes(cls, data: bytes) -> EvidenceRows:
        """What `to_bytes` wrote. Raises StoreError."""
        try:
            arrays: Mapping[str, NDArray[Any]] = load_arrays(data)
            return cls(**arrays)
        except (SafetensorError, TypeError, ValueError) as error:
            raise StoreError(f"evidence cannot be read: {error}") from error

    @classmethod
    def load(cls, path: Path) -> EvidenceRows:
        """From a file. Raises StoreError."""
        with os_errors("read", path):
            return cls.from_bytes(path.read_bytes())


def remove_files(folder: Path, keep: set[str]) -> None:
    """Removes lineage files that no state names any more."""
    for entry in os.scandir(folder):
        if entry.name.endswith(".safetensors") and entry.name not in keep:
            os.unlink(entry.path)
