"""The usual chains as the CUDA kernel takes them: impute, clip and one scaling become a clip, a multiplication and a
fill (`Scaled` in csrc/cuda/chains.h). Pure; the CPU executor does the same in csrc/columns_compile.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from trimtab.kernels import operations as ops
from trimtab.kernels.operations import FP32_MAX, Operation


@dataclass(frozen=True)
class Scaling:
    """A chain of impute, clip and one scaling: clip, (x - shift) * inverse, float32; NaN gives fill."""

    clips: bool
    scales: bool
    bounded: bool
    shift: float
    inverse: float
    low: float
    high: float
    fill: float


def scaled_of(operations: Sequence[Operation]) -> Scaling | None:
    """The chain as a Scaling; None where it is another, or clips what was scaled."""
    clip: ops.Clip | None = None
    affine: ops.Affine | None = None
    missing = np.float64(np.nan)
    for op in operations:
        match op:
            case ops.Impute() if affine is None:
                missing = np.float64(op.value) if np.isnan(missing) else missing
            case ops.Clip() if affine is None and clip is None:
                clip = op
                missing = np.clip(missing, op.low, op.high)
            case ops.Affine() if affine is None:
                affine = op
                with np.errstate(over="ignore", under="ignore"):
                    missing = (missing - op.shift) * inverse_of(op.scale) if op.scale or np.isnan(missing) else _ZERO
            case _:
                return None
    low, high = (clip.low, clip.high) if clip else (-np.inf, np.inf)
    shift, inverse = (affine.shift, inverse_of(affine.scale)) if affine else (0.0, 1.0)
    if affine is not None and inverse == 0.0:  # no spread: clipped to 0, and 0 it stays
        clip, affine, low, high, shift, inverse = ops.Clip(0.0, 0.0), None, 0.0, 0.0, 0.0, 1.0
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        ends = (np.asarray([low, high]) - shift) * inverse
    bounded = clip is not None and bool((np.abs(ends) <= FP32_MAX).all())
    fill = 0.0 if np.isnan(missing) else float(np.float32(np.clip(missing, -FP32_MAX, FP32_MAX)))
    return Scaling(clip is not None, affine is not None, bounded, shift, inverse, low, high, fill)


_ZERO = np.float64(0.0)


def inverse_of(scale: float) -> float:
    """See csrc/ops.h."""
    return 0.0 if scale == 0.0 else 1.0 / max(scale, float(np.finfo(np.float64).tiny))
