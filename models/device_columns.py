"""The intake of raw rows: a graph that begins with the columns and the sketch (kernels/cuda_graph.py), so that a batch
is one copy in, one replay, one copy out.

Features and ids are in memory of their own on the device, which all buckets share: a graph's first kernel writes them,
its next ones read them there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from trimtab._native import Slab
from trimtab.kernels.cuda_graph import GraphColumns
from trimtab.kernels.device import Executor
from trimtab.kernels.sketch import Sketch
from trimtab.models.graphs import Example, Inputs, Slot
from trimtab.models.machine import Machine
from trimtab.models.made_up import made_up_rows

if TYPE_CHECKING:
    from trimtab.models.version import LoadedVersion

__all__ = ["DeviceColumns"]


class DeviceColumns:
    """See the module, and graphs.Intake."""

    def __init__(self, columns: GraphColumns, machine: Machine, most: int) -> None:
        """For batches of up to `most` rows of the columns' program."""
        program = columns.program
        self._columns = columns
        self._width = program.n_features
        features = machine.memory(4 * most * columns.pitch).view(torch.float32)
        self._features = features.view(most, columns.pitch)
        self._ids = machine.memory(8 * most * program.n_ids).view(torch.int64).view(most, program.n_ids)

    @property
    def bytes(self) -> int:
        """See Intake."""
        return self._features.nbytes + self._ids.nbytes + self._columns.nbytes

    def size(self, rows: int) -> int:
        """See Intake."""
        return self._columns.size(rows)

    def slot(self, host: Tensor, rows: int) -> Slot:
        """See Intake."""
        return _Slot(host[: self.size(rows)], rows)

    def inputs(self, device: Tensor, rows: int) -> Inputs:
        """See Intake."""
        launch = self._columns.launcher(rows, device.data_ptr(), self._features.data_ptr(), self._ids.data_ptr())
        features, ids = self._features[:rows, : self._width], self._ids[:rows]

        def made() -> tuple[Tensor, Tensor]:
            launch()
            return features, ids

        return made

    def writer(
        self, executor: Executor, slab: Slab, sketch: Sketch | None, start: int, stop: int
    ) -> Callable[..., object]:
        """See Intake."""
        return lambda buffer, rows: self._columns.write(buffer, rows, slab, sketch, start, stop)

    def example(self, version: LoadedVersion, n: int) -> Example:
        """See Intake."""
        slab = made_up_rows(version.program.schema, n)
        features, ids = version.executor.run(slab)
        return self.writer(version.executor, slab, None, 0, n), torch.from_numpy(features), torch.from_numpy(ids)

    def close(self) -> Callable[[], None]:
        """See Intake."""
        return self._columns.close()


class _Slot:
    def __init__(self, host: Tensor, rows: int) -> None:
        self._buffer, self._rows = host.numpy(), rows

    def open(self, n: int) -> tuple[Any, ...]:
        return self._buffer, self._rows

    def close(self, n: int) -> None:
        """The header says how many rows there are."""
