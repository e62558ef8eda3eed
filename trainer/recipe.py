"""A recipe: architecture and hyperparameters, and the training plan that it stands for.

The plan is EPOCHS equal segments on one learning-rate curve. A trial goes through it until it stops getting better;
later fits of the same recipe walk the same plan and stop at the segment that was best. On many rows a plan is cut to
a given number of steps, so that a year of data costs about what a month does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from trimtab.kernels.program import ColumnProgram
from trimtab.models.architectures import Network, build
from trimtab.models.tasks import Task
from trimtab.trainer.encode import EncodedRows
from trimtab.trainer.errors import TrainingFailed
from trimtab.trainer.fit import Trainee

__all__ = ["EPOCHS", "FIT_STEPS", "Recipe", "fit_recipe", "train_epochs"]

EPOCHS = 8
FIT_STEPS = 1500
WARM_UP = 0.05


@dataclass(frozen=True)
class Recipe:
    """Everything that a trial chooses."""

    kind: str = "mlp"
    widths: tuple[int, ...] = (64,)
    dropout: float = 0.2
    embedding: int = 8
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    batch: int = 512
    epochs: int = EPOCHS
    """Segments of the plan after which training stops."""
    entry: str = ""
    """For kind "entry": the network of the user's own, as trimtab.toml names it."""

    def config(self, seed: int) -> dict[str, Any]:
        """The configuration that `build` takes and a manifest holds."""
        config = {**asdict(self), "widths": list(self.widths), "seed": seed}
        if not self.entry:
            del config["entry"]
        return config

    def __str__(self) -> str:
        if self.kind == "entry":
            return f"{self.entry}, learning rate {self.learning_rate:.1e}"
        shape = "linear" if self.kind == "linear" else f"mlp {'-'.join(map(str, self.widths))}"
        return f"{shape}, learning rate {self.learning_rate:.1e}"


def fit_recipe(recipe: Recipe, rows: EncodedRows, program: ColumnProgram, task: Task, seed: int) -> Network:
    module = build(recipe.config(seed), program, task)
    for epoch in train_epochs(recipe, module, rows, task, seed, FIT_STEPS):
        if epoch >= recipe.epochs:
            break
    if not all(bool(torch.isfinite(parameter).all()) for parameter in module.parameters()):
        raise TrainingFailed("search: the final fit's weights are not finite")
    return module.eval().requires_grad_(False)


def train_epochs(
    recipe: Recipe, module: Network, rows: EncodedRows, task: Task, seed: int, most_steps: int
) -> Iterator[int]:
    """Trains through the plan's EPOCHS segments, yielding after each; the plan is at most `most_steps` long."""
    trainee = Trainee(module, task, learning_rate=recipe.learning_rate, weight_decay=recipe.weight_decay, seed=seed)
    batch = min(recipe.batch, max(len(rows) // 8, 1))
    steps = max(min(math.ceil(len(rows) / batch) * EPOCHS, most_steps), EPOCHS)
    order = _shuffles(len(rows), batch, seed)
    for step in range(steps):
        trainee.learning_rate = recipe.learning_rate * _curve((step + 1) / steps)
        trainee.step(rows.take(next(order)))
        epoch, before = (step + 1) * EPOCHS // steps, step * EPOCHS // steps
        if epoch > before:
            yield epoch


def _curve(done: float) -> float:
    """The learning rate's share: a short linear rise, then half a cosine (Loshchilov & Hutter 2017)."""
    return done / WARM_UP if done < WARM_UP else 0.5 * (1.0 + math.cos(math.pi * (done - WARM_UP) / (1.0 - WARM_UP)))


def _shuffles(rows: int, batch: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Batches of positions, without end; each row once before any comes again, but for a remainder that is left out."""
    generator = np.random.default_rng([seed, rows])
    while True:
        order = generator.permutation(rows)
        for start in range(0, rows - batch + 1, batch):
            yield order[start : start + batch]
