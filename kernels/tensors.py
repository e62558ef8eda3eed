"""What the kernels for tensors share: which devices run them in Triton, and checks of what they are given.

Each is three things: the reference in PyTorch, the wrapper that checks its arguments and takes either (`predictions`,
`embeddings`, `images`), and the kernel in Triton (`triton_predictions`...), which alone imports Triton and is imported
when it is first launched: without Triton, or without a GPU, nothing here needs it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec

import torch
from trimtab.kernels.errors import TensorError

__all__ = ["FLOATS", "check_tensor", "interpreted", "next_power_of_2", "runs_triton"]

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
"""The dtypes of logits, embeddings and outputs."""


@cache
def interpreted() -> bool:
    """Whether this process runs Triton's interpreter: TRITON_INTERPRET as Triton itself reads it at its import."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


@cache
def _installed() -> bool:
    return find_spec("triton") is not None


def runs_triton(device: torch.device) -> bool:
    """Whether tensors of this device go to the kernels: on CUDA, and anywhere in the interpreter; else they go to the
    references."""
    return _installed() and (device.type == "cuda" or interpreted())


def next_power_of_2(value: int) -> int:
    """The least power of two that is not below value >= 1."""
    return 1 << (value - 1).bit_length()


def check_tensor(
    name: str,
    tensor: torch.Tensor,
    dtypes: Sequence[torch.dtype],
    shape: Sequence[int | str],
    device: torch.device | None = None,
    *,
    contiguous: bool = False,
) -> None:
    """Raises TensorError unless the tensor has one of the dtypes, the shape (a name: any length) and the device, and
    its rows' elements lie side by side; contiguous: all of them."""
    if tensor.dtype not in dtypes:
        raise TensorError(f"{name}: expected {' or '.join(map(str, dtypes))}, got {tensor.dtype}")
    fits = tensor.dim() == len(shape) and all(
        isinstance(want, str) or want == have for want, have in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        raise TensorError(f"{name}: expected shape [{', '.join(map(str, shape))}], got {list(tensor.shape)}")
    if device is not None and tensor.device != device:
        raise TensorError(f"{name}: expected a tensor on {device}, got one on {tensor.device}")
    if contiguous and not tensor.is_contiguous():
        raise TensorError(f"{name}: expected a contiguous tensor, got strides {tensor.stride()}")
    if tensor.numel() and tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise TensorError(f"{name}: expected rows whose elements lie side by side, got strides {tensor.stride()}")
