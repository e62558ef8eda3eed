"""Requests and answers of a replay, as bytes: columns are brought into wire form once, a request is a few slices.

One tensor a field, raw contents: FP32 for reals and booleans (missing: NaN), INT64 for integers (missing: INT64_MIN),
BYTES with a four-byte length before each string (missing: empty).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from trimtab._native import Slab
from trimtab.cli.errors import UserError
from trimtab.protos.v1 import inference_pb2 as pb

__all__ = ["Answer", "RequestEncoder", "read_answer"]

_DATATYPES = {"real": "FP32", "boolean": "FP32", "integer": "INT64", "string": "BYTES"}


class RequestEncoder:
    """Makes the ModelInferRequest for rows [start, stop) of a slab."""

    def __init__(self, model: str, slab: Slab) -> None:
        self._model = model
        self._columns: list[tuple[str, str, memoryview, NDArray[np.int64] | int]] = []
        for place, (name, kind) in enumerate(zip(slab.schema.names, slab.schema.types, strict=True)):
            data, where = _column(slab, place, kind)
            self._columns.append((name, _DATATYPES[kind], memoryview(data), where))

    def request(self, start: int, stop: int, time_us: int | None = None) -> bytes:
        """The serialised request; `time_us` is the rows' data time."""
        request = pb.ModelInferRequest(model_name=self._model)
        shape = (stop - start, 1)
        for name, datatype, data, where in self._columns:
            request.inputs.add(name=name, datatype=datatype, shape=shape)
            low, high = (start * where, stop * where) if isinstance(where, int) else (where[start], where[stop])
            request.raw_input_contents.append(bytes(data[low:high]))
        if time_us is not None:
            request.parameters["trimtab_time_us"].int64_param = time_us
        return request.SerializeToString()


@dataclass(frozen=True)
class Answer:
    """What a request's answer says."""

    version: int
    weights: str
    request_id: str
    predictions: NDArray[np.float32]
    """[rows, K]"""


def read_answer(body: bytes, rows: int) -> Answer:
    """Reads a ModelInferResponse. Raises UserError where it is not one to so many rows."""
    response = pb.ModelInferResponse.FromString(body)
    parameters = response.parameters
    contents = response.raw_output_contents
    predictions = np.frombuffer(contents[0], np.float32) if contents else np.zeros(0, np.float32)
    if not len(predictions) or len(predictions) % rows:
        raise UserError(f"the server's answer to {rows} rows has {len(predictions)} numbers")
    return Answer(
        int(response.model_version),
        parameters["trimtab_weights"].string_param if "trimtab_weights" in parameters else "",
        parameters["trimtab_request_id"].string_param if "trimtab_request_id" in parameters else "",
        predictions.reshape(rows, -1),
    )


def _column(slab: Slab, place: int, kind: str) -> tuple[bytes, NDArray[np.int64] | int]:
    """A column's bytes, and where rows begin in them: bytes a row, or offsets [rows + 1]."""
    if kind == "integer":
        return slab.integers(place).astype("<i8").tobytes(), 8
    if kind != "string":
        return slab.reals(place).astype("<f4").tobytes(), 4
    offsets, text = slab.strings(place)
    return _prefixed(np.asarray(offsets, np.int64), np.asarray(text))


def _prefixed(offsets: NDArray[np.int64], text: NDArray[Any]) -> tuple[bytes, NDArray[np.int64]]:
    rows = len(offsets) - 1
    where = offsets + 4 * np.arange(rows + 1)
    out = np.empty(int(where[-1]), np.uint8)
    lengths = np.diff(offsets).astype("<u4").view(np.uint8).reshape(rows, 4)
    prefix = where[:-1, None] + np.arange(4)
    out[prefix.ravel()] = lengths.ravel()
    is_text = np.ones(len(out), np.bool_)
    is_text[prefix.ravel()] = False
    out[is_text] = text
    return out.tobytes(), where
