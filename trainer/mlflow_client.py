"""MLflow's client in Trimtab's words: which things are told under which names. Knows nothing of threads and retries.

Told twice is told once: a run is found again by its workflow and the outbox that it came through, a model version by
the tags `trimtab.version` and `trimtab.weights`. So several projects may share a tracking server.

The run of a published version has its reference.arrow as an artifact, so that the drift of other nodes' windows can be
compared with it (`fetch`, for `trimtab drift --pin`). Weights are not logged.

Importing mlflow takes a second and its SQL store another two, so this module is imported without it: `connect`
imports it, on the thread that calls.
"""

from __future__ import annotations

import json
import logging
import math
import os
import posixpath
import re
import socket
import tempfile
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.store.manifest import Decision, Manifest

__all__ = ["ARTIFACT_FAILED", "CHALLENGER", "CHAMPION", "REFERENCE", "Candidate", "Mlflow", "connect", "fetch"]

CHAMPION, CHALLENGER = "champion", "challenger"
VERSION, WEIGHTS, VERDICT = "trimtab.version", "trimtab.weights", "trimtab.verdict"
WORKFLOW, ORIGIN = "trimtab.workflow", "trimtab.origin"
REFERENCE = "reference.arrow"
"""The artifact's name, and the file's in a version."""
ARTIFACT_FAILED = "ARTIFACT_FAILED"
"""Error code of an artifact that the store did not take, while MLflow itself answers."""

# Before mlflow is imported: no long waits for a server that is dead, nothing sent to anybody else, no progress bars.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "2",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "DO_NOT_TRACK": "true",
}
_NOISY = ("mlflow", "alembic", "sqlalchemy", "urllib3")
_STATUS = {"abandoned": "FAILED"}
# Limits of one log_batch, and of tags and parameters.
_METRICS, _TEXT = 800, 500

_connecting = threading.Lock()
"""Making a database's tables is for one thread of a process at a time: alembic's context is global."""


@dataclass(frozen=True)
class Candidate:
    """A candidate and its verdict, as told."""

    workflow: str
    origin: str
    """Of the outbox: workflows' names are only unique within a project."""
    decision: Decision
    """With the time at which it was told."""
    manifest: Manifest | None
    """Where it was published."""
    path: str
    params: Mapping[str, Any]


class ArtifactError(Exception):
    """An artifact could not be logged."""

    error_code = ARTIFACT_FAILED


