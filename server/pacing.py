"""The governor at work: measures windows of serving, and tells the trainer its pace (governor.py decides it).

A window lasts until some model has enough requests for a p99, but half a second at least and five at most. While the
trainer trains, a window begins when it has said that it keeps the pace sent for it; one in which it began or ended
training is thrown away. What is counted is the difference of two copies of the hub's latency histograms, so windows
cost the threads that serve nothing.

A pace has a lease. A trainer that hears nothing any more goes on at the least duty: slow enough to be no trouble if the
server is alive and only its messages are late, and not for ever at rest if this loop has died. A trainer that dies
leaves nothing behind here: what it does not confirm is not measured.

On the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping

import numpy as np
from trimtab.protos.v1 import trimtab_pb2 as pb
from trimtab.server.channel import TrainerChannel
from trimtab.server.events import EventBus
from trimtab.server.governor import ENOUGH, GovernorState, Tail, Window, decide_duty
from trimtab.server.statistics import fine_quantile

__all__ = ["Pacing", "tails_between"]

_SHORTEST, _LONGEST, _LOOK, _IDLE_LOOK = 0.5, 5.0, 0.125, 1.0
_CONFIRM_SECONDS = 2.0
_LEASE_SECONDS = 3 * _LONGEST


class Pacing:
    """`run` until cancelled."""

    def __init__(
        self, latencies: Callable[[], Mapping[str, bytes]], channel: TrainerChannel, events: EventBus, budget: float
    ) -> None:
        """`latencies`: Hub.latencies of each model. `budget`: the share by which p99 may rise."""
        self._latencies = latencies
        self._channel = channel
        self._events = events
        self._budget = budget
        self._state = GovernorState()
        self._number = 0
        self._sent: GovernorState | None = None
        """What the newest number says; None where it was measured: the next pace is a new one, with a new lease."""
        self._news = asyncio.Event()
        self._told = False

    def duty(self) -> float:
        """Share of the time in which the trainer may train now."""
        return self._state.allowed

    def heard(self) -> None:
        """The trainer has reported; the channel has its status."""
        self._news.set()

    async def run(self) -> None:
        """See the class."""
        while True:
            training = self._training()
            if training and not await self._confirmed():
                continue
            window = await self._window(training)
            if window is None:
                self._sent = None
                continue
            self._state = decide_duty(self._state, window, self._budget)
            self._sent = None
            if self._state.cannot_be_met and not self._told:
                self._told = True
                self._events.publish("note", "", self._complaint(), numbers={"p99_ratio": self._state.ratio})

    def _training(self) -> bool:
        training = self._channel.attending and self._channel.status.training
        if not training:
            self._told = False
        return training

    async def _confirmed(self) -> bool:
        """Sends the pace; whether the trainer says in time that it keeps it.

        Sent again, a pace keeps its number: a confirmation that took longer than one wait counts then, and a lease that
        nobody confirms runs out, so that a trainer whose reports are slow does not rest for ever.
        """
        state = self._state
        if state is not self._sent:
            self._number += 1
            self._sent = state
        self._channel.pace(
            pb.PaceCommand(
                number=self._number,
                duty=state.allowed,
                lease_seconds=_LEASE_SECONDS,
                cannot_be_met=state.cannot_be_met,
            )
        )
        loop = asyncio.get_running_loop()
        end = loop.time() + _CONFIRM_SECONDS
        while self._channel.status.pace < self._number:
            if not self._training() or not await self._news_within(end - loop.time()):
                return False
        return True

    async def _window(self, training: bool) -> Window | None:
        """The next window; None where the trainer began or ended training in it."""
        loop = asyncio.get_running_loop()
        began, before = loop.time(), dict(self._latencies())
        while True:
            await self._news_within(_LOOK if training else _IDLE_LOOK)
            if self._training() != training:
                return None
            passed = loop.time() - began
            if passed < _SHORTEST:
                continue
            tails = tails_between(before, self._latencies())
            if passed >= _LONGEST or any(tail.requests >= ENOUGH for tail in tails.values()):
                return Window(tails, rested=not training or self._state.resting)

    async def _news_within(self, seconds: float) -> bool:
        """Whether the trainer reported within so many seconds."""
        self._news.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), max(seconds, 0.0))
        return self._news.is_set()

    def _complaint(self) -> str:
        state = self._state
        return (
            f"trainer_p99_budget = {self._budget:g} cannot be met: p99 is {state.ratio:.2f} of what it is while the "
            f"trainer rests, and it trains only {state.duty:.0%} of the time. Training on a GPU goes on on the CPU; on "
            "the CPU it goes on as slowly"
        )


def tails_between(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> dict[str, Tail]:
    """What each model answered between two copies of its histogram (Hub.latencies); models that are in one alone are
    left out, and so are those that began anew."""
    tails = {}
    for name in before.keys() & after.keys():
        old, new = (np.frombuffer(copies[name], np.uint64) for copies in (before, after))
        if (new < old).any():
            continue
        counts = new - old
        requests = int(counts.sum())
        tails[name] = Tail(requests, fine_quantile(counts, 0.99) if requests else 0.0)
    return tails
