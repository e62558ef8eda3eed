"""A GPU that has no memory left, or is lost: the first is an answer, the second ends the server.

There need be no GPU: a model of one's own raises what torch would.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from trimtab.protos.v1 import inference_pb2 as pb
from trimtab.protos.v1 import trimtab_pb2
from trimtab.server.app import EXIT_DEVICE_LOST
from trimtab.store.project import Project
from trimtab.store.versions import VersionStore

from . import own
from .world import serving, start


def refusal(call: Any, request: Any) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=60)
    return caught.value.code().name, caught.value.details()  # type: ignore[attr-defined]


def project_of(folder: Path, more: str = "") -> Project:
    return own.write(folder, own.model("hungry", "Hungry", more), own.TEXTS)


def test_a_batch_that_does_not_fit_is_answered_and_serving_goes_on(tmp_path: Path) -> None:
    with serving(project_of(tmp_path / "project")) as running, running.inference() as stub:
        for _ in range(3):
            code, text = refusal(stub.ModelInfer, own.request("hungry", x=own.numbers(1, 0)))
            assert code == "RESOURCE_EXHAUSTED"
            assert "model 'hungry': no memory left for a batch of 2 rows; send fewer at a time" in text
            assert "Tried to allocate 20.00 GiB" in text
            assert "GPU 0 has" not in text
            assert own.outputs(stub.ModelInfer(own.request("hungry", x=own.numbers(5))))["y"].tolist() == [6.0]
        assert stub.ServerReady(pb.ServerReadyRequest()).ready
        assert running.stop() == 0


def test_a_version_that_does_not_fit_is_refused_without_a_verdict(tmp_path: Path) -> None:
    project = project_of(tmp_path / "project")
    with serving(project) as running, running.inference() as stub, running.lifecycle() as lifecycle:
        versions = VersionStore(project.model_state("hungry").versions)
        number = versions.allocate("test")
        manifest = versions.manifest(1).model_copy(update={"version": number})
        files = {name: (versions.path(1) / name).read_bytes() for name in versions.manifest(1).files}
        versions.publish(number, files, manifest)
        before = len(versions.decisions())
        stage = trimtab_pb2.StageRequest(model_name="hungry", version=number)
        (tmp_path / "project" / "hungry").write_text("1")
        code, text = refusal(lifecycle.Stage, stage)
        assert code == "FAILED_PRECONDITION"
        assert f"model 'hungry' version {number}: there is no memory left to load and try it" in text
        (tmp_path / "project" / "hungry").unlink()
        assert len(versions.decisions()) == before  # no verdict about it
        assert own.outputs(stub.ModelInfer(own.request("hungry", x=own.numbers(5))))["y"].tolist() == [6.0]
        # Now there is room.
        lifecycle.Stage(stage, timeout=60)
        assert running.stop() == 0


def test_a_server_whose_gpu_is_lost_says_so_and_ends(tmp_path: Path) -> None:
    with serving(project_of(tmp_path / "project")) as running, running.inference() as stub:
        code, text = refusal(stub.ModelInfer, own.request("hungry", x=own.numbers(2)))
        assert code == "UNAVAILABLE"
        assert "the GPU is lost to this server, which restarts: CUDA error: an illegal memory access" in text
        assert "Compile with" not in text
        # Whatever comes now is refused, by this process as long as it is there.
        assert refusal(stub.ModelInfer, own.request("texts", text=[b"ab"]))[0] == "UNAVAILABLE"
        assert running.process.wait(60) == EXIT_DEVICE_LOST == 75
        log = running.log.read_text()
        assert log.count("server: device_lost: model 'hungry': the GPU is lost") == 1


def test_a_gpu_that_is_lost_while_staging_ends_the_server_too(tmp_path: Path) -> None:
    project = project_of(tmp_path / "project")
    with serving(project) as running, running.lifecycle() as lifecycle:
        versions = VersionStore(project.model_state("hungry").versions)
        number = versions.allocate("test")
        manifest = versions.manifest(1).model_copy(update={"version": number})
        files = {name: (versions.path(1) / name).read_bytes() for name in versions.manifest(1).files}
        versions.publish(number, files, manifest)
        (tmp_path / "project" / "hungry").write_text("2")
        code, _ = refusal(lifecycle.Stage, trimtab_pb2.StageRequest(model_name="hungry", version=number))
        assert code == "UNAVAILABLE"
        assert running.process.wait(60) == EXIT_DEVICE_LOST
        assert "server: device_lost: model 'hungry' version 2: the GPU is lost" in running.log.read_text()
        assert not [decision for decision in versions.decisions() if decision.version == number]


def test_a_start_without_a_gpu_that_works_ends_in_the_same_way(tmp_path: Path) -> None:
    project = project_of(tmp_path / "project")
    (tmp_path / "project" / "hungry").write_text("2")
    log = tmp_path / "log"
    process = start(project, log)
    with process:
        assert process.wait(60) == EXIT_DEVICE_LOST
    assert "the GPU is lost" in log.read_text()
