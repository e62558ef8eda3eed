"""CUDA shared memory against real servers: tritonclient with its CUDA utilities, REST bodies, a lost GPU, no driver.

The driver is played by tests/shared_memory/pretend_driver.cpp, which server and client load in place of libcuda.so.1;
on a machine with a GPU the same runs there.
"""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from trimtab._native import HAS_FRONT, CudaDriver
from trimtab.protos.v1 import inference_pb2 as pb
from trimtab.server.app import EXIT_DEVICE_LOST

from ..shared_memory.places import CUDA_KINDS, NVIDIA, CudaPlace, Exporter
from ..shared_memory.pretended import Pretended
from .world import Running, infer_request, predictions, publish, serving, table, write_project

TRANSPORTS = ["grpcio", pytest.param("native", marks=pytest.mark.skipif(not HAS_FRONT, reason="no native front"))]
ALLOWED = "[security]\nshared_memory = true\n"
SIZE = 4096
NO_CUDA_PYTHON = 3
"""What triton_cuda_session.py ends with."""


class Served:
    """A server, and a client's process with memory on its device."""

    def __init__(self, running: Running, library: str, exporter: Exporter, pretended: Pretended | None) -> None:
        self.running, self.library, self.exporter, self.pretended = running, library, exporter, pretended

    def log(self) -> list[str]:
        assert self.pretended is not None
        return self.pretended.log()


@contextlib.contextmanager
def serve(folder: Path, kind: str, transport: str) -> Iterator[Served]:
    server = f'device = "{"cuda" if kind == "gpu" else "cpu"}"'
    project = write_project(folder / "project", server=server, tail=ALLOWED)
    publish(project, 1, verdict="initial")
    if kind == "gpu":
        exporter = Exporter(NVIDIA)
        with contextlib.closing(exporter), serving(project, transport=transport) as running:
            yield Served(running, NVIDIA, exporter, None)
        return
    environment = {"LD_LIBRARY_PATH": str(folder / "driver")}
    pretended = Pretended(folder / "driver", environment.__setitem__)
    with contextlib.closing(pretended), serving(project, environment, transport=transport) as running:
        yield Served(running, pretended.library, pretended.exporter, pretended)


