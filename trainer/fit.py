"""Training: steps, scoring, and the challenger that is refreshed prequentially.

A refresh takes newly matured rows a chunk at a time. The challenger and the live version score the chunk *before* the
challenger trains on it, so every loss is out of sample and both sides' losses belong to the same rows; then come a
few steps on rows drawn by recency. That is the evidence the gate judges, and no row has to be held out for it.

Determinism: on the CPU the same rows, code and seed give the same weights bit for bit. So torch runs on one thread
here, every draw comes from a generator made from the seed and the challenger's own step count (a challenger read back
from a checkpoint goes on as if it had never stopped), and rows are scored in batches of one fixed size, the last one
padded: the kernel that torch picks, and with it the last bits, depends on a batch's size.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from trimtab.models.architectures import Network
from trimtab.models.faults import first_line
from trimtab.models.finite import all_finite
from trimtab.models.tasks import Task
from trimtab.store.settings import RetrainSettings
from trimtab.trainer.encode import EncodedRows, RowSource
from trimtab.trainer.errors import TrainingFailed
from trimtab.trainer.pace import PACE
from trimtab.trainer.sampling import rows_of_step

__all__ = [
    "MAX_GRADIENT",
    "MOMENTS",
    "SCORE_BATCH",
    "ChallengerState",
    "RefreshResult",
    "Trainee",
    "drawn",
    "mixed_seed",
    "one_thread",
    "refresh",
    "score",
]

SCORE_BATCH = 256
"""Rows of every scoring batch."""
MAX_GRADIENT = 5.0
"""Norm beyond which a gradient is scaled down: one mislabelled outlier must not throw the weights away."""

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of each weight."""


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread inside the block, so that sums are always taken in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def score(module: Network, task: Task, rows: EncodedRows) -> NDArray[np.float32]:
    """float32 [n, K] predictions, in batches of SCORE_BATCH rows. Leaves the module in evaluation mode."""
    module.eval()
    predictions = np.empty((len(rows), task.width), dtype=np.float32)
    with torch.inference_mode():
        for start in range(0, len(rows), SCORE_BATCH):
            part = rows.slice(start, start + SCORE_BATCH)
            features, ids = _padded(part.features), _padded(part.ids)
            out = task.predict(module(torch.from_numpy(features), torch.from_numpy(ids)))
            predictions[start : start + len(part)] = out.numpy()[: len(part)]
            PACE.rest()
    return predictions


@dataclass(frozen=True)
class ChallengerState:
    """A challenger between refreshes: weights, AdamW's moments, and how far it has come. Immutable."""

    weights: Mapping[str, torch.Tensor]
    moments: Mapping[str, torch.Tensor]
    """`exp_avg.NAME` and `exp_avg_sq.NAME` for each weight; empty before the first step."""
    step: int = 0
    """Optimiser steps since the moments were zero."""
    rows_trained: int = 0
    """Rows that the weights have seen, those of the version it started from included."""

    @classmethod
    def start(cls, module: Network, rows_trained: int = 0, optimizer: bytes | None = None) -> ChallengerState:
        """A challenger that starts from a version's weights, and from its moments where they were kept."""
        weights = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
        if optimizer is None:
            return cls(weights, {}, 0, rows_trained)
        kept = _read(optimizer)
        return cls(weights, _moments_of(kept, weights), int(kept["step"].item()), rows_trained)

    def moments_bytes(self) -> bytes:
        """Moments and step as safetensors: a version's `optimizer.safetensors`."""
        return save_tensors({**dict(self.moments), "step": torch.tensor([self.step], dtype=torch.int64)})

    def to_bytes(self) -> bytes:
        """All of it as safetensors."""
        weights = {f"weight.{name}": tensor.contiguous() for name, tensor in self.weights.items()}
        counts = torch.tensor([self.step, self.rows_trained], dtype=torch.int64)
        return save_tensors({**weights, **dict(self.moments), "counts": counts})

    @classmethod
    def from_bytes(cls, data: bytes) -> ChallengerState:
        """What `to_bytes` wrote. Raises TrainingFailed where it is damaged."""
        tensors = _read(data)
        weights = {name.removeprefix("weight."): t for name, t in tensors.items() if name.startswith("weight.")}
        counts = tensors.get("counts")
        if counts is None or counts.shape != (2,) or not weights:
            raise TrainingFailed("challenger: the checkpoint has no counts or no weights")
        return cls(weights, _moments_of(tensors, weights), int(counts[0]), int(counts[1]))

    def load_into(self, module: Network) -> Network:
        """The module with this challenger's weights. Raises TrainingFailed where they are another architecture's."""
        try:
            module.load_state_dict(dict(self.weights))
        except RuntimeError as error:
            raise TrainingFailed(f"challenger: weights of another architecture: {first_line(error)}") from error
        return module


