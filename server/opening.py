"""Opening a model: what lasts of it, its engine and its versions, put together; and closing it again.

A model that takes tensors is served and nothing more: its rows are no columns, so there is nothing to capture, to watch
for drift or to retrain on. Where trimtab.toml asks for that all the same, opening it says in one line that it is off.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from trimtab.models.loading import loader, read_weights
from trimtab.models.publishing import publish_first
from trimtab.models.runner import running
from trimtab.models.sleeping import Sleepers
from trimtab.models.tasks import Task
from trimtab.protos.v1 import trimtab_pb2 as pb
from trimtab.server.compute import ComputeThread
from trimtab.server.drift import DriftWatch
from trimtab.server.engine import Engine
from trimtab.server.events import EventBus
from trimtab.server.idle import Idle
from trimtab.server.memory import ModelMemory
from trimtab.server.served import Model
from trimtab.server.swap import Swap
from trimtab.store.captures import CaptureWriter
from trimtab.store.errors import StoreError
from trimtab.store.labels import LabelStore
from trimtab.store.live import LiveStore
from trimtab.store.project import Project
from trimtab.store.segment import SegmentInfo
from trimtab.store.settings import ModelSettings
from trimtab.store.versions import VersionStore

__all__ = ["close_model", "open_model"]

_log = logging.getLogger(__name__)

# Messages of the largest size that may wait per model; more smaller ones, up to max_queue_size.
_QUEUED_MESSAGES = 8


def open_model(
    project: Project,
    settings: ModelSettings,
    *,
    compute: ComputeThread,
    memory: ModelMemory,
    idle: Idle,
    events: EventBus,
    on_drift: Callable[[pb.DriftReport], None],
    on_fault: Callable[[str], None] | None = None,
) -> Model:
    """The model with everything open, but no version loaded yet (`model.swap.startup` does that). On the loop.

    `on_drift` is called on the loop with the report on each closed window; `on_fault`, on some thread, with what
    happened where the GPU is lost. Raises StoreError.
    """
    name, paths, server = settings.name, project.model_state(settings.name), project.server
    news = asyncio.Event()
    keeps = _keeps(settings, events)
    watched, captured = keeps and settings.drift.enabled, keeps and settings.capture.enabled
    versions, live = VersionStore(paths.versions), LiveStore(paths.live)
    with contextlib.ExitStack() as opened:
        labels = LabelStore(paths.labels)
        opened.callback(labels.close)
        drift = DriftWatch(name, paths.drift, settings.drift, events, on_drift) if watched else None
        if drift is not None:
            opened.callback(drift.close)
        captures = _captures(project, settings, events, news) if captured else None
        if captures is not None:
            opened.callback(captures.close)
        engine = Engine(
            settings,
            hub=compute.hub,
            capture=captures,
            on_window=drift.put if drift is not None else None,
            max_queue_bytes=_QUEUED_MESSAGES * server.max_message_bytes,
            lockstep=server.lockstep,
            on_open=drift.save if drift is not None else None,
            opened=drift.opened if drift is not None else None,
            on_live=drift.serving if drift is not None else None,
            on_fault=on_fault,
        )
        opened.pop_all()
    sleepers = Sleepers(
        loader(project, settings, versions, compute.device), lambda version: read_weights(versions, version)
    )
    swap = Swap(
        engine,
        versions,
        live,
        events,
        load=running(
            sleepers,
            project,
            settings,
            versions,
            device=compute.device,
            threads=server.threads,
            lockstep=server.lockstep,
            tell=lambda number, message: events.publish("note", name, message, version=number),
        ),
        memory=memory,
        idle=idle,
        sleepers=sleepers,
        between=compute.run_between_batches,
        threads=server.threads,
        first=(lambda: publish_first(project, settings, versions)) if settings.takes_tensors else None,
        on_fault=on_fault,
    )
    return Model(settings, engine, swap, captures, labels, drift, news=news)


def close_model(model: Model) -> None:
    """Everything that was accepted goes to disk. What one part cannot do keeps the others from nothing. Blocks. When
    nothing is computed for the model any more."""
    if model.engine.keeper is not None:
        model.engine.keeper.suspend()
    parts = [model.captures, model.labels, model.drift, model.swap]
    for part in parts:
        try:
            if part is not None:
                part.close()
        except StoreError as error:
            _log.error("model %s: %s", model.name, error)


def _keeps(settings: ModelSettings, events: EventBus) -> bool:
    """Whether something is kept of the model's rows."""
    if not settings.takes_tensors:
        return True
    asked: list[str] = [name for name in ("capture", "drift", "gate", "rollout") if name in settings.model_fields_set]
    if settings.retrain.model_fields_set - {"seed"}:
        asked.append("retrain")
    if asked:
        sections = ", ".join(f"[model.{name}]" for name in asked)
        message = f"model {settings.name!r} takes tensors: {sections} need columns ([[model.feature]]) and are off"
        events.publish("note", settings.name, message)
    return False


def _captures(project: Project, settings: ModelSettings, events: EventBus, news: asyncio.Event) -> CaptureWriter:
    loop = asyncio.get_running_loop()

    def sealed(_segment: SegmentInfo) -> None:
        # On the writer's thread, which may outlive the loop.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(news.set)

    def damaged(message: str) -> None:
        events.publish("segment_damaged", settings.name, message)

    return CaptureWriter(
        project.model_state(settings.name).captures,
        settings.request_schema(),
        Task.of(settings.task, settings.classes, settings.positive).width,
        settings.capture,
        lockstep=project.server.lockstep,
        on_damage=damaged,
        on_sealed=sealed,
    )
