"""Feedback: labels in. A call's labels are stored as one group, and are on disk when it is answered.

Two ways lead to the same store. Calls that come through asyncio are handled one by one. Unary calls of the native
transport wait in a native queue, and a thread of its own (`FeedbackGroups`) takes all of them at once: it reads them,
gives all their labels to the store, waits for the commits, and answers all in one call.

A label that cannot be one of the model's (no such id, key, output or class) is counted as invalid and not stored; the
others of its call are. Values are stored in the task's own form: a class by its name, however the client spelt it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from google.protobuf.message import DecodeError
from trimtab._native import GroupQueue
from trimtab.models.tasks import Task
from trimtab.models.version import LoadedVersion
from trimtab.protos.v1 import trimtab_pb2 as pb
from trimtab.server.errors import Draining, InvalidRequest, Unfit, status, status_number
from trimtab.server.served import Model, Registry
from trimtab.server.transport import Call, Handler, Service, service
from trimtab.store.errors import InvalidId
from trimtab.store.files import now_us
from trimtab.store.ids import parse_id
from trimtab.store.labels import LabelRow, Outcome, refusal

__all__ = ["FeedbackGroups", "FeedbackServicer"]

_log = logging.getLogger(__name__)
# Bytes of calls that may wait, and calls that are taken together.
_WAITING_BYTES, _GROUP = 256 << 20, 1024
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
        return _response(*await self._store(request))

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
        begun = _begin(self._registry, request)
        outcomes = begun.outcomes(await asyncio.wrap_future(begun.stored) if begun.stored is not None else [])
        _note(begun.model, outcomes)
        return outcomes, begun.error


class FeedbackGroups:
    """Serves the group queue on a thread of its own; see the module. Made on the loop."""

    def __init__(self, registry: Registry) -> None:
        self.queue = GroupQueue(_WAITING_BYTES, _GROUP)
        self._registry = registry
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="trimtab-feedback", daemon=True)

    def startup(self) -> None:
        """Begins to serve."""
        self._thread.start()

    def shutdown(self) -> None:
        """Serves what is queued, and ends."""
        self.queue.close()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while (group := self.queue.take()) is not None:
            begun = [self._begin(body) for body in group.bodies]
            group.answer([self._end(one) for one in begun])

    def _begin(self, body: bytes) -> _Begun | Exception:
        try:
            return _begin(self._registry, pb.FeedbackRequest.FromString(body))
        except DecodeError:
            return InvalidRequest("expected a FeedbackRequest, came bytes that are none")
        except Exception as error:
            return error

    def _end(self, begun: _Begun | Exception) -> tuple[int, str, bytes]:
        try:
            if isinstance(begun, Exception):
                raise begun
            outcomes = begun.outcomes(begun.stored.result() if begun.stored is not None else [])
            # The counts and the news belong to the loop; it may be closed already.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(_note, begun.model, outcomes)
            return 0, "", _response(outcomes, begun.error).SerializeToString()
        except Exception as error:
            if status(error)[0] == "INTERNAL":
                _log.error("Feedback/Send failed", exc_info=error)
            return status_number(error), status(error)[1], b""


@dataclass(frozen=True, slots=True)
class _Begun:
    """A call whose labels were read, and given to the store."""

    model: Model
    rows: list[LabelRow | None]
    error: str
    """Why the first invalid label is."""
    stored: Future[list[Outcome]] | None
    """None where no label is valid."""

    def outcomes(self, found: list[Outcome]) -> list[Outcome]:
        """What became of each label, the store's answer being `found`."""
        stored = iter(found)
        return [Outcome.INVALID if row is None else next(stored) for row in self.rows]


def _begin(registry: Registry, request: pb.FeedbackRequest) -> _Begun:
    model = registry.model(request.model_name)
    if model.settings.takes_tensors:
        raise Unfit(f"model {model.name!r} takes tensors, and has no labels")
    rows, errors = _read(model, request.labels)
    good = [row for row in rows if row is not None]
    return _Begun(model, rows, errors[0] if errors else "", model.labels.submit(good) if good else None)


def _note(model: Model, outcomes: Sequence[Outcome]) -> None:
    """Counts what became of a call's labels, and tells of them; on the loop."""
    counts = model.label_counts
    counts.accepted += outcomes.count(Outcome.ACCEPTED)
    counts.duplicate += outcomes.count(Outcome.DUPLICATE)
    counts.conflict += outcomes.count(Outcome.CONFLICT)
    counts.invalid += outcomes.count(Outcome.INVALID)
    if len(outcomes) > outcomes.count(Outcome.INVALID):
        model.news.set()


def _response(outcomes: Sequence[Outcome], error: str) -> pb.FeedbackResponse:
    response = _count(pb.FeedbackResponse(outcomes=[pb.LabelOutcome.ValueType(o) for o in outcomes]), outcomes)
    response.first_error = error
    return response


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
