"""The channel to the trainer: commands out, in order and at least once; reports in.

Commands get a sequence number and wait in a log until the trainer acknowledges them. A trainer that attends is sent
all that is not acknowledged, oldest first, then what comes: so one that died is told again, and must take a command
twice. Only the newest stream counts; an older one is ended. An acknowledgement covers all commands up to its number.

Paces (server/pacing.py) are no such commands: they have no number, and the one that counts is the newest.

Everything here happens on the loop; other threads go through call_soon_threadsafe.

Turned down: a log on disk. Commands are derived from what is on disk (sealed segments, labels, drift.jsonl), and a
server that starts again sends a fresh `advance`; what a person asked for by `retrain` fails visibly with the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from trimtab.protos.v1 import trimtab_pb2 as pb
from trimtab.server.errors import Draining, ServerError
from trimtab.server.statistics import LATENCY_BOUNDS, Distribution

__all__ = ["Command", "TrainerChannel"]

_DRIFT_BACKLOG = 1000


@dataclass(slots=True, eq=False)
class Command:
    """A command that was sent, or will be."""

    message: pb.TrainerCommand
    done: asyncio.Future[None]
    """Resolves when it is acknowledged."""
    sent: float
    """When it was put in the log, monotonic seconds."""
    retrained: pb.RetrainResponse = field(default_factory=pb.RetrainResponse)
    """The verdict that the trainer reported for a `retrain`."""


class TrainerChannel:
    """See the module. `on_report` is told of every report, after the channel has taken its part."""

    def __init__(self, on_report: Callable[[pb.TrainerReport], None], *, enabled: bool) -> None:
        self.enabled = enabled
        """Whether there is a trainer at all. Without one, nothing is to be sent."""
        self.status = pb.TrainerStatus()
        """What the trainer said of itself last."""
        self.durations: dict[str, Distribution] = {}
        """Seconds from sending to acknowledgement, by kind of command."""
        self._on_report = on_report
        self._log: deque[Command] = deque()
        self._sequence = 0
        self._stream: _Stream | None = None
        self._closed = False

    @property
    def attending(self) -> bool:
        """Whether a trainer is connected."""
        return self._stream is not None

    @property
    def waiting(self) -> int:
        """Commands that are not acknowledged."""
        return len(self._log)

    def send(self, message: pb.TrainerCommand) -> Command:
        """Puts a command at the end of the log and sends it. Its future fails when the channel closes."""
        if self._closed:
            raise Draining("the server is stopping")
        self._sequence += 1
        message.sequence = self._sequence
        command = Command(message, asyncio.get_running_loop().create_future(), time.monotonic())
        # Not everybody who sends also waits.
        command.done.add_done_callback(_seen)
        self._log.append(command)
        self._bound_drift(message)
        if self._stream is not None:
            self._stream.put(message)
        return command

    def pace(self, pace: pb.PaceCommand) -> None:
        """Tells the trainer that attends at once, outside the order of commands. It counts while it is new, so nothing
        keeps it for a trainer that comes later."""
        if self._stream is not None:
            self._stream.put(pb.TrainerCommand(pace=pace))

    async def attend(self, reports: AsyncIterator[pb.TrainerReport]) -> AsyncIterator[pb.TrainerCommand]:
        """One trainer's stream: yields commands while its reports are taken."""
        if self._stream is not None:
            self._stream.end()
        stream = self._stream = _Stream()
        for command in self._log:
            stream.put(command.message)
        reader = asyncio.ensure_future(self._read(reports, stream))
        try:
            while (message := await stream.commands.get()) is not None:
                yield message
        finally:
            if self._stream is stream:
                self._stream = None
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await reader

    def fail_waiting(self, error: ServerError) -> None:
        """Fails whoever waits for a command. The commands stay: a trainer that comes back is still sent them."""
        for command in self._log:
            if not command.done.done():
                command.done.set_exception(error)

    def close(self) -> None:
        """Ends the stream and fails whoever still waits."""
        self._closed = True
        if self._stream is not None:
            self._stream.end()
        self.fail_waiting(Draining("the server is stopping"))

    async def _read(self, reports: AsyncIterator[pb.TrainerReport], stream: _Stream) -> None:
        try:
            async for report in reports:
                if self._stream is not stream:
                    return
                self._take(report)
        finally:
            stream.end()

    def _take(self, report: pb.TrainerReport) -> None:
        if report.HasField("status"):
            self.status.CopyFrom(report.status)
        if report.HasField("retrained"):
            self._retrained(report)
        while self._log and self._log[0].message.sequence <= report.acknowledges:
            command = self._log.popleft()
            kind = command.message.WhichOneof("command") or ""
            self.durations.setdefault(kind, Distribution(LATENCY_BOUNDS)).add(time.monotonic() - command.sent)
            if not command.done.done():
                command.done.set_result(None)
        self._on_report(report)

    def _retrained(self, report: pb.TrainerReport) -> None:
        """The answer belongs to the acknowledged command if that is a retrain, else to the oldest retrain that
        waits."""
        waiting = [command for command in self._log if command.message.WhichOneof("command") == "retrain"]
        exact = [command for command in waiting if command.message.sequence == report.acknowledges]
        for command in (exact or waiting)[:1]:
            command.retrained.CopyFrom(report.retrained)

    def _bound_drift(self, message: pb.TrainerCommand) -> None:
        """Drift windows go on closing while a trainer is down for long: the oldest are dropped (drift.jsonl has
        them)."""
        if message.WhichOneof("command") != "drift":
            return
        drift = [command for command in self._log if command.message.WhichOneof("command") == "drift"]
        if len(drift) > _DRIFT_BACKLOG:
            self._log.remove(drift[0])
            drift[0].done.cancel()


class _Stream:
    def __init__(self) -> None:
        self.commands: asyncio.Queue[pb.TrainerCommand | None] = asyncio.Queue()

    def put(self, message: pb.TrainerCommand) -> None:
        self.commands.put_nowait(message)

    def end(self) -> None:
        self.commands.put_nowait(None)


def _seen(done: asyncio.Future[None]) -> None:
    if not done.cancelled():
        done.exception()
