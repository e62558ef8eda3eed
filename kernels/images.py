"""Images as they are decoded, uint8 [n, height, width, channels], to what a network takes: normalised planes.

Each value becomes (x / 255 - mean) / deviation of its channel, in [n, channels, height, width] of half, bfloat16 or
float32, in one read and one write: what torchvision does in several (permute and convert, subtract, divide). It is
computed as (x - 255 mean) * (1 / (255 deviation)) with both constants rounded once from float64, which is nearer to the
exact value than those steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from trimtab.kernels.errors import TensorError
from trimtab.kernels.tensors import FLOATS, check_tensor, runs_triton

__all__ = ["channel_constants", "normalise_images", "normalise_images_reference"]

MAX_CHANNELS = 4


def channel_constants(
    mean: Sequence[float], deviation: Sequence[float], device: torch.device | str = "cpu"
) -> torch.Tensor:
    """float32 [2, channels]: what is subtracted from a byte, and what the difference is multiplied by.

    mean and deviation are those of values in [0, 1], as torchvision gives them. Raises TensorError unless there are
    equally many, 1 to 4, finite, and deviations above 0.
    """
    shape = torch.tensor([list(mean), list(deviation)] if len(mean) == len(deviation) else [], dtype=torch.float64)
    if not (shape.dim() == 2 and 1 <= shape.shape[1] <= MAX_CHANNELS and shape.isfinite().all()):
        raise TensorError(f"mean, deviation: expected 1 to 4 finite numbers each, got {list(mean)}, {list(deviation)}")
    if not (shape[1] > 0).all():
        raise TensorError(f"deviation: expected numbers above 0, got {list(deviation)}")
    return torch.stack([255 * shape[0], 1 / (255 * shape[1])]).float().to(device)


def normalise_images(
    images: torch.Tensor,
    constants: torch.Tensor,
    out: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float16,
) -> torch.Tensor:
    """The images [n, channels, height, width], normalised, in `out` or a new tensor of `dtype`.

    images: contiguous uint8 [n, height, width, channels], of 1 to 4 channels; any sizes, 0 included. constants: what
    `channel_constants` gave, on the images' device. out: contiguous, float16, bfloat16 or float32. With `out`, on CUDA,
    this is one launch that allocates nothing and waits for nothing. Raises TensorError.
    """
    check_tensor("images", images, (torch.uint8,), ("n", "height", "width", "channels"), contiguous=True)
    n, height, width, channels = images.shape
    if not 1 <= channels <= MAX_CHANNELS:
        raise TensorError(f"images: expected shape [n, height, width, 1 to {MAX_CHANNELS}], got {list(images.shape)}")
    check_tensor("constants", constants, (torch.float32,), (2, channels), images.device, contiguous=True)
    if out is None:
        if dtype not in FLOATS:
            raise TensorError(f"dtype: expected {' or '.join(map(str, FLOATS))}, got {dtype}")
        out = torch.empty(n, channels, height, width, dtype=dtype, device=images.device)
    check_tensor("out", out, FLOATS, (n, channels, height, width), images.device, contiguous=True)
    pixels = height * width
    if pixels >= 1 << 29:
        raise TensorError(f"images: expected fewer than 2^29 pixels each, got {height} x {width}")
    if not n * pixels:
        return out
    if not runs_triton(images.device):
        out.copy_(normalise_images_reference(images, constants))
        return out
    from trimtab.kernels.triton_images import launch_images

    launch_images(images, out, constants)
    return out


def normalise_images_reference(images: torch.Tensor, constants: torch.Tensor) -> torch.Tensor:
    """float32 [n, channels, height, width]: the same in PyTorch."""
    shift, scale = constants[0, :, None, None], constants[1, :, None, None]
    return (images.permute(0, 3, 1, 2).float() - shift) * scale
