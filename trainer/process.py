"""The trainer process: attends the server, deals with its commands one after the other, and leaves when it goes.

Threads: one reads the stream of commands into a queue; the main thread takes them in order and does all the work, so
that nothing is shared but that queue and the one of reports. A command is acknowledged once it is dealt with; after a
restart the server sends again what was not, and every command may be met twice.

  advance   read what was sealed and labelled, join, note what labels say, retrain while a trigger fires, report quality
  drift     remember the alarms of a closed window
  retrain   what a person asked for
  shutdown  leave
  pace      how much of the time to train (pace.py): counts at once, and is answered by the thread that reads

It runs at low priority and never takes serving's cores by force: torch has one thread here, the operating system gives
a nice 10 process what serving leaves, and the server slows training down where its p99 rises all the same. Turned
down: changing the number of threads with the load, which would change the order of sums, and with it the weights.
"""

from __future__ import annotations

import contextlib
import math
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from trimtab.client.admin import AdminClient, running
from trimtab.client.errors import Cancelled, ClientError, Unavailable
from trimtab.models.code import allow_project
from trimtab.protos.v1 import trimtab_pb2 as pb
from trimtab.store.live import LiveStore
from trimtab.store.manifest import Decision
from trimtab.store.project import Project
from trimtab.store.settings import ModelSettings
from trimtab.store.timeline import Evidence, append_evidence
from trimtab.store.versions import VersionStore
from trimtab.trainer import durable, workflow
from trimtab.trainer.dataset import Dataset, Part
from trimtab.trainer.detectors import ErrorDetectors
from trimtab.trainer.errors import ServerGone
from trimtab.trainer.outbox import Outbox
from trimtab.trainer.pace import PACE
from trimtab.trainer.quality import Quality
from trimtab.trainer.steps import Steps
from trimtab.trainer.tracking import Tracker
from trimtab.trainer.triggers import TriggerState, decide_trigger

__all__ = ["run_trainer"]

FLUSH_SECONDS = 5.0
"""Longest time that leaving waits for MLflow to be told."""


