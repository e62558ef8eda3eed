"""What the predictions of a window are likely to cost, before any label has come.

Confidence-based performance estimation, from histograms: labelled rows that the model had not seen say what a row
costs whose prediction lies in a bucket, and, for two classes, how many of them are positive; a window's histogram of
predictions says how many rows lie in each. The estimate is the one weighted by the other. It takes the sketch's own
buckets, so a window needs nothing beyond what is counted anyway, and any loss will do.

It assumes that P(label | prediction) has not changed. Where predictions shift because the inputs did, it follows; where
the inputs mean something else than they did (concept drift), it is blind, and only labels tell. The loss of a bucket
counts as one number: what differs within a bucket is lost, which the realised loss of the same rows bounds.

Buckets are joined with their neighbours until each has MIN_ROWS labelled rows. With fewer than twice as many labelled
rows there is no estimate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from trimtab.kernels import canonical
from trimtab.kernels.errors import ProgramError
from trimtab.kernels.operations import increasing, number

__all__ = ["MIN_ROWS", "Estimate", "ScoreTable"]

MIN_ROWS = 30
FORMAT = 1


@dataclass(frozen=True)
class Estimate:
    """Of one window. loss: expected mean, in the table's unit; standard_error: of it, by the labelled rows and the
    window's size. evaluated_loss: the mean of the labelled rows. p_value: two-sided, that the window's predictions cost
    as much as theirs. auc: expected area under the ROC curve, a little low, as rows of one bucket count as ties; None
    where it is not of two classes, or one alone is expected."""

    loss: float
    standard_error: float
    evaluated_loss: float
    p_value: float
    auc: float | None

    @classmethod
    def from_json(cls, value: object) -> Estimate:
        """Of what `dataclasses.asdict` gave. Raises ProgramError."""
        items = canonical.as_object(value, "estimate", frozenset(cls.__dataclass_fields__))
        auc = None if items["auc"] is None else number(items["auc"], "auc")
        loss, error = number(items["loss"], "loss"), number(items["standard_error"], "standard_error")
        return cls(
            loss, error, number(items["evaluated_loss"], "evaluated_loss"), number(items["p_value"], "p_value"), auc
        )


@dataclass(frozen=True)
class ScoreTable:
    """By bucket of the prediction's histogram (edges as in SketchSpec.prediction_edges, B = edges + 1): labelled rows,
    the sums of their losses and of their squares, and of two classes the positives (else all 0 and `binary` false)."""

    edges: tuple[float, ...]
    rows: tuple[int, ...]
    losses: tuple[float, ...]
    squares: tuple[float, ...]
    positives: tuple[int, ...]
    binary: bool

    def __post_init__(self) -> None:
        object.__setattr__(self, "edges", increasing(self.edges, "score table: edges"))
        for name in ("rows", "losses", "squares", "positives"):
            values = getattr(self, name)
            if len(values) != len(self.edges) + 1:
                raise ProgramError(f"score table: {name}: expected {len(self.edges) + 1} buckets, got {len(values)}")
            if not all(math.isfinite(value) for value in values):
                raise ProgramError(f"score table: {name}: not finite")
        if any(not 0 <= k <= n for k, n in zip(self.positives, self.rows, strict=True)):
            raise ProgramError("score table: more positives than rows in a bucket")

    @classmethod
    def of(
        cls,
        edges: tuple[float, ...],
        predictions: NDArray[np.float32],
        losses: NDArray[np.float64],
        positive: NDArray[np.bool_] | None = None,
    ) -> ScoreTable:
        """The table of labelled rows: the number per row that sketches see, float32 [n], its loss [n] and, for two
        classes, whether it is positive [n]. Rows that are not finite are passed over."""
        known = np.isfinite(predictions) & np.isfinite(losses)
        buckets = np.searchsorted(np.asarray(edges, np.float32), predictions[known], side="right")
        size = len(edges) + 1

        def total(weights: NDArray[np.float64]) -> tuple[float, ...]:
            return tuple(np.bincount(buckets, weights, size).tolist())

        truth = np.zeros(int(known.sum())) if positive is None else positive[known].astype(np.float64)
        counts = tuple(int(count) for count in np.bincount(buckets, minlength=size))
        positives = tuple(int(count) for count in total(truth))
        kept = losses[known]
        return cls(edges, counts, total(kept), total(kept * kept), positives, positive is not None)

    def estimate(self, counts: NDArray[np.uint64]) -> Estimate | None:
        """For a window's histogram of predictions, [B]. None where there are too few labelled rows, or no row."""
        total, evidence = int(counts.sum()), sum(self.rows)
        if len(counts) != len(self.rows):
            raise ProgramError(f"score table: expected counts of {len(self.rows)} buckets, got {len(counts)}")
        if not total or evidence < 2 * MIN_ROWS:
            return None
        group = self._groups()
        n, sums, squares, positives, window = (
            np.bincount(group, np.asarray(values, np.float64))
            for values in (self.rows, self.losses, self.squares, self.positives, counts)
        )
        mean = sums / n
        spread = np.maximum(squares / n - mean * mean, 0.0) * n / np.maximum(n - 1.0, 1.0)
        weight, usual = window / total, n / evidence
        loss, evaluated = float(weight @ mean), float(usual @ mean)
        drawn = float(weight @ mean**2) - loss**2
        error = math.sqrt(max(float(weight**2 @ (spread / n)) + drawn / total, 0.0))
        # The same losses stand on both sides: what differs is how the predictions are spread.
        differing = drawn / total + (float(usual @ mean**2) - evaluated**2) / evidence
        z = (loss - evaluated) / math.sqrt(differing) if differing > 0 else 0.0
        p_value = math.erfc(abs(z) / math.sqrt(2.0))
        return Estimate(loss, error, evaluated, p_value, self._auc(weight, positives / n))

    def _auc(self, weight: NDArray[np.float64], share: NDArray[np.float64]) -> float | None:
        if not self.binary:
            return None
        positive, negative = weight * share, weight * (1.0 - share)
        both = float(positive.sum() * negative.sum())
        if both <= 0:
            return None
        below = np.cumsum(negative) - negative
        return float(positive @ (below + negative / 2.0)) / both

    def _groups(self) -> NDArray[np.int64]:
        """The group of each bucket: neighbours, with MIN_ROWS labelled rows each."""
        group = np.zeros(len(self.rows), np.int64)
        current = held = 0
        for bucket, count in enumerate(self.rows):
            if held >= MIN_ROWS:
                current, held = current + 1, 0
            group[bucket] = current
            held += count
        if held < MIN_ROWS and current:
            group[group == current] = current - 1
        return group

    def to_json(self) -> str:
        """Canonical JSON."""
        return canonical.dumps({"format": FORMAT, **{key: getattr(self, key) for key in self.__dataclass_fields__}})

    @classmethod
    def from_json(cls, text: str) -> ScoreTable:
        """What `to_json` wrote. Raises ProgramError."""
        items = canonical.loads(text, "score table")
        canonical.as_object(items, "score table", frozenset({"format", *cls.__dataclass_fields__}))
        if items["format"] != FORMAT:
            raise ProgramError(f"score table: expected format {FORMAT}")

        def reals(key: str) -> tuple[float, ...]:
            return tuple(number(value, f"score table: {key}") for value in canonical.as_list(items[key], key))

        def whole(key: str) -> tuple[int, ...]:
            return tuple(canonical.as_integer(value, key, 0, 1 << 62) for value in canonical.as_list(items[key], key))

        if not isinstance(items["binary"], bool):
            raise ProgramError("score table: binary is not a boolean")
        numbers = reals("edges"), whole("rows"), reals("losses"), reals("squares"), whole("positives")
        return cls(*numbers, items["binary"])
