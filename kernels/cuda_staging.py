"""What the host makes of a batch before it goes to the GPU: all columns and the ids of texts in one buffer, so that one
copy brings them there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from trimtab._native import ColumnTable, Slab
from trimtab.kernels.cpu import CpuExecutor
from trimtab.kernels.cuda_tables import Compiled
from trimtab.kernels.program import ColumnProgram

ALIGNED = 16  # bytes: what the kernel's vector loads need
Array = NDArray[Any]


class Stager:
    """Stages batches of one program."""

    def __init__(self, compiled: Compiled) -> None:
        program = compiled.program
        self._types = [field.type for field in program.fields]
        self._features = len(program.fields) - program.keys
        staged = ColumnProgram(program.fields, compiled.staged, program.sketch, program.keys)
        self._texts = CpuExecutor(staged) if compiled.staged else None

    @property
    def n_texts(self) -> int:
        """Columns of ids that the host makes."""
        return 0 if self._texts is None else self._texts.program.n_ids

    def texts(self, rows: Slab | ColumnTable, start: int, stop: int, threads: int = 1) -> list[Array]:
        """The ids that the host makes of texts of the rows [start, stop), one int32 array a column of them."""
        if self._texts is None:
            return []
        _, ids = self._texts.run(rows, None, start, stop, threads=threads)
        return list(np.ascontiguousarray(ids.T.astype(np.int32)))

    def columns(self, rows: Slab | ColumnTable, start: int, stop: int, threads: int) -> list[Array | None]:
        """One array of the rows [start, stop) a field, None for texts and keys, then int32 ids of texts."""
        values: Any = rows.values if isinstance(rows, ColumnTable) else _columns_of(rows)
        found: list[Array | None] = []
        for i, (kind, column) in enumerate(zip(self._types, values, strict=True)):
            found.append(None if kind == "string" or i >= self._features else column[start:stop])
        return found + self.texts(rows, start, stop, threads)


def packed_size(columns: Sequence[Array | None]) -> int:
    """Bytes that `packed` takes."""
    return _offsets(columns)[-1]


def packed(columns: Sequence[Array | None], address: int) -> NDArray[np.uint8]:
    """The columns' addresses, for a buffer that will lie at `address`, then the columns, each at a multiple of 16
    bytes; None has no place."""
    *offsets, end = _offsets(columns)
    buffer = np.zeros(end, np.uint8)
    buffer[: 8 * len(columns)] = np.asarray([address + offset for offset in offsets], np.uint64).view(np.uint8)
    for offset, column in zip(offsets, columns, strict=True):
        if column is not None:
            buffer[offset : offset + column.nbytes] = column.view(np.uint8)
    return buffer


def _offsets(columns: Sequence[Array | None]) -> list[int]:
    """Where each begins, and the end."""
    offsets = [_rounded(8 * len(columns))]
    for column in columns:
        offsets.append(offsets[-1] + (0 if column is None else _rounded(column.nbytes)))
    return offsets


def _rounded(nbytes: int) -> int:
    return -(-nbytes // ALIGNED) * ALIGNED


def _columns_of(slab: Slab) -> list[Any]:
    kinds = slab.schema.types
    return [
        slab.integers(i) if kind == "integer" else None if kind == "string" else slab.reals(i)
        for i, kind in enumerate(kinds)
    ]