@pytest.fixture(scope="module", params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture(scope="module", params=CUDA_KINDS)
def served(
    request: pytest.FixtureRequest, transport: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("cuda"), request.param, transport) as made:
        yield made


def register(stub: Any, name: str, made: CudaPlace, byte_size: int = SIZE) -> None:
    asked = pb.CudaSharedMemoryRegisterRequest(name=name, raw_handle=made.handle, device_id=made.device)
    asked.byte_size = byte_size
    stub.CudaSharedMemoryRegister(asked)


def refused(call: Any, asked: Any) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(asked, timeout=60)
    return caught.value.code().name, caught.value.details()  # type: ignore[attr-defined]


def with_output_in(region: str, rows: int = 2) -> Any:
    asked = infer_request(table(rows))
    parameters = asked.outputs.add(name="probability").parameters
    parameters["shared_memory_region"].string_param = region
    parameters["shared_memory_byte_size"].int64_param = 4 * rows
    return asked


def with_input_in(region: str, made: CudaPlace, rows: int = 2) -> Any:
    """The first input lies in the region, at 100."""
    asked = infer_request(table(rows))
    content = asked.raw_input_contents.pop(0)
    made.write(100, content)
    parameters = asked.inputs[0].parameters
    parameters["shared_memory_region"].string_param = region
    parameters["shared_memory_byte_size"].int64_param = len(content)
    parameters["shared_memory_offset"].int64_param = 100
    return asked


def rest(running: Running, path: str, body: Any = None) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(f"http://{running.http}/v2/cudasharedmemory{path}", data, timeout=30) as response:
            number, content = response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            number, content = error.code, error.read()
    return number, json.loads(content) if content else None


def test_tritonclient_with_its_cuda_utilities_unmodified(served: Served) -> None:
    pytest.importorskip("tritonclient")
    script = Path(__file__).with_name("triton_cuda_session.py")
    done = subprocess.run(
        [sys.executable, str(script), served.running.grpc, served.running.http, served.library],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode == NO_CUDA_PYTHON and served.pretended is None:
        pytest.skip("needs cuda-python")
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert {"system_shared_memory", "cuda_shared_memory"} <= set(seen["extensions"])
    for kind in ("grpc", "http"):
        shared = seen[kind]
        np.testing.assert_allclose(shared["answer"], shared["plain"], rtol=1e-6)
        assert "data" in shared["status"]
        assert "taken" in shared["status"]
        assert "data" not in shared["after"]
        assert "taken" in shared["after"]
        assert "taken" not in shared["empty"]
        twice, beyond, elsewhere, length, other, small, gone = shared["errors"]
        assert "'data' is registered already" in twice
        assert "bytes that lie there, came 1073741824" in beyond
        assert "device_id" in elsewhere
        assert "64 bytes of a CUDA IPC handle, came 1" in length
        assert "'data' is registered already" in other
        assert "at least 8 bytes" in small
        assert '"data"' in gone


def test_a_region_serves_many_requests_at_once_and_streams(served: Served) -> None:
    made = served.exporter.allocate(SIZE)
    with served.running.inference() as stub:
        register(stub, "many", made)
        plain = predictions(stub.ModelInfer(infer_request(table(2))))
        asked = with_input_in("many", made)
        calls = [stub.ModelInfer.future(asked) for _ in range(50)]
        for call in calls:
            np.testing.assert_allclose(predictions(call.result()), plain, rtol=1e-6)
        answers = list(stub.ModelStreamInfer(iter([asked, with_output_in("many"), with_output_in("nope")])))
        assert [bool(answer.error_message) for answer in answers].count(True) == 1
        np.testing.assert_allclose(np.frombuffer(made.read(0, 8), "<f4"), plain, rtol=1e-6)
        stub.CudaSharedMemoryUnregister(pb.CudaSharedMemoryUnregisterRequest(name="many"))
    made.free()


def test_status_and_unregistering_are_of_one_kind(served: Served) -> None:
    made = served.exporter.allocate(SIZE)
    with served.running.inference() as stub:
        register(stub, "mine", made, 100)
        for name in ("", "mine"):
            found = stub.CudaSharedMemoryStatus(pb.CudaSharedMemoryStatusRequest(name=name)).regions["mine"]
            assert (found.name, found.device_id, found.byte_size) == ("mine", 0, 100)
        system = pb.SystemSharedMemoryStatusRequest(name="mine")
        assert refused(stub.SystemSharedMemoryStatus, system)[0] == "NOT_FOUND"
        assert refused(stub.CudaSharedMemoryStatus, pb.CudaSharedMemoryStatusRequest(name="x"))[0] == "NOT_FOUND"
        stub.SystemSharedMemoryUnregister(pb.SystemSharedMemoryUnregisterRequest())
        assert "mine" in stub.CudaSharedMemoryStatus(pb.CudaSharedMemoryStatusRequest()).regions
        for _ in range(2):
            stub.CudaSharedMemoryUnregister(pb.CudaSharedMemoryUnregisterRequest(name="mine"))
        assert not stub.CudaSharedMemoryStatus(pb.CudaSharedMemoryStatusRequest()).regions


def test_rest_takes_and_shows_regions(served: Served) -> None:
    made = served.exporter.allocate(SIZE)
    handle = {"b64": base64.b64encode(made.handle).decode()}
    body = {"raw_handle": handle, "device_id": 0, "byte_size": 64}
    assert rest(served.running, "/region/rest/register", body) == (200, None)
    assert rest(served.running, "/region/rest/status") == (200, [{"name": "rest", "device_id": 0, "byte_size": 64}])
    number, answer = rest(served.running, "/region/rest/register", body)
    assert (number, "registered already" in answer["error"]) == (400, True)
    assert rest(served.running, "/region/rest/unregister", {}) == (200, None)
    assert rest(served.running, "/status") == (200, [])
    assert rest(served.running, "/region/rest/status")[0] == 404


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        (None, "'b64'"),
        ("eA==", "'b64'"),
        ({}, "'b64'"),
        ({"b64": 7}, "'b64'"),
        ({"b64": "eA==", "more": 1}, "'b64'"),
        ({"b64": "?"}, "base64"),
        ({"b64": "eA"}, "base64"),
        ({"b64": "é"}, "base64"),
        ({"b64": ""}, "64 bytes"),
        ({"b64": "eA=="}, "64 bytes"),
    ],
)
def test_a_handle_that_is_none_is_refused_over_rest(served: Served, raw: Any, named: str) -> None:
    body = {"raw_handle": raw, "device_id": 0, "byte_size": 64}
    number, answer = rest(served.running, "/region/bad/register", body)
    assert (number, named in answer["error"]) == (400, True), answer
    assert rest(served.running, "/region/bad/register", {"byte_size": 64})[0] == 400


