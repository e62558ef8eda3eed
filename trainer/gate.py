"""The gate: may this challenger go live? Evidence in, a verdict with its reason out. Pure.

Evidence are both versions' losses on the same rows, which neither had trained on when it scored them. What is asked
depends on the recipe:

- *refresh* (same recipe, same columns): non-inferior. Promoted when its mean loss is shown to be worse by less than the
  margin, and is not shown to be worse at all: margins passed one after another would add up to a decline that no single
  step shows. Refused when it is shown to be worse. Else undecided: it stays a challenger and gathers evidence.
- *search* (a new recipe): superior. Promoted when shown to be better. Refused when shown to be worse, or when a gain of
  the margin would have been seen and was not. Else undecided.

"Shown" means: at the level that the model's earlier decisions leave (`alpha.alpha_for`), by a block bootstrap
(`bootstrap.compare_losses`). Before anything is tested there must be enough rows and blocks of time; then come size,
speed and slices. Every verdict carries the smallest difference that the evidence could have shown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from trimtab.store.settings import GateSettings
from trimtab.trainer.bootstrap import Comparison, compare_losses

__all__ = ["Evidence", "Verdict", "decide"]

POWER = 0.8
"""With which the smallest detectable difference would have been seen."""
EVIDENCE_ROWS = 10_000
"""The newest rows of evidence that count. A challenger goes on learning, so what it lost long ago says little of
what it is; and one week of storms would otherwise drown the difference for a month."""
MOST_SPREAD = 2.0
"""Half an interval's width, in margins, beyond which a test is put off until there is more evidence."""


@dataclass(frozen=True)
class Evidence:
    """What is known of a challenger and the live version when a decision is due."""

    challenger: NDArray[np.float64] = field(repr=False)
    """[n] losses, oldest first: nats, or squared errors where `relative`."""
    live: NDArray[np.float64] = field(repr=False)
    """[n] losses of the live version on the same rows."""
    time_us: NDArray[np.int64] = field(repr=False)
    """[n] data time of the rows' requests."""
    cohort_us: int
    """Width of a cohort: rows this close are one unit at least."""
    weights: NDArray[np.floating] | None = field(default=None, repr=False)
    """[n]"""
    entities: NDArray[np.int64] | None = field(default=None, repr=False)
    """[n] a code for whom or what each row is about, where losses of one entity go together."""
    slices: Mapping[str, NDArray[Any]] = field(default_factory=dict, repr=False)
    """[n] values of each column whose common values are looked at on their own."""
    baselines: Mapping[str, NDArray[np.float64]] = field(default_factory=dict, repr=False)
    """[n] losses of `no_change`, `majority` … on the same rows; reported, not tested."""
    relative: bool = False
    """Regression: losses are squared errors, differences are relative RMSE."""
    latency_ratio: float = math.nan
    """The challenger's time for a batch over the live version's."""
    enforce_latency: bool = True
    """False: the ratio is recorded only (replays, whose machine is busy with other things)."""
    bytes: int = 0
    """Size of the challenger's weights."""


@dataclass(frozen=True)
class Verdict:
    """What was decided, why in full sentences, and the numbers behind it."""

    verdict: Literal["promoted", "refused", "undecided"]
    reason: str
    metrics: dict[str, float]
    """`difference` and `low` … `high` (one-sided bounds at level `alpha`), `detectable`, `rows`, `blocks`, mean
    losses."""


def decide(evidence: Evidence, recipe: str, settings: GateSettings, alpha: float) -> Verdict:
    """The verdict on a challenger of this recipe ("refresh" or "search") at level `alpha`.

    A verdict that tested nothing has `metrics["alpha"] == 0`: it spends none of the model's error.
    """
    if recipe not in ("refresh", "search"):
        raise ValueError(f"gate: expected recipe 'refresh' or 'search', got {recipe!r}")
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"gate: expected alpha between 0 and 1, got {alpha}")
    evidence = _counted(evidence)
    metrics = _described(evidence, settings)
    untested = _over_budget(evidence, settings) or _too_little(evidence, settings)
    if untested is not None:
        return Verdict(*untested, metrics)
    comparison = _compared(evidence, settings)
    metrics |= _measured(comparison, alpha)
    weak = _too_weak(comparison, settings, alpha, _unit(evidence))
    if weak is not None:
        metrics["alpha"] = 0.0
        return Verdict("undecided", weak, metrics)
    verdict, reason = (_refresh if recipe == "refresh" else _search)(comparison, settings, alpha, _unit(evidence))
    if verdict == "promoted":
        slices = _slices(evidence, settings, alpha, metrics)
        if slices is not None:
            return Verdict(*slices, metrics)
    return Verdict(verdict, f"{reason} {_power(comparison, alpha, _unit(evidence))}", metrics)


