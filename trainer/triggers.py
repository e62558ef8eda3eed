"""When to retrain. Pure: what has happened since the last retraining, and the data time, in; a decision, or none, out.

Asked in order: by hand, schedule, drift, realised quality, label count; the first that applies gives the trigger its
name. `min_interval` holds back all but the first. A schedule asks for a search of a new recipe, everything else for a
refresh. Times are data time (µs UTC), so that a replay retrains when production would have; cron expressions are read
in UTC.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from croniter import croniter
from trimtab.store.settings import RetrainSettings

__all__ = ["Recipe", "TriggerDecision", "TriggerState", "decide_trigger", "next_scheduled", "scheduled_times"]

Recipe = Literal["refresh", "search"]
Trigger = Literal["hand", "schedule", "drift", "quality", "labels"]

# Realised quality on fewer rows than this is noise.
MIN_QUALITY_ROWS = 200


@dataclass(frozen=True)
class TriggerState:
    """What counts towards the next retraining."""

    labels: int = 0
    """Rows that matured since the last retraining began."""
    started_us: int | None = None
    """Data time from which the schedule counts: that of the first row seen."""
    retrained_us: int | None = None
    """Data time of the last retraining's start; none yet: None."""
    searched_us: int | None = None
    """Data time up to which the schedule has been answered."""
    alarms: Sequence[str] = ()
    """Features whose drift alarmed since the last retraining, as the drift windows name them."""
    quality_loss: float = math.nan
    """Mean realised loss of the live version on the newest mature rows."""
    quality_rows: int = 0
    """Rows behind `quality_loss`."""
    expected_loss: float = math.nan
    """Mean loss of the live version when it went live, out of sample."""
    requested: Recipe | None = None
    """What a person asked for."""


@dataclass(frozen=True)
class TriggerDecision:
    """Retrain, with this recipe, for this reason."""

    recipe: Recipe
    trigger: Trigger
    reason: str


def decide_trigger(state: TriggerState, settings: RetrainSettings, now_us: int) -> TriggerDecision | None:
    """Whether to retrain at data time `now_us`, and why; None: not now."""
    if state.requested is not None:
        return TriggerDecision(state.requested, "hand", f"a {state.requested} was asked for by hand")
    if not settings.enabled or _too_soon(state, settings, now_us):
        return None
    return (
        _schedule(state, settings, now_us)
        or _drift(state, settings)
        or _quality(state, settings)
        or _labels(state, settings)
    )


def next_scheduled(schedule: str, after_us: int) -> int:
    """The schedule's first time after `after_us`, µs."""
    start = datetime.datetime.fromtimestamp(after_us // 1_000_000, datetime.UTC)
    found: datetime.datetime = croniter(schedule, start).get_next(datetime.datetime)
    return int(found.timestamp()) * 1_000_000


def scheduled_times(schedule: str, after_us: int, until_us: int) -> list[int]:
    """The schedule's times in (after_us, until_us], µs, ascending."""
    times: list[int] = []
    time = next_scheduled(schedule, after_us)
    while time <= until_us:
        times.append(time)
        time = next_scheduled(schedule, time)
    return times


def _too_soon(state: TriggerState, settings: RetrainSettings, now_us: int) -> bool:
    return state.retrained_us is not None and now_us - state.retrained_us < settings.min_interval


def _schedule(state: TriggerState, settings: RetrainSettings, now_us: int) -> TriggerDecision | None:
    since = state.searched_us if state.searched_us is not None else state.started_us
    if not settings.schedule or since is None:
        return None
    due = next_scheduled(settings.schedule, since)
    if due > now_us:
        return None
    when = datetime.datetime.fromtimestamp(due // 1_000_000, datetime.UTC)
    reason = f"the schedule {settings.schedule!r} was due at {when:%Y-%m-%d %H:%M} UTC"
    return TriggerDecision("search", "schedule", reason)


def _drift(state: TriggerState, settings: RetrainSettings) -> TriggerDecision | None:
    # Without a new label there is nothing to train on, whatever drifted.
    if not (settings.on_drift and state.alarms and state.labels):
        return None
    names = sorted(set(state.alarms))
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return TriggerDecision("refresh", "drift", f"drift alarmed for {shown}")


def _quality(state: TriggerState, settings: RetrainSettings) -> TriggerDecision | None:
    known = math.isfinite(state.quality_loss) and math.isfinite(state.expected_loss) and state.expected_loss > 0
    if not (settings.on_quality > 0 and known and state.labels) or state.quality_rows < MIN_QUALITY_ROWS:
        return None
    worse = state.quality_loss / state.expected_loss - 1.0
    if worse < settings.on_quality:
        return None
    reason = (
        f"the realised loss of the last {state.quality_rows} mature rows is {state.quality_loss:.4f}, {worse:.0%} "
        f"above {state.expected_loss:.4f} when the version went live (limit {settings.on_quality:.0%})"
    )
    return TriggerDecision("refresh", "quality", reason)


def _labels(state: TriggerState, settings: RetrainSettings) -> TriggerDecision | None:
    if not settings.every_labels or state.labels < settings.every_labels:
        return None
    reason = f"{state.labels} rows matured since the last retraining (limit {settings.every_labels})"
    return TriggerDecision("refresh", "labels", reason)
