"""NVIDIA's client, unmodified, over both transports: everything that it can ask of gRPC and HTTP."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from trimtab._native import HAS_FRONT, CudaDriver
from trimtab.protos.v1 import inference_pb2 as pb
from trimtab.protos.v1.inference_pb2_grpc import GRPCInferenceServiceStub
from trimtab.server.rest_json import to_json

from .world import Running, publish, serving, write_project

TRANSPORTS = ["grpcio", pytest.param("native", marks=pytest.mark.skipif(not HAS_FRONT, reason="no native front"))]


@pytest.fixture(scope="module", params=TRANSPORTS)
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    project = write_project(
        tmp_path_factory.mktemp("triton") / "project", sections={}, tail="[security]\nshared_memory = true\n"
    )
    publish(project, 1, verdict="initial")
    with serving(project, transport=request.param) as started:
        yield started


@pytest.fixture(scope="module")
def seen(running: Running) -> dict[str, Any]:
    script = Path(__file__).with_name("triton_extensions_session.py")
    done = subprocess.run(
        [sys.executable, str(script), running.grpc, running.http],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def assert_predictions(answer: Any, plain: Any) -> None:
    """Equal but for the last bit: the size of the batch that a request lands in decides how sums are grouped."""
    np.testing.assert_allclose(answer, plain, rtol=1e-6)


def test_callbacks_compression_and_asyncio_give_the_plain_answer(seen: dict[str, Any]) -> None:
    plain = seen["plain"]
    assert np.array(plain).shape == (2, 1)
    assert_predictions(seen["compressed"], plain)
    for answer in [*seen["callbacks"], *seen["aio"]["answers"]]:
        assert_predictions(answer, plain)
    assert len(seen["callbacks"]) == len(seen["aio"]["answers"]) == 8


def test_a_stream_goes_on_after_an_error(seen: dict[str, Any]) -> None:
    stream = seen["stream"]
    assert set(stream["good"]) == {str(number) for number in range(20) if number != 7}
    for answer in stream["good"].values():
        assert_predictions(answer, seen["plain"])
    assert len(stream["errors"]) == 1
    assert "code" in stream["errors"][0]
    assert len(seen["aio"]["streamed"]) == 4
    for answer in seen["aio"]["streamed"]:
        assert_predictions(answer, seen["plain"])
    assert len(seen["aio"]["errors"]) == 1


@pytest.mark.parametrize("kind", ["shared", "http_shared"])
def test_shared_memory_both_ways(seen: dict[str, Any], kind: str) -> None:
    shared = seen[kind]
    assert_predictions(shared["answer"], seen["plain"])
    assert "data" in shared["status"]
    assert "data" not in shared["after"]
    taken, beyond, elsewhere, cuda, gone = shared["errors"]
    assert "already" in taken
    assert "256 bytes" in beyond
    assert "key" in elsewhere
    assert "CUDA" in cuda
    assert '"data"' in gone


@pytest.mark.parametrize("kind", ["classes", "http_classes"])
def test_classes_have_value_index_and_label(seen: dict[str, Any], kind: str) -> None:
    assert seen[kind] == [f"{row[0]:.6f}:0:yes" for row in np.array(seen["plain"], np.float32).tolist()]


STAGES = {
    "success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss",
}  # fmt: skip


def test_what_perf_analyzer_reads_before_it_begins(running: Running) -> None:
    """It asks, in this order: ready, metadata, configuration, extensions, statistics; and looks these fields up."""
    channel = grpc.insecure_channel(running.grpc)
    stub = GRPCInferenceServiceStub(channel)

    def rest(path: str) -> Any:
        with urllib.request.urlopen(f"http://{running.http}/v2{path}", timeout=30) as response:
            content = response.read()
        return json.loads(content) if content else {}

    assert stub.ServerReady(pb.ServerReadyRequest()).ready
    rest("/health/ready")
    model = pb.ModelMetadataRequest(name="tiny")
    metadata = [rest("/models/tiny"), to_json(stub.ModelMetadata(model))]
    assert metadata[0] == metadata[1]
    assert metadata[0]["versions"] == ["1"]
    assert metadata[0]["inputs"][0] == {"name": "x", "datatype": "FP32", "shape": [-1, 1]}
    config = stub.ModelConfig(pb.ModelConfigRequest(name="tiny")).config
    as_json = rest("/models/tiny/config")
    assert as_json.items() >= to_json(config).items()
    assert as_json["max_batch_size"] == config.max_batch_size == 1024
    assert [(i["name"], i["data_type"], i["dims"], i["optional"]) for i in as_json["input"]][:2] == [
        ("x", "TYPE_FP32", [1], False),
        ("flag", "TYPE_BOOL", [1], False),
    ]
    assert "dynamic_batching" in as_json
    assert not {"sequence_batching", "ensemble_scheduling", "model_transaction_policy"} & as_json.keys()
    assert rest("")["extensions"] == list(stub.ServerMetadata(pb.ServerMetadataRequest()).extensions)
    statistics = to_json(stub.ModelStatistics(pb.ModelStatisticsRequest(name="tiny")))
    assert statistics == rest("/models/tiny/stats")
    (version,) = statistics["model_stats"]
    assert (version["name"], version["version"]) == ("tiny", "1")
    assert version["inference_stats"].keys() == STAGES
    channel.close()


def test_reflection_builds_the_protocol_as_grpcurl_does(running: Running) -> None:
    """From the server's own descriptors, without any file of ours: a method's types, then a call by them."""
    with grpc.insecure_channel(running.grpc) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert "inference.GRPCInferenceService" in database.get_services()
        pool = DescriptorPool(database)
        method = pool.FindServiceByName("inference.GRPCInferenceService").FindMethodByName("ServerMetadata")
        answer = GetMessageClass(method.output_type)
        call = channel.unary_unary(
            f"/{method.containing_service.full_name}/{method.name}",
            request_serializer=GetMessageClass(method.input_type).SerializeToString,
            response_deserializer=answer.FromString,
        )
        assert call(GetMessageClass(method.input_type)()).name == "trimtab"


def test_settings_say_what_is_true(seen: dict[str, Any]) -> None:
    assert seen["http_log"] == {
        "log_error": True,
        "log_file": "",
        "log_format": "default",
        "log_info": True,
        "log_verbose_level": 0,
        "log_warning": True,
    }
    assert seen["log"]["settings"]["log_info"] == {"bool_param": True}
    assert seen["http_trace"] == {"trace_level": ["OFF"]}
    assert seen["trace"]["settings"]["trace_level"] == {"value": ["OFF"]}


def test_extensions_are_what_works(seen: dict[str, Any]) -> None:
    assert "system_shared_memory" in seen["http_extensions"]
    assert "classification" in seen["http_extensions"]
    assert ("cuda_shared_memory" in seen["http_extensions"]) == bool(CudaDriver().devices)
    assert "logging" not in seen["http_extensions"], "changing them is for the admin socket"
    assert "trace" not in seen["http_extensions"]