class Trainee:
    """A module with its optimiser (AdamW, Loshchilov & Hutter 2019) and generators: what takes steps."""

    def __init__(self, module: Network, task: Task, *, learning_rate: float, weight_decay: float, seed: int) -> None:
        self.module, self.task, self.seed = module, task, seed
        self.steps = 0
        self._dropout = torch.Generator()
        module.use_generator(self._dropout)
        self._optimizer = torch.optim.AdamW(
            module.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=True
        )

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return float(self._optimizer.param_groups[0]["lr"])

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self._optimizer.param_groups[0]["lr"] = value

    def step(self, rows: EncodedRows) -> float:
        """One step on these rows; their mean loss before it. Raises TrainingFailed where it is not finite."""
        self.module.train()
        self._dropout.manual_seed(mixed_seed(self.seed, self.steps))
        losses = self.task.loss(
            self.module(torch.from_numpy(rows.features), torch.from_numpy(rows.ids)), torch.from_numpy(rows.labels)
        )
        weights = torch.from_numpy(rows.weights)
        loss = (losses * weights).sum() / weights.sum().clamp_min(1e-12)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingFailed(f"training: the loss of step {self.steps} is {value}")
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), MAX_GRADIENT)
        self._optimizer.step()
        self.steps += 1
        PACE.rest()
        return value

    def load(self, state: ChallengerState) -> None:
        """Goes on where the state stands."""
        state.load_into(self.module)
        self.steps = state.step
        for name, parameter in self.module.named_parameters():
            if state.moments:
                if f"{MOMENTS[0]}.{name}" not in state.moments:
                    raise TrainingFailed(f"challenger: the checkpoint has no moments for {name!r}")
                self._optimizer.state[parameter] = {
                    "step": torch.tensor(float(state.step)),
                    **{key: state.moments[f"{key}.{name}"].clone() for key in MOMENTS},
                }

    def state(self, rows_trained: int) -> ChallengerState:
        """Where it stands, as copies. Raises TrainingFailed where a weight is not finite."""
        weights = {name: tensor.detach().clone() for name, tensor in self.module.state_dict().items()}
        wrong = next((name for name, tensor in weights.items() if not all_finite(tensor)), None)
        if wrong is not None:
            raise TrainingFailed(f"training: weights {wrong!r} are not finite after step {self.steps}")
        moments: dict[str, torch.Tensor] = {}
        for name, parameter in self.module.named_parameters():
            kept = self._optimizer.state.get(parameter, {})
            if self.steps:
                # A weight that took no part (the embeddings of a model without categories) has no moments yet.
                empty = torch.zeros_like(parameter, requires_grad=False)
                moments.update({f"{key}.{name}": kept.get(key, empty).clone() for key in MOMENTS})
        return ChallengerState(weights, moments, self.steps, rows_trained)


