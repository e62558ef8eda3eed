"""A refresh on a GPU: the same as fit.refresh does on the CPU, by steps that are captured once and replayed.

A small network on a GPU is all launch: some sixty kernels a step, forward, backward and optimiser, of a few µs each,
and the interpreter before each. And the GPU is not the trainer's own: serving uses it. So:

- *Rows are resident* (resident.py). Which ones a step takes is drawn on the host, by the same generator in the same
  order as on the CPU (sampling.py): both learn from the same rows, and results can be compared. The positions of all
  steps of a chunk go over as one array, and are gathered on the device into static batches. Without room for the
  rows, batches are gathered on the host and copied.
- *A slice of steps is one graph*: forward, losses, backward, clipping and AdamW, of up to SLICE steps. It reads static
  batches, so that rows may grow and move without another capture. Nothing in it asks the host: the norm is clipped and
  AdamW counts its steps on the device, losses are written down there and looked at after the slice.
- *Slices are short*, on a stream of low priority, and the trainer rests between them as pace.py says. (Priorities order
  kernels of one process, or of MPS's clients. Without MPS, processes take turns on a GPU.)
- *Chunks are scored by graphs* too, of SCORE_BATCH rows, the challenger's and the live version's.

Capturing runs the work to warm it, which changes weights and moments: they are loaded afterwards, in place, for the
graphs hold their addresses. What cannot be captured (a network that looks at its values on the host) takes the same
steps eagerly on the device, and that is told.

Dropout draws from the device's generator, seeded for each slice from the seed and the count of steps: a fit that goes
on from a checkpoint draws what it would have drawn. Masks are others than on the CPU, and sums are taken in another
order: on a GPU results agree with the CPU's closely, not bit for bit.

Turned down: captured gathering (graphs would have to be captured anew when rows move); drawing on the device (another
order of rows, for no gain); torch.compile (seconds to minutes for each recipe, against milliseconds); bf16 (a refresh
moves weights by less than its spacing).

`TrainingMachine` (device_machine.py) is everything that needs CUDA; the rest runs, and is tested, on any machine. Where
refreshes run, and what happens when a device fails, is refreshing.py's.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from trimtab.models.architectures import Network
from trimtab.models.faults import first_line, is_fault, is_out_of_memory
from trimtab.models.finite import all_finite
from trimtab.models.tasks import Task
from trimtab.store.settings import RetrainSettings
from trimtab.trainer.device_machine import TrainingMachine, Work
from trimtab.trainer.encode import EncodedRows, RowSource
from trimtab.trainer.errors import TrainingFailed
from trimtab.trainer.fit import (
    MAX_GRADIENT,
    MOMENTS,
    SCORE_BATCH,
    ChallengerState,
    RefreshResult,
    drawn,
    mixed_seed,
    one_thread,
)
from trimtab.trainer.pace import PACE
from trimtab.trainer.resident import DeviceRows, Resident, rows_on
from trimtab.trainer.sampling import rows_of_step

__all__ = ["SLICE", "DeviceFit"]

SLICE = 8
"""Most steps of a graph: between two of them serving has the GPU to itself, if the pace says so."""

Note = Callable[[str], None]


class DeviceFit:
    """Refreshes of one architecture on one device. Graphs and rows stay for the next one. One thread at a time."""

    def __init__(self, machine: TrainingMachine, note: Note) -> None:
        """`note` is told, in a few words, of what does not run as it should."""
        self._machine = machine
        self._note = note
        self._resident = Resident(machine)
        self._trainee: DeviceTrainee | None = None
        self._live: tuple[Network, Scorer] | None = None
        self._said_full = False

    def refresh(
        self,
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
        """As fit.refresh, and for as many of the new rows as there was time for: where the server says that its budget
        cannot be met beside this device, it ends after the chunk it is at. Module, task, settings and weight decay are
        the same each time. Raises TrainingFailed, and what the device raises."""
        if not len(new):
            raise ValueError("refresh: there are no rows")
        with one_thread(), self._machine.stream():
            if self._trainee is None:
                self._trainee = DeviceTrainee(
                    self._machine, module, task, settings, new, weight_decay=weight_decay, note=self._note
                )
            trainee = self._trainee
            trainee.load(state)
            # Without a version that serves, the challenger as it is now stands for it.
            serving = self._live_scorer(live or state.load_into(copy.deepcopy(module)), task, new)
            resident = self._rows(history, new)
            PACE.take_cannot_be_met()
            return self._chunks(state, new, history, trainee, serving, resident, task, settings)

    def _chunks(
        self,
        state: ChallengerState,
        new: EncodedRows,
        history: RowSource,
        trainee: DeviceTrainee,
        serving: Scorer,
        resident: DeviceRows | None,
        task: Task,
        settings: RetrainSettings,
    ) -> RefreshResult:
        ours = np.empty((len(new), task.width), dtype=np.float32)
        theirs = np.empty_like(ours)
        losses: list[float] = []
        before, done = len(history), 0
        while done < len(new) and not (done and PACE.take_cannot_be_met()):
            stop = min(done + settings.chunk_labels, len(new))
            rows = new.slice(done, stop) if resident is None else resident.slice(before + done, before + stop)
            ours[done:stop] = trainee.scorer.score(rows, stop - done)
            theirs[done:stop] = serving.score(rows, stop - done)
            steps = range(trainee.steps, trainee.steps + settings.steps)
            positions = np.concatenate([rows_of_step(settings, step, before + stop) for step in steps])
            losses += trainee.take(positions, resident, lambda chosen: drawn(history, new, chosen))
            done = stop
        part = new.slice(0, done)
        return RefreshResult(
            trainee.state(state.rows_trained + done),
            task.losses_of(ours[:done], part.labels),
            task.losses_of(theirs[:done], part.labels),
            part.time_us,
            ours[:done],
            theirs[:done],
            float(np.mean(losses)) if losses else math.nan,
        )

    def _rows(self, history: RowSource, new: EncodedRows) -> DeviceRows | None:
        if self._resident.hold(history, new):
            return self._resident.rows
        if not self._said_full:
            self._said_full = True
            rows = len(history) + len(new)
            self._note(f"there is no room for {rows:,} rows on the GPU: their batches are made on the host")
        return None

    def _live_scorer(self, live: Network, task: Task, like: EncodedRows) -> Scorer:
        if self._live is None or self._live[0] is not live:
            there = copy.deepcopy(live).to(self._machine.device)
            self._live = live, Scorer(self._machine, there, task, like, self._note)
        return self._live[1]


class Scorer:
    """Predictions by a module on the device, SCORE_BATCH rows at a time."""

    def __init__(self, machine: TrainingMachine, module: Network, task: Task, like: EncodedRows, note: Note) -> None:
        self._machine, self._task = machine, task
        batch = self._batch = rows_on(machine.device, SCORE_BATCH, like)
        out = self._out = torch.zeros(SCORE_BATCH, task.width, device=machine.device)
        self._host = machine.host((SCORE_BATCH, task.width), torch.float32)

        # Refers to no scorer: that of a version that serves no more goes, and its graph, with the last reference.
        def work() -> None:
            module.eval()
            with torch.no_grad():
                out.copy_(task.predict(module(batch.features, batch.ids)))

        self._run = captured(machine, work, None, "scoring", note)

    def score(self, rows: EncodedRows | DeviceRows, n: int) -> NDArray[np.float32]:
        """float32 [n, K] predictions of n rows, as fit.score gives them."""
        found = np.empty((n, self._task.width), dtype=np.float32)
        for start in range(0, n, SCORE_BATCH):
            stop = min(start + SCORE_BATCH, n)
            for part in self._batch.parts[:2]:
                part[stop - start :].zero_()
            self._batch.slice(0, stop - start).copy_(rows.slice(start, stop))
            self._run()
            self._host.copy_(self._out, non_blocking=True)
            self._machine.wait()
            found[start:stop] = self._host.numpy()[: stop - start]
            PACE.rest()
        return found


class DeviceTrainee:
    """A module on the device with its optimiser: fit.Trainee, by slices of steps."""

    def __init__(
        self,
        machine: TrainingMachine,
        module: Network,
        task: Task,
        settings: RetrainSettings,
        like: EncodedRows,
        *,
        weight_decay: float,
        note: Note,
    ) -> None:
        """Captures what it will need. `module` is copied."""
        self._machine, self._task, self._note = machine, task, note
        self.module = copy.deepcopy(module).to(machine.device)
        self.steps, self._seed = 0, settings.seed
        self._dropout = machine.generator()
        self.module.use_generator(self._dropout)
        self._optimizer = torch.optim.AdamW(
            self.module.parameters(), lr=settings.learning_rate, weight_decay=weight_decay, **machine.options
        )
        for parameter in self.module.parameters():
            self._optimizer.state[parameter] = {
                "step": torch.zeros((), device=machine.device),
                **{key: torch.zeros_like(parameter, requires_grad=False) for key in MOMENTS},
            }
        self._batch, self._most = settings.batch_size, min(settings.steps, SLICE)
        self._rows = rows_on(machine.device, self._most * self._batch, like)
        self._losses = torch.zeros(self._most, device=machine.device)
        self._host_losses = machine.host((self._most,), torch.float32)
        self._positions = torch.zeros(settings.steps * self._batch, dtype=torch.int64, device=machine.device)
        self._host_positions = machine.host((settings.steps * self._batch,), torch.int64)
        sizes = {self._most, settings.steps % self._most} - {0}
        self._slices = {
            size: captured(machine, self._work(size), self._dropout, "a step", note) for size in sorted(sizes)
        }
        self.scorer = Scorer(machine, self.module, task, like, note)

    def take(
        self,
        positions: NDArray[np.int64],
        resident: DeviceRows | None,
        gather: Callable[[NDArray[np.int64]], EncodedRows],
    ) -> list[float]:
        """Steps on the rows at these positions i64 [steps · batch], and each step's loss before it. Rows come from
        `resident`, or, where that is None, from `gather`. Raises TrainingFailed where a loss is not finite."""
        if resident is not None:
            self._host_positions.numpy()[: len(positions)] = positions
            self._positions.copy_(self._host_positions, non_blocking=True)
        losses: list[float] = []
        for start in range(0, len(positions), self._most * self._batch):
            stop = min(start + self._most * self._batch, len(positions))
            rows = self._rows.slice(0, stop - start)
            if resident is not None:
                rows.gather_(resident, self._positions[start:stop])
            else:
                rows.copy_(gather(positions[start:stop]))
            losses += self._slice((stop - start) // self._batch)
            PACE.rest()
        return losses

    def load(self, state: ChallengerState) -> None:
        """Goes on where the state stands. Raises TrainingFailed where it is of another architecture."""
        mine = self.module.state_dict()
        wrong = mine.keys() ^ state.weights.keys()
        wrong |= {name for name in mine.keys() & state.weights.keys() if mine[name].shape != state.weights[name].shape}
        if wrong:
            raise TrainingFailed(f"challenger: weights of another architecture: {', '.join(sorted(wrong)[:4])}")
        self.steps = state.step
        with torch.no_grad():
            for name, tensor in mine.items():
                tensor.copy_(state.weights[name])
            for name, parameter in self.module.named_parameters():
                kept = self._optimizer.state[parameter]
                if state.moments and f"{MOMENTS[0]}.{name}" not in state.moments:
                    raise TrainingFailed(f"challenger: the checkpoint has no moments for {name!r}")
                kept["step"].fill_(float(state.step) if state.moments else 0.0)
                for key in MOMENTS:
                    if state.moments:
                        kept[key].copy_(state.moments[f"{key}.{name}"])
                    else:
                        kept[key].zero_()

    def state(self, rows_trained: int) -> ChallengerState:
        """Where it stands, on the host. Raises TrainingFailed where a weight is not finite."""
        weights = {name: _on_host(tensor) for name, tensor in self.module.state_dict().items()}
        wrong = next((name for name, tensor in weights.items() if not all_finite(tensor)), None)
        if wrong is not None:
            raise TrainingFailed(f"training: weights {wrong!r} are not finite after step {self.steps}")
        moments: dict[str, Tensor] = {}
        if self.steps:
            for name, parameter in self.module.named_parameters():
                kept = self._optimizer.state[parameter]
                moments.update({f"{key}.{name}": _on_host(kept[key]) for key in MOMENTS})
        return ChallengerState(weights, moments, self.steps, rows_trained)

    def _slice(self, size: int) -> list[float]:
        """So many steps on the static batches."""
        self._dropout.manual_seed(mixed_seed(self._seed, self.steps))
        self._slices[size]()
        self._host_losses.copy_(self._losses, non_blocking=True)
        self._machine.wait()
        values: list[float] = self._host_losses[:size].tolist()
        for step, value in enumerate(values):
            if not math.isfinite(value):
                raise TrainingFailed(f"training: the loss of step {self.steps + step} is {value}")
        self.steps += size
        return values

    def _work(self, size: int) -> Work:
        batches = [self._rows.slice(k * self._batch, (k + 1) * self._batch) for k in range(size)]

        def work() -> None:
            self.module.train()
            for position, batch in enumerate(batches):
                self._step(batch, position)

        return work

    def _step(self, batch: DeviceRows, position: int) -> None:
        """fit.Trainee.step, without asking the host."""
        losses = self._task.loss(self.module(batch.features, batch.ids), batch.labels)
        loss = (losses * batch.weights).sum() / batch.weights.sum().clamp_min(1e-12)
        self._losses[position].copy_(loss.detach())
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), MAX_GRADIENT)
        self._optimizer.step()


def captured(
    machine: TrainingMachine, work: Work, generator: torch.Generator | None, what: str, note: Note
) -> Callable[[], Any]:
    """What replays the work; where that cannot be captured, the work itself, and `note` is told why. Raises what says
    that there is no memory, or that the device is lost."""
    try:
        return machine.capture(work, generator)
    except Exception as error:
        if is_fault(error) or is_out_of_memory(error):
            raise
        note(f"{what} cannot be captured and runs eagerly on the GPU: {first_line(error)}")
        return work


def _on_host(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)
