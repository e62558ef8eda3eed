"""Refreshes: out-of-sample by construction, bit for bit repeatable, and resumable from their bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from trimtab.kernels.cpu import CpuExecutor
from trimtab.models.architectures import Network, build
from trimtab.models.tasks import Task
from trimtab.store.settings import RetrainSettings
from trimtab.trainer.encode import EncodedRows, SlabSource, task_of, training_table
from trimtab.trainer.errors import TrainingFailed
from trimtab.trainer.fit import SCORE_BATCH, ChallengerState, RefreshResult, refresh, score
from trimtab.trainer.prepare import program_for

from .tables import make_arrow, make_model, make_table

TABLE = make_table(1500, shift=2.0)
TASK = task_of(make_model())
PROGRAM = program_for(TABLE, make_model().specs(), TASK, None)
ROWS = TABLE.encode(CpuExecutor(PROGRAM))
CONFIG: dict[str, Any] = {"kind": "mlp", "seed": 1, "widths": [16], "dropout": 0.2, "embedding": 4}
SETTINGS = RetrainSettings(chunk_labels=100, steps=3, batch_size=64, half_life_rows=500, learning_rate=0.003)


def module() -> Network:
    return build(CONFIG, PROGRAM, TASK)


def run(
    state: ChallengerState, new: EncodedRows, history: EncodedRows | SlabSource, settings: RetrainSettings = SETTINGS
) -> RefreshResult:
    return refresh(state, new, history, module(), module().eval(), TASK, settings)


def same(first: ChallengerState, second: ChallengerState) -> bool:
    pairs = [(first.weights, second.weights), (first.moments, second.moments)]
    return (first.step, first.rows_trained) == (second.step, second.rows_trained) and all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs
    )


def test_equal_inputs_give_equal_bits_whatever_else_draws_or_threads() -> None:
    start = ChallengerState.start(module(), 1000)
    torch.manual_seed(1)
    first = run(start, ROWS.slice(1000, 1500), ROWS.slice(0, 1000))
    torch.manual_seed(2)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        second = run(start, ROWS.slice(1000, 1500), ROWS.slice(0, 1000))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert same(first.state, second.state)
    np.testing.assert_array_equal(first.losses_challenger, second.losses_challenger)
    assert (first.state.step, first.state.rows_trained) == (15, 1500)


def test_seeds_matter() -> None:
    start = ChallengerState.start(module())
    other = SETTINGS.model_copy(update={"seed": 1})
    new, history = ROWS.slice(1000, 1200), ROWS.slice(0, 1000)
    assert not same(run(start, new, history).state, run(start, new, history, other).state)


def test_neither_the_state_nor_the_global_generator_changes() -> None:
    start = ChallengerState.start(module())
    before = {name: tensor.clone() for name, tensor in start.weights.items()}
    random = torch.get_rng_state()
    run(start, ROWS.slice(1000, 1200), ROWS.slice(0, 1000))
    assert all(torch.equal(before[name], start.weights[name]) for name in before)
    assert torch.equal(random, torch.get_rng_state())


def test_a_chunk_is_scored_before_it_is_trained_on() -> None:
    start = ChallengerState.start(module())
    new, history = ROWS.slice(1000, 1300), ROWS.slice(0, 1000)
    labels = new.labels.copy()
    labels[200:] = 1.0 - labels[200:]
    changed = EncodedRows(new.features, new.ids, labels, new.weights, new.time_us)
    first, second = run(start, new, history), run(start, changed, history)
    # The third chunk's labels reach no prediction: they are trained on after it.
    np.testing.assert_array_equal(first.predictions_challenger, second.predictions_challenger)
    labels[:100] = 1.0 - labels[:100]
    third = run(start, changed, history)
    np.testing.assert_array_equal(first.predictions_challenger[:100], third.predictions_challenger[:100])
    assert not np.array_equal(first.predictions_challenger[100:], third.predictions_challenger[100:])


def test_live_stands_still_and_a_first_chunk_ties_with_it() -> None:
    start = ChallengerState.start(module())
    result = run(start, ROWS.slice(1000, 1500), ROWS.slice(0, 1000))
    np.testing.assert_array_equal(result.predictions_live, score(module(), TASK, ROWS.slice(1000, 1500)))
    np.testing.assert_array_equal(result.losses_challenger[:100], result.losses_live[:100])
    assert result.losses_challenger[100:].mean() < result.losses_live[100:].mean()


def test_refreshing_in_two_parts_is_refreshing_once() -> None:
    start = ChallengerState.start(module())
    whole = run(start, ROWS.slice(900, 1300), ROWS.slice(0, 900))
    half = run(start, ROWS.slice(900, 1100), ROWS.slice(0, 900))
    kept = ChallengerState.from_bytes(half.state.to_bytes())
    assert same(kept, half.state)
    rest = run(kept, ROWS.slice(1100, 1300), ROWS.slice(0, 1100))
    assert same(rest.state, whole.state)


def test_history_may_stay_raw() -> None:
    start = ChallengerState.start(module())
    raw = SlabSource(TABLE.slice(0, 1000), CpuExecutor(PROGRAM))
    new = ROWS.slice(1000, 1200)
    assert same(run(start, new, raw).state, run(start, new, ROWS.slice(0, 1000)).state)


def test_without_any_history() -> None:
    result = run(ChallengerState.start(module()), ROWS.slice(0, 150), ROWS.slice(0, 0))
    assert np.isfinite(result.losses_challenger).all()
    assert result.state.step == 6


def test_scores_do_not_depend_on_how_many_rows_are_scored() -> None:
    net = module().eval()
    whole = score(net, TASK, ROWS.slice(0, 2 * SCORE_BATCH))
    part = score(net, TASK, ROWS.slice(SCORE_BATCH, SCORE_BATCH + 40))
    np.testing.assert_array_equal(whole[SCORE_BATCH : SCORE_BATCH + 40], part)


def test_moments_travel_with_a_version() -> None:
    state = run(ChallengerState.start(module()), ROWS.slice(0, 200), ROWS.slice(0, 0)).state
    net = state.load_into(module())
    again = ChallengerState.start(net, state.rows_trained, state.moments_bytes())
    assert same(again, state)


def test_weights_of_rows_count() -> None:
    start = ChallengerState.start(module())
    new = ROWS.slice(0, 100)
    weights = np.where(new.labels > 0.5, 1.0, 0.0).astype(np.float32)
    one_sided = EncodedRows(new.features, new.ids, new.labels, weights, new.time_us)
    many = SETTINGS.model_copy(update={"steps": 60, "learning_rate": 0.02})
    trained = run(start, one_sided, ROWS.slice(0, 0), many).state
    # Rows of weight 0 teach nothing: every prediction goes to the only class that counts.
    assert score(trained.load_into(module()), TASK, new).min() > 0.8


@pytest.mark.parametrize("data", [b"", b"\x80\x04cos\nsystem\n.", save({"counts": torch.zeros(2)})])
def test_damaged_checkpoints_are_refused(data: bytes) -> None:
    with pytest.raises(TrainingFailed, match="challenger"):
        ChallengerState.from_bytes(data)


def test_incomplete_moments_and_other_architectures_are_refused() -> None:
    state = run(ChallengerState.start(module()), ROWS.slice(0, 100), ROWS.slice(0, 0)).state
    moments = dict(state.moments)
    moments.pop(next(iter(moments)))
    with pytest.raises(TrainingFailed, match="moments for"):
        ChallengerState.from_bytes(ChallengerState(state.weights, moments, 1, 1).to_bytes())
    with pytest.raises(TrainingFailed, match="another architecture"):
        state.load_into(build({"kind": "linear"}, PROGRAM, TASK))


def test_broken_weights_are_not_trained_on() -> None:
    net = module()
    with torch.no_grad():
        net.table.fill_(float("nan"))
    with pytest.raises(TrainingFailed, match="loss of step 0"):
        run(ChallengerState.start(net), ROWS.slice(0, 100), ROWS.slice(0, 0))


@pytest.mark.parametrize("kind", ["multiclass", "regression"])
@pytest.mark.parametrize("config", [CONFIG, {"kind": "linear"}])
def test_other_tasks_and_architectures_learn(kind: str, config: dict[str, Any]) -> None:
    table = make_table(1500, kind)
    task: Task = task_of(make_model(kind)).scaled_to(table.labels)
    program = program_for(table, make_model(kind).specs(), task, None)
    rows = table.encode(CpuExecutor(program))
    start = ChallengerState.start(build(config, program, task))
    settings = SETTINGS.model_copy(update={"steps": 8, "learning_rate": 0.01})
    result = refresh(start, rows, rows.slice(0, 0), build(config, program, task), None, task, settings)
    assert result.losses_challenger[1000:].mean() < 0.9 * result.losses_live[1000:].mean()


@pytest.mark.parametrize("config", [CONFIG, {"kind": "linear", "seed": 1}])
def test_a_model_without_categories_goes_on_from_its_bytes(config: dict[str, Any]) -> None:
    """Its table of embeddings is empty and takes no part in training, so the optimiser has no moments for it."""
    whole = make_model()
    model = whole.model_copy(update={"features": whole.features[:2]})
    table = training_table(make_arrow(1500), model)
    program = program_for(table, model.specs(), TASK, None)
    assert program.n_ids == 0
    rows = table.encode(CpuExecutor(program))

    def network() -> Network:
        return build(config, program, TASK)

    def onwards(state: ChallengerState, start: int, stop: int) -> ChallengerState:
        part, past = rows.slice(start, stop), rows.slice(0, start)
        return refresh(state, part, past, network(), network().eval(), TASK, SETTINGS).state

    half = onwards(ChallengerState.start(network(), 1000), 1000, 1300)
    read = ChallengerState.from_bytes(half.to_bytes())
    assert same(half, read)
    assert same(onwards(read, 1300, 1500), onwards(ChallengerState.start(network(), 1000), 1000, 1500))
