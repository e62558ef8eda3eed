"""What a server must keep while requests pour in: swaps, an orderly stop, and a death."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from trimtab.protos.v1 import trimtab_pb2 as pb
from trimtab.store.ids import format_id
from trimtab.store.labels import LabelReader
from trimtab.store.project import Project
from trimtab.store.segment import read_segment, sealed_segments

from .load import Load
from .transports import TRANSPORTS
from .world import MODEL, Running, expected, loaded, program, publish, serving, table, write_project

ROWS = [table(rows, seed) for seed, rows in enumerate([1, 3, 40, 1, 8])]


def load(project: Project, running: Running, versions: int, *, label: bool = False) -> Load:
    answers = {str(n): [expected(loaded(project, n), rows) for rows in ROWS] for n in range(1, versions + 1)}
    return Load(running.grpc, ROWS, answers, label=label)


@pytest.fixture(params=sorted(TRANSPORTS))
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Project:
    made = write_project(
        tmp_path / "project",
        server=f'transport = "{request.param}"',
        sections={"batching": "max_batch_size = 32", "capture": "flush_seconds = 0.05"},
    )
    fitted = program(made)
    publish(made, 1, verdict="initial", fitted=fitted)
    for number in range(2, 6):
        publish(made, number, fitted=fitted)
    return made


def test_200_swaps_without_a_failed_or_mixed_answer(project: Project) -> None:
    with serving(project) as running, running.lifecycle() as lifecycle:
        traffic = load(project, running, 5).start(4)
        try:
            traffic.wait_for(lambda: traffic.codes["OK"] > 10)
            for number in range(200):
                if number % 5 == 4:
                    answer = lifecycle.Rollback(pb.RollbackRequest(model_name=MODEL, reason="test"))
                else:
                    version = 1 + (answer.live if number else 1) % 5
                    request = pb.PromoteRequest(model_name=MODEL, version=version, expected_epoch=-1, reason="test")
                    answer = lifecycle.Promote(request)
                    assert answer.live == version
                assert answer.epoch == number + 2
        finally:
            traffic.stop()
        assert traffic.wrong == []
        assert set(traffic.codes) == {"OK"}
        assert len(traffic.versions) == 5
        assert running.stop() == 0


def test_sigterm_answers_what_was_accepted_and_refuses_the_rest(project: Project) -> None:
    with serving(project) as running:
        traffic = load(project, running, 1).start(6)
        try:
            traffic.wait_for(lambda: traffic.codes["OK"] > 100)
            assert running.stop(signal.SIGTERM) == 0
        finally:
            traffic.stop()
        # Each worker ends with the first refusal.
        assert set(traffic.codes) == {"OK", "UNAVAILABLE"}
        assert traffic.wrong == []
        assert not (project.state / "server.json").exists()
    directory = project.model_state(MODEL).captures
    kept = {
        format_id(bytes(value))
        for info in sealed_segments(directory)
        for value in read_segment(directory, info).column("_request_id").to_pylist()
    }
    assert len(kept) == traffic.codes["OK"]
    assert not list(directory.glob("*.open"))


def test_kill_loses_no_acknowledged_label_and_not_what_serves(project: Project) -> None:
    directory = project.model_state(MODEL).captures
    with serving(project) as running, running.lifecycle() as lifecycle:
        lifecycle.Promote(pb.PromoteRequest(model_name=MODEL, version=3, expected_epoch=-1))
        traffic = load(project, running, 3, label=True).start(4)
        try:
            traffic.wait_for(lambda: len(traffic.acknowledged) > 100 and any(directory.glob("*.open")))
            running.process.send_signal(signal.SIGKILL)
            running.process.wait()
        finally:
            traffic.stop()
    (left_open,) = directory.glob("*.open")
    with left_open.open("ab") as file:
        file.write(b"\x00" * 100 + b"torn")
    with serving(project) as running, running.lifecycle() as lifecycle:
        versions = lifecycle.ListVersions(pb.ListVersionsRequest())
        assert (versions.live, versions.previous) == (3, 1)
        again = load(project, running, 3).start(1)
        again.wait_for(lambda: again.codes["OK"] > 3)
        again.stop()
        assert again.wrong == []
        assert set(again.versions) == {"3"}
        assert "segment_damaged" in running.log.read_text()
        assert running.stop() == 0
    reader = LabelReader(project.model_state(MODEL).labels)
    stored = {(format_id(item.request_id), item.row) for item in reader.since(0) if item.request_id is not None}
    reader.close()
    assert set(traffic.acknowledged) <= stored


def test_second_signal_ends_at_once(project: Project) -> None:
    with serving(project) as running, running.lifecycle() as lifecycle:
        events = lifecycle.WatchEvents(pb.WatchEventsRequest())
        lifecycle.Status(pb.StatusRequest())
        # Stopped, so that both signals are there when it goes on: the second finds the first being dealt with.
        running.process.send_signal(signal.SIGSTOP)
        running.process.send_signal(signal.SIGTERM)
        running.process.send_signal(signal.SIGINT)
        running.process.send_signal(signal.SIGCONT)
        assert running.process.wait(10) == 1
        events.cancel()


def test_stop_is_bounded_whatever_hangs(tmp_path: Path) -> None:
    made = write_project(tmp_path / "project", server="drain_seconds = 1.0")
    publish(made, 1, verdict="initial")
    with serving(made, stuck=True) as running:
        assert running.stop(signal.SIGTERM) == 1
        assert "closing model tiny took longer than drain_seconds allows" in running.log.read_text()
