"""The scheduled baseline of a replay, as a process of its own beside it: the same search from scratch on a schedule.

`python -m trimtab.cli.replay_cron DIR SOURCE SCHEDULE OUT`: trains as trainer.baselines.cron does, one thread, at low
priority; prints a JSON line for each scheduled model, and writes its predictions of the replayed rows to OUT (NumPy's
.npy, float32 [labelled rows replayed, K]).
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from trimtab.cli.replay_data import Source, open_stream
from trimtab.cli.replay_server import first_version
from trimtab.models.code import allow_project
from trimtab.models.version import load_version
from trimtab.store.project import Project
from trimtab.store.versions import VersionStore
from trimtab.trainer.baselines import cron

__all__ = ["SCHEDULE", "run"]

SCHEDULE = "0 0 1 * *"
"""Monthly."""


def run(directory: Path, source: Source, schedule: str, out: Path) -> None:
    """See the module. Raises DataError, StoreError, TrainerError."""
    torch.set_num_threads(1)
    project = Project.load(directory)
    allow_project(project)
    model = project.model()
    stream = open_stream(project, source)
    number = first_version(project, model.name)
    assert number is not None  # the replay made this copy with one
    first = load_version(VersionStore(project.model_state(model.name).versions), number)
    kept = np.flatnonzero(stream.labelled)
    fitted = SimpleNamespace(
        module=first.module, program=first.program, task=first.task, rows_trained=first.manifest.rows_trained
    )
    predictions = []
    for step in cron(
        stream.table(),
        fitted,
        model.specs(),
        model.retrain,
        schedule=schedule,
        start=int(np.searchsorted(kept, stream.start)),
        known_us=stream.known_us[kept],
        architecture=model.network,
    ):
        predictions.append(step.predictions)
        line = {"retrain": step.retrain, "time_us": step.time_us, "rows_trained": step.rows_trained}
        print(json.dumps({**line, "rows": len(step.predictions), "cpu_seconds": time.process_time()}), flush=True)
    with out.open("wb") as file:
        np.save(file, np.concatenate(predictions), allow_pickle=False)


if __name__ == "__main__":
    run(Path(sys.argv[1]), Source.from_json(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
