"""A replay's requests carry exactly the slab's rows: decoded by the server's own decoder, and by protobuf."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trimtab._native import Schema, Slab, decode_infer
from trimtab.cli.errors import UserError
from trimtab.cli.replay_wire import RequestEncoder, read_answer
from trimtab.kernels.slabs import slab_from_arrow, slab_to_arrow
from trimtab.protos.v1 import inference_pb2 as pb

_SCHEMA = Schema(["r", "b", "i", "s"], ["real", "boolean", "integer", "string"])
_ROW = st.tuples(
    st.one_of(st.none(), st.floats(width=32)),
    st.one_of(st.none(), st.booleans()),
    st.one_of(st.none(), st.integers(-(2**62), 2**62)),
    st.one_of(st.none(), st.text(max_size=6)),
)
_TYPES = (pa.float32(), pa.bool_(), pa.int64(), pa.string())


@settings(deadline=None)
@given(st.lists(_ROW, min_size=1, max_size=20), st.data())
def test_rows_arrive_as_they_were(rows: list[tuple[object, ...]], data: st.DataObject) -> None:
    columns = [pa.array(values, kind) for values, kind in zip(zip(*rows, strict=True), _TYPES, strict=True)]
    slab = slab_from_arrow(pa.table(dict(zip("rbis", columns, strict=True))), _SCHEMA)
    start = data.draw(st.integers(0, len(rows) - 1))
    stop = data.draw(st.integers(start + 1, len(rows)))
    request = decode_infer(RequestEncoder("m", slab).request(start, stop, 77))
    assert request.check(_SCHEMA) == stop - start
    assert request.model_name == "m"
    assert request.parameters == {"trimtab_time_us": 77}
    got, expected = Slab(_SCHEMA), Slab(_SCHEMA)
    request.append_to(got)
    expected.extend(slab, None, start, stop)
    for mine, theirs in zip(slab_to_arrow(got), slab_to_arrow(expected), strict=True):
        pairs = zip(mine.to_pylist(), theirs.to_pylist(), strict=True)
        assert all(a == b or (isinstance(a, float) and isinstance(b, float) and math.isnan(a + b)) for a, b in pairs)


def test_answer_is_read() -> None:
    response = pb.ModelInferResponse(model_name="m", model_version="7")
    response.parameters["trimtab_weights"].string_param = "abc"
    response.parameters["trimtab_request_id"].string_param = "id"
    response.raw_output_contents.append(np.array([0.25, 0.5], np.float32).tobytes())
    answer = read_answer(response.SerializeToString(), 2)
    assert (answer.version, answer.weights, answer.request_id) == (7, "abc", "id")
    assert answer.predictions.tolist() == [[0.25], [0.5]]


def test_answer_to_other_rows_is_refused() -> None:
    response = pb.ModelInferResponse(model_version="7")
    response.raw_output_contents.append(np.zeros(3, np.float32).tobytes())
    with pytest.raises(UserError, match="answer to 2 rows has 3 numbers"):
        read_answer(response.SerializeToString(), 2)
