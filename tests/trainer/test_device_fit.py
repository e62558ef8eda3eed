"""Refreshes by captured steps, against the CPU's: on a machine that pretends, and on a GPU where there is one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trimtab.kernels.cpu import CpuExecutor
from trimtab.models.architectures import Network, build
from trimtab.models.tasks import Task
from trimtab.store.settings import RetrainSettings
from trimtab.trainer import fit
from trimtab.trainer.device_fit import SLICE, DeviceFit
from trimtab.trainer.device_machine import CudaTrainingMachine, TrainingMachine
from trimtab.trainer.encode import EncodedRows, SlabSource, TrainingTable, task_of
from trimtab.trainer.errors import TrainingFailed
from trimtab.trainer.fit import ChallengerState, RefreshResult
from trimtab.trainer.pace import PACE
from trimtab.trainer.prepare import program_for
from trimtab.trainer.resident import PIECE, Resident

from .machines import RecordingMachine
from .tables import make_model, make_table

MACHINES = ["pretend", pytest.param("cuda", marks=pytest.mark.gpu)]
MLP: dict[str, Any] = {"kind": "mlp", "seed": 1, "widths": [16, 8], "dropout": 0.0, "embedding": 4}
LINEAR: dict[str, Any] = {"kind": "linear", "seed": 1}
SETTINGS = RetrainSettings(chunk_labels=100, steps=3, batch_size=64, half_life_rows=500, learning_rate=0.003)


class World:
    """Rows of a task, encoded, and a network's configuration."""

    def __init__(self, task: str = "binary", config: dict[str, Any] = MLP, rows: int = 1500) -> None:
        self.table: TrainingTable = make_table(rows, task, shift=2.0)
        plain = task_of(make_model(task))
        self.task: Task = plain.scaled_to(self.table.labels)
        self.program = program_for(self.table, make_model(task).specs(), plain, None)
        self.rows: EncodedRows = self.table.encode(CpuExecutor(self.program))
        self.config = config

    def module(self) -> Network:
        return build(self.config, self.program, self.task)

    def refresh(
        self, how: Any, start: int, stop: int, state: ChallengerState | None = None, given: RetrainSettings = SETTINGS
    ) -> RefreshResult:
        state = state or ChallengerState.start(self.module(), start)
        live = self.module().eval()
        history = self.rows.slice(0, start)
        result: RefreshResult = how(state, self.rows.slice(start, stop), history, self.module(), live, self.task, given)
        return result


def machine(name: str) -> TrainingMachine:
    return RecordingMachine() if name == "pretend" else CudaTrainingMachine(torch.device("cuda"))


def silent(_: str) -> None:
    pytest.fail(f"it had something to tell: {_}")