@dataclass(frozen=True)
class RefreshResult:
    """What a refresh leaves: the challenger as it now is, and the evidence, one entry per new row."""

    state: ChallengerState
    losses_challenger: NDArray[np.float64]
    """[n] before the challenger trained on the row's chunk."""
    losses_live: NDArray[np.float64]
    """[n] of the live version."""
    time_us: NDArray[np.int64]
    """[n]"""
    predictions_challenger: NDArray[np.float32] = field(repr=False)
    """[n, K]"""
    predictions_live: NDArray[np.float32] = field(repr=False)
    """[n, K]"""
    training_loss: float = math.nan
    """Mean loss of the steps taken."""


def refresh(
    state: ChallengerState,
    new: EncodedRows,
    history: RowSource,
    module: Network,
    live: Network | None,
    task: Task,
    settings: RetrainSettings,
    *,
    weight_decay: float = 0.01,
) -> RefreshResult:
    """Scores and trains on `new` a chunk at a time; `history` are the rows before it, oldest first.

    `module` is scratch of the challenger's architecture; `live` is the version that serves, of the same program.
    Neither `state` nor `live` is changed. Raises TrainingFailed.
    """
    trainee = Trainee(module, task, learning_rate=settings.learning_rate, weight_decay=weight_decay, seed=settings.seed)
    trainee.load(state)
    if live is None:
        live = copy.deepcopy(module)
    challenger = np.empty((len(new), task.width), dtype=np.float32)
    serving = np.empty_like(challenger)
    losses: list[float] = []
    with one_thread():
        for start in range(0, len(new), settings.chunk_labels):
            chunk = new.slice(start, start + settings.chunk_labels)
            stop = start + len(chunk)
            challenger[start:stop] = score(module, task, chunk)
            serving[start:stop] = score(live, task, chunk)
            for _ in range(settings.steps):
                positions = rows_of_step(settings, trainee.steps, len(history) + stop)
                losses.append(trainee.step(drawn(history, new, positions)))
        after = trainee.state(state.rows_trained + len(new))
    return RefreshResult(
        after,
        task.losses_of(challenger, new.labels),
        task.losses_of(serving, new.labels),
        new.time_us,
        challenger,
        serving,
        float(np.mean(losses)) if losses else math.nan,
    )


def drawn(history: RowSource, new: EncodedRows, positions: NDArray[np.int64]) -> EncodedRows:
    """Rows of the history followed by the new ones, in the order drawn, wherever the boundary is: sums then come
    out the same whether rows arrive in one refresh or in several."""
    old = positions < len(history)
    if old.all():
        return history.take(positions)
    recent = new.take(positions[~old] - len(history))
    if not old.any():
        return recent
    place = np.empty(len(positions), dtype=np.int64)
    place[np.concatenate([np.flatnonzero(old), np.flatnonzero(~old)])] = np.arange(len(positions))
    return EncodedRows.joined([history.take(positions[old]), recent]).take(place)


def _padded(values: NDArray[Any]) -> NDArray[Any]:
    if len(values) == SCORE_BATCH:
        return np.ascontiguousarray(values)
    padded = np.zeros((SCORE_BATCH, values.shape[1]), dtype=values.dtype)
    padded[: len(values)] = values
    return padded


def mixed_seed(seed: int, step: int) -> int:
    """One 64-bit seed of two numbers (SplitMix64's finaliser), so that steps and seeds do not share streams."""
    value = (seed * 0x9E3779B97F4A7C15 + step + 1) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (value ^ (value >> 31)) >> 1


def _read(data: bytes) -> dict[str, torch.Tensor]:
    try:
        return load_tensors(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise TrainingFailed(f"challenger: the checkpoint cannot be read: {first_line(error)}") from error


def _moments_of(tensors: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = [f"{key}.{name}" for name in weights for key in MOMENTS]
    present = {name: tensors[name] for name in names if name in tensors}
    # Buffers (a user's batch norm has some) are weights that have none; Trainee.load knows which those are.
    halves = [name for name in weights if sum(f"{key}.{name}" in present for key in MOMENTS) == 1]
    if halves or (present and len(present) < 2):
        raise TrainingFailed(f"challenger: the checkpoint has moments for {len(present)} of {len(names)} tensors")
    return present
