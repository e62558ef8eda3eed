"""A trainer for ever, in the trainer's place: attends the server, keeps its pace, and refreshes, on the GPU if there is
one, as long as DIR/train is there. `_paced_fit.py -C DIR`; DIR/samples says how many rows its steps have taken.

What it trains on is made up: ROWS rows of 32 columns and a network of two layers.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from trimtab.client.admin import AdminClient, running
from trimtab.kernels.fit import fit_program
from trimtab.kernels.schema import FeatureSpec, Transform
from trimtab.models.architectures import Network, build
from trimtab.models.tasks import Task
from trimtab.store.project import Project
from trimtab.store.settings import RetrainSettings
from trimtab.trainer.encode import EncodedRows
from trimtab.trainer.fit import ChallengerState
from trimtab.trainer.pace import PACE
from trimtab.trainer.process import Commands, Reports
from trimtab.trainer.refreshing import Refresher

ROWS, NEW, FEATURES = 100_000, 5_000, 32
SETTINGS = RetrainSettings(chunk_labels=250, steps=8, batch_size=512)
TASK = Task.of("binary", ["no", "yes"], "yes")


class Work:
    """Rows and networks of a refresh that may be done again and again."""

    def __init__(self, rows: int = ROWS, widths: tuple[int, ...] = (128, 64), new: int = NEW) -> None:
        """`new` of the rows are those of a refresh."""
        rng = np.random.default_rng(0)
        values = rng.normal(size=(rows, FEATURES)).astype(np.float32)
        table = pa.RecordBatch.from_pydict({f"x{i}": values[:10_000, i] for i in range(FEATURES)})
        chain = (Transform("impute"), Transform("standardise"))
        self.program = fit_program(
            [FeatureSpec(f"x{i}", "real", chain) for i in range(FEATURES)], lambda: iter([table])
        )
        features = np.zeros((rows, self.program.n_features), np.float32)
        features[:, :FEATURES] = values
        self.rows = EncodedRows(
            features,
            np.zeros((rows, 0), np.int64),
            (values[:, 0] > 0).astype(np.float32),
            np.ones(rows, np.float32),
            np.arange(rows, dtype=np.int64),
        )
        self.new = new
        self._config = {"kind": "mlp", "seed": 0, "widths": list(widths), "dropout": 0.1, "embedding": 8}
        self.live = self.module().eval().requires_grad_(False)

    def module(self) -> Network:
        return build(self._config, self.program, TASK)

    def given(self) -> tuple[Any, ...]:
        """What a refresh takes."""
        cut = len(self.rows) - self.new
        start = ChallengerState.start(self.live, cut)
        return start, self.rows.slice(cut, len(self.rows)), self.rows.slice(0, cut), self.module(), self.live, TASK

    def samples(self) -> int:
        """Rows that the steps of a refresh take, drawn ones counted as often as they are drawn."""
        return -(-self.new // SETTINGS.chunk_labels) * SETTINGS.steps * SETTINGS.batch_size


def main(directory: Path) -> int:
    os.nice(10)
    torch.set_num_threads(1)
    project = Project.load(directory)
    server = running(project.state)
    if server is None:
        return 1
    if project.server.trainer_p99_budget > 0:
        PACE.govern()
    reports = Reports()
    PACE.on_training = reports.send
    # Short ones: samples are counted when a refresh is done.
    work = Work(new=1000)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    refresher = Refresher(device, lambda text: print(text, flush=True))
    # Before it is counted, and before anybody waits for it: imports, uploads, captures.
    refresher.refresh("benchmark", *work.given(), SETTINGS)
    samples = 0
    with AdminClient(server.admin, caller="trainer") as admin:
        Commands(admin, reports).startup()
        while running(project.state) is not None:
            if not (directory / "train").exists():
                time.sleep(0.02)
                continue
            with PACE.trains():
                refresher.refresh("benchmark", *work.given(), SETTINGS)
            samples += work.samples()
            (directory / "samples").write_text(str(samples))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[2])))
