"""One real server, asked everything a public client may ask: by our stubs, by tritonclient, over HTTP."""

from __future__ import annotations

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
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families
from trimtab.protos.v1 import inference_pb2 as pb
from trimtab.protos.v1 import trimtab_pb2 as tpb
from trimtab.protos.v1.trimtab_pb2_grpc import DriftStub, FeedbackStub, LifecycleStub
from trimtab.store.labels import LabelReader
from trimtab.store.project import Project

from .transports import TRANSPORTS
from .world import MODEL, Running, expected, infer_request, loaded, predictions, publish, serving, table, write_project


@pytest.fixture(scope="module", params=sorted(TRANSPORTS))
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Project, Running]]:
    project = write_project(
        tmp_path_factory.mktemp("served") / "project",
        sections={"drift": "window_rows = 20\nwindow_seconds = 0.0", "batching": "max_batch_size = 16"},
    )
    publish(project, 1, verdict="initial")
    with serving(project, transport=request.param) as running:
        yield project, running


@pytest.fixture
def stub(served: tuple[Project, Running]) -> Iterator[Any]:
    with served[1].inference() as made:
        yield made


def status(call: Any, *arguments: Any, **options: Any) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **options)
    return caught.value.code().name, caught.value.details()  # type: ignore[attr-defined]


def test_answers_are_the_versions(served: tuple[Project, Running], stub: Any) -> None:
    rows = table(40)
    response = stub.ModelInfer(infer_request(rows))
    np.testing.assert_allclose(predictions(response), expected(loaded(served[0], 1), rows), rtol=1e-6)


def test_errors(stub: Any) -> None:
    assert status(stub.ModelInfer, infer_request(table(1), model="x"))[0] == "NOT_FOUND"
    assert status(stub.ModelInfer, infer_request(table(1), version="9"))[0] == "NOT_FOUND"
    code, message = status(stub.ModelInfer, infer_request(table(1).drop_columns(["code"])))
    assert code == "INVALID_ARGUMENT"
    assert "code" in message
    assert status(stub.ModelInfer, infer_request(table(1), timeout=-1))[0] == "INVALID_ARGUMENT"
    assert status(stub.ModelMetadata, pb.ModelMetadataRequest(name="tiny", version="9"))[0] == "NOT_FOUND"
    assert status(stub.ModelConfig, pb.ModelConfigRequest(name="x"))[0] == "NOT_FOUND"
    assert status(stub.ModelStatistics, pb.ModelStatisticsRequest(name="tiny", version="9"))[0] == "NOT_FOUND"


def test_malformed_bytes_are_an_invalid_argument(served: tuple[Project, Running]) -> None:
    with served[1].channel() as channel:
        raw = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        assert status(raw, b"\xff\xff\xff")[0] == "INVALID_ARGUMENT"


def test_what_is_not_offered_is_unimplemented_and_not_advertised(stub: Any) -> None:
    asked = pb.TraceSettingRequest()
    asked.settings["trace_level"].value.append("TIMESTAMPS")
    assert status(stub.TraceSetting, asked)[0] == "UNIMPLEMENTED"
    for call, message in (
        (stub.SystemSharedMemoryRegister, pb.SystemSharedMemoryRegisterRequest(name="r", key="k")),
        (stub.CudaSharedMemoryRegister, pb.CudaSharedMemoryRegisterRequest(name="r", raw_handle=bytes(64))),
    ):
        code, text = status(call, message)
        assert code == "PERMISSION_DENIED"
        assert "[security] shared_memory" in text
    assert list(stub.ServerMetadata(pb.ServerMetadataRequest()).extensions) == [
        "binary_tensor_data",
        "classification",
        "model_configuration",
        "model_repository",
        "parameters",
        "schedule_policy",
        "statistics",
    ]


def test_a_stream_answers_each_request_and_goes_on_after_an_error(stub: Any) -> None:
    good = infer_request(table(2))
    bad = infer_request(table(1), version="77")
    good.parameters["triton_enable_empty_final_response"].bool_param = True
    answers = list(stub.ModelStreamInfer(iter([good, bad, good])))
    assert len(answers) == 3
    (failed,) = [answer for answer in answers if answer.error_message]
    assert "no version" in failed.error_message
    assert failed.infer_response.id == bad.id
    for answer in answers:
        if answer is not failed:
            assert len(predictions(answer.infer_response)) == 2
            assert answer.infer_response.parameters["triton_final_response"].bool_param
    assert "triton_final_response" not in stub.ModelInfer(good).parameters
    assert list(stub.ModelStreamInfer(iter([]))) == []


def test_promoting_through_the_public_listener_is_impossible(served: tuple[Project, Running]) -> None:
    with served[1].channel() as channel:
        stub = LifecycleStub(channel)
        for call, request in (
            (stub.Promote, tpb.PromoteRequest(version=1, expected_epoch=-1)),
            (stub.Rollback, tpb.RollbackRequest()),
            (stub.Stage, tpb.StageRequest(version=1)),
            (stub.Status, tpb.StatusRequest()),
        ):
            assert status(call, request)[0] == "UNIMPLEMENTED"


