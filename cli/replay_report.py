"""A replay's report as data: what `--report` writes, what the table on the terminal shows, and the sentence at the end.

Pure: numbers in, a dict of JSON out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from trimtab.cli.replay_data import Stream
from trimtab.cli.replay_run import Played
from trimtab.cli.replay_score import differences, measure, rolling
from trimtab.trainer.baselines import majority, no_change

__all__ = ["FORMAT", "SIDES", "Cost", "Sides", "build_report", "scored_sides", "sentence"]

FORMAT = 1
SIDES = ("live", "frozen", "cron", "no_change", "majority")
_NAMES = {"frozen": "the frozen version 1", "cron": "retraining from scratch on a schedule"}


@dataclass(frozen=True)
class Sides:
    """Each side's predictions [n, K] of the same rows: those that were answered and whose label is known."""

    predictions: dict[str, NDArray[Any]]
    labels: NDArray[Any]
    time_us: NDArray[np.int64]


@dataclass(frozen=True)
class Cost:
    """What a replay took."""

    wall_seconds: float
    stream_seconds: float
    """Of the wall time, from the first row to the last answer."""
    trainer_cpu_seconds: float | None
    cron_cpu_seconds: float | None


def scored_sides(
    stream: Stream, played: Played, frozen: NDArray[np.float32], cron: NDArray[np.float32] | None
) -> Sides:
    """Brings all sides to the same rows. `frozen` has every replayed row, `cron` (if compared) the labelled ones."""
    labelled = stream.labelled[stream.start :]
    answered: NDArray[np.bool_] = np.asarray(np.isfinite(played.predictions).all(axis=1))
    kept = np.flatnonzero(labelled & answered)
    of_labelled = answered[labelled]
    # The simple baselines see all labels that were known, those of the training rows too.
    every = np.flatnonzero(stream.labelled)
    before = int(np.searchsorted(every, stream.start))
    known = (stream.labels[every], stream.time_us[every], stream.known_us[every], before)
    predictions: dict[str, NDArray[Any]] = {"live": played.predictions[kept], "frozen": frozen[kept]}
    if cron is not None:
        predictions["cron"] = cron[of_labelled]
    for name, rule in (("no_change", no_change), ("majority", majority)):
        predictions[name] = rule(stream.task, *known)[of_labelled]
    at = kept + stream.start
    return Sides(predictions, stream.labels[at], stream.time_us[at])


def build_report(
    stream: Stream,
    played: Played,
    sides: Sides,
    *,
    versions: list[dict[str, Any]],
    drift: list[dict[str, Any]],
    mixed: int | None,
    joined: int | None,
    cost: Cost,
    settings: Mapping[str, Any],
    cron_steps: list[dict[str, Any]],
) -> dict[str, Any]:
    """The report. Keys that other programs rely on come first."""
    task, labels = stream.task, sides.labels
    metrics = {name: measure(task, given, labels) for name, given in sides.predictions.items()}
    against = {
        name: differences(task, sides.predictions["live"], given, labels, sides.time_us, stream.model.label.cohort)
        for name, given in sides.predictions.items()
        if name != "live"
    }
    verdicts = [line["verdict"] for line in versions]
    alarms = [
        {key: window[key] for key in ("window", "start_us", "end_us", "rows")} | {"features": window["alarms"]}
        for window in drift
        if window["alarms"]
    ]
    main = "rmse" if task.kind == "regression" else "log_loss"
    losses = {name: task.losses_of(given, labels) for name, given in sides.predictions.items()}
    times, curves = rolling(losses, sides.time_us)
    report: dict[str, Any] = {
        "format": FORMAT,
        "model": stream.model.name,
        "task": task.kind,
        "rows": len(played.versions),
        "rows_scored": len(labels),
        "rows_skipped": stream.start,
        "requests": played.requests,
        "failed_requests": played.failed_requests,
        "first_failure": played.first_failure,
        "mixed_version_answers": mixed,
        "labels_sent": played.labels_sent,
        "labels_joined": joined,
        "labels_refused": played.labels_refused,
        "metrics": metrics,
        "differences": against,
        "versions": versions,
        "retrains": sum(verdict != "initial" for verdict in verdicts),
        "promotions": verdicts.count("promoted"),
        "drift_events": alarms,
        "wall_seconds": cost.wall_seconds,
        "stream_seconds": cost.stream_seconds,
        "rows_per_second": len(played.versions) / cost.stream_seconds if cost.stream_seconds else None,
        "trainer_cpu_seconds": cost.trainer_cpu_seconds,
        "cron_cpu_seconds": cost.cron_cpu_seconds,
        "cron_retrains": cron_steps,
        "main_metric": main,
        "first_us": int(stream.time_us[stream.start]),
        "last_us": int(stream.time_us[-1]),
        "timed": stream.timed,
        "settings": dict(settings),
        "curve": {"time_us": times.tolist(), **{name: values.tolist() for name, values in curves.items()}},
        "drift": drift,
    }
    report["sentence"] = sentence(report)
    return report


def sentence(report: Mapping[str, Any]) -> str:
    """What retraining gained, over what, at what cost; also when it would not have paid."""
    metric = str(report["main_metric"])
    name = metric.replace("_", " ").replace("rmse", "RMSE")
    parts = [_against(report, other, name, metric) for other in ("frozen", "cron") if other in report["differences"]]
    cost = f"{report['retrains']} retrainings ({report['promotions']} promoted)"
    if report["trainer_cpu_seconds"] is not None:
        cost += f", {report['trainer_cpu_seconds']:.0f} s of trainer CPU"
    rows = f"Over {report['rows']:,} rows"
    if report["mixed_version_answers"] is None:
        return f"{rows}, " + "; ".join(parts) + "; this replay only shadowed, so nothing was retrained."
    verdict = {"better": "retraining paid", "worse": "retraining did harm", "even": "retraining would not have paid"}
    outcome = verdict[_direction(report["differences"].get("frozen", {}).get(metric, {}))]
    return f"{rows}, {outcome}: " + "; ".join(parts) + f"; the cost was {cost}."


def _direction(difference: Mapping[str, Any]) -> str:
    return "better" if difference.get("better") else "worse" if difference.get("worse") else "even"


def _against(report: Mapping[str, Any], other: str, name: str, metric: str) -> str:
    live = report["metrics"]["live"][metric]
    theirs = report["metrics"][other][metric]
    found = report["differences"][other][metric]
    words = {"better": "better than", "worse": "worse than", "even": "not clearly different from"}[_direction(found)]
    span = (
        f"95 % {found['low']:+.4f} to {found['high']:+.4f}"
        if found["low"] is not None
        else "too few rows for an interval"
    )
    return f"{name} {live:.4f} was {words} {_NAMES[other]}'s {theirs:.4f} ({found['difference']:+.4f}, {span})"
