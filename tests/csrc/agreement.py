"""The native decoder against the oracle, on any bytes."""

import itertools
import math
import unicodedata
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from trimtab._native import InferRequest, Schema, Slab, WireError, decode_infer
from trimtab.protos.v1 import inference_pb2 as pb

from . import oracle
from .oracle import Fields, Refused


def contents(slab: Slab) -> list[list[Any]]:
    """A slab as the oracle gives columns."""
    columns: list[list[Any]] = []
    for i, kind in enumerate(slab.schema.types):
        if kind == "string":
            offsets, text = slab.strings(i)
            columns.append([text[a:b].tobytes().decode() for a, b in itertools.pairwise(offsets)])
        elif kind == "integer":
            columns.append(slab.integers(i).tolist())
        else:
            columns.append(slab.reals(i).view(np.uint32).tolist())
    return columns


def canonical(columns: list[list[Any]]) -> list[list[Any]]:
    """NaNs made one: protobuf's own floats pass through a double, which may quieten or shorten a payload."""

    def one(value: Any) -> Any:
        if isinstance(value, int) and 0 <= value < 2**32:
            return "nan" if math.isnan(np.array([value], np.uint32).view(np.float32)[0]) else value
        return value

    return [[one(value) for value in column] for column in columns]


def assert_same_message(request: InferRequest, message: pb.ModelInferRequest) -> None:
    assert (request.model_name, request.model_version, request.id) == (
        message.model_name,
        message.model_version,
        message.id,
    )
    assert request.inputs == [(tensor.name, tensor.datatype, tuple(tensor.shape)) for tensor in message.inputs]
    assert request.requested_outputs == [output.name for output in message.outputs]
    expected = {key: oracle.value_of(value) for key, value in message.parameters.items()}
    assert repr_of(request.parameters) == repr_of({key: value for key, value in expected.items() if value is not None})


def repr_of(parameters: dict[str, Any]) -> dict[str, str]:
    return {key: repr(value) for key, value in parameters.items()}  # tells True from 1 and takes NaN as equal


def assert_agrees(body: bytes, fields: Fields, *, lenient: bool) -> str:
    """Decode, check and append as the oracle does, or raise WireError. What came of it, for counting.

    lenient: the native decoder may refuse bytes that protobuf takes (groups, varints past 64 bits, its limits), but it
    never takes what protobuf refuses.
    """
    try:
        message = pb.ModelInferRequest.FromString(body)
    except DecodeError:
        message = None
    try:
        request = decode_infer(body)
    except WireError:
        assert lenient or message is None
        return "malformed"
    assert message is not None, "protobuf refuses what was decoded"
    assert_same_message(request, message)

    schema = Schema(fields.names, fields.types, fields.keys)
    slab = Slab(schema)
    try:
        expected = oracle.columns(message, fields)
    except Refused:
        with pytest.raises(WireError) as caught:
            request.check(schema)
        assert not any(unicodedata.category(character) == "Cc" for character in str(caught.value))
        return "refused"
    assert request.check(schema) == request.rows == len(expected[0])
    request.append_to(slab)
    assert slab.rows == request.rows
    assert canonical(contents(slab)) == canonical(expected)
    return "taken"
