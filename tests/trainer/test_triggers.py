"""Every policy at its edge, their order, and schedules in data time."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from trimtab.store.settings import RetrainSettings
from trimtab.trainer.triggers import TriggerState, decide_trigger, next_scheduled, scheduled_times

DAY_US = 86_400_000_000


def us(text: str) -> int:
    return int(datetime.datetime.fromisoformat(text).replace(tzinfo=datetime.UTC).timestamp()) * 1_000_000


NOW = us("2013-03-05 12:00")


def settings(**changes: Any) -> RetrainSettings:
    return RetrainSettings(every_labels=0).model_copy(update=changes)


def trigger(state: TriggerState, given: RetrainSettings, now_us: int = NOW) -> str | None:
    decision = decide_trigger(state, given, now_us)
    return None if decision is None else decision.trigger


@pytest.mark.parametrize(("labels", "due"), [(1999, None), (2000, "labels"), (10_000, "labels")])
def test_label_count(labels: int, due: str | None) -> None:
    assert trigger(TriggerState(labels=labels), settings(every_labels=2000)) == due
    assert trigger(TriggerState(labels=labels), settings()) is None


def test_minimum_interval_holds_back_all_but_a_person() -> None:
    given = settings(every_labels=10, min_interval=DAY_US)
    state = TriggerState(labels=10, retrained_us=NOW - DAY_US + 1)
    assert trigger(state, given) is None
    assert trigger(state, given, NOW + 1) == "labels"
    asked = TriggerState(labels=0, retrained_us=NOW, requested="search")
    decision = decide_trigger(asked, given, NOW)
    assert decision is not None
    assert (decision.trigger, decision.recipe) == ("hand", "search")


def test_disabled_retrains_by_hand_only() -> None:
    given = settings(every_labels=1, enabled=False)
    assert trigger(TriggerState(labels=5), given) is None
    assert trigger(TriggerState(labels=5, requested="refresh"), given) == "hand"


def test_drift_needs_an_alarm_the_setting_and_something_to_learn() -> None:
    alarmed = TriggerState(labels=1, alarms=["b", "a", "b"])
    decision = decide_trigger(alarmed, settings(on_drift=True), NOW)
    assert decision is not None
    assert decision.reason == "drift alarmed for a, b"
    assert trigger(alarmed, settings()) is None
    assert trigger(TriggerState(labels=0, alarms=["a"]), settings(on_drift=True)) is None
    assert trigger(TriggerState(labels=1), settings(on_drift=True)) is None


@pytest.mark.parametrize(
    ("loss", "expected", "rows", "due"),
    [
        (0.55, 0.50, 1000, "quality"),
        (0.5499, 0.50, 1000, None),
        (0.60, 0.50, 199, None),
        (float("nan"), 0.50, 1000, None),
        (0.60, float("nan"), 1000, None),
        (0.60, 0.0, 1000, None),
    ],
)
def test_realised_quality(loss: float, expected: float, rows: int, due: str | None) -> None:
    state = TriggerState(labels=1, quality_loss=loss, expected_loss=expected, quality_rows=rows)
    assert trigger(state, settings(on_quality=0.1)) == due
    assert trigger(state, settings()) is None


def test_schedule_is_answered_once_for_each_time() -> None:
    given = settings(schedule="0 3 1 * *")
    started = us("2013-02-10 00:00")
    assert trigger(TriggerState(started_us=started), given, us("2013-03-01 02:59")) is None
    decision = decide_trigger(TriggerState(started_us=started), given, us("2013-03-01 03:00"))
    assert decision is not None
    assert (decision.recipe, decision.trigger) == ("search", "schedule")
    assert "2013-03-01 03:00 UTC" in decision.reason
    answered = TriggerState(started_us=started, searched_us=us("2013-03-01 03:00"))
    assert trigger(answered, given, us("2013-03-31 00:00")) is None
    assert trigger(answered, given, us("2013-04-01 03:00")) == "schedule"
    assert trigger(TriggerState(), given) is None


def test_order_of_policies() -> None:
    given = settings(every_labels=1, on_drift=True, on_quality=0.1, schedule="0 0 * * *")
    everything = TriggerState(5, us("2013-01-01"), None, None, ["a"], 0.9, 1000, 0.5, "refresh")
    expected = ["hand", "schedule", "drift", "quality", "labels"]
    removals: list[dict[str, Any]] = [
        {"requested": None},
        {"started_us": None},
        {"alarms": ()},
        {"quality_rows": 0},
        {"labels": 0},
    ]
    state: dict[str, Any] = {name: getattr(everything, name) for name in everything.__dataclass_fields__}
    for name, removal in zip(expected, removals, strict=True):
        assert trigger(TriggerState(**state), given) == name
        state |= removal
    assert trigger(TriggerState(**state), given) is None


def test_scheduled_times_are_after_the_first_and_up_to_the_last() -> None:
    times = scheduled_times("0 0 1 * *", us("2013-02-01"), us("2013-05-01"))
    assert times == [us("2013-03-01"), us("2013-04-01"), us("2013-05-01")]
    assert next_scheduled("0 0 1 * *", us("2013-02-01") + 1) == us("2013-03-01")
    assert scheduled_times("0 0 1 * *", us("2013-02-01"), us("2013-02-20")) == []