Found = tuple[Literal["promoted", "refused", "undecided"], str]


def _refresh(comparison: Comparison, settings: GateSettings, alpha: float, unit: str) -> Found:
    upper, lower = comparison.upper(alpha), comparison.lower(alpha)
    seen = _seen(comparison, unit)
    if lower > 0.0:
        return "refused", f"The challenger is worse: {seen}, at least {lower:.5f} at level {alpha:.2g}."
    if upper < settings.margin:
        return (
            "promoted",
            f"The challenger is no worse: {seen}, at most {upper:+.5f} at level {alpha:.2g}, and the margin is "
            f"{settings.margin:g}.",
        )
    return (
        "undecided",
        f"The challenger could be worse than the margin of {settings.margin:g} allows: {seen}, at most {upper:+.5f} at "
        f"level {alpha:.2g}; nor is it shown to be worse (at least {lower:+.5f}).",
    )


def _search(comparison: Comparison, settings: GateSettings, alpha: float, unit: str) -> Found:
    upper, lower = comparison.upper(alpha), comparison.lower(alpha)
    seen = _seen(comparison, unit)
    if upper < 0.0:
        return "promoted", f"The new recipe is better: {seen}, at most {upper:+.5f} at level {alpha:.2g}."
    if lower > 0.0:
        return "refused", f"The new recipe is worse: {seen}, at least {lower:.5f} at level {alpha:.2g}."
    if comparison.detectable(alpha, POWER) <= settings.margin:
        return (
            "refused",
            f"The new recipe is not shown to be better: {seen}, at most {upper:+.5f} at level {alpha:.2g}; a gain of "
            f"the margin, {settings.margin:g}, would have been seen.",
        )
    return "undecided", f"The new recipe is not shown to be better: {seen}, at most {upper:+.5f} at level {alpha:.2g}."


def _slices(evidence: Evidence, settings: GateSettings, alpha: float, metrics: dict[str, float]) -> Found | None:
    """What a slice has against a promotion, if one has. All must pass, so each is tested at the full level."""
    waits: Found | None = None
    for column, values in evidence.slices.items():
        names, codes, counts = np.unique(values, return_inverse=True, return_counts=True)
        for code in np.flatnonzero(counts >= settings.min_rows):
            comparison = _compared(evidence, settings, np.flatnonzero(codes == code))
            name = f"{column} = {names[code]}"
            metrics[f"slice {name}"] = comparison.difference
            if comparison.blocks < settings.min_blocks:
                continue
            upper, lower = comparison.upper(alpha), comparison.lower(alpha)
            detail = f"{_seen(comparison, _unit(evidence))}, {lower:+.5f} to {upper:+.5f} at level {alpha:.2g}"
            if lower > settings.slice_margin or (lower > 0.0 and upper >= settings.slice_margin):
                return "refused", f"The challenger is worse where {name}: {detail}, beyond {settings.slice_margin:g}."
            if upper >= settings.slice_margin and comparison.detectable(alpha, POWER) <= settings.slice_margin:
                waits = (
                    "undecided",
                    (f"Where {name} the challenger could be worse than {settings.slice_margin:g}: {detail}."),
                )
    return waits


# --- before anything is tested


def _counted(evidence: Evidence) -> Evidence:
    """The newest rows of the evidence, without those on which the live version had no finite loss: they compare
    nothing."""
    rows = np.flatnonzero(np.isfinite(evidence.live))[-EVIDENCE_ROWS:]
    if len(rows) == len(evidence.live):
        return evidence
    return replace(
        evidence,
        challenger=evidence.challenger[rows],
        live=evidence.live[rows],
        time_us=evidence.time_us[rows],
        weights=None if evidence.weights is None else evidence.weights[rows],
        entities=None if evidence.entities is None else evidence.entities[rows],
        slices={name: values[rows] for name, values in evidence.slices.items()},
        baselines={name: losses[rows] for name, losses in evidence.baselines.items()},
    )