def test_tritonclient_unmodified(served: tuple[Project, Running]) -> None:
    project, running = served
    script = Path(__file__).with_name("triton_session.py")
    done = subprocess.run(
        [sys.executable, str(script), running.grpc], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert (seen["live"], seen["ready"], seen["model_ready"], seen["other_ready"]) == (True, True, True, False)
    assert seen["server"]["name"] == "trimtab"
    inputs = {item["name"]: (item["datatype"], item["shape"]) for item in seen["metadata"]["inputs"]}
    assert inputs["x"] == ("FP32", ["-1", "1"])
    assert inputs["city"] == ("BYTES", ["-1", "1"])
    assert seen["metadata"]["outputs"] == [{"name": "probability", "datatype": "FP32", "shape": ["-1", "1"]}]
    config = seen["config"]["config"]
    assert config["max_batch_size"] == 16
    assert [item["data_type"] for item in config["input"]][:2] == ["TYPE_FP32", "TYPE_BOOL"]
    assert seen["index"]["models"][0]["state"] == "READY"
    assert len(seen["answer"]) == 2
    assert all(0 < value[0] < 1 for value in seen["answer"])
    assert (seen["version"], seen["id"]) == ("1", "mine")
    assert seen["parameters"]["trimtab_weights"] == loaded(project, 1).weights
    assert seen["unknown_model"][0] == "StatusCode.NOT_FOUND"
    for case, named in (
        ("wrong_dtype", '"x"'),
        ("wrong_shape", '"x"'),
        ("wrong_name", "city_"),
        ("missing_input", "code"),
    ):
        assert seen[case][0] == "StatusCode.INVALID_ARGUMENT"
        assert named in seen[case][1], seen[case][1]
    statistics = seen["statistics"]["model_stats"][0]
    assert int(statistics["inference_count"]) >= 2
    assert int(statistics["inference_stats"]["compute_infer"]["ns"]) > 0
    assert statistics["batch_stats"]
    assert [seen[name] for name in ("load", "log", "cuda_shared_memory")] == ["StatusCode.PERMISSION_DENIED"] * 3
    assert seen["trace"] == "StatusCode.UNIMPLEMENTED"


def test_health_check_and_watch(served: tuple[Project, Running]) -> None:
    with served[1].channel() as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        names = ("", "inference.GRPCInferenceService", "trimtab.v1.Feedback", "trimtab.v1.Drift")
        for name in names:
            assert stub.Check(health_pb2.HealthCheckRequest(service=name)).status == 1
        assert status(stub.Check, health_pb2.HealthCheckRequest(service="nonsense"))[0] == "NOT_FOUND"
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()


def test_reflection_lists_and_describes_the_listeners_services(served: tuple[Project, Running]) -> None:
    request = reflection_pb2.ServerReflectionRequest
    with served[1].channel() as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        answers = list(
            stub.ServerReflectionInfo(
                iter([request(list_services="*"), request(file_containing_symbol="trimtab.v1.Drift")])
            )
        )
    names = {item.name for item in answers[0].list_services_response.service}
    assert names == {
        "inference.GRPCInferenceService",
        "trimtab.v1.Feedback",
        "trimtab.v1.Drift",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    file = descriptor_pb2.FileDescriptorProto.FromString(answers[1].file_descriptor_response.file_descriptor_proto[0])
    assert "Lifecycle" in {item.name for item in file.service}
    with grpc.insecure_channel(f"unix:{served[1].admin}") as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        (answer,) = stub.ServerReflectionInfo(iter([request(list_services="*")]))
    assert "trimtab.v1.Lifecycle" in {item.name for item in answer.list_services_response.service}


def test_feedback_outcomes(served: tuple[Project, Running], stub: Any) -> None:
    project, running = served
    response = stub.ModelInfer(infer_request(table(2)))
    sent = response.parameters["trimtab_request_id"].string_param
    label = tpb.Label
    labels = [
        label(request_id=sent, row=0, text="yes", observed_at_us=100),
        label(request_id=sent, row=0, number=1.0, observed_at_us=100),
        label(request_id=sent, row=0, boolean=False, observed_at_us=100),
        label(request_id=sent, row=1, text="no", observed_at_us=100),
        label(key=["o0-0"], text="yes", observed_at_us=100),
        label(request_id=sent, row=1, text="maybe"),
        label(request_id="not an id", text="yes"),
        label(key=["a", "b"], text="yes"),
        label(text="yes"),
        label(request_id=sent, row=1),
        label(request_id=sent, row=1, text="yes", output="other"),
        label(request_id=sent, row=1, text="yes", weight=-1),
    ]
    with running.channel() as channel:
        feedback = FeedbackStub(channel)
        answer = feedback.Send(tpb.FeedbackRequest(model_name=MODEL, labels=labels))
        # "yes" and "no" have no spelling as numbers: of these three, only the class' own name is a label.
        assert list(answer.outcomes) == [1, 4, 4, 1, 1, 4, 4, 4, 4, 4, 4, 4]
        assert (answer.accepted, answer.invalid) == (3, 9)
        assert "label 1" in answer.first_error
        again = feedback.Send(tpb.FeedbackRequest(labels=[labels[0]]))
        assert list(again.outcomes) == [tpb.LABEL_OUTCOME_DUPLICATE]
        other = label(request_id=sent, row=0, text="no", observed_at_us=100)
        stream = iter([tpb.FeedbackRequest(labels=[other]), tpb.FeedbackRequest(labels=[labels[0], labels[5]])])
        counted = feedback.SendStream(stream)
        assert (counted.accepted, counted.duplicate, counted.conflict, counted.invalid) == (0, 1, 1, 1)
        assert status(feedback.Send, tpb.FeedbackRequest(model_name="x"))[0] == "NOT_FOUND"
    reader = LabelReader(project.model_state(MODEL).labels)
    stored = reader.since(0)
    reader.close()
    assert [item.value for item in stored if item.current] == ["yes", "no", "yes"]
    assert {item.output for item in stored} == {"probability"}


def test_drift_report_after_a_window(served: tuple[Project, Running], stub: Any) -> None:
    for seed in range(3):
        stub.ModelInfer(infer_request(table(10, seed)))
    # Advance goes through the compute thread and the drift thread: afterwards the window is there.
    with served[1].lifecycle() as lifecycle:
        lifecycle.Advance(tpb.AdvanceRequest())
    with served[1].channel() as channel:
        reports = DriftStub(channel).Report(tpb.DriftRequest(model_name=MODEL, windows=100)).reports
        (newest,) = DriftStub(channel).Report(tpb.DriftRequest()).reports
    assert [report.window for report in reports] == list(range(1, len(reports) + 1))
    assert newest == reports[-1]
    assert {feature.feature for feature in newest.features} == {"x", "flag", "code", "city", "prediction"}
    names = {statistic.name for feature in newest.features for statistic in feature.statistics}
    assert names == {"psi", "jensen_shannon", "kolmogorov_smirnov", "wasserstein", "chi_square"}
    lines = served[0].model_state(MODEL).drift.read_text().splitlines()
    assert len(lines) == len(reports)


def get(running: Running, path: str) -> tuple[int, str, str]:
    with urllib.request.urlopen(f"http://{running.http}{path}", timeout=30) as response:
        return response.status, response.headers["content-type"], response.read().decode()


def test_http_live_and_ready(served: tuple[Project, Running]) -> None:
    assert get(served[1], "/livez")[::2] == (200, "live\n")
    assert get(served[1], "/readyz")[::2] == (200, "ready\n")
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(served[1], "/other")
    assert caught.value.code == 404
    caught.value.close()


def test_metrics_are_those_of_the_docs_and_count(served: tuple[Project, Running], stub: Any) -> None:
    stub.ModelInfer(infer_request(table(7)))
    status(stub.ModelInfer, infer_request(table(1), model="x"))
    _, kind, text = get(served[1], "/metrics")
    assert kind.startswith("text/plain")
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert sum(sample.value for sample in families["trimtab_rows"].samples if sample.name.endswith("_total")) >= 7
    codes = {sample.labels["code"] for sample in families["trimtab_calls"].samples}
    assert {"OK", "NOT_FOUND"} <= codes
    (info,) = families["trimtab_version_info"].samples
    assert info.labels == {
        "model": MODEL,
        "version": "1",
        "role": "live",
        "weights": loaded(served[0], 1).weights[:16],
    }
    counts = {s.name: s.value for s in families["trimtab_request_seconds"].samples if "le" not in s.labels}
    requests = sum(s.value for s in families["trimtab_requests"].samples if s.name.endswith("_total"))
    assert counts["trimtab_request_seconds_count"] == requests
    success = {s.labels["version"]: s.value for s in families["nv_inference_request_success"].samples}
    assert success["1"] == requests
    assert {s.labels["reason"] for s in families["nv_inference_request_failure"].samples} == {
        "REJECTED",
        "CANCELED",
        "BACKEND",
        "OTHER",
    }
    assert families["nv_inference_count"].samples[0].value >= 7
    ours = {name for name in families if name.startswith("trimtab")}
    docs = Path(__file__).parents[2].joinpath("docs", "serving.md").read_text()
    undocumented = {name for name in ours if name not in docs}
    assert not undocumented


def test_statistics_add_up(served: tuple[Project, Running], stub: Any) -> None:
    def read() -> Any:
        return stub.ModelStatistics(pb.ModelStatisticsRequest(name=MODEL, version="1")).model_stats[0]

    before = read()
    for rows in (1, 1, 5):
        stub.ModelInfer(infer_request(table(rows)))
    after = read()
    assert after.inference_count - before.inference_count == 7
    assert after.execution_count - before.execution_count == 3
    assert after.inference_stats.success.count - before.inference_stats.success.count == 3
    stages = after.inference_stats
    parts = stages.queue.ns + stages.compute_input.ns + stages.compute_infer.ns + stages.compute_output.ns
    assert 0 < parts <= stages.success.ns
    assert sum(item.compute_infer.count for item in after.batch_stats) == after.execution_count
    assert after.memory_usage[0].byte_size > 0
