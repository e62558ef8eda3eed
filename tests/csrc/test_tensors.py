"""Tensor rows against an oracle on the official protobuf and NumPy, and each thing that can be wrong with them."""

import itertools
import random
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimtab._native import TensorRequest, TensorSchema, TensorSlab, WireError
from trimtab.protos.v1 import inference_pb2 as pb

from .encoding import misshape, serialise

# NumPy's dtype and protobuf's list of each datatype; BF16 travels as its bits.
DTYPES = {
    "BOOL": ("?", "bool_contents"),
    "UINT8": ("<u1", "uint_contents"),
    "UINT16": ("<u2", "uint_contents"),
    "UINT32": ("<u4", "uint_contents"),
    "UINT64": ("<u8", "uint64_contents"),
    "INT8": ("<i1", "int_contents"),
    "INT16": ("<i2", "int_contents"),
    "INT32": ("<i4", "int_contents"),
    "INT64": ("<i8", "int64_contents"),
    "FP16": ("<f2", None),
    "BF16": ("<u2", None),
    "FP32": ("<f4", "fp32_contents"),
    "FP64": ("<f8", "fp64_contents"),
    "BYTES": ("O", "bytes_contents"),
}
Spec = tuple[str, str, tuple[int, ...]]


@st.composite
def specs(draw: st.DrawFn) -> list[Spec]:
    names = draw(st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=4, unique=True))
    dims = st.lists(st.sampled_from([-1, 1, 2, 3]), max_size=3).map(tuple)
    return [(name, draw(st.sampled_from(list(DTYPES))), draw(dims)) for name in names]


def values_of(draw: st.DrawFn, datatype: str, shape: list[int]) -> np.ndarray[Any, Any]:
    count = int(np.prod(shape))
    if datatype == "BYTES":
        flat = np.empty(count, object)
        flat[:] = draw(st.lists(st.binary(max_size=5), min_size=count, max_size=count))
        return flat.reshape(shape)
    dtype = np.dtype(DTYPES[datatype][0])
    raw = draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize))
    if datatype == "BOOL":
        raw = bytes(byte & 1 for byte in raw)
    return np.frombuffer(raw, dtype).reshape(shape)


def raw_form(values: np.ndarray[Any, Any]) -> bytes:
    if values.dtype == object:
        return b"".join(struct.pack("<I", len(value)) + value for value in values.reshape(-1))
    return values.tobytes()


def request_of(tensors: list[tuple[Spec, np.ndarray[Any, Any]]], raw: bool) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="m")
    for (name, datatype, _), values in tensors:
        tensor = message.inputs.add(name=name, datatype=datatype, shape=values.shape)
        if raw:
            message.raw_input_contents.append(raw_form(values))
        else:
            getattr(tensor.contents, DTYPES[datatype][1] or "").extend(values.reshape(-1).tolist())
    return message


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[Spec], list[np.ndarray[Any, Any]], pb.ModelInferRequest]:
    inputs = draw(specs())
    rows = draw(st.integers(1, 4))
    arrays = []
    for _, datatype, dims in inputs:
        shape = [rows, *(draw(st.integers(1, 3)) if dim == -1 else dim for dim in dims)]
        arrays.append(values_of(draw, datatype, shape))
    typed = all(DTYPES[datatype][1] is not None for _, datatype, _ in inputs)
    message = request_of(
        draw(st.permutations(list(zip(inputs, arrays, strict=True)))), draw(st.booleans()) or not typed
    )
    return inputs, arrays, message


def contents(slab: TensorSlab, index: int) -> list[bytes]:
    """The rows of an input, each as its shape and bytes."""
    shape = slab.shape(index)
    if slab.schema.inputs[index][1] != "BYTES":
        array = slab.array(index)
        assert array.shape == shape
        assert array.flags.c_contiguous
        assert array.size == 0 or array.ctypes.data % 64 == 0
        return [row.tobytes() for row in array]
    offsets, text = slab.strings(index)
    strings = [text[a:b].tobytes() for a, b in itertools.pairwise(offsets)]
    width = int(np.prod(shape[1:]))
    assert len(strings) == shape[0] * width
    assert int(offsets[-1]) == text.size
    return [
        raw_form(np.array([*strings[i : i + width], None], object)[:-1]) for i in range(0, len(strings), width or 1)
    ]


@given(cases(), st.randoms(use_true_random=False))
def test_rows_are_what_was_sent(
    case: tuple[list[Spec], list[np.ndarray[Any, Any]], pb.ModelInferRequest], dice: random.Random
) -> None:
    inputs, arrays, message = case
    schema = TensorSchema(inputs)
    request = TensorRequest(serialise(message, dice), schema)
    rows = len(arrays[0])
    assert request.rows == rows
    slab = TensorSlab(schema)
    assert request.fits(slab)
    # In two batches, the second before the first, and whole: a request may be split and read again.
    cut = dice.randint(0, rows)
    for start, stop in [(cut, rows), (0, cut), (0, rows)]:
        request.append_to(slab, start, stop)
    for index, array in enumerate(arrays):
        sent = [raw_form(row) for row in array.reshape(rows, -1)]
        assert slab.shape(index) == (2 * rows, *array.shape[1:])
        assert contents(slab, index) == sent[cut:] + sent[:cut] + sent
    slab.clear()
    assert slab.rows == 0
    assert [contents(slab, index) for index in range(len(inputs))] == [[]] * len(inputs)


