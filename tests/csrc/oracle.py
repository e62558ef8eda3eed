"""What a ModelInferRequest means for a schema, written on the official protobuf: the oracle of the native decoder.

Separate code, slow and plain: a parsed message in, columns as plain lists out, or Refused.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from trimtab.protos.v1 import inference_pb2 as pb

MISSING = -(2**63)
LISTS = {
    "BOOL": "bool_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
ALL_LISTS = [field.name for field in pb.InferTensorContents.DESCRIPTOR.fields]
DTYPES = {"BOOL": "?", "INT32": "<i4", "INT64": "<i8", "FP32": "<f4", "FP64": "<f8"}
NUMERIC = set(DTYPES)
INTEGERS = {"timeout", "priority"}


class Refused(Exception):
    """The request is none for this schema."""


@dataclass(frozen=True)
class Fields:
    """A schema as plain data."""

    names: list[str]
    types: list[str]
    keys: int = 0

    @property
    def features(self) -> int:
        return len(self.names) - self.keys


def require(condition: bool) -> None:
    if not condition:
        raise Refused


def value_of(parameter: pb.InferParameter) -> Any:
    choice = parameter.WhichOneof("parameter_choice")
    return getattr(parameter, choice) if choice else None


def check_parameters(message: pb.ModelInferRequest) -> None:
    for tensor in [*message.inputs, *message.outputs]:
        for key, parameter in tensor.parameters.items():
            require(parameter.WhichOneof("parameter_choice") is not None)
            require(not key.startswith("shared_memory_"))
            require(key != "classification" or not value_of(parameter))
    for key, parameter in message.parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        require(choice is not None)
        if key.startswith("trimtab_"):
            require(key == "trimtab_time_us" and choice == "int64_param")
        if key.startswith("triton_"):
            require(key == "triton_enable_empty_final_response" and choice == "bool_param")
        require(key not in ("sequence_id", "sequence_start", "sequence_end") or not value_of(parameter))
        if key in INTEGERS:
            require(choice in ("int64_param", "uint64_param") and value_of(parameter) >= 0)
    names = [output.name for output in message.outputs]
    require(len(set(names)) == len(names))


def elements(message: pb.ModelInferRequest, index: int) -> list[Any]:
    """The elements of an input as Python values, FP32 as exact doubles."""
    tensor = message.inputs[index]
    if not message.raw_input_contents:
        require(all(not getattr(tensor.contents, name) for name in ALL_LISTS if name != LISTS[tensor.datatype]))
        return list(getattr(tensor.contents, LISTS[tensor.datatype]))
    require(not tensor.HasField("contents"))
    raw = message.raw_input_contents[index]
    if tensor.datatype == "BYTES":
        return strings(raw)
    if tensor.datatype == "BOOL":
        require(all(byte in (0, 1) for byte in raw))
    dtype = np.dtype(DTYPES[tensor.datatype])
    require(len(raw) % dtype.itemsize == 0)
    values: list[Any] = np.frombuffer(raw, dtype).tolist()
    return values


def strings(raw: bytes) -> list[bytes]:
    values = []
    while raw:
        require(len(raw) >= 4)
        size = int.from_bytes(raw[:4], "little")
        require(len(raw) >= 4 + size)
        values.append(raw[4 : 4 + size])
        raw = raw[4 + size :]
    return values


def to_column(kind: str, values: list[Any]) -> list[Any]:
    """Stored values: floats as the bits of a float32, strings as text."""
    if kind == "string":
        try:
            return [value.decode() for value in values]
        except UnicodeDecodeError:
            raise Refused from None
    if kind == "integer":
        for value in values:
            require(isinstance(value, int) or math.isnan(value) or (math.isfinite(value) and value == int(value)))
            require(math.isnan(value) or -(2**63) <= int(value) < 2**63)
        return [MISSING if math.isnan(value) else int(value) for value in values]
    if kind == "boolean":
        require(all(math.isnan(value) or value in (0, 1) for value in values))
    with np.errstate(over="ignore"):
        # One number at a time: an int must round to float32 once, not by way of a double.
        return [int(np.array([value]).astype(np.float32).view(np.uint32)[0]) for value in values]


def columns(message: pb.ModelInferRequest, fields: Fields) -> list[list[Any]]:
    """The rows of a request, column by column; Refused."""
    check_parameters(message)
    require(len(message.raw_input_contents) in (0, len(message.inputs)))
    names = [tensor.name for tensor in message.inputs]
    all_real = set(fields.types[: fields.features]) == {"real"}
    packed = all_real and "features" in names and "features" not in fields.names
    keys = fields.names[fields.features :]
    require(sorted(names) == sorted(["features", *keys] if packed else fields.names))

    by_name: dict[str, list[Any]] = {}
    rows = set()
    for index, tensor in enumerate(message.inputs):
        shape = list(tensor.shape)
        require(len(shape) >= 1 and shape[0] >= 1)
        rows.add(shape[0])
        if packed and tensor.name == "features":
            require(tensor.datatype in ("FP32", "FP64"))
            require(len(shape) == 2 and shape[1] == fields.features)
            values = elements(message, index)
            require(len(values) == shape[0] * shape[1])
            for i in range(fields.features):
                by_name[fields.names[i]] = to_column("real", values[i :: fields.features])
        else:
            kind = fields.types[fields.names.index(tensor.name)]
            require(tensor.datatype in ({"BYTES"} if kind == "string" else NUMERIC))
            require(shape[1:] in ([], [1]))
            values = elements(message, index)
            require(len(values) == shape[0])
            by_name[tensor.name] = to_column(kind, values)
    require(len(rows) == 1)
    return [by_name[name] for name in fields.names]
