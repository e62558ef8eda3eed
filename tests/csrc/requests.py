"""Hypothesis strategies for schemas and the requests that they take, with hostile values."""

import math
import struct
from typing import Any

import numpy as np
from hypothesis import strategies as st
from trimtab.protos.v1 import inference_pb2 as pb

from .oracle import DTYPES, LISTS, Fields

NAMES = st.one_of(st.text(min_size=1, max_size=6), st.sampled_from(["features", "x", "\x00", 'a"b']))
REALS = st.one_of(
    st.floats(width=32),
    st.sampled_from([math.nan, math.inf, -math.inf, -0.0, 1e-45, -1e-40, 3.4028234663852886e38]),
)
INT64 = st.one_of(st.integers(-(2**63), 2**63 - 1), st.sampled_from([-(2**63), 2**63 - 1, 2**53 + 1, 2**24 + 1, 0]))
WHOLE = st.one_of(st.integers(-(2**31), 2**31 - 1).map(float), st.sampled_from([math.nan, -(2.0**63), 2.0**62, -0.0]))
BITS = st.sampled_from([0, 1])

# By type of field and datatype: values that the field takes.
VALUES: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "real": {
        "FP32": REALS,
        "FP64": st.one_of(st.floats(), REALS),
        "INT32": st.integers(-(2**31), 2**31 - 1),
        "INT64": INT64,
        "BOOL": BITS,
    },
    "boolean": {
        "FP32": st.sampled_from([0.0, 1.0, -0.0, math.nan]),
        "FP64": st.sampled_from([0.0, 1.0, -0.0, math.nan]),
        "INT32": BITS,
        "INT64": BITS,
        "BOOL": BITS,
    },
    "integer": {
        "FP32": WHOLE.map(lambda value: float(np.float32(value))),
        "FP64": WHOLE,
        "INT32": st.integers(-(2**31), 2**31 - 1),
        "INT64": INT64,
        "BOOL": BITS,
    },
    "string": {"BYTES": st.one_of(st.text(max_size=6), st.just("")).map(str.encode)},
}
PARAMETERS = st.dictionaries(
    st.one_of(st.text(max_size=4), st.sampled_from(["binary_data_output", "headers"])),
    st.one_of(
        st.booleans().map(lambda value: pb.InferParameter(bool_param=value)),
        INT64.map(lambda value: pb.InferParameter(int64_param=value)),
        st.integers(0, 2**64 - 1).map(lambda value: pb.InferParameter(uint64_param=value)),
        st.floats().map(lambda value: pb.InferParameter(double_param=value)),
        st.text(max_size=4).map(lambda value: pb.InferParameter(string_param=value)),
    ),
    max_size=2,
)


@st.composite
def schemas(draw: st.DrawFn) -> Fields:
    names = draw(st.lists(NAMES, min_size=1, max_size=5, unique=True))
    kinds = st.sampled_from(["real"]) if draw(st.booleans()) else st.sampled_from(list(VALUES))
    types = [draw(kinds) for _ in names]
    keys = draw(st.integers(0, len(names) - 1))
    types[len(names) - keys :] = [draw(st.sampled_from(list(VALUES))) for _ in range(keys)]
    return Fields(names, types, keys)


def raw_form(datatype: str, values: list[Any]) -> bytes:
    if datatype == "BYTES":
        return b"".join(struct.pack("<I", len(value)) + value for value in values)
    return np.array(values, DTYPES.get(datatype, "f2")).tobytes()


@st.composite
def messages(draw: st.DrawFn, fields: Fields) -> pb.ModelInferRequest:
    """A request that a model of this schema takes."""
    rows = draw(st.integers(1, 4))
    message = pb.ModelInferRequest(
        model_name=draw(st.text(max_size=4)), model_version=draw(st.text(max_size=2)), id=draw(st.text(max_size=4))
    )
    tensors: list[tuple[str, str, list[int], list[Any]]] = []
    first = 0
    all_real = set(fields.types[: fields.features]) == {"real"}
    if all_real and "features" not in fields.names and draw(st.booleans()):
        first = fields.features
        datatype = draw(st.sampled_from(["FP32", "FP64"]))
        count = rows * first
        values = draw(st.lists(VALUES["real"][datatype], min_size=count, max_size=count))
        tensors.append(("features", datatype, [rows, first], values))
    for name, kind in zip(fields.names[first:], fields.types[first:], strict=True):
        datatype = draw(st.sampled_from(list(VALUES[kind])))
        values = draw(st.lists(VALUES[kind][datatype], min_size=rows, max_size=rows))
        tensors.append((name, datatype, draw(st.sampled_from([[rows], [rows, 1]])), values))
    raw = draw(st.booleans())
    for name, datatype, shape, values in draw(st.permutations(tensors)):
        tensor = message.inputs.add(name=name, datatype=datatype, shape=shape)
        if raw:
            message.raw_input_contents.append(raw_form(datatype, values))
        else:
            getattr(tensor.contents, LISTS[datatype]).extend(values)
        for key, value in draw(PARAMETERS).items():
            tensor.parameters[key].CopyFrom(value)
    for name in draw(st.lists(st.text(max_size=3), max_size=2, unique=True)):
        message.outputs.add(name=name)
    for key, value in draw(PARAMETERS).items():
        message.parameters[key].CopyFrom(value)
    if draw(st.booleans()):
        message.parameters["trimtab_time_us"].int64_param = draw(INT64)
    return message


@st.composite
def cases(draw: st.DrawFn) -> tuple[Fields, pb.ModelInferRequest]:
    fields = draw(schemas())
    return fields, draw(messages(fields))