@given(cases(), st.randoms(use_true_random=False))
def test_misshapen_messages_are_answered_never_fatal(
    case: tuple[list[Spec], list[np.ndarray[Any, Any]], pb.ModelInferRequest], dice: random.Random
) -> None:
    inputs, _, message = case
    schema = TensorSchema(inputs)
    slab = TensorSlab(schema)
    body = message.SerializeToString()
    for _ in range(4):
        body = misshape(body, pb.ModelInferRequest.DESCRIPTOR, dice)
        try:
            request = TensorRequest(body, schema)
        except WireError:
            continue
        if request.fits(slab):
            request.append_to(slab)
    for index in range(len(inputs)):
        contents(slab, index)


SCHEMA = TensorSchema(
    [("image", "UINT8", [2, 2]), ("text", "BYTES", []), ("ids", "INT64", [-1]), ("flag", "BOOL", [1])]
)


def good(rows: int = 2, tokens: int = 3) -> dict[str, np.ndarray[Any, Any]]:
    text = np.empty(rows, object)
    text[:] = [b"\xff%d" % i for i in range(rows)]
    return {
        "image": np.arange(rows * 4, dtype="u1").reshape(rows, 2, 2),
        "text": text,
        "ids": np.arange(rows * tokens).reshape(rows, tokens),
        "flag": np.zeros((rows, 1), bool),
    }


def body(raw: bool = True, **changed: Any) -> bytes:
    """A good request, with inputs replaced (None: left out), or given as (datatype, shape, raw bytes)."""
    message = pb.ModelInferRequest()
    datatypes = {name: datatype for name, datatype, _ in SCHEMA.inputs}
    for name, value in (good() | changed).items():
        if isinstance(value, tuple):
            message.inputs.add(name=name, datatype=value[0], shape=value[1])
            message.raw_input_contents.append(value[2])
        elif value is not None:
            one = request_of([((name, datatypes.get(name, "INT64"), ()), value)], raw)
            message.MergeFrom(one)
    return message.SerializeToString()


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"", r'expected inputs "image" \(UINT8 \[n, 2, 2\]\), "text" \(BYTES \[n\]\), .* without "image"'),
        (body(text=None), 'came 3 inputs without "text"'),
        (body(other=np.zeros(2, "i8")), 'came "other"'),
        (body(image=("INT8", [2, 2, 2], bytes(8))), 'input "image": expected datatype UINT8, came "INT8"'),
        (body(image=("UINT8", [2, 2], bytes(4))), r"expected shape \[n, 2, 2\], came \[2, 2\]"),
        (body(image=("UINT8", [], b"")), r"expected shape \[n, 2, 2\], came \[\]"),
        (body(image=("UINT8", [2, 4, 1], bytes(8))), r"expected shape \[n, 2, 2\], came \[2, 4, 1\]"),
        (body(image=("UINT8", [0, 2, 2], b"")), "expected at least one row"),
        (body(image=("UINT8", [-1, 2, 2], bytes(4))), r"expected at least one row, came shape \[-1, 2, 2\]"),
        (body(image=("UINT8", [2**62, 2, 2], b"")), "expected more bytes than a message holds for UINT8"),
        (body(image=("UINT8", [2, 2, 2], bytes(7))), r"expected 8 bytes for UINT8 of shape \[2, 2, 2\], came 7"),
        (body(ids=("INT64", [2, -1], bytes(16))), r"expected shape \[n, -1\], came \[2, -1\]"),
        (body(ids=("INT64", [2, 0], b"")), r"expected shape \[n, -1\], came \[2, 0\]"),
        (body(ids=("INT64", [2, 2**61], b"")), "expected more bytes than a message holds"),
        (body(ids=("INT64", [2, 2**63 - 1], b"")), "expected more bytes than a message holds"),
        (body(ids=np.zeros((3, 1), "i8")), 'input "ids": expected 2 rows as input "image", came 3'),
        (body(text=("BYTES", [2], b"\1\0\0\0a")), "expected 2 strings, each behind its length .*, came 5 bytes"),
        (body(text=("BYTES", [2], b"\xff\xff\xff\xffa")), "came 5 bytes that end in element 0"),
        (body(text=("BYTES", [2], bytes(9))), "expected 2 strings, came 1 bytes after the last"),
        (body(flag=("BOOL", [2, 1], b"\0\2")), 'input "flag": expected bytes 0 or 1, came 2 in row 1'),
    ],
)  # fmt: skip
def test_wrong_requests_are_refused(sent: bytes, expected: str) -> None:
    with pytest.raises(WireError, match=expected):
        TensorRequest(sent, SCHEMA)