class ModelTrainer:
    """One model's data, triggers and steps."""

    def __init__(
        self, project: Project, model: ModelSettings, admin: AdminClient, person: AdminClient, reports: Reports
    ) -> None:
        """`admin` calls as the trainer; `person` carries what a person asked for in MLflow."""
        self.model = model
        self.dataset = Dataset(model, project.model_state(model.name))
        self.quality = Quality(self.dataset.task)
        self._detectors = ErrorDetectors(self.dataset.task)
        self._timeline = project.model_state(model.name).timeline
        self._person = person
        self._outbox = Outbox(project.model_state(model.name).outbox)
        self.tracker = Tracker(project, model, self._outbox)

        def on_event(kind: str, version: int, message: str) -> None:
            reports.event(pb.Event(kind=kind, model_name=model.name, version=version, message=message))

        self.steps = Steps(project, model, self.dataset, admin, teller=self.tracker, on_event=on_event)
        self._reports = reports

    def advance(self, now_us: int) -> None:
        """Deals with everything up to a data time."""
        self.promote_on_request()
        part = self.dataset.advance(now_us)
        state = self.steps.state
        if now_us > state.data_time_us:
            state = state.with_(data_time_us=now_us)
        if part is not None and len(part.table):
            self.quality.add(part)
            self._note(part)
            if state.started_us is None:
                state = state.with_(started_us=int(part.table.time_us[0]))
        self.steps.state = state
        while (found := decide_trigger(self._trigger_state(), self.model.retrain, now_us)) is not None:
            before = self.steps.state.workflows
            cause = f"{self.dataset.end_of(self.dataset.marks)}-{before + 1}"
            self.retrain(found.recipe, found.trigger, workflow.workflow_id(self.model.name, found.recipe, cause))
            if self.steps.state.workflows == before:
                break  # It could not even be concluded; the next advance tries again.
        for realised in self.quality.news():
            self._reports.quality(
                pb.QualityReport(
                    model_name=self.model.name,
                    version=realised.version,
                    rows=realised.rows,
                    metrics=realised.metrics,
                )
            )

    def _note(self, part: Part) -> None:
        """What matured rows say: on the timeline for every version that served some, and as an event where the live
        version's loss rose."""
        live = LiveStore(self.steps.paths.live).read()
        for version in np.unique(part.versions[part.versions > 0]).tolist():
            chosen = part.versions == version
            served, labels, times = part.served[chosen], part.table.labels[chosen], part.table.time_us[chosen]
            self._note_realised(int(version), self.dataset.task.losses_of(served, labels), int(times.max()))
            if live is None or live.live != version:
                continue
            for change in self._detectors.add(live.live, served, labels, times):
                numbers = {"before": change.before, "after": change.after}
                append_evidence(
                    self._timeline, Evidence("change", change.time_us, change.version, change.message, numbers)
                )
                event = pb.Event(kind="change", model_name=self.model.name, message=change.message, numbers=numbers)
                event.version = change.version
                self._reports.event(event)

    def _note_realised(self, version: int, losses: NDArray[np.float64], time_us: int) -> None:
        losses = losses[np.isfinite(losses)]
        if not len(losses):
            return
        error = float(losses.std(ddof=1)) / math.sqrt(len(losses)) if len(losses) > 1 else math.nan
        numbers = {"loss": float(losses.mean()), "standard_error": error, "rows": float(len(losses))}
        message = f"{len(losses):,} labelled rows cost {numbers['loss']:.4f} each"
        append_evidence(self._timeline, Evidence("realised", time_us, version, message, numbers))

    def introduce(self) -> None:
        """Tells MLflow of the version that was live before any workflow ran, once."""
        live = LiveStore(self.steps.paths.live).read()
        if live is None or self._outbox.recall("introduced"):
            return
        store = self.steps.store
        found = next((line for line in store.decisions() if line.version == live.live), None)
        decision = found or Decision(version=live.live, verdict="initial", reason="live before the trainer began")
        self.tracker.tell_candidate(
            f"{self.model.name}-initial", decision, store.manifest(live.live), store.path(live.live), {"trigger": ""}
        )
        self.tracker.tell_live(live.live, decision.reason)
        self._outbox.remember("introduced", live.live)

    def promote_on_request(self) -> None:
        """Does what a person asked for by moving `champion` in MLflow."""
        version, self.tracker.requested = self.tracker.requested, None
        if version is None:
            return
        try:
            self._person.promote(self.model.name, version, reason="champion was moved in MLflow")
            self.tracker.tell_live(version, "champion was moved in MLflow")
        except Unavailable:
            self.tracker.requested = version
        except ClientError as error:
            message = f"champion was moved to {version} in MLflow, and it was not promoted: {error}"
            self._reports.event(pb.Event(kind="refused", model_name=self.model.name, version=version, message=message))

    def drift(self, report: pb.DriftReport) -> None:
        """Remembers a window's alarms for the drift trigger."""
        state = self.steps.state
        if report.window <= state.drift_window:
            return
        alarms = {*state.alarms, *(feature.feature for feature in report.features if feature.alarm)}
        self.steps.state = state.with_(alarms=tuple(sorted(alarms)), drift_window=report.window)
        self.steps.state.save(self.steps.paths.trainer)

    def retrain(self, recipe: str, trigger: str, identity: str) -> dict[str, Any]:
        """Runs one workflow; its outcome."""
        # A workflow that is resumed must find the rows that it was begun for.
        self.dataset.flush()
        outcome = workflow.run(self.model.name, identity, recipe, trigger)
        self._reports.workflows += 1
        message = f"{outcome['verdict']}: {outcome['reason']}"
        append_evidence(self._timeline, Evidence("decided", self.steps.state.data_time_us, outcome["version"], message))
        return outcome

    def close(self) -> None:
        """Tells MLflow what is left, within FLUSH_SECONDS."""
        self.tracker.close(FLUSH_SECONDS)
        self.dataset.close()

    def _trigger_state(self) -> TriggerState:
        state = self.steps.state
        loss, rows = self.quality.recent_loss() if self.model.retrain.on_quality else (float("nan"), 0)
        return TriggerState(
            labels=self.dataset.end_of(self.dataset.marks) - self.dataset.end_of(state.marks),
            started_us=state.started_us,
            retrained_us=state.retrained_us,
            searched_us=state.searched_us,
            alarms=state.alarms,
            quality_loss=loss,
            quality_rows=rows,
            expected_loss=float("nan") if state.expected_loss is None else state.expected_loss,
        )


class Reports:
    """What the trainer says, from any thread, as the stream of reports that gRPC sends."""

    def __init__(self) -> None:
        self.workflows = 0
        self._queue: queue.SimpleQueue[pb.TrainerReport | None] = queue.SimpleQueue()
        self._step = ""
        self._acknowledged = 0
        self._quality: list[pb.QualityReport] = []
        self._events: list[pb.Event] = []
        self._sending = threading.Lock()

    def stream(self) -> Iterator[pb.TrainerReport]:
        """Until `end`."""
        while (report := self._queue.get()) is not None:
            yield report

    def step(self, model: str, step: str) -> None:
        """A step of a workflow begins; "" when the workflow has ended."""
        self._step = f"{model}: {step}" if step else ""
        self.send()

    def quality(self, report: pb.QualityReport) -> None:
        """Goes out with the next report."""
        with self._sending:
            self._quality.append(report)

    def event(self, event: pb.Event) -> None:
        """Goes out with the next report."""
        event.time_us = time.time_ns() // 1000
        with self._sending:
            self._events.append(event)

    def send(self, *, acknowledges: int = 0, retrained: pb.RetrainResponse | None = None, error: str = "") -> None:
        """Sends where the trainer stands."""
        with self._sending:
            self._acknowledged = max(self._acknowledged, acknowledges)
            status = pb.TrainerStatus(
                state="working" if self._step else "idle",
                pid=os.getpid(),
                step=self._step,
                last_error=error,
                workflows=self.workflows,
                cpu_seconds=time.process_time(),
                training=PACE.training,
                pace=PACE.number,
            )
            report = pb.TrainerReport(acknowledges=self._acknowledged, status=status, retrained=retrained)
            quality, self._quality = self._quality, []
            events, self._events = self._events, []
            report.quality.extend(quality)
            report.events.extend(events)
            self._queue.put(report)

    def end(self) -> None:
        """Ends the stream."""
        self._queue.put(None)


