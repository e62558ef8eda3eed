"""Drift of the rows as a whole: whether columns still go together as they did, from the joint parts of two sketches.

What is compared are mean embeddings: the means of the rows' random Fourier features (joint_spec.py). Their distance is
the maximum mean discrepancy of the kernel that the features stand for (Gretton et al., JMLR 2012); it sees a change of
any column, and of how columns depend on one another while each looks as it did.

Two tests share the level (twice the smaller p-value). Both take the covariance C of the features from both sides
together, as it is without drift, and look along those of its eigenvectors in which the smaller side has evidence: of
what is rarer means are not normal.

  mmd        |Δ|², which is distributed as Σ λ_i (1/n + 1/m) χ²_1 with the eigenvalues λ_i of C
  whitened   Δ' C⁻¹ Δ, Hotelling's (kernel Fisher discriminant analysis, Harchaoui, Bach and Moulines, 2007): sees what
             is small against the main spread, such as one pair of sixteen columns whose correlation changed

Effects do not grow with the number of rows: `mmd` is an estimate of the discrepancy without the share that chance has
in it, at most 2; `effect` is its square over the spread of single rows, times the number of columns: a shift of one of
them by d deviations makes about d²/2 of it however many there are, where PSI has about d². Rows are taken to be
independent.

Turned down: permutations, which need the rows; a test by blocks of sums, which needs ten times the memory for its
variance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from trimtab.kernels import canonical, divergences
from trimtab.kernels.errors import SketchError
from trimtab.kernels.joint_spec import FREQUENCIES, ONE, WIDTH
from trimtab.kernels.operations import number
from trimtab.kernels.sketch import Sketch
from trimtab.kernels.summaries import row_priorities

__all__ = ["LEAST_ROWS", "MIN_EFFECT", "JointDrift", "compare_jointly", "even_sample"]

LEAST_ROWS = 100
"""Of a side, of which nothing is said with fewer."""
_EVIDENCE = 20.0
"""Variance of a direction times rows that it needs: five rows that are two away from the others."""

MIN_EFFECT = 0.01
"""Least effect that counts where nothing else is said."""
_SAMPLED_ROWS, _SAMPLED_VALUES = 1 << 15, 1 << 22
"""Of a table: more rows of few columns tell hardly more, and of many columns they take long."""
_WINDOW_ROWS, _WINDOW_VALUES = 1000, 1 << 26
"""Likewise of a window of many, and of all of them."""
_LEAST_SPREAD = 0.01 * FREQUENCIES
"""Of single rows, a hundredth of what it is where rows differ: what hardly varies has no spread to measure by."""

Reals = NDArray[np.float64]


@dataclass(frozen=True)
class JointDrift:
    """Of a window. mmd, effect: see the module. p_value: not adjusted, for it is one test beside those of the features.
    rows, reference_rows: the sampled ones that were compared. persistence: windows in a row, this one included, with
    drift; 0 where nobody counts."""

    mmd: float
    effect: float
    p_value: float
    rows: int
    reference_rows: int
    persistence: int = 0
    alarm: bool = False

    @classmethod
    def from_json(cls, value: object) -> JointDrift:
        """Of what `dataclasses.asdict` gave. Raises ProgramError."""
        items = canonical.as_object(value, "joint drift", frozenset(cls.__dataclass_fields__))
        mmd, effect, p_value = (number(items[key], f"joint drift: {key}") for key in ("mmd", "effect", "p_value"))
        rows, before, persistence = (
            canonical.as_integer(items[key], f"joint drift: {key}", 0, 1 << 62)
            for key in ("rows", "reference_rows", "persistence")
        )
        return cls(mmd, effect, p_value, rows, before, persistence, items["alarm"] is True)


def even_sample(first: int, count: int, rows: int, columns: int, windows: int = 1) -> NDArray[np.int64]:
    """Which of the rows [first, first + count) of a table [rows, columns] belong to an even sample that is enough to
    compare it by, or each of `windows` of it, counted from `first`. The same rows however the table is cut into
    batches."""
    columns = max(columns, 1)
    wanted = max(min(_SAMPLED_ROWS, _SAMPLED_VALUES // columns), 4 * LEAST_ROWS)
    if windows > 1:
        wanted = max(wanted, min(_WINDOW_ROWS * windows, _WINDOW_VALUES // columns))
    if rows <= wanted:
        return np.arange(count, dtype=np.int64)
    return np.flatnonzero(row_priorities(first, count) < np.uint64((wanted << 64) // rows))


def compare_jointly(reference: Sketch, window: Sketch) -> JointDrift | None:
    """The window's rows against the reference's; None where the spec has no joint part or a single field, or a side
    fewer than LEAST_ROWS sampled rows. Raises SketchError where the specs differ."""
    if reference.spec is not window.spec and reference.spec.hash != window.spec.hash:
        raise SketchError("drift: the window's sketch has another spec than the reference's")
    if not len(window.joint) or len(window.spec.fields) < 2:
        return None
    n, before, products_before = _moments(reference.joint)
    m, now, products_now = _moments(window.joint)
    if min(n, m) < LEAST_ROWS:
        return None
    moved = now / m - before / n
    together = (before + now) / (n + m)
    covariance = (products_before + products_now) / (n + m) - np.outer(together, together)
    spreads, directions = np.linalg.eigh(covariance)
    spreads = np.maximum(spreads, 0.0)
    each = 1.0 / n + 1.0 / m
    distance, spread = float(moved @ moved), float(spreads.sum())
    if spread <= 0.0:
        return JointDrift(0.0, 0.0, 1.0, m, n)
    seen = spreads * min(n, m) >= _EVIDENCE
    along = directions[:, seen].T @ moved
    raw_p = divergences.weighted_chi_square_tail(spreads[seen] * each, float(along @ along))
    white_p = _whitened_p_value(along, spreads[seen], n, m)
    # The covariance of both together holds the difference of their means, too.
    within = max(spread - distance * n * m / (n + m) ** 2, _LEAST_SPREAD)
    square = max(distance - within * each, 0.0)
    effect = len(window.spec.fields) * square / within
    return JointDrift(math.sqrt(square / FREQUENCIES), effect, min(1.0, 2.0 * min(raw_p, white_p)), m, n)


def _moments(joint: NDArray[np.int64]) -> tuple[int, Reals, Reals]:
    """Rows, the sum of z [WIDTH] and of its products [WIDTH, WIDTH]."""
    products = np.zeros((WIDTH, WIDTH))
    products[np.triu_indices(WIDTH)] = joint[1 + WIDTH :] / float(ONE * ONE)
    return int(joint[0]), joint[1 : 1 + WIDTH] / float(ONE), np.triu(products) + np.triu(products, 1).T


def _whitened_p_value(moved: Reals, spreads: Reals, n: int, m: int) -> float:
    """Of Hotelling's test, by its share R² of the whole spread, which has a beta distribution."""
    dimensions, total = len(spreads), n + m
    if not dimensions or total - dimensions - 1 < dimensions:
        return 1.0
    share = float((moved * moved / spreads).sum()) * n * m / total**2
    p_value = divergences.special().betainc((total - dimensions - 1) / 2.0, dimensions / 2.0, max(1.0 - share, 0.0))
    return float(p_value)
