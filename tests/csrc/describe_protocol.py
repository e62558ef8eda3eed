"""Print the descriptors of the inference protocol as JSON.

Run as a script: two copies of the package clash in one process.

usage: describe_protocol.py MODULE...     the _pb2 modules to describe
"""

import importlib
import json
import sys
from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, FileDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto


def _field(field: FieldDescriptor) -> dict[str, Any]:
    kind = field.message_type or field.enum_type
    return {
        "number": field.number,
        "type": field.type,
        "repeated": field.is_repeated,
        "packed": field.is_packed,
        "of": kind.full_name if kind else None,
        "oneof": field.containing_oneof.name if field.containing_oneof else None,
    }


def _reserved(message: Descriptor) -> list[int]:
    proto = DescriptorProto()
    message.CopyToProto(proto)
    return [number for span in proto.reserved_range for number in range(span.start, span.end)]


def _messages(messages: Iterator[Descriptor]) -> Iterator[tuple[str, dict[str, Any]]]:
    for message in messages:
        fields = {field.name: _field(field) for field in message.fields}
        yield message.full_name, {"fields": fields, "reserved": _reserved(message)}
        yield from _messages(iter(message.nested_types))


def _enums(enums: Iterator[EnumDescriptor]) -> Iterator[tuple[str, dict[str, int]]]:
    for enum in enums:
        yield enum.full_name, {value.name: value.number for value in enum.values}


def _all_enums(file: FileDescriptor) -> Iterator[tuple[str, dict[str, int]]]:
    yield from _enums(iter(file.enum_types_by_name.values()))
    for message in file.message_types_by_name.values():
        yield from _enums(iter(message.enum_types))


def describe(files: list[FileDescriptor]) -> dict[str, Any]:
    """Messages, enumerations and methods by full name."""
    described: dict[str, Any] = {"messages": {}, "enums": {}, "methods": {}}
    for file in files:
        described["messages"].update(_messages(iter(file.message_types_by_name.values())))
        described["enums"].update(_all_enums(file))
        for service in file.services_by_name.values():
            for method in service.methods:
                described["methods"][method.full_name] = [
                    method.input_type.full_name,
                    method.client_streaming,
                    method.output_type.full_name,
                    method.server_streaming,
                ]
    return described


if __name__ == "__main__":
    print(json.dumps(describe([importlib.import_module(name).DESCRIPTOR for name in sys.argv[1:]])))
