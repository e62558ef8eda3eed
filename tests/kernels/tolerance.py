"""The tolerance of every kernel for tensors: what eager PyTorch gets wrong in the same dtype, twice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from trimtab.kernels.tensors import interpreted

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
"""Where the wrappers are tested. On a CPU they take the reference, in Triton's interpreter (test_triton_interpreter.py)
and on a GPU the kernel."""
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def array(tensor: torch.Tensor) -> Any:
    """float64, on the CPU."""
    return tensor.detach().double().cpu().numpy()


def assert_as_good(ours: torch.Tensor, eager: torch.Tensor, exact: Any, floor: float = 2.0**-22) -> None:
    """NaN where the exact values are, and otherwise no further from them than twice what eager is at worst. floor: what
    is allowed where eager happens to be exact."""
    mine, theirs, exact = array(ours), array(eager), np.asarray(exact, np.float64)
    assert mine.shape == exact.shape
    assert np.array_equal(np.isnan(mine), np.isnan(exact))
    known = ~np.isnan(exact)
    if ours.dtype == torch.bfloat16 and interpreted():
        floor += 2.0**-8 * np.abs(exact[known]).max(initial=0.0)  # the interpreter cuts where hardware rounds
    allowed = 2 * np.abs(theirs - exact)[known & ~np.isnan(theirs)].max(initial=0.0) + floor
    assert np.abs(mine - exact)[known].max(initial=0.0) <= allowed
