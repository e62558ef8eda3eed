"""REST v2: over a real server, and over handlers of the test's own where time and failure matter."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import http.client
import json
import re
import signal
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from trimtab.protos.v1 import inference_pb2 as pb
from trimtab.server.errors import BatchFailed, Draining, QueueFull
from trimtab.server.http import HttpServer
from trimtab.server.http_connection import Connection
from trimtab.server.rest import Rest
from trimtab.server.served import Registry
from trimtab.server.transport import Method, Service, service
from trimtab.store.project import Project

from .world import Running, expected, infer_request, loaded, predictions, publish, serving, table, write_project

ROWS = table(3)


def columns(rows: Any = ROWS) -> list[dict[str, Any]]:
    """Inputs in JSON."""
    made = []
    for field in rows.schema:
        datatype = {"float": "FP32", "bool": "BOOL", "int64": "INT64", "string": "BYTES"}[str(field.type)]
        made.append(
            {
                "name": field.name,
                "datatype": datatype,
                "shape": [rows.num_rows, 1],
                "data": rows.column(field.name).to_pylist(),
            }
        )
    return made


class Client:
    """One connection to a REST server."""

    def __init__(self, address: str) -> None:
        self.connection = http.client.HTTPConnection(address, timeout=30)

    def call(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        content = json.dumps(body).encode() if isinstance(body, dict | list) else body
        self.connection.request(method, path, content, headers or {})
        response = self.connection.getresponse()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()

    def json(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        number, _, content = self.call(method, path, body)
        return number, json.loads(content) if content else None


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Project, Running]]:
    project = write_project(tmp_path_factory.mktemp("rest") / "project", server="max_message_bytes = 200000")
    publish(project, 1, verdict="initial")
    with serving(project) as running:
        yield project, running


@pytest.fixture
def client(served: tuple[Project, Running]) -> Iterator[Client]:
    made = Client(served[1].http)
    yield made
    made.connection.close()


INFER = "/v2/models/tiny/infer"


def test_rest_and_grpc_give_the_same_answer(served: tuple[Project, Running], client: Client) -> None:
    number, answer = client.json("POST", INFER, {"id": "é", "inputs": columns()})
    assert number == 200
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("tiny", "1", "é")
    with served[1].inference() as stub:
        response = stub.ModelInfer(infer_request(ROWS))
    (output,) = answer["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("probability", "FP32", [3, 1])
    np.testing.assert_array_equal(np.array(output["data"], np.float32), predictions(response))
    np.testing.assert_allclose(output["data"], expected(loaded(served[0], 1), ROWS), rtol=1e-6)
    assert answer["parameters"].keys() == response.parameters.keys()
    assert answer["parameters"]["trimtab_weights"] == response.parameters["trimtab_weights"].string_param


def test_a_binary_answer_begins_with_its_json(client: Client) -> None:
    number, headers, content = client.call(
        "POST", INFER, {"inputs": columns(), "parameters": {"binary_data_output": True}}
    )
    assert number == 200
    head = int(headers["inference-header-content-length"])
    described = json.loads(content[:head])
    assert described["outputs"][0]["parameters"] == {"binary_data_size": 12}
    assert len(content) == head + 12


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compressed_bodies_in_both_directions(client: Client, encoding: str) -> None:
    pack, unpack = (gzip.compress, gzip.decompress) if encoding == "gzip" else (zlib.compress, zlib.decompress)
    content = json.dumps({"inputs": columns(table(40))}).encode()
    headers = {"content-encoding": encoding, "accept-encoding": f"br, {encoding};q=0.5"}
    number, answered, packed = client.call("POST", INFER, pack(content), headers)
    assert (number, answered["content-encoding"]) == (200, encoding)
    assert len(json.loads(unpack(packed))["outputs"][0]["data"]) == 40


def test_compression_is_not_forced_on_those_who_refuse_it(client: Client) -> None:
    _, headers, content = client.call("GET", "/v2/models/tiny/config", None, {"accept-encoding": "gzip;q=0, identity"})
    assert "content-encoding" not in headers
    assert json.loads(content)["name"] == "tiny"


def test_gzip_of_several_members_is_one_body(client: Client) -> None:
    content = json.dumps({"inputs": columns()}).encode()
    packed = gzip.compress(content[:50]) + gzip.compress(content[50:])
    assert client.call("POST", INFER, packed, {"content-encoding": "gzip"})[0] == 200


@pytest.mark.parametrize(
    ("packed", "encoding", "named"),
    [
        (gzip.compress(b"{}")[:-4], "gzip", "a part"),
        (b"{}", "gzip", "something else"),
        (b"{}", "br", "expected gzip"),
        (zlib.compress(b"{}") + b"x", "deflate", "behind"),
        (gzip.compress(b"{}") + b"junk" * 10, "gzip", "something else"),
    ],
    ids=["cut", "not gzip", "unknown", "more behind", "junk behind"],
)
def test_a_damaged_compressed_body_is_refused(client: Client, packed: bytes, encoding: str, named: str) -> None:
    number, _, content = client.call("POST", INFER, packed, {"content-encoding": encoding})
    assert number == 400
    assert named in json.loads(content)["error"]


def test_a_body_beyond_the_limit_is_refused_before_it_is_read(served: tuple[Project, Running]) -> None:
    connection = http.client.HTTPConnection(served[1].http, timeout=30)
    connection.putrequest("POST", INFER)
    connection.putheader("content-length", "1500000000")
    connection.endheaders(b"{")
    response = connection.getresponse()
    assert response.status == 413
    assert "max_message_bytes" in json.loads(response.read())["error"]
    connection.close()


def test_a_chunked_body_beyond_the_limit_is_refused(served: tuple[Project, Running]) -> None:
    connection = http.client.HTTPConnection(served[1].http, timeout=30)
    chunks = iter([b" " * 100_000] * 3)
    connection.request("POST", INFER, chunks, encode_chunked=True, headers={"transfer-encoding": "chunked"})
    assert connection.getresponse().status == 413
    connection.close()


def test_a_bomb_is_refused_while_it_is_unpacked(client: Client) -> None:
    packed = gzip.compress(b" " * 100_000_000)
    assert len(packed) < 200_000
    number, _, content = client.call("POST", INFER, packed, {"content-encoding": "gzip"})
    assert number == 413
    assert "decompressed" in json.loads(content)["error"]


def test_errors_have_tritons_form_and_status(client: Client) -> None:
    cases: list[tuple[str, str, Any, int, str]] = [
        ("POST", "/v2/models/other/infer", {"inputs": columns()}, 404, "other"),
        ("POST", "/v2/models/tiny/versions/7/infer", {"inputs": columns()}, 404, "7"),
        ("POST", INFER, {"inputs": columns()[1:]}, 400, '"x"'),
        ("POST", INFER, {"inputs": columns(), "outputs": [{"name": "nope"}]}, 400, "nope"),
        ("POST", INFER, {"inputs": columns(), "parameters": {"triton_x": 1}}, 400, "triton_x"),
        ("POST", INFER, {"inputs": columns(), "parameters": {"timeout": -1}}, 400, "timeout"),
        ("POST", INFER, {"inputs": columns(), "parameters": {"sequence_id": 1}}, 400, "sequence"),
        ("POST", INFER, b"{", 400, "JSON"),
        ("GET", "/v2/models/other", None, 404, "other"),
        ("GET", "/v2/models/tiny/versions/7/config", None, 404, "7"),
        ("GET", "/v2/models/other/stats", None, 404, "other"),
        ("GET", INFER, None, 405, "GET"),
        ("GET", "/v2/nope", None, 404, "/v2/nope"),
        ("POST", "/v2/repository/index", {"x": 1}, 400, "'x'"),
        ("POST", "/v2/repository/index", {"ready": "no"}, 400, "ready"),
    ]
    for method, path, body, number, named in cases:
        found, answer = client.json(method, path, body)
        assert (found, list(answer)) == (number, ["error"]), (path, answer)
        assert named in answer["error"]


@pytest.mark.parametrize("value", ["-1", "x", "0", "9" * 30, "3.0"])
def test_a_bad_header_length_is_refused(client: Client, value: str) -> None:
    number, _, content = client.call("POST", INFER, b"{}", {"Inference-Header-Content-Length": value})
    assert number == 400
    assert "Inference-Header-Content-Length" in json.loads(content)["error"]


def test_what_a_client_asks_at_the_start(client: Client) -> None:
    assert client.json("GET", "/v2")[1]["name"] == "trimtab"
    assert [client.call("GET", f"/v2/{path}")[0] for path in ("health/live", "health/ready", "models/tiny/ready")] == [
        200,
        200,
        200,
    ]
    for path in ("tiny/versions/9", "other"):
        assert client.call("GET", f"/v2/models/{path}/ready")[0] == 400
    metadata = client.json("GET", "/v2/models/tiny/versions/1")[1]
    assert metadata["inputs"][0] == {"name": "x", "datatype": "FP32", "shape": [-1, 1]}
    config = client.json("GET", "/v2/models/tiny/config")[1]
    assert config["max_batch_size"] == 1024
    assert config["input"][0]["dims"] == [1]
    assert config["batch_input"] == []
    (index,) = client.json("POST", "/v2/repository/index", {"ready": True})[1]
    assert index == {"name": "tiny", "version": "1", "state": "READY"}
    statistics = client.json("GET", "/v2/models/stats")[1]["model_stats"]
    assert [(item["name"], item["version"]) for item in statistics] == [("tiny", "1")]
    assert statistics[0]["inference_stats"]["cache_hit"] == {"count": 0, "ns": 0}


def test_tritonclient_http_unmodified(served: tuple[Project, Running]) -> None:
    script = Path(__file__).with_name("triton_http_session.py")
    done = subprocess.run(
        [sys.executable, str(script), served[1].http], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert (seen["live"], seen["ready"], seen["model_ready"], seen["other_ready"]) == (True, True, True, False)
    assert seen["response"]["id"] == "mine"
    first = seen["answers"]["default"]
    assert all(answer == first for answer in seen["answers"].values()), seen["answers"]
    assert all(answer == first for answer in seen["aio"]["answers"])
    assert seen["unknown_model"][0] == "404"
    assert (seen["missing_input"][0], seen["wrong_name"][0]) == ("400", "400")
    assert "city_" in seen["wrong_name"][1]
    assert seen["statistics"]["model_stats"][0]["inference_count"] > 0
    assert seen["index"][0]["state"] == "READY"


# --- handlers of the test's own


class Handlers:
    """ModelInfer as a test wants it."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.error: Exception | None = None
        self.remaining: float | None = None

    async def infer(self, body: bytes, call: Any) -> bytes:
        self.remaining = call.time_remaining()
        self.entered.set()
        if self.error is not None:
            raise self.error
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return b""

    def service(self) -> Service:
        made = service(pb.DESCRIPTOR.services_by_name["GRPCInferenceService"], {})
        methods = [method for method in made.methods if method.name != "ModelInfer"]
        return Service(made.name, (*methods, Method("ModelInfer", "unary", self.infer, None)))


