"""Fitting one real op from a summary of the values that reach it. Pure; every edge case has its answer here.

No values at all (all missing): impute fills 0, clip bounds nothing, scales are 0, quantile_normal gives 0, bucketise
has one bin, piecewise_linear one feature that is 0. A constant: scales are 0, so the feature is 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from trimtab.kernels import operations as ops
from trimtab.kernels.operations import FP32_MAX, Operation
from trimtab.kernels.schema import Transform
from trimtab.kernels.summaries import Moments

Reals = NDArray[np.float64]


def needs_moments(transform: Transform) -> bool:
    """Whether the op is fitted from exact moments of all rows, rather than from the sample."""
    mean = transform.op == "impute" and transform.get("strategy") == "mean"
    return mean or transform.op in ("standardise", "min_max")


def fit_by_moments(transform: Transform, moments: Moments) -> Operation:
    """The op of a transform for which `needs_moments` holds."""
    if transform.op == "impute":
        return ops.Impute(to_fp32(moments.mean), transform.get("flag") is True)
    if transform.op == "standardise":
        return ops.Standardise(moments.mean, moments.deviation)
    if moments.count == 0:
        return ops.MinMax(0.0, 0.0)
    return ops.MinMax(moments.minimum, moments.maximum - moments.minimum)


def fit_by_sample(transform: Transform, values: Reals) -> Operation:
    """The op of any other transform that is not a category's; `values` are finite and ascending."""
    match transform.op:
        case "impute":
            fixed = transform.get("strategy") == "constant"
            return ops.Impute(
                to_fp32(transform.number("value") if fixed else quantile(values, 0.5)), transform.get("flag") is True
            )
        case "clip":
            return _clip(transform, values)
        case "robust":
            return _robust(values)
        case "quantile_normal":
            return _quantile_normal(values, transform.integer("knots"))
        case "bucketise":
            bins = transform.integer("bins")
            return ops.Bucketise(_edges(values, np.arange(1, bins) / bins))
        case "piecewise_linear":
            return ops.PiecewiseLinear(_edges(values, np.linspace(0, 1, transform.integer("bins") + 1)))
        case "cyclic":
            return ops.Cyclic(transform.number("period"))
        case _:
            return ops.OPERATIONS[transform.op]()


def to_fp32(value: float) -> float:
    """The nearest finite float32, as a float; -0 becomes +0."""
    return float(np.float32(min(max(value, -FP32_MAX), FP32_MAX))) + 0.0


def quantile(values: Reals, share: float) -> float:
    """An element of the ascending values: the smallest that at least `share` of them do not exceed; 0 without
    values."""
    return float(np.quantile(values, share, method="inverted_cdf")) if len(values) else 0.0


def _clip(transform: Transform, values: Reals) -> ops.Clip:
    low, high, share = transform.get("low"), transform.get("high"), transform.number("quantile")
    if low is None and high is None and len(values):
        return ops.Clip(to_fp32(quantile(values, share)), to_fp32(quantile(values, 1 - share)))
    return ops.Clip(
        to_fp32(-FP32_MAX if low is None else float(low)), to_fp32(FP32_MAX if high is None else float(high))
    )


def _robust(values: Reals) -> ops.Robust:
    # Where half of the rows are tied the quartiles coincide, and a wider range has to do.
    for share in (0.25, 0.05, 0.0):
        scale = quantile(values, 1 - share) - quantile(values, share)
        if scale > 0:
            return ops.Robust(quantile(values, 0.5), scale)
    return ops.Robust(quantile(values, 0.5), 0.0)


def _quantile_normal(values: Reals, count: int) -> ops.QuantileNormal:
    if not len(values):
        return ops.QuantileNormal((), ())
    shares = np.linspace(0, 1, count)
    knots = _as_fp32(np.quantile(values, shares, method="inverted_cdf"))
    unique, first = np.unique(knots, return_index=True)
    last = np.append(first[1:], count) - 1
    # A value that spans several probabilities stands for their middle.
    middle = (shares[first] + shares[last]) / 2
    return ops.QuantileNormal(tuple(unique.tolist()), tuple(middle.tolist()))


def _edges(values: Reals, shares: NDArray[np.float64]) -> tuple[float, ...]:
    if not len(values) or not len(shares):
        return ()
    return tuple(np.unique(_as_fp32(np.quantile(values, shares, method="inverted_cdf"))).tolist())


def _as_fp32(values: Reals) -> NDArray[np.float64]:
    return np.clip(values, -FP32_MAX, FP32_MAX).astype(np.float32).astype(np.float64) + 0.0
