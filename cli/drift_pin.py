"""`trimtab drift --pin WHAT`: what drift windows are compared with, chosen through the running server, or in state/.

WHAT is `training`, a window's number, a range of them, a sketch file, or an artifact in MLflow. Files and artifacts are
read here, and their contents sent: the server opens no path that somebody names, and waits for no network.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.cli.errors import UserError
from trimtab.cli.output import Output, number, when
from trimtab.cli.running import server_of
from trimtab.client import AdminClient, Unavailable
from trimtab.server.errors import StartError
from trimtab.server.runtime import StateLock
from trimtab.store.kept_windows import WindowFolder, read_sketch_file
from trimtab.store.live import LiveStore
from trimtab.store.pins import Pin, PinFile, check_fit, pin_of_bytes, pin_of_windows
from trimtab.store.project import Project
from trimtab.store.settings import TRAINING
from trimtab.store.versions import VersionStore

__all__ = ["pin_reference", "pinned", "told"]

_MLFLOW = ("runs:/", "models:/")
_WINDOWS = re.compile(r"(\d{1,18})(?:-(\d{1,18}))?")


@dataclass(frozen=True)
class _Choice:
    """Windows, or a file's contents and where they are from, or neither: the training data."""

    windows: tuple[int, int] | None = None
    data: bytes | None = None
    origin: str = ""


def pin_reference(project: Project, model: str, what: str, output: Output) -> None:
    """Does it and says so. Raises UserError, StoreError, KernelError, ClientError."""
    choice = _chosen(project, what)
    running = server_of(project)
    by_server = False
    if running is not None:
        try:
            with AdminClient(running.admin, retries=1) as admin:
                admin.pin_reference(model, windows=choice.windows, sketch=choice.data, origin=choice.origin)
            by_server = True
        except Unavailable as error:
            # It was killed, and left its file behind.
            if "no server answers" not in str(error):
                raise
    if not by_server:
        _write(project, model, choice)
    pin = pinned(project, model)
    after = "" if by_server else "; a server will, once it runs"
    output.say(f"{model}: drift windows are compared with {told(pin)} from now on{after}")
    output.result({"model": model, "server": by_server, "pin": as_json(pin)})


def pinned(project: Project, model: str) -> Pin | None:
    """What is pinned, as it lies in state/."""
    return PinFile(project.model_state(model).windows).read()


def told(pin: Pin | None) -> str:
    """The reference in words."""
    if pin is None:
        return "the training data"
    return f"{pin.origin} ({number(pin.rows)} rows, pinned {when(pin.pinned_us)})"


def as_json(pin: Pin | None) -> dict[str, Any] | None:
    """The reference as commands print it."""
    if pin is None:
        return None
    return {"origin": pin.origin, "pinned_us": pin.pinned_us, "rows": pin.rows, "sha256": pin.sha256}


def _chosen(project: Project, what: str) -> _Choice:
    if what == TRAINING:
        return _Choice()
    if found := _WINDOWS.fullmatch(what):
        first = int(found[1])
        last = int(found[2] or first)
        if not 1 <= first <= last:
            raise UserError(f"--pin {what}: expected windows from 1, the first not after the last")
        return _Choice(windows=(first, last))
    if what.startswith(_MLFLOW):
        return _Choice(None, *_artifact(project, what))
    path = Path(what)
    try:
        return _Choice(data=path.read_bytes(), origin=what)  # as it was given: `./training` is not `training`
    except OSError as error:
        raise UserError(
            f"--pin {what}: expected {TRAINING}, a window's number, a range such as 3-9, a sketch file such as a "
            f"version's reference.arrow, or {' or '.join(_MLFLOW)}...: {(error.strerror or str(error)).lower()}"
        ) from None


def _artifact(project: Project, what: str) -> tuple[bytes, str]:
    uri = project.mlflow_uri
    own = uri.removeprefix("sqlite:///")
    if own != uri and not Path(own).exists():
        raise UserError(f"--pin {what}: nothing was told to MLflow yet ({own} is not there)")
    from trimtab.trainer.mlflow_client import fetch

    try:
        return fetch(uri, what)
    except Exception as error:  # Whatever MLflow and its drivers raise.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise UserError(f"--pin {what}: MLflow at {uri}: {reason}") from None


def _write(project: Project, model: str, choice: _Choice) -> None:
    """Writes the state that the next server reads, and keeps one from starting meanwhile."""
    paths = project.model_state(model)
    try:
        lock = StateLock(project.state)
    except StartError as error:
        raise UserError(f"{error} (it does not answer)") from None
    try:
        file = PinFile(paths.windows)
        if choice.windows is None and choice.data is None:
            file.remove()
            return
        live = LiveStore(paths.live).read()
        if live is None:
            raise UserError(f"model {model!r} has no live version yet: nothing to compare")
        if choice.windows is not None:
            pin = pin_of_windows(WindowFolder(paths.windows), *choice.windows)
        else:
            pin = pin_of_bytes(choice.data or b"", choice.origin)
        reference, _ = read_sketch_file(VersionStore(paths.versions).path(live.live) / "reference.arrow")
        check_fit(pin, reference.spec, live.live)
        file.write(pin)
    finally:
        lock.release()
