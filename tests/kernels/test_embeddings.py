"""Random features of embeddings and the discrepancy of their windows: against float64 and against the definitions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from trimtab.kernels.embeddings import FeatureSums, RandomFeatures, discrepancy
from trimtab.kernels.errors import SketchError, TensorError
from trimtab.kernels.tensors import runs_triton

from .tolerance import DEVICES, DTYPES, array, assert_as_good

devices = pytest.mark.parametrize("device", DEVICES)
dtypes = pytest.mark.parametrize("dtype", DTYPES)


def exact_rows(embeddings: torch.Tensor, spec: RandomFeatures) -> tuple[NDArray[Any], NDArray[Any]]:
    """Normalised rows and features in float64."""
    x = array(embeddings)
    with np.errstate(all="ignore"):
        norm = np.sqrt((x**2).sum(axis=1, keepdims=True))
        x = np.where(norm**2 <= np.finfo(np.float32).max, x / np.maximum(norm, 1e-12), np.nan)
    angles = x @ array(spec.matrix())
    return x, np.concatenate([np.cos(angles), np.sin(angles)], axis=1) / math.sqrt(spec.frequencies)


def eager_rows(embeddings: torch.Tensor, spec: RandomFeatures) -> tuple[torch.Tensor, torch.Tensor]:
    """What one writes in PyTorch, in the embeddings' own dtype."""
    unit = torch.nn.functional.normalize(embeddings)
    angles = unit @ spec.matrix().to(embeddings.device, embeddings.dtype)
    return unit, torch.cat([angles.cos(), angles.sin()], 1) / math.sqrt(spec.frequencies)


def hostile_rows(rows: int, width: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(rows, width)) * 10.0 ** rng.uniform(-2, 1, size=(rows, 1))
    if rows > 6:
        values[1], values[2, 0], values[3, -1], values[4, 0] = 0.0, np.nan, np.inf, -np.inf
        values[5] = 3e38  # of which no float16 is finite, and of which no float32's square is
    return torch.from_numpy(values).to(dtype)


def added(embeddings: torch.Tensor, spec: RandomFeatures, device: str) -> tuple[FeatureSums, torch.Tensor]:
    sums = FeatureSums(spec, device, embeddings.dtype)
    features = torch.empty(len(embeddings), 2 * spec.frequencies, device=device)
    sums.add(embeddings.to(device), features=features)
    return sums, features.cpu()


def assert_sums(sums: FeatureSums, features: torch.Tensor) -> None:
    known = ~features[:, 0].isnan()
    assert sums.counts.tolist() == [len(features), int((~known).sum())]
    total = array(features[known]).sum(axis=0) * math.sqrt(sums.spec.frequencies)
    np.testing.assert_allclose(array(sums.sums), total, atol=1e-6 * max(len(features), 10))


@devices
@dtypes
@pytest.mark.parametrize(
    ("rows", "width", "frequencies"),
    [(1, 1, 1), (1, 5, 3), (7, 16, 16), (70, 40, 20), (33, 128, 100), (9, 700, 70), (17, 65, 130), (8, 3000, 16)],
)
def test_rows_and_sums(device: str, dtype: torch.dtype, rows: int, width: int, frequencies: int) -> None:
    spec = RandomFeatures(width, frequencies, 0.5)
    embeddings = hostile_rows(rows, width, dtype)
    sums = FeatureSums(spec, device, dtype)
    normalised = torch.empty(rows, width, device=device)
    features = torch.empty(rows, 2 * frequencies, device=device)
    sums.add(embeddings.to(device), normalised, features)
    exact, eager = exact_rows(embeddings, spec), eager_rows(embeddings.to(device), spec)
    assert_as_good(normalised, eager[0], exact[0])
    assert_as_good(features, eager[1], exact[1], 2.0**-20)  # an angle of several radians is a sum of TF32 products
    assert_sums(sums, features.cpu())
    if rows > 6:
        assert normalised[1].tolist() == [0.0] * width  # zero rows stay zero
        assert sums.counts.tolist() == [rows, 4]
        assert_as_good(features[0].norm(), eager[1][0].float().norm(), 1.0, 1e-6)


@devices
@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(0, 20), st.integers(1, 20)),
        elements=st.one_of(
            st.sampled_from([0.0, -0.0, np.nan, np.inf, -np.inf, 1e-30, 1e-45, 3e38]), st.floats(-1e9, 1e9, width=32)
        ),
    )
)
@settings(max_examples=30)
def test_any_rows(device: str, values: NDArray[np.float32]) -> None:
    spec = RandomFeatures(values.shape[1], 5)
    sums, features = added(torch.from_numpy(values), spec, device)
    _, exact = exact_rows(torch.from_numpy(values), spec)
    tiny = np.abs(values).max(axis=1, initial=0.0) < 1e-15  # whose squares float32 does not hold to the last bit
    np.testing.assert_allclose(features.numpy()[~tiny], exact[~tiny], atol=4e-6)
    assert_sums(sums, features)


@devices
@dtypes
def test_large_angles(device: str, dtype: torch.dtype) -> None:
    spec = RandomFeatures(2000, 16, 0.01)
    embeddings = torch.from_numpy(np.random.default_rng(0).normal(size=(20, 2000))).to(dtype)
    embeddings[:16] = spec.matrix().T.to(dtype)  # in a row's own direction its angle is about 4,470
    _, features = added(embeddings, spec, device)
    eager = eager_rows(embeddings.to(device), spec)[1]
    assert_as_good(features, eager, exact_rows(embeddings, spec)[1], 1e-3)


