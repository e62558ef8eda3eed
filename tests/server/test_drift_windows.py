"""Drift windows of data time in a real server: what Advance closes, and what a restart keeps."""

from __future__ import annotations

import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from trimtab.protos.v1 import trimtab_pb2 as pb
from trimtab.protos.v1.trimtab_pb2_grpc import DriftStub
from trimtab.store.kept_windows import WindowFolder
from trimtab.store.project import Project

from .world import MODEL, Running, infer_request, publish, serving, table, write_project

HOUR = 3_600_000_000
MONDAY = 1_700_438_400_000_000  # 2023-11-20


def project_of(path: Path, drift: str = "", server: str = "lockstep = true") -> Project:
    made = write_project(path / "project", server=server, sections={"drift": f'window = "1h"\n{drift}'})
    publish(made, 1, verdict="initial")
    return made


def send(running: Running, rows: int, hours: float, seed: int = 0) -> None:
    with running.inference() as stub:
        stub.ModelInfer(infer_request(table(rows, seed), trimtab_time_us=MONDAY + round(hours * HOUR)))


def send_dependent(running: Running, rows: int, hours: float, seed: int) -> None:
    """Each column as it was; but what is one in another goes with what x is."""
    made = table(rows, seed)
    flags = pa.array(np.nan_to_num(made.column("x").to_numpy(zero_copy_only=False)) > 0)
    made = made.set_column(made.schema.get_field_index("flag"), "flag", flags)
    with running.inference() as stub:
        stub.ModelInfer(infer_request(made, trimtab_time_us=MONDAY + round(hours * HOUR)))


def advance(running: Running, hours: float) -> None:
    with running.lifecycle() as lifecycle:
        lifecycle.Advance(pb.AdvanceRequest(data_time_us=MONDAY + round(hours * HOUR)), timeout=60)


def reports(running: Running) -> list[Any]:
    with running.channel() as channel:
        return list(DriftStub(channel).Report(pb.DriftRequest(model_name=MODEL, windows=100), timeout=10).reports)


def spans(found: list[Any]) -> list[tuple[float, float, int]]:
    """(start and end in hours, rows)"""
    return [((one.start_us - MONDAY) / HOUR, (one.end_us - MONDAY) / HOUR, one.rows) for one in found]


def test_advance_returns_when_what_is_due_was_reported(tmp_path: Path) -> None:
    with serving(project_of(tmp_path)) as running:
        send(running, 30, 0.25)
        advance(running, 0.75)
        assert reports(running) == []
        send(running, 5, 0.99)
        advance(running, 1.0)
        assert spans(reports(running)) == [(0, 1, 35)]
        send(running, 40, 3.0)
        send(running, 7, 0.5)
        advance(running, 9.0)
        assert spans(reports(running)) == [(0, 1, 35), (3, 4, 47)]
        send(running, 20, 9.5)
        send(running, 20, 10.5)
        advance(running, 10.5)
        assert spans(reports(running))[2:] == [(9, 10, 20)]
        assert [one.window for one in reports(running)] == [1, 2, 3]


def test_a_stopped_server_leaves_its_open_window_to_the_next(tmp_path: Path) -> None:
    project = project_of(tmp_path, "window_rows = 30")
    with serving(project) as running:
        send(running, 30, 0.25)
        send(running, 20, 1.25)
        assert running.stop() == 0
    with serving(project) as running:
        send(running, 11, 1.5)
        send(running, 10, 2.5)
        send(running, 1, 3.0)
        advance(running, 4.0)
        # What has fewer rows than it says is kept, and not compared.
        assert spans(reports(running)) == [(0, 1, 30), (1, 2, 31)]
    folder = WindowFolder(project.model_state(MODEL).windows)
    assert [folder.load(number)[0].rows for number in folder.numbers()] == [30, 31, 10, 1]


def test_a_killed_server_costs_its_open_window_alone(tmp_path: Path) -> None:
    project = project_of(tmp_path)
    with serving(project) as running:
        send(running, 30, 0.25)
        send(running, 20, 1.25)
        advance(running, 1.5)
        running.stop(signal.SIGKILL)
    with serving(project) as running:
        send(running, 11, 1.75)
        advance(running, 2.0)
        assert spans(reports(running)) == [(0, 1, 30), (1, 2, 11)]
        assert [one.window for one in reports(running)] == [1, 2]


def test_requests_of_two_windows_in_one_batch_are_cut_exactly(tmp_path: Path) -> None:
    with serving(project_of(tmp_path)) as running:
        with running.inference() as stub:
            sent = []
            for number in range(60):
                # Late ones, too: what is sent together may be computed in any grouping.
                at = MONDAY + HOUR + (number % 7 - 3) * 1000
                sent.append(stub.ModelInfer.future(infer_request(table(3, number), trimtab_time_us=at)))
            for call in sent:
                call.result(30)
        advance(running, 2.0)
        found = spans(reports(running))
        assert sum(rows for _, _, rows in found) == 180
        assert found[-1][:2] == (1, 2)


def test_a_season_is_compared_with_the_one_before(tmp_path: Path) -> None:
    project = project_of(tmp_path, 'reference = "2h"')
    with serving(project) as running:
        for hour in range(3):
            send(running, 50 + hour, hour + 0.5, seed=hour)
        advance(running, 3.0)
        assert [one.reference for one in reports(running)] == ["training", "training", "window 1, 2h earlier"]
        running.stop()
    with serving(project) as running:
        send(running, 50, 3.5)
        advance(running, 4.0)
        newest = reports(running)[-1]
        assert (newest.reference, newest.reference_rows) == ("window 2, 2h earlier", 51)
        assert [one.reference for one in reports(running)][:3] == ["training", "training", "window 1, 2h earlier"]


def test_columns_that_go_together_otherwise_alarm_though_none_of_them_does(tmp_path: Path) -> None:
    with serving(project_of(tmp_path, "persistence = 2")) as running:
        send(running, 600, 0.5, seed=1)
        for hour in (1, 2, 3):
            send_dependent(running, 600, hour + 0.5, seed=hour + 1)
        advance(running, 4.0)
        found = reports(running)
        assert [one.joint.persistence for one in found] == [0, 1, 2, 3]
        assert [one.joint.alarm for one in found] == [False, False, True, True]
        assert [one.alarms for one in found] == [0, 0, 1, 1]
        assert all((one.joint.rows, one.joint.reference_rows) == (600, 2000) for one in found)
        assert not any(feature.alarm for one in found for feature in one.features)
        with urllib.request.urlopen(f"http://{running.http}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        assert 'trimtab_drift_alarm{feature="columns together",model="tiny"} 1.0' in text
    command = [sys.executable, "-m", "trimtab.cli.app", "drift", "-C", str(tmp_path / "project"), "--windows", "2"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "columns together, by 600 rows against 2,000" in shown
    assert "alarm, 3 windows in a row" in shown


def test_joint_comparison_is_off_where_it_is_switched_off(tmp_path: Path) -> None:
    with serving(project_of(tmp_path, "joint = false")) as running:
        send(running, 600, 0.5)
        advance(running, 1.0)
        (found,) = reports(running)
        assert not found.HasField("joint")
        assert found.rows == 600
