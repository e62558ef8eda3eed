"""Where refreshes run, and what becomes of one whose device fails or is not to be used any more."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
import torch
from trimtab.trainer import fit, refreshing
from trimtab.trainer.device_fit import DeviceFit
from trimtab.trainer.device_machine import Work
from trimtab.trainer.errors import TrainingFailed
from trimtab.trainer.fit import ChallengerState, RefreshResult
from trimtab.trainer.pace import PACE
from trimtab.trainer.refreshing import PAUSE_SECONDS, Refresher

from .machines import RecordingMachine
from .test_device_fit import SETTINGS, World, near

WORLD = World()


class Case:
    """A refresher whose machine is scripted."""

    def __init__(self, machine: RecordingMachine | Exception | None, device: str = "cuda") -> None:
        self.said: list[str] = []
        self.made = 0
        self.now = 1000.0
        self._machine = machine
        self.refresher = Refresher(device, self.said.append, machine=self._make, clock=lambda: self.now)

    def _make(self) -> RecordingMachine | None:
        self.made += 1
        if isinstance(self._machine, Exception):
            raise self._machine
        return self._machine

    def run(self, start: int = 1000, stop: int = 1500, state: ChallengerState | None = None) -> RefreshResult:
        def how(*given: Any) -> RefreshResult:
            return self.refresher.refresh("key", *given)

        return WORLD.refresh(how, start, stop, state)


def same(found: RefreshResult, expected: RefreshResult) -> None:
    assert all(torch.equal(found.state.weights[name], weight) for name, weight in expected.state.weights.items())
    np.testing.assert_array_equal(found.losses_challenger, expected.losses_challenger)


def expected(start: int = 1000, stop: int = 1500) -> RefreshResult:
    return WORLD.refresh(fit.refresh, start, stop)


def test_on_the_cpu_no_device_is_asked_for_and_bits_are_the_cpus() -> None:
    case = Case(RecordingMachine(), device="cpu")
    same(case.run(), expected())
    assert (case.made, case.said, case.refresher.where) == (0, [], "")


def test_on_a_device_it_runs_there() -> None:
    case = Case(RecordingMachine())
    near(case.run(), expected())
    near(case.run(1100, 1500), expected(1100, 1500))
    assert (case.made, case.said, case.refresher.where) == (1, [], "pretend")


@pytest.mark.parametrize("machine", [None, RuntimeError("CUDA driver version is insufficient\nfor this")])
def test_without_a_gpu_it_says_so_once(machine: Any) -> None:
    case = Case(machine)
    for _ in range(2):
        same(case.run(), expected())
    assert case.made == 1
    assert len(case.said) == 1
    assert "trains on the CPU" in case.said[0]


def test_without_memory_this_refresh_is_the_cpus_and_the_next_one_tries_again() -> None:
    failures = [5]

    def fails(replays: int) -> None:
        if replays in failures:
            failures.remove(replays)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    case = Case(RecordingMachine(on_replay=fails))
    same(case.run(), expected())
    assert case.said == ["no memory on the GPU; trains on the CPU: CUDA out of memory. Tried to allocate 2.00 GiB"]
    assert case.refresher.where == ""
    near(case.run(), expected())
    assert (len(case.said), case.refresher.where) == (1, "pretend")


def test_a_gpu_that_is_lost_is_not_asked_again() -> None:
    def fails(_: int) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered", 700)

    machine = RecordingMachine(on_replay=fails)
    case = Case(machine)
    same(case.run(), expected())
    same(case.run(), expected())
    assert machine.replays == 0
    assert len(case.said) == 1
    assert case.said[0].startswith("the GPU is lost")


def test_where_the_budget_cannot_be_met_it_goes_on_on_the_cpu_and_comes_back_later() -> None:
    def tells(replays: int) -> None:
        if replays == 4:
            PACE.tell(PACE.number + 1, 0.05, 1.0, cannot_be_met=True)

    case = Case(RecordingMachine(on_replay=tells))
    found = case.run()
    near(found, expected())
    assert len(found.time_us) == 500
    assert case.said == ["serving bears no trainer on its GPU now; trains on the CPU for 10 minutes"]
    case.now += PAUSE_SECONDS - 1
    same(case.run(), expected())
    assert case.refresher.where == ""
    case.now += 2
    near(case.run(), expected())
    assert (case.refresher.where, len(case.said)) == ("pretend", 1)


@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize("memory", [True, False])
def test_nothing_is_left_on_a_device_when_the_cpu_goes_on(
    monkeypatch: pytest.MonkeyPatch, memory: bool, eager: bool
) -> None:
    made: list[weakref.ref[DeviceFit]] = []
    left: list[bool] = []

    class Watched(DeviceFit):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            made.append(weakref.ref(self))

    class Machine(RecordingMachine):
        def capture(self, work: Work, generator: torch.Generator | None = None) -> Work:
            if eager:
                raise RuntimeError("operation not permitted when stream is capturing")
            return super().capture(work, generator)

        def wait(self) -> None:
            super().wait()
            if self.waits != 6:
                return
            if memory:
                raise torch.OutOfMemoryError("CUDA out of memory")
            PACE.tell(PACE.number + 1, 0.05, 1.0, cannot_be_met=True)

    monkeypatch.setattr(refreshing, "DeviceFit", Watched)
    monkeypatch.setattr(refreshing, "let_go", lambda: left.append(made[-1]() is not None))
    case = Case(Machine())
    near(case.run(), expected())
    assert left == [False]


def test_what_is_wrong_with_the_rows_is_no_fault_of_the_device() -> None:
    case = Case(RecordingMachine())
    start = ChallengerState.start(WORLD.module(), 1000)
    spoiled = {name: torch.full_like(weight, float("nan")) for name, weight in start.weights.items()}
    with pytest.raises(TrainingFailed, match="loss of step"):
        case.run(state=ChallengerState(spoiled, {}, 0, 1000))
    assert case.said == []


def test_other_settings_are_another_fit() -> None:
    machine = RecordingMachine()
    case = Case(machine)
    case.run(1000, 1100)
    before = machine.graphs
    given = SETTINGS.model_copy(update={"learning_rate": 0.01})
    found = WORLD.refresh(lambda *args: case.refresher.refresh("key", *args), 1000, 1100, given=given)
    near(found, WORLD.refresh(fit.refresh, 1000, 1100, given=given))
    assert machine.graphs == 2 * before
