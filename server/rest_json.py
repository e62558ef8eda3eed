"""JSON of the REST protocol: what a body may look like, and protobuf messages as Triton writes them.

Pure. Knows nothing of HTTP or of models.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

from google.protobuf.message import Message
from trimtab.protos.v1 import inference_pb2 as pb
from trimtab.server.errors import InvalidRequest

__all__ = [
    "parameters_to_json",
    "parse_object",
    "raw_handle_of",
    "set_parameters",
    "set_repository_parameters",
    "set_setting",
    "to_json",
]

_MOST_INT64, _MOST_UINT64 = (1 << 63) - 1, (1 << 64) - 1


def parse_object(body: bytes | bytearray | memoryview) -> dict[str, Any]:
    """A body that is one JSON object; NaN and Infinity may stand for numbers. An empty body is an empty object.

    Raises InvalidRequest.
    """
    if not body:
        return {}
    try:
        parsed = json.loads(str(body, "utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"expected a body in JSON, came something else: {error}") from None
    if not isinstance(parsed, dict):
        raise InvalidRequest(f"expected a JSON object, came {_kind(parsed)}")
    return parsed


def set_parameters(into: Any, parameters: object, of: str) -> None:
    """Fills a map<string, InferParameter> from a JSON object; null is as if it were not there. Raises
    InvalidRequest."""
    if not isinstance(parameters, Mapping):
        raise InvalidRequest(f"parameters of {of}: expected an object, came {_kind(parameters)}")
    for key, value in parameters.items():
        if value is None:
            continue
        if isinstance(value, bool):
            into[key].bool_param = value
        elif isinstance(value, int) and -_MOST_INT64 - 1 <= value <= _MOST_INT64:
            into[key].int64_param = value
        elif isinstance(value, int) and 0 <= value <= _MOST_UINT64:
            into[key].uint64_param = value
        elif isinstance(value, float):
            into[key].double_param = value
        elif isinstance(value, str):
            into[key].string_param = _text(value, key)
        else:
            raise InvalidRequest(
                f"parameter {key!r} of {of}: expected a boolean, a number of 64 bits or a string, came {_kind(value)}"
            )


def parameters_to_json(parameters: Mapping[str, pb.InferParameter]) -> dict[str, Any]:
    """A map<string, InferParameter> as a JSON object."""
    return {
        key: getattr(value, kind)
        for key, value in parameters.items()
        if (kind := value.WhichOneof("parameter_choice")) is not None
    }


def to_json(message: Message) -> dict[str, Any]:
    """A message with all its fields under their own names, 64-bit integers as numbers and enumerations by name.

    Fields that are not set appear with their defaults, but for messages and members of a oneof.
    """
    made: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            of = field.message_type.fields_by_name["value"]
            made[field.name] = {str(key): _value(of, value[key]) for key in sorted(value)}
        elif field.is_repeated:
            made[field.name] = [_value(field, item) for item in value]
        elif field.message_type is not None or field.containing_oneof is not None:
            if message.HasField(field.name):
                made[field.name] = _value(field, value)
        else:
            made[field.name] = _value(field, value)
    return made


def _value(field: Any, value: Any) -> Any:
    if isinstance(value, Message):
        return to_json(value)
    if field.enum_type is not None:
        return field.enum_type.values_by_number[value].name
    return value


def _text(value: str, key: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"parameter {key!r}: expected text, came half of a surrogate pair") from None
    return value


def _kind(value: object) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", int: "a number"}
    return "null" if value is None else names.get(type(value), "a number")


def set_repository_parameters(into: Any, parameters: object) -> None:
    """Fills the parameters of a load or unload. Raises InvalidRequest."""
    if not isinstance(parameters, Mapping):
        raise InvalidRequest(f"parameters: expected an object, came {_kind(parameters)}")
    for key, value in parameters.items():
        if isinstance(value, bool):
            into[key].bool_param = value
        elif isinstance(value, int) and -_MOST_INT64 - 1 <= value <= _MOST_INT64:
            into[key].int64_param = value
        elif isinstance(value, str):
            into[key].string_param = _text(value, key)
        else:
            raise InvalidRequest(f"parameter {key!r}: expected a boolean, a number or a string, came {_kind(value)}")


def raw_handle_of(value: object) -> bytes:
    """The bytes of a CUDA IPC handle: {"b64": "..."}. Raises InvalidRequest."""
    text = value.get("b64") if isinstance(value, Mapping) and set(value) == {"b64"} else None
    if not isinstance(text, str):
        raise InvalidRequest("'raw_handle' in the body: expected an object with one field, 'b64', a string")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest("'raw_handle' in the body: expected base64, came something else") from None


def set_setting(message: pb.TraceSettingRequest | pb.LogSettingsRequest, key: str, value: object) -> None:
    """Puts one setting of a JSON object into the message. Raises InvalidRequest."""
    if isinstance(message, pb.TraceSettingRequest):
        values = value if isinstance(value, list) else [] if value is None else [value]
        texts = [item for item in values if isinstance(item, str)]
        if len(texts) != len(values):
            raise InvalidRequest(f"setting {key!r}: expected a string or an array of them, came {value!r}")
        message.settings[key].value.extend(_text(text, key) for text in texts)
    elif isinstance(value, bool):
        message.settings[key].bool_param = value
    elif isinstance(value, int) and 0 <= value < 1 << 32:
        message.settings[key].uint32_param = value
    elif isinstance(value, str):
        message.settings[key].string_param = _text(value, key)
    else:
        raise InvalidRequest(f"setting {key!r}: expected a boolean, a number or a string, came {_kind(value)}")
