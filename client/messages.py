"""Callers' types as protobuf messages, and messages as callers' types. Pure; shared by the sync and the asyncio
client."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from trimtab.client.columns import encode_rows
from trimtab.client.errors import InvalidInput, NotFound, ServerFault
from trimtab.client.types import (
    Drift,
    DriftFeature,
    DriftMeasure,
    Event,
    FeedbackResult,
    JointDrift,
    Label,
    LossEstimate,
    Result,
    Rows,
    Tensor,
    Truth,
    one_per_row,
)
from trimtab.protos.v1 import inference_pb2 as inference
from trimtab.protos.v1 import trimtab_pb2 as trimtab

__all__ = [
    "drifts",
    "event",
    "feedback_request",
    "feedback_result",
    "infer_request",
    "labels_of",
    "micros",
    "only_model",
    "pin_request",
    "result",
    "tensors",
]

_DTYPES = {
    "BOOL": "?",
    "INT8": "<i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "UINT8": "<u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_OUTCOMES = {
    trimtab.LABEL_OUTCOME_ACCEPTED: "accepted",
    trimtab.LABEL_OUTCOME_DUPLICATE: "duplicate",
    trimtab.LABEL_OUTCOME_CONFLICT: "conflict",
    trimtab.LABEL_OUTCOME_INVALID: "invalid",
}


def tensors(metadata: inference.ModelMetadataResponse) -> tuple[Tensor, ...]:
    """The model's inputs."""
    return tuple(Tensor(item.name, item.datatype, tuple(item.shape)) for item in metadata.inputs)


def only_model(index: inference.RepositoryIndexResponse) -> str:
    """The name of the server's only model. Raises NotFound, InvalidInput where there are several."""
    names = sorted({entry.name for entry in index.models})
    if not names:
        raise NotFound("the server has no model")
    if len(names) > 1:
        raise InvalidInput(f"the server has several models; give model= one of {', '.join(map(repr, names))}")
    return names[0]


def infer_request(
    model: str,
    inputs: Sequence[Tensor],
    rows: Rows,
    *,
    version: str | int = "",
    time_us: int | None = None,
    request_id: str = "",
    outputs: Sequence[str] = (),
) -> tuple[inference.ModelInferRequest, int]:
    """The request for these rows, and their number. Raises InvalidInput."""
    encoded, count = encode_rows(rows, inputs)
    request = inference.ModelInferRequest(model_name=model, model_version=str(version), id=request_id)
    for tensor in encoded:
        request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        request.raw_input_contents.append(tensor.data)
    for name in outputs:
        request.outputs.add(name=name)
    if time_us is not None:
        request.parameters["trimtab_time_us"].int64_param = time_us
    return request, count


def result(response: inference.ModelInferResponse, rows: int) -> Result:
    """The answer. Raises ServerFault where it is not one to `rows` rows."""
    outputs: dict[str, NDArray[Any]] = {}
    raw = response.raw_output_contents
    if raw and len(raw) != len(response.outputs):
        raise ServerFault(f"the answer has {len(response.outputs)} outputs and {len(raw)} raw contents")
    try:
        for place, output in enumerate(response.outputs):
            outputs[output.name] = _array(output, raw[place] if raw else None)
    except (ValueError, KeyError) as error:
        raise ServerFault(f"the answer cannot be read: {error}") from error
    first = next(iter(outputs.values()), None)
    if first is None or len(first) != rows:
        raise ServerFault(f"the answer has {0 if first is None else len(first)} rows; {rows} were sent")
    parameters = response.parameters
    return Result(
        predictions=one_per_row(first),
        outputs=outputs,
        version=int(response.model_version) if response.model_version.isdecimal() else 0,
        weights=parameters["trimtab_weights"].string_param if "trimtab_weights" in parameters else "",
        request_id=parameters["trimtab_request_id"].string_param if "trimtab_request_id" in parameters else "",
        rows=rows,
        model=response.model_name,
        id=response.id,
    )


def _array(output: inference.ModelInferResponse.InferOutputTensor, raw: bytes | None) -> NDArray[Any]:
    shape = tuple(output.shape)
    if output.datatype == "BYTES":
        items = list(output.contents.bytes_contents) if raw is None else _texts(raw)
        texts = np.empty(len(items), dtype=object)
        texts[:] = [item.decode("utf-8", "replace") for item in items]
        return texts.reshape(shape)
    dtype = np.dtype(_DTYPES[output.datatype])
    if raw is None:
        return np.array(getattr(output.contents, _CONTENTS[output.datatype]), dtype).reshape(shape)
    return np.frombuffer(raw, dtype).reshape(shape)


def _texts(raw: bytes) -> list[bytes]:
    items, place = [], 0
    while place < len(raw):
        size = int.from_bytes(raw[place : place + 4], "little")
        items.append(raw[place + 4 : place + 4 + size])
        place += 4 + size
    return items


