"""Inference over REST as bytes: a body becomes a serialised ModelInferRequest, a serialised ModelInferResponse a body.

Pure; knows the JSON form and the binary tensor extension of KServe v2, and nothing of HTTP, models or queues. What a
request means is for the hub to say, which gets the same message from every transport: here only the form is checked,
and values are brought into the protocol's raw form.

Parsing JSON holds the interpreter, and with it the thread that computes: so a body's JSON is bounded (large tensors
come as binary data), and answers are written a slice at a time.

JSON data may be nested or flat, row-major. NaN and Infinity are taken as numbers, and null stands for NaN (what
JavaScript makes of it). FP16 may come as numbers; BF16 comes as binary data only.
"""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from trimtab.protos.v1 import inference_pb2 as pb
from trimtab.server.errors import InvalidRequest, TooLarge
from trimtab.server.rest_json import parameters_to_json, parse_object, set_parameters

__all__ = ["Body", "Wanted", "decode_infer_body", "encode_infer_body"]

_DTYPES: dict[str, Any] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
}
_DEPTH = 16
# Bytes of JSON in a request: some 100 ms of parsing that nothing else can interrupt. Values of an answer written at a
# time.
_MOST_JSON, _SLICE = 4 << 20, 4096
_MOST_INT64 = (1 << 63) - 1
# Some clients repeat the model's name, which the path has said.
_REQUEST_KEYS = {"id", "parameters", "inputs", "outputs", "model_name", "model_version"}
_INPUT_KEYS = {"name", "shape", "datatype", "parameters", "data"}
_OUTPUT_KEYS = {"name", "parameters"}
_SHARED = "shared_memory_region"


@dataclass(slots=True)
class Wanted:
    """In which form the answer's outputs are to come."""

    binary: bool = False
    """Those that are not named."""
    outputs: dict[str, bool] = field(default_factory=dict)
    timeout: float | None = None
    """Seconds after which the answer is of no use; None: never."""


@dataclass(frozen=True, slots=True)
class Body:
    """An answer's body, and how much of it is JSON; None: all."""

    content: bytes
    json_bytes: int | None


def decode_infer_body(body: bytes, header_length: int | None, model: str, version: str) -> tuple[bytes, Wanted]:
    """The ModelInferRequest that a body says, and how its answer should look. Raises InvalidRequest, TooLarge.

    `header_length`: bytes of JSON before the binary data; None: all of the body is JSON.
    """
    view = memoryview(body)
    if header_length is not None and header_length > len(view):
        raise InvalidRequest(
            f"Inference-Header-Content-Length: expected at most the body's {len(view)} bytes, came {header_length}"
        )
    size = len(view) if header_length is None else header_length
    if size > _MOST_JSON:
        raise TooLarge(f"expected at most {_MOST_JSON} bytes of JSON, came {size}; send large tensors as binary data")
    # What some clients write for what they leave out.
    head = {key: value for key, value in parse_object(view[:header_length]).items() if value is not None}
    _known(head, _REQUEST_KEYS, "the request")
    message = pb.ModelInferRequest(model_name=model, model_version=version)
    message.id = _string(head.get("id", ""), "id")
    wanted = Wanted()
    parameters = dict(_object(head.get("parameters", {}), "parameters"))
    wanted.binary = _boolean(parameters.pop("binary_data_output", False), "parameter 'binary_data_output'")
    set_parameters(message.parameters, parameters, "the request")
    wanted.timeout = _timeout(parameters.get("timeout"))
    rest = _Binary(view[header_length:] if header_length is not None else view[:0])
    for given in _array(head.get("inputs"), "inputs"):
        _add_input(message, _object(given, "an input"), rest)
    rest.finish()
    for given in _array(head.get("outputs", []), "outputs"):
        _add_output(message, _object(given, "an output"), wanted)
    return message.SerializeToString(), wanted


