"""Labels and answers, to and from the protocol, without a server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from trimtab.client.errors import InvalidInput, NotFound, ServerFault
from trimtab.client.messages import feedback_request, labels_of, micros, only_model, result
from trimtab.client.types import Label, Result
from trimtab.protos.v1 import inference_pb2 as inference

ANSWER = Result(np.zeros(3), {}, 1, "", "id-1", 3)


def labelled(target: Any, values: Any = None) -> list[tuple[str, int, Any]]:
    return [(item.request_id, item.row, item.value) for item in labels_of(target, values, observed_at=5, source="s")]


def test_labels_of_a_request_in_order_by_row_and_single() -> None:
    assert labelled("id", [1, 0]) == [("id", 0, 1), ("id", 1, 0)]
    assert labelled(ANSWER, np.array([1.5])) == [("id-1", 0, 1.5)]
    assert labelled("id", {7: "yes"}) == [("id", 7, "yes")]
    assert labelled("id", True) == [("id", 0, True)]
    assert labelled([Label("x", key=["a"])]) == [("", 0, "x")]


def test_rows_without_a_truth_yet_get_no_label() -> None:
    assert labelled("id", [None, float("nan"), 1]) == [("id", 2, 1)]


@pytest.mark.parametrize(
    ("target", "values", "said"),
    [
        ("", [1], "empty"),
        ("id", None, "expected the values"),
        ([Label(1, "id")], [1], "labels alone"),
    ],
)
def test_feedback_called_wrongly(target: Any, values: Any, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        labelled(target, values)


@pytest.mark.parametrize(
    ("label", "said"),
    [
        (Label(1), "either a request_id or a key"),
        (Label(1, "id", key=["a"]), "either a request_id or a key"),
        (Label(1, "id", -1), "row ≥ 0"),
        (Label(object(), "id"), "came object"),  # type: ignore[arg-type]
    ],
)
def test_a_label_that_cannot_be_sent(label: Label, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        feedback_request("m", [label])


def test_truths_keep_their_type_and_get_a_time() -> None:
    values = [True, np.bool_(False), 1, np.int64(2), 1.5, "yes"]
    request = feedback_request("m", [Label(value, "id", row) for row, value in enumerate(values)])
    assert [item.WhichOneof("truth") for item in request.labels] == ["boolean"] * 2 + ["number"] * 3 + ["text"]
    assert len({item.observed_at_us for item in request.labels}) == 1
    # So that a repeated call is a duplicate, not a correction.
    assert request.labels[0].observed_at_us > 0


def test_moments() -> None:
    moment = datetime(2024, 1, 1, 12, 0, 0, 123456)
    assert micros(moment) == 1_704_110_400_123_456
    assert micros(moment.replace(tzinfo=UTC)) == micros(moment)
    assert micros(moment.replace(tzinfo=timezone(timedelta(hours=2)))) == micros(moment) - 7_200_000_000
    assert micros(7) == 7


def test_the_only_model() -> None:
    def index(*names: str) -> inference.RepositoryIndexResponse:
        models = [inference.RepositoryIndexResponse.ModelIndex(name=name) for name in names]
        return inference.RepositoryIndexResponse(models=models)

    assert only_model(index("a", "a")) == "a"
    with pytest.raises(NotFound):
        only_model(index())
    with pytest.raises(InvalidInput, match="one of 'a', 'b'"):
        only_model(index("b", "a"))


def answer(datatype: str, shape: list[int], raw: bytes | None, **contents: Any) -> inference.ModelInferResponse:
    response = inference.ModelInferResponse(model_version="3")
    output = response.outputs.add(name="out", datatype=datatype, shape=shape)
    if raw is None:
        for name, values in contents.items():
            getattr(output.contents, name).extend(values)
    else:
        response.raw_output_contents.append(raw)
    return response


def test_raw_and_typed_answers() -> None:
    raw = result(answer("FP32", [2, 1], np.array([1, 2], "<f4").tobytes()), 2)
    assert raw.predictions.tolist() == [1.0, 2.0]
    assert raw.outputs["out"].shape == (2, 1)
    assert raw.version == 3
    typed = result(answer("FP64", [1, 2], None, fp64_contents=[1, 2]), 1)
    assert typed.predictions.tolist() == [[1.0, 2.0]]
    assert result(answer("BYTES", [2], b"\2\0\0\0ab\0\0\0\0"), 2).predictions.tolist() == ["ab", ""]


@pytest.mark.parametrize(
    "response",
    [
        inference.ModelInferResponse(),
        answer("FP32", [2, 1], b"\0" * 4),
        answer("FP32", [1, 1], b"\0" * 4),
        answer("FP99", [2, 1], b"\0" * 8),
        inference.ModelInferResponse(raw_output_contents=[b""]),
    ],
)
def test_an_answer_that_is_none(response: inference.ModelInferResponse) -> None:
    with pytest.raises(ServerFault):
        result(response, 2)
