"""Where a numeric column's histogram has its edges: at 30 quantiles of a sample of the reference; and where its buckets
lie among the others for a joint sketch.

The inner nineteen bins hold 4.6 % of the reference each, the outer six on either side 0.1, 0.2, 0.4, 0.8, 1.6 and
3.2 %: what moves in the tails alone (a sensor that saturates, amounts of fraud, a unit that changed for few rows) is
otherwise one part in thirty of a bin. Bins that expect too few rows of a window are joined with their neighbours before
anything is tested (`divergences.pool`), so fine outer bins cost small windows nothing. At most 31 edges fit the
executor's registers. Where the last edge is the largest value itself (a constant, a sensor that saturates, a grade),
one more lies just above the largest: a bin that the reference leaves empty, without which nothing that lies higher
would differ from it. Turned down: 31 evenly spaced quantiles, which see 5 % of the rows spread 2.5-fold in 4 % of
windows of 1,000 rows; equally wide bins, which one outlier empties.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from trimtab.kernels.divergences import special
from trimtab.kernels.fit_ops import to_fp32
from trimtab.kernels.joint_spec import JointSpec
from trimtab.kernels.sketch_spec import RealField, SketchField
from trimtab.kernels.summaries import Sample

__all__ = ["EDGE_RANKS", "joint_spec", "number_field"]

_OUTER = (1, 3, 7, 15, 31, 63)
EDGE_RANKS = (*_OUTER, *range(63 + 46, 937, 46), *(1000 - rank for rank in reversed(_OUTER)))
"""The quantiles of the edges, in thousandths."""
_RANKS = np.asarray((*EDGE_RANKS, 500), np.int64)


def number_field(name: str, sample: Sample) -> RealField:
    """What to count of a number: edges by its sample, the range that was seen, the median as the shift of its
    moments."""
    values = sample.values()
    if not len(values):
        return RealField(name, (), 0.0, 0.0)
    edges, median = _quantiles(values)
    edges = np.unique(edges)
    with np.errstate(over="ignore"):
        above = np.nextafter(np.float32(sample.maximum), np.float32(np.inf))
    if edges[-1] >= values[-1] and above > edges[-1] and np.isfinite(above):
        edges = np.append(edges, above)
    return RealField(name, tuple(edges.tolist()), sample.minimum, sample.maximum, median)


def joint_spec(fields: Sequence[SketchField], samples: Sequence[Sample], counted: Sequence[Sequence[int]]) -> JointSpec:
    """The joint part of a sketch of these fields. samples: of the values of numbers. counted: of each category how
    often its counted values occurred, the most frequent first, and then one of the others, if there are."""
    scores, alone = [], []
    for one, sample, counts in zip(fields, samples, counted, strict=True):
        scores.append(_scores(one, sample) if isinstance(one, RealField) else ())
        alone.append(one.buckets if isinstance(one, RealField) else _frequent(counts, one.counted))
    return JointSpec(tuple(scores), tuple(alone))


def _frequent(counts: Sequence[int], counted: int) -> int:
    """How many of the most frequent values any reference would have found to be so: the next value is less frequent by
    three deviations on either side, or there is none, and the last one is not there by chance. What a rank or a
    threshold alone picks it picks for its luck in this reference, and every window would show less of it."""
    for size in range(min(counted, len(counts)), 0, -1):
        last, following = counts[size - 1], counts[size] if size < len(counts) else 0
        if last - 3.0 * math.sqrt(last) >= following + 3.0 * math.sqrt(following) + (following == 0):
            return size
    return 0


def _scores(field: RealField, sample: Sample) -> tuple[float, ...]:
    """Where the values of each bucket lie, in deviations: Φ⁻¹ of the middle of the bucket's part of the sample, to
    three digits, so that no machine's rounding is seen in them."""
    ascending = sample.values()
    if not len(ascending):
        return ()
    below = np.searchsorted(ascending, np.asarray(field.edges, np.float32), side="left") / len(ascending)
    middles = (np.append(below, 1.0) + np.append(0.0, below)) / 2.0
    scores = special().ndtri(np.clip(middles, 1e-4, 1.0 - 1e-4))
    return tuple(round(float(score), 3) + 0.0 for score in scores)


def _quantiles(ascending: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
    """At each rank the least value that so large a share of the values do not exceed. -0 is 0."""
    positions = -(-_RANKS * len(ascending) // 1000) - 1
    found = ascending[np.maximum(positions, 0)] + np.float32(0)
    return found[:-1], to_fp32(float(found[-1]))
