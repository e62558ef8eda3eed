"""How long the trainer rests: by a clock of the test's own, and once with threads."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimtab.store.priority import LEAST_DUTY
from trimtab.trainer.pace import SLICE_SECONDS, Pace, rest_seconds


class Clocked(Pace):
    """Sleeping moves the clock; something may happen while it sleeps."""

    def __init__(self) -> None:
        self.now = 100.0
        super().__init__(clock=lambda: self.now)
        self.happenings: list[tuple[float, object]] = []

    def _wait(self, seconds: float) -> None:
        assert seconds > 0.0
        if self.happenings and self.happenings[0][0] <= self.now + seconds:
            at, what = self.happenings.pop(0)
            self.now = max(self.now, at)
            what()  # type: ignore[operator]
        else:
            self.now += seconds

    def worked(self, seconds: float) -> float:
        """Works so long; how long the rest after it was."""
        self.now += seconds
        before = self.now
        self.rest()
        return self.now - before


def governed() -> Clocked:
    pace = Clocked()
    pace.govern()
    return pace


def test_nobody_governs() -> None:
    pace = Clocked()
    with pace.trains():
        assert pace.worked(10.0) == 0.0


def test_outside_of_training_there_is_no_rest() -> None:
    pace = governed()
    assert pace.worked(10.0) == 0.0


@given(st.floats(LEAST_DUTY, 1.0), st.lists(st.floats(1e-4, 2.0), min_size=1, max_size=20))
def test_the_duty_is_kept_whatever_the_steps_take(duty: float, steps: list[float]) -> None:
    pace = governed()
    with pace.trains():
        pace.tell(1, duty, 1e9)
        rested = sum(pace.worked(seconds) for seconds in steps)
        worked = sum(steps)
        # What is left is less than a slice's worth.
        assert rested <= rest_seconds(worked, duty) * (1 + 1e-9) + 1e-6
        assert rested >= rest_seconds(max(worked - SLICE_SECONDS, 0.0), duty) * (1 - 1e-9) - 1e-6


def test_until_told_and_after_its_lease_it_keeps_the_least_duty() -> None:
    pace = governed()
    with pace.trains():
        assert pace.worked(0.1) == pytest.approx(rest_seconds(0.1, LEAST_DUTY))
        pace.tell(1, 1.0, 5.0)
        assert pace.worked(0.1) == 0.0
        assert pace.worked(5.0) == pytest.approx(rest_seconds(5.0, LEAST_DUTY))


def test_rest_ends_with_the_lease_if_the_server_goes_silent() -> None:
    pace = governed()
    with pace.trains():
        pace.tell(1, 0.0, 3.0)
        # Even after the shortest work: all of the lease, then what the least duty asks for, if that is longer.
        assert pace.worked(0.001) == pytest.approx(2.999, abs=0.02)


def test_a_faster_pace_ends_a_rest_and_an_older_one_is_ignored() -> None:
    pace = governed()
    with pace.trains():
        pace.tell(5, 0.0, 100.0)
        pace.happenings = [
            (pace.now + 1.0, lambda: pace.tell(4, 1.0, 100.0)),
            (pace.now + 2.0, lambda: pace.tell(6, 0.5, 100.0)),
        ]
        assert pace.worked(0.2) == pytest.approx(1.8)
        assert pace.number == 6


def test_release_ends_a_rest_for_good() -> None:
    pace = governed()
    with pace.trains():
        pace.tell(1, 0.0, 100.0)
        pace.happenings = [(pace.now + 1.5, pace.release)]
        assert pace.worked(0.5) == pytest.approx(1.0)
        assert pace.worked(10.0) == 0.0


def test_it_says_when_training_begins_and_ends() -> None:
    pace = governed()
    said: list[bool] = []
    pace.on_training = lambda: said.append(pace.training)
    with pytest.raises(ValueError, match="x"), pace.trains():
        raise ValueError("x")
    assert said == [True, False]


def test_that_the_budget_cannot_be_met_is_asked_once() -> None:
    pace = governed()
    pace.tell(1, 0.05, 1.0, cannot_be_met=True)
    pace.tell(2, 0.05, 1.0)
    assert pace.take_cannot_be_met()
    assert not pace.take_cannot_be_met()


def test_another_thread_wakes_a_real_rest() -> None:
    pace = Pace()
    pace.govern()
    pace.tell(1, 0.0, 3600.0)
    resting = threading.Event()

    def trains() -> None:
        with pace.trains():
            resting.set()
            pace.rest()

    thread = threading.Thread(target=trains)
    thread.start()
    resting.wait()
    pace.tell(2, 1.0, 3600.0)
    thread.join(60)
    assert not thread.is_alive()
