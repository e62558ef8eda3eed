"""Where refreshes run: on the device that [model.retrain] names, or, where that does not do, on the CPU.

A refresh is the same there and here (fit.py, device_fit.py), and may change over between two chunks. What sends it to
the CPU is told once by `note`, and lasts as long as the reason does:

  no GPU, or the GPU is lost       for the rest of the process: a CUDA context does not recover
  no memory                        this refresh; nothing is kept on the GPU until the next one
  the budget of serving's p99      PAUSE_SECONDS, from the chunk on after which the server said that it cannot be met

Rows that were trained on before the change stay so. A piece that the device broke down in is trained on again, from the
state that it began with.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from trimtab.models.architectures import Network
from trimtab.models.faults import first_line, is_fault, is_out_of_memory, let_go
from trimtab.models.tasks import Task
from trimtab.store.settings import RetrainSettings
from trimtab.trainer import fit
from trimtab.trainer.device_fit import DeviceFit
from trimtab.trainer.device_machine import CudaTrainingMachine, TrainingMachine
from trimtab.trainer.encode import EncodedRows, RowSource
from trimtab.trainer.fit import ChallengerState, RefreshResult

__all__ = ["PAUSE_SECONDS", "Refresher"]

PAUSE_SECONDS = 600.0


class Refresher:
    """One model's refreshes. One thread at a time."""

    def __init__(
        self,
        device: str,
        note: Callable[[str], None],
        *,
        machine: Callable[[], TrainingMachine | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`device`: "cpu" or "cuda". `note` is told what does not run as it was asked for. `machine`: None where there
        is no such device."""
        self._wanted = device != "cpu"
        self._note = note
        self._make_machine = machine or _gpu
        self._clock = clock
        self._machine: TrainingMachine | None = None
        self._fit: DeviceFit | None = None
        self._key = ""
        self._lost = False
        self._not_before = 0.0
        self.where = ""
        """The device's name, if the last refresh took a step there; else empty."""

    def refresh(
        self,
        key: str,
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
        """As fit.refresh. `key` stands for the architecture, the column program and the dataset; a dataset only grows.
        Raises TrainingFailed."""
        self.where = ""
        first: RefreshResult | None = None
        if self._wanted and len(new) and self._has_device(f"{key} {settings!r} {weight_decay}"):
            first = self._tried(
                lambda fit: fit.refresh(state, new, history, module, live, task, settings, weight_decay=weight_decay),
                len(new),
            )
        done = 0 if first is None else len(first.time_us)
        if first is not None and done == len(new):
            return first
        rest = fit.refresh(
            state if first is None else first.state,
            new.slice(done, len(new)),
            history if not done else _Longer(history, new.slice(0, done)),
            module,
            live,
            task,
            settings,
            weight_decay=weight_decay,
        )
        return rest if first is None else _joined(first, rest, settings)

    def _tried(self, refresh: Callable[[DeviceFit], RefreshResult], rows: int) -> RefreshResult | None:
        """What was done on the device; None where nothing of it is left."""
        assert self._fit is not None
        try:
            result = refresh(self._fit)
        except Exception as error:
            lost = is_fault(error)
            if not lost and not is_out_of_memory(error):
                raise
            told = f"{'the GPU is lost' if lost else 'no memory on the GPU'}; trains on the CPU: {first_line(error)}"
        else:
            return self._taken(result, rows)
        # Not above: the error holds the frames that it passed, and they hold what is on the GPU.
        self._drop(lost=lost)
        self._note(told)
        return None

    def _taken(self, result: RefreshResult, rows: int) -> RefreshResult:
        self.where = self._machine.name if self._machine is not None else ""
        if len(result.time_us) < rows:
            self._not_before = self._clock() + PAUSE_SECONDS
            self._drop(lost=False)
            self._note(
                f"serving bears no trainer on its GPU now; trains on the CPU for {PAUSE_SECONDS / 60:.0f} minutes"
            )
        return result

    def _has_device(self, key: str) -> bool:
        """Whether `_fit` is there, for the key."""
        if self._lost or self._clock() < self._not_before:
            return False
        if self._machine is None:
            try:
                self._machine = self._make_machine()
            except RuntimeError as error:
                self._note(f"the GPU cannot be used; trains on the CPU: {first_line(error)}")
            else:
                if self._machine is None:
                    self._note('[model.retrain] device is "cuda", and torch sees no GPU; trains on the CPU')
            if self._machine is None:
                self._lost = True
                return False
        if self._fit is None or self._key != key:
            self._fit, self._key = DeviceFit(self._machine, self._note), key
        return True

    def _drop(self, *, lost: bool) -> None:
        """Nothing stays on the device. Nobody else may hold the fit."""
        self._fit = None
        self._lost |= lost
        if not lost:
            gc.collect()  # steps refer to what they are of
            let_go()


class _Longer:
    """A source with rows behind it."""

    def __init__(self, source: RowSource, rows: EncodedRows) -> None:
        self._source, self._rows = source, rows

    def __len__(self) -> int:
        return len(self._source) + len(self._rows)

    def take(self, positions: NDArray[Any]) -> EncodedRows:
        """The rows at these positions, in this order."""
        return fit.drawn(self._source, self._rows, np.asarray(positions, dtype=np.int64))


def _joined(first: RefreshResult, second: RefreshResult, settings: RetrainSettings) -> RefreshResult:
    chunks = [-(-len(result.time_us) // settings.chunk_labels) for result in (first, second)]
    return RefreshResult(
        second.state,
        np.concatenate([first.losses_challenger, second.losses_challenger]),
        np.concatenate([first.losses_live, second.losses_live]),
        np.concatenate([first.time_us, second.time_us]),
        np.concatenate([first.predictions_challenger, second.predictions_challenger]),
        np.concatenate([first.predictions_live, second.predictions_live]),
        float(np.average([first.training_loss, second.training_loss], weights=chunks)),
    )


def _gpu() -> TrainingMachine | None:
    return CudaTrainingMachine(torch.device("cuda")) if torch.cuda.is_available() else None