def encode_infer_body(answer: bytes, wanted: Wanted) -> Body:
    """The body for a serialised ModelInferResponse. Raises InvalidRequest where an output cannot be JSON."""
    message = pb.ModelInferResponse.FromString(answer)
    head: dict[str, Any] = {"model_name": message.model_name, "model_version": message.model_version}
    if message.id:
        head["id"] = message.id
    if message.parameters:
        head["parameters"] = parameters_to_json(message.parameters)
    outputs: list[str] = []
    chunks: list[bytes] = []
    for output, raw in zip(message.outputs, message.raw_output_contents, strict=True):
        described: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": list(output.shape)}
        parameters = parameters_to_json(output.parameters)
        data = ""
        if _SHARED not in parameters:
            if wanted.outputs.get(output.name, wanted.binary):
                parameters["binary_data_size"] = len(raw)
                chunks.append(raw)
            else:
                data = f',"data":{_to_text(output.name, output.datatype, raw)}'
        if parameters:
            described["parameters"] = parameters
        outputs.append(f"{_dumps(described)[:-1]}{data}}}")
    text = f'{_dumps(head)[:-1]},"outputs":[{",".join(outputs)}]}}'.encode()
    return Body(b"".join([text, *chunks]), len(text) if chunks else None)


# --- requests


