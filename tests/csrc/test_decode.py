"""Decoding of requests: whatever protobuf reads from bytes, the native decoder reads, or it raises WireError."""

import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trimtab._native import Schema, Slab, WireError, decode_infer
from trimtab.protos.v1 import inference_pb2 as pb

from .agreement import assert_agrees
from .encoding import length, misshape, serialise, varint
from .oracle import Fields
from .requests import cases, raw_form

# More rounds for a longer hunt: TRIMTAB_FUZZ_ROUNDS=1000000 pytest tests/csrc/test_decode.py
ROUNDS = int(os.environ.get("TRIMTAB_FUZZ_ROUNDS", "20000"))


@given(cases())
def test_what_protobuf_writes(case: tuple[Fields, pb.ModelInferRequest]) -> None:
    fields, message = case
    assert assert_agrees(message.SerializeToString(), fields, lenient=False) == "taken"


@settings(max_examples=300)
@given(cases(), st.integers(0, 2**32))
def test_what_any_writer_may_write(case: tuple[Fields, pb.ModelInferRequest], seed: int) -> None:
    fields, message = case
    body = serialise(message, random.Random(seed))
    assert pb.ModelInferRequest.FromString(body).SerializeToString(deterministic=True) != b"" or not message.ByteSize()
    assert assert_agrees(body, fields, lenient=False) == "taken"


@given(st.binary(max_size=64))
def test_any_bytes(body: bytes) -> None:
    assert_agrees(body, Fields(["x"], ["real"]), lenient=True)


FIELDS = Fields(["a", "b", "c", "d"], ["real", "boolean", "integer", "string"], keys=1)


def seeds() -> list[bytes]:
    """Requests to mutate: raw and typed, with everything in them."""
    bodies = []
    for raw in (True, False):
        message = pb.ModelInferRequest(model_name="m", model_version="1", id="é")
        message.parameters["trimtab_time_us"].int64_param = -1
        message.parameters["x"].double_param = 0.5
        message.outputs.add(name="p").parameters["y"].bool_param = True
        for name, datatype, contents, values in [
            ("a", "FP32", "fp32_contents", [1.5, -0.0]),
            ("b", "BOOL", "bool_contents", [1, 0]),
            ("c", "INT64", "int64_contents", [-1, 2**40]),
            ("d", "BYTES", "bytes_contents", [b"x", "é".encode()]),
        ]:
            tensor = message.inputs.add(name=name, datatype=datatype, shape=[2, 1])
            if raw:
                message.raw_input_contents.append(raw_form(datatype, values))
            else:
                getattr(tensor.contents, contents).extend(values)
        bodies.append(message.SerializeToString())
        bodies += [serialise(message, random.Random(seed)) for seed in range(3)]
    return bodies


def mutate(body: bytes, dice: random.Random, others: list[bytes]) -> bytes:
    """One to four small changes."""
    data = bytearray(body)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(data) + 1)
        match dice.randrange(7):
            case 0 if at < len(data):
                data[at] ^= 1 << dice.randrange(8)
            case 1 if at < len(data):
                data[at] = dice.choice([0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)])
            case 2:
                del data[at : at + dice.randint(1, 8)]
            case 3:
                data[at:at] = dice.randbytes(dice.randint(1, 4))
            case 4:
                del data[at:]
            case 5:
                other = dice.choice(others)
                start = dice.randrange(len(other))
                data[at:at] = other[start : start + dice.randint(1, 24)]
            case _:
                data[at:at] = varint(dice.getrandbits(dice.choice([7, 32, 64])))
    return bytes(data)


def hunt(make: Callable[[random.Random], bytes]) -> Counter[str]:
    """Compare on many made-up bodies; a failure shows the bytes."""
    dice = random.Random(1)
    seen: Counter[str] = Counter()
    for _ in range(ROUNDS):
        body = make(dice)
        try:
            seen[assert_agrees(body, FIELDS, lenient=True)] += 1
        except AssertionError as error:
            raise AssertionError(body.hex()) from error
    return seen


def test_mutated_bytes() -> None:
    bodies = seeds()
    seen = hunt(lambda dice: mutate(dice.choice(bodies), dice, bodies))
    assert min(seen[outcome] for outcome in ("malformed", "refused", "taken")) > ROUNDS / 100, seen


def test_misshapen_messages() -> None:
    bodies = seeds()

    def make(dice: random.Random) -> bytes:
        body = dice.choice(bodies)
        for _ in range(dice.randint(1, 3)):
            body = misshape(body, pb.ModelInferRequest.DESCRIPTOR, dice)
        return body

    seen = hunt(make)
    assert min(seen[outcome] for outcome in ("malformed", "refused", "taken")) > ROUNDS / 20, seen


def test_every_truncation() -> None:
    for body in seeds():
        for size in range(len(body)):
            assert_agrees(body[:size], FIELDS, lenient=True)


def random_message(dice: random.Random, depth: int) -> bytes:
    """Well-formed protobuf with the protocol's field numbers and random kinds, mostly where they do not belong."""
    out = bytearray()
    for _ in range(dice.randint(0, 4)):
        wire = dice.choice([0, 1, 2, 2, 2, 5])
        out += varint(dice.randint(1, 9) << 3 | wire)
        if wire == 0:
            out += varint(dice.getrandbits(dice.choice([1, 7, 32, 64])))
        elif wire == 2:
            nested = depth > 0 and dice.random() < 0.7
            payload = random_message(dice, depth - 1) if nested else dice.randbytes(dice.choice([0, 1, 4, 8]))
            out += varint(len(payload)) + payload
        else:
            out += dice.randbytes(8 if wire == 1 else 4)
    return bytes(out)