def test_handles_are_closed_before_the_server_ends(tmp_path: Path) -> None:
    with serve(tmp_path, "pretended", "auto") as served:
        made = served.exporter.allocate(SIZE)
        with served.running.inference() as stub:
            register(stub, "left", made)
            stub.ModelInfer(with_output_in("left"))
        assert served.running.stop() == 0
        assert served.log() == ["retain 0", "open", "stream", "close", "release 0"]


def test_a_server_whose_gpu_is_lost_says_so_and_ends(tmp_path: Path, transport: str) -> None:
    with serve(tmp_path, "pretended", transport) as served, served.running.inference() as stub:
        assert served.pretended is not None
        made = served.exporter.allocate(SIZE)
        register(stub, "r", made)
        asked = with_input_in("r", made)
        assert predictions(stub.ModelInfer(asked)).shape == (2,)
        served.pretended.order("cuStreamSynchronize", 700)
        code, text = refused(stub.ModelInfer, asked)
        assert code == "UNAVAILABLE"
        assert "the GPU is lost to this server, which restarts: " in text
        assert "an illegal memory access was encountered (CUDA_ERROR_ILLEGAL_ADDRESS)" in text
        assert served.running.process.wait(60) == EXIT_DEVICE_LOST == 75
        log = served.running.log.read_text()
        assert log.count("device_lost: CUDA shared memory: the GPU is lost") == 1


def test_a_driver_without_a_gpu_is_not_offered(tmp_path: Path) -> None:
    project = write_project(tmp_path / "project", server='device = "cpu"', tail=ALLOWED)
    publish(project, 1, verdict="initial")
    environment = {"LD_LIBRARY_PATH": str(tmp_path / "driver"), "PRETEND_CUDA_DEVICES": "0"}
    with (
        contextlib.closing(Pretended(tmp_path / "driver", environment.__setitem__)),
        serving(project, environment) as running,
        running.inference() as stub,
    ):
        _check_not_offered(stub, "no CUDA-capable device is detected")


def test_a_machine_without_a_driver_says_what_is_missing(tmp_path: Path) -> None:
    if "libcuda.so.1: cannot open" not in CudaDriver().missing:
        pytest.skip("has a driver")
    project = write_project(tmp_path / "project", server='device = "cpu"', tail=ALLOWED)
    publish(project, 1, verdict="initial")
    with serving(project) as running, running.inference() as stub:
        _check_not_offered(stub, "libcuda.so.1: cannot open shared object file")
        assert rest(running, "/status") == (200, [])
        assert rest(running, "/region/r/register", {"raw_handle": {"b64": "eA=="}, "byte_size": 1})[0] == 501


def _check_not_offered(stub: Any, why: str) -> None:
    asked = pb.CudaSharedMemoryRegisterRequest(name="r", raw_handle=bytes(64), byte_size=1)
    code, text = refused(stub.CudaSharedMemoryRegister, asked)
    assert code == "UNIMPLEMENTED"
    assert "CUDA shared memory needs NVIDIA's driver and a GPU" in text
    assert why in text
    extensions = stub.ServerMetadata(pb.ServerMetadataRequest()).extensions
    assert "system_shared_memory" in extensions
    assert "cuda_shared_memory" not in extensions
    stub.CudaSharedMemoryUnregister(pb.CudaSharedMemoryUnregisterRequest())
    assert not stub.CudaSharedMemoryStatus(pb.CudaSharedMemoryStatusRequest()).regions
