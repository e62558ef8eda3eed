"""OpenTelemetry spans of traced inference requests: made from what the hub recorded, sent by a thread of their own.

The hub decides which requests are traced and records their instants (csrc/tracing.h); nothing here runs per request
while it is served. Once a second the thread takes what has ended, makes the spans and sends them by OTLP over HTTP. A
collector that is slow or down holds up this thread alone: meanwhile ended requests wait in the hub's bounded list, and
what does not fit is counted as dropped. Spans are made as ReadableSpan with ids and times given: an SDK tracer would
decide about sampling again, and keeps a context that belongs to no thread here.

A request is one SERVER span with up to three children: "queue" from its arrival until its batch forms, "compute" until
the model's outputs are there, "encode" until the answers of its batch are written. A refused request has none. A
request by REST is a ModelInfer that came another way, and has the same span.

opentelemetry is an extra: nothing imports it unless tracing is on.
"""

from __future__ import annotations

import importlib
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING, NamedTuple

from trimtab._native import Tracing
from trimtab.server.errors import StartError, status_name
from trimtab.store.settings_tracing import TracingSettings

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter

__all__ = ["SpanSender", "Traced", "spans_of", "tracing_of"]

_log = logging.getLogger(__name__)
_SERVICE = "inference.GRPCInferenceService"
_CAPACITY, _CHUNK = 8192, 512
_INTERVAL, _LAST_CALL, _MOMENT = 1.0, 2.0, 0.5
# gRPC statuses that are the server's fault, in the words of the semantic conventions.
_FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})


class Traced(NamedTuple):
    """A row of Tracing.drain(). Instants are ns of the monotonic clock; 0: the request never came so far."""

    trace: bytes
    parent: bytes | None
    model: str
    version: int
    rows: int
    batch_rows: int
    in_stream: bool
    status: int
    request_id: str
    arrived: int
    formed: int
    computed: int
    encoded: int
    ended: int


def tracing_of(settings: TracingSettings) -> SpanSender | None:
    """What sends the spans; None where nothing is traced. Raises StartError where that is asked for and cannot be."""
    if not settings.enabled or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if protocol not in (None, "", "http/protobuf"):
        raise StartError(
            f"OTEL_EXPORTER_OTLP_PROTOCOL: expected http/protobuf, the one that is spoken; got {protocol!r}"
        )
    try:
        module = importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        importlib.import_module("opentelemetry.sdk.trace")
    except ImportError as error:
        raise StartError(
            f"[server.tracing] enabled needs OpenTelemetry ({error}): pip install 'trimtab[otel]', or set it to false"
        ) from None
    endpoint = f"{settings.endpoint.rstrip('/')}/v1/traces" if settings.endpoint else None
    # It would write a line for every attempt; SpanSender writes one for an outage.
    logging.getLogger("opentelemetry.exporter.otlp").setLevel(logging.CRITICAL)
    try:
        exporter = module.OTLPSpanExporter(endpoint=endpoint)
    except Exception as error:  # of what the environment says
        raise StartError(f"[server.tracing]: {error}") from None
    return SpanSender(settings, exporter)