def micros(moment: datetime | int | None) -> int:
    """µs since the epoch, UTC; None: now. A datetime without a zone is UTC."""
    if moment is None:
        return time.time_ns() // 1000
    if isinstance(moment, datetime):
        aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        since = aware - datetime(1970, 1, 1, tzinfo=UTC)
        return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    return int(moment)


def labels_of(
    target: str | Result | Iterable[Label],
    values: Sequence[Truth] | NDArray[Any] | Mapping[int, Truth] | Truth | None,
    *,
    observed_at: datetime | int | None,
    source: str,
) -> list[Label]:
    """The labels that `feedback` was called with: a request and its values, or labels as such. Raises InvalidInput."""
    if isinstance(target, Result):
        target = target.request_id
    if not isinstance(target, str):
        if values is not None:
            raise InvalidInput("values belong to a request id; give labels alone, or a request id and its values")
        return list(target)
    if not target:
        raise InvalidInput("expected a request id, came an empty one")
    if values is None:
        raise InvalidInput("expected the values of the request's rows: feedback(request_id, values)")
    if isinstance(values, Mapping):
        pairs = list(values.items())
    elif isinstance(values, bool | int | float | str | np.generic):
        pairs = [(0, values)]
    else:
        pairs = list(enumerate(values))
    # A row whose truth is not known yet has none.
    known = [
        (row, value) for row, value in pairs if value is not None and not (isinstance(value, float) and value != value)
    ]
    return [Label(value, target, int(row), observed_at=observed_at, source=source) for row, value in known]


def feedback_request(model: str, labels: Iterable[Label]) -> trimtab.FeedbackRequest:
    """The request for these labels. Raises InvalidInput.

    A label without a time gets this machine's now: the call may be repeated after a lost answer, and is then a
    duplicate."""
    now = micros(None)
    request = trimtab.FeedbackRequest(model_name=model)
    for place, label in enumerate(labels):
        if bool(label.request_id) == bool(label.key):
            raise InvalidInput(f"label {place}: expected either a request_id or a key")
        if label.row < 0:
            raise InvalidInput(f"label {place}: expected a row ≥ 0, came {label.row}")
        item = request.labels.add(
            request_id=label.request_id,
            row=label.row,
            key=[str(part) for part in label.key],
            output=label.output,
            weight=label.weight,
            observed_at_us=now if label.observed_at is None else micros(label.observed_at),
            source=label.source,
        )
        value: Any = label.value.item() if isinstance(label.value, np.generic) else label.value
        if isinstance(value, bool):
            item.boolean = value
        elif isinstance(value, int | float):
            item.number = value
        elif isinstance(value, str):
            item.text = value
        else:
            raise InvalidInput(f"label {place}: expected a number, a boolean or a string, came {type(value).__name__}")
    return request


def feedback_result(response: trimtab.FeedbackResponse) -> FeedbackResult:
    """What became of the labels."""
    return FeedbackResult(
        response.accepted,
        response.duplicate,
        response.conflict,
        response.invalid,
        tuple(_OUTCOMES.get(outcome, "unspecified") for outcome in response.outcomes),
        response.first_error,
    )


def drifts(response: trimtab.DriftResponse) -> list[Drift]:
    """The windows, newest last."""
    return [_drift(report) for report in response.reports]


def _drift(report: trimtab.DriftReport) -> Drift:
    features = tuple(
        DriftFeature(
            item.feature,
            tuple(DriftMeasure(part.name, part.value, part.effect, part.p_value) for part in item.statistics),
            item.missing_rate,
            item.reference_missing_rate,
            item.unseen_rate,
            item.adjusted_p_value,
            item.persistence,
            item.alarm,
        )
        for item in report.features
    )
    return Drift(
        report.model_name,
        report.window,
        report.start_us,
        report.end_us,
        report.rows,
        report.reference_rows,
        report.alarms,
        features,
        _estimate(report.estimate) if report.HasField("estimate") else None,
        report.reference or "training",
        _joint(report.joint) if report.HasField("joint") else None,
    )


def _joint(found: trimtab.JointDrift) -> JointDrift:
    return JointDrift(
        found.mmd,
        found.effect,
        found.p_value,
        found.rows,
        found.reference_rows,
        found.persistence,
        found.alarm,
    )


def _estimate(found: trimtab.LossEstimate) -> LossEstimate:
    auc = found.auc if found.HasField("auc") else None
    return LossEstimate(found.loss, found.standard_error, found.evaluated_loss, found.p_value, auc)


def pin_request(
    model: str, windows: tuple[int, int] | None, sketch: bytes | None, origin: str
) -> trimtab.PinReferenceRequest:
    """What windows are to be compared with; neither windows nor a sketch: the training data."""
    request = trimtab.PinReferenceRequest(model_name=model, origin=origin)
    if windows is not None:
        request.windows.first, request.windows.last = windows
    elif sketch is not None:
        request.sketch = sketch
    return request


def event(message: trimtab.Event) -> Event:
    """The event."""
    return Event(
        message.kind, message.model_name, message.version, message.message, message.time_us, dict(message.numbers)
    )
