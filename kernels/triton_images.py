"""The kernel of `images`: bytes of interleaved channels to normalised planes.

A program takes a run of one image's pixels. Where an image's pixels are a multiple of four, it reads words of four
bytes, four pixels of C channels in C words, takes the bytes out of them in registers, and interleaves each channel's
values to four neighbours a thread; Triton passes half values through shared memory once more, so that a thread writes
16 bytes of a plane. Otherwise it reads bytes and writes values one by one, still next to each other in a warp.
"""

from __future__ import annotations

import torch
from trimtab.kernels.tensors import next_power_of_2
from trimtab.kernels.triton_support import Value, constexpr, jit, launch, tl

__all__ = ["images_kernel", "launch_images"]

_PIXELS = 1024


@jit()
def _word(words: Value, groups: Value, inside: Value, place: constexpr, CHANNELS: constexpr) -> Value:
    """int32: word `place` of each group of CHANNELS words."""
    return tl.load(words + groups * CHANNELS + place, mask=inside, other=0)


@jit()
def _byte(w0: Value, w1: Value, w2: Value, w3: Value, place: constexpr) -> Value:
    """float32: byte `place` of each group of words."""
    word = w0 if place < 4 else w1 if place < 8 else w2 if place < 12 else w3
    return ((word >> (8 * (place % 4))) & 0xFF).to(tl.float32)


@jit()
def _store_plane(
    planes: Value,
    constants: Value,
    image: Value,
    at: Value,
    x: Value,
    channel: constexpr,
    CHANNELS: constexpr,
    PIXELS: constexpr,
) -> None:
    """Writes the normalised values of pixels `at` of one image's channel."""
    shift, scale = tl.load(constants + channel), tl.load(constants + CHANNELS + channel)
    answer = ((x - shift) * scale).to(planes.dtype.element_ty)
    tl.store(planes + (image * CHANNELS + channel) * PIXELS + at, answer, mask=at < PIXELS)


@jit()
def images_kernel(
    images: Value,
    planes: Value,
    constants: Value,
    CHANNELS: constexpr,
    PIXELS: constexpr,
    BLOCK: constexpr,
    WORDS: constexpr,
) -> None:
    """A run of BLOCK pixels of one image. images: int32 words, or bytes where they are not WORDS."""
    runs_each: constexpr = (PIXELS + BLOCK - 1) // BLOCK
    image = (tl.program_id(0) // runs_each).to(tl.int64)
    first = tl.program_id(0) % runs_each * BLOCK
    at = first + tl.arange(0, BLOCK)
    if WORDS:
        groups = first // 4 + tl.arange(0, BLOCK // 4)
        words = images + image * (PIXELS // 4 * CHANNELS)
        inside = groups < PIXELS // 4
        w0 = _word(words, groups, inside, 0, CHANNELS)
        w1 = _word(words, groups, inside, 1, CHANNELS) if CHANNELS > 1 else w0
        w2 = _word(words, groups, inside, 2, CHANNELS) if CHANNELS > 2 else w0
        w3 = _word(words, groups, inside, 3, CHANNELS) if CHANNELS > 3 else w0
        for channel in tl.static_range(CHANNELS):
            x0 = _byte(w0, w1, w2, w3, channel)
            x1 = _byte(w0, w1, w2, w3, CHANNELS + channel)
            x2 = _byte(w0, w1, w2, w3, 2 * CHANNELS + channel)
            x3 = _byte(w0, w1, w2, w3, 3 * CHANNELS + channel)
            x = tl.interleave(tl.interleave(x0, x2), tl.interleave(x1, x3))
            _store_plane(planes, constants, image, at, x, channel, CHANNELS, PIXELS)
    else:
        pixels = images + image * (PIXELS * CHANNELS) + at * CHANNELS
        for channel in tl.static_range(CHANNELS):
            x = tl.load(pixels + channel, mask=at < PIXELS, other=0).to(tl.float32)
            _store_plane(planes, constants, image, at, x, channel, CHANNELS, PIXELS)


def launch_images(images: torch.Tensor, planes: torch.Tensor, constants: torch.Tensor) -> None:
    """Writes contiguous images, at least one pixel, to contiguous planes. Nothing is checked here."""
    n, channels, height, width = planes.shape
    pixels = height * width
    words = pixels % 4 == 0 and images.data_ptr() % 4 == 0
    block = min(max(next_power_of_2(pixels), 16), _PIXELS)
    launch(
        *(images_kernel, n * -(-pixels // block), images.device),
        *(images.view(-1).view(torch.int32) if words else images, planes, constants),
        CHANNELS=channels,
        PIXELS=pixels,
        BLOCK=block,
        WORDS=words,
        num_warps=4,
    )
