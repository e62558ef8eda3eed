"""Drift: a window of production against a reference, feature by feature, from sketches alone.

`compare` is the arithmetic; `DriftMonitor` is the policy over it: a pure state machine that is shown one window after
another. A feature drifts in a window when its p-value, adjusted over all features (Benjamini-Hochberg), is at most
alpha *and* its effect (PSI) is at least min_effect; it alarms when it has drifted in `persistence` windows in a row.
Neither alone would do: at small n effects are large by chance, and at large n everything is significant.

A feature's p-value is that of the chi-square test over its bins, with missing as a bin of its own; for an ordered
feature twice the smaller of it and the Kolmogorov-Smirnov p-value (Bonferroni over the two), for categories twice the
smaller of it and that of the unseen values.

A vocabulary holds what the reference had, its most frequent values are those that the reference happened to have most
of, and of a rare value any window has less, or another one that is unseen: compared as they are, categories of many
values always drift. So a value stands alone only where both sides together have so many rows of it that, without
drift, the reference could not but have had it among its most frequent; all others, unseen ones too, are one bin. Given
the rows of both sides together, which side has them is chance, and the test keeps its level (benchmarks/drift.py).
Unseen values are compared with how many were to be expected (CategoryField.novel), one-sided.

How columns go together is compared apart (joint.py), by one test that is not among those that are adjusted for one
another: it drifts where its p-value is at most alpha and its effect at least joint_min_effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from trimtab.kernels import canonical, divergences
from trimtab.kernels.divergences import Counts
from trimtab.kernels.errors import ProgramError, SketchError
from trimtab.kernels.estimate import Estimate, ScoreTable
from trimtab.kernels.joint import MIN_EFFECT, JointDrift, compare_jointly
from trimtab.kernels.operations import number
from trimtab.kernels.sketch import FieldSummary, Sketch
from trimtab.kernels.sketch_spec import CategoryField, RealField

__all__ = ["JOINT", "DriftMonitor", "DriftWindow", "FeatureDrift", "FeatureStatistics", "Statistic", "compare"]

FORMAT = 2
JOINT = "columns together"
"""What the joint comparison is called among features."""


@dataclass(frozen=True)
class Statistic:
    """One statistic: psi, jensen_shannon, ks, wasserstein or chi_square. value: in its own unit. effect: comparable
    between features (psi itself, Jensen-Shannon distance, KS distance, Wasserstein over the reference's deviation,
    Cramér's V)."""

    name: str
    value: float
    effect: float
    p_value: float


@dataclass(frozen=True)
class FeatureStatistics:
    """A feature of the window against the reference. effect: the PSI. Categories have no ks and no wasserstein."""

    feature: str
    rows: int
    reference_rows: int
    statistics: tuple[Statistic, ...]
    p_value: float
    effect: float
    missing_rate: float
    reference_missing_rate: float
    unseen_rate: float
    reference_unseen_rate: float


@dataclass(frozen=True)
class FeatureDrift:
    """What the monitor says of a feature in one window. persistence: windows in a row, this one included, with
    drift."""

    feature: str
    statistics: tuple[Statistic, ...]
    p_value: float
    effect: float
    missing_rate: float
    reference_missing_rate: float
    unseen_rate: float
    reference_unseen_rate: float
    adjusted_p_value: float
    persistence: int
    alarm: bool


@dataclass(frozen=True)
class DriftWindow:
    """One window's report. window: its number, from 1. start_us, end_us: data time, µs UTC. The prediction comes
    last."""

    window: int
    start_us: int
    end_us: int
    rows: int
    reference_rows: int
    features: tuple[FeatureDrift, ...]
    estimate: Estimate | None = None
    """What the window's predictions are likely to cost; None where that cannot be told."""
    reference: str = ""
    """What the window was compared with; empty in records of before there was a choice: the training data."""
    joint: JointDrift | None = None
    """Of the columns together; None where too few rows were sampled, or by an older reference."""

    @property
    def alarms(self) -> tuple[str, ...]:
        """Names of the features that alarm, and `JOINT` where the columns together do."""
        together = (JOINT,) if self.joint is not None and self.joint.alarm else ()
        return (*(feature.feature for feature in self.features if feature.alarm), *together)

    def to_json(self) -> str:
        """Canonical JSON, one line."""
        return canonical.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> DriftWindow:
        """The window that `to_json` wrote. Raises ProgramError."""
        items = canonical.loads(text, "drift window")
        later = {"estimate", "reference", "joint"} - items.keys()  # what windows did not always have
        canonical.as_object(items, "drift window", frozenset(cls.__dataclass_fields__) - later)
        estimate, joint = items.get("estimate"), items.get("joint")
        features = tuple(_feature_from_json(value) for value in canonical.as_list(items["features"], "features"))
        whole = {key: _whole(items[key], key) for key in ("window", "start_us", "end_us", "rows", "reference_rows")}
        return cls(
            **whole,
            features=features,
            estimate=None if estimate is None else Estimate.from_json(estimate),
            reference=canonical.as_text(items.get("reference", ""), "reference"),
            joint=None if joint is None else JointDrift.from_json(joint),
        )


def compare(reference: Sketch, window: Sketch) -> list[FeatureStatistics]:
    """Statistics of every feature, then of the prediction (named `prediction`). Raises SketchError where the specs
    differ."""
    if reference.spec is not window.spec and reference.spec.hash != window.spec.hash:
        raise SketchError("drift: the window's sketch has another spec than the reference's")
    pairs = zip((*reference.fields, reference.prediction), (*window.fields, window.prediction), strict=True)
    return [_compare_field(before, now) for before, now in pairs]


class DriftMonitor:
    """Watches windows against a reference. Pure: the same windows give the same reports; nothing is read or written.

    alpha: share of false drifts to live with. min_effect: least PSI that counts. persistence: windows in a row for an
    alarm. joint_min_effect: least effect of the columns together (JointDrift.effect) that counts.
    """

    def __init__(
        self, reference: Sketch, alpha: float, min_effect: float, persistence: int, joint_min_effect: float = MIN_EFFECT
    ) -> None:
        if persistence < 1:
            raise ProgramError(f"drift monitor: expected a persistence of at least 1, got {persistence}")
        self.reference = reference
        self.alpha = alpha
        self.min_effect = min_effect
        self.persistence = persistence
        self.joint_min_effect = joint_min_effect
        self.windows = 0
        self._in_a_row = [0] * (len(reference.spec.fields) + 2)  # the fields, the prediction, the columns together

    def begin_anew(self) -> None:
        """No feature has drifted in the windows before the next one."""
        self._in_a_row = [0] * len(self._in_a_row)

    def observe(
        self,
        window: Sketch,
        start_us: int,
        end_us: int,
        scores: ScoreTable | None = None,
        reference: Sketch | None = None,
    ) -> DriftWindow:
        """The report on the next window, with an estimate of its loss by `scores`. `reference`: of this window alone,
        in place of the monitor's. Raises SketchError for another spec, and has not counted the window then."""
        reference = self.reference if reference is None else reference
        features = compare(reference, window)
        adjusted = divergences.benjamini_hochberg([feature.p_value for feature in features])
        reports: list[FeatureDrift] = []
        for i, (feature, p_value) in enumerate(zip(features, adjusted, strict=True)):
            drifts = p_value <= self.alpha and feature.effect >= self.min_effect
            self._in_a_row[i] = self._in_a_row[i] + 1 if drifts else 0
            reports.append(
                FeatureDrift(
                    feature=feature.feature,
                    statistics=feature.statistics,
                    p_value=feature.p_value,
                    effect=feature.effect,
                    missing_rate=feature.missing_rate,
                    reference_missing_rate=feature.reference_missing_rate,
                    unseen_rate=feature.unseen_rate,
                    reference_unseen_rate=feature.reference_unseen_rate,
                    adjusted_p_value=p_value,
                    persistence=self._in_a_row[i],
                    alarm=self._in_a_row[i] >= self.persistence,
                )
            )
        self.windows += 1
        estimate = scores.estimate(window.prediction.buckets) if scores is not None else None
        joint = self._jointly(reference, window)
        return DriftWindow(
            self.windows, start_us, end_us, window.rows, reference.rows, tuple(reports), estimate, joint=joint
        )

    def _jointly(self, reference: Sketch, window: Sketch) -> JointDrift | None:
        found = compare_jointly(reference, window)
        drifts = found is not None and found.p_value <= self.alpha and found.effect >= self.joint_min_effect
        self._in_a_row[-1] = in_a_row = self._in_a_row[-1] + 1 if drifts else 0
        return None if found is None else replace(found, persistence=in_a_row, alarm=in_a_row >= self.persistence)

    def to_json(self) -> str:
        """The state without the reference, which is stored with the version."""
        return canonical.dumps(
            {
                "format": FORMAT,
                "reference": self._reference_hash(),
                "alpha": self.alpha,
                "min_effect": self.min_effect,
                "persistence": self.persistence,
                "joint_min_effect": self.joint_min_effect,
                "windows": self.windows,
                "in_a_row": self._in_a_row,
            }
        )

    @classmethod
    def from_json(cls, text: str, reference: Sketch) -> DriftMonitor:
        """The monitor that `to_json` wrote, given the same reference. Raises ProgramError on other text or another
        reference."""
        items = canonical.loads(text, "drift monitor")
        keys = {"format", "reference", "alpha", "min_effect", "persistence", "joint_min_effect", "windows", "in_a_row"}
        canonical.as_object(items, "drift monitor", frozenset(keys))
        if items["format"] != FORMAT:
            raise ProgramError(f"drift monitor: expected format {FORMAT}")
        alpha, effect, joint = (
            number(items[key], f"drift monitor: {key}") for key in ("alpha", "min_effect", "joint_min_effect")
        )
        monitor = cls(reference, alpha, effect, _whole(items["persistence"], "persistence"), joint)
        if items["reference"] != monitor._reference_hash():
            raise ProgramError("drift monitor: the state belongs to another reference")
        monitor.windows = _whole(items["windows"], "windows")
        in_a_row = [_whole(value, "in_a_row") for value in canonical.as_list(items["in_a_row"], "in_a_row")]
        if len(in_a_row) != len(monitor._in_a_row):
            raise ProgramError("drift monitor: expected a count for each feature, the prediction and all together")
        monitor._in_a_row = in_a_row
        return monitor

    def _reference_hash(self) -> str:
        counts, joint = self.reference.counts.tobytes().hex(), self.reference.joint.tobytes().hex()
        return canonical.digest(f"{self.reference.spec.hash} {counts} {joint}")


def _compare_field(before: FieldSummary, now: FieldSummary) -> FeatureStatistics:
    ordered = not isinstance(before.field, CategoryField)
    a, b = (summary.buckets.astype(np.float64) for summary in (before, now))
    counted = (_ordered_bins if ordered else _category_bins)(before, now)
    bins = divergences.pool(*counted, ordered=ordered)
    psi, _ = divergences.psi(*divergences.pool(*counted, ordered=ordered, seen=True))
    psi_p = divergences.psi(*bins)[1]
    jsd, distance, jsd_p = divergences.jensen_shannon(*bins)
    chi, cramer, chi_p = divergences.chi_square(*bins)
    statistics = [Statistic("psi", psi, psi, psi_p), Statistic("jensen_shannon", jsd, distance, jsd_p)]
    p_value = chi_p
    if ordered:
        ks, ks_p = divergences.ks(a, b)
        binned, moved_p = divergences.wasserstein(a, b, _middles(before, now))
        moved = _moved(binned, before, now)
        statistics.append(Statistic("ks", ks, ks, ks_p))
        statistics.append(Statistic("wasserstein", moved, _in_deviations(moved, before, now), moved_p))
        p_value = min(1.0, 2 * min(chi_p, ks_p))
    elif isinstance(before.field, CategoryField):
        p_value = min(1.0, 2 * min(chi_p, _unseen_p_value(before.field, before, now)))
    statistics.append(Statistic("chi_square", chi, cramer, chi_p))
    return FeatureStatistics(
        before.field.name,
        now.rows,
        before.rows,
        tuple(statistics),
        p_value,
        psi,
        now.missing_rate,
        before.missing_rate,
        now.unseen_rate,
        before.unseen_rate,
    )


def _ordered_bins(before: FieldSummary, now: FieldSummary) -> tuple[Counts, Counts]:
    """The buckets, which a number out of the training range is in too, and missing."""
    a, b = (np.append(summary.buckets.astype(np.float64), float(summary.missing)) for summary in (before, now))
    return a, b


def _category_bins(before: FieldSummary, now: FieldSummary) -> tuple[Counts, Counts]:
    """The values that may stand alone, the rest, missing. See the module."""
    a, b = (summary.buckets.astype(np.float64) for summary in (before, now))
    rest_a, rest_b = a[-1] + before.unseen, b[-1] + now.unseen
    n, m = a.sum() + before.unseen, b.sum() + now.unseen
    if n and m:
        # Of t rows together the reference has about Binomial(t, share): three deviations below that mean is still as
        # many as the least frequent of the values that it counts by name.
        share = n / (n + m)
        least = float(a[:-1].min()) if rest_a and len(a) > 1 else 1.0
        spread = 9.0 * share * (1.0 - share)
        together = ((np.sqrt(spread) + np.sqrt(spread + 4.0 * share * least)) / (2.0 * share)) ** 2
        alone = a[:-1] + b[:-1] >= together
    else:
        alone = np.ones(len(a) - 1, np.bool_)
    rest_a, rest_b = rest_a + a[:-1][~alone].sum(), rest_b + b[:-1][~alone].sum()
    return np.append(a[:-1][alone], [rest_a, before.missing]), np.append(b[:-1][alone], [rest_b, now.missing])


def _unseen_p_value(field: CategoryField, before: FieldSummary, now: FieldSummary) -> float:
    """How surprising it is that the window has so many rows of unseen values, or more: given those of both sides
    together they are binomial. The reference has, beside what it did not count, what it would not count in other rows,
    and half a row more, as no count is exactly what is expected."""
    n, m = before.rows - before.missing, now.rows - now.missing
    if not n or not now.unseen:
        return 1.0
    expected = before.unseen + field.novel * n + 0.5
    return float(divergences.special().betainc(now.unseen, expected + 1.0, m / (n + m)))


def _middles(before: FieldSummary, now: FieldSummary) -> Counts:
    """Where a bucket's mass is placed: its middle; for the outer ones, half way to the extremes, but not farther out
    than the next bucket is wide, as tails thin out."""
    edges = np.asarray(before.field.edges if isinstance(before.field, RealField) else (), np.float64)
    if not len(edges):
        return np.zeros(1)
    extremes = [x for s in (before, now) for x in (s.minimum, s.maximum) if not np.isnan(x)]
    widths = np.diff(edges) if len(edges) > 1 else np.asarray([np.inf])
    below = min((edges[0] - min([*extremes, edges[0]])) / 2, widths[0])
    above = min((max([*extremes, edges[-1]]) - edges[-1]) / 2, widths[-1])
    return np.concatenate([[edges[0] - below], (edges[1:] + edges[:-1]) / 2, [edges[-1] + above]])


def _moved(binned: float, before: FieldSummary, now: FieldSummary) -> float:
    """No distance is less than that of the means, which are exact: what sees a change of unit beyond the outer
    edges."""
    apart = abs(now.mean - before.mean)
    return binned if np.isnan(apart) else max(binned, apart)


def _in_deviations(distance: float, before: FieldSummary, now: FieldSummary) -> float:
    """A Wasserstein distance over the reference's standard deviation, or where it has none over the range of both."""
    deviation = float(np.sqrt(before.variance)) if before.variance > 0 else 0.0
    if not deviation:
        extremes = [x for one in (before, now) for x in (one.minimum, one.maximum) if not np.isnan(x)]
        deviation = max(extremes, default=0.0) - min(extremes, default=0.0)
    return distance / deviation if deviation else 0.0


def _whole(value: object, what: str) -> int:
    return canonical.as_integer(value, what, -(1 << 63), (1 << 63) - 1)


def _feature_from_json(value: object) -> FeatureDrift:
    items = canonical.as_object(value, "feature", frozenset(FeatureDrift.__dataclass_fields__))
    if not isinstance(items["alarm"], bool):
        raise ProgramError("feature: alarm is not a boolean")
    rates: Sequence[str] = (
        "p_value",
        "effect",
        "missing_rate",
        "reference_missing_rate",
        "unseen_rate",
        "reference_unseen_rate",
        "adjusted_p_value",
    )
    return FeatureDrift(
        feature=canonical.as_text(items["feature"], "feature"),
        statistics=tuple(_statistic_from_json(s) for s in canonical.as_list(items["statistics"], "statistics")),
        persistence=_whole(items["persistence"], "persistence"),
        alarm=items["alarm"],
        **{key: number(items[key], key) for key in rates},
    )


def _statistic_from_json(value: object) -> Statistic:
    items = canonical.as_object(value, "statistic", frozenset(Statistic.__dataclass_fields__))
    numbers = {key: number(items[key], key) for key in ("value", "effect", "p_value")}
    return Statistic(name=canonical.as_text(items["name"], "statistic"), **numbers)
