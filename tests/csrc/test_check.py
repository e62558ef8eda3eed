"""Checking a request against a schema: each thing that can be wrong is named with what was expected and what came."""

import itertools
import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimtab._native import Schema, Slab, WireError, decode_infer
from trimtab.protos.v1 import inference_pb2 as pb

from .agreement import contents
from .oracle import LISTS, Fields
from .requests import cases, raw_form

SCHEMA = Schema(["r", "b", "i", "s"], ["real", "boolean", "integer", "string"])
REALS = Schema(["x", "y", "id"], ["real", "real", "string"], keys=1)


def request(
    *tensors: tuple[str, str, list[int], list[Any]], raw: bool = True, parameters: dict[str, Any] | None = None
) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="m")
    for name, datatype, shape, values in tensors:
        tensor = message.inputs.add(name=name, datatype=datatype, shape=shape)
        if raw:
            message.raw_input_contents.append(raw_form(datatype, values))
        else:
            getattr(tensor.contents, LISTS[datatype]).extend(values)
    for key, value in (parameters or {}).items():
        message.parameters[key].CopyFrom(value)
    return message


def good() -> list[tuple[str, str, list[int], list[Any]]]:
    return [
        ("r", "FP32", [2, 1], [1.0, 2.0]),
        ("b", "BOOL", [2], [1, 0]),
        ("i", "INT64", [2, 1], [3, 4]),
        ("s", "BYTES", [2, 1], [b"a", b""]),
    ]


def replaced(index: int, *tensor: Any) -> pb.ModelInferRequest:
    tensors = good()
    tensors[index] = tensor  # type: ignore[call-overload]
    return request(*tensors)


def check(message: pb.ModelInferRequest, schema: Schema = SCHEMA) -> int:
    return decode_infer(message.SerializeToString()).check(schema)


def test_good_requests_pass() -> None:
    assert check(request(*good())) == 2
    assert check(request(*good(), raw=False)) == 2
    assert check(request(*reversed(good()))) == 2


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (request(), r'expected inputs "r" \(real\), "b" \(boolean\), .*, came 0 inputs without "r"'),
        (request(*good()[:3]), 'came 3 inputs without "s"'),
        (request(*good(), ("z", "FP32", [2], [1, 2])), 'expected inputs .*, came "z"'),
        (request(*good(), ("\n\x00", "FP32", [2], [1, 2])), r'came "\\x0a\\x00"'),
        (request(*good(), ("\x85", "FP32", [2], [1, 2])), r'came "\\x85"'),
        (request(*good(), ("é" * 100, "FP32", [2], [1, 2])), 'came "é{40}…"'),
        (request(*good(), good()[0]), 'input "r": expected once, came again'),
        (
            replaced(0, "r", "BYTES", [2, 1], [b"1", b"2"]),
            'input "r": expected datatype FP32, .* or BOOL, came "BYTES"',
        ),
        (replaced(0, "r", "FP16", [2, 1], [1, 2]), 'expected datatype .*, came "FP16"'),
        (replaced(3, "s", "INT64", [2, 1], [1, 2]), 'input "s": expected datatype BYTES, came "INT64"'),
        (replaced(0, "r", "FP32", [], []), r"expected shape \[n\] or \[n, 1\], came \[\]"),
        (replaced(0, "r", "FP32", [2, 2], [1] * 4), r"expected shape \[n\] or \[n, 1\], came \[2, 2\]"),
        (replaced(0, "r", "FP32", [2, 1, 1], [1, 2]), r"came \[2, 1, 1\]"),
        (replaced(0, "r", "FP32", [0, 1], []), r"expected at least one row, came shape \[0, 1\]"),
        (replaced(0, "r", "FP32", [-1, 1], [1]), r"expected at least one row, came shape \[-1, 1\]"),
        (replaced(2, "i", "INT64", [3, 1], [1, 2, 3]), 'input "i": expected 2 rows as input "r", came 3'),
        (replaced(0, "r", "FP32", [2], [1, 2, 3]), r"expected 8 bytes for FP32 of shape \[2\], came 12"),
        (
            replaced(0, "r", "FP32", [2**62], [1, 2]),
            r"expected \d+ bytes for FP32 of shape \[4611686018427387904\], came 8",
        ),
        (replaced(3, "s", "BYTES", [2], [b"a"]), "expected 2 strings, each behind its length in 4 bytes, came 5 bytes"),
        (replaced(3, "s", "BYTES", [2], [b"a", b"b", b"c"]), "expected 2 strings, came 5 bytes after the last"),
        (replaced(3, "s", "BYTES", [2], [b"a", b"\xff"]), "expected UTF-8, came other bytes in row 1"),
        (replaced(1, "b", "INT64", [2], [1, 2]), 'input "b": expected 0, 1 or NaN, came 2 in row 1'),
        (replaced(1, "b", "FP64", [2], [0.5, 1]), "expected 0, 1 or NaN, came 0.5 in row 0"),
        (replaced(2, "i", "FP32", [2], [1, 1.5]), "expected whole numbers within 64 bits or NaN, came 1.5 in row 1"),
        (replaced(2, "i", "FP64", [2], [math.inf, 1]), "came inf in row 0"),
        (replaced(2, "i", "FP64", [2], [2.0**63, 1]), "came 9.22337204e.18 in row 0"),
    ],
)
def test_wrong_requests_are_refused(message: pb.ModelInferRequest, expected: str) -> None:
    with pytest.raises(WireError, match=expected):
        check(message)