def run_trainer(directory: Path) -> int:
    """Runs until the server goes or says so; the exit status. Raises StoreError, TrainerError."""
    with contextlib.suppress(OSError):
        os.nice(10)
    torch.set_num_threads(1)
    project = Project.load(directory)
    allow_project(project)
    server = running(project.state)
    if server is None:
        raise ServerGone(f"no server is running for {directory}; the trainer runs beside one (`trimtab serve`)")
    reports = Reports()
    if project.server.trainer_p99_budget > 0 and not project.server.lockstep:
        PACE.govern()
        PACE.on_training = reports.send
    # SIGTERM ends the stream; the command under way is finished first.
    signal.signal(signal.SIGTERM, lambda *_: reports.end())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with AdminClient(server.admin, caller="trainer") as admin, AdminClient(server.admin) as person:
        trainers = {
            model.name: ModelTrainer(project, model, admin, person, reports)
            for model in project.models
            if model.retrainable
        }
        workflow.attach({name: trainer.steps for name, trainer in trainers.items()}, reports.step)
        commands = Commands(admin, reports)
        try:
            # The server hears of this trainer first: resuming what was pending may take a while.
            commands.startup()
            with durable.running(project.state / "dbos.sqlite", _abandoned(project)):
                workflow.pending()
                for trainer in trainers.values():
                    trainer.introduce()
                    trainer.tracker.start()
                for command in commands:
                    retrained = _deal_with(command, trainers, f"{server.pid}")
                    reports.send(acknowledges=command.sequence, retrained=retrained)
            return commands.status
        finally:
            reports.end()
            for trainer in trainers.values():
                trainer.close()


class Commands:
    """The server's commands, in order, until it says shutdown or goes. A thread of its own reads the stream."""

    def __init__(self, admin: AdminClient, reports: Reports) -> None:
        self.status = 0
        """The exit status that the end of the stream means."""
        self._admin, self._reports = admin, reports
        self._queue: queue.SimpleQueue[pb.TrainerCommand | None] = queue.SimpleQueue()

    def startup(self) -> None:
        """Attends."""
        self._reports.send()
        threading.Thread(target=self._read, name="commands", daemon=True).start()

    def __iter__(self) -> Iterator[pb.TrainerCommand]:
        while (command := self._queue.get()) is not None:
            if command.WhichOneof("command") == "shutdown":
                self._reports.send(acknowledges=command.sequence)
                return
            yield command

    def _read(self) -> None:
        try:
            for command in self._admin.attend(self._reports.stream()):
                kind = command.WhichOneof("command")
                if kind == "pace":
                    pace = command.pace
                    PACE.tell(pace.number, pace.duty, pace.lease_seconds, cannot_be_met=pace.cannot_be_met)
                    self._reports.send()
                    continue
                if kind == "shutdown":
                    PACE.release()
                self._queue.put(command)
        except (Unavailable, Cancelled):
            pass  # The server is gone, and with it the reason to be here.
        except ClientError as error:
            print(f"trainer: {error}", file=sys.stderr, flush=True)
            self.status = 1
        finally:
            PACE.release()
            self._queue.put(None)


def _deal_with(command: pb.TrainerCommand, trainers: dict[str, ModelTrainer], server: str) -> pb.RetrainResponse | None:
    kind = command.WhichOneof("command")
    if kind == "advance":
        for trainer in _named(trainers, command.advance.model_name):
            trainer.advance(command.advance.data_time_us)
    elif kind == "drift":
        for trainer in _named(trainers, command.drift.model_name):
            trainer.drift(command.drift)
    elif kind == "retrain":
        asked = command.retrain
        for trainer in _named(trainers, asked.model_name):
            recipe = asked.recipe or "refresh"
            # The server counts commands from 1 each time that it starts.
            identity = workflow.workflow_id(trainer.model.name, recipe, f"hand-{server}-{command.sequence}")
            outcome = trainer.retrain(recipe, "hand", identity)
            return pb.RetrainResponse(
                workflow_id=identity,
                version=outcome["version"],
                verdict=outcome["verdict"],
                reason=outcome["reason"],
            )
    return None


def _named(trainers: dict[str, ModelTrainer], name: str) -> list[ModelTrainer]:
    return [trainer for key, trainer in trainers.items() if not name or key == name]


def _abandoned(project: Project) -> Any:
    """Gives runs that cannot be resumed their one decision."""

    def record(identity: str, why: str) -> None:
        print(f"trainer: workflow {identity} is abandoned: {why}", file=sys.stderr, flush=True)
        for model in project.models:
            store = VersionStore(project.model_state(model.name).versions)
            if not identity.startswith(f"{model.name}-"):
                continue
            number = store.allocate(identity)
            if any(line.version == number for line in store.decisions()):
                continue
            if number in store.numbers():
                store.decide(Decision(version=number, verdict="abandoned", reason=why))
            else:
                store.abandon(number, why)

    return record
