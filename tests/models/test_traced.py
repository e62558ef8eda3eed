"""Traces of passes: equal for what computes the same on other weights, and for nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from trimtab.models import traced as room
from trimtab.models.flat import Flat
from trimtab.models.traced import TraceError, traced

Pass = Callable[[nn.Sequential, Tensor], Any]
ONES = torch.ones(2)


def trace(run: Pass, seed: int = 0, rows: int = 2) -> str:
    generator = torch.Generator().manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 2)).eval()
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    weights = Flat.adopt(module)
    x = torch.randn(rows, 3, generator=generator)
    return traced(lambda: run(module, x), weights, [x])


def dropped(x: Tensor) -> Tensor:
    return nn.functional.dropout(x, 0.5, training=True)


PASSES: dict[str, Pass] = {
    "plain": lambda m, x: m(x),
    "another constant number": lambda m, x: m(x).clamp(max=2.0),
    "another number yet": lambda m, x: m(x).clamp(max=3.0),
    "a constant tensor": lambda m, x: m(x) + ONES,
    "one of other values": lambda m, x: m(x) + 2 * ONES.numpy().sum(),
    "a tensor that is made": lambda m, x: m(x) + torch.ones(2),
    "the other way round": lambda m, x: torch.ones(2) + m(x),
    "another dtype": lambda m, x: m(x).double(),
    "another shape": lambda m, x: m(x)[:, :1],
    "another output": lambda m, x: (m(x), x),
    "by name": lambda m, x: {"y": m(x)},
    "another weight": lambda m, x: m(x) + m[3].weight[0, 0],
    "the weight beside it": lambda m, x: m(x) + m[3].weight[0, 1],
    "an input that is changed": lambda m, x: m(x.add_(1)),
    "random numbers": lambda m, x: m(dropped(x)),
    "weights put together": lambda m, x: x @ (m[0].weight.T @ m[3].weight.T),
}


def test_passes_that_differ_have_other_traces() -> None:
    assert len({trace(run) for run in PASSES.values()}) == len(PASSES)


@given(st.sampled_from(list(PASSES)), st.integers(1, 5), st.integers(1, 5))
def test_weights_and_rows_are_no_part_of_them(name: str, one: int, other: int) -> None:
    assert trace(PASSES[name], one) == trace(PASSES[name], other)


def test_values_of_what_is_no_weight_are() -> None:
    constants = [torch.full((2,), value) for value in (1.0, 2.0, 1.0)]
    found = [trace(lambda m, x, c=c: m(x) + c) for c in constants]  # type: ignore[misc]
    assert found[0] == found[2] != found[1]


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (lambda m, x: m(x) * float(x.sum()), "looks at values on the host"),
        (lambda m, x: m(x) if x.sum() > 0 else x, "looks at values on the host"),
        (lambda m, x: (m[0].weight.mul_(2), m(x)), "changes what it keeps"),
        (lambda m, x: m(x) + ONES.add_(0), "changes what it keeps"),
        (lambda m, x: torch.add(m(x), 1, out=ONES.expand(2, 2).clone()) + ONES.mul_(1), "changes what it keeps"),
    ],
)
def test_passes_that_cannot_be_compared_say_why(run: Pass, reason: str) -> None:
    with pytest.raises(TraceError, match=reason):
        trace(run)


def test_large_constants_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "CONSTANT_BYTES", 7)
    with pytest.raises(TraceError, match="a constant of 8 bytes that is none of its weights"):
        trace(lambda m, x: m(x) + ONES)
