"""Versions that fall asleep and are woken, in real servers on the CPU."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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
from trimtab.store.project import Project

from . import own
from .test_drift_windows import HOUR, MONDAY, advance, reports, spans
from .world import (
    MODEL,
    Running,
    expected,
    infer_request,
    loaded,
    predictions,
    program,
    publish,
    serving,
    table,
    write_project,
)

IDLE = "idle_seconds = 0.05"
LONG = "idle_seconds = 3600"
WIDE = 1_000_000  # bytes of the weights of `Slow` and `Wide`


class Watched:
    """A server, and its events since the start of watching."""

    def __init__(self, running: Running, lifecycle: Any) -> None:
        self.running = running
        self.lifecycle = lifecycle
        self._events = lifecycle.WatchEvents(trimtab_pb2.WatchEventsRequest())
        lifecycle.Status(trimtab_pb2.StatusRequest())  # on the same connection: watching has begun

    def until(self, kind: str, version: int = 0) -> Any:
        for event in self._events:
            if event.kind == kind and version in (0, event.version):
                return event
        raise AssertionError(f"no event {kind}")

    def asleep(self, model: str) -> list[int]:
        listed = self.lifecycle.ListVersions(trimtab_pb2.ListVersionsRequest(model_name=model))
        return [info.version for info in listed.versions if info.asleep]

    def until_asleep(self, model: str, *versions: int) -> None:
        """By what is, not by events: a version may have slept before, too, and been woken since."""
        while self.asleep(model) != list(versions):
            self.until("asleep")

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(f"http://{self.running.http}/metrics") as page:
            text: str = page.read().decode()
        (line,) = [line for line in text.splitlines() if line.startswith(name + " ")]
        return float(line.split()[-1])


@contextlib.contextmanager
def watching(project: Project, **options: Any) -> Iterator[tuple[Watched, Any]]:
    with serving(project, **options) as running, running.lifecycle() as lifecycle, running.inference() as stub:
        yield Watched(running, lifecycle), stub


def y(stub: Any, model: str, version: str = "", value: float = 1.0, timeout: float = 60.0) -> float:
    answer = stub.ModelInfer(own.request(model, version, x=own.numbers(value)), timeout=timeout)
    return float(own.outputs(answer)["y"][0])


def refusal(call: Any, *arguments: Any, **options: Any) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **options)
    return caught.value.code().name, caught.value.details() or ""  # type: ignore[attr-defined]


def fall_asleep(server: Watched, stub: Any, model: str = "slow") -> None:
    y(stub, model, "", 5.0)
    server.until_asleep(model, 1)


def publish_wide(project: Project, model: str, value: float, folder: Path) -> None:
    path = folder / f"{model}-{value}.safetensors"
    save_file({"weight": torch.full((1000, 250), value)}, path)
    command = [
        sys.executable,
        "-m",
        "trimtab.cli",
        "publish",
        str(path),
        "--model",
        model,
        "-C",
        str(project.directory),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=120)


def test_columns_fall_asleep_and_a_request_wakes_them(tmp_path: Path) -> None:
    project = write_project(tmp_path / "project", model=IDLE)
    publish(project, 1)
    rows = table(20)
    with watching(project) as (server, stub):
        stub.ModelInfer(infer_request(rows))
        event = server.until("asleep")
        assert (event.model_name, event.version) == (MODEL, 1)
        assert event.message == "version 1 sleeps, idle for 0.05 s: its weights are on disk"
        assert event.numbers["bytes"] > 0
        found = predictions(stub.ModelInfer(infer_request(rows)))
        assert found.tobytes() == expected(loaded(project, 1), rows).tobytes()
        woken = server.until("awake")
        assert 0 < woken.numbers["seconds"] < 60
        assert server.running.stop() == 0


@pytest.mark.parametrize("columns", ["cpu", "gpu"])
def test_on_a_gpu_they_sleep_in_the_hosts_memory(columns: str, tmp_path: Path) -> None:
    """One that is played; and what its graphs have counted is in the drift window all the same."""
    project = write_project(
        tmp_path / "project",
        model=f'{IDLE}\ncolumns = "{columns}"',
        sections={"batching": "max_batch_size = 32", "drift": 'window = "1h"'},
    )
    fitted = program(project)
    for number in (1, 2):
        publish(project, number, verdict="initial" if number == 1 else "", fitted=fitted)
    rows = table(20)
    wanted = {number: expected(loaded(project, number), rows) for number in (1, 2)}
    with watching(project, played_gpu=True) as (server, stub):
        for turn, number in enumerate((1, 1, 2, 1)):
            if turn == 2:
                server.lifecycle.Promote(
                    trimtab_pb2.PromoteRequest(model_name=MODEL, version=2, expected_epoch=-1), timeout=60
                )
            elif turn == 3:
                server.lifecycle.Rollback(trimtab_pb2.RollbackRequest(model_name=MODEL), timeout=60)
            answer = stub.ModelInfer(infer_request(rows, trimtab_time_us=MONDAY + turn * HOUR // 8))
            assert answer.model_version == str(number)
            np.testing.assert_allclose(predictions(answer), wanted[number], rtol=1e-5, atol=1e-6)
            assert server.until("asleep", number).message.endswith("its weights are in the host's memory")
        advance(server.running, 1.0)
        assert spans(reports(server.running)) == [(0, 1, 80)]
        assert server.running.stop() == 0


def test_a_model_that_sleeps_is_ready_and_says_so(tmp_path: Path) -> None:
    project = own.write(tmp_path / "project", own.model("slow", "Slow", IDLE), own.model("moody", "Moody"))
    with watching(project) as (server, stub):
        fall_asleep(server, stub)
        assert server.asleep("slow") == [1]
        assert server.asleep("moody") == []
        assert stub.ModelReady(pb.ModelReadyRequest(name="slow")).ready
        assert stub.ServerReady(pb.ServerReadyRequest()).ready
        assert stub.ModelMetadata(pb.ModelMetadataRequest(name="slow")).versions == ["1"]
        index = {model.name: model for model in stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True)).models}
        assert (index["slow"].state, index["slow"].reason) == ("READY", "it sleeps; a request wakes it")
        assert index["moody"].reason == ""
        (statistics,) = stub.ModelStatistics(pb.ModelStatisticsRequest(name="slow")).model_stats
        assert [usage.byte_size for usage in statistics.memory_usage] == [0]
        assert server.metric('trimtab_versions_asleep{model="slow"}') == 1.0
        command = [sys.executable, "-m", "trimtab.cli", "versions", "--model", "slow", "-C", str(project.directory)]
        shown = subprocess.run([*command, "--json"], check=True, capture_output=True, text=True, timeout=120)
        assert [item["asleep"] for item in json.loads(shown.stdout)["versions"]] == [True]
        assert "live, asleep" in subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
        assert y(stub, "slow") == 1.0
        server.until("awake")
        assert server.metric('trimtab_naps_total{kind="awake",model="slow"}') >= 1.0
        assert server.metric('trimtab_wake_seconds_count{model="slow"}') >= 1.0


def test_requests_wait_while_it_wakes_and_others_are_served(tmp_path: Path) -> None:
    project = own.write(tmp_path / "project", own.model("slow", "Slow", IDLE), own.model("moody", "Moody"))
    hold = project.directory / "hold"
    with watching(project) as (server, stub), ThreadPoolExecutor(16) as pool:
        fall_asleep(server, stub)
        hold.touch()
        calls = [pool.submit(y, stub, "slow", "", float(n)) for n in range(16)]
        code, _ = refusal(y, stub, "slow", timeout=0.5)
        assert code == "DEADLINE_EXCEEDED"
        # Its time in the queue is bounded by itself, too.
        timed = own.request("slow", x=own.numbers(1))
        timed.parameters["timeout"].int64_param = 100_000
        code, _ = refusal(stub.ModelInfer, timed, timeout=60)
        assert code == "DEADLINE_EXCEEDED"
        for n in range(50):
            assert y(stub, "moody", "", float(n)) == n + 1
        assert not any(call.done() for call in calls)
        assert stub.ModelReady(pb.ModelReadyRequest(name="slow")).ready
        hold.unlink()
        assert [call.result(60) for call in calls] == [float(n) for n in range(16)]
        server.until("awake")
        assert server.running.stop() == 0


def test_waking_that_finds_no_memory_is_tried_again(tmp_path: Path) -> None:
    project = own.write(tmp_path / "project", own.model("hungry", "Hungry", IDLE))
    hungry = project.directory / "hungry"
    with watching(project) as (server, stub):
        fall_asleep(server, stub, "hungry")
        hungry.write_text("1")
        for _ in range(2):
            code, text = refusal(y, stub, "hungry", "", 5.0)
            assert code == "RESOURCE_EXHAUSTED"
            assert "model 'hungry' version 1 sleeps and cannot be woken: " in text
            assert "there is no memory left to load and try it" in text
        assert server.asleep("hungry") == [1]
        assert server.metric('trimtab_naps_total{kind="failed",model="hungry"}') == 2.0
        hungry.unlink()
        assert y(stub, "hungry", "", 5.0) == 6.0
        server.until("awake")


def test_files_that_were_damaged_while_it_slept(tmp_path: Path) -> None:
    project = own.write(tmp_path / "project", own.model("slow", "Slow", IDLE))
    with watching(project) as (server, stub):
        fall_asleep(server, stub)
        weights = project.model_state("slow").versions / "1" / "weights.safetensors"
        whole = weights.read_bytes()
        weights.parent.chmod(0o700)
        weights.chmod(0o600)
        weights.write_bytes(whole[:-1] + b"\x7f")
        code, text = refusal(y, stub, "slow")
        assert code == "FAILED_PRECONDITION"
        assert "sleeps and cannot be woken" in text
        weights.write_bytes(whole)
        assert y(stub, "slow") == 1.0


def test_promotion_and_rollback_wake_what_they_flip_to(tmp_path: Path) -> None:
    project = own.write(tmp_path / "project", own.model("slow", "Slow", IDLE))
    with watching(project) as (server, stub), AdminClient(server.running.admin) as admin:
        publish_wide(project, "slow", 1.0, tmp_path)
        fall_asleep(server, stub)
        admin.stage("slow", 2)
        server.until("asleep", 2)
        admin.promote("slow", 2)
        assert y(stub, "slow") == 2.0
        server.until("awake", 2)
        server.until_asleep("slow", 1, 2)
        admin.rollback("slow")
        server.until("awake", 1)
        assert y(stub, "slow") == 1.0
        assert y(stub, "slow", "2") == 2.0
        server.lifecycle.SetAlias(
            trimtab_pb2.SetAliasRequest(model_name="slow", alias="second", version=2, expected_epoch=-1), timeout=60
        )
        server.until("asleep", 2)
        assert y(stub, "slow", "second") == 2.0
        assert server.running.stop() == 0
    # The state of things on disk is as ever.
    with watching(project) as (_, stub):
        assert [y(stub, "slow"), y(stub, "slow", "second")] == [1.0, 2.0]


def test_swaps_while_requests_come_and_versions_sleep(tmp_path: Path) -> None:
    """Whatever is asleep when, each answer is of the version that it says."""
    project = own.write(tmp_path / "project", own.model("slow", "Slow", "idle_seconds = 0.01"))
    with watching(project) as (server, stub), AdminClient(server.running.admin) as admin:
        publish_wide(project, "slow", 1.0, tmp_path)
        wrong: list[tuple[str, float]] = []

        def ask(n: int) -> None:
            for _ in range(15):
                answer = stub.ModelInfer(own.request("slow", x=own.numbers(n)), timeout=60)
                found = float(own.outputs(answer)["y"][0])
                if found != n + int(answer.model_version) - 1:
                    wrong.append((answer.model_version, found))

        with ThreadPoolExecutor(4) as pool:
            asking = [pool.submit(ask, n) for n in range(4)]
            for turn in range(10):
                admin.promote("slow", 2 - turn % 2)
            for one in asking:
                one.result(120)
        assert wrong == []


def test_versions_that_are_kept_sleep_so_that_a_new_one_fits(tmp_path: Path) -> None:
    project = own.write(
        tmp_path / "project", own.model("slow", "Slow"), server=f"max_model_bytes = {2 * WIDE + WIDE // 2}"
    )
    with watching(project) as (server, stub), AdminClient(server.running.admin) as admin:
        for value in (1.0, 2.0):
            publish_wide(project, "slow", value, tmp_path)
        admin.promote("slow", 2)
        admin.promote("slow", 3)  # there is room for two
        event = server.until("asleep")
        assert event.version == 1
        assert "to make room for 'slow' version 3" in event.message
        assert server.asleep("slow") == []  # 1 is not kept any more
        assert [y(stub, "slow"), y(stub, "slow", "2")] == [3.0, 2.0]
        publish_wide(project, "slow", 3.0, tmp_path)
        admin.stage("slow", 4)
        assert server.until("asleep").version == 2
        assert server.asleep("slow") == [2]
        # Rolling back needs the room of the candidate, and has it.
        admin.rollback("slow")
        assert server.asleep("slow") == [4]
        assert y(stub, "slow") == 2.0
        assert y(stub, "slow", "4") == 4.0
        assert server.asleep("slow") == [3]


def test_a_version_that_does_not_fit_beside_the_live_one_stays_asleep(tmp_path: Path) -> None:
    more = "[model.batching]\nmax_batch_size = 4"
    project = own.write(
        tmp_path / "project",
        own.model("slow", "Slow", IDLE) + more,
        own.model("wide", "Wide", "load = false"),
        server=f"max_model_bytes = {WIDE + WIDE // 2}",
    )
    with watching(project) as (server, stub), AdminClient(server.running.admin) as admin:
        fall_asleep(server, stub)
        admin.load("wide")  # for good: it has no idle_seconds
        code, text = refusal(y, stub, "slow")
        assert (code, "max_model_bytes" in text) == ("RESOURCE_EXHAUSTED", True)
        assert y(stub, "wide") == 1.0
        admin.unload("wide")
        assert y(stub, "slow") == 1.0


def test_two_models_take_turns_in_memory_for_one(tmp_path: Path) -> None:
    project = own.write(
        tmp_path / "project",
        own.model("slow", "Slow", LONG),
        own.model("wide", "Wide", f"{LONG}\nload = false"),
        server=f"max_model_bytes = {WIDE + WIDE // 2}",
    )
    with watching(project) as (server, stub), AdminClient(server.running.admin) as admin:
        # What was asked for within a second serves.
        assert y(stub, "slow") == 1.0
        with contextlib.suppress(ClientError):
            admin.load("wide")
        wait_for_a_second(server, stub, admin)
        assert server.asleep("slow") == [1]
        assert y(stub, "wide") == 1.0


def wait_for_a_second(server: Watched, stub: Any, admin: AdminClient) -> None:
    """Until the first model is idle for long enough for the other to be loaded."""
    for _ in range(10_000):
        try:
            admin.load("wide")
        except ClientError:
            continue
        return
    raise AssertionError("there was no room")


def test_the_server_stops_when_what_it_accepted_is_answered(tmp_path: Path) -> None:
    project = own.write(tmp_path / "project", own.model("slow", "Slow", IDLE))
    hold = project.directory / "hold"
    with watching(project) as (server, stub), ThreadPoolExecutor(1) as pool:
        fall_asleep(server, stub)
        hold.touch()
        call = pool.submit(y, stub, "slow", "", 4.0)
        code, _ = refusal(y, stub, "slow", timeout=0.5)  # the first has long been admitted
        assert code == "DEADLINE_EXCEEDED"
        server.running.process.send_signal(signal.SIGTERM)
        while code != "UNAVAILABLE":
            code, _ = refusal(y, stub, "slow", timeout=0.5)
        hold.unlink()
        assert call.result(60) == 4.0
        assert server.running.process.wait(60) == 0


def test_unloading_a_model_that_sleeps(tmp_path: Path) -> None:
    project = own.write(tmp_path / "project", own.model("slow", "Slow", IDLE), own.model("moody", "Moody"))
    with watching(project) as (server, stub), AdminClient(server.running.admin) as admin:
        fall_asleep(server, stub)
        admin.unload("slow")
        assert refusal(y, stub, "slow")[0] == "NOT_FOUND"
        admin.load("slow")
        assert y(stub, "slow") == 1.0
        server.until("asleep")


def test_killed_while_waking_it_starts_as_ever(tmp_path: Path) -> None:
    project = own.write(tmp_path / "project", own.model("slow", "Slow", IDLE))
    hold = project.directory / "hold"
    with watching(project) as (server, stub):
        fall_asleep(server, stub)
        hold.touch()
        refusal(y, stub, "slow", timeout=0.5)
        server.running.process.kill()
        server.running.process.wait(60)
    hold.unlink()
    left = {path.name for path in project.model_state("slow").versions.iterdir()}
    with watching(project) as (server, stub):
        assert y(stub, "slow") == 1.0
        assert server.running.stop() == 0
    assert {path.name for path in project.model_state("slow").versions.iterdir()} == left


def test_what_never_sleeps_by_default(tmp_path: Path) -> None:
    project = own.write(tmp_path / "project", own.model("slow", "Slow", IDLE), own.model("moody", "Moody"))
    with watching(project) as (server, stub):
        y(stub, "moody")
        fall_asleep(server, stub)
        assert server.asleep("moody") == []
        assert server.metric('trimtab_naps_total{kind="asleep",model="moody"}') == 0.0