def _resource(name: str) -> Resource:
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource

    given: dict[str, str] = {"service.version": version("trimtab")}
    if name:
        given[SERVICE_NAME] = name
    made = Resource.create(given)
    # The SDK's own default, which says that nobody gave a name.
    if str(made.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        made = made.merge(Resource({SERVICE_NAME: "trimtab"}))
    return made


def spans_of(requests: Iterable[Traced], resource: Resource, since_1970: int) -> Iterator[ReadableSpan]:
    """The spans of requests; `since_1970`: what makes the monotonic clock's instants those of the wall clock, in ns."""
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

    ids = RandomIdGenerator()
    scope = InstrumentationScope("trimtab", version("trimtab"))
    sampled = TraceFlags(TraceFlags.SAMPLED)

    def child(
        name: str, parent: SpanContext, begin: int, end: int, attributes: dict[str, str | int] | None = None
    ) -> ReadableSpan:
        return ReadableSpan(
            name,
            context=SpanContext(parent.trace_id, ids.generate_span_id(), is_remote=False, trace_flags=sampled),
            parent=parent,
            resource=resource,
            attributes=attributes or {},
            kind=SpanKind.INTERNAL,
            start_time=begin + since_1970,
            end_time=end + since_1970,
            instrumentation_scope=scope,
        )

    for request in requests:
        trace = int.from_bytes(request.trace, "big")
        own = SpanContext(trace, ids.generate_span_id(), is_remote=False, trace_flags=sampled)
        parent = None
        if request.parent is not None:
            number = int.from_bytes(request.parent, "big")
            parent = SpanContext(trace, number, is_remote=True, trace_flags=sampled)
        method = "ModelStreamInfer" if request.in_stream else "ModelInfer"
        code = status_name(request.status)
        yield ReadableSpan(
            f"{_SERVICE}/{method}",
            context=own,
            parent=parent,
            resource=resource,
            attributes=_attributes(request, method),
            kind=SpanKind.SERVER,
            status=Status(StatusCode.ERROR, code) if code in _FAULTS else Status(),
            start_time=request.arrived + since_1970,
            end_time=request.ended + since_1970,
            instrumentation_scope=scope,
        )
        if request.formed:
            yield child("queue", own, request.arrived, request.formed)
        if request.computed:
            rows: dict[str, str | int] = {"trimtab.batch_rows": request.batch_rows}
            yield child("compute", own, request.formed, request.computed, rows)
            yield child("encode", own, request.computed, request.encoded)


def _attributes(request: Traced, method: str) -> dict[str, str | int]:
    made: dict[str, str | int] = {
        "rpc.system": "grpc",
        "rpc.service": _SERVICE,
        "rpc.method": method,
        "rpc.grpc.status_code": request.status,
    }
    if request.model:
        made["trimtab.model"] = request.model
        made["trimtab.rows"] = request.rows
    if request.version:
        made["trimtab.version"] = request.version
    if request.request_id:
        made["trimtab.request_id"] = request.request_id
    return made


class SpanSender:
    """See the module. `tracing` is for the hub."""

    def __init__(self, settings: TracingSettings, exporter: SpanExporter) -> None:
        self.tracing = Tracing(settings.ratio, settings.per_second, _CAPACITY)
        self._exporter = exporter
        self._resource = _resource(settings.service_name)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spans", daemon=True)
        self._down = False
        self.sent = 0
        """Requests whose spans the collector has."""
        self.refused = 0
        """Requests whose spans the collector did not take."""

    def startup(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def shutdown(self, seconds: float) -> None:
        """Sends what is there, in at most so many seconds and never more than a few. Blocks."""
        self._stop.set()
        if not self._thread.ident:
            return
        self._thread.join(min(seconds, _LAST_CALL))
        if self._thread.is_alive():
            # Ends its attempts to reach a collector that is not there. The thread is a daemon: should it hang in a
            # connection, it goes with the process.
            self._exporter.shutdown()
            self._thread.join(_MOMENT)

    def dropped(self) -> dict[str, int]:
        """Requests that were to be traced and whose spans are lost, by reason."""
        return {
            "rate": self.tracing.over_rate,
            "buffer": self.tracing.over_capacity,
            "export": self.refused,
        }

    def _run(self) -> None:
        while not self._stop.wait(_INTERVAL):
            self.send()
        self.send()
        self._exporter.shutdown()

    def send(self) -> None:
        """Sends what has ended until now. On the thread, or where there is none."""
        from opentelemetry.sdk.trace.export import SpanExportResult

        requests = [Traced(*row) for row in self.tracing.drain()]
        offset = time.time_ns() - time.monotonic_ns()
        for first in range(0, len(requests), _CHUNK):
            chunk = requests[first : first + _CHUNK]
            reason = ""
            try:
                taken = self._exporter.export(list(spans_of(chunk, self._resource, offset)))
                done = taken is SpanExportResult.SUCCESS
            except Exception as error:  # whatever it is, the next second's spans are sent
                done, reason = False, f": {error}"
            if done:
                self.sent += len(chunk)
            else:
                self.refused += len(chunk)
            if done == self._down:
                self._down = not done
                _log.warning("tracing: the collector %s", "answers again" if done else f"takes no spans{reason}")
