"""The governor alone: what it may never do in any history, and where it settles beside plants that it does not know."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimtab.server.governor import (
    ENOUGH,
    LATE,
    LEAST,
    PROBE_LAST,
    QUIET,
    GovernorState,
    Tail,
    Window,
    decide_duty,
)

BUDGET = 0.1
TAILS = st.dictionaries(
    st.sampled_from(["a", "b"]),
    st.builds(
        Tail,
        st.one_of(st.integers(0, 3), st.integers(ENOUGH - 1, ENOUGH + 1), st.integers(0, 10**9)),
        st.one_of(st.floats(1e-7, 100.0), st.sampled_from([0.0, 1e-3, 1.1e-3])),
    ),
    max_size=2,
)
HISTORIES = st.lists(st.tuples(TAILS, st.booleans()), max_size=80)


def played(history: list[tuple[dict[str, Tail], bool]]) -> list[tuple[GovernorState, Window, GovernorState]]:
    """Windows as they can come: one for which rest was decided is rested."""
    state = GovernorState()
    found = []
    for tails, idle in history:
        window = Window(tails, rested=idle or state.resting)
        after = decide_duty(state, window, BUDGET)
        found.append((state, window, after))
        state = after
    return found


def good(state: GovernorState) -> Window:
    """A window in which p99 is what it is at rest, for every model that is known."""
    tails = {name: Tail(10 * ENOUGH, baseline.p99) for name, baseline in state.baselines.items()}
    return Window(tails or {"a": Tail(10 * ENOUGH, 1e-3)}, rested=state.resting)


@given(HISTORIES)
def test_duty_is_always_nothing_or_between_the_least_and_one(history: list[tuple[dict[str, Tail], bool]]) -> None:
    for _, _, after in played(history):
        assert after.allowed == 0.0 or LEAST <= after.allowed <= 1.0
        assert LEAST <= after.duty <= 1.0
        assert all(baseline.p99 > 0.0 and math.isfinite(baseline.p99) for baseline in after.baselines.values())


@given(HISTORIES)
def test_a_broken_budget_ends_the_work_at_once_and_halves_the_duty(history: list[tuple[dict[str, Tail], bool]]) -> None:
    for before, window, after in played(history):
        known = {n: t for n, t in window.tails.items() if t.requests >= ENOUGH and t.p99 > 0 and n in before.baselines}
        ratio = max((tail.p99 / before.baselines[name].p99 for name, tail in known.items()), default=0.0)
        if not window.rested and ratio > 1.0 + BUDGET:
            assert after.allowed == 0.0
            assert after.duty == pytest.approx(max(before.duty / 2, LEAST))
        elif not window.rested:
            assert after.duty >= before.duty


@given(HISTORIES)
def test_a_window_of_rest_is_followed_by_work(history: list[tuple[dict[str, Tail], bool]]) -> None:
    for _, window, after in played(history):
        if window.rested:
            assert after.allowed >= LEAST


@given(HISTORIES)
def test_it_recovers_from_any_history(history: list[tuple[dict[str, Tail], bool]]) -> None:
    states = played(history)
    state = states[-1][2] if states else GovernorState()
    for _ in range(100):
        state = decide_duty(state, good(state), BUDGET)
    assert state.duty == 1.0
    worked = 0
    for _ in range(4 * PROBE_LAST):
        worked += not state.resting
        state = decide_duty(state, good(state), BUDGET)
    # Once all is well, rest for the baseline's sake costs little.
    assert worked >= 3.5 * PROBE_LAST


@given(HISTORIES)
def test_it_complains_only_after_a_row_of_broken_windows_at_the_least_duty(
    history: list[tuple[dict[str, Tail], bool]],
) -> None:
    broken = 0
    for before, window, after in played(history):
        if not window.rested:
            at_least = before.duty <= LEAST and after.resting and after.ratio > 1.0 + BUDGET
            broken = broken + 1 if at_least else 0
        assert after.cannot_be_met == (not window.rested and broken == LATE)
        broken = 0 if after.cannot_be_met else broken


def test_nobody_to_disturb_means_full_duty_and_few_requests_half() -> None:
    state = decide_duty(GovernorState(), Window({"a": Tail(0, 0.0)}, rested=False), BUDGET)
    assert state.allowed == 1.0
    state = GovernorState()
    for _ in range(50):
        state = decide_duty(state, Window({"a": Tail(20, 1.0)}, rested=False), BUDGET)
    assert state.allowed == QUIET


def test_a_model_that_is_new_gets_a_window_of_rest_to_be_known() -> None:
    state = decide_duty(GovernorState(), Window({"a": Tail(ENOUGH, 1e-3)}, rested=False), BUDGET)
    assert state.resting
    state = decide_duty(state, Window({"a": Tail(ENOUGH, 1e-3)}, rested=True), BUDGET)
    assert state.baselines["a"].p99 == pytest.approx(1e-3)
    assert not state.resting


def test_the_worst_model_counts() -> None:
    state = GovernorState()
    state = decide_duty(state, Window({n: Tail(ENOUGH, 1e-3) for n in "ab"}, rested=True), BUDGET)
    state = decide_duty(state, Window({"a": Tail(ENOUGH, 1e-3), "b": Tail(ENOUGH, 1.2e-3)}, rested=False), BUDGET)
    assert state.resting
    assert state.ratio == pytest.approx(1.2)


# --- closed loops

Plant = Callable[[float, int], float]
"""p99 in seconds at a duty, in a window."""


def closed_loop(plant: Plant, windows: int, noise: float, seed: int) -> list[tuple[float, float]]:
    """(duty, p99 over what it would be at rest) of each window, complaints as NaN duty."""
    rng = np.random.default_rng(seed)
    state, found = GovernorState(), []
    for now in range(windows):
        duty = state.allowed
        p99 = plant(duty, now) * math.exp(rng.normal(0.0, noise))
        state = decide_duty(state, Window({"m": Tail(5000, p99)}, rested=duty == 0.0), BUDGET)
        found.append((math.nan if state.cannot_be_met else duty, plant(duty, now) / plant(0.0, now)))
    return found


@given(st.floats(0.0, 1.8), st.floats(1e-5, 1.0), st.integers(0, 100))
def test_it_settles_within_the_budget_and_near_what_the_budget_allows(slope: float, base: float, seed: int) -> None:
    def plant(duty: float, _: int) -> float:
        return base * (1.0 + slope * duty)

    found = closed_loop(plant, 400, 0.0, seed)[100:]
    assert all(ratio <= 1.0 + BUDGET + 1e-9 for _, ratio in found)
    assert np.mean([duty for duty, _ in found]) >= 0.45 * min(BUDGET / slope if slope else 1.0, 1.0)


@given(st.floats(0.3, 1.5), st.integers(0, 100))
def test_noise_of_some_per_cent_does_not_starve_the_trainer(slope: float, seed: int) -> None:
    def plant(duty: float, _: int) -> float:
        return 1e-3 * (1.0 + slope * duty)

    found = closed_loop(plant, 2000, 0.02, seed)[200:]
    assert np.mean([ratio for _, ratio in found]) <= 1.0 + BUDGET
    assert np.mean([ratio > 1.0 + 1.5 * BUDGET for _, ratio in found]) <= 0.02
    assert np.mean([duty for duty, _ in found]) >= 0.3 * BUDGET / slope


@given(st.floats(0.2, 5.0), st.integers(0, 100))
def test_p99_that_moves_with_the_load_is_not_blamed_on_the_trainer(change: float, seed: int) -> None:
    def plant(duty: float, now: int) -> float:
        return 1e-3 * (change if now >= 100 else 1.0) * (1.0 + 0.05 * duty)

    found = closed_loop(plant, 200, 0.0, seed)
    assert found[99][0] == 1.0 or found[98][0] == 1.0
    assert max(duty for duty, _ in found[-20:]) == 1.0


def test_a_plant_that_bears_no_trainer_makes_it_complain_and_keep_to_the_least() -> None:
    found = closed_loop(lambda duty, _: 1e-3 * (2.0 if duty else 1.0), 100, 0.0, 0)
    assert any(math.isnan(duty) for duty, _ in found)
    rest = [duty for duty, _ in found[20:] if not math.isnan(duty)]
    assert set(rest) == {0.0, LEAST}
    assert 0.4 <= np.mean([duty > 0 for duty in rest]) <= 0.6


def test_a_spell_is_backed_off_from_and_left_behind() -> None:
    def plant(duty: float, now: int) -> float:
        return 1e-3 * (1.0 + (1.5 if 50 <= now < 80 else 0.01) * duty)

    found = closed_loop(plant, 160, 0.0, 0)
    assert found[49][0] > 0.9 or found[48][0] > 0.9
    assert sum(ratio > 1.0 + BUDGET for _, ratio in found[50:80]) <= 6
    assert all(ratio <= 1.0 + BUDGET for _, ratio in found[62:80])
    assert found[-1][0] > 0.9 or found[-2][0] > 0.9
