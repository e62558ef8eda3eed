"""The trainer's share of a GPU, by NVIDIA's multi-process service (MPS): what its environment must say, decided apart
from looking whether MPS runs.

With MPS, kernels of several processes run on one GPU at the same time, and a client may be kept to a part of the
multiprocessors, and be of less priority than others. Without it the GPU takes turns between processes, and neither
variable does anything.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

__all__ = ["mps_runs", "share_environment"]

_SHARE, _PRIORITY, _PIPES = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "CUDA_MPS_CLIENT_PRIORITY", "CUDA_MPS_PIPE_DIRECTORY"
_DEFAULT_PIPES = "/tmp/nvidia-mps"  # NVIDIA's default
_BELOW_NORMAL = "1"


def share_environment(per_cent: int, *, on_gpu: bool, mps: bool) -> tuple[dict[str, str], str]:
    """What to add to the trainer's environment; and what there is to tell, "" if nothing."""
    if not on_gpu:
        return {}, ""
    if mps:
        return {_PRIORITY: _BELOW_NORMAL, **({_SHARE: str(per_cent)} if per_cent < 100 else {})}, ""
    if per_cent < 100:
        return {}, f"trainer_gpu_share = {per_cent} does nothing: NVIDIA's MPS does not run here"
    return {}, ""


def mps_runs(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether MPS's control daemon has its pipe where clients look for it."""
    try:
        return (Path(environment.get(_PIPES) or _DEFAULT_PIPES) / "control").exists()
    except OSError:
        return False
