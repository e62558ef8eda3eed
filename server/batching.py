"""When waiting requests become a batch, and which: a pure policy. State and an injected `now` in, decision out.

Knows nothing of tensors, threads, sockets or clocks. Times are int nanoseconds on a monotonic clock.

Requests wait in lanes, one per version asked for; lane 0 is the alias "whatever is live". A batch is of one resolved
version, so the alias' lane and the live version's own lane are drained together, in order of arrival. The alias is
resolved when the batch forms, not when the request came.

  full     at max_batch_size rows a batch goes at once, and at a preferred size as well;
  delay    otherwise it goes when its oldest request has waited max_queue_delay_microseconds, but never later than
           half of the time that any of its requests has in all: waiting for company must not cost a request its
           deadline;
  large    a request of more than max_batch_size rows is a batch by itself (the engine runs it in chunks);
  expiry   requests whose deadline has passed, and cancelled ones, are taken out before they can be computed.

Turned down: a heap of deadlines (two heap operations a request, to find out in most cases that nothing expired). The
queue keeps the soonest deadline that it has seen instead, and looks through the lanes only once that has passed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

__all__ = ["LIVE", "NEVER", "Decision", "Policy", "Queue", "Waiting"]

LIVE = 0
NEVER = 1 << 63


@dataclass(slots=True, eq=False)
class Waiting:
    """What the policy knows of a request."""

    rows: int
    """At least 1."""
    version: int
    """The version asked for, or LIVE."""
    arrived: int
    """When, in ns."""
    deadline: int = NEVER
    """When its answer is of no use any more, in ns."""
    cancelled: bool = False
    """Set by whoever waits for the answer, from any thread."""


W = TypeVar("W", bound=Waiting)


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings of [model.batching], in the policy's units."""

    max_batch_size: int = 256
    max_queue_delay: int = 0
    """ns."""
    preferred: tuple[int, ...] = ()
    max_queue_size: int = 4096
    """Requests."""
    max_queue_bytes: int = 1 << 30
    """Bytes of the requests' messages."""
    default_timeout: int = 0
    """ns; 0: none."""

    def admits(self, waiting: int, size: int) -> bool:
        """Whether one more request may wait beside `waiting` requests, with which the queue would hold `size` bytes."""
        return waiting < self.max_queue_size and (size <= self.max_queue_bytes or waiting == 0)

    def deadline(self, now: int, remaining: float | None, timeout_us: int | None) -> int:
        """The instant (ns) after which a request is not worth computing.

        `remaining`: seconds left of the call's own deadline, None for none. `timeout_us`: the request's `timeout`
        parameter, which takes the place of the default; 0 means none.
        """
        timeout = self.default_timeout if timeout_us is None else timeout_us * 1000
        deadline = now + timeout if timeout > 0 else NEVER
        return deadline if remaining is None else min(deadline, now + int(remaining * 1e9))


@dataclass(slots=True)
class Decision(Generic[W]):
    """What to do now: compute `batch` on `version` if there is one, else look again at `wait_until` (or on arrival)."""

    batch: list[W] = field(default_factory=list)
    version: int = LIVE
    wait_until: int = NEVER
    """ns; NEVER: nothing waits, or a batch was taken."""
    expired: list[W] = field(default_factory=list)
    """To be answered with DEADLINE_EXCEEDED."""
    cancelled: list[W] = field(default_factory=list)
    """Dropped, because nobody waits for them."""


