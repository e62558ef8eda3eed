"""The governor's paces on their way from a real server, under a little load, to the trainer that trains beside it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from trimtab.client import Client
from trimtab.client.errors import ClientError
from trimtab.store.project import Project

from .stream import MODEL, Server, make_project, serving


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Not in lockstep: there, nobody slows the trainer down."""
    project = make_project(tmp_path / "project", every=0, server="drain_seconds = 3.0")
    path = project.directory / "trimtab.toml"
    path.write_text(path.read_text().replace("lockstep = true", "lockstep = false"))
    with serving(Project.load(project.directory)) as running:
        yield running


@pytest.fixture
def load(server: Server) -> Iterator[None]:
    """One client, one request after the other."""
    stop = threading.Event()

    def asks(address: str) -> None:
        # The last one may be refused, by a server that stops.
        with contextlib.suppress(ClientError), Client(address, model=MODEL, timeout=60.0) as client:
            while not stop.is_set():
                client.infer({"a": [0.5], "b": [0.5], "c": ["x"]})

    thread = threading.Thread(target=asks, args=(server.grpc,))
    thread.start()
    yield
    stop.set()
    thread.join(60)


def until(server: Server, happens: Callable[[], bool]) -> None:
    """Has the trainer search for recipes until something happens, one search after the other if one is too short."""
    moment = threading.Event()
    while True:
        finished = server.admin.status().trainer.workflows
        server.admin.retrain(MODEL, recipe="search", wait=False)
        while server.admin.status().trainer.workflows == finished:
            if happens():
                return
            moment.wait(0.02)


@pytest.mark.slow
@pytest.mark.usefixtures("load")
def test_a_trainer_that_trains_keeps_the_servers_pace(server: Server) -> None:
    until(server, lambda: server.admin.status().trainer.pace >= 2)
    assert b"trimtab_trainer_duty" in urllib.request.urlopen(f"http://{server.http}/metrics").read()
    # One that is killed over it is followed by one that is told anew.
    os.kill(server.trainer_pid(), signal.SIGKILL)
    number = server.admin.status().trainer.pace
    until(server, lambda: server.admin.status().trainer.pace > number + 1)
    assert server.stop() == 0


def test_in_lockstep_nobody_slows_it_down(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", every=0)
    with serving(project) as server:
        server.admin.retrain(MODEL, recipe="search", wait=True)
        status = server.admin.status().trainer
        assert (status.workflows, status.pace) == (1, 0)
        assert b"trimtab_trainer_duty" not in urllib.request.urlopen(f"http://{server.http}/metrics").read()
