"""The rows that are trained on, on the device: features, ids, labels and weights, in the dataset's order.

A dataset only grows, so rows that are there stay, and each refresh uploads what is new, in pieces. Memory grows by half
at a time. What would take more than the device has room for is not held (`hold` says so); rows are then gathered on the
host, batch by batch. Holding only the newest would be easy, and would change which rows are drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from trimtab.trainer.device_machine import TrainingMachine
from trimtab.trainer.encode import EncodedRows, RowSource
from trimtab.trainer.pace import PACE

__all__ = ["PIECE", "DeviceRows", "Resident", "rows_on"]

PIECE = 16_384
"""Rows that are encoded and uploaded at a time: some milliseconds of work, then the trainer may rest."""


@dataclass(frozen=True)
class DeviceRows:
    """Rows as tensors [n, …]: features f32 [n, F], ids i64 [n, C], labels [n], weights f32 [n]."""

    features: Tensor
    ids: Tensor
    labels: Tensor
    weights: Tensor

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """All four, in this order."""
        return self.features, self.ids, self.labels, self.weights

    def slice(self, start: int, stop: int) -> DeviceRows:
        """Rows [start, stop), as views."""
        return DeviceRows(*(part[start:stop] for part in self.parts))

    def copy_(self, rows: EncodedRows | DeviceRows) -> None:
        """Takes over as many rows as these are."""
        parts = rows.parts if isinstance(rows, DeviceRows) else _tensors(rows)
        for to, source in zip(self.parts, parts, strict=True):
            to.copy_(source)

    def gather_(self, source: DeviceRows, positions: Tensor) -> None:
        """Takes over the source's rows at positions i64 [n]."""
        for to, values in zip(self.parts, source.parts, strict=True):
            torch.index_select(values, 0, positions, out=to)


def rows_on(device: torch.device, n: int, like: EncodedRows) -> DeviceRows:
    """n rows of zeros on the device, of the shapes and dtypes of `like`."""
    return DeviceRows(*(torch.zeros((n, *part.shape[1:]), dtype=part.dtype, device=device) for part in _tensors(like)))


class Resident:
    """See the module."""

    def __init__(self, machine: TrainingMachine) -> None:
        self._machine = machine
        self._rows: DeviceRows | None = None
        self._capacity = 0
        self.count = 0
        """Rows that are there."""

    @property
    def rows(self) -> DeviceRows:
        """All of them; only after `hold` said so."""
        assert self._rows is not None
        return self._rows.slice(0, self.count)

    def hold(self, history: RowSource, new: EncodedRows) -> bool:
        """Has the history and the rows after it on the device; whether there is room for them. What was there must be
        of the same rows."""
        total = len(history) + len(new)
        if total < self.count:
            self.count = 0  # another history
        if total > self._capacity and not self._grow(total, new):
            return False
        assert self._rows is not None
        for start in range(self.count, len(history), PIECE):
            stop = min(start + PIECE, len(history))
            self._rows.slice(start, stop).copy_(history.take(np.arange(start, stop, dtype=np.int64)))
            self._machine.wait()
            PACE.rest()
        first = max(self.count, len(history))
        self._rows.slice(first, total).copy_(new.slice(first - len(history), len(new)))
        self._machine.wait()
        self.count = total
        return True

    def _grow(self, total: int, like: EncodedRows) -> bool:
        row = sum(part[:1].nbytes for part in (like.features, like.ids, like.labels, like.weights))
        room = self._machine.room()
        # What is there and what takes its place are there at the same time.
        capacity = next((n for n in (max(total, self._capacity * 3 // 2), total) if n * row <= room), 0)
        if not capacity:
            self._rows, self._capacity, self.count = None, 0, 0
            return False
        rows = rows_on(self._machine.device, capacity, like)
        if self._rows is not None:
            rows.slice(0, self.count).copy_(self._rows.slice(0, self.count))
        self._rows, self._capacity = rows, capacity
        return True


def _tensors(rows: EncodedRows) -> tuple[Tensor, ...]:
    found: list[Tensor] = []
    for part in (rows.features, rows.ids, rows.labels, rows.weights):
        values: NDArray[np.generic] = np.ascontiguousarray(part)
        found.append(torch.from_numpy(values))
    return tuple(found)
