"""Serialises a protobuf message as no library would, but as any reader must take it.

Fields in any order, repeated scalars packed, not packed or in several runs, embedded messages in pieces, unknown
fields, singular fields more than once, varints longer than needed.
"""

import random
import struct
from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5


def varint(value: int, padding: int = 0) -> bytes:
    """A varint of up to 64 bits, with `padding` needless bytes."""
    value &= 2**64 - 1
    out = bytearray()
    while value >= 0x80 or padding > 0:
        out.append(value & 0x7F | 0x80)
        if value < 0x80:
            padding -= 1
        value >>= 7
    out.append(value)
    return bytes(out)


def length(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | LENGTH) + varint(len(payload)) + payload


def scalar(field: FieldDescriptor, value: Any, dice: random.Random) -> tuple[int, bytes]:
    """Wire type and bytes of one value."""
    if field.type == field.TYPE_FLOAT:
        return FIXED32, struct.pack("<f", value)
    if field.type == field.TYPE_DOUBLE:
        return FIXED64, struct.pack("<d", value)
    if field.type in (field.TYPE_STRING, field.TYPE_BYTES):
        payload = value.encode() if isinstance(value, str) else value
        return LENGTH, varint(len(payload)) + payload
    encoded = varint(int(value))
    return VARINT, varint(int(value), padding=dice.randrange(min(3, 11 - len(encoded))))


def unknown(dice: random.Random) -> bytes:
    """A field that no message of the protocol has."""
    number = dice.choice([100, 536_870_911])
    wire, payload = dice.choice(
        [(VARINT, varint(dice.getrandbits(64))), (FIXED64, bytes(8)), (FIXED32, b"\xff" * 4), (LENGTH, b"\x03abc")]
    )
    return varint(number << 3 | wire) + payload


def runs(values: list[Any], dice: random.Random) -> Iterator[list[Any]]:
    start = 0
    while start < len(values):
        stop = dice.randint(start + 1, len(values))
        yield values[start:stop]
        start = stop


def repeated(field: FieldDescriptor, values: list[Any], dice: random.Random) -> list[bytes]:
    """Records of a repeated scalar, in order."""
    records = []
    for run in runs(values, dice):
        encoded = [scalar(field, value, dice) for value in run]
        if encoded[0][0] != LENGTH and dice.random() < 0.5:
            records.append(length(field.number, b"".join(payload for _, payload in encoded)))
        else:
            records += [varint(field.number << 3 | wire) + payload for wire, payload in encoded]
    return records


def entry(field: FieldDescriptor, key: str, value: Any, dice: random.Random) -> bytes:
    kind = field.message_type.fields_by_name
    parts = [length(1, key.encode()), length(kind["value"].number, serialise(value, dice))]
    dice.shuffle(parts)
    return length(field.number, b"".join(parts))


def merge(queues: list[list[bytes]], dice: random.Random) -> bytes:
    """One sequence that keeps the order within each queue."""
    out = []
    queues = [queue for queue in queues if queue]
    while queues:
        queue = dice.choice(queues)
        out.append(queue.pop(0))
        queues = [queue for queue in queues if queue]
    return b"".join(out)


def serialise(message: Message, dice: random.Random) -> bytes:
    """Bytes that parse to `message`."""
    queues: list[list[bytes]] = [[unknown(dice)] for _ in range(dice.choice([0, 0, 1, 2]))]
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            queues.append([entry(field, key, value[key], dice) for key in value])
        elif field.type == field.TYPE_MESSAGE and field.is_repeated:
            queues.append([length(field.number, serialise(item, dice)) for item in value])
        elif field.type == field.TYPE_MESSAGE:
            queues.append([length(field.number, piece) for piece in pieces(value, dice)])
        elif field.is_repeated:
            queues.append(repeated(field, list(value), dice))
        else:
            wire, payload = scalar(field, value, dice)
            record = varint(field.number << 3 | wire) + payload
            stale = length(field.number, b"stale") if field.type == field.TYPE_STRING else record
            queues.append([stale, record] if dice.random() < 0.2 and field.containing_oneof is None else [record])
    return merge(queues, dice)


def pieces(message: Message, dice: random.Random) -> Iterator[bytes]:
    """An embedded message of repeated scalars, split over several occurrences of its field."""
    records = [record for field, value in message.ListFields() for record in repeated(field, list(value), dice)]
    if not records:
        yield b""
    for piece in runs(records, dice):
        yield b"".join(piece)


def records(body: bytes) -> list[tuple[int, int, bytes]]:
    """A well-formed message as (field number, wire type, payload), lengths left out."""
    found = []
    at = 0

    def read_varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = body[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(body):
        tag = read_varint()
        start = at
        size = {FIXED32: 4, FIXED64: 8}.get(tag & 7, 0)
        if tag & 7 == LENGTH:
            size = read_varint()
            start = at
        elif tag & 7 == VARINT:
            read_varint()
        at = max(at, start + size)
        found.append((tag >> 3, tag & 7, body[start:at]))
    return found


def joined(parts: list[tuple[int, int, bytes]]) -> bytes:
    return b"".join(
        length(number, payload) if wire == LENGTH else varint(number << 3 | wire) + payload
        for number, wire, payload in parts
    )


def misshape(body: bytes, descriptor: Descriptor, dice: random.Random) -> bytes:
    """A well-formed message with one record somewhere in it dropped, doubled, moved, renumbered or changed."""
    try:
        parts = records(body)
    except IndexError:  # text that an earlier change turned into a message
        return body
    if not parts:
        return unknown(dice)
    at = dice.randrange(len(parts))
    number, wire, payload = parts[at]
    field = descriptor.fields_by_number.get(number)
    if field is not None and field.message_type is not None and wire == LENGTH and dice.random() < 0.8:
        parts[at] = (number, wire, misshape(payload, field.message_type, dice))
        return joined(parts)
    match dice.randrange(6):
        case 0:
            del parts[at]
        case 1:
            parts.insert(dice.randrange(len(parts) + 1), parts[at])
        case 2:
            parts.insert(dice.randrange(len(parts)), parts.pop(at))
        case 3:
            parts[at] = (dice.randint(1, 9), wire, payload)
        case 4 if wire == VARINT:
            parts[at] = (number, wire, varint(dice.choice([0, 1, 2, 3, 2**31, 2**63, 2**64 - 1])))
        case _ if payload:
            flipped = bytearray(payload)
            flipped[dice.randrange(len(flipped))] ^= 1 << dice.randrange(7)
            parts[at] = (number, wire, bytes(flipped))
        case _:
            parts[at] = (number, wire, dice.randbytes(dice.randint(1, 8)) if wire == LENGTH else payload)
    return joined(parts)