class Bench:
    def __init__(self, handlers: Handlers, server: HttpServer, address: str, calls: list[tuple[str, str]]) -> None:
        self.handlers, self.server, self.address, self.calls = handlers, server, address, calls

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = self.address.split(":")
        return await asyncio.open_connection(host, int(port))

    async def send(self, body: dict[str, Any]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await self.connect()
        content = json.dumps(body).encode()
        head = f"POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n\r\n"
        writer.write(head.encode() + content)
        return reader, writer

    async def infer(self, body: dict[str, Any]) -> tuple[int, str]:
        reader, writer = await self.send(body)
        number = int((await reader.readline()).split()[1])
        length = 0
        while (line := await reader.readline()) != b"\r\n":
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        content = await reader.readexactly(length)
        writer.close()
        return number, json.loads(content)["error"]


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    handlers, calls = Handlers(), []
    rest = Rest(
        handlers.service(),
        started=lambda: True,
        max_message_bytes=100_000,
        observer=lambda method, code: calls.append((method, code)),
    )
    server = HttpServer(Registry(), CollectorRegistry(), rest)
    address = await server.startup("127.0.0.1", 0)
    yield Bench(handlers, server, address, calls)
    await server.shutdown()


BODY: dict[str, Any] = {"inputs": []}


async def test_a_client_that_goes_away_cancels_its_request(bench: Bench) -> None:
    async with asyncio.timeout(30):
        _, writer = await bench.send(BODY)
        await bench.handlers.entered.wait()
        assert bench.handlers.remaining is None
        writer.close()
        await bench.handlers.cancelled.wait()


async def test_the_timeout_parameter_is_the_deadline_of_the_call(bench: Bench) -> None:
    async with asyncio.timeout(30):
        number, message = await bench.infer({**BODY, "parameters": {"timeout": 20_000}})
    assert number == 504
    assert "timeout" in message
    assert bench.handlers.cancelled.is_set()
    assert bench.handlers.remaining is not None
    assert bench.handlers.remaining <= 0.02
    assert bench.calls == [("REST/ModelInfer", "DEADLINE_EXCEEDED")]


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (Draining("stopping"), 503),
        (QueueFull("full"), 429),
        (BatchFailed("the batch failed"), 500),
        (RuntimeError("a defect"), 500),
    ],
)
async def test_a_handlers_error_has_its_status(bench: Bench, error: Exception, number: int) -> None:
    bench.handlers.error = error
    found, message = await bench.infer(BODY)
    assert found == number
    assert str(error) in message


