"""Feedback: labels in. A call's labels are stored as one group, and are on disk when it is answered.

A label that cannot be one of the model's (no such id, key, output or class) is counted as invalid and not stored; the
others of its call are. Values are stored in the task's own form: a class by its name, however the client spelt it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from trimtab.models.tasks import Task
from trimtab.models.version import LoadedVersion
from trimtab.protos.v1 import trimtab_pb2 as pb
from trimtab.server.errors import Draining, Unfit
from trimtab.server.served import Model, Registry
from trimtab.server.transport import Call, Handler, Service, service
from trimtab.store.errors import InvalidId
from trimtab.store.files import now_us
from trimtab.store.ids import parse_id
from trimtab.store.labels import LabelRow, Outcome, refusal

__all__ = ["FeedbackServicer"]

_SEPARATOR = "\x1f"


class _Invalid(Exception):
    """Why a label cannot be one of the model's."""


class FeedbackServicer:
    """See the module."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def service(self) -> Service:
        """The service, for a listener."""
        handlers: dict[str, Handler] = {"Send": self.send, "SendStream": self.send_stream}
        return service(pb.DESCRIPTOR.services_by_name["Feedback"], handlers, accepted=["Send", "SendStream"])

    async def send(self, request: pb.FeedbackRequest, _call: Call) -> pb.FeedbackResponse:
        """Stores the labels and says what became of each."""
        outcomes, error = await self._store(request)
        response = _count(pb.FeedbackResponse(outcomes=[pb.LabelOutcome.ValueType(o) for o in outcomes]), outcomes)
        response.first_error = error
        return response

    async def send_stream(self, requests: AsyncIterator[pb.FeedbackRequest], _call: Call) -> pb.FeedbackResponse:
        """The same for each of a stream; the answer counts all."""
        response = pb.FeedbackResponse()
        async for request in requests:
            outcomes, error = await self._store(request)
            _count(response, outcomes)
            response.first_error = response.first_error or error
        return response

    async def _store(self, request: pb.FeedbackRequest) -> tuple[list[Outcome], str]:
        if self._registry.draining:
            raise Draining("the server is stopping; send these labels again later")
        model = self._registry.model(request.model_name)
        if model.settings.takes_tensors:
            raise Unfit(f"model {model.name!r} takes tensors, and has no labels")
        rows, errors = _read(model, request.labels)
        good = [row for row in rows if row is not None]
        found = await asyncio.wrap_future(model.labels.submit(good)) if good else []
        stored = iter(found)
        outcomes = [Outcome.INVALID if row is None else next(stored) for row in rows]
        counts = model.label_counts
        counts.accepted += outcomes.count(Outcome.ACCEPTED)
        counts.duplicate += outcomes.count(Outcome.DUPLICATE)
        counts.conflict += outcomes.count(Outcome.CONFLICT)
        counts.invalid += outcomes.count(Outcome.INVALID)
        if good:
            model.news.set()
        return outcomes, errors[0] if errors else ""


def _read(model: Model, labels: Sequence[pb.Label]) -> tuple[list[LabelRow | None], list[str]]:
    """A row per label, None where it is invalid, and why those are."""
    live = model.engine.table.live
    assert isinstance(live, LoadedVersion)
    task = live.task
    values = [_value(label) for label in labels]
    encoded, known = task.try_encode(values)
    rows: list[LabelRow | None] = []
    errors: list[str] = []
    now = now_us()
    for position, label in enumerate(labels):
        try:
            if not known[position]:
                raise _Invalid(_expected(task, values[position]))
            row = _row(model, label, task.decode_label(encoded[position]), task, now)
            why = refusal(row)
            if why is not None:
                raise _Invalid(why)
        except (_Invalid, InvalidId) as error:
            rows.append(None)
            errors.append(f"label {position}: {error}")
        else:
            rows.append(row)
    return rows, errors


def _row(model: Model, label: pb.Label, value: float | str, task: Task, now: int) -> LabelRow:
    output = task.outputs()[0][0]
    if label.output not in ("", output):
        raise _Invalid(f"output: expected {output!r} or none, got {label.output!r}")
    names = model.settings.label.key
    key = None
    if label.key:
        if len(label.key) != len(names):
            raise _Invalid(f"key: expected the values of {list(names)}, got {len(label.key)} values")
        if any(_SEPARATOR in text for text in label.key):
            raise _Invalid("key: expected text without U+001F")
        key = _SEPARATOR.join(label.key)
    elif not label.request_id:
        raise _Invalid("expected a request_id" + (f" or a key of {list(names)}" if names else ""))
    return LabelRow(
        request_id=parse_id(label.request_id) if label.request_id else None,
        row=label.row,
        key=key,
        output=output,
        value=value,
        weight=label.weight or 1.0,
        observed_at_us=label.observed_at_us or now,
        source=label.source,
    )


def _value(label: pb.Label) -> float | str | bool | None:
    chosen = label.WhichOneof("truth")
    value: float | str | bool | None = getattr(label, chosen) if chosen is not None else None
    return value


def _expected(task: Task, value: object) -> str:
    expected = "a finite number" if task.kind == "regression" else f"one of {list(task.classes)[:12]}"
    return f"value: expected {expected}, got {'none' if value is None else repr(value)[:80]}"


def _count(response: pb.FeedbackResponse, outcomes: Sequence[Outcome]) -> pb.FeedbackResponse:
    response.accepted += outcomes.count(Outcome.ACCEPTED)
    response.duplicate += outcomes.count(Outcome.DUPLICATE)
    response.conflict += outcomes.count(Outcome.CONFLICT)
    response.invalid += outcomes.count(Outcome.INVALID)
    return response