def test_misplaced_fields() -> None:
    seen = hunt(lambda dice: random_message(dice, 4))
    assert seen["refused"] > ROUNDS / 20, seen


def test_the_parts_of_an_entry_merge() -> None:
    text, boolean = length(3, b"text"), varint(1 << 3) + varint(1)
    body = length(4, length(1, b"k") + length(2, text) + length(2, boolean) + length(2, b""))
    assert decode_infer(body).parameters == {"k": True}
    assert_agrees(body, FIELDS, lenient=False)


def contents(payload: bytes) -> bytes:
    return length(5, length(5, payload))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"\x80", "varint that goes past the end"),
        (b"\x0a", "varint that goes past the end"),
        (b"\x0a\x05ab", "goes past the end of its message"),
        (b"\x0a\xff\xff\xff\xff\x0f", "goes past the end of its message"),
        (b"\x0a\x80\x80\x80\x80\x80\x00", "length longer than 5 bytes"),
        (b"\x00\x00", "field number out of range"),
        (b"\x02\x00", "field number out of range"),
        (b"\x8a\x80\x80\x80\x80\x00", "tag longer than 5 bytes"),
        (b"\xfa\xff\xff\xff\x7f\x00", "field number out of range"),
        (b"\x0b\x0c", "a group"),
        (b"\x0c", "a group"),
        (b"\x0e\x00", "unknown wire type"),
        (b"\x0f\x00", "unknown wire type"),
        (b"\xa0\x06" + b"\xff" * 9 + b"\x02", "more than 64 bits"),
        (b"\xa0\x06" + b"\xff" * 11, "more than 64 bits"),
        (b"\xa1\x06" + bytes(7), "goes past the end"),
        (b"\xa5\x06" + bytes(3), "goes past the end"),
        (b"\x0a\x01\xff", "not UTF-8"),
        (length(5, length(1, b"\xed\xa0\x80")), "not UTF-8"),
        (length(4, length(1, b"\xff")), "not UTF-8"),
        (length(4, length(2, length(3, b"\xff"))), "not UTF-8"),
        (length(4, varint(100 << 3) + b"\x00"), "map entry with an unknown field"),
        (contents(length(6, bytes(5))), "no multiple of its elements'"),
        (contents(length(7, bytes(12))), "no multiple of its elements'"),
        (contents(length(3, b"\x01\x80")), "varint that goes past the end"),
        (length(5, length(3, b"\x01" * 9)), "at most 8 dimensions"),
        (length(5, b"") * 65_537, "at most 65536 inputs"),
        (length(6, b"") * 65_537, "at most 65536 requested outputs"),
        (length(7, b"") * 65_537, "at most 65536 raw_input_contents"),
        (length(5, length(5, b"") * 65_537), "at most 65536 pieces of contents"),
        (length(4, b"") * 65_537, "at most 65536 parameters"),
        (b"".join(length(4, length(1, str(i).encode())) for i in range(1_025)), "at most 1024 parameters of one"),
    ],
)
def test_malformed_bytes_are_refused(body: bytes, message: str) -> None:
    with pytest.raises(WireError, match=message):
        decode_infer(body)


def test_a_request_keeps_its_bytes_and_gives_them_back() -> None:
    message = pb.ModelInferRequest(model_name="name")
    message.inputs.add(name="x", datatype="BYTES", shape=[1])
    message.raw_input_contents.append(raw_form("BYTES", [b"text" * 100]))
    body = message.SerializeToString()
    references = sys.getrefcount(body)
    request = decode_infer(body)
    assert sys.getrefcount(body) == references + 1
    schema = Schema(["x"], ["string"])
    slab = Slab(schema)
    request.check(schema)
    request.append_to(slab)
    assert request.model_name == "name"
    del request
    assert sys.getrefcount(body) == references
    assert slab.strings(0)[1].tobytes() == b"text" * 100  # copied


@pytest.mark.parametrize("body", [bytearray(b""), memoryview(b""), "", None])
def test_only_bytes_are_decoded(body: Any) -> None:  # what can change under the views is no request
    with pytest.raises(TypeError):
        decode_infer(body)


# Repeats of the smallest forms of what is kept per request, and of one large one: 16 MiB each.
HOSTILE = """
import resource, sys
from trimtab._native import Schema, Slab, WireError, decode_infer
schema = Schema(["x"], ["string"])
size = 16 << 20
def length(number, payload):
    out, rest = bytearray([number << 3 | 2]), len(payload)
    while rest >= 0x80:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes(out) + bytes([rest]) + payload
tensor = length(1, b"x") + length(2, b"BYTES") + length(3, b"\\x80\\x80\\x80\\x04")
bodies = [
    length(5, b"") * (size // 2),
    length(4, b"") * (size // 2),
    length(5, length(5, length(6, b"")) * 65_000),
    length(5, length(3, b"\\x01" * (size // 2))),
    length(5, tensor + length(5, length(8, b"") * (size // 2))),
    length(5, tensor) + length(7, b"\\x00\\x00\\x00\\x7f" + b"a" * size),
    length(5, tensor) + length(7, bytes(size)),
]
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for body in bodies:
    try:
        decode_infer(body).check(schema)
    except WireError:
        pass
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) >> 10)
"""


@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="the sanitizer keeps what is freed")
def test_memory_is_bounded_by_the_message() -> None:
    grown = subprocess.run([sys.executable, "-c", HOSTILE], stdout=subprocess.PIPE, check=True, timeout=120)
    assert int(grown.stdout) < 160  # MiB
