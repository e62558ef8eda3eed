"""How much of the time the trainer may train, so that serving hardly notices: p99 within its budget. Pure.

The trainer works in slices of some milliseconds and rests between them; its *duty* is the share of the time in which it
works. It is slowed down in time, never in threads or batch sizes: the same steps in the same order, only later, so that
what is learned does not depend on the load.

One window of serving after the other goes in, each with the p99 of the models that had enough requests in it; out comes
the duty of the next window. What p99 would be without the trainer is known from windows in which it rested: all those
in which it had nothing to do, those after a broken one, and one now and then, for the load changes. Models are held to
account one by one, the worst counts.

    within the budget           duty rises: doubled until it was once too much, then by STEP (as in TCP, RFC 5681)
    in the budget's last part   duty stays: that is the hysteresis
    beyond the budget           duty is halved, and the trainer rests for a window, which also says anew what p99 is
    LATE such windows in a row at the least duty: the budget cannot be met on this device

After a window's rest the trainer always works again: p99 that is high for another reason must not stop it for ever.

With few requests there is no p99 to speak of. Where there were none at all nobody is disturbed, and duty is 1; with
some, duty goes up to QUIET.

Turned down: a controller that is proportional to p99's excess (p99 of a window is noisy by some per cent, and what it
answers to a duty is anything but linear); the trainer's own view of the machine (load, run queues), which says nothing
about answers; fewer threads or smaller batches for the trainer (sums would be taken in another order).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from trimtab.store.priority import LEAST_DUTY

__all__ = ["ENOUGH", "FIRST", "LATE", "LEAST", "QUIET", "Baseline", "GovernorState", "Tail", "Window", "decide_duty"]

LEAST, FIRST, STEP, QUIET = LEAST_DUTY, 0.1, 0.025, 0.5
"""Duties: the lowest, the one to begin with, what a good window adds, the highest where few requests say little."""
ENOUGH = 500
"""Requests of a model in a window that have a p99."""
HOLD = 0.6
"""Share of the budget from which on duty does not rise."""
LATE = 8
PROBE_FIRST, PROBE_LAST = 4, 16
"""Windows of work between two rests for the sake of the baseline: doubled while all goes well."""


@dataclass(frozen=True)
class Tail:
    """A model's latencies in a window."""

    requests: int
    p99: float
    """Seconds; read only where there are ENOUGH requests."""


@dataclass(frozen=True)
class Window:
    """What was served between two looks, while the duty was the state's all along."""

    tails: Mapping[str, Tail]
    """By model."""
    rested: bool
    """Whether the trainer did no step in it."""


@dataclass(frozen=True)
class Baseline:
    """p99 of a model while the trainer rests."""

    p99: float
    """Seconds: the geometric mean over windows, newer ones and fuller ones counting more."""
    weight: float
    """Requests behind it, those of each window before the newest halved once more."""

    def with_(self, tail: Tail) -> Baseline:
        """After one more window of rest."""
        old, new = self.weight / 2, float(tail.requests)
        return Baseline(math.exp((old * math.log(self.p99) + new * math.log(tail.p99)) / (old + new)), old + new)


@dataclass(frozen=True)
class GovernorState:
    """All that the policy remembers. `allowed` is its decision."""

    duty: float = FIRST
    """Share of the time for work, where it is not resting."""
    resting: bool = False
    """Whether the next window is one of rest."""
    threshold: float = 1.0
    """Duty up to which it is doubled."""
    baselines: Mapping[str, Baseline] = field(default_factory=dict)
    worked: int = 0
    """Windows of work since the last rest."""
    probe: int = PROBE_FIRST
    """After how many of them to rest again."""
    late: int = 0
    """Windows in a row that were beyond the budget at the least duty."""
    cannot_be_met: bool = False
    """Set for one decision; the count begins anew."""
    ratio: float = math.nan
    """Of the newest window of work: p99 over the baseline, of the worst model; NaN where nothing could be told."""

    @property
    def allowed(self) -> float:
        """Duty of the next window: 0, or LEAST to 1."""
        return 0.0 if self.resting else self.duty


def decide_duty(state: GovernorState, window: Window, budget: float) -> GovernorState:
    """What to allow after this window. `budget`: the share by which p99 may rise, > 0."""
    known = {name: tail for name, tail in window.tails.items() if tail.requests >= ENOUGH and tail.p99 > 0.0}
    state = replace(state, cannot_be_met=False)
    if window.rested:
        return _rested(state, known)
    ratios = [tail.p99 / state.baselines[name].p99 for name, tail in known.items() if name in state.baselines]
    state = replace(state, worked=state.worked + 1, ratio=max(ratios, default=math.nan))
    if not known:
        return _quiet(state, sum(tail.requests for tail in window.tails.values()))
    if ratios and state.ratio > 1.0 + budget:
        return _broken(state)
    if ratios and state.ratio <= 1.0 + HOLD * budget:
        state = replace(state, duty=_raised(state), late=0)
    elif ratios:
        state = replace(state, threshold=state.duty, late=0)
    if len(ratios) < len(known) or state.worked >= state.probe:
        state = replace(state, resting=True, probe=min(state.probe * 2, PROBE_LAST))
    return state


def _rested(state: GovernorState, known: Mapping[str, Tail]) -> GovernorState:
    baselines = dict(state.baselines)
    for name, tail in known.items():
        before = baselines.get(name)
        baselines[name] = Baseline(tail.p99, float(tail.requests)) if before is None else before.with_(tail)
    return replace(state, baselines=baselines, resting=False, worked=0)


def _broken(state: GovernorState) -> GovernorState:
    late = state.late + 1 if state.duty <= LEAST else 0
    halved = max(state.duty / 2, LEAST)
    state = replace(state, duty=halved, threshold=halved, resting=True, probe=PROBE_FIRST, late=late)
    return replace(state, late=0, cannot_be_met=True) if late >= LATE else state


def _quiet(state: GovernorState, requests: int) -> GovernorState:
    if not requests:
        return replace(state, duty=1.0, threshold=1.0, late=0)
    # What was learned with more traffic does not hold for less, nor does it hold the trainer back.
    return replace(state, duty=state.duty if state.duty > QUIET else min(_raised(state), QUIET), late=0)


def _raised(state: GovernorState) -> float:
    higher = min(state.duty * 2, state.threshold) if state.duty < state.threshold else state.duty + STEP
    return min(higher, 1.0)
