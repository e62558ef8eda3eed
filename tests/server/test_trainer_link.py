"""Server and trainer processes together, the trainer a fake that does as it is told: commands, crashes, restarts,
ends."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from trimtab.protos.v1 import inference_pb2 as inference
from trimtab.protos.v1 import trimtab_pb2 as pb
from trimtab.protos.v1.inference_pb2_grpc import GRPCInferenceServiceStub
from trimtab.protos.v1.trimtab_pb2_grpc import FeedbackStub
from trimtab.store.project import Project

from .world import MODEL, Running, infer_request, publish, serving, table, write_project

FAKE = {"FAKE_TRAINER": str(Path(__file__).with_name("fake_trainer.py"))}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = write_project(
        tmp_path / "project", server="lockstep = true", sections={"drift": "window_rows = 10\npersistence = 1"}
    )
    publish(made, 1, verdict="initial")
    return made


def commands(project: Project) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (project.directory / "commands.jsonl").read_text().splitlines()]


def advance(running: Running, time_us: int) -> pb.AdvanceResponse:
    with running.lifecycle() as lifecycle:
        response: pb.AdvanceResponse = lifecycle.Advance(
            pb.AdvanceRequest(model_name=MODEL, data_time_us=time_us), timeout=60
        )
        return response


def status(running: Running) -> pb.StatusResponse:
    with running.lifecycle() as lifecycle:
        response: pb.StatusResponse = lifecycle.Status(pb.StatusRequest())
        return response


def test_advance_seals_sends_drift_first_and_waits(project: Project) -> None:
    with serving(project, FAKE, trainer=True) as running:
        with running.inference() as stub:
            for seed in range(5):
                stub.ModelInfer(infer_request(table(5, seed), trimtab_time_us=seed))
        answer = advance(running, 10)
        assert (answer.rows_sealed, answer.live) == (25, 1)
        assert [command["kind"] for command in commands(project)] == ["drift", "drift", "advance"]
        assert [command["sequence"] for command in commands(project)] == [1, 2, 3]
        assert advance(running, 20).rows_sealed == 0
        seen = status(running).trainer
        assert (seen.state, seen.restarts) == ("idle", 0)
        assert psutil.Process(seen.pid).nice() >= 10
        assert seen.cpu_seconds == 1.5


def test_trainer_that_dies_is_restarted_and_told_again(project: Project) -> None:
    (project.directory / "crash-advance").touch()
    with serving(project, FAKE, trainer=True) as running:
        advance(running, 10)
        seen = commands(project)
        assert [command["kind"] for command in seen] == ["advance", "advance"]
        assert seen[0]["sequence"] == seen[1]["sequence"]
        assert seen[0]["pid"] != seen[1]["pid"]
        after = status(running).trainer
        assert after.restarts == 1
        assert after.last_error == "crashing on advance"
    assert "crashing on advance" in (project.state / "trainer.log").read_text()


def test_retrain_gives_the_verdict_and_its_news(project: Project) -> None:
    with serving(project, FAKE, trainer=True) as running, running.lifecycle() as lifecycle:
        events = lifecycle.WatchEvents(pb.WatchEventsRequest(model_name=MODEL))
        verdict = lifecycle.Retrain(pb.RetrainRequest(model_name=MODEL, wait=True), timeout=60)
        assert (verdict.workflow_id, verdict.verdict) == ("w", "undecided")
        asked = lifecycle.Retrain(pb.RetrainRequest(model_name=MODEL, recipe="search"), timeout=60)
        assert asked.verdict == ""
        # One event for each; the watch began before the first retrain was sent, for calls of a channel start in order.
        assert next(events).message
        assert advance(running, 1).workflows == 2
        assert status(running).models[0].quality == {"log_loss": 0.5}
        events.cancel()


def test_trainer_is_told_of_labels_by_itself_outside_lockstep(tmp_path: Path) -> None:
    project = write_project(tmp_path / "project")
    publish(project, 1, verdict="initial")
    with serving(project, FAKE, trainer=True) as running:
        with running.inference() as stub, running.channel() as channel:
            sent = stub.ModelInfer(infer_request(table(1))).parameters["trimtab_request_id"].string_param
            FeedbackStub(channel).Send(pb.FeedbackRequest(labels=[pb.Label(request_id=sent, text="yes")]))
        with running.lifecycle() as lifecycle:
            # Behind the one that came with the labels: when this is dealt with, so is that.
            lifecycle.Advance(pb.AdvanceRequest(), timeout=60)
        assert [command["kind"] for command in commands(project)].count("advance") >= 2


def test_stopping_server_tells_the_trainer_and_waits(project: Project) -> None:
    with serving(project, FAKE, trainer=True) as running:
        advance(running, 1)
        trainer = psutil.Process(status(running).trainer.pid)
        assert running.stop() == 0
        assert not trainer.is_running()
        assert commands(project)[-1]["kind"] == "shutdown"
    assert not (project.state / "server.json").exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_trainer_dies_with_the_server(project: Project, number: signal.Signals) -> None:
    with serving(project, FAKE, trainer=True) as running:
        advance(running, 1)
        trainer = psutil.Process(status(running).trainer.pid)
        running.process.send_signal(number)
        running.process.wait(30)
        psutil.wait_procs([trainer], timeout=30)
        assert not trainer.is_running() or trainer.status() == psutil.STATUS_ZOMBIE


def test_trainer_that_never_comes_up_is_reported_and_serving_goes_on(project: Project) -> None:
    (project.directory / "mute").touch()
    with serving(project, FAKE, trainer=True) as running:
        with running.lifecycle() as lifecycle:
            events = lifecycle.WatchEvents(pb.WatchEventsRequest())
            assert any("is started again" in event.message for event in events)
            events.cancel()
        seen = status(running).trainer
        assert seen.state in ("backing-off", "starting")
        assert seen.last_error == "the fake trainer is mute"
        with running.inference() as stub:
            stub.ModelInfer(infer_request(table(1)))
        assert running.stop() == 0


def test_advance_under_way_ends_when_the_server_stops(project: Project) -> None:
    (project.directory / "mute").touch()
    with serving(project, FAKE, trainer=True) as running, running.lifecycle() as lifecycle:
        failed = threading.Event()
        call = lifecycle.Advance.future(pb.AdvanceRequest(), timeout=60)
        call.add_done_callback(lambda _: failed.set())
        # Status is answered after Advance was taken up: one channel, in order.
        lifecycle.Status(pb.StatusRequest())
        assert running.stop() == 0
        assert failed.wait(10)
        assert call.code().name == "UNAVAILABLE"


# --- models that come and go: the trainer knows those of the trimtab.toml that it started with

TENSORS = """
[[model]]
name = "plain"
entry = "plain:Plain"
load = false
[[model.input]]
name = "x"
datatype = "FP32"
dims = [1]
[[model.output]]
name = "y"
datatype = "FP32"
dims = [1]
"""
PLAIN = """
import torch


