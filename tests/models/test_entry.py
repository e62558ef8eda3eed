"""Networks of the user's own for models of columns: built, trained and refreshed as the built-in ones are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from trimtab.kernels.cpu import CpuExecutor
from trimtab.kernels.slabs import slab_from_arrow
from trimtab.models.architectures import Own, build
from trimtab.models.code import allow
from trimtab.models.errors import CodeError
from trimtab.models.tasks import Task

from .programs import make_program, make_rows

PROGRAM = make_program()
TASK = Task("multiclass", ("a", "b", "c"))
NET = """
from torch import nn
import torch

class Net(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(size, 4) for size in shape.categories)
        inputs = shape.features + 4 * len(shape.categories)
        self.layers = nn.Sequential(
            nn.Linear(inputs, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, shape.outputs)
        )

    def forward(self, features, ids):
        parts = [table(ids[:, i]) for i, table in enumerate(self.tables)]
        return self.layers(torch.cat([features, *parts], 1))

class Model:
    def build(self, shape):
        return Net(shape)

class Head(Model):
    def parameters_to_tune(self, module):
        return module.layers[-1].parameters()

class Losing(Model):
    def loss(self, logits, labels): ...

class Narrow(nn.Module):
    def forward(self, features, ids):
        return features[:, :2]
"""


@pytest.fixture(autouse=True)
def _entries(tmp_path: Path) -> None:
    (tmp_path / "own_columns.py").write_text(NET)
    allow(tmp_path, [f"own_columns:{name}" for name in ("Model", "Head", "Losing", "Narrow", "Absent")])


def network(name: str = "Model", seed: int = 0) -> Own:
    made = build({"kind": "entry", "entry": f"own_columns:{name}", "seed": seed}, PROGRAM, TASK)
    assert isinstance(made, Own)
    return made


def inputs(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    features, ids = CpuExecutor(PROGRAM).run(slab_from_arrow(make_rows(rows), PROGRAM.schema))
    return torch.from_numpy(features), torch.from_numpy(ids)


def test_its_logits_have_the_tasks_width() -> None:
    for rows in (1, 7):
        assert network().eval()(*inputs(rows)).shape == (rows, 3)


def test_initial_weights_follow_from_the_seed_alone() -> None:
    torch.manual_seed(5)
    first = network()
    state = torch.get_rng_state()
    second, third = network(), network(seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(first.net.layers[0].weight, third.net.layers[0].weight)  # type: ignore[index, union-attr]


def test_its_dropout_draws_from_the_training_loops_generator() -> None:
    module, given = network().train(), inputs(9)
    generator = torch.Generator().manual_seed(3)
    module.use_generator(generator)
    first = module(*given)
    torch.manual_seed(99)
    again = module(*given)
    generator.manual_seed(4)
    other = module(*given)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_only_what_is_to_be_tuned_has_gradients() -> None:
    tuned = [name for name, parameter in network("Head").named_parameters() if parameter.requires_grad]
    assert tuned == ["net.layers.4.weight", "net.layers.4.bias"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Losing", "loss: not used for a model of columns"),
        ("Absent", "has no 'Absent'"),
        ("Unnamed", r"entry 'own_columns:Unnamed' is not named in trimtab\.toml"),
    ],
)
def test_entries_that_cannot_be_built(name: str, expected: str) -> None:
    with pytest.raises(CodeError, match=expected):
        network(name)


def test_logits_of_another_width_are_named() -> None:
    with pytest.raises(CodeError, match=r"expected logits \[5, 3\], the network gives \[5, 2\]"):
        network("Narrow")(*inputs(5))


def test_predictions_are_finite_in_a_batch_of_one() -> None:
    assert np.isfinite(TASK.predict(network().eval()(*inputs(1))).detach().numpy()).all()
