"""Versions through the admin socket of real servers: staging, refusing, promoting, rolling back, forgetting."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from trimtab.protos.v1 import trimtab_pb2 as pb
from trimtab.protos.v1.trimtab_pb2_grpc import FeedbackStub
from trimtab.store.project import Project
from trimtab.store.versions import Decision, VersionStore

from .world import MODEL, Running, expected, infer_request, loaded, predictions, publish, serving, table, write_project


@pytest.fixture
def served(project: Project) -> Iterator[Running]:
    with serving(project) as running:
        yield running


@pytest.fixture
def lifecycle(served: Running) -> Iterator[Any]:
    with served.lifecycle() as stub:
        yield stub


def refusal(call: Any, request: Any, **options: Any) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=60, **options)
    return caught.value.code().name, caught.value.details()  # type: ignore[attr-defined]


def promote(lifecycle: Any, version: int, epoch: int = -1) -> Any:
    return lifecycle.Promote(pb.PromoteRequest(model_name=MODEL, version=version, expected_epoch=epoch, reason="test"))


def live_answer(served: Running, version: str = "") -> Any:
    with served.inference() as stub:
        return stub.ModelInfer(infer_request(table(4), version=version))


def test_staged_then_promoted_then_rolled_back(project: Project, served: Running, lifecycle: Any) -> None:
    publish(project, 2)
    staged = lifecycle.Stage(pb.StageRequest(model_name=MODEL, version=2))
    two = loaded(project, 2)
    assert staged.weights == two.weights
    assert staged.latency_one_us > 0
    assert staged.latency_full_us > 0
    # Staged: answers by number, and the live version stays.
    assert live_answer(served).model_version == "1"
    np.testing.assert_allclose(predictions(live_answer(served, "2")), expected(two, table(4)), rtol=1e-6)
    answer = promote(lifecycle, 2, epoch=1)
    assert (answer.live, answer.previous, answer.epoch, answer.weights) == (2, 1, 2, two.weights)
    assert live_answer(served).model_version == "2"
    # Again: nothing changes, so that a caller that lost the answer may repeat it.
    assert promote(lifecycle, 2, epoch=1).epoch == 2
    back = lifecycle.Rollback(pb.RollbackRequest(model_name=MODEL, reason="worse"))
    assert (back.live, back.previous, back.epoch) == (1, 2, 3)
    assert live_answer(served).model_version == "1"


def test_promotion_decided_on_an_older_state_is_refused(project: Project, lifecycle: Any) -> None:
    publish(project, 2)
    publish(project, 3)
    promote(lifecycle, 2)
    code, message = refusal(lifecycle.Promote, pb.PromoteRequest(model_name=MODEL, version=3, expected_epoch=1))
    assert code == "ABORTED"
    assert "epoch 2" in message
    assert lifecycle.ListVersions(pb.ListVersionsRequest()).live == 2


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Project, Running]]:
    """One server for all refusals: each candidate has a number of its own."""
    project = write_project(tmp_path_factory.mktemp("shared") / "project")
    publish(project, 1, verdict="initial")
    with serving(project) as running:
        yield project, running


def spoil(change: Callable[[Path], Any]) -> Callable[[Project, int], Any]:
    """Publishes a good version and changes its folder afterwards."""

    def make(project: Project, number: int) -> None:
        publish(project, number)
        change(project.model_state(MODEL).versions / str(number))

    return make


def nan_weights(module: Any) -> None:
    module.get_parameter("bias").fill_(float("nan"))


def overflowing_weights(module: Any) -> None:
    # Finite, but their sum over features is not: infinity minus infinity.
    module.get_parameter("weight")[:, ::2].fill_(3e38)
    module.get_parameter("weight")[:, 1::2].fill_(-3e38)


def flip_bit(folder: Path) -> None:
    path = folder / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 0x10
    path.chmod(0o644)
    path.write_bytes(data)


def plant_pickle(folder: Path) -> None:
    path = folder / "weights.safetensors"
    path.chmod(0o644)
    path.write_bytes(pickle.dumps(Bomb(folder.parents[2] / "exploded")))


class Bomb:
    """A pickle that leaves a trace when it is loaded."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