class _Binary:
    """The bytes after the JSON, taken input by input."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._at = 0

    def take(self, size: object, name: str) -> bytes:
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise InvalidRequest(f"input {name!r}: binary_data_size: expected a number of bytes, came {size!r}")
        left = len(self._view) - self._at
        if size > left:
            raise InvalidRequest(
                f"input {name!r}: expected {size} bytes of binary data (binary_data_size), came {left}; "
                "the header Inference-Header-Content-Length says where they begin"
            )
        self._at += size
        return bytes(self._view[self._at - size : self._at])

    def finish(self) -> None:
        left = len(self._view) - self._at
        if left:
            raise InvalidRequest(f"expected binary data only for inputs with binary_data_size, came {left} bytes more")


def _add_input(message: pb.ModelInferRequest, given: dict[str, Any], rest: _Binary) -> None:
    given = {key: value for key, value in given.items() if value is not None}
    name = _string(given.get("name"), "the name of an input")
    _known(given, _INPUT_KEYS, f"input {name!r}")
    datatype = _string(given.get("datatype"), f"the datatype of input {name!r}")
    shape = _shape(given.get("shape"), name)
    parameters = dict(_object(given.get("parameters", {}), f"parameters of input {name!r}"))
    tensor = message.inputs.add(name=name, datatype=datatype, shape=shape)
    sources = [key for key in ("binary_data_size", _SHARED) if key in parameters] + ["data"] * ("data" in given)
    if len(sources) != 1:
        came = " and ".join(sources) or "none"
        raise InvalidRequest(f"input {name!r}: expected data, binary_data_size or {_SHARED}, came {came}")
    if sources[0] == "binary_data_size":
        message.raw_input_contents.append(rest.take(parameters.pop("binary_data_size"), name))
    elif sources[0] == "data":
        message.raw_input_contents.append(_to_raw(name, datatype, shape, given["data"]))
    set_parameters(tensor.parameters, parameters, f"input {name!r}")


def _add_output(message: pb.ModelInferRequest, given: dict[str, Any], wanted: Wanted) -> None:
    given = {key: value for key, value in given.items() if value is not None}
    name = _string(given.get("name"), "the name of an output")
    _known(given, _OUTPUT_KEYS, f"output {name!r}")
    parameters = dict(_object(given.get("parameters", {}), f"parameters of output {name!r}"))
    if "binary_data" in parameters:
        wanted.outputs[name] = _boolean(parameters.pop("binary_data"), f"parameter 'binary_data' of output {name!r}")
    set_parameters(message.outputs.add(name=name).parameters, parameters, f"output {name!r}")


def _to_raw(name: str, datatype: str, shape: list[int], data: object) -> bytes:
    """JSON data in the raw form of the protocol."""
    if datatype not in _DTYPES and datatype != "BYTES":
        known = ", ".join([*_DTYPES, "BYTES"])
        raise InvalidRequest(f"input {name!r}: expected JSON data of {known}, came {datatype!r}")
    values = _flatten(name, data)
    if len(values) != math.prod(shape):
        raise InvalidRequest(
            f"input {name!r}: expected {math.prod(shape)} values for shape {shape}, came {len(values)}"
        )
    if datatype == "BYTES":
        return _strings(name, values)
    return _numbers(name, datatype, values).tobytes()


def _flatten(name: str, data: object) -> list[Any]:
    if not isinstance(data, list):
        raise InvalidRequest(f"input {name!r}: expected data as an array, came {type(data).__name__}")
    for _ in range(_DEPTH):
        kinds = set(map(type, data))
        if list not in kinds:
            return data
        if len(kinds) != 1:
            raise InvalidRequest(f"input {name!r}: expected values or arrays of values, came both beside each other")
        data = list(itertools.chain.from_iterable(data))
    raise InvalidRequest(f"input {name!r}: expected arrays at most {_DEPTH} deep, came deeper ones")


def _strings(name: str, values: list[Any]) -> bytes:
    parts = []
    for value in values:
        if not isinstance(value, str):
            raise InvalidRequest(f"input {name!r}: expected strings for BYTES, came {value!r}")
        try:
            text = value.encode()
        except UnicodeEncodeError:
            raise InvalidRequest(f"input {name!r}: expected text, came half of a surrogate pair") from None
        parts += [len(text).to_bytes(4, "little"), text]
    return b"".join(parts)


def _numbers(name: str, datatype: str, values: list[Any]) -> NDArray[Any]:
    dtype = np.dtype(_DTYPES[datatype])
    allowed: set[type] = {bool} if dtype.kind == "b" else {int, float, type(None)} if dtype.kind == "f" else {int}
    if not set(map(type, values)) <= allowed:
        wrong = next(value for value in values if type(value) not in allowed)
        what = {"b": "true or false", "f": "numbers or null"}.get(dtype.kind, "whole numbers")
        raise InvalidRequest(f"input {name!r}: expected {what} for {datatype}, came {json.dumps(wrong)[:80]}")
    try:
        if dtype.kind != "f":
            return np.array(values, dtype)
        wide = np.array(values, np.float64)
        with np.errstate(over="ignore"):
            made = wide.astype(dtype)
        if not np.array_equal(np.isinf(made), np.isinf(wide)):
            raise OverflowError
    except OverflowError:
        raise InvalidRequest(f"input {name!r}: expected values within the range of {datatype}, came others") from None
    return made


# --- answers


def _to_text(name: str, datatype: str, raw: bytes) -> str:
    """The values as a JSON array."""
    if datatype == "BYTES":
        return _dumps(_texts(name, raw))
    if datatype not in _DTYPES:
        raise InvalidRequest(f"output {name!r}: {datatype} cannot be JSON; ask for it with binary_data")
    values = np.frombuffer(raw, _DTYPES[datatype])
    slices = (values[start : start + _SLICE].tolist() for start in range(0, len(values), _SLICE))
    return f"[{','.join(_dumps(part)[1:-1] for part in slices)}]"


def _dumps(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _texts(name: str, raw: bytes) -> list[str]:
    texts, at = [], 0
    while at < len(raw):
        end = at + 4 + int.from_bytes(raw[at : at + 4], "little")
        try:
            texts.append(str(raw[at + 4 : end], "utf-8"))
        except UnicodeDecodeError:
            raise InvalidRequest(f"output {name!r}: not text; ask for it with binary_data") from None
        at = end
    return texts


# --- forms


def _string(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f"{what}: expected a string, came {'none' if value is None else type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"{what}: expected text, came half of a surrogate pair") from None
    return value


def _boolean(value: object, what: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidRequest(f"{what}: expected true or false, came {value!r}")
    return value


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequest(f"{what}: expected an object, came {type(value).__name__}")
    return value


def _array(value: object, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidRequest(f"{what}: expected an array, came {'none' if value is None else type(value).__name__}")
    return value


def _shape(value: object, name: str) -> list[int]:
    dims = _array(value, f"the shape of input {name!r}")
    for dim in dims:
        if type(dim) is not int or not 0 <= dim <= _MOST_INT64:
            raise InvalidRequest(f"input {name!r}: expected a shape of whole numbers from 0, came {dim!r} in it")
    return dims


def _known(given: dict[str, Any], keys: set[str], what: str) -> None:
    unknown = sorted(given.keys() - keys)
    if unknown:
        raise InvalidRequest(f"{what}: expected {', '.join(sorted(keys))}, came {', '.join(map(repr, unknown))}")


def _timeout(value: object) -> float | None:
    """Of the parameter in µs; 0 is none. What is no such number is refused by the hub."""
    return value * 1e-6 if type(value) is int and 0 < value <= _MOST_INT64 else None
