"""The steps from matured rows to a verdict, for one model. Each takes and returns small JSON and may run twice.

    snapshot   which rows, by marks and content hash; which version is live
    check      may these rows be trained on at all?
    fit        takes the version's number; a refresh, or a search of a new recipe; resumes from its own checkpoint
    evaluate   the gate
    publish    the version's files, immutable
    stage      the server loads and warms it
    promote    the server makes it live
    conclude   one decision line, the new lineage, and the news

A step that finds a reason to stop returns it as `end` = [verdict, reason]; the workflow then goes straight to
`conclude`. What a step did is found again by the workflow's id (the version's owner, the names of its files), so a
step that died half-way is simply run again. Nothing is pickled; files are written aside and renamed.
"""

from __future__ import annotations

import itertools
import math
import shutil
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version as package_version
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from trimtab._native import Slab
from trimtab.client.admin import AdminClient
from trimtab.client.errors import ClientError, Unavailable
from trimtab.kernels.cpu import CpuExecutor
from trimtab.kernels.program import ColumnProgram
from trimtab.kernels.sketch import Sketch
from trimtab.models.architectures import Network, build
from trimtab.models.version import LoadedVersion, fill, load_version, split_architecture, version_files
from trimtab.store.files import now_us, os_errors, write_atomic
from trimtab.store.live import LiveStore
from trimtab.store.manifest import Decision, Manifest
from trimtab.store.project import ModelPaths, Project
from trimtab.store.settings import ModelSettings
from trimtab.store.versions import VersionStore
from trimtab.trainer.alpha import alpha_for
from trimtab.trainer.baselines import majority, no_change
from trimtab.trainer.dataset import Dataset, Prefix
from trimtab.trainer.encode import SlabSource, TrainingTable
from trimtab.trainer.errors import RowsUnfit, ServerGone, TrainingFailed
from trimtab.trainer.fit import ChallengerState, one_thread
from trimtab.trainer.gate import Evidence, decide
from trimtab.trainer.lineage import EvidenceRows, TrainerState, remove_files
from trimtab.trainer.pace import PACE
from trimtab.trainer.refreshing import Refresher
from trimtab.trainer.search import fit_search

__all__ = ["Json", "Steps", "Teller"]

Json = dict[str, Any]

PIECE = 10_000
"""Rows between two checkpoints of a refresh."""
BASELINE_ROWS = 20_000
"""Rows before the evidence that inform the no-change and majority baselines."""
LATENCY_ROWS, LATENCY_RUNS = 256, 7


class Teller(Protocol):
    """Who is told of candidates: the tracker."""

    def tell_candidate(
        self, workflow_id: str, decision: Decision, manifest: Manifest | None, path: Any, params: dict[str, Any]
    ) -> None: ...

    def tell_live(self, version: int, reason: str) -> None: ...