def test_raw_booleans_are_zero_or_one() -> None:
    message = request(*good())
    message.raw_input_contents[1] = b"\x00\x02"
    with pytest.raises(WireError, match='input "b": expected bytes 0 or 1, came 2 in row 1'):
        check(message)


def test_a_length_past_the_end_of_a_raw_string() -> None:
    message = request(*good())
    message.raw_input_contents[3] = struct.pack("<I", 2**32 - 1) + b"a"
    with pytest.raises(WireError, match="end in row 0"):
        check(message)


def test_raw_and_typed_contents_do_not_mix() -> None:
    message = request(*good())
    message.inputs[0].contents.fp32_contents.extend([1, 2])
    with pytest.raises(WireError, match='input "r": expected no contents beside raw_input_contents, came both'):
        check(message)
    del message.raw_input_contents[-1]
    with pytest.raises(WireError, match="expected one raw_input_contents for each of the 4 inputs or none, came 3"):
        check(message)


def test_typed_contents_are_of_the_datatype_and_number() -> None:
    message = request(*good(), raw=False)
    message.inputs[0].contents.int_contents.append(1)
    with pytest.raises(WireError, match='input "r": expected only fp32_contents for FP32, came int_contents'):
        check(message)
    message = request(*good(), raw=False)
    del message.inputs[0].contents.fp32_contents[:]
    with pytest.raises(WireError, match=r"expected 2 elements for FP32 of shape \[2, 1\], came 0"):
        check(message)


PACKED = ("features", "FP32", [2, 2], [1, 2, 3, 4])
KEY = ("id", "BYTES", [2], [b"k", b"l"])


def test_packed_features_beside_their_keys() -> None:
    body = request(PACKED, KEY).SerializeToString()
    decoded, slab = decode_infer(body), Slab(REALS)
    decoded.check(REALS)
    decoded.append_to(slab)
    assert slab.reals(0).tolist() == [1, 3]
    assert slab.reals(1).tolist() == [2, 4]
    assert slab.strings(2)[1].tobytes() == b"kl"


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ([PACKED], 'came 1 inputs without "id"'),
        ([PACKED, KEY, PACKED], 'input "features": expected once'),
        ([PACKED, KEY, ("x", "FP32", [2], [1, 2])], 'either one input per feature or one "features"'),
        ([("features", "INT64", [2, 2], [1] * 4), KEY], "expected datatype FP32 or FP64"),
        ([("features", "FP32", [4], [1] * 4), KEY], r"expected shape \[n, 2\], came \[4\]"),
        ([("features", "FP32", [2, 3], [1] * 6), KEY], r"expected shape \[n, 2\], came \[2, 3\]"),
        ([("features", "FP32", [1, 2], [1] * 2), KEY], 'input "id": expected 1 rows as input "features", came 2'),
        ([KEY], r'or the features as one "features" of shape \[n, 2\], came 1 inputs without "x"'),
    ],
)
def test_wrong_packed_requests_are_refused(tensors: list[Any], expected: str) -> None:
    with pytest.raises(WireError, match=expected):
        check(request(*tensors), REALS)


def test_packed_features_need_reals() -> None:
    with pytest.raises(WireError, match='came "features"'):
        check(request(("features", "FP32", [2, 4], [1] * 8)))


def test_a_feature_may_be_called_features() -> None:
    assert check(request(("features", "FP32", [2], [1, 2])), Schema(["features"], ["real"])) == 2


def test_many_expected_names_are_cut() -> None:
    schema = Schema([f"f{i}" for i in range(30)], ["real"] * 30)
    with pytest.raises(WireError, match='"f19" \\(real\\) and 10 more, or the features as one'):
        check(request(), schema)


def value(**choice: Any) -> pb.InferParameter:
    return pb.InferParameter(**choice)


@pytest.mark.parametrize(
    ("key", "parameter", "expected"),
    [
        ("trimtab_time_us", value(string_param="1"), "expected microseconds as int64_param"),
        ("trimtab_time_us", value(), "expected a value, came none"),
        ("trimtab_other", value(int64_param=1), "expected trimtab_time_us as the only one"),
        ("triton_enable_empty_final_response", value(int64_param=1), "expected a boolean"),
        ("triton_other", value(bool_param=False), "Triton's reserved prefix"),
        ("sequence_id", value(int64_param=1), "sequences are not supported"),
        ("sequence_id", value(string_param="a"), "sequences are not supported"),
        ("sequence_start", value(bool_param=True), "sequences are not supported"),
        ("timeout", value(int64_param=-1), "an integer from 0"),
        ("timeout", value(double_param=1.0), "an integer from 0"),
        ("priority", value(string_param="high"), "an integer from 0"),
    ],
)
def test_unsupported_parameters_are_refused(key: str, parameter: pb.InferParameter, expected: str) -> None:
    with pytest.raises(WireError, match=f'parameter "{key}": expected .*{expected}|parameter "{key}": {expected}'):
        check(request(*good(), parameters={key: parameter}))