@devices
def test_programs_of_many_tiles(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if runs_triton(torch.device(device)):
        from trimtab.kernels import triton_embeddings

        monkeypatch.setattr(triton_embeddings, "MAX_PROGRAMS", 2)
        assert triton_embeddings.Plan.of(500, 20, 70, torch.float32).tiles > 3
    sums, features = added(hostile_rows(500, 20, torch.float32), RandomFeatures(20, 70), device)
    assert_sums(sums, features)


@devices
def test_windows_add_up(device: str) -> None:
    spec = RandomFeatures(20, 30)
    rows = hostile_rows(150, 20, torch.float32)
    whole, _ = added(rows, spec, device)
    parts = FeatureSums(spec, device)
    for part in (rows[:0], rows[:1], rows[1:90]):
        parts.add(part.to(device))
    parts.merge(added(rows[90:], spec, device)[0])
    assert parts.counts.tolist() == whole.counts.tolist()
    np.testing.assert_allclose(array(parts.sums), array(whole.sums), atol=1e-4)
    again, _ = added(rows, spec, device)
    assert torch.equal(again.sums, whole.sums)  # to the bit
    again.clear()
    assert (again.counts.tolist(), float(again.sums.abs().sum())) == ([0, 0], 0.0)


@devices
def test_windows_of_different_dtypes_compare(device: str) -> None:
    spec = RandomFeatures(24, 40, 0.7)
    for dtype in DTYPES:
        assert torch.equal(spec.matrix().to(dtype).float(), spec.matrix())
    rows = torch.from_numpy(np.random.default_rng(0).normal(size=(40, 24))).bfloat16()  # float16 holds these exactly
    full, half = (added(rows.to(dtype), spec, device)[0] for dtype in (torch.float32, torch.float16))
    np.testing.assert_allclose(array(full.sums), array(half.sums), atol=1e-4)
    assert discrepancy(full, half).biased < 1e-10


@devices
def test_discrepancy_by_definition(device: str) -> None:
    rng = np.random.default_rng(1)
    one, other = rng.normal(size=(30, 8)), rng.normal(size=(45, 8)) + 0.4
    spec = RandomFeatures(8, 2000, 0.8)
    windows = [added(torch.from_numpy(rows).float(), spec, device)[0] for rows in (one, other)]
    found = discrepancy(*windows)
    a, b = (exact_rows(torch.from_numpy(rows), spec)[1] for rows in (one, other))
    pairs = ((a @ a.T).sum() - 30) / (30 * 29) + ((b @ b.T).sum() - 45) / (45 * 44) - 2 * (a @ b.T).mean()
    assert found.rows == (30, 45)
    assert found.unbiased == pytest.approx(pairs, abs=1e-6)
    assert found.biased == pytest.approx(float(((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum()), abs=1e-6)

    # And the kernel is nearly the Gaussian one.
    def gaussian(x: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
        x, y = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, y))
        return np.exp(-((x[:, None] - y[None]) ** 2).sum(axis=2) / (2 * 0.8**2))

    kernels = (
        (gaussian(one, one).sum() - 30) / (30 * 29)
        + (gaussian(other, other).sum() - 45) / (45 * 44)
        - 2 * gaussian(one, other).mean()
    )
    assert found.unbiased == pytest.approx(kernels, abs=0.03)


@devices
def test_discrepancy_of_nothing(device: str) -> None:
    spec = RandomFeatures(3, 4)
    row = added(torch.ones(1, 3), spec, device)[0]
    assert math.isnan(discrepancy(row, row).unbiased)
    assert discrepancy(row, row).biased == 0.0
    with pytest.raises(SketchError, match="not missing"):
        discrepancy(row, added(torch.full((2, 3), torch.nan), spec, device)[0])
    for other in (RandomFeatures(3, 4, seed=1), RandomFeatures(3, 5), RandomFeatures(3, 4, 2.0)):
        with pytest.raises(SketchError, match="different random features"):
            row.merge(FeatureSums(other, device))
        with pytest.raises(SketchError, match="different random features"):
            discrepancy(row, FeatureSums(other, device))


@devices
def test_what_is_refused(device: str) -> None:
    sums = FeatureSums(RandomFeatures(3, 4), device, torch.float16)
    good = torch.zeros(5, 3, dtype=torch.float16, device=device)
    for wrong, message in [
        (good.float(), "embeddings: expected torch.float16, got torch.float32"),
        (good[:, :2], r"embeddings: expected shape \[n, 3\], got \[5, 2\]"),
        (good[0], r"got \[3\]"),
        (good.T.contiguous().T, "side by side"),
    ]:
        with pytest.raises(TensorError, match=message):
            sums.add(wrong)
    with pytest.raises(TensorError, match=r"features: expected shape \[5, 8\]"):
        sums.add(good, features=torch.zeros(5, 4, device=device))
    with pytest.raises(TensorError, match="normalised: expected a contiguous"):
        sums.add(good, torch.zeros(5, 6, device=device)[:, :3])
    assert sums.counts.tolist() == [0, 0]
    with pytest.raises(TensorError, match=r"dtype: expected .* got torch.int8"):
        FeatureSums(RandomFeatures(3, 4), device, torch.int8)
    for arguments in [(0, 1), (16_385, 1), (1, 0), (1, 4097), (1, 1, 0.0), (1, 1, 101.0), (1, 1, math.nan)]:
        with pytest.raises(TensorError, match="expected"):
            RandomFeatures(*arguments)  # type: ignore[arg-type]


@pytest.mark.gpu
def test_captured_in_a_graph() -> None:
    spec = RandomFeatures(20, 70)
    rows = hostile_rows(150, 20, torch.float16).cuda()
    sums, _ = added(rows, spec, "cuda")
    sums.add(rows)
    sums.clear()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        sums.add(rows)
    for _ in range(3):
        graph.replay()
    assert sums.counts.tolist() == [450, 12]