class Mlflow:
    """One model's part of a tracking server. Every call raises whatever MLflow raises. One thread at a time."""

    def __init__(self, client: Any, entities: Any, experiment: str, model: str, *, local: bool) -> None:
        """`experiment`: its id; `local`: whether the server may be given paths of this machine."""
        self._client, self._entities = client, entities
        self._experiment, self._model, self._local = experiment, model, local

    def tell(self, candidate: Candidate) -> None:
        """A run; a model version where one was published; and the alias `challenger`: the newest that is undecided."""
        run = self._run(candidate)
        run_id = str(run.info.run_id)
        verdict = candidate.decision.verdict
        self._client.log_batch(
            run_id,
            # A time that is the run's own is the same when told again, and then the points are the same too.
            metrics=self._metrics(candidate.decision, run.info.start_time),
            params=[self._entities.Param(name, value) for name, value in _params(candidate).items()],
            tags=[self._entities.RunTag(name, value) for name, value in _tags(candidate).items()],
        )
        self._client.set_terminated(run_id, _STATUS.get(verdict, "FINISHED"))
        if candidate.manifest is not None:
            number = self._publish(candidate, run_id)
            if verdict == "undecided":
                self._client.set_registered_model_alias(self._model, CHALLENGER, number)
        if verdict == "promoted":
            # What challenged the version before it has been overtaken.
            self._client.delete_registered_model_alias(self._model, CHALLENGER)

    def log_reference(self, workflow: str, origin: str, path: Path) -> None:
        """Logs the file as an artifact of the candidate's run. Raises ArtifactError where there is no such run or file,
        or the artifact store does not take it: each may have a store of its own kind, which this machine may lack the
        library or the permission for."""
        run = self._known(workflow, origin)
        try:
            if run is None:
                raise ArtifactError(f"no run of {workflow}")
            self._client.log_artifact(str(run.info.run_id), str(path))
        except Exception as error:
            raise ArtifactError(f"{path.name} of {workflow}: {error or type(error).__name__}") from error

    def champion(self, version: int, weights: str) -> bool:
        """Points `champion` at the model version that holds `version`; False if there is none."""
        found = self._find(version, weights)
        if found is not None:
            self._client.set_registered_model_alias(self._model, CHAMPION, found.version)
        return found is not None

    def where_champion_points(self) -> tuple[int, str] | None:
        """(version, weights) by the tags; None where it points at nothing of Trimtab's."""
        aliases = self._client.get_registered_model(self._model).aliases
        if CHAMPION not in aliases:
            return None
        tags = self._client.get_model_version(self._model, str(aliases[CHAMPION])).tags
        version = str(tags.get(VERSION, ""))
        return (int(version), str(tags.get(WEIGHTS, ""))) if version.isdecimal() else None

    def _known(self, workflow: str, origin: str) -> Any:
        marks = {WORKFLOW: workflow, ORIGIN: origin}
        wanted = " and ".join(f"tags.`{name}` = {_quoted(value)}" for name, value in marks.items())
        known = self._client.search_runs([self._experiment], filter_string=wanted, max_results=1)
        return known[0] if known else None

    def _run(self, candidate: Candidate) -> Any:
        known = self._known(candidate.workflow, candidate.origin)
        if known is not None:
            return known
        marks = {WORKFLOW: candidate.workflow, ORIGIN: candidate.origin}
        name = f"{self._model} {candidate.decision.version}"
        started = candidate.decision.time_us // 1000
        return self._client.create_run(self._experiment, start_time=started, tags=marks, run_name=name)

    def _metrics(self, decision: Decision, time_ms: int) -> list[Any]:
        numbers = {
            _metric_name(name): float(value)
            for name, value in decision.metrics.items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
        named = list(numbers.items())[:_METRICS]
        return [self._entities.Metric(name, value, time_ms, decision.version) for name, value in named]

    def _publish(self, candidate: Candidate, run_id: str) -> str:
        decision, manifest = candidate.decision, candidate.manifest
        assert manifest is not None
        found = self._find(decision.version, manifest.weights)
        if found is None:
            # A tracking server refuses paths, which would be paths of its own machine.
            where = (
                Path(candidate.path).as_uri() if self._local else f"trimtab://{socket.gethostname()}{candidate.path}"
            )
            found = self._client.create_model_version(
                self._model,
                source=where,
                run_id=run_id,
                tags=_tags(candidate),
                description=decision.reason[:_TEXT],
                await_creation_for=0,
            )
        elif found.tags.get(VERDICT) != decision.verdict:
            self._client.set_model_version_tag(self._model, found.version, VERDICT, decision.verdict)
        return str(found.version)

    def _find(self, version: int, weights: str) -> Any:
        """The model version that holds `version` with these weights; with any where `weights` is empty."""
        wanted = f"name = {_quoted(self._model)} and tags.`{VERSION}` = '{version}'"
        for found in self._client.search_model_versions(wanted):
            if not weights or found.tags.get(WEIGHTS) == weights:
                return found
        return None


def connect(uri: str, experiment: str, model: str, artifacts: Path) -> Mlflow:
    """Imports mlflow, reaches the tracking server, and makes what is missing there: tables, experiment, registered
    model. `artifacts`: where a database of our own says that artifacts would lie. Raises whatever MLflow raises."""
    os.environ.update(_ENVIRONMENT)
    with _connecting:
        _quieten()
        import mlflow.entities
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        _quieten()
        client: Any = MlflowClient(tracking_uri=uri, registry_uri=uri)
        local = not uri.startswith(("http:", "https:"))
        found = client.get_experiment_by_name(experiment)
        if found is None:
            where = artifacts.as_uri() if local else None
            identity = client.create_experiment(experiment, artifact_location=where)
        else:
            identity = found.experiment_id
            if found.lifecycle_stage == "deleted":
                client.restore_experiment(identity)
        try:
            client.create_registered_model(model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        _quieten()
    return Mlflow(client, mlflow.entities, identity, model, local=local)


def fetch(uri: str, what: str) -> tuple[bytes, str]:
    """The contents of an artifact and where they are from: `runs:/RUN_ID/PATH`, or the reference of the run that a
    model version came from, by `models:/NAME@ALIAS` or `models:/NAME/VERSION` (MLflow's number). Waits for the tracking
    server. Raises whatever MLflow raises, and ValueError for another form."""
    os.environ.update(_ENVIRONMENT)
    with _connecting:
        _quieten()
        from mlflow.tracking import MlflowClient

        client: Any = MlflowClient(tracking_uri=uri, registry_uri=uri)
        _quieten()
    kind, _, rest = what.partition(":/")
    if kind == "models":
        name, at, label = rest.rpartition("@") if "@" in rest else rest.rpartition("/")
        if not name or not label:
            raise ValueError("expected models:/NAME@ALIAS or models:/NAME/VERSION")
        found = client.get_model_version_by_alias(name, label) if at == "@" else client.get_model_version(name, label)
        run_id, path = found.run_id, REFERENCE
        if not run_id:
            raise ValueError("that model version has no run")
        origin = f"{what} (runs:/{run_id}/{path})"
    elif kind == "runs":
        run_id, _, path = rest.partition("/")
        if not run_id or not path:
            raise ValueError(f"expected runs:/RUN_ID/{REFERENCE}")
        origin = what
    else:
        raise ValueError("expected runs:/... or models:/...")
    with tempfile.TemporaryDirectory(prefix="trimtab-") as folder:
        return Path(client.download_artifacts(run_id, path, folder)).read_bytes(), origin


def _quieten() -> None:
    """mlflow sets up logging of its own when it is imported and when it makes its tables."""
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    # What mlflow does with sqlalchemy is deprecated here and there: nothing to tell the user of Trimtab.
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", module=rf"({'|'.join(_NOISY)})(\.|$)")


def _params(candidate: Candidate) -> dict[str, str]:
    params = dict(candidate.params)
    manifest = candidate.manifest
    if manifest is not None:
        params |= {
            "task": manifest.task,
            "architecture": json.dumps(manifest.architecture, sort_keys=True),
            "seed": manifest.seed,
            "threads": manifest.threads,
        }
    return {name: str(value)[:_TEXT] for name, value in params.items()}


def _tags(candidate: Candidate) -> dict[str, str]:
    """Where a candidate comes from: the same tags for the run and the model version."""
    decision, manifest = candidate.decision, candidate.manifest
    tags = {
        VERSION: str(decision.version),
        WORKFLOW: candidate.workflow,
        VERDICT: decision.verdict,
        "trimtab.reason": decision.reason[:_TEXT],
        "trimtab.recipe": decision.recipe,
    }
    if manifest is not None:
        tags |= {
            WEIGHTS: manifest.weights,
            "trimtab.parent": "" if manifest.parent is None else str(manifest.parent),
            "trimtab.snapshot_hash": manifest.snapshot_hash,
            "trimtab.program_hash": manifest.program_hash,
            "trimtab.code": manifest.code_revision,
            "trimtab.rows_trained": str(manifest.rows_trained),
        }
    return tags


def _metric_name(name: str) -> str:
    """A metric's name as MLflow takes it: letters, digits, some signs, and a path that is its own shortest form."""
    name = re.sub(r"[^\w\-. :/]", "_", name)[:250]
    return name if name == posixpath.normpath(name) and not name.startswith("/") else name.replace("/", "_")


def _quoted(text: str) -> str:
    return f'"{text}"' if "'" in text else f"'{text}'"