UNFIT: dict[str, tuple[Callable[[Project, int], Any], str]] = {
    "nan": (lambda project, number: publish(project, number, change=nan_weights), "not finite"),
    "overflow": (lambda project, number: publish(project, number, change=overflowing_weights), "NaN|not finite"),
    "bit flip": (spoil(flip_bit), "expected sha256"),
    "pickle": (spoil(plant_pickle), "expected sha256"),
    "missing file": (spoil(lambda folder: (folder / "reference.arrow").unlink()), "reference.arrow"),
    "extra file": (spoil(lambda folder: (folder / "x.pkl").write_bytes(pickle.dumps(1))), "x.pkl"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_unfit_candidate_is_refused_with_a_reason_and_never_live(shared: tuple[Project, Running], case: str) -> None:
    project, running = shared
    make, reason = UNFIT[case]
    number = 2 + list(UNFIT).index(case)
    make(project, number)
    with running.lifecycle() as lifecycle:
        events = lifecycle.WatchEvents(pb.WatchEventsRequest(model_name=MODEL))
        lifecycle.Status(pb.StatusRequest())
        code, message = refusal(lifecycle.Stage, pb.StageRequest(model_name=MODEL, version=number))
        assert code == "FAILED_PRECONDITION"
        assert re.search(reason, message), message
        event = next(events)
        assert (event.kind, event.version) == ("refused", number)
        events.cancel()
        again = refusal(lifecycle.Promote, pb.PromoteRequest(version=number, expected_epoch=-1))
        assert again[0] == "FAILED_PRECONDITION"
        versions = lifecycle.ListVersions(pb.ListVersionsRequest())
    assert live_answer(running).model_version == "1"
    assert versions.live == 1
    (info,) = [info for info in versions.versions if info.version == number]
    assert (info.state, info.verdict) == ("refused", "refused")
    decisions = VersionStore(project.model_state(MODEL).versions).decisions()
    assert [decision.verdict for decision in decisions if decision.version == number] == ["refused"]
    assert not (project.state / "exploded").exists()


def test_candidate_of_other_columns_is_refused(project: Project, lifecycle: Any, tmp_path: Path) -> None:
    elsewhere = write_project(tmp_path / "elsewhere")
    path = elsewhere.directory / "trimtab.toml"
    path.write_text(path.read_text().replace('name = "flag"\ntype = "boolean"', 'name = "flag"\ntype = "real"'))
    publish(Project.load(elsewhere.directory), 2)
    shutil.copytree(elsewhere.model_state(MODEL).versions / "2", project.model_state(MODEL).versions / "2")
    code, message = refusal(lifecycle.Stage, pb.StageRequest(model_name=MODEL, version=2))
    assert code == "FAILED_PRECONDITION"
    assert "('flag', 'real') instead of ('flag', 'boolean')" in message


def test_unknown_versions_and_models(shared: tuple[Project, Running]) -> None:
    with shared[1].lifecycle() as lifecycle:
        _check_unknown(lifecycle)


def _check_unknown(lifecycle: Any) -> None:
    assert refusal(lifecycle.Stage, pb.StageRequest(version=77))[0] == "NOT_FOUND"
    assert refusal(lifecycle.Promote, pb.PromoteRequest(version=77, expected_epoch=-1))[0] == "NOT_FOUND"
    assert refusal(lifecycle.Stage, pb.StageRequest(model_name="x", version=1))[0] == "NOT_FOUND"
    code, message = refusal(lifecycle.Rollback, pb.RollbackRequest())
    assert code == "FAILED_PRECONDITION"
    assert "no previous" in message


def test_list_of_versions_tells_what_became_of_each(project: Project, lifecycle: Any) -> None:
    store = VersionStore(project.model_state(MODEL).versions)
    for number in range(2, 6):
        publish(project, number)
    store.decide(Decision(version=5, verdict="undecided", reason="too few rows", metrics={"difference": 0.25}))
    store.allocate("workflow")
    lifecycle.Stage(pb.StageRequest(version=4))
    promote(lifecycle, 2)
    promote(lifecycle, 3)
    answer = lifecycle.ListVersions(pb.ListVersionsRequest(model_name=MODEL))
    states = {info.version: info.state for info in answer.versions}
    assert states == {1: "archived", 2: "previous", 3: "live", 4: "staged", 5: "undecided", 6: "fitting"}
    five = answer.versions[4]
    assert (five.verdict, five.reason, five.metrics["difference"]) == ("undecided", "too few rows", 0.25)
    assert answer.versions[2].rows_trained == 2000
    assert (answer.live, answer.previous, answer.epoch) == (3, 2, 3)


def test_only_a_person_promotes_where_a_person_must(tmp_path: Path) -> None:
    project = write_project(tmp_path / "project", sections={"rollout": 'approve = "person"'})
    publish(project, 1, verdict="initial")
    publish(project, 2)
    with serving(project) as running, running.lifecycle() as lifecycle:
        lifecycle.Stage(pb.StageRequest(version=2))
        trainer = (("trimtab-caller", "trainer"),)
        code, message = refusal(lifecycle.Promote, pb.PromoteRequest(version=2, expected_epoch=-1), metadata=trainer)
        assert code == "PERMISSION_DENIED"
        assert "trimtab promote 2" in message
        assert promote(lifecycle, 2).live == 2


def test_events_tell_the_story(project: Project, lifecycle: Any) -> None:
    publish(project, 2)
    events = lifecycle.WatchEvents(pb.WatchEventsRequest())
    lifecycle.Status(pb.StatusRequest())
    promote(lifecycle, 2)
    lifecycle.Rollback(pb.RollbackRequest(reason="worse"))
    seen = [next(events) for _ in range(3)]
    assert [(event.kind, event.version) for event in seen] == [("staged", 2), ("promoted", 2), ("rolled_back", 1)]
    assert "worse" in seen[2].message
    events.cancel()


def test_forgotten_requests_leave_nothing(shared: tuple[Project, Running]) -> None:
    project, served = shared
    with served.lifecycle() as lifecycle:
        _check_forgetting(project, served, lifecycle)


def _check_forgetting(project: Project, served: Running, lifecycle: Any) -> None:
    answers = [live_answer(served).parameters["trimtab_request_id"].string_param for _ in range(3)]
    with served.channel() as channel:
        labels = [pb.Label(request_id=sent, row=0, text="yes") for sent in answers]
        FeedbackStub(channel).Send(pb.FeedbackRequest(labels=labels))
    gone = lifecycle.Forget(pb.ForgetRequest(model_name=MODEL, request_ids=answers[:2]))
    assert (gone.rows, gone.labels) == (8, 2)
    again = lifecycle.Forget(pb.ForgetRequest(model_name=MODEL, request_ids=answers[:2]))
    assert (again.rows, again.labels) == (0, 0)
    assert refusal(lifecycle.Forget, pb.ForgetRequest(request_ids=["x"]))[0] == "INVALID_ARGUMENT"
    wanted = bytes.fromhex(answers[0].replace("-", ""))
    files = [path for path in project.model_state(MODEL).root.rglob("*") if path.is_file()]
    assert not any(wanted in path.read_bytes() for path in files)


def test_advance_without_a_trainer_returns_after_sealing(shared: tuple[Project, Running]) -> None:
    with shared[1].lifecycle() as lifecycle:
        lifecycle.Advance(pb.AdvanceRequest(), timeout=30)
        live_answer(shared[1])
        assert lifecycle.Advance(pb.AdvanceRequest(), timeout=30).rows_sealed == 4
        code, message = refusal(lifecycle.Retrain, pb.RetrainRequest())
    assert code == "FAILED_PRECONDITION"
    assert "without a trainer" in message


def test_status_counts(project: Project, served: Running, lifecycle: Any) -> None:
    live_answer(served)
    live_answer(served)
    status = lifecycle.Status(pb.StatusRequest())
    (model,) = status.models
    assert (model.requests, model.rows, model.live, model.failed) == (2, 8, 1, 0)
    assert model.weights == loaded(project, 1).weights
    assert status.ready
    assert status.trainer.state == "absent"


def test_admin_socket_is_private_and_public_port_is_not_a_way_in(shared: tuple[Project, Running]) -> None:
    project, served = shared
    path = Path(served.admin)
    assert path == project.state / "admin.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with served.channel() as channel:
        promote = channel.unary_unary("/trimtab.v1.Lifecycle/Promote")
        assert refusal(promote, b"")[0] == "UNIMPLEMENTED"


@pytest.mark.parametrize("temporary", ["short", "long"])
def test_long_path_puts_the_admin_socket_into_a_private_folder(temporary: str, tmp_path: Path) -> None:
    project = write_project(tmp_path / ("long" * 25))
    publish(project, 1, verdict="initial")
    environment = {"TMPDIR": str(project.directory)} if temporary == "long" else {}
    with serving(project, environment) as running:
        path = Path(running.admin)
        assert len(os.fsencode(path)) <= 100
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        with running.lifecycle() as lifecycle:
            assert lifecycle.Status(pb.StatusRequest()).ready
        assert running.stop() == 0
    assert not path.parent.exists()


def test_socket_left_by_a_killed_server_is_replaced(project: Project) -> None:
    project.state.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(project.state / "admin.sock"))
    with serving(project) as running, running.lifecycle() as lifecycle:
        assert lifecycle.Status(pb.StatusRequest()).ready
