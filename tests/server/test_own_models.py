"""Models of one's own in a real server: tensors in and out, versions, aliases, load and unload, memory."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from trimtab.client.admin import AdminClient
from trimtab.client.errors import ClientError
from trimtab.protos.v1 import inference_pb2 as pb
from trimtab.protos.v1 import trimtab_pb2
from trimtab.store.live import LiveStore
from trimtab.store.project import Project

from . import own
from .world import Running, serving, start


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Project, Running]]:
    folder = tmp_path_factory.mktemp("own") / "project"
    project = own.write(
        folder,
        own.scale(sections="[model.batching]\nmax_batch_size = 8"),
        own.TEXTS,
        own.model("moody", "Moody"),
        own.model("broken", "broken"),
        own.model("later", "Moody", "load = false"),
    )
    with serving(project) as running:
        yield project, running


@pytest.fixture
def stub(served: tuple[Project, Running]) -> Iterator[Any]:
    with served[1].inference() as stub:
        yield stub


@pytest.fixture
def admin(served: tuple[Project, Running]) -> Iterator[AdminClient]:
    with AdminClient(served[1].admin) as admin:
        yield admin


def status(call: Any, request: Any) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(request)
    return caught.value.code().name, caught.value.details() or ""


def run(project: Project, *arguments: str) -> dict[str, Any]:
    """A command's JSON."""
    command = [sys.executable, "-m", "trimtab.cli", *arguments, "-C", str(project.directory), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def weights(folder: Path, name: str, value: float) -> Path:
    path = folder / name
    save_file({"weight": torch.full((3,), float(value))}, path)
    return path


def scaled(stub: Any, version: str = "") -> tuple[float, str]:
    """What the model `scale` makes of 1.0, and the version that answered."""
    x, ids = np.ones((1, 3), np.float32), np.ones((1, 2), np.int64)
    answer = stub.ModelInfer(own.request("scale", version, x=x, ids=ids))
    return float(own.outputs(answer)["scaled"][0, 0]), answer.model_version


def test_tensors_in_and_several_out(stub: Any) -> None:
    x, ids = np.arange(15, dtype=np.float32).reshape(5, 3), np.arange(20).reshape(5, 4)
    answer = stub.ModelInfer(own.request("scale", x=x, ids=ids))
    found = own.outputs(answer)
    assert np.array_equal(found["scaled"], x)
    assert found["total"].tolist() == ids.sum(1).tolist()
    assert answer.model_version == "1"
    assert len(answer.parameters["trimtab_weights"].string_param) == 64
    message = own.request("scale", x=x, ids=ids)
    message.outputs.add(name="total")
    assert list(own.outputs(stub.ModelInfer(message))) == ["total"]


def test_a_request_larger_than_a_batch(stub: Any) -> None:
    x, ids = np.random.default_rng(0).random((50, 3), np.float32), np.ones((50, 1), np.int64)
    found = own.outputs(stub.ModelInfer(own.request("scale", x=x, ids=ids)))
    assert np.array_equal(found["scaled"], x)
    assert found["total"].tolist() == [1] * 50


def test_requests_of_different_sizes_at_once(stub: Any) -> None:
    x = np.ones((2, 3), np.float32)
    calls = [
        (size, stub.ModelInfer.future(own.request("scale", x=x, ids=np.full((2, size), size))))
        for size in [1, 2, 5] * 20
    ]
    for size, call in calls:
        assert own.outputs(call.result(timeout=30))["total"].tolist() == [size * size] * 2


def test_strings_in_and_out(stub: Any) -> None:
    texts = [b"abc", b"", b"\xff\x00\xfe", "déjà".encode()]
    assert own.outputs(stub.ModelInfer(own.request("texts", text=texts)))["back"] == [t[::-1] for t in texts]


def test_metadata_and_config_have_the_tensors(stub: Any) -> None:
    found = stub.ModelMetadata(pb.ModelMetadataRequest(name="scale"))
    assert [(t.name, t.datatype, list(t.shape)) for t in found.inputs] == [
        ("x", "FP32", [-1, 3]),
        ("ids", "INT64", [-1, -1]),
    ]
    assert [(t.name, list(t.shape)) for t in found.outputs] == [("scaled", [-1, 3]), ("total", [-1])]
    config = stub.ModelConfig(pb.ModelConfigRequest(name="texts")).config
    assert config.input[0].data_type == pb.TYPE_STRING
    statistics = stub.ModelStatistics(pb.ModelStatisticsRequest(name="scale")).model_stats[0]
    assert statistics.memory_usage[0].byte_size == 12


def test_wrong_tensors_are_refused(stub: Any) -> None:
    code, text = status(stub.ModelInfer, own.request("scale", x=np.ones((1, 2), np.float32), ids=np.ones((1, 1), int)))
    assert code == "INVALID_ARGUMENT"
    assert "expected shape [n, 3], came [1, 2]" in text


def test_a_model_that_raises_fails_alone(stub: Any) -> None:
    code, text = status(stub.ModelInfer, own.request("moody", x=own.numbers(np.nan)))
    assert code == "INTERNAL"
    assert "no numbers today" in text
    assert own.outputs(stub.ModelInfer(own.request("moody", x=own.numbers(1))))["y"].tolist() == [2.0]


def test_a_model_that_cannot_be_opened_does_not_stop_the_others(stub: Any) -> None:
    index = {model.name: model for model in stub.RepositoryIndex(pb.RepositoryIndexRequest()).models}
    assert index["broken"].state == "UNAVAILABLE"
    assert "build: OSError: no such dataset" in index["broken"].reason
    assert index["scale"].state == "READY"
    assert stub.ServerReady(pb.ServerReadyRequest()).ready
    code, text = status(stub.ModelMetadata, pb.ModelMetadataRequest(name="broken"))
    assert code == "NOT_FOUND"
    assert "no such dataset" in text
    assert status(stub.ModelInfer, own.request("broken", x=own.numbers(1)))[0] == "NOT_FOUND"


def test_labels_and_retraining_are_refused_in_one_line(served: tuple[Project, Running], admin: AdminClient) -> None:
    with pytest.raises(ClientError, match="takes tensors"):
        admin.retrain("scale")
    with served[1].channel() as channel:
        send = channel.unary_unary(
            "/trimtab.v1.Feedback/Send",
            request_serializer=trimtab_pb2.FeedbackRequest.SerializeToString,
            response_deserializer=trimtab_pb2.FeedbackResponse.FromString,
        )
        assert status(send, trimtab_pb2.FeedbackRequest(model_name="scale"))[0] == "FAILED_PRECONDITION"


def test_publish_promote_alias_and_restart(tmp_path: Path) -> None:
    project = own.write(tmp_path / "project", own.scale())
    with serving(project) as running, running.inference() as stub, AdminClient(running.admin) as admin:
        two = run(project, "publish", str(weights(tmp_path, "two.safetensors", 2)), "--reason", "twice")
        run(project, "publish", str(weights(tmp_path, "three.safetensors", 3)))
        assert (two["version"], scaled(stub)) == (2, (1.0, "1"))
        assert run(project, "promote", "2")["live"] == 2
        assert scaled(stub) == scaled(stub, "champion") == (2.0, "2")
        # The one before stays loaded; one that was not asked for is not.
        assert scaled(stub, "1") == (1.0, "1")
        assert status(stub.ModelInfer, own.request("scale", "3", x=own.numbers(1)))[0] in (
            "NOT_FOUND",
            "INVALID_ARGUMENT",
        )
        assert run(project, "alias", "stable", "3")["aliases"] == {"stable": 3}
        assert scaled(stub, "stable") == scaled(stub, "3") == (3.0, "3")
        assert stub.ModelReady(pb.ModelReadyRequest(name="scale", version="stable")).ready
        listed = admin.versions("scale")
        assert dict(listed.aliases) == {"stable": 3, "champion": 2}
        assert list(listed.loaded) == [1, 2, 3]
        for name, wrong in (("champion", 1), ("7up", 1), ("stable", 99), ("", 1)):
            with pytest.raises(ClientError):
                admin.alias("scale", name, wrong)
        with pytest.raises(ClientError, match="epoch"):
            admin.alias("scale", "stable", 1, expected_epoch=1)
        epoch = admin.versions("scale").epoch
    live = LiveStore(project.model_state("scale").live).read()
    assert live is not None
    assert (live.live, live.previous, live.aliases, live.epoch) == (2, 1, {"stable": 3}, epoch)
    with serving(project) as running, running.inference() as stub:
        assert scaled(stub, "stable") == (3.0, "3")
        # A promotion and a rollback keep the names.
        run(project, "promote", "1")
        run(project, "rollback")
        assert (scaled(stub), scaled(stub, "stable")) == ((2.0, "2"), (3.0, "3"))
        run(project, "alias", "stable", "--remove")
        assert status(stub.ModelInfer, own.request("scale", "stable", x=own.numbers(1)))[0] != "OK"
        assert status(stub.ModelMetadata, pb.ModelMetadataRequest(name="scale", version="3"))[0] == "NOT_FOUND"


def test_the_newest_staged_candidate_is_the_challenger(tmp_path: Path) -> None:
    project = own.write(tmp_path / "project", own.scale())
    with serving(project) as running, running.inference() as stub, AdminClient(running.admin) as admin:
        assert status(stub.ModelMetadata, pb.ModelMetadataRequest(name="scale", version="challenger"))[0] == "NOT_FOUND"
        for value in (2, 3):
            run(project, "publish", str(weights(tmp_path, f"{value}.safetensors", value)))
            assert admin.stage("scale", value).latency_full_us > 0
            assert scaled(stub, "challenger") == (float(value), str(value))
        admin.promote("scale", 3)
        assert scaled(stub, "challenger") == (2.0, "2")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a project with versions 1 to 4 and no policy; copied for each."""
    folder = tmp_path_factory.mktemp("published")
    project = own.write(folder / "project", own.scale())
    run(project, "train")
    for value in (2, 3, 4):
        run(project, "publish", str(weights(folder, f"{value}.safetensors", value)))
    return project.directory


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ('policy = "latest"\nlatest = 2', [1, 3, 4]),
        ('policy = "all"', [1, 2, 3, 4]),
        ('policy = "specific"\nnumbers = [2, 77]', [1, 2]),
        ('policy = "live"', [1]),
    ],
)
def test_the_version_policy(published: Path, tmp_path: Path, policy: str, expected: list[int]) -> None:
    shutil.copytree(published, tmp_path / "project")
    project = own.write(tmp_path / "project", own.scale(sections=f"[model.versions]\n{policy}"))
    with serving(project) as running, running.inference() as stub, AdminClient(running.admin) as admin:
        assert list(admin.versions("scale").loaded) == expected
        for number in expected:
            assert scaled(stub, str(number)) == (float(number), str(number))
        # Loading it again follows the policy again.
        run(project, "publish", str(weights(tmp_path, "5.safetensors", 5)))
        loaded = run(project, "load", "scale")["loaded"]
        assert loaded == {3: [1, 4, 5], 4: [*expected, 5]}.get(len(expected), expected)


def test_load_and_unload_while_others_serve(served: tuple[Project, Running], stub: Any, admin: AdminClient) -> None:
    project, _ = served
    assert status(stub.RepositoryModelLoad, pb.RepositoryModelLoadRequest(model_name="later"))[0] == "PERMISSION_DENIED"
    assert status(stub.ModelInfer, own.request("later", x=own.numbers(1)))[0] == "NOT_FOUND"
    assert run(project, "load", "later")["live"] == 1
    assert own.outputs(stub.ModelInfer(own.request("later", x=own.numbers(1))))["y"].tolist() == [2.0]
    # What was accepted before is answered, while another model is asked.
    slow = stub.ModelInfer.future(own.request("later", x=own.numbers(-0.3)))
    after = stub.ModelInfer.future(own.request("later", x=own.numbers(5)))
    stub.ModelInfer(own.request("texts", text=[b"ab"]))
    admin.unload("later")
    assert np.isclose(own.outputs(slow.result(timeout=30))["y"][0], 0.7)
    assert own.outputs(after.result(timeout=30))["y"].tolist() == [6.0]
    assert status(stub.ModelInfer, own.request("later", x=own.numbers(1)))[0] == "NOT_FOUND"
    index = {model.name: model for model in stub.RepositoryIndex(pb.RepositoryIndexRequest()).models}
    assert (index["later"].state, index["later"].reason) == ("UNAVAILABLE", "unloaded")
    with pytest.raises(ClientError, match="not loaded"):
        admin.unload("later")
    admin.load("later")
    assert own.outputs(stub.ModelInfer(own.request("later", x=own.numbers(1))))["y"].tolist() == [2.0]
    admin.unload("later")


def test_loading_reads_the_project_file_and_the_code_anew(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    project = own.write(folder, own.scale())
    with serving(project) as running, running.inference() as stub, AdminClient(running.admin) as admin:
        with pytest.raises(ClientError, match="no model 'new'"):
            admin.load("new")
        own.write(folder, own.scale(), own.model("new", "Absent"))
        with pytest.raises(ClientError, match=r"own_models\.py has no 'Absent'"):
            admin.load("new")
        (folder / "trimtab.toml").write_text(own.SERVER.format(server="hots = 1"))
        with pytest.raises(ClientError, match=r"unknown key 'hots'; did you mean 'host'"):
            admin.load("new")
        assert scaled(stub) == (1.0, "1")
        own.write(folder, own.scale(), own.model("new", "Moody"))
        admin.load("new")
        ask = own.request("new", x=own.numbers(1))
        assert own.outputs(stub.ModelInfer(ask))["y"].tolist() == [2.0]
        admin.unload("new")
        (folder / "own_models.py").write_text(own.CODE.replace("return x + 1", "return x + 2"))
        admin.load("new")
        assert own.outputs(stub.ModelInfer(ask))["y"].tolist() == [3.0]
        # Settings that changed under a loaded model need it to be unloaded first.
        own.write(folder, own.scale(sections="[model.batching]\nmax_batch_size = 3"), own.model("new", "Moody"))
        with pytest.raises(ClientError, match="unload it first"):
            admin.load("scale")
        admin.unload("scale")
        admin.load("scale")
        assert stub.ModelConfig(pb.ModelConfigRequest(name="scale")).config.max_batch_size == 3


def test_models_may_be_controlled_everywhere_where_the_project_says_so(tmp_path: Path) -> None:
    project = own.write(tmp_path / "project", own.model("moody", "Moody"), own.TEXTS)
    path = project.directory / "trimtab.toml"
    path.write_text(path.read_text() + '\n[security]\nmodel_control = "everywhere"\n')
    with serving(Project.load(project.directory)) as running, running.inference() as stub:
        stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="moody"))
        assert stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True)).models[0].name != "moody"
        load = pb.RepositoryModelLoadRequest(model_name="moody")
        stub.RepositoryModelLoad(load)
        load.parameters["config"].string_param = "{}"
        assert status(stub.RepositoryModelLoad, load)[0] == "INVALID_ARGUMENT"
        # One that came while the server runs also goes when it stops.
        assert running.stop() == 0


def test_the_bound_on_memory(tmp_path: Path) -> None:
    wide = 1_000_000  # bytes of weights
    project = own.write(
        tmp_path / "project",
        own.model("one", "Wide"),
        own.model("two", "Wide"),
        own.model("three", "Wide", "load = false"),
        server=f"max_model_bytes = {2 * wide + wide // 2}",
    )
    with serving(project) as running, running.inference() as stub, AdminClient(running.admin) as admin:
        with pytest.raises(
            ClientError, match=r"model 'three' version 1 needs 1,000,\d+ bytes: 2,000,000 of .* taken by"
        ):
            admin.load("three")
        path = tmp_path / "wide.safetensors"
        save_file({"weight": torch.zeros(1000, 250)}, path)
        run(project, "publish", str(path), "--model", "one")
        with pytest.raises(ClientError, match="max_model_bytes"):
            admin.promote("one", 2)
        assert not [item for item in admin.versions("one").versions if item.verdict == "refused"]
        admin.unload("two")
        admin.promote("one", 2)
        assert own.outputs(stub.ModelInfer(own.request("one", x=own.numbers(1))))["y"].tolist() == [0.0]


def test_where_no_model_can_be_served_the_server_does_not_start(tmp_path: Path) -> None:
    project = own.write(
        tmp_path / "project", own.model("broken", "broken"), own.model("later", "Moody", "load = false")
    )
    log = tmp_path / "log"
    process = start(project, log)
    assert process.communicate(timeout=60)[0] == ""
    assert process.returncode == 1
    (line,) = [line for line in log.read_text().splitlines() if line.startswith("trimtab:")]
    assert "build: OSError: no such dataset" in line


def test_code_that_everybody_may_write_does_not_run(tmp_path: Path) -> None:
    project = own.write(tmp_path / "project", own.model("moody", "Moody"))
    (project.directory / "own_models.py").chmod(0o666)
    log = tmp_path / "log"
    process = start(project, log)
    assert process.communicate(timeout=60)[0] == ""
    assert process.returncode == 1
    assert "can be written by everybody" in log.read_text()
