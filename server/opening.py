"""Opening a model: what lasts of it, its engine and its versions, put together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from trimtab.models.tasks import Task
from trimtab.protos.v1 import trimtab_pb2 as pb
from trimtab.server.compute import ComputeThread
from trimtab.server.drift import DriftWatch
from trimtab.server.engine import Engine
from trimtab.server.events import EventBus
from trimtab.server.served import Model
from trimtab.server.swap import Swap
from trimtab.store.captures import CaptureWriter
from trimtab.store.labels import LabelStore
from trimtab.store.live import LiveStore
from trimtab.store.project import Project
from trimtab.store.segment import SegmentInfo
from trimtab.store.settings import ModelSettings
from trimtab.store.versions import VersionStore

__all__ = ["open_model"]

# Messages of the largest size that may wait per model; more smaller ones, up to max_queue_size.
_QUEUED_MESSAGES = 8


def open_model(
    project: Project,
    settings: ModelSettings,
    *,
    compute: ComputeThread,
    events: EventBus,
    on_drift: Callable[[pb.DriftReport], None],
) -> Model:
    """The model with everything open, but no version loaded yet (`model.swap.startup` does that). On the loop.

    `on_drift` is called on the loop with the report on each closed window. Raises StoreError.
    """
    name, paths, server = settings.name, project.model_state(settings.name), project.server
    news = asyncio.Event()
    drift = DriftWatch(name, paths.drift, settings.drift, events, on_drift) if settings.drift.enabled else None
    captures = _captures(project, settings, events, news) if settings.capture.enabled else None
    engine = Engine(
        settings,
        hub=compute.hub,
        capture=captures,
        on_window=drift.put if drift is not None else None,
        max_queue_bytes=_QUEUED_MESSAGES * server.max_message_bytes,
    )
    versions, live = VersionStore(paths.versions), LiveStore(paths.live)
    swap = Swap(engine, versions, live, events, device=compute.device, threads=server.threads)
    return Model(settings, engine, swap, captures, LabelStore(paths.labels), drift, news=news)


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
