"""MLflow is told what the trainer did: runs, metrics, lineage, model versions, aliases.

A thread of its own takes messages from the outbox and tells MLflow; nothing else waits for it. A call to a tracking
server may take two seconds and is not retried in line; what failed stays in the outbox and is tried again after a
while that doubles up to RETRY_LAST. mlflow takes most of a second to import, so only that thread imports it.

Told twice is told once: a run is found by its workflow's tag, a model version by the tag `trimtab.version`.

The alias `champion` names the live version. Where a person moves it in MLflow, that is a request to promote, but only
when it differs both from what was last written and from what was last seen while the outbox was empty: else MLflow is
merely behind, and the alias is put back (`poll`).
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimtab.store.errors import StoreError
from trimtab.store.manifest import Decision, Manifest
from trimtab.store.project import Project
from trimtab.store.settings import ModelSettings
from trimtab.trainer.outbox import Message, Outbox

__all__ = ["Tracker"]

RETRY_FIRST, RETRY_LAST = 1.0, 60.0
POLL_SECONDS = 30.0
"""Between two looks at where `champion` points."""
VERSION, WORKFLOW = "trimtab.version", "trimtab.workflow"
CHAMPION, CHALLENGER = "champion", "challenger"

# Before mlflow is imported: no long waits for a server that is dead, and nothing sent to anybody else.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "2",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}


class Tracker:
    """See the module. `tell_…` may be called from any thread and return at once."""

    def __init__(self, project: Project, model: ModelSettings, outbox: Outbox) -> None:
        self.state = "ok"
        """"ok", "behind" (messages wait) or "failing: …"."""
        self.requested: int | None = None
        """The version that a person asked to promote by moving `champion`; whoever acts on it clears it."""
        self._name = model.name
        self._enabled = project.mlflow.enabled
        self._uri = project.mlflow_uri
        self._experiment = project.mlflow.experiment
        self._outbox = outbox
        self._wake = threading.Event()
        self._idle = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._mlflow: _Mlflow | None = None

    def start(self) -> None:
        """Starts delivering."""
        if self._enabled and self._thread is None:
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
        body = {
            "workflow": workflow_id,
            "decision": decision.model_dump(),
            "manifest": None if manifest is None else manifest.model_dump(),
            "path": None if path is None else str(path),
            "params": dict(params),
        }
        self._put(f"candidate {workflow_id}", "candidate", body)

    def tell_live(self, version: int, reason: str) -> None:
        """A version that went live."""
        self._put("live", "live", {"version": version, "reason": reason})

    def flush(self, timeout: float) -> bool:
        """Waits until everything was delivered; whether it was."""
        if self._thread is None:
            return not self._enabled
        deadline = time.monotonic() + timeout
        while len(self._outbox) and (left := deadline - time.monotonic()) > 0:
            self._idle.clear()
            self._wake.set()
            if not len(self._outbox):
                break
            self._idle.wait(left)
        return not len(self._outbox)

    def close(self, timeout: float) -> None:
        """Delivers what is left within the time, and stops."""
        self.flush(timeout)
        self._stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(min(timeout, 3.0))
        self._outbox.close()

    def poll(self) -> int | None:
        """The version that a person asks to promote by moving `champion`; None if nobody does. Puts the alias back
        where MLflow was merely behind. Blocks up to a few seconds; raises whatever MLflow raises."""
        if not self._enabled:
            return None
        mlflow = self._mlflow = self._mlflow or _Mlflow(self._uri, self._experiment, self._name)
        written, seen = self._outbox.recall("written"), self._outbox.recall("seen")
        current = mlflow.champion()
        if current is None or current == written:
            return None
        if len(self._outbox) == 0 and current != seen:
            self._outbox.remember("seen", current)
            return current
        if written is not None:
            mlflow.alias(CHAMPION, written)
            print(f"mlflow: champion of {self._name} was {current}, put back to {written}", file=sys.stderr)
        return None

    def _put(self, key: str, kind: str, body: dict[str, Any]) -> None:
        if not self._enabled:
            return
        try:
            self._outbox.put(key, kind, body)
        except StoreError as error:
            # What MLflow is told is a copy: losing one must not lose the training.
            print(f"mlflow: {error}", file=sys.stderr, flush=True)
        self._idle.clear()
        self._wake.set()

    def _run(self) -> None:
        delay = RETRY_FIRST
        while not self._stopping:
            try:
                message = self._outbox.first()
                if message is None:
                    self.state = "ok"
                    self._idle.set()
                    if not self._wake.wait(POLL_SECONDS):
                        self.requested = self.poll() or self.requested
                    self._wake.clear()
                    continue
                self._deliver(message)
                self._outbox.delivered(message)
                self.state, delay = "behind", RETRY_FIRST
            except StoreError as error:
                if not self._stopping:
                    print(f"mlflow: {error}", file=sys.stderr, flush=True)
                return
            except Exception as error:  # Whatever MLflow and its drivers raise.
                self.state = f"failing: {_first_line(error)}"
                self._idle.set()
                self._wake.clear()
                self._wake.wait(delay)
                delay = min(2 * delay, RETRY_LAST)

    def _deliver(self, message: Message) -> None:
        self._mlflow = mlflow = self._mlflow or _Mlflow(self._uri, self._experiment, self._name)
        body = message.body
        if message.kind == "candidate":
            decision = Decision.model_validate(body["decision"])
            manifest = None if body["manifest"] is None else Manifest.model_validate(body["manifest"])
            mlflow.candidate(body["workflow"], decision, manifest, body["path"], body["params"])
        elif message.kind == "live":
            self._outbox.remember("written", body["version"])
            mlflow.alias(CHAMPION, body["version"])


class _Mlflow:
    """MLflow's client, and the names that it gives to things. The tracker's thread uses it."""

    def __init__(self, uri: str, experiment: str, model: str) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        import mlflow.entities
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self._entities: Any = mlflow.entities
        self._error: type[Exception] = MlflowException
        self._client: Any = MlflowClient(tracking_uri=uri, registry_uri=uri)
        self._model = model
        found = self._client.get_experiment_by_name(experiment)
        self._experiment: str = found.experiment_id if found else self._client.create_experiment(experiment)
        with contextlib.suppress(MlflowException):
            self._client.create_registered_model(model)

    def candidate(
        self,
        workflow: str,
        decision: Decision,
        manifest: Manifest | None,
        path: str | None,
        params: Mapping[str, Any],
    ) -> None:
        """A run, and a model version where one was published."""
        run = self._run(workflow, decision)
        now = decision.time_us // 1000 or int(time.time() * 1000)
        numbers = {name: value for name, value in decision.metrics.items() if isinstance(value, int | float)}
        metrics = [
            self._entities.Metric(_safe(name), float(value), now, decision.version)
            for name, value in numbers.items()
            if math.isfinite(value)
        ]
        tags = {"verdict": decision.verdict, "reason": decision.reason[:4000], "recipe": decision.recipe}
        if manifest is not None:
            tags |= {
                "parent": str(manifest.parent or ""),
                "weights": manifest.weights,
                "snapshot": manifest.snapshot_hash,
                "program": manifest.program_hash,
                "code": manifest.code_revision,
            }
        self._client.log_batch(
            run,
            metrics=metrics,
            params=[self._entities.Param(name, str(value)[:500]) for name, value in params.items()],
            tags=[self._entities.RunTag(f"trimtab.{name}", value) for name, value in tags.items()],
        )
        self._client.set_terminated(run)
        if manifest is not None and path is not None:
            number = self._version(decision.version)
            if number is None:
                lineage = {VERSION: str(decision.version), "trimtab.weights": manifest.weights}
                made = self._client.create_model_version(self._model, source=path, run_id=run, tags=lineage)
                number = str(made.version)
            self._client.set_model_version_tag(self._model, number, "trimtab.verdict", decision.verdict)
            if decision.verdict == "undecided":
                self._client.set_registered_model_alias(self._model, CHALLENGER, number)

    def alias(self, name: str, version: int) -> None:
        """Points an alias at the model version that holds `version`, where MLflow has one."""
        number = self._version(version)
        if number is not None:
            self._client.set_registered_model_alias(self._model, name, number)

    def champion(self) -> int | None:
        """The version that `champion` points at."""
        try:
            found = self._client.get_model_version_by_alias(self._model, CHAMPION)
        except self._error:
            return None
        return int(found.tags[VERSION]) if VERSION in found.tags else None

    def _run(self, workflow: str, decision: Decision) -> str:
        known = self._client.search_runs(
            [self._experiment], filter_string=f"tags.`{WORKFLOW}` = '{workflow}'", max_results=1
        )
        if known:
            return str(known[0].info.run_id)
        tags = {WORKFLOW: workflow, VERSION: str(decision.version), "trimtab.model": self._model}
        run = self._client.create_run(self._experiment, tags=tags, run_name=f"{self._model} {decision.version}")
        return str(run.info.run_id)

    def _version(self, version: int) -> str | None:
        found = self._client.search_model_versions(f"name = '{self._model}' and tags.`{VERSION}` = '{version}'")
        return str(found[0].version) if found else None


def _safe(name: str) -> str:
    """A metric's name as MLflow takes it."""
    return "".join(letter if letter.isalnum() or letter in "_-. /" else "_" for letter in name)[:250]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