def test_harmless_parameters_pass() -> None:
    parameters = {
        "sequence_id": value(int64_param=0),
        "sequence_start": value(bool_param=False),
        "binary_data_output": value(bool_param=True),
        "timeout": value(int64_param=1000),
        "priority": value(uint64_param=1),
        "mine": value(string_param="x"),
    }
    assert check(request(*good(), parameters=parameters)) == 2


@pytest.mark.parametrize("key", ["shared_memory_region", "shared_memory_offset", "shared_memory_byte_size"])
def test_shared_memory_is_refused(key: str) -> None:
    message = request(*good())
    message.inputs[0].parameters[key].string_param = "region"
    with pytest.raises(WireError, match="shared memory is not supported"):
        check(message)


def test_classification_and_repeated_outputs_are_refused() -> None:
    message = request(*good())
    message.outputs.add(name="p").parameters["classification"].int64_param = 2
    with pytest.raises(WireError, match="classification"):
        check(message)
    message.outputs[0].parameters.clear()
    message.outputs.add(name="p")
    with pytest.raises(WireError, match='requested output "p": expected once, came again'):
        check(message)


def test_rows_and_time_are_known_after_check() -> None:
    message = request(*good(), parameters={"trimtab_time_us": value(int64_param=-5)})
    decoded = decode_infer(message.SerializeToString())
    assert (decoded.rows, decoded.time_us) == (0, None)
    decoded.check(SCHEMA)
    assert (decoded.rows, decoded.time_us) == (2, -5)
    with pytest.raises(WireError):
        decoded.check(REALS)
    assert decoded.rows == 0


def test_append_needs_the_checked_schema_and_rows_that_are_there() -> None:
    decoded, slab = decode_infer(request(*good()).SerializeToString()), Slab(SCHEMA)
    with pytest.raises(ValueError, match=r"check\(\) before"):
        decoded.append_to(slab)
    decoded.check(SCHEMA)
    with pytest.raises(ValueError, match="schema that was checked"):
        decoded.append_to(Slab(REALS))
    for start, stop in [(0, 3), (-1, 1), (2, 1), (3, -1), (0, -2)]:
        with pytest.raises(IndexError):
            decoded.append_to(slab, start, stop)
    assert slab.rows == 0
    decoded.append_to(Slab(Schema(SCHEMA.names, SCHEMA.types)))  # an equal one will do


@given(cases(), st.data())
def test_pieces_make_the_whole_in_any_order(case: tuple[Fields, pb.ModelInferRequest], data: st.DataObject) -> None:
    fields, message = case
    schema = Schema(fields.names, fields.types, fields.keys)
    decoded = decode_infer(message.SerializeToString())
    rows = decoded.check(schema)
    whole = Slab(schema)
    decoded.append_to(whole)
    expected = contents(whole)
    cuts = sorted({0, rows, *data.draw(st.lists(st.integers(0, rows), max_size=3))})
    for start, stop in data.draw(st.permutations(list(itertools.pairwise(cuts)))):
        piece = Slab(schema)
        decoded.append_to(piece, start, stop)
        assert contents(piece) == [column[start:stop] for column in expected]
        decoded.append_to(whole, start, stop)
    assert whole.rows == 2 * rows


@pytest.mark.parametrize("pack", [raw_form, None])
def test_large_requests_without_the_gil(pack: Callable[[str, list[Any]], bytes] | None) -> None:
    rows = 300_000
    x = np.arange(rows, dtype=np.float32)
    message = pb.ModelInferRequest()
    message.inputs.add(name="x", datatype="FP32", shape=[rows])
    message.inputs.add(name="s", datatype="BYTES", shape=[rows])
    text = [b"%d" % (i % 7) for i in range(rows)]
    if pack:
        message.raw_input_contents.extend([x.tobytes(), pack("BYTES", text)])
    else:
        message.inputs[0].contents.fp32_contents.extend(x)
        message.inputs[1].contents.bytes_contents.extend(text)
    schema = Schema(["x", "s"], ["real", "string"])
    decoded, slab = decode_infer(message.SerializeToString()), Slab(schema)
    assert decoded.check(schema) == rows
    for start in range(0, rows, 1_000):  # linear: the place in the strings is remembered
        decoded.append_to(slab, start, start + 1_000)
    np.testing.assert_array_equal(slab.reals(0), x)
    assert slab.strings(1)[1].tobytes() == b"".join(text)
    decoded.append_to(slab)
    assert slab.rows == 2 * rows
