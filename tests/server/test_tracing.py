"""Tracing: who is traced, what becomes of a malformed traceparent, and the spans that a real OTLP receiver gets."""

from __future__ import annotations

import contextlib
import http.server
import itertools
import json
import re
import socket
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimtab._native import HAS_FRONT, Tracing
from trimtab.server.errors import StartError
from trimtab.server.tracing import SpanSender, Traced, tracing_of
from trimtab.store.errors import StoreError
from trimtab.store.settings import TracingSettings

from .world import Running, infer_request, publish, serving, table, write_project

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the otel extra is not installed")

from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

TRANSPORTS = ["grpcio", *(["native"] if HAS_FRONT else [])]
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"
SECOND = 1_000_000_000
ENVIRONMENT = {"OTEL_SDK_DISABLED": "", "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}


# --- who is traced


def tracing(ratio: float = 0.0, per_second: int = 1_000_000, capacity: int = 1_000_000) -> Tracing:
    return Tracing(ratio, per_second, capacity)


def test_the_flag_decides_whatever_the_ratio() -> None:
    for ratio in (0.0, 1.0):
        traces = tracing(ratio)
        assert traces.trace(SAMPLED.encode(), 1)
        assert not traces.trace(UNSAMPLED.encode(), 1)
        (row,) = traces.drain()
        assert (row[0].hex(), row[1]) == (TRACE, bytes.fromhex(PARENT))


def test_without_a_traceparent_the_ratio_decides() -> None:
    assert not any(tracing(0.0).trace(b"", 1) for _ in range(1000))
    assert all(tracing(1.0).trace(b"", 1) for _ in range(1000))
    traces = tracing(0.1)
    count = sum(traces.trace(b"", 1) for _ in range(20_000))
    assert 1600 < count < 2400  # ten standard deviations
    rows = traces.drain()
    assert len({row[0] for row in rows}) == count
    assert all(row[1] is None for row in rows)
    # By the last eight bytes of the id, so that whoever decides by them decides alike.
    assert all(int.from_bytes(row[0][8:], "big") < 0.1 * 2**64 for row in rows)


def is_sampled(text: bytes) -> bool | None:
    """The W3C's recommendation, by a regular expression; None: malformed."""
    found = re.fullmatch(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", text, re.DOTALL)
    if found is None or len(text) > 256 or found[1] == b"ff" or (found[1] == b"00" and found[5] is not None):
        return None
    if found[2] == b"0" * 32 or found[3] == b"0" * 16:
        return None
    return bool(int(found[4], 16) & 1)


HEX = "0123456789abcdef"
ALMOST = st.builds(
    "-".join,
    st.tuples(
        st.sampled_from(["00", "01", "fe", "ff", "0", "FF", "0g"]),
        st.one_of(st.text(HEX, min_size=31, max_size=33), st.sampled_from(["0" * 32, TRACE, TRACE.upper()])),
        st.one_of(st.text(HEX, min_size=15, max_size=17), st.sampled_from(["0" * 16, PARENT])),
        st.sampled_from(["00", "01", "02", "03", "ff", "0", "1g", "01-", "01-more", "01more", "01 "]),
    ),
)
CUT = st.builds(
    lambda size, more: (SAMPLED[:size] + more).encode(), st.integers(0, 55), st.sampled_from(["", "-", "\0"])
)
CHANGED = st.builds(
    lambda at, byte: SAMPLED.encode()[:at] + bytes([byte]) + SAMPLED.encode()[at + 1 :],
    st.integers(0, 54),
    st.integers(0, 255),
)
LONG = st.integers(190, 210).map(lambda size: f"01-{TRACE}-{PARENT}-01-".encode() + b"x" * size)


@given(st.one_of(ALMOST.map(str.encode), CUT, CHANGED, LONG, st.binary(max_size=300)))
def test_hostile_traceparents_count_as_none(text: bytes) -> None:
    sampled = is_sampled(text)
    assert tracing(0.0).trace(text, 1) is bool(sampled)
    always = tracing(1.0)
    assert always.trace(text, 1) is (sampled is not False)
    for row in always.drain():
        assert (row[1] is None) == (sampled is None)
        assert any(row[0])


def test_so_many_a_second() -> None:
    traces = tracing(per_second=3)
    assert sum(traces.trace(SAMPLED.encode(), SECOND + i) for i in range(10)) == 3
    assert traces.over_rate == 7
    assert not traces.trace(UNSAMPLED.encode(), SECOND)
    assert traces.over_rate == 7, "what is not to be traced is not dropped"
    assert not traces.trace(SAMPLED.encode(), 2 * SECOND - 1)
    assert traces.trace(SAMPLED.encode(), 2 * SECOND)


def test_no_more_wait_than_there_is_room_for() -> None:
    traces = tracing(capacity=4)
    for _ in range(10):
        traces.trace(SAMPLED.encode(), 1)
    assert traces.over_capacity == 6
    assert len(traces.drain()) == 4
    traces.trace(SAMPLED.encode(), 1)
    assert len(traces.drain()) == 1


# --- sending


class Exporter(SpanExporter):
    def __init__(self, *results: Any) -> None:
        self.results = list(results)
        self.spans: list[ReadableSpan] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self.results.pop(0)
        if isinstance(result, Exception):
            raise result
        self.spans += spans
        assert isinstance(result, SpanExportResult)
        return result


def test_what_the_collector_does_not_take_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    good, bad = SpanExportResult.SUCCESS, SpanExportResult.FAILURE
    sender = SpanSender(TracingSettings(), Exporter(bad, RuntimeError("refused"), good, good))
    for _ in range(4):
        sender.tracing.trace(SAMPLED.encode(), 1)
        sender.send()
    sender.send()
    assert (sender.sent, sender.dropped()) == (2, {"rate": 0, "buffer": 0, "export": 2})
    assert [record.message for record in caplog.records] == [
        "tracing: the collector takes no spans",
        "tracing: the collector answers again",
    ]


def test_the_extra_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_SDK_DISABLED", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    assert tracing_of(TracingSettings()) is None
    with pytest.raises(StartError, match=r"pip install 'trimtab\[otel\]'"):
        tracing_of(TracingSettings(enabled=True))


def test_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_SDK_DISABLED", "OTEL_SERVICE_NAME", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        monkeypatch.delenv(name, raising=False)
    on = TracingSettings(enabled=True)

    def name(settings: TracingSettings) -> Any:
        sender = SpanSender(settings, exporter := Exporter(SpanExportResult.SUCCESS))
        sender.tracing.trace(SAMPLED.encode(), 1)
        sender.send()
        return exporter.spans[0].resource.attributes["service.name"]

    assert name(on) == "trimtab"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "flights")
    assert name(on) == "flights"
    assert name(TracingSettings(service_name="own")) == "own"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(StartError, match="expected http/protobuf"):
        tracing_of(on)
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert tracing_of(on) is None


def test_an_endpoint_is_a_url(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="expected a URL"):
        write_project(tmp_path, tail='[server.tracing]\nendpoint = "collector:4317"\n')


# --- to a real receiver


class Collector:
    """OTLP over HTTP, as a collector speaks it."""

    def __init__(self) -> None:
        self.paths: set[str] = set()
        self._spans: list[Any] = []
        self._resources: list[Any] = []
        self._changed = threading.Condition()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.take(self.path, otlp.ExportTraceServiceRequest.FromString(body))
                answer = otlp.ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def take(self, path: str, request: Any) -> None:
        with self._changed:
            self.paths.add(path)
            for resource in request.resource_spans:
                self._resources.append({a.key: a.value.string_value for a in resource.resource.attributes})
                for scope in resource.scope_spans:
                    self._spans += scope.spans
            self._changed.notify_all()

    def traces(self, count: int, seconds: float = 30.0) -> list[dict[str, Any]]:
        """Each request's spans by name, once there are so many; the request's own is "server"."""
        with self._changed:
            assert self._changed.wait_for(lambda: sum(s.kind == 2 for s in self._spans) >= count, seconds)
            spans = list(self._spans)
        made = []
        for span in spans:
            if span.kind == 2:
                children = {s.name: s for s in spans if s.parent_span_id == span.span_id}
                made.append({**children, "server": span})
        assert sum(map(len, made)) == len(spans)
        return made

    @property
    def resource(self) -> dict[str, str]:
        return dict(self._resources[0])

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    try:
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def traced(directory: Path, transport: str, endpoint: str, lines: str = "", **environment: str) -> Iterator[Running]:
    where = f'endpoint = "{endpoint}"' if endpoint else ""
    tail = f"[server.tracing]\nenabled = true\n{where}\n{lines}\n"
    project = write_project(directory / "project", tail=tail)
    publish(project, 1, verdict="initial")
    with serving(project, {**ENVIRONMENT, **environment}, transport=transport) as running:
        yield running


def attributes(span: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


def metric(running: Running, name: str) -> float:
    with urllib.request.urlopen(f"http://{running.http}/metrics") as page:
        text = page.read().decode()
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if re.match(rf"{name}[{{ ]", line))


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_traced_request_goes_on_with_its_clients_trace(tmp_path: Path, transport: str, collector: Collector) -> None:
    with traced(tmp_path, transport, collector.url, "ratio = 0.0") as running, running.inference() as stub:
        rows = table(3)
        for header in (UNSAMPLED, "hostile", SAMPLED.upper(), SAMPLED):
            answer = stub.ModelInfer(infer_request(rows), metadata=[("traceparent", header)])
        stub.ModelInfer(infer_request(rows))
        (trace,) = collector.traces(1)
        server = trace["server"]
        assert (server.trace_id.hex(), server.parent_span_id.hex()) == (TRACE, PARENT)
        assert server.name == "inference.GRPCInferenceService/ModelInfer"
        assert {**attributes(server), "trimtab.request_id": ""} == {
            "rpc.system": "grpc",
            "rpc.service": "inference.GRPCInferenceService",
            "rpc.method": "ModelInfer",
            "rpc.grpc.status_code": 0,
            "trimtab.model": "tiny",
            "trimtab.version": 1,
            "trimtab.rows": 3,
            "trimtab.request_id": "",
        }
        assert attributes(server)["trimtab.request_id"] == answer.parameters["trimtab_request_id"].string_param
        assert set(trace) == {"server", "queue", "compute", "encode"}
        assert all(trace[name].trace_id == server.trace_id for name in trace)
        assert attributes(trace["compute"]) == {"trimtab.batch_rows": 3}
        parts = [trace[name] for name in ("queue", "compute", "encode")]
        assert parts[0].start_time_unix_nano == server.start_time_unix_nano
        assert parts[-1].end_time_unix_nano <= server.end_time_unix_nano
        for one, following in itertools.pairwise(parts):
            assert one.start_time_unix_nano <= one.end_time_unix_nano == following.start_time_unix_nano
        assert running.stop() == 0
    assert collector.paths == {"/v1/traces"}
    assert collector.resource["service.name"] == "trimtab"
    assert len(collector.traces(1)) == 1


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_streams_rest_and_refusals_are_traced(tmp_path: Path, transport: str, collector: Collector) -> None:
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_SERVICE_NAME": "flights"}
    with traced(tmp_path, transport, "", **environment) as running, running.inference() as stub:
        metadata = [("traceparent", SAMPLED)]
        requests = [infer_request(table(2)), infer_request(table(1), model="absent")]
        assert len(list(stub.ModelStreamInfer(iter(requests), metadata=metadata))) == 2
        one = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1.0]}
        url = f"http://{running.http}/v2/models/tiny/infer"
        headers = {"traceparent": SAMPLED, "content-type": "application/json"}
        with contextlib.suppress(urllib.error.HTTPError):
            urllib.request.urlopen(urllib.request.Request(url, json.dumps({"inputs": [one]}).encode(), headers))
        assert running.stop() == 0
    found = [(t["server"].name.rpartition("/")[2], attributes(t["server"]), set(t)) for t in collector.traces(3)]
    whole = {"server", "queue", "compute", "encode"}
    seen = {(name, given["rpc.grpc.status_code"]): parts for name, given, parts in found}
    assert seen.pop(("ModelStreamInfer", 0)) == whole
    assert seen.pop(("ModelStreamInfer", 5)) == {"server"}
    ((name, _),) = seen
    assert name == "ModelInfer"
    assert all(t["server"].trace_id.hex() == TRACE for t in collector.traces(3))
    assert collector.resource["service.name"] == "flights"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_beyond_the_rate_requests_are_counted_and_served(tmp_path: Path, transport: str, collector: Collector) -> None:
    # No more than one a second, however long it takes.
    with traced(tmp_path, transport, collector.url, "per_second = 1\nratio = 1.0") as running:
        with running.inference() as stub:
            for _ in range(50):
                stub.ModelInfer(infer_request(table(1)))
        dropped = metric(running, "trimtab_spans_dropped_total")
        assert running.stop() == 0
    traces = collector.traces(1)
    assert all(not trace["server"].parent_span_id for trace in traces)
    assert len(traces) + dropped == 50
    assert dropped > 0


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_collector_that_hangs_stalls_neither_serving_nor_stopping(tmp_path: Path, transport: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with traced(tmp_path, transport, endpoint, "ratio = 1.0") as running, running.inference() as stub:
            stub.ModelInfer(infer_request(table(1)))
            connection, _ = silent.accept()  # the sender is in its call now
            with connection:
                for _ in range(20):
                    stub.ModelInfer(infer_request(table(1)), timeout=20)
                assert running.stop() == 0


def test_no_collector_at_all(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with traced(tmp_path, TRANSPORTS[-1], f"http://127.0.0.1:{port}", "ratio = 1.0") as running:
        with running.inference() as stub:
            stub.ModelInfer(infer_request(table(1)))
        assert running.stop() == 0
    assert "takes no spans" in running.log.read_text()


def test_off_it_says_nothing(tmp_path: Path) -> None:
    project = write_project(tmp_path / "project")
    publish(project, 1, verdict="initial")
    with serving(project) as running, running.inference() as stub:
        stub.ModelInfer(infer_request(table(1)), metadata=[("traceparent", SAMPLED)])
        with urllib.request.urlopen(f"http://{running.http}/metrics") as page:
            assert b"trimtab_spans" not in page.read()


def test_rows_have_as_many_fields() -> None:
    traces = tracing()
    traces.trace(SAMPLED.encode(), 7)
    (row,) = traces.drain()
    assert Traced(*row)._replace(arrived=0, ended=0) == Traced(
        bytes.fromhex(TRACE), bytes.fromhex(PARENT), "", 0, 0, 0, False, 0, "", 0, 0, 0, 0, 0
    )
