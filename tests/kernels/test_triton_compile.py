"""The Triton kernels compile for an H100, without one, and keep to their registers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from trimtab.kernels.embeddings import FeatureSums, RandomFeatures
from trimtab.kernels.images import channel_constants
from trimtab.kernels.predictions import PredictionSpec, PredictionStatistics
from trimtab.kernels.sketch_spec import DEFAULT_PREDICTION_EDGES
from trimtab.kernels.tensors import interpreted

from .offline import Compiled, compiled

pytest.importorskip("triton", reason="Triton is not installed")
if interpreted():
    pytest.skip("a process interprets kernels or compiles them", allow_module_level=True)

from trimtab.kernels import triton_embeddings, triton_images, triton_predictions

HALF, FULL, BRAIN = torch.float16, torch.float32, torch.bfloat16


def of_predictions(
    folder: Path, width: int, dtype: torch.dtype, writes: bool, edges: tuple[float, ...] = DEFAULT_PREDICTION_EDGES
) -> list[Compiled]:
    totals = PredictionStatistics(PredictionSpec(width, edges))
    logits = torch.zeros(100_000 if width < 100 else 50, width, dtype=dtype)
    outs = (torch.empty(logits.shape), torch.empty(len(logits), 3)) if writes else (None, None)
    kept = (totals.counts, totals.classes, totals.moments, totals._partials)
    launcher = triton_predictions.launch_statistics
    return compiled(triton_predictions, lambda: launcher(logits, *outs, kept, totals._edges, totals._shifts), folder)


@pytest.mark.parametrize(
    ("width", "dtype", "writes", "registers"),
    [
        *((1, FULL, True, 104), (2, FULL, False, 80), (2, HALF, True, 96), (3, FULL, True, 112), (5, BRAIN, True, 112)),
        *((10, HALF, False, 96), (10, HALF, True, 128), (32, BRAIN, True, 128), (100, FULL, True, 96)),
        *((250, HALF, False, 64), (250, FULL, True, 80), (1000, FULL, True, 104), (1000, HALF, False, 96)),
        *((2000, BRAIN, True, 112), (10_000, FULL, False, 96), (10_000, HALF, True, 96), (16_384, FULL, True, 128)),
    ],
)
def test_predictions(tmp_path: Path, width: int, dtype: torch.dtype, writes: bool, registers: int) -> None:
    counting, merging = of_predictions(tmp_path, width, dtype, writes)
    assert (counting.stack, merging.stack) == (0, 0)
    assert counting.registers <= registers
    assert merging.registers <= 64
    assert counting.count("ATOMS|MATCH") == 0  # what counts is compares and adds
    if width * dtype.itemsize % 16 == 0 and width > 100:
        assert counting.count(r"LDG\.E\.128") > 0


@pytest.mark.parametrize("width", [2, 10, 1000])
def test_predictions_of_most_edges(tmp_path: Path, width: int) -> None:
    counting, _ = of_predictions(tmp_path, width, FULL, True, tuple(i / 128 for i in range(127)))
    assert counting.stack == 0


@pytest.mark.parametrize(
    ("width", "frequencies", "dtype", "writes"),
    [
        *((768, 256, FULL, False), (768, 256, HALF, False), (768, 256, BRAIN, False), (768, 256, FULL, True)),
        *((768, 256, HALF, True), (100, 100, FULL, False), (100, 100, BRAIN, True), (5, 3, HALF, False)),
    ],
)
def test_embeddings(tmp_path: Path, width: int, frequencies: int, dtype: torch.dtype, writes: bool) -> None:
    sums = FeatureSums(RandomFeatures(width, frequencies), dtype=dtype)
    rows = torch.zeros(1000, width, dtype=dtype)
    outs = (torch.empty(rows.shape), torch.empty(len(rows), 2 * frequencies)) if writes else (None, None)
    launcher = triton_embeddings.launch_features
    summing, merging = compiled(
        triton_embeddings,
        lambda: launcher(rows, sums._matrix, *outs, sums.counts, sums.sums, sums._partials),
        tmp_path,
    )
    assert (summing.stack, merging.stack) == (0, 0)
    assert summing.registers <= (192 if writes else 128)
    assert merging.registers <= 64
    assert summing.count("HGMMA") > 0  # tensor cores, float32 too
    assert summing.count("HMMA|DFMA") == 0


@pytest.mark.parametrize(("channels", "dtype"), [(1, HALF), (2, BRAIN), (3, FULL), (3, HALF), (4, HALF)])
def test_images(tmp_path: Path, channels: int, dtype: torch.dtype) -> None:
    constants = channel_constants([0.5] * channels, [0.25] * channels)

    def of(side: int) -> Compiled:
        images = torch.zeros(2, side, side, channels, dtype=torch.uint8)
        planes = torch.empty(2, channels, side, side, dtype=dtype)
        return compiled(triton_images, lambda: triton_images.launch_images(images, planes, constants), tmp_path)[0]

    words, odd = of(224), of(225)
    assert (words.stack, odd.stack) == (0, 0)
    assert max(words.registers, odd.registers) <= 64
    assert words.count(r"LDG\.E\.U8") == 0
    assert words.count("STG") == words.count(r"STG\.E\.128")
