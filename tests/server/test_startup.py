"""What a server makes of what it finds: first start, damage, another server, ports, disks. Failures are one line."""

from __future__ import annotations

import json
import pickle
import socket
import sqlite3
from pathlib import Path
from typing import Any

import grpc
import pytest
from trimtab.protos.v1 import trimtab_pb2 as pb
from trimtab.server.app import serve
from trimtab.store.live import Live, LiveStore
from trimtab.store.project import Project
from trimtab.store.versions import Decision, VersionStore

from .test_lifecycle import Bomb, flip_bit
from .world import MODEL, infer_request, publish, serving, start, table, write_project


def failure(capfd: pytest.CaptureFixture[str], project: Project, **options: Any) -> str:
    """The one line that `serve` ends with where it cannot start. In this process: it leaves nothing behind either."""
    assert serve(project, as_json=True, **options) == 1
    out, error = capfd.readouterr()
    assert out == ""
    assert "Traceback" not in error
    last = error.strip().splitlines()[-1]
    assert last.startswith("trimtab: ")
    return last


def live(project: Project) -> Live | None:
    return LiveStore(project.model_state(MODEL).live).read()


def test_first_start_makes_the_initial_version_live(tmp_path: Path) -> None:
    project = write_project(tmp_path / "project")
    publish(project, 3, verdict="initial")
    publish(project, 4)
    with serving(project) as running:
        assert running.stop() == 0
    current = live(project)
    assert current is not None
    assert (current.live, current.previous, current.epoch, current.reason) == (3, None, 1, "first start")


def test_restart_serves_what_was_live(project: Project) -> None:
    publish(project, 2)
    with serving(project) as running, running.lifecycle() as lifecycle:
        lifecycle.Promote(pb.PromoteRequest(version=2, expected_epoch=-1))
    with serving(project) as running, running.lifecycle() as lifecycle:
        versions = lifecycle.ListVersions(pb.ListVersionsRequest())
        assert (versions.live, versions.previous, versions.epoch) == (2, 1, 2)
        # The one before is warm: a rollback needs no loading, and works with its files gone.
        flip_bit(project.model_state(MODEL).versions / "1")
        assert lifecycle.Rollback(pb.RollbackRequest()).live == 1


def test_damaged_live_version_gives_way_to_the_previous_loudly(project: Project) -> None:
    publish(project, 2)
    LiveStore(project.model_state(MODEL).live).swap(Live(live=2, previous=1), expected_epoch=0, reason="test")
    flip_bit(project.model_state(MODEL).versions / "2")
    with serving(project) as running:
        with running.inference() as stub:
            assert stub.ModelInfer(infer_request(table(1))).model_version == "1"
        assert "version 2 was live and cannot be loaded" in running.log.read_text()
    current = live(project)
    assert current is not None
    assert (current.live, current.previous, current.epoch) == (1, None, 2)
    assert "expected sha256" in current.reason
    last = VersionStore(project.model_state(MODEL).versions).decisions()[-1]
    assert (last.version, last.verdict) == (2, "refused")


def test_damaged_previous_version_does_not_keep_the_live_one_from_serving(project: Project) -> None:
    publish(project, 2)
    LiveStore(project.model_state(MODEL).live).swap(Live(live=1, previous=2), expected_epoch=0, reason="test")
    flip_bit(project.model_state(MODEL).versions / "2")
    with serving(project) as running, running.lifecycle() as lifecycle:
        with pytest.raises(grpc.RpcError, match="expected sha256"):
            lifecycle.Rollback(pb.RollbackRequest())
        assert lifecycle.ListVersions(pb.ListVersionsRequest()).live == 1


def test_damaged_only_version_is_one_line(capfd: pytest.CaptureFixture[str], project: Project) -> None:
    flip_bit(project.model_state(MODEL).versions / "1")
    assert "expected sha256" in failure(capfd, project)
    assert live(project) is None