async def test_what_is_not_implemented_says_so(bench: Bench) -> None:
    reader, writer = await bench.connect()
    writer.write(b"GET /v2/cudasharedmemory/status HTTP/1.1\r\nhost: x\r\n\r\n")
    assert b" 501 " in await reader.readline()
    writer.close()


async def test_a_head_that_does_not_come_ends_the_connection(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "head_seconds", 0.05)
    async with asyncio.timeout(30):
        for sent in (b"", b"GET /livez HTT"):
            reader, writer = await bench.connect()
            writer.write(sent)
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()


async def test_connections_beyond_the_limit_are_closed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "most", 2)
    kept = [await bench.connect() for _ in range(2)]
    for _, writer in kept:
        writer.write(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
    for reader, _ in kept:
        assert b" 200 " in await reader.readline()
    async with asyncio.timeout(30):
        reader, writer = await bench.connect()
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
    for _, opened in (*kept, (reader, writer)):
        opened.close()


def test_a_request_that_waits_when_the_server_stops_is_answered(tmp_path: Path) -> None:
    sections = {"batching": "max_queue_delay_microseconds = 20000000"}
    project = write_project(tmp_path / "project", sections=sections)
    publish(project, 1, verdict="initial")
    with serving(project) as running, ThreadPoolExecutor(1) as pool:
        client = Client(running.http)
        asked = pool.submit(client.json, "POST", INFER, {"inputs": columns()})
        watch = Client(running.http)
        for _ in range(10_000):
            if b'nv_inference_pending_request_count{model="tiny"' in (text := watch.call("GET", "/metrics")[2]) and (
                re.search(rb'^nv_inference_pending_request_count\{model="tiny"[^}]*\} 1', text, re.MULTILINE)
            ):
                break
        watch.connection.close()
        running.process.send_signal(signal.SIGTERM)
        number, answer = asked.result(timeout=60)
        assert number == 200
        assert len(answer["outputs"][0]["data"]) == 3
        client.connection.close()
        assert running.process.wait(60) == 0