class Steps:
    """See the module. One thread at a time."""

    def __init__(
        self,
        project: Project,
        model: ModelSettings,
        dataset: Dataset,
        admin: AdminClient,
        *,
        teller: Teller | None = None,
        on_event: Callable[[str, int, str], None] | None = None,
    ) -> None:
        self.project, self.model, self.dataset = project, model, dataset
        self.paths: ModelPaths = project.model_state(model.name)
        self.store = VersionStore(self.paths.versions)
        self.state = TrainerState.load(self.paths.trainer)
        self._admin = admin
        self._teller = teller
        self._on_event = on_event
        self._loaded: LoadedVersion | None = None
        self._refresher = Refresher(model.retrain.device, self._note)

    # --- the steps

    def snapshot(self, workflow: str) -> Json:
        """Fixes the rows and the live version that this workflow is about."""
        live = LiveStore(self.paths.live).read()
        if live is None:
            return {"end": ["abandoned", "No version is live yet."]}
        dataset, state = self.dataset, self.state
        dataset.flush()
        start, stop = dataset.end_of(state.marks), dataset.end_of(dataset.marks)
        return {
            "marks": dataset.marks,
            "start": start,
            "stop": stop,
            "hash": dataset.content_hash(state.snapshot, start, stop),
            "labels": dataset.label_sequence,
            "live": live.live,
            "epoch": live.epoch,
            "data_time_us": state.data_time_us,
        }

    def check(self, workflow: str, cut: Json, recipe: str) -> Json:
        """Data checks: rows that would teach nonsense end the workflow here."""
        rows = cut["stop"] - (cut["start"] if recipe == "refresh" else 0)
        if rows < 1:
            return {"end": ["refused", "No labelled row has matured since the last retraining."]}
        part = self.dataset.rows(cut["start"], cut["stop"]) if recipe == "refresh" else None
        table = part.table if part is not None else self.dataset.rows(0, cut["stop"]).table
        if not np.isfinite(table.weights).all() or (table.weights < 0).any() or table.weights.sum() <= 0:
            return {"end": ["refused", "The rows' weights are not finite numbers of 0 or more with a positive sum."]}
        broken = self._broken_features(table) if rows >= self.model.gate.min_rows else []
        if broken:
            shown = ", ".join(broken[:5])
            reason = f"Every value of {shown} is missing in the {rows} new rows, and hardly any was in training."
            return {"end": ["refused", reason]}
        return {"rows": rows, "positive_share": _share(table.labels, self.dataset.task.kind)}

    def fit(self, workflow: str, cut: Json, recipe: str) -> Json:
        """Takes the version's number and makes the candidate's weights."""
        number = self.store.allocate(workflow)
        began = time.process_time()
        try:
            with PACE.trains():
                found = self._refresh(workflow, cut) if recipe == "refresh" else self._search(workflow, cut)
        except (RowsUnfit, TrainingFailed) as error:
            return {"version": number, "end": ["refused", f"It could not be trained: {error}."]}
        return {"version": number, "cpu_seconds": round(time.process_time() - began, 4), **found}

    def evaluate(self, workflow: str, cut: Json, fitted: Json, recipe: str) -> Json:
        """Asks the gate."""
        evidence = EvidenceRows.load(self.paths.trainer / fitted["evidence"])
        live = self._version(cut["live"])
        candidate = self._candidate(fitted, live)
        alpha = alpha_for(self.store.decisions(), recipe, self.model.gate.alpha)
        verdict = decide(
            Evidence(
                evidence.challenger,
                evidence.live,
                evidence.time_us,
                self.model.label.cohort,
                weights=evidence.weights,
                slices=self._slices(evidence.positions),
                baselines=self._baselines(evidence, cut["stop"]),
                relative=self.dataset.task.kind == "regression",
                latency_ratio=_latency_ratio(candidate, live),
                enforce_latency=not self.project.server.lockstep,
                bytes=candidate.size(),
            ),
            recipe,
            self.model.gate,
            alpha,
        )
        return {"verdict": verdict.verdict, "reason": verdict.reason, "metrics": _finite(verdict.metrics)}

    def publish(self, workflow: str, cut: Json, fitted: Json, judged: Json, recipe: str) -> Json:
        """Writes the version for good, whatever the verdict: a person may still promote it."""
        folder = self.paths.trainer
        live = self._version(cut["live"])
        number = fitted["version"]
        if recipe == "refresh":
            with os_errors("read", folder / fitted["challenger"]):
                state = ChallengerState.from_bytes((folder / fitted["challenger"]).read_bytes())
            module = state.load_into(self._scratch(live))
            files = version_files(module, live.program, live.reference, state.moments_bytes(), live.scores)
            architecture, program = live.manifest.architecture, live.program
        else:
            files = {name: (folder / path).read_bytes() for name, path in fitted["files"].items()}
            architecture = fitted["architecture"]
            program = None
        manifest = Manifest(
            version=number,
            parent=cut["live"] if recipe == "refresh" else None,
            task=self.model.task,
            architecture=architecture,
            program_hash=program.hash if program is not None else fitted["program_hash"],
            sketch_hash=program.sketch.hash if program is not None else fitted["sketch_hash"],
            snapshot_hash=cut["hash"],
            code_revision=f"trimtab {package_version('trimtab')}",
            seed=self.model.retrain.seed,
            threads=1,
            isa=fitted.get("trained_on") or torch.backends.cpu.get_cpu_capability(),
            torch=torch.__version__,
            created_us=now_us(),
            rows_trained=fitted["rows_trained"],
            recipe=recipe,
            verdict=judged["verdict"],
            reason=judged["reason"],
            metrics=judged["metrics"],
        )
        if number in self.store.numbers():
            published = self.store.manifest(number)
        else:
            published = self.store.publish(number, files, manifest)
        return {"weights": published.weights}

    def stage(self, workflow: str, fitted: Json) -> Json:
        """Has the server load and warm the version."""
        try:
            staged = self._admin.stage(self.model.name, fitted["version"])
        except Unavailable as error:
            raise ServerGone(f"stage: {error}") from error
        except ClientError as error:
            return {"end": ["refused", f"The server would not take it: {error}"]}
        return {"load_seconds": staged.load_seconds, "warm_seconds": staged.warm_seconds}

    def promote(self, workflow: str, cut: Json, fitted: Json, judged: Json) -> Json:
        """Has the server make the version live, if nobody changed what is live meanwhile."""
        number = fitted["version"]
        if self.model.rollout.approve == "person":
            waits = (
                f'It passed the gate and is staged; [model.rollout] approve is "person": `trimtab promote {number}` '
                f"makes it live. {judged['reason']}"
            )
            return {"end": ["undecided", waits]}
        live = LiveStore(self.paths.live).read()
        if live is not None and live.live == number:
            return {"epoch": live.epoch}
        try:
            done = self._admin.promote(self.model.name, number, expected_epoch=cut["epoch"], reason=judged["reason"])
        except Unavailable as error:
            raise ServerGone(f"promote: {error}") from error
        except ClientError as error:
            return {"end": ["undecided", f"It passed the gate, but was not promoted: {error}"]}
        return {"epoch": done.epoch}

    def conclude(self, workflow: str, recipe: str, trigger: str, results: Json) -> Json:
        """Records the verdict and the lineage that the next workflow goes on from."""
        cut, fitted, judged = (results.get(name) or {} for name in ("snapshot", "fit", "evaluate"))
        verdict, reason = results["end"]
        number = fitted.get("version") or self.store.allocate(workflow)
        metrics: dict[str, Any] = {**judged.get("metrics", {}), "rows_trained": fitted.get("rows_trained", 0)}
        metrics["data_time_us"] = cut.get("data_time_us", 0)
        decision = Decision(version=number, verdict=verdict, reason=reason, metrics=metrics, recipe=recipe)
        if not any(line.version == number for line in self.store.decisions()):
            if number in self.store.numbers() or verdict != "abandoned":
                self.store.decide(decision)
            else:
                self.store.abandon(number, reason, recipe=recipe)
        # What was not published leaves nothing but its decision.
        shutil.rmtree(self.store.fitting(number), ignore_errors=True)
        if self.state.last_workflow != workflow:
            self._remember(workflow, verdict, recipe, results, number)
        manifest = self.store.manifest(number) if number in self.store.numbers() else None
        if self._teller is not None:
            params = {"trigger": trigger, "recipe": recipe}
            path = self.store.path(number) if manifest is not None else None
            self._teller.tell_candidate(workflow, decision, manifest, path, params)
            if verdict == "promoted":
                self._teller.tell_live(number, reason)
        if self._on_event is not None and verdict != "promoted":
            self._on_event("refused" if verdict == "refused" else "trainer", number, f"{verdict}: {reason}")
        return {"version": number, "verdict": verdict, "reason": reason}

    # --- fitting

    def _refresh(self, workflow: str, cut: Json) -> Json:
        live = self._version(cut["live"])
        state, prior, base = self._lineage(live)
        files = {name: f"{workflow}.{name}.safetensors" for name in ("challenger", "evidence")}
        folder = self.paths.trainer
        start, stop = cut["start"], cut["stop"]
        new = self.dataset.rows(start, stop)
        executor = CpuExecutor(live.program)
        rows = new.table.encode(executor)
        evidence = EvidenceRows.empty()
        resumed = self._checkpoint(files, live)
        if resumed is not None:
            state, evidence = resumed
        settings = self.model.retrain
        config, task = split_architecture(live.manifest.architecture)
        scratch = self._scratch(live)
        # Whole chunks only: where a piece ends must not change what is learned.
        piece = max(PIECE // settings.chunk_labels, 1) * settings.chunk_labels
        source = SlabSource(self.dataset.table, executor)
        while (done := state.rows_trained - base) < len(rows):
            part = rows.slice(done, min(done + piece, len(rows)))
            result = self._refresher.refresh(
                f"{live.program.hash} {live.manifest.architecture}",
                state,
                part,
                Prefix(source, start + done),
                scratch,
                live.module,
                task,
                settings,
                weight_decay=float(config.get("weight_decay", 0.01)),
            )
            state = result.state
            positions = np.arange(start + done, start + done + len(part))
            evidence = evidence.joined(
                EvidenceRows(result.losses_challenger, result.losses_live, result.time_us, part.weights, positions)
            )
            write_atomic(folder / files["evidence"], prior.joined(evidence).to_bytes())
            write_atomic(folder / files["challenger"], state.to_bytes())
        return {**files, "rows_trained": state.rows_trained, "trained_on": self._refresher.where}

    def _checkpoint(self, files: Json, live: LoadedVersion) -> tuple[ChallengerState, EvidenceRows] | None:
        """Where an earlier run of this workflow's fit stopped. Evidence is written first, so it may be ahead."""
        folder = self.paths.trainer
        if not (folder / files["challenger"]).exists():
            return None
        with os_errors("read", folder / files["challenger"]):
            state = ChallengerState.from_bytes((folder / files["challenger"]).read_bytes())
        whole = EvidenceRows.load(folder / files["evidence"])
        _, prior, base = self._lineage(live)
        done = state.rows_trained - base
        mine = {name: values[len(prior) : len(prior) + done] for name, values in whole.arrays().items()}
        return state, EvidenceRows(**mine)

    def _lineage(self, live: LoadedVersion) -> tuple[ChallengerState, EvidenceRows, int]:
        """Challenger and evidence to go on from, and the rows that the challenger has seen."""
        state, folder = self.state, self.paths.trainer
        if state.live == live.number and state.challenger:
            with os_errors("read", folder / state.challenger):
                challenger = ChallengerState.from_bytes((folder / state.challenger).read_bytes())
            prior = EvidenceRows.load(folder / state.evidence) if state.evidence else EvidenceRows.empty()
            return challenger, prior, challenger.rows_trained
        optimizer = self.store.path(live.number) / "optimizer.safetensors"
        moments = optimizer.read_bytes() if "optimizer.safetensors" in live.manifest.files else None
        challenger = ChallengerState.start(live.module, live.manifest.rows_trained, moments)
        return challenger, EvidenceRows.empty(), live.manifest.rows_trained

    def _search(self, workflow: str, cut: Json) -> Json:
        """A new recipe from scratch on all rows; judged on the newest, where the live answers are known."""
        part = self.dataset.rows(0, cut["stop"])
        order = np.argsort(part.table.time_us, kind="stable")
        live = self._version(cut["live"])
        fitted = fit_search(
            part.table,
            self.model.specs(),
            self.dataset.task,
            self.model.retrain,
            architecture=self.model.network,
            sketch=live.program.sketch,
            prequential=self.model.retrain.enabled,
        )
        held = fitted.holdout
        if held is None:
            raise TrainingFailed("search: no holdout to judge it by")
        positions = order[held.start :]
        served = part.served[positions]
        known = np.isfinite(served).all(axis=1)
        losses = self.dataset.task.losses_of(served[known], held.labels[known])
        if self.model.task == "regression":
            # Losses are squared errors of the standardised target; both sides need the same scale.
            losses = fitted.task.losses_of(served[known], held.labels[known])
        evidence = EvidenceRows(held.losses[known], losses, held.time_us[known], held.weights[known], positions[known])
        folder = self.paths.trainer
        names: dict[str, str] = {}
        for name, data in fitted.files().items():
            names[name] = f"{workflow}.{name}.part"
            write_atomic(folder / names[name], data)
        evidence_name = f"{workflow}.evidence.safetensors"
        write_atomic(folder / evidence_name, evidence.to_bytes())
        return {
            "files": names,
            "evidence": evidence_name,
            "architecture": fitted.architecture,
            "program_hash": fitted.program.hash,
            "sketch_hash": fitted.program.sketch.hash,
            "rows_trained": fitted.rows_trained,
        }

    # --- the gate's evidence

    def _candidate(self, fitted: Json, live: LoadedVersion) -> Network:
        folder = self.paths.trainer
        if "challenger" in fitted:
            with os_errors("read", folder / fitted["challenger"]):
                state = ChallengerState.from_bytes((folder / fitted["challenger"]).read_bytes())
            return state.load_into(self._scratch(live)).eval()
        program = ColumnProgram.from_json((folder / fitted["files"]["columns.json"]).read_text())
        config, task = split_architecture(fitted["architecture"])
        module = build(config, program, task)
        fill(module, (folder / fitted["files"]["weights.safetensors"]).read_bytes())
        return module.eval()

    def _slices(self, positions: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        if not self.model.gate.slices or not len(positions):
            return {}
        table = self.dataset.rows(int(positions.min()), int(positions.max()) + 1).table
        at = positions - int(positions.min())
        return {name: _values(table.slab, name)[at] for name in self.model.gate.slices}

    def _baselines(self, evidence: EvidenceRows, stop: int) -> dict[str, NDArray[np.float64]]:
        if not len(evidence):
            return {}
        first = int(evidence.positions.min())
        base = max(first - BASELINE_ROWS, 0)
        table, task = self.dataset.rows(base, stop).table, self.dataset.task
        times = np.maximum.accumulate(table.time_us)
        at = evidence.positions - first
        found = {}
        for name, rule in (("no_change", no_change), ("majority", majority)):
            predictions = rule(task, table.labels, times, None, first - base)
            found[name] = task.losses_of(predictions, table.labels[first - base :])[at]
        return found

    def _broken_features(self, table: TrainingTable) -> list[str]:
        """Features of which every new value is missing, though hardly any was in training: a broken pipe, not a new
        world."""
        live = LiveStore(self.paths.live).read()
        if live is None:
            return []
        reference = self._version(live.live).reference
        broken = []
        for index, name in enumerate(self.model.feature_names):
            if _missing(table.slab, index).all() and _missing_share(reference, index) < 0.5:
                broken.append(name)
        return broken

    # --- small things

    def _note(self, message: str) -> None:
        if self._on_event is not None:
            self._on_event("note", 0, message)

    def _version(self, number: int) -> LoadedVersion:
        if self._loaded is None or self._loaded.number != number:
            self._loaded = load_version(self.store, number)
        return self._loaded

    def _scratch(self, live: LoadedVersion) -> Network:
        config, task = split_architecture(live.manifest.architecture)
        return build(config, live.program, task)

    def _remember(self, workflow: str, verdict: str, recipe: str, results: Json, number: int) -> None:
        cut, fitted, judged = (results.get(name) or {} for name in ("snapshot", "fit", "evaluate"))
        state = self.state
        changes: Json = {
            "last_workflow": workflow,
            "workflows": state.workflows + 1,
            "alarms": (),
            "retrained_us": state.data_time_us,
        }
        if recipe == "search":
            changes["searched_us"] = state.data_time_us
        if cut and "marks" in cut and recipe == "refresh":
            changes |= {"marks": cut["marks"], "snapshot": cut["hash"]}
        if verdict == "promoted":
            challenger = fitted.get("challenger", "")
            changes |= {"live": number, "challenger": challenger, "evidence": ""}
            changes["expected_loss"] = judged.get("metrics", {}).get("challenger_loss")
        elif verdict == "refused" and recipe == "refresh":
            changes |= {"live": cut.get("live", state.live), "challenger": "", "evidence": ""}
        elif verdict == "undecided" and recipe == "refresh" and "challenger" in fitted:
            changes |= {"live": cut["live"], "challenger": fitted["challenger"], "evidence": fitted["evidence"]}
        self.state = state.with_(**changes)
        self.state.save(self.paths.trainer)
        remove_files(self.paths.trainer, {self.state.challenger, self.state.evidence})


def _values(slab: Slab, name: str) -> NDArray[Any]:
    index = list(slab.schema.names).index(name)
    kind = slab.schema.types[index]
    if kind == "string":
        offsets, data = slab.strings(index)
        text = data.tobytes()
        return np.array([text[a:b].decode() for a, b in itertools.pairwise(offsets)])
    return np.array(slab.integers(index) if kind == "integer" else slab.reals(index))


def _missing(slab: Slab, index: int) -> NDArray[np.bool_]:
    kind = slab.schema.types[index]
    missing: NDArray[np.bool_]
    if kind == "string":
        missing = np.diff(slab.strings(index)[0]) == 0
    elif kind == "integer":
        missing = slab.integers(index) == np.iinfo(np.int64).min
    else:
        missing = np.isnan(slab.reals(index))
    return missing


def _missing_share(reference: Sketch, index: int) -> float:
    return float(reference.field(index).missing_rate)


def _share(labels: NDArray[Any], kind: str) -> float:
    return float(np.mean(labels)) if kind == "binary" else math.nan


def _finite(metrics: dict[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}


def _latency_ratio(candidate: Network, live: LoadedVersion) -> float:
    """How long the candidate takes for a full batch, over the live version; the median of interleaved pairs."""
    rows = _zeros(candidate, LATENCY_ROWS)
    other = _zeros(live.module, LATENCY_ROWS)
    ratios = []
    with one_thread(), torch.inference_mode():
        for _ in range(LATENCY_RUNS):
            began = time.perf_counter()
            candidate(*rows)
            middle = time.perf_counter()
            live.module(*other)
            ratios.append((middle - began) / max(time.perf_counter() - middle, 1e-9))
    return statistics.median(ratios)


def _zeros(module: Network, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(rows, module.n_features), torch.zeros(rows, module.n_ids, dtype=torch.int64)
