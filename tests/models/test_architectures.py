"""Shapes, deterministic starts that leave torch's global generator alone, and configurations that mean nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from trimtab.kernels.cpu import CpuExecutor
from trimtab.kernels.slabs import slab_from_arrow
from trimtab.models.architectures import build
from trimtab.models.errors import ArchitectureError
from trimtab.models.tasks import Task

from .programs import make_program, make_rows

PROGRAM = make_program()
TASKS = (Task("binary", ("n", "y")), Task("multiclass", ("a", "b", "c")), Task("regression"))
CONFIGS: tuple[dict[str, Any], ...] = (
    {"kind": "linear"},
    {"kind": "mlp", "seed": 3, "widths": [16, 8], "dropout": 0.2, "embedding": 4},
    {"kind": "mlp", "widths": []},
)


def inputs(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    features, ids = CpuExecutor(PROGRAM).run(slab_from_arrow(make_rows(rows), PROGRAM.schema))
    return torch.from_numpy(features), torch.from_numpy(ids)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("rows", [1, 7])
def test_logits_have_the_tasks_width(config: dict[str, Any], task: Task, rows: int) -> None:
    module = build(config, PROGRAM, task).eval()
    assert module(*inputs(rows)).shape == (rows, task.width)
    assert module.size() == sum(4 * parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("config", CONFIGS)
def test_the_serving_pass_gives_the_same_bits(config: dict[str, Any]) -> None:
    module = build(config, PROGRAM, TASKS[1]).eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
        for rows in (1, 7, 64):
            assert torch.equal(module.forward_of()(*inputs(rows)), module(*inputs(rows)))


@pytest.mark.parametrize("config", CONFIGS)
def test_equal_configurations_start_equal_and_leave_the_global_generator_alone(config: dict[str, Any]) -> None:
    before = torch.get_rng_state()
    first, second = (build(config, PROGRAM, TASKS[0]).state_dict() for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_seeds_differ() -> None:
    first, second = (build({**CONFIGS[1], "seed": seed}, PROGRAM, TASKS[0]) for seed in (0, 1))
    assert not torch.equal(first.table, second.table)


def test_linear_is_a_weight_per_feature_and_category() -> None:
    module = build({"kind": "linear"}, PROGRAM, TASKS[0])
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.copy_(torch.arange(parameter.numel()).reshape(parameter.shape) * 0.01 * (number + 1))
    features, ids = inputs(5)
    table, weight, bias = (parameter.detach().numpy() for parameter in module.parameters())
    starts = np.cumsum([0, *PROGRAM.id_sizes[:-1]])
    linear = features.numpy() @ weight.T + bias
    expected = linear + sum(table[starts[c] + ids.numpy()[:, c]] for c in range(PROGRAM.n_ids))
    np.testing.assert_allclose(module(features, ids).detach().numpy(), expected, rtol=1e-5)


def test_dropout_needs_its_own_generator_and_repeats_with_it() -> None:
    module = build(CONFIGS[1], PROGRAM, TASKS[0])
    with pytest.raises(ArchitectureError, match="generator"):
        module(*inputs(3))
    outputs = []
    for seed in (1, 1, 2):
        module.use_generator(torch.Generator().manual_seed(seed))
        outputs.append(module(*inputs(50)))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"kind": "forest"},
        {"kind": "mlp", "widths": [0]},
        {"kind": "mlp", "widths": "64"},
        {"kind": "mlp", "widths": [1 << 20]},
        {"kind": "mlp", "widths": [8] * 17},
        {"kind": "mlp", "dropout": 1.0},
        {"kind": "mlp", "dropout": True},
        {"kind": "mlp", "embedding": 2.5},
        {"kind": "linear", "seed": -1},
    ],
)
def test_meaningless_configurations(config: dict[str, Any]) -> None:
    with pytest.raises(ArchitectureError, match="architecture"):
        build(config, PROGRAM, TASKS[0])
