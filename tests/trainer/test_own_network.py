"""A user's own network through the trainer: searched, fitted, stored, refreshed, and resumed from its checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
from trimtab.models.architectures import build
from trimtab.models.code import allow
from trimtab.models.version import loaded
from trimtab.store.manifest import Manifest
from trimtab.store.settings import RetrainSettings
from trimtab.trainer.encode import task_of
from trimtab.trainer.errors import TrainingFailed
from trimtab.trainer.fit import ChallengerState, Trainee, refresh
from trimtab.trainer.prepare import encoded
from trimtab.trainer.search import Fitted, fit_search

from .tables import make_model, make_table

SETTINGS = RetrainSettings(search_trials=2)
NET = """
import torch
from torch import nn

class Model:
    def build(self, shape):
        return Net(shape)

class Net(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(size, 4) for size in shape.categories)
        inputs = shape.features + 4 * len(shape.categories)
        self.layers = nn.Sequential(nn.BatchNorm1d(inputs), nn.Linear(inputs, 32), nn.ReLU(), nn.Dropout(0.1),
                                    nn.Linear(32, shape.outputs))

    def forward(self, features, ids):
        parts = [table(ids[:, i]) for i, table in enumerate(self.tables)]
        return self.layers(torch.cat([features, *parts], 1))
"""


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_trained.py").write_text(NET)
    allow(folder, ["own_trained:Model"])
    model = make_model("binary")
    return fit_search(
        make_table(1500), model.specs(), task_of(model), SETTINGS, architecture="own_trained:Model", holdout=0.15
    )


def test_a_search_of_its_recipe_beats_both_baselines(fitted: Fitted) -> None:
    for baseline in ("no_change", "majority"):
        assert fitted.metrics["log_loss"] < fitted.metrics[f"{baseline}_log_loss"] - 0.05
    assert fitted.config["kind"] == "entry"
    assert fitted.config["entry"] == "own_trained:Model"


def test_what_is_found_serves(fitted: Fitted) -> None:
    manifest = Manifest(version=1, architecture=fitted.architecture, program_hash=fitted.program.hash)
    assert loaded(manifest, fitted.files()).bytes > 0


def test_a_refresh_in_two_parts_is_the_refresh_in_one(fitted: Fitted) -> None:
    rows = encoded(make_table(1500), fitted.program)
    past, new = rows.slice(0, 1000), rows.slice(1000, 1500)
    start = ChallengerState.start(fitted.module)

    def run(state: ChallengerState, first: int, last: int) -> ChallengerState:
        scratch = build(fitted.config, fitted.program, fitted.task)
        history = rows.slice(0, 1000 + first) if first else past
        return refresh(state, new.slice(first, last), history, scratch, None, fitted.task, SETTINGS).state

    whole = run(start, 0, 500)
    parts = run(ChallengerState.from_bytes(run(start, 0, 250).to_bytes()), 250, 500)
    for name, tensor in whole.weights.items():
        assert np.array_equal(tensor.numpy(), parts.weights[name].numpy()), name
    assert any("running_mean" in name for name in whole.weights)


def test_a_checkpoint_that_lost_moments_is_refused(fitted: Fitted) -> None:
    scratch = build(fitted.config, fitted.program, fitted.task)
    trainee = Trainee(scratch, fitted.task, learning_rate=1e-3, weight_decay=0.0, seed=0)
    trainee.step(encoded(make_table(100), fitted.program))
    state = trainee.state(100)
    lost = {name: tensor for name, tensor in state.moments.items() if not name.endswith("layers.1.weight")}
    with pytest.raises(TrainingFailed, match=r"no moments for 'net\.layers\.1\.weight'"):
        trainee.load(ChallengerState(state.weights, lost, state.step, 100))
    half = {name: tensor for name, tensor in state.moments.items() if name != "exp_avg.net.layers.1.weight"}
    data = ChallengerState(state.weights, half, state.step, 100).to_bytes()
    with pytest.raises(TrainingFailed, match="has moments for"):
        ChallengerState.from_bytes(data)
