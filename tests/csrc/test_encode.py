"""Responses as protobuf reads them."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from trimtab._native import encode_infer_response, encode_infer_responses
from trimtab.protos.v1 import inference_pb2 as pb

DTYPES = {
    "BOOL": "?",
    "UINT8": "u1",
    "UINT16": "u2",
    "UINT32": "u4",
    "UINT64": "u8",
    "INT8": "i1",
    "INT16": "i2",
    "INT32": "i4",
    "INT64": "i8",
    "FP16": "f2",
    "FP32": "f4",
    "FP64": "f8",
}
Output = tuple[str, str, NDArray[Any]]


@st.composite
def outputs(draw: st.DrawFn, rows: int) -> list[Output]:
    names = draw(st.lists(st.text(max_size=4), min_size=1, max_size=3, unique=True))
    made = []
    for name in names:
        datatype = draw(st.sampled_from(sorted(DTYPES)))
        tail = draw(st.lists(st.integers(0, 3), max_size=2))
        made.append((name, datatype, draw(hnp.arrays(DTYPES[datatype], (rows, *tail)))))
    return made


def assert_answer(message: pb.ModelInferResponse, wanted: list[Output], start: int, stop: int) -> None:
    assert [output.name for output in message.outputs] == [name for name, _, _ in wanted]
    assert len(message.raw_output_contents) == len(wanted)
    for output, raw, (_, datatype, array) in zip(message.outputs, message.raw_output_contents, wanted, strict=True):
        assert output.datatype == datatype
        assert list(output.shape) == [stop - start, *array.shape[1:]]
        assert raw == array[start:stop].tobytes()
        assert not output.HasField("contents")


TEXT = st.text(max_size=200)


@given(TEXT, TEXT, TEXT, TEXT, TEXT, st.integers(0, 40).flatmap(outputs))
def test_one_answer(name: str, version: str, id: str, weights: str, request_id: str, made: list[Output]) -> None:
    message = pb.ModelInferResponse.FromString(encode_infer_response(name, version, id, weights, request_id, made))
    assert (message.model_name, message.model_version, message.id) == (name, version, id)
    parameters = {key: value.string_param for key, value in message.parameters.items()}
    assert parameters == {"trimtab_weights": weights, "trimtab_request_id": request_id}
    assert_answer(message, made, 0, len(made[0][2]))


@given(st.lists(st.integers(0, 4), max_size=4), st.data())
def test_a_batch_of_answers(counts: list[int], data: st.DataObject) -> None:
    made = data.draw(outputs(sum(counts)))
    names = [name for name, _, _ in made]
    wanted = [data.draw(st.none() | st.lists(st.sampled_from(names), max_size=3, unique=True)) for _ in counts]
    ids = [f"id{i}" for i in range(len(counts))]
    request_ids = [f"é{i}" for i in range(len(counts))]
    bodies = encode_infer_responses("m", "7", "w", ids, request_ids, counts, made, wanted)
    assert len(bodies) == len(counts)
    start = 0
    for i, body in enumerate(bodies):
        message = pb.ModelInferResponse.FromString(body)
        assert (message.model_name, message.model_version, message.id) == ("m", "7", ids[i])
        assert message.parameters["trimtab_request_id"].string_param == request_ids[i]
        chosen = [made[names.index(name)] for name in wanted[i] or names]
        assert_answer(message, chosen, start, start + counts[i])
        start += counts[i]


def test_long_answers() -> None:  # lengths of several bytes
    array = np.random.default_rng(0).standard_normal((100_000, 3)).astype(np.float32)
    message = pb.ModelInferResponse.FromString(encode_infer_response("m", "1", "", "w", "r", [("p", "FP32", array)]))
    assert_answer(message, [("p", "FP32", array)], 0, len(array))


ARRAY = np.zeros((4, 2), np.float32)


@pytest.mark.parametrize(
    ("datatype", "array"),
    [
        ("FP64", ARRAY),
        ("INT32", ARRAY),
        ("BYTES", np.zeros(4, "S4")),
        ("FLOAT", ARRAY),
        ("FP32", ARRAY[:, :1]),
        ("FP32", ARRAY[::2]),
        ("FP32", ARRAY.astype(">f4")),
        ("FP32", np.array(1, np.float32)),
    ],
)
def test_arrays_of_another_datatype_or_layout_are_refused(datatype: str, array: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match=f'output "p": expected a contiguous array .* of {datatype}, came'):
        encode_infer_response("m", "1", "", "w", "r", [("p", datatype, array)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a"], [], [4], [None]), "as many request_ids"),
        ((["a"], ["r"], [], [None]), "as many request_ids"),
        ((["a"], ["r"], [4], []), "as many request_ids"),
        ((["a"], ["r"], [3], [None]), "expected the 3 rows of counts, came 4"),
        ((["a", "b"], ["r", "s"], [2**63, 2**63], [None, None]), "more rows than exist"),
        ((["a"], ["r"], [4], [["q"]]), 'expected the name of an output, came "q"'),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    ids, request_ids, counts, wanted = arguments
    with pytest.raises(ValueError, match=message):
        encode_infer_responses("m", "1", "w", ids, request_ids, counts, [("p", "FP32", ARRAY)], wanted)


def test_other_types_are_refused() -> None:
    with pytest.raises(TypeError):
        encode_infer_response("m", "1", "", "w", "r", [("p", "FP32", [1.0])])  # type: ignore[list-item]
    with pytest.raises(TypeError):
        encode_infer_responses("m", "1", "w", ["a"], ["r"], [-1], [("p", "FP32", ARRAY)], [None])