def near(found: RefreshResult, expected: RefreshResult, tolerance: float = 2e-4) -> None:
    assert (found.state.step, found.state.rows_trained) == (expected.state.step, expected.state.rows_trained)
    for a, b in ((found.state.weights, expected.state.weights), (found.state.moments, expected.state.moments)):
        assert a.keys() == b.keys()
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance)
    near_by = 5 * tolerance
    np.testing.assert_allclose(found.predictions_challenger, expected.predictions_challenger, near_by, near_by)
    np.testing.assert_allclose(found.predictions_live, expected.predictions_live, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(found.time_us, expected.time_us)
    np.testing.assert_allclose(found.losses_challenger, expected.losses_challenger, rtol=1e-2, atol=1e-2)
    assert found.training_loss == pytest.approx(expected.training_loss, rel=1e-3)


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("config", [MLP, LINEAR], ids=["mlp", "linear"])
@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_captured_steps_learn_what_eager_ones_on_the_cpu_do(name: str, task: str, config: dict[str, Any]) -> None:
    world = World(task, config)
    # 500 rows in chunks of 100, the last slice of each chunk shorter than the others.
    many = SETTINGS.model_copy(update={"steps": SLICE + 3})
    found = world.refresh(DeviceFit(machine(name), silent).refresh, 1000, 1450, given=many)
    expected = world.refresh(fit.refresh, 1000, 1450, given=many)
    # AdamW's steps are as long for gradients that are nearly nothing, and those are rounding.
    near(found, expected, 2e-4 if name == "pretend" else 5e-3)
    assert not np.array_equal(found.predictions_challenger, found.predictions_live)


def test_with_one_step_a_slice_dropout_draws_the_same_masks_too() -> None:
    world = World(config={**MLP, "dropout": 0.3})
    one = SETTINGS.model_copy(update={"steps": 1})
    near(
        world.refresh(DeviceFit(machine("pretend"), silent).refresh, 1000, 1500, given=one),
        world.refresh(fit.refresh, 1000, 1500, given=one),
    )


@pytest.mark.parametrize("name", MACHINES)
def test_dropout_is_another_in_each_step_and_the_same_again(name: str) -> None:
    world = World(config={**MLP, "dropout": 0.5})
    device = DeviceFit(machine(name), silent)
    first = world.refresh(device.refresh, 1000, 1300)
    again = world.refresh(device.refresh, 1000, 1300)
    for key, weight in first.state.weights.items():
        torch.testing.assert_close(again.state.weights[key], weight, rtol=1e-5, atol=1e-6)
    without = World(config={**MLP, "dropout": 0.0}).refresh(DeviceFit(machine(name), silent).refresh, 1000, 1300)
    assert not torch.allclose(without.state.weights["layers.0.weight"], first.state.weights["layers.0.weight"])


@pytest.mark.parametrize("name", MACHINES)
def test_two_refreshes_are_one(name: str) -> None:
    world = World(config={**MLP, "dropout": 0.2})
    device = DeviceFit(machine(name), silent)
    whole = world.refresh(device.refresh, 900, 1300)
    half = world.refresh(device.refresh, 900, 1100)
    kept = ChallengerState.from_bytes(half.state.to_bytes())
    rest = world.refresh(DeviceFit(machine(name), silent).refresh, 1100, 1300, kept)
    assert (rest.state.step, rest.state.rows_trained) == (whole.state.step, whole.state.rows_trained)
    for key, weight in whole.state.weights.items():
        torch.testing.assert_close(rest.state.weights[key], weight, rtol=1e-5, atol=1e-6)


def test_graphs_are_captured_once_and_hold_several_steps() -> None:
    world = World()
    pretended = RecordingMachine()
    device = DeviceFit(pretended, silent)
    many = SETTINGS.model_copy(update={"steps": 2 * SLICE})
    live = world.module().eval()
    state = ChallengerState.start(world.module(), 1000)
    for start in (1000, 1200):
        part, history = world.rows.slice(start, start + 200), world.rows.slice(0, start)
        state = device.refresh(state, part, history, world.module(), live, world.task, many).state
    # A slice, and the scoring of two networks; then, for each of four chunks, two slices and two scores.
    assert pretended.graphs == 3
    assert pretended.replays == 4 * (2 + 2)


def test_without_room_for_the_rows_batches_come_from_the_host() -> None:
    world = World()
    said: list[str] = []
    device = DeviceFit(RecordingMachine(room=10_000), said.append)
    history = SlabSource(world.table.slice(0, 1000), CpuExecutor(world.program))
    new, live = world.rows.slice(1000, 1300), world.module().eval()
    start = ChallengerState.start(world.module(), 1000)
    for _ in range(2):
        found = device.refresh(start, new, history, world.module(), live, world.task, SETTINGS)
    near(found, world.refresh(fit.refresh, 1000, 1300))
    assert said == ["there is no room for 1,300 rows on the GPU: their batches are made on the host"]


def test_what_cannot_be_captured_runs_eagerly_and_says_so() -> None:
    world = World()
    said: list[str] = []
    refusing = RecordingMachine(refuse=RuntimeError("operation not permitted when stream is capturing\nmore"))
    near(world.refresh(DeviceFit(refusing, said.append).refresh, 1000, 1300), world.refresh(fit.refresh, 1000, 1300))
    assert len(said) == 3
    assert (
        said[0]
        == "a step cannot be captured and runs eagerly on the GPU: operation not permitted when stream is capturing"
    )


def test_a_network_that_looks_at_its_values_is_one_of_those() -> None:
    class Looks(Network):
        def __init__(self, inner: Network) -> None:
            torch.nn.Module.__init__(self)
            self.inner, self.n_features, self.n_ids = inner, inner.n_features, inner.n_ids

        def forward(self, features: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.inner(features, ids)
            return logits if float(logits.detach().sum()) > -1e30 else -logits

    world = World()
    said: list[str] = []
    module, live = Looks(world.module()), Looks(world.module()).eval()
    new, history = world.rows.slice(1000, 1200), world.rows.slice(0, 1000)
    start = ChallengerState.start(module, 1000)
    given = (start, new, history, module, live, world.task, SETTINGS)
    near(DeviceFit(RecordingMachine(), said.append).refresh(*given), fit.refresh(*given))
    assert all("runs eagerly" in text for text in said)
    assert said


@pytest.mark.parametrize("name", MACHINES)
def test_a_loss_that_is_not_finite_ends_the_training(name: str) -> None:
    world = World("regression")
    labels = world.rows.labels.copy()
    labels[1000:1100] = np.inf
    rows = world.rows
    world.rows = EncodedRows(rows.features, rows.ids, labels, rows.weights, rows.time_us)
    with pytest.raises(TrainingFailed, match="loss of step"):
        world.refresh(DeviceFit(machine(name), silent).refresh, 1000, 1500)


def test_moments_and_weights_of_another_architecture_are_refused() -> None:
    world, other = World(), World(config={**MLP, "widths": [8]})
    state = ChallengerState.start(other.module(), 1000)
    with pytest.raises(TrainingFailed, match="another architecture"):
        world.refresh(DeviceFit(machine("pretend"), silent).refresh, 1000, 1100, state)


def test_it_ends_after_the_chunk_in_which_the_budget_cannot_be_met() -> None:
    world = World()
    state = ChallengerState.start(world.module(), 1000)
    # Scores, slice, scores, slice: in the second chunk.
    pretended = RecordingMachine(
        on_replay=lambda n: PACE.tell(PACE.number + 1, 0.05, 1.0, cannot_be_met=True) if n == 4 else None
    )
    found = world.refresh(DeviceFit(pretended, silent).refresh, 1000, 1500, state)
    assert (len(found.time_us), found.state.rows_trained, found.state.step) == (200, 1200, 6)
    near(found, world.refresh(fit.refresh, 1000, 1200, state))


# --- resident rows


@settings(max_examples=30)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_rows_stay_and_grow(steps: list[int], random: Any) -> None:
    rows = _WORLD.rows
    resident, before = Resident(RecordingMachine()), 0
    for step in steps:
        history, total = rows.slice(0, before), min(before + step, len(rows))
        if total == before:
            break
        assert resident.hold(history, rows.slice(before, total))
        # What is new may begin anywhere behind what was new before.
        before = random.randint(before, total)
        for part, of in zip(resident.rows.parts, (rows.features, rows.ids, rows.labels, rows.weights), strict=True):
            np.testing.assert_array_equal(part.numpy(), of[:total])


_WORLD = World()


def test_rows_are_uploaded_in_pieces_and_once() -> None:
    table = make_table(100)
    rows = table.encode(CpuExecutor(program_for(table, make_model().specs(), task_of(make_model()), None)))
    taken: list[int] = []

    class Endless:
        def __len__(self) -> int:
            return 2 * PIECE + 10

        def take(self, positions: Any) -> EncodedRows:
            taken.append(len(positions))
            return rows.take(np.asarray(positions) % 100)

    resident = Resident(RecordingMachine())
    assert resident.hold(Endless(), rows)
    assert taken == [PIECE, PIECE, 10]
    assert resident.hold(Endless(), rows)
    assert len(taken) == 3
    assert not Resident(RecordingMachine(room=1000)).hold(Endless(), rows)
