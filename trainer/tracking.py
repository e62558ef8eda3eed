"""MLflow is told what the trainer did: runs, metrics, lineage, model versions, aliases.

Threads. A thread of its own drains the outbox into MLflow; nothing else waits for it, and nothing else imports mlflow.
Telling is one small write to the outbox. An attempt on a dead tracking server ends within two seconds and is not
repeated in line: what failed stays in the outbox (outbox.py) and is tried again later.

The alias `champion` names the live version. Whatever made a version live, also a rollback by hand, is seen in
live.json and told. Where a person moves the alias in MLflow, that asks for a promotion, but only when it differs both
from what was last written and from what was last seen while nothing waited to be told: else MLflow is merely behind,
and the alias is put back. A request is asked once; if the alias still points there afterwards, it is put back.

MLflow announces nothing, so `champion` is looked at every POLL_SECONDS: the only polling here.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trimtab.models.faults import first_line
from trimtab.store.errors import StoreError
from trimtab.store.files import now_us
from trimtab.store.live import LiveStore
from trimtab.store.manifest import Decision, Manifest
from trimtab.store.project import Project
from trimtab.store.settings import ModelSettings
from trimtab.store.versions import VersionStore
from trimtab.trainer import mlflow_client
from trimtab.trainer.mlflow_client import ARTIFACT_FAILED, CHAMPION, REFERENCE, Candidate, Mlflow
from trimtab.trainer.outbox import Message, MessageRefused, Outbox

__all__ = ["Tracker"]

POLL_SECONDS = 30.0
"""Between two looks at where `champion` points."""

_REFUSALS = (
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    ARTIFACT_FAILED,
)
"""Error codes that say that it is the message that is wrong, if they come twice in a row."""


class Tracker:
    """See the module. `tell_…` may be called from any thread and return at once."""

    def __init__(self, project: Project, model: ModelSettings, outbox: Outbox) -> None:
        self.state = "ok"
        """"ok", "behind" (messages wait) or "failing: …"."""
        self.requested: int | None = None
        """The version that a person asked to promote by moving `champion`; whoever acts on it clears it first."""
        self._name = model.name
        self._settings = project.mlflow
        self._uri = project.mlflow_uri
        self._artifacts = project.state / "mlartifacts"
        self._paths = project.model_state(model.name)
        self._outbox = outbox
        self._thread: threading.Thread | None = None
        # Guards what follows, and wakes both the thread (something to do) and flush (something was done).
        self._changed = threading.Condition()
        self._told = True
        self._hurry = False
        self._stopping = False
        self._failures = 0
        # The thread's own.
        self._mlflow: Mlflow | None = None
        self._refused = 0
        self._asked: int | None = None

    def start(self) -> None:
        """Starts delivering, with what an earlier process left."""
        if self._settings.enabled and self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"mlflow {self._name}", daemon=True)
            self._thread.start()

    def tell_candidate(
        self,
        workflow_id: str,
        decision: Decision,
        manifest: Manifest | None,
        path: Path | None,
        params: Mapping[str, Any],
    ) -> None:
        """A candidate and its verdict; `manifest` and `path` where it was published."""
        decision = decision.model_copy(update={"time_us": decision.time_us or now_us()})
        body = {
            "workflow": workflow_id,
            "decision": decision.model_dump(),
            "manifest": None if manifest is None else manifest.model_dump(),
            "path": "" if path is None else str(path),
            "params": dict(params),
        }
        self._put(f"candidate {workflow_id}", "candidate", body)
        if manifest is not None and path is not None and REFERENCE in manifest.files:
            # Told by itself: where only the artifact store cannot be used, everything else is still told.
            reference = {"workflow": workflow_id, "path": str(path / REFERENCE)}
            self._put(f"reference {workflow_id}", "reference", reference)

    def tell_live(self, version: int, reason: str) -> None:
        """A version that went live."""
        self._put("live", "live", {"version": version, "weights": self._weights(version), "reason": reason})

    def flush(self, timeout: float) -> bool:
        """Has what waits delivered now; whether it was, within `timeout` seconds. An attempt that fails ends it."""
        if self._thread is None:
            return not len(self._outbox)
        with self._changed:
            failures = self._failures
            self._told = self._hurry = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not len(self._outbox) or self._failures != failures, timeout)
        return not len(self._outbox)

    def close(self, timeout: float) -> None:
        """Delivers what can be within the time, and stops. The outbox is closed too; what is left stays in it."""
        deadline = time.monotonic() + timeout
        try:
            self.flush(timeout)
        except StoreError as error:
            _say(error)
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is not None:
            # A delivery that hangs is left behind: the thread is a daemon, and its message is delivered next time.
            self._thread.join(max(deadline - time.monotonic(), 0.1))
        self._outbox.close()

    def poll(self) -> int | None:
        """The version that a person asks to promote by moving `champion`; None if nobody does. Puts the alias back
        where it only lags behind. For the tracker's thread: takes as long as MLflow does, and raises what it raises.
        """
        live = LiveStore(self._paths.live).read()
        if live is None or self.requested is not None or len(self._outbox):
            return None
        written, seen = self._outbox.recall("written"), self._outbox.recall("seen")
        if live.live != written:
            self.tell_live(live.live, live.reason)
            return None
        mlflow = self._connected()
        found = mlflow.where_champion_points()
        current = found[0] if found else None
        if current == written:
            self._asked = None
            if seen != written:
                self._outbox.remember("seen", written)
            return None
        if found and current not in (seen, self._asked) and self._weights(found[0]) == found[1] != "":
            self._asked = current
            return current
        if mlflow.champion(written, self._weights(written)):
            _say(f"{CHAMPION} of {self._name} pointed at {current or 'no version'}; it is {written} again")
        return None

    def _put(self, key: str, kind: str, body: dict[str, Any]) -> None:
        if not self._settings.enabled:
            return
        try:
            self._outbox.put(key, kind, body)
        except StoreError as error:
            # What MLflow is told is a copy: losing one must not lose the training.
            _say(error)
            return
        with self._changed:
            if self.state == "ok":
                self.state = "behind"
            self._told = True
            self._changed.notify_all()

    def _weights(self, version: int) -> str:
        """The hash of a version's weights; empty where it is not here."""
        try:
            return VersionStore(self._paths.versions).manifest(version).weights
        except StoreError:
            return ""

    # From here on: the tracker's thread.

    def _run(self) -> None:
        poll_at = time.monotonic() + POLL_SECONDS
        while True:
            with self._changed:
                wait = self._outbox.retry_seconds() or max(poll_at - time.monotonic(), 0.0)
                self._changed.wait_for(lambda: self._told or self._stopping, wait)
                if self._stopping:
                    return
                hurry, self._told, self._hurry = self._hurry, False, False
            try:
                drained = self._outbox.drain(self._deliver, hurry=hurry)
                if drained and time.monotonic() >= poll_at:
                    poll_at = time.monotonic() + POLL_SECONDS
                    self.requested = self.poll() or self.requested
            except Exception as error:  # Whatever MLflow and its drivers raise.
                self._mlflow = None
                poll_at = max(poll_at, time.monotonic() + POLL_SECONDS)
                self._finished(f"failing: {first_line(error)}")
            else:
                if drained:
                    self._finished("ok")

    def _finished(self, state: str) -> None:
        with self._changed:
            self._failures += state != "ok"
            # Something may have been told meanwhile.
            self.state = "behind" if state == "ok" and self._told else state
            self._changed.notify_all()

    def _connected(self) -> Mlflow:
        if self._mlflow is None:
            self._mlflow = mlflow_client.connect(self._uri, self._settings.experiment, self._name, self._artifacts)
        return self._mlflow

    def _deliver(self, message: Message) -> None:
        try:
            tell = self._meaning(message)
        except (KeyError, TypeError, ValueError) as error:
            raise MessageRefused(f"it makes no sense ({first_line(error)})") from error
        mlflow = self._connected()
        try:
            tell(mlflow)
        except Exception as error:
            if getattr(error, "error_code", "") not in _REFUSALS:
                raise
            # Once may be something that was deleted in MLflow, which connecting anew makes again.
            if self._refused == message.sequence:
                raise MessageRefused(first_line(error)) from error
            self._refused = message.sequence
            raise

    def _meaning(self, message: Message) -> Callable[[Mlflow], None]:
        """What to do with MLflow. Raises KeyError, TypeError or ValueError where the message is none."""
        body = message.body
        if message.kind == "candidate":
            candidate = Candidate(
                str(body["workflow"]),
                self._origin(),
                Decision.model_validate(body["decision"]),
                None if body["manifest"] is None else Manifest.model_validate(body["manifest"]),
                str(body["path"]),
                dict(body["params"]),
            )
            return lambda mlflow: mlflow.tell(candidate)
        if message.kind == "reference":
            workflow, path = str(body["workflow"]), Path(str(body["path"]))
            return lambda mlflow: mlflow.log_reference(workflow, self._origin(), path)
        if message.kind == "live":
            version, weights = int(body["version"]), str(body["weights"])
            return lambda mlflow: self._write_champion(mlflow, version, weights)
        raise ValueError(f"unknown kind {message.kind!r}")

    def _write_champion(self, mlflow: Mlflow, version: int, weights: str) -> None:
        # Remembered first: if this dies in between, the message is still there, and no person is suspected.
        self._outbox.remember("written", version)
        if mlflow.champion(version, weights):
            self._outbox.remember("seen", version)

    def _origin(self) -> str:
        """Names this outbox."""
        origin = self._outbox.recall("origin")
        if not isinstance(origin, str):
            origin = os.urandom(8).hex()
            self._outbox.remember("origin", origin)
        return origin


def _say(what: object) -> None:
    print(f"trainer: mlflow: {what}", file=sys.stderr, flush=True)