def test_no_version_is_one_line(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "`trimtab train` makes version 1" in failure(capfd, write_project(tmp_path / "project"))


def test_damaged_live_json_is_one_line_and_never_guessed_at(
    capfd: pytest.CaptureFixture[str], project: Project
) -> None:
    path = project.model_state(MODEL).live
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"live": ')
    assert "live.json cannot be read" in failure(capfd, project)


def test_port_in_use_is_one_line(capfd: pytest.CaptureFixture[str], project: Project) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"cannot listen on 127.0.0.1:{port}: address already in use" in failure(capfd, project, grpc_port=port)
        assert f"cannot listen on 127.0.0.1:{port}: address already in use" in failure(capfd, project, http_port=port)
    # What had been started was stopped again: nothing holds the state folder.
    with serving(project):
        pass


def test_second_server_on_the_same_state_is_one_line(capfd: pytest.CaptureFixture[str], project: Project) -> None:
    with serving(project) as running:
        line = failure(capfd, project)
        assert f"another server (pid {running.process.pid}) runs on {project.state}" in line
        with running.lifecycle() as lifecycle:
            assert lifecycle.Status(pb.StatusRequest()).ready
        address = json.loads((project.state / "server.json").read_text())
        assert address == {
            "pid": running.process.pid,
            "grpc": running.grpc,
            "http": running.http,
            "admin": running.admin,
        }


def test_bad_project_is_one_line(project: Project) -> None:
    with (project.directory / "trimtab.toml").open("a") as file:
        file.write("\n[sever]\ngrpc_port = 1\n")
    log = project.directory / "failure.log"
    process = start(project, log)
    assert process.communicate(timeout=60)[0] == ""
    assert process.returncode == 1
    (line,) = log.read_text().splitlines()
    assert "sever" in line


def test_device_that_is_not_there_is_one_line(capfd: pytest.CaptureFixture[str], project: Project) -> None:
    assert "torch sees no GPU" in failure(capfd, project, device="cuda")


def test_full_disk_is_one_line(project: Project) -> None:
    # Beyond this limit writes fail as they do on a full disk; 0: from the first byte on.
    log = project.directory / "failure.log"
    log.touch()
    process = start(project, log, file_bytes=0)
    stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    (line,) = stdout.splitlines()
    assert line.startswith("trimtab: cannot ")


def test_planted_pickles_are_never_executed(project: Project) -> None:
    trace = project.directory / "exploded"
    bomb = pickle.dumps(Bomb(trace))
    root = project.model_state(MODEL).root
    for name in ("captures", "trainer", "versions/2", "versions/7.fitting"):
        (root / name).mkdir(parents=True, exist_ok=True)
        for file in ("model.pkl", "weights.safetensors", "columns.json", "5.arrow", "5.open", "x.pt"):
            (root / name / file).write_bytes(bomb)
    for file in ("drift.jsonl", "drift_monitor.json", "outbox.sqlite"):
        (root / file).write_bytes(bomb)
    # A real database of labels, with a row whose value is a pickle.
    with serving(project) as running:
        assert running.stop() == 0
    with sqlite3.connect(root / "labels.sqlite") as database:
        columns = [row[1] for row in database.execute("PRAGMA table_info(labels)")]
        text = pickle.dumps(Bomb(trace), protocol=0).decode()
        values = {"request_id": bytes(16), "value": text, "output": "probability", "revision": 1, "key": None}
        known = {name: values.get(name, 1) for name in columns}
        marks = ", ".join("?" * len(known))
        database.execute(f"INSERT INTO labels ({', '.join(known)}) VALUES ({marks})", list(known.values()))
    database.close()
    with serving(project) as running, running.lifecycle() as lifecycle:
        with running.inference() as stub:
            stub.ModelInfer(infer_request(table(2)))
        lifecycle.Advance(pb.AdvanceRequest(), timeout=30)
        lifecycle.ListVersions(pb.ListVersionsRequest())
        with pytest.raises(grpc.RpcError):
            lifecycle.Stage(pb.StageRequest(version=2))
    assert not trace.exists()


def test_several_models_are_served_side_by_side(tmp_path: Path) -> None:
    project = write_project(tmp_path / "project")
    path = project.directory / "trimtab.toml"
    text = path.read_text()
    block = text[text.index("[[model]]") :]
    path.write_text(text + block.replace('name = "tiny"', 'name = "other"'))
    project = Project.load(project.directory)
    publish(project, 1, verdict="initial")
    store = VersionStore(project.model_state("other").versions)
    first = VersionStore(project.model_state(MODEL).versions)
    files = {name: first.path(1) / name for name in first.manifest(1).files}
    store.publish(1, files, first.manifest(1))
    store.decide(Decision(version=1, verdict="initial", reason="test"))
    with serving(project) as running, running.inference() as stub:
        for name in (MODEL, "other"):
            assert stub.ModelInfer(infer_request(table(2), model=name)).model_name == name
        with running.lifecycle() as lifecycle:
            assert {model.name for model in lifecycle.Status(pb.StatusRequest()).models} == {MODEL, "other"}
            with pytest.raises(grpc.RpcError, match="name a model"):
                lifecycle.ListVersions(pb.ListVersionsRequest())
