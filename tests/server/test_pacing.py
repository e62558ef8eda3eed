"""Windows and paces between a scripted trainer and a scripted hub, without waiting for either."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import numpy as np
import pytest
from trimtab.protos.v1 import trimtab_pb2 as pb
from trimtab.server import pacing
from trimtab.server.channel import TrainerChannel
from trimtab.server.errors import Draining
from trimtab.server.events import EventBus
from trimtab.server.governor import ENOUGH
from trimtab.server.pacing import Pacing
from trimtab.server.statistics import FINE_BOUNDS


class Bench:
    """A trainer that confirms paces (or not), and a hub that answers ENOUGH requests between two looks."""

    def __init__(self) -> None:
        self.counts = np.zeros(len(FINE_BOUNDS) - 1, np.uint64)
        self.slow = 1.0
        """p99 while the trainer works, over that while it rests."""
        self.confirms = True
        self.working = 0.0
        self.paces: list[pb.PaceCommand] = []
        self.reports: asyncio.Queue[pb.TrainerReport | None] = asyncio.Queue()
        self.events = EventBus()
        self.channel = TrainerChannel(lambda _: self.pacing.heard(), enabled=True)
        self.pacing = Pacing(self.latencies, self.channel, self.events, 0.1)
        self.enough = asyncio.Event()
        self.until: Callable[[], bool] = lambda: False

    def latencies(self) -> dict[str, bytes]:
        ns = 1e6 * (self.slow if self.working else 1.0)
        self.counts[int(np.searchsorted(FINE_BOUNDS, ns)) - 1] += np.uint64(ENOUGH)
        return {"m": self.counts.tobytes()}

    def report(self, *, training: bool, pace: int = 0) -> None:
        status = pb.TrainerStatus(state="working", training=training, pace=pace)
        self.reports.put_nowait(pb.TrainerReport(status=status))

    async def _stream(self) -> AsyncIterator[pb.TrainerReport]:
        while (report := await self.reports.get()) is not None:
            yield report

    async def trainer(self) -> None:
        async for command in self.channel.attend(self._stream()):
            self.paces.append(command.pace)
            if self.until():
                self.enough.set()
            if self.confirms:
                self.working = command.pace.duty
                self.report(training=True, pace=command.pace.number)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self.trainer()), asyncio.create_task(self.pacing.run())]
        yield
        for task in tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_SHORTEST", "_LOOK", "_IDLE_LOOK"):
        monkeypatch.setattr(pacing, name, 0.0)


async def test_a_trainer_that_trains_is_given_more_and_more_of_the_time() -> None:
    bench = Bench()
    bench.until = lambda: bench.paces[-1].duty == 1.0
    async with bench.running():
        bench.report(training=True)
        await asyncio.wait_for(bench.enough.wait(), 60)
    assert [pace.number for pace in bench.paces] == list(range(1, len(bench.paces) + 1))
    duties = [pace.duty for pace in bench.paces if pace.duty]
    assert duties == sorted(duties)
    assert all(pace.lease_seconds > 0 for pace in bench.paces)


async def test_one_that_serving_does_not_bear_is_told_and_so_is_everybody() -> None:
    bench = Bench()
    bench.slow = 3.0
    bench.until = lambda: bench.paces[-1].cannot_be_met
    said: list[pb.Event] = []

    async def listens() -> None:
        with contextlib.suppress(Draining):
            async for event in bench.events.watch():
                said.append(event)

    listener = asyncio.create_task(listens())
    await asyncio.sleep(0)
    async with bench.running():
        bench.report(training=True)
        await asyncio.wait_for(bench.enough.wait(), 60)
    bench.events.close()
    await listener
    (event,) = said
    assert event.kind == "note"
    assert "trainer_p99_budget = 0.1 cannot be met" in event.message
    assert event.numbers["p99_ratio"] == pytest.approx(3.0, rel=0.05)
    assert bench.pacing.duty() in (0.0, 0.05)


async def test_nobody_is_told_while_nobody_trains_or_attends() -> None:
    bench = Bench()
    task = asyncio.create_task(bench.pacing.run())
    for _ in range(50):
        await asyncio.sleep(0)
    assert not bench.paces
    task.cancel()
    async with bench.running():
        bench.report(training=False)
        for _ in range(50):
            await asyncio.sleep(0)
    assert not bench.paces


async def test_what_a_silent_trainer_does_not_confirm_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "_CONFIRM_SECONDS", 0.0)
    bench = Bench()
    bench.confirms = False
    bench.until = lambda: len(bench.paces) >= 5
    async with bench.running():
        bench.report(training=True)
        await asyncio.wait_for(bench.enough.wait(), 60)
    assert len({pace.duty for pace in bench.paces}) == 1
    # Its lease is not renewed: a trainer that is told to rest, and is not heard, does not rest for ever.
    assert len({pace.number for pace in bench.paces}) == 1


async def test_a_confirmation_that_is_late_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "_CONFIRM_SECONDS", 0.0)
    bench = Bench()
    bench.confirms = False

    def late() -> bool:
        """Each pace is confirmed when the next one has come."""
        if len(bench.paces) > 1:
            bench.report(training=True, pace=bench.paces[-2].number)
        return bench.paces[-1].duty == 1.0

    bench.until = late
    async with bench.running():
        bench.report(training=True)
        await asyncio.wait_for(bench.enough.wait(), 60)