class Plain(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": x}
"""


@contextlib.contextmanager
def control(running: Running) -> Iterator[Any]:
    """Who may load and unload."""
    with grpc.insecure_channel(f"unix:{running.admin}") as channel:
        yield GRPCInferenceServiceStub(channel)


def load(stub: Any, name: str) -> None:
    stub.RepositoryModelLoad(inference.RepositoryModelLoadRequest(model_name=name), timeout=60)


def unload(stub: Any, name: str) -> None:
    stub.RepositoryModelUnload(inference.RepositoryModelUnloadRequest(model_name=name), timeout=60)


def test_the_trainer_starts_anew_when_a_model_comes_or_goes(project: Project) -> None:
    with serving(project, FAKE, trainer=True) as running, running.lifecycle() as lifecycle, control(running) as stub:
        advance(running, 1)
        events = lifecycle.WatchEvents(pb.WatchEventsRequest())
        # By the same channel: calls of one start in order, so the watch has begun.
        pids = [lifecycle.Status(pb.StatusRequest()).trainer.pid]
        for change in (unload, load):
            change(stub, MODEL)
            assert any(event.message == "the trainer attends" for event in events)
            seen = status(running).trainer
            assert seen.state == "idle"
            pids.append(seen.pid)
        events.cancel()
        assert len(set(pids)) == 3
        assert status(running).trainer.restarts == 2
        # Having attended, each was replaced without being held for one that does not start.
        advance(running, 2)
        assert [command["pid"] for command in commands(project)] == [pids[0], pids[2]]
        with running.inference() as client:
            client.ModelInfer(infer_request(table(1)))
        assert running.stop() == 0


def test_a_model_that_is_not_retrained_leaves_the_trainer_alone(tmp_path: Path) -> None:
    project = write_project(tmp_path / "project", server="lockstep = true", tail=TENSORS)
    (project.directory / "plain.py").write_text(PLAIN)
    (project.directory / "plain.py").chmod(0o600)
    publish(project, 1, verdict="initial")
    with serving(project, FAKE, trainer=True) as running, control(running) as stub:
        advance(running, 1)
        before = status(running).trainer.pid
        for _ in range(2):
            load(stub, "plain")
            unload(stub, "plain")
        advance(running, 2)
        seen = status(running).trainer
        assert (seen.pid, seen.restarts) == (before, 0)