class _Lane(Generic[W]):
    """Requests for one version, oldest first."""

    __slots__ = ("rows", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[W] = deque()
        self.rows = 0

    def add(self, request: W) -> None:
        self.waiting.append(request)
        self.rows += request.rows

    def pop(self) -> W:
        request = self.waiting.popleft()
        self.rows -= request.rows
        return request

    def keep(self, kept: Iterable[W]) -> None:
        self.waiting = deque(kept)
        self.rows = sum(request.rows for request in self.waiting)


class Queue(Generic[W]):
    """The requests of one model that wait. One thread at a time may touch it."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._lanes: dict[int, _Lane[W]] = {}
        self._soonest = NEVER

    def __len__(self) -> int:
        return sum(len(lane.waiting) for lane in self._lanes.values())

    @property
    def oldest(self) -> int:
        """Arrival of the request that has waited longest, in ns; NEVER where none waits."""
        return min((lane.waiting[0].arrived for lane in self._lanes.values() if lane.waiting), default=NEVER)

    def add(self, request: W) -> None:
        """Puts a request at the end of its lane."""
        lane = self._lanes.get(request.version)
        if lane is None:
            lane = self._lanes[request.version] = _Lane()
        lane.add(request)
        if request.deadline < self._soonest:
            self._soonest = request.deadline

    def decide(self, now: int, live: int, *, flush: bool = False) -> Decision[W]:
        """What to do at `now`, if `live` is the version that the alias stands for. `flush`: wait for no company."""
        decision: Decision[W] = Decision()
        if now >= self._soonest:
            self._expire(now, decision)
        lanes = self._next(live, decision)
        if not lanes:
            return decision
        head = min((lane.waiting[0] for lane in lanes), key=_arrival)
        decision.version = head.version or live
        target = self._target(lanes, head)
        due = now if flush or target else min(self._due(lanes), self._soonest)
        if due > now:
            decision.wait_until = due
        else:
            decision.batch = self._take(lanes, target or self.policy.max_batch_size, decision)
        return decision

    def clear(self) -> list[W]:
        """Takes everything out."""
        gone = [request for lane in self._lanes.values() for request in lane.waiting]
        self._lanes.clear()
        self._soonest = NEVER
        return gone

    def _expire(self, now: int, decision: Decision[W]) -> None:
        soonest = NEVER
        for lane in self._lanes.values():
            kept = []
            for request in lane.waiting:
                if request.cancelled:
                    decision.cancelled.append(request)
                elif request.deadline <= now:
                    decision.expired.append(request)
                else:
                    kept.append(request)
                    soonest = min(soonest, request.deadline)
            lane.keep(kept)
        self._soonest = soonest

    def _next(self, live: int, decision: Decision[W]) -> list[_Lane[W]]:
        """The lanes of the version whose oldest request has waited longest; drops empty lanes and cancelled heads."""
        for version, lane in list(self._lanes.items()):
            while lane.waiting and lane.waiting[0].cancelled:
                decision.cancelled.append(lane.pop())
            if not lane.waiting:
                del self._lanes[version]
        if len(self._lanes) < 2:
            return list(self._lanes.values())
        first = min(self._lanes, key=lambda version: self._lanes[version].waiting[0].arrived) or live
        return [lane for version, lane in self._lanes.items() if (version or live) == first]

    def _target(self, lanes: list[_Lane[W]], head: W) -> int:
        """The size of a batch that need not wait; 0 where waiting may still fill it."""
        rows, policy = sum(lane.rows for lane in lanes), self.policy
        if not policy.max_queue_delay or rows >= policy.max_batch_size:
            return policy.max_batch_size
        # A preferred size smaller than the head alone would take nothing.
        return max((size for size in policy.preferred if head.rows <= size <= rows), default=0)

    def _due(self, lanes: list[_Lane[W]]) -> int:
        delay = self.policy.max_queue_delay
        return min(
            request.arrived + min(delay, (request.deadline - request.arrived) // 2)
            for lane in lanes
            for request in lane.waiting
        )

    def _take(self, lanes: list[_Lane[W]], most: int, decision: Decision[W]) -> list[W]:
        batch: list[W] = []
        rows = 0
        for lane in _by_arrival(lanes):
            request = lane.waiting[0]
            if request.cancelled:
                decision.cancelled.append(lane.pop())
                continue
            if batch and rows + request.rows > most:
                break
            batch.append(lane.pop())
            rows += request.rows
            if rows >= most:
                break
        return batch


def _arrival(request: Waiting) -> int:
    return request.arrived


def _by_arrival(lanes: list[_Lane[W]]) -> Iterator[_Lane[W]]:
    """The lane whose head came first, again and again; the caller takes that head each time."""
    if len(lanes) == 1:
        lane = lanes[0]
        while lane.waiting:
            yield lane
        return
    while candidates := [lane for lane in lanes if lane.waiting]:
        yield min(candidates, key=lambda lane: lane.waiting[0].arrived)
