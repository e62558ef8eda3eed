"""What happened to the models, told to whoever watches: versions staged, promoted, rolled back, refused, drift, damage.

`publish` may be called from any thread. Events reach watchers on the loop, in the order of publishing. Each watcher
has a bounded buffer; one that does not keep up is cut off with an error instead of holding memory, or silently
missing events.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping

from trimtab.protos.v1 import trimtab_pb2 as pb
from trimtab.server.errors import Draining, QueueFull
from trimtab.store.files import now_us

__all__ = ["EventBus"]

_log = logging.getLogger(__name__)
_BUFFER = 4096
_LOUD = {"refused", "change", "segment_damaged", "label_stopped", "rolled_back", "stalled", "device_lost", "note"}


class EventBus:
    """See the module. Made on the loop that its watchers run on."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._watchers: set[_Watcher] = set()
        self._closed = False

    def publish(
        self, kind: str, model: str, message: str, *, version: int = 0, numbers: Mapping[str, float] | None = None
    ) -> None:
        """Tells all watchers, and the log."""
        self.forward(
            pb.Event(
                kind=kind, model_name=model, version=version, message=message, time_us=now_us(), numbers=numbers or {}
            )
        )

    def forward(self, event: pb.Event) -> None:
        """Tells all watchers, and the log, of an event made elsewhere."""
        level = logging.WARNING if event.kind in _LOUD else logging.INFO
        _log.log(level, "%s: %s: %s", event.model_name or "server", event.kind, event.message)
        try:
            self._loop.call_soon_threadsafe(self._deliver, event)
        except RuntimeError:
            # The loop is closed: nobody watches any more, and the log has it.
            return

    async def watch(self, model: str = "") -> AsyncIterator[pb.Event]:
        """The events from now on, of one model or of all. Raises QueueFull to a watcher that falls behind."""
        watcher = _Watcher(model)
        if self._closed:
            raise Draining("the server is stopping")
        self._watchers.add(watcher)
        try:
            while True:
                event = await watcher.events.get()
                if event is None:
                    raise watcher.error
                yield event
        finally:
            self._watchers.discard(watcher)

    def close(self) -> None:
        """Ends all watches."""
        self._closed = True
        for watcher in list(self._watchers):
            watcher.end(Draining("the server is stopping"))

    def _deliver(self, event: pb.Event) -> None:
        for watcher in list(self._watchers):
            if watcher.model and event.model_name and watcher.model != event.model_name:
                continue
            if watcher.events.qsize() >= _BUFFER:
                self._watchers.discard(watcher)
                watcher.end(QueueFull(f"more than {_BUFFER} events behind; watch again"))
            else:
                watcher.events.put_nowait(event)


class _Watcher:
    def __init__(self, model: str) -> None:
        self.model = model
        self.events: asyncio.Queue[pb.Event | None] = asyncio.Queue()
        self.error: Exception = Draining("the server is stopping")

    def end(self, error: Exception) -> None:
        self.error = error
        self.events.put_nowait(None)