def _over_budget(evidence: Evidence, settings: GateSettings) -> Found | None:
    if evidence.bytes > settings.max_bytes:
        return "refused", f"The weights take {evidence.bytes} bytes, and {settings.max_bytes} are allowed."
    if evidence.enforce_latency and evidence.latency_ratio > settings.max_latency_ratio:
        return (
            "refused",
            f"A batch takes {evidence.latency_ratio:.2f} times as long as with the live version, and "
            f"{settings.max_latency_ratio:g} times are allowed.",
        )
    if not np.isfinite(evidence.challenger).all():
        wrong = int(len(evidence.challenger) - np.isfinite(evidence.challenger).sum())
        return "refused", f"The challenger's loss is not finite on {wrong} of {len(evidence.challenger)} rows."
    return None


def _too_little(evidence: Evidence, settings: GateSettings) -> Found | None:
    rows = len(evidence.live)
    if rows >= settings.min_rows:
        return None
    return "undecided", f"There are {rows} rows of evidence, and at least {settings.min_rows} are needed."


def _too_weak(comparison: Comparison, settings: GateSettings, alpha: float, unit: str) -> str | None:
    """Why nothing can be tested on this evidence yet. A look that could hardly show anything would only waste error."""
    if comparison.blocks < settings.min_blocks:
        return (
            f"The {comparison.rows} rows of evidence are {comparison.blocks} independent blocks of time "
            f"({comparison.block_cohorts} cohorts each), and at least {settings.min_blocks} are needed."
        )
    spread = comparison.upper(alpha) - comparison.difference
    if spread <= MOST_SPREAD * settings.margin:
        return None
    return (
        f"The evidence is too noisy to test: {_seen(comparison, unit)}, give or take {spread:.5f} at level "
        f"{alpha:.2g}, and the margin is {settings.margin:g}."
    )


# --- numbers and words


def _compared(evidence: Evidence, settings: GateSettings, rows: NDArray[np.int64] | None = None) -> Comparison:
    part: Any = slice(None) if rows is None else rows
    return compare_losses(
        evidence.challenger[part],
        evidence.live[part],
        evidence.time_us[part],
        cohort_us=evidence.cohort_us,
        weights=None if evidence.weights is None else evidence.weights[part],
        entities=None if evidence.entities is None else evidence.entities[part],
        relative=evidence.relative,
        resamples=settings.bootstrap,
    )


def _described(evidence: Evidence, settings: GateSettings) -> dict[str, float]:
    metrics = {"rows": float(len(evidence.live)), "alpha": 0.0, "bytes": float(evidence.bytes)}
    metrics["margin"] = settings.margin
    sides = {"challenger": evidence.challenger, "live": evidence.live, **evidence.baselines}
    for name, losses in sides.items():
        if len(losses) and np.isfinite(losses).all():
            metrics[f"{name}_loss"] = float(np.average(losses, weights=evidence.weights))
    if math.isfinite(evidence.latency_ratio):
        metrics["latency_ratio"] = evidence.latency_ratio
    return metrics


def _measured(comparison: Comparison, alpha: float) -> dict[str, float]:
    found = {
        "difference": comparison.difference,
        "error": comparison.error,
        "low": comparison.lower(alpha),
        "high": comparison.upper(alpha),
        "detectable": comparison.detectable(alpha, POWER),
        "blocks": float(comparison.blocks),
        "block_cohorts": float(comparison.block_cohorts),
        "alpha": alpha,
    }
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _unit(evidence: Evidence) -> str:
    return "of the RMSE" if evidence.relative else "nats"


def _seen(comparison: Comparison, unit: str) -> str:
    return f"its loss differs by {comparison.difference:+.5f} {unit} on {comparison.rows} rows"


def _power(comparison: Comparison, alpha: float, unit: str) -> str:
    return (
        f"The smallest difference that {comparison.blocks} blocks of time could have shown is "
        f"{comparison.detectable(alpha, POWER):.5f} {unit}."
    )
