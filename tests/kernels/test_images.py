"""Normalised images, against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trimtab.kernels.errors import TensorError
from trimtab.kernels.images import channel_constants, normalise_images

from .tolerance import DEVICES, DTYPES, assert_as_good

devices = pytest.mark.parametrize("device", DEVICES)
dtypes = pytest.mark.parametrize("dtype", DTYPES)
MEAN, DEVIATION = (0.485, 0.456, 0.406, 0.5), (0.229, 0.224, 0.225, 1.0)


def exact(images: torch.Tensor) -> Any:
    channels = images.shape[3]
    values = images.numpy().astype(np.float64) / 255
    return ((values - MEAN[:channels]) / DEVIATION[:channels]).transpose(0, 3, 1, 2)


def eager(images: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What one writes in PyTorch, in the output's own dtype."""
    mean, deviation = (
        torch.tensor(numbers[: images.shape[3]], dtype=dtype)[:, None, None] for numbers in (MEAN, DEVIATION)
    )
    return (images.permute(0, 3, 1, 2).to(dtype) / 255 - mean) / deviation


def check(images: torch.Tensor, device: str, dtype: torch.dtype) -> None:
    constants = channel_constants(MEAN[: images.shape[3]], DEVIATION[: images.shape[3]], device)
    found = normalise_images(images.to(device), constants, dtype=dtype)
    assert found.dtype == dtype
    assert_as_good(found, eager(images, dtype), exact(images))


@devices
@dtypes
@pytest.mark.parametrize(
    "shape",
    [
        *((1, 1, 1, 3), (2, 3, 5, 3), (3, 4, 7, 1), (2, 16, 16, 3), (1, 8, 9, 4), (2, 6, 2, 2), (1, 63, 65, 3)),
        *((2, 1, 1023, 2), (1, 32, 33, 4), (0, 4, 4, 3), (2, 0, 4, 3), (1, 40, 52, 3), (5, 2, 2, 3)),
    ],
)
def test_shapes(device: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    check(torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, np.uint8)), device, dtype)


@devices
@dtypes
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_every_byte_in_every_channel(device: str, dtype: torch.dtype, channels: int) -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).repeat(1, 1, 1, channels)
    for channel in range(channels):
        images[..., channel] += 37 * channel
    check(images, device, dtype)


@devices
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4)), st.integers(0, 7), st.data()
)
@settings(max_examples=30)
def test_any_place_in_memory(device: str, shape: tuple[int, ...], offset: int, data: st.DataObject) -> None:
    count = int(np.prod(shape))
    memory = torch.from_numpy(
        np.frombuffer(data.draw(st.binary(min_size=count + offset, max_size=count + offset)), np.uint8).copy()
    )
    images = memory.to(device)[offset:].view(shape)
    constants = channel_constants(MEAN[: shape[3]], DEVIATION[: shape[3]], device)
    out = torch.full((shape[0], shape[3], *shape[1:3]), torch.nan, device=device)
    assert normalise_images(images, constants, out) is out
    assert_as_good(out, eager(images.cpu(), torch.float32), exact(images.cpu()))


@devices
def test_what_is_refused(device: str) -> None:
    images = torch.zeros(2, 4, 4, 3, dtype=torch.uint8, device=device)
    constants = channel_constants(MEAN[:3], DEVIATION[:3], device)
    for wrong, message in [
        (images.float(), "images: expected torch.uint8, got torch.float32"),
        (images[0], r"images: expected shape \[n, height, width, channels\], got \[4, 4, 3\]"),
        (images[:, ::2], "images: expected a contiguous"),
        (images.reshape(2, 4, 2, 6), "1 to 4"),
        (images.reshape(2, 4, 6, 2), r"constants: expected shape \[2, 2\], got \[2, 3\]"),
        (torch.zeros(2, 4, 4, 3, dtype=torch.uint8, device="meta"), "constants: expected a tensor on meta"),
        (torch.empty(1, 1, 1, 1, dtype=torch.uint8, device="meta").expand(1, 1 << 15, 1 << 15, 1), "contiguous"),
    ]:
        with pytest.raises(TensorError, match=message):
            normalise_images(wrong, constants)
    with pytest.raises(TensorError, match=r"out: expected shape \[2, 3, 4, 4\]"):
        normalise_images(images, constants, torch.empty(2, 4, 4, 3, device=device))
    with pytest.raises(TensorError, match="dtype: expected"):
        normalise_images(images, constants, dtype=torch.float64)
    huge = torch.empty(1, 1 << 15, 1 << 14, 3, dtype=torch.uint8, device="meta")
    with pytest.raises(TensorError, match="2\\^29 pixels"):
        normalise_images(huge, constants.to("meta"))


@pytest.mark.parametrize(
    ("mean", "deviation"),
    [([], []), ([0.5], [0.0]), ([0.5], [-1.0]), ([0.5], [0.5, 0.5]), ([0.5] * 5, [0.5] * 5), ([np.nan], [1.0])],
)
def test_constants_that_mean_nothing(mean: list[float], deviation: list[float]) -> None:
    with pytest.raises(TensorError, match="deviation"):
        channel_constants(mean, deviation)


@pytest.mark.gpu
def test_captured_in_a_graph() -> None:
    images = torch.randint(0, 256, (2, 20, 20, 3), dtype=torch.uint8, device="cuda")
    constants = channel_constants(MEAN[:3], DEVIATION[:3], "cuda")
    expected = normalise_images(images, constants)
    out = torch.empty_like(expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        normalise_images(images, constants, out)
    graph.replay()
    assert torch.equal(out, expected)
