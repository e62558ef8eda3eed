"""Bodies of REST v2 against messages built with protobuf and NumPy."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimtab.protos.v1 import inference_pb2 as pb
from trimtab.server.errors import InvalidRequest, TooLarge
from trimtab.server.rest_tensors import Wanted, decode_infer_body, encode_infer_body


def body(inputs: object, **rest: Any) -> bytes:
    return json.dumps({"inputs": inputs, **rest}).encode()


def tensor(datatype: str, data: object, shape: list[Any] | None = None, **parameters: Any) -> dict[str, Any]:
    made = {"name": "x", "datatype": datatype, "shape": shape or [len(data) if isinstance(data, list) else 1]}
    return made | ({"data": data} if data is not None else {}) | ({"parameters": parameters} if parameters else {})


def decoded(content: bytes, header: int | None = None) -> tuple[pb.ModelInferRequest, Wanted]:
    message, wanted = decode_infer_body(content, header, "m", "3")
    return pb.ModelInferRequest.FromString(message), wanted


def refusal(content: bytes, header: int | None = None) -> str:
    with pytest.raises(InvalidRequest) as caught:
        decode_infer_body(content, header, "m", "")
    return str(caught.value)


@pytest.mark.parametrize(
    ("datatype", "data", "dtype"),
    [
        ("FP32", [0.5, -1, 3e38], np.float32),
        ("FP64", [0.1, 1e300, 2], np.float64),
        ("FP16", [0.5, 1, -2], np.float16),
        ("INT8", [-128, 127], np.int8),
        ("UINT8", [0, 255], np.uint8),
        ("INT16", [-(2**15)], np.int16),
        ("UINT16", [2**16 - 1], np.uint16),
        ("INT32", [-(2**31)], np.int32),
        ("UINT32", [2**32 - 1], np.uint32),
        ("INT64", [-(2**63), 2**63 - 1], np.int64),
        ("UINT64", [2**64 - 1], np.uint64),
        ("BOOL", [True, False], np.bool_),
    ],
)
def test_json_data_becomes_raw_contents(datatype: str, data: list[Any], dtype: Any) -> None:
    message, _ = decoded(body([tensor(datatype, data)]))
    assert message.raw_input_contents == [np.array(data, dtype).tobytes()]
    assert (message.inputs[0].name, message.inputs[0].datatype, message.inputs[0].shape) == ("x", datatype, [len(data)])
    assert (message.model_name, message.model_version) == ("m", "3")


def test_strings_go_behind_their_lengths() -> None:
    message, _ = decoded(body([tensor("BYTES", ["", "Åle", "\u0000"])]))
    assert message.raw_input_contents == [b"\0\0\0\0" + b"\4\0\0\0\xc3\x85le" + b"\1\0\0\0\0"]


def test_nested_data_is_row_major() -> None:
    flat, _ = decoded(body([tensor("INT32", [1, 2, 3, 4, 5, 6], [3, 2])]))
    nested, _ = decoded(body([tensor("INT32", [[1, 2], [3, 4], [5, 6]], [3, 2])]))
    deep, _ = decoded(body([tensor("INT32", [[[1], [2]], [[3], [4]], [[5], [6]]], [3, 2])]))
    assert flat.raw_input_contents == nested.raw_input_contents == deep.raw_input_contents


def test_missing_reals_come_as_nan_or_null() -> None:
    content = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[4],"data":[NaN,null,Infinity,-Infinity]}]}'
    values = np.frombuffer(decoded(content)[0].raw_input_contents[0], np.float32)
    np.testing.assert_array_equal(values, [np.nan, np.nan, np.inf, -np.inf])


def test_binary_data_is_taken_input_by_input() -> None:
    head = body(
        [
            tensor("FP32", None, [2], binary_data_size=8),
            tensor("INT32", [7]) | {"name": "y"},
            tensor("BYTES", None, [1], binary_data_size=5) | {"name": "z"},
        ]
    )
    message, _ = decoded(head + b"AAAABBBB" + b"\1\0\0\0c", len(head))
    assert message.raw_input_contents == [b"AAAABBBB", b"\7\0\0\0", b"\1\0\0\0c"]
    assert not message.inputs[0].parameters


def test_parameters_keep_their_types() -> None:
    content = body(
        [tensor("FP32", [1.0], shared_note="a")],
        id="é",
        parameters={"b": True, "i": -3, "u": 2**63, "d": 0.5, "s": "ü", "timeout": 5_000_000},
        outputs=[{"name": "p", "parameters": {"classification": 2, "binary_data": True}}, {"name": "q"}],
    )
    message, wanted = decoded(content)
    found = {key: getattr(value, value.WhichOneof("parameter_choice")) for key, value in message.parameters.items()}
    assert found == {"b": True, "i": -3, "u": 2**63, "d": 0.5, "s": "ü", "timeout": 5_000_000}
    assert message.parameters["u"].WhichOneof("parameter_choice") == "uint64_param"
    assert message.id == "é"
    assert message.inputs[0].parameters["shared_note"].string_param == "a"
    assert [output.name for output in message.outputs] == ["p", "q"]
    assert list(message.outputs[0].parameters) == ["classification"]
    assert wanted == Wanted(binary=False, outputs={"p": True}, timeout=5.0)


def test_null_is_what_was_left_out() -> None:
    content = body(
        [tensor("FP32", [1.0]) | {"parameters": None}],
        id=None,
        outputs=None,
        parameters={"content_type": None, "note": "x"},
    )
    message, _ = decoded(content)
    assert (message.id, len(message.outputs), list(message.parameters)) == ("", 0, ["note"])


def test_shared_memory_takes_the_place_of_data() -> None:
    content = body(
        [tensor("FP32", None, [2], shared_memory_region="r", shared_memory_byte_size=8), tensor("INT8", [1])]
    )
    message, _ = decoded(content)
    assert message.raw_input_contents == [b"\1"]
    assert message.inputs[0].parameters["shared_memory_region"].string_param == "r"


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "inputs"),
        (b"[]", "object"),
        (b"{", "JSON"),
        (b"\xff", "JSON"),
        (b"[" * 100_000, "JSON"),
        (b'{"inputs": ' + b"[" * 5000 + b"]" * 5000 + b"}", "JSON"),
        (b'{"inputs":[{"name":"x","datatype":"INT32","shape":[1],"data":[' + b"9" * 5000 + b"]}]}", "JSON"),
        (body(None), "inputs"),
        (body({}), "inputs"),
        (body([1]), "an input"),
        (body([{}]), "name"),
        (body([tensor("FP32", [1.0])], what=1), "'what'"),
        (body([tensor("FP32", [1.0]) | {"dtype": "FP32"}]), "'dtype'"),
        (body([tensor("FP32", [1.0])], parameters=[]), "parameters"),
        (body([tensor("FP32", [1.0])], parameters={"a": {}}), "'a'"),
        (body([tensor("FP32", [1.0])], parameters={"a": 2**64}), "'a'"),
        (body([tensor("FP32", [1.0])], parameters={"binary_data_output": 1}), "binary_data_output"),
        (body([tensor("FP32", [1.0])], outputs=[{}]), "output"),
        (body([tensor("FP32", [1.0])], id=7), "id"),
        (body([tensor("FP32", [1.0])], id="\ud800"), "surrogate"),
        (body([tensor("FP32", None)]), "none"),
        (body([tensor("FP32", [1.0], binary_data_size=4)]), "binary_data_size and data"),
        (body([tensor("FP32", None, binary_data_size=4)]), "4 bytes"),
        (body([tensor("FP32", None, binary_data_size=-1)]), "-1"),
        (body([tensor("FP32", None, binary_data_size=True)]), "True"),
        (body([tensor("FP32", 1.0)]), "array"),
        (body([tensor("FP32", [1.0, [2.0]])]), "both"),
        (body([tensor("FP32", [True])]), "numbers"),
        (body([tensor("FP32", ["1"])]), "numbers"),
        (body([tensor("FP32", [1e39])]), "range"),
        (body([tensor("FP32", [10**400])]), "range"),
        (body([tensor("INT32", [1.0])]), "whole"),
        (body([tensor("INT32", [None])]), "whole"),
        (body([tensor("INT8", [128])]), "range"),
        (body([tensor("UINT64", [-1])]), "range"),
        (body([tensor("BOOL", [1])]), "true or false"),
        (body([tensor("BYTES", [1])]), "strings"),
        (body([tensor("BYTES", ["\ud800"])]), "surrogate"),
        (body([tensor("BF16", [1.0])]), "BF16"),
        (body([tensor("FP32", [1.0], [2])]), "2 values"),
        (body([tensor("FP32", [1.0], [-1])]), "-1"),
        (body([tensor("FP32", [1.0], [2**62, 4])]), "values"),
        (body([tensor("FP32", [1.0], ["1"])]), "'1'"),
    ],
)
def test_what_is_wrong_is_named(content: bytes, named: str) -> None:
    assert named in refusal(content)


def test_the_header_length_is_checked_against_the_body() -> None:
    content = body([tensor("FP32", [1.0])])
    assert "at most" in refusal(content, len(content) + 1)
    assert "1 bytes more" in refusal(content + b"x", len(content))
    assert "JSON" in refusal(content, len(content) - 1)


@given(st.binary(max_size=60), st.none() | st.integers(0, 80))
def test_any_bytes_are_a_message_or_a_refusal(content: bytes, header: int | None) -> None:
    with contextlib.suppress(InvalidRequest):
        decode_infer_body(content, header, "m", "")


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "data", "shape"]), inner),
    max_leaves=8,
)


@given(_json, _json, _json, st.sampled_from(["FP32", "INT64", "BYTES", "BOOL", "?"]))
def test_any_json_is_a_message_or_a_refusal(shape: object, data: object, parameters: object, datatype: str) -> None:
    given_ = {"name": "x", "datatype": datatype, "shape": shape, "data": data, "parameters": parameters}
    with contextlib.suppress(InvalidRequest):
        message, _ = decode_infer_body(body([given_], parameters=parameters), None, "m", "")
        assert len(pb.ModelInferRequest.FromString(message).inputs) == 1


def answer(*outputs: tuple[str, str, list[int], bytes], **parameters: str) -> bytes:
    message = pb.ModelInferResponse(model_name="m", model_version="3", id="i")
    for key, value in parameters.items():
        message.parameters[key].string_param = value
    for name, datatype, shape, raw in outputs:
        message.outputs.add(name=name, datatype=datatype, shape=shape)
        message.raw_output_contents.append(raw)
    return message.SerializeToString()


def test_an_answer_in_json() -> None:
    values = np.array([0.1, np.nan], np.float32)
    made = encode_infer_body(
        answer(("p", "FP32", [2, 1], values.tobytes()), ("s", "BYTES", [1], b"\3\0\0\0\xc3\x85!"), trimtab_weights="w"),
        Wanted(),
    )
    assert made.json_bytes is None
    head = json.loads(made.content)
    assert (head["model_name"], head["id"]) == ("m", "i")
    assert head["parameters"] == {"trimtab_weights": "w"}
    np.testing.assert_array_equal(head["outputs"][0].pop("data"), values.tolist())
    assert head["outputs"] == [
        {"name": "p", "datatype": "FP32", "shape": [2, 1]},
        {"name": "s", "datatype": "BYTES", "shape": [1], "data": ["Å!"]},
    ]


def test_a_large_answer_in_json_is_whole() -> None:
    values = np.arange(10_001, dtype=np.float32) / 7
    made = encode_infer_body(answer(("p", "FP32", [10_001], values.tobytes()), ("q", "INT8", [0], b"")), Wanted())
    first, second = json.loads(made.content)["outputs"]
    np.testing.assert_array_equal(np.array(first["data"], np.float32), values)
    assert second["data"] == []


def test_more_json_than_may_hold_up_others_is_refused() -> None:
    with pytest.raises(TooLarge, match="binary data"):
        decode_infer_body(b" " * (9 << 20), None, "m", "")


def test_an_answer_with_binary_data_behind_it() -> None:
    outputs = [("p", "FP32", [1], b"AAAA"), ("q", "INT8", [3], b"\1\2\3"), ("r", "BF16", [1], b"BB")]
    made = encode_infer_body(answer(*outputs), Wanted(binary=True, outputs={"q": False}))
    assert made.json_bytes is not None
    head = json.loads(made.content[: made.json_bytes])
    assert made.content[made.json_bytes :] == b"AAAABB"
    assert [output.get("parameters", {}).get("binary_data_size") for output in head["outputs"]] == [4, None, 2]
    assert head["outputs"][1]["data"] == [1, 2, 3]


def test_an_output_that_json_cannot_hold_is_refused() -> None:
    for datatype, raw in (("BF16", b"BB"), ("BYTES", b"\1\0\0\0\xff")):
        with pytest.raises(InvalidRequest, match="binary_data"):
            encode_infer_body(answer(("p", datatype, [1], raw)), Wanted())


def test_an_output_in_shared_memory_brings_no_data() -> None:
    message = pb.ModelInferResponse(model_name="m")
    tensor = message.outputs.add(name="p", datatype="FP32", shape=[1])
    tensor.parameters["shared_memory_region"].string_param = "r"
    tensor.parameters["shared_memory_byte_size"].int64_param = 4
    message.raw_output_contents.append(b"")
    made = encode_infer_body(message.SerializeToString(), Wanted(binary=True))
    (output,) = json.loads(made.content)["outputs"]
    assert made.json_bytes is None
    assert output["parameters"] == {"shared_memory_region": "r", "shared_memory_byte_size": 4}
    assert "data" not in output