def test_the_same_input_twice() -> None:
    message = request_of([(("x", "FP32", ()), np.zeros(1, "f4"))] * 2, raw=True)
    with pytest.raises(WireError, match='input "x": expected once, came again'):
        TensorRequest(message.SerializeToString(), TensorSchema([("x", "FP32", [])]))


@pytest.mark.parametrize(("datatype", "value"), [("INT8", 128), ("INT16", -32769), ("UINT8", 256), ("UINT16", 65536)])
def test_typed_values_that_do_not_fit(datatype: str, value: int) -> None:
    message = pb.ModelInferRequest()
    tensor = message.inputs.add(name="x", datatype=datatype, shape=[3])
    getattr(tensor.contents, DTYPES[datatype][1] or "").extend([1, value, 2])
    with pytest.raises(WireError, match=f'input "x": expected values within {datatype}, came {value}'):
        TensorRequest(message.SerializeToString(), TensorSchema([("x", datatype, [])]))


def test_half_precision_comes_raw_only() -> None:
    message = pb.ModelInferRequest()
    message.inputs.add(name="x", datatype="FP16", shape=[1]).contents.fp32_contents.append(1)
    with pytest.raises(WireError, match="expected raw_input_contents for FP16, came none"):
        TensorRequest(message.SerializeToString(), TensorSchema([("x", "FP16", [])]))


def test_typed_contents_in_a_list_of_another_datatype() -> None:
    message = pb.ModelInferRequest()
    message.inputs.add(name="x", datatype="INT8", shape=[1]).contents.int64_contents.append(1)
    with pytest.raises(WireError, match="expected only int_contents for INT8, came int64_contents"):
        TensorRequest(message.SerializeToString(), TensorSchema([("x", "INT8", [])]))


def test_a_batch_keeps_to_one_variable_size() -> None:
    slab = TensorSlab(SCHEMA)
    three, four = TensorRequest(body(), SCHEMA), TensorRequest(body(ids=np.zeros((2, 4), "i8")), SCHEMA)
    three.append_to(slab)
    assert not four.fits(slab)
    with pytest.raises(ValueError, match="variable dimensions"):
        four.append_to(slab)
    assert slab.shape(2) == (2, 3)
    slab.clear()
    assert four.fits(slab)
    four.append_to(slab)
    assert slab.shape(2) == (2, 4)


def test_a_slab_of_another_schema() -> None:
    slab = TensorSlab(TensorSchema([("image", "UINT8", [4])]))
    request = TensorRequest(body(), SCHEMA)
    assert not request.fits(slab)
    with pytest.raises(ValueError, match="expected a slab of the schema"):
        request.append_to(slab)


def test_rows_out_of_range() -> None:
    request = TensorRequest(body(), SCHEMA)
    for start, stop in [(0, 3), (-1, 2), (2, 1)]:
        with pytest.raises(IndexError):
            request.append_to(TensorSlab(SCHEMA), start, stop)


def test_after_a_refusal_a_request_has_no_rows() -> None:
    request = TensorRequest(body(), SCHEMA)
    with pytest.raises(WireError):
        request.assign(body(text=None), SCHEMA)
    assert request.rows == 0
    with pytest.raises(IndexError):
        request.append_to(TensorSlab(SCHEMA), 0, 1)
    request.assign(body(), SCHEMA)
    assert request.rows == 2


def test_a_view_outlives_the_slab() -> None:
    slab = TensorSlab(SCHEMA)
    TensorRequest(body(), SCHEMA).append_to(slab)
    image = slab.array(0)
    for _ in range(100):
        TensorRequest(body(), SCHEMA).append_to(slab)
    del slab
    assert image.tolist() == good()["image"].tolist()


def test_zeros_for_warming_up() -> None:
    slab = TensorSlab(SCHEMA)
    slab.append_zeros(3, variable=5)
    assert [slab.shape(i) for i in range(4)] == [(3, 2, 2), (3,), (3, 5), (3, 1)]
    assert not slab.array(0).any()
    assert slab.strings(1)[0].tolist() == [0] * 4
    with pytest.raises((MemoryError, ValueError)):
        slab.append_zeros(2**62)
    assert slab.rows == 3


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ([], "at least one input"),
        ([("", "FP32", [])], "expected a name"),
        ([("x", "FP32", []), ("x", "FP32", [])], "occurs twice"),
        ([("x", "FP8", [])], 'expected a datatype of the protocol, came "FP8"'),
        ([("x", "FP32", [0])], "came 0"),
        ([("x", "FP32", [-2])], "came -2"),
        ([("x", "FP32", [1] * 8)], "at most 7 dimensions"),
        ([("x", "FP32", [2**32, 2**32])], "more than 2.40 elements"),
    ],
)
def test_schemas_that_are_none(inputs: list[tuple[str, str, list[int]]], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        TensorSchema(inputs)


def test_schemas_compare_by_value() -> None:
    twin = TensorSchema(SCHEMA.inputs)
    assert twin == SCHEMA
    assert hash(twin) == hash(SCHEMA)
    assert twin.variable
    assert TensorSchema([("x", "FP32", [1])]) != TensorSchema([("x", "FP32", [])])
