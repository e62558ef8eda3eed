"""The commands as processes: a project's life from init to rollback, on a real server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from trimtab.client import Client

from . import files


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with two equal versions."""
    directory = tmp_path_factory.mktemp("commands") / "loans"
    data = files.parquet(files.loans(), directory.parent / "loans.parquet")
    asked = ("--label", "bad", "--time", "opened", "--label-time", "outcome_at", "--train-rows", "900")
    assert files.trimtab("init", data, *asked, "-C", directory).code == 0
    path = directory / "trimtab.toml"
    text = path.read_text().replace("# search_trials = 8", "search_trials = 2")
    path.write_text(text.replace("# window_rows = 5000", "window_rows = 100\nwindow_seconds = 0.0"))
    trained = files.trimtab("train", "-C", directory)
    assert trained.code == 0, trained.err
    for part in ("log loss", "no change", "majority", "next: trimtab serve -C"):
        assert part in trained.out
    again = files.trimtab("train", "--again", "--json", "-C", directory)
    assert again.code == 0, again.err
    assert again.json["version"] == 2
    assert again.json["metrics"]["log_loss"] > 0
    return directory


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[dict[str, Any]]:
    flags = "--json --no-trainer --grpc-port 0 --http-port 0 --device cpu --transport grpcio"
    with (folder / "serve.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "trimtab.cli.app", "serve", *flags.split(), "-C", str(folder)],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, (folder / "serve.log").read_text()
    yield json.loads(line)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_status(folder: Path, server: dict[str, Any]) -> None:
    people = files.trimtab("status", "-C", folder)
    assert people.code == 0
    assert "server ready" in people.out
    assert server["grpc"] in people.out
    assert "trainer absent" in people.out
    said = files.trimtab("status", "--json", "-C", folder).json
    assert said["state"] == "ready"
    assert [model["name"] for model in said["models"]] == ["loans"]
    assert said["trainer"]["state"] == "absent"


def test_promote_and_rollback(folder: Path, server: dict[str, Any]) -> None:
    first = files.trimtab("versions", "--json", "-C", folder).json["live"]
    other = 3 - first
    done = files.trimtab("promote", str(other), "--reason", "by the test", "-C", folder)
    assert done.code == 0
    assert f"version {other} is live, after {first}" in done.out
    with Client(server["grpc"]) as client:
        assert client.infer(files.loans(5, seed=3)).version == other
    back = files.trimtab("rollback", "--json", "-C", folder)
    assert (back.json["live"], back.json["previous"]) == (first, other)
    epoch = back.json["epoch"]
    assert "no version 9" in files.fails("promote", "9", "-C", folder)
    assert "epoch" in files.fails("promote", str(other), "--epoch", str(epoch - 1), "-C", folder)


def test_versions(folder: Path, server: dict[str, Any]) -> None:
    people = files.trimtab("versions", "-C", folder)
    assert "initial" in people.out
    said = files.trimtab("versions", "--json", "-C", folder).json
    assert said["server"] is True
    assert [item["version"] for item in said["versions"]] == [1, 2]
    assert {item["verdict"] for item in said["versions"]} == {"initial"}
    assert all(item["reason"] for item in said["versions"])


def test_drift(folder: Path, server: dict[str, Any]) -> None:
    with Client(server["grpc"]) as client:
        for seed in range(3):
            client.infer(files.loans(100, seed=seed))
    # A window is reported off the hot path; sealing waits for it.
    from trimtab.client import AdminClient

    with AdminClient(server["admin"]) as admin:
        admin.advance(0)
    people = files.trimtab("drift", "-C", folder)
    assert people.code == 0
    assert "PSI" in people.out
    assert "prediction" in people.out
    assert "expected without labels: loss" in people.out
    said = files.trimtab("drift", "--windows", "2", "--json", "-C", folder).json
    assert len(said["windows"]) == 2
    assert "income" in {feature["feature"] for feature in said["windows"][0]["features"]}
    estimate = said["windows"][0]["estimate"]
    assert 0.0 < estimate["loss"] < 5.0
    assert 0.0 < estimate["auc"] <= 1.0


def test_timeline(folder: Path, server: dict[str, Any], tmp_path: Path) -> None:
    with Client(server["grpc"]) as client:
        client.infer(files.loans(200, seed=5))
    from trimtab.client import AdminClient

    with AdminClient(server["admin"]) as admin:
        admin.advance(0)
    report = tmp_path / "timeline.html"
    people = files.trimtab("timeline", "-C", folder, "--html", report)
    assert people.code == 0, people.err
    assert "no alarm" in people.out or "alarm:" in people.out
    page = report.read_text("utf-8")
    assert "<svg" in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    said = files.trimtab("timeline", "--json", "--entries", "3", "-C", folder).json
    assert len(said["entries"]) == 3
    assert {"input", "estimated"} <= {entry["kind"] for entry in said["entries"]}
    times = [entry["time_us"] for entry in said["entries"]]
    assert times == sorted(times)


def test_retrain_without_a_trainer(folder: Path, server: dict[str, Any]) -> None:
    assert "without a trainer" in files.fails("retrain", "-C", folder)
    assert "--recipe" in files.fails("retrain", "--recipe", "magic", "-C", folder, code=2)


def test_a_second_server_and_a_port_in_use(folder: Path, server: dict[str, Any], tmp_path: Path) -> None:
    line = files.fails("serve", "-C", folder, "--grpc-port", "0", "--http-port", "0")
    assert "another server" in line
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.sock", "server.*", "labels*"))
    port = server["grpc"].rpartition(":")[2]
    line = files.fails("serve", "-C", copy, "--grpc-port", port, "--http-port", "0", "--no-trainer")
    assert port in line


def test_without_a_server(tmp_path: Path, folder: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.sock", "server.*"))
    for command in (("status",), ("promote", "1"), ("rollback",), ("retrain",)):
        assert f"no server is running for {copy}" in files.fails(*command, "-C", copy)
    said = files.trimtab("versions", "--json", "-C", copy)
    assert said.code == 0, said.err
    assert said.json["server"] is False
    assert len(said.json["versions"]) == 2
    assert files.trimtab("drift", "-C", copy).code == 0
    # One that was killed leaves its address behind.
    (copy / "state" / "server.json").write_text(
        json.dumps(
            {"pid": 1, "grpc": "127.0.0.1:1", "http": "127.0.0.1:2", "admin": str(copy / "state" / "admin.sock")}
        )
    )
    assert "is gone" in files.fails("status", "-C", copy)
    assert files.trimtab("versions", "--json", "-C", copy).json["server"] is False
    assert files.trimtab("drift", "--json", "-C", copy).json["server"] is False
    (copy / "state" / "server.json").write_text("{")
    assert "server.json cannot be read" in files.fails("status", "-C", copy)


def test_a_project_that_was_not_trained(tmp_path: Path) -> None:
    data = files.csv(files.digits(), tmp_path / "digits.csv")
    assert files.trimtab("init", data, "--label", "kind", "-C", tmp_path / "made").code == 0
    assert "trimtab train -C" in files.fails("serve", "-C", tmp_path / "made")
    assert "has no version yet" in files.trimtab("versions", "-C", tmp_path / "made").out
    (tmp_path / "digits.csv").unlink()
    assert "no file" in files.fails("train", "-C", tmp_path / "made")
