"""The replay's own server: a copy of the project with version 1 alone, in a temporary folder, served in lockstep.

Nothing that the replay does reaches the project: not its captures, labels, versions or live pointer, nor MLflow.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import tomllib
from pathlib import Path
from typing import Any

from trimtab.cli.errors import UserError
from trimtab.cli.replay_process import Child
from trimtab.client.admin import Running
from trimtab.models.code import allow_project
from trimtab.store.files import write_atomic
from trimtab.store.project import PROJECT_FILE, Project
from trimtab.store.render import render
from trimtab.store.versions import VersionStore

__all__ = ["ReplayServer", "first_version", "isolated_copy"]

START_SECONDS = 120.0


def first_version(project: Project, model: str) -> int | None:
    """The version that was trained on the project's history: the first one that is there. None: not trained yet."""
    store = VersionStore(project.model_state(model).versions)
    initial = [line.version for line in store.decisions() if line.verdict == "initial"]
    there = store.numbers()
    return next((number for number in initial if number in there), there[0] if there else None)


def isolated_copy(project: Project, model: str, version: int, directory: Path) -> Project:
    """The project with that version alone, to be served in lockstep from another folder. Raises StoreError, OSError."""
    items: dict[str, Any] = tomllib.loads((project.directory / PROJECT_FILE).read_text("utf-8"))
    items["server"] = {
        **items.get("server", {}),
        "host": "127.0.0.1",
        "grpc_port": 0,
        "http_port": 0,
        "trainer": True,
        "lockstep": True,
    }
    # It listens on this machine only, and the replay's own client asks it.
    items["security"] = {key: value for key, value in items.get("security", {}).items() if not key.startswith("tls_")}
    items["mlflow"] = {**items.get("mlflow", {}), "enabled": False}
    items["model"] = [item for item in items["model"] if item["name"] == model]
    # Nobody is there to approve: the replay asks what retraining would have done.
    for item in items["model"]:
        item["rollout"] = {**item.get("rollout", {}), "approve": "auto"}
        # Old rows stay until the end, when their labels are counted.
        item["capture"] = {**item.get("capture", {}), "max_age": "36500d"}
    if path := items.get("data", {}).get("path"):
        items["data"]["path"] = str((project.directory / path).resolve())
    directory.mkdir(parents=True, exist_ok=True)
    write_atomic(directory / PROJECT_FILE, render(items).encode())
    _copy_code(project.directory, directory)
    copy = Project.load(directory)
    # This process computes what the versions predict, too.
    allow_project(copy)
    source, target = project.model_state(model), copy.model_state(model)
    shutil.copytree(source.versions / str(version), target.versions / str(version))
    if (history := source.trainer / "history.arrow").exists():
        target.trainer.mkdir(parents=True, exist_ok=True)
        shutil.copy2(history, target.trainer / "history.arrow")
    for decision in VersionStore(source.versions).decisions():
        if decision.version == version and decision.verdict == "initial":
            VersionStore(target.versions).decide(decision)
    return copy


def _copy_code(source: Path, target: Path) -> None:
    """What an entry may be and import: the folder's Python files and packages. The copy is the user's own, and nobody
    else may write it."""
    for item in source.iterdir():
        if item.suffix == ".py":
            shutil.copyfile(item, target / item.name)
        elif (item / "__init__.py").is_file():
            shutil.copytree(item, target / item.name, ignore=shutil.ignore_patterns("__pycache__"))


class ReplayServer:
    """`trimtab serve` on free ports. A context manager: leaving it stops the server and its trainer."""

    def __init__(self, project: Project) -> None:
        """Starts it and returns when it serves. Raises UserError with its last words where it does not."""
        self._project = project
        arguments = ["-m", "trimtab.cli", "serve", "-C", str(project.directory), "--grpc-port", "0", "--http-port", "0"]
        # A replay is a trainer's business: what switches trainers off elsewhere is not meant for it.
        environment = {"TRIMTAB_NO_TRAINER": ""}
        self._child = Child([*arguments, "--json"], project.directory / "server.log", environment=environment)
        try:
            self.running = self._ready()
        except BaseException:
            self._child.stop(5.0)
            raise

    def _ready(self) -> Running:
        """The line that the server prints when it is ready."""
        late = threading.Timer(START_SECONDS, self._child.kill)
        late.start()
        try:
            line = self._child.out.readline()
        finally:
            late.cancel()
        try:
            items = json.loads(line)
            return Running(int(items["pid"]), str(items["grpc"]), str(items["http"]), str(items["admin"]))
        except (ValueError, KeyError, TypeError):
            raise UserError(f"the replay's server did not start: {self.words()}") from None

    def words(self) -> str:
        """The last lines of the server's and its trainer's logs, for an error."""
        lines = self._child.last_lines()
        trainer = self._project.state / "trainer.log"
        if trainer.exists():
            tail = trainer.read_bytes()[-2000:].decode("utf-8", "replace").strip()
            lines = f"{lines} | trainer: {tail}" if tail else lines
        return lines or "it left no message"

    @property
    def alive(self) -> bool:
        """Whether the process is there."""
        return self._child.poll() is None

    def stop(self) -> None:
        """Ends it; idempotent."""
        self._child.stop(20.0)
        _free_socket(self.running.admin)

    def __enter__(self) -> ReplayServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _free_socket(path: str) -> None:
    # Where the temporary folder's name is long the socket is elsewhere, in a folder of its own.
    with contextlib.suppress(OSError):
        os.unlink(path)
    if Path(path).parent.name.startswith("trimtab-"):
        with contextlib.suppress(OSError):
            Path(path).parent.rmdir()
