"""Rows on their way to a segment: what `offer` copies into, and how it becomes an Arrow record batch.

A Pending is filled by the compute thread under the writer's lock, handed over whole, and turned into a batch by the
writer thread. The batch shares no memory with it, so it is emptied and filled again: pages that are there already cost
the compute thread nothing.

Columns of a segment: _request_id fixed_size_binary(16), _row int32 (place in the request), _time timestamp[us, UTC]
(data time), _version int32, _inclusion float32 (see sampling.py), the fields as received under their own names,
_prediction float32, or fixed_size_list<float32>[K] where the model has K > 1 outputs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from trimtab._native import Schema, Slab
from trimtab.kernels.slabs import array_of, slab_to_arrow

__all__ = ["Pending", "arrow_schema"]

_ARROW_TYPES = {"real": pa.float32(), "boolean": pa.bool_(), "integer": pa.int64(), "string": pa.utf8()}
_TIME = pa.timestamp("us", tz="UTC")
_FORMAT: dict[bytes | str, bytes | str] = {"trimtab.format": "1"}
_SIDE = [("id", "u1", (16,)), ("row", "i4"), ("time", "i8"), ("version", "i4"), ("inclusion", "f4")]


def arrow_schema(schema: Schema, prediction_width: int) -> pa.Schema:
    """The columns of a segment of rows with these fields and K = prediction_width outputs."""
    fields = [
        pa.field("_request_id", pa.binary(16), nullable=False),
        pa.field("_row", pa.int32(), nullable=False),
        pa.field("_time", _TIME, nullable=False),
        pa.field("_version", pa.int32(), nullable=False),
        pa.field("_inclusion", pa.float32(), nullable=False),
        *(pa.field(name, _ARROW_TYPES[kind]) for name, kind in zip(schema.names, schema.types, strict=True)),
        pa.field("_prediction", _prediction_type(prediction_width), nullable=False),
    ]
    return pa.schema(fields, metadata=_FORMAT)


class Pending:
    """Up to `limit` rows. Not thread-safe."""

    def __init__(self, schema: Schema, prediction_width: int, limit: int) -> None:
        self.rows = 0
        self.limit = limit
        self._slab = Slab(schema)
        self._width = prediction_width
        self._side = np.empty(min(limit, 256), np.dtype([*_SIDE, ("prediction", "f4", (prediction_width,))]))

    def append(
        self,
        slab: Slab,
        take: slice | NDArray[np.int32],
        request_ids: NDArray[np.uint8],
        rows: NDArray[np.int32],
        time_us: NDArray[np.int64],
        version: int,
        inclusion: NDArray[np.float32],
        predictions: NDArray[np.float32],
    ) -> None:
        """Copies the rows of the slab that `take` picks (a slice has both ends), and what the arrays have of just
        those. There must be room."""
        if isinstance(take, slice):
            self._slab.extend(slab, None, take.start, take.stop)
        else:
            self._slab.extend(slab, take)
        end = self.rows + len(inclusion)
        if end > len(self._side):
            grown = np.empty(min(self.limit, max(end, 2 * len(self._side))), self._side.dtype)
            grown[: self.rows] = self._side[: self.rows]
            self._side = grown
        side = self._side[self.rows : end]
        side["id"] = request_ids
        side["row"] = rows
        side["time"] = time_us
        side["version"] = version
        side["inclusion"] = inclusion
        side["prediction"] = predictions
        self.rows = end

    def clear(self) -> None:
        """Forgets the rows, and keeps the memory."""
        self.rows = 0
        self._slab.clear()

    def to_batch(self, schema: pa.Schema) -> pa.RecordBatch:
        """A copy of the rows, with arrow_schema's columns."""
        side = self._side[: self.rows]
        predictions: Any = array_of(pa.float32(), side["prediction"].reshape(-1))
        if self._width > 1:
            predictions = pa.FixedSizeListArray.from_arrays(predictions, type=_prediction_type(self._width))
        ids = pa.py_buffer(side["id"].tobytes())
        columns = [
            pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), self.rows, [None, ids]),
            array_of(pa.int32(), side["row"]),
            array_of(_TIME, side["time"]),
            array_of(pa.int32(), side["version"]),
            array_of(pa.float32(), side["inclusion"]),
            *slab_to_arrow(self._slab),
            predictions,
        ]
        return pa.RecordBatch.from_arrays(columns, schema=schema)


def _prediction_type(width: int) -> Any:
    return pa.float32() if width == 1 else pa.list_(pa.field("item", pa.float32(), nullable=False), width)
