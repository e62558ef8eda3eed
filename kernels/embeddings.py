"""Embeddings: how far one window of them lies from another, by sums that merge; L2-normalised rows on the way.

Each row x is divided by its Euclidean norm (at least 1e-12, as `torch.nn.functional.normalize` does: zero rows stay
zero) and mapped to 2 D random Fourier features z(x) = [cos(x W), sin(x W)] / sqrt(D), columns of W drawn from a normal
distribution of deviation 1 / bandwidth. Then E[z(x) . z(y)] over W is the Gaussian kernel
exp(-|x - y|^2 / (2 bandwidth^2)) (Rahimi and Recht, "Random Features for Large-Scale Kernel Machines", NIPS 2007), and
the squared maximum mean discrepancy of two samples (Gretton et al., "A Kernel Two-Sample Test", JMLR 13, 2012) is the
squared distance of their mean features. So a window is 2 D sums and a count, which add up over batches and nodes.
Pairs of cosine and sine have less variance than cosines with a random phase, and |z(x)| = 1 exactly, which makes the
unbiased estimate computable from the sums (Sutherland and Schneider, "On the Error of Random Fourier Features",
UAI 2015).

A row whose norm is not finite (a NaN, an infinity, squares beyond float32) is missing: counted, and in no sum.

W is rounded to eight significant bits, so that it is the same W in every dtype, and windows of different dtypes
compare.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from trimtab.kernels.errors import SketchError, TensorError
from trimtab.kernels.tensors import FLOATS, check_tensor, runs_triton

__all__ = ["Discrepancy", "FeatureSums", "RandomFeatures", "discrepancy", "random_features"]

MAX_WIDTH = 16384
MAX_FREQUENCIES = 4096
MAX_PROGRAMS = 128
"""How many programs of a kernel may keep sums of their own, for each block of frequencies."""
EPSILON = 1e-12


@dataclass(frozen=True)
class RandomFeatures:
    """Which features. Raises TensorError.

    width: numbers of an embedding, 1 to 16,384. frequencies: D, 1 to 4,096; an estimate's error falls with its root,
    and 256 is usual. bandwidth: of the kernel, 0.01 to 100, between rows of norm 1; the median distance of pairs of the
    reference's rows is usual (Gretton et al.). seed: of W.
    """

    width: int
    frequencies: int = 256
    bandwidth: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, most in (("width", MAX_WIDTH), ("frequencies", MAX_FREQUENCIES)):
            if not 1 <= getattr(self, name) <= most:
                raise TensorError(f"{name}: expected 1 to {most}, got {getattr(self, name)}")
        if not 0.01 <= self.bandwidth <= 100:  # beyond, angles would leave the range that _cos_sin is exact in
            raise TensorError(f"bandwidth: expected 0.01 to 100, got {self.bandwidth}")

    def matrix(self) -> torch.Tensor:
        """W, float32 [width, D], the same numbers in float16 and bfloat16."""
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randn(self.width, self.frequencies, generator=generator) / self.bandwidth
        rounded = drawn.bfloat16().float()
        return torch.where(rounded.abs() < 2.0**-17, 0.0, rounded)  # float16 has fewer bits below that


class FeatureSums:
    """The features of a window of embeddings, summed; belongs to one thread and one stream at a time.

    sums: float64 [2 D] on the device, of cos(x W) and then of sin(x W), not yet divided by sqrt(D). counts: int64 [2],
    rows and missing.
    """

    def __init__(
        self, spec: RandomFeatures, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        if dtype not in FLOATS:
            raise TensorError(f"dtype: expected {' or '.join(map(str, FLOATS))}, got {dtype}")
        self.spec = spec
        self.dtype = dtype
        self.device = torch.empty(0, device=device).device  # cuda is cuda:0
        self.sums = torch.zeros(2 * spec.frequencies, dtype=torch.float64, device=self.device)
        self.counts = torch.zeros(2, dtype=torch.int64, device=self.device)
        self._matrix = spec.matrix().to(self.device, dtype)
        self._partials = torch.empty(MAX_PROGRAMS, 2 * spec.frequencies, dtype=torch.float64, device=self.device)

    def clear(self) -> None:
        """Forgets everything that was added. Queued on the current stream like everything here."""
        self.sums.zero_()
        self.counts.zero_()

    def merge(self, other: FeatureSums) -> None:
        """Adds what other sums of equal features counted, in any dtype. Raises SketchError where features differ."""
        _require_equal(self.spec, other.spec)
        self.sums += other.sums.to(self.device)
        self.counts += other.counts.to(self.device)

    def add(
        self,
        embeddings: torch.Tensor,
        normalised: torch.Tensor | None = None,
        features: torch.Tensor | None = None,
    ) -> None:
        """Adds embeddings [n, width] of this object's dtype, n >= 0.

        normalised: contiguous [n, width], which the L2-normalised rows are written to. features: contiguous [n, 2 D],
        for the features, whose rows have norm 1. Both float32, float16 or bfloat16; missing rows are NaN in them. On
        CUDA this launches two kernels, allocates nothing and waits for nothing, so it can be captured in a graph, once
        one call with the same outputs has compiled it. Raises TensorError.
        """
        check_tensor("embeddings", embeddings, (self.dtype,), ("n", self.spec.width), self.device)
        rows = embeddings.shape[0]
        outputs = (("normalised", normalised, self.spec.width), ("features", features, 2 * self.spec.frequencies))
        for name, out, width in outputs:
            if out is not None:
                check_tensor(name, out, FLOATS, (rows, width), self.device, contiguous=True)
        if not rows:
            return
        if runs_triton(self.device):
            from trimtab.kernels.triton_embeddings import launch_features

            launch_features(embeddings, self._matrix, normalised, features, self.counts, self.sums, self._partials)
        else:
            self._add_reference(embeddings, normalised, features)

    def _add_reference(
        self, embeddings: torch.Tensor, normalised: torch.Tensor | None, features: torch.Tensor | None
    ) -> None:
        """What the kernels do, in PyTorch."""
        unit, z = random_features(embeddings, self._matrix)
        if normalised is not None:
            normalised.copy_(unit)
        if features is not None:
            features.copy_(z)
        known = ~z[:, 0].isnan()
        self.counts[0] += len(known)
        self.counts[1] += (~known).sum()
        self.sums += z[known].sum(0, dtype=torch.float64) * math.sqrt(self.spec.frequencies)


def random_features(embeddings: torch.Tensor, matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The reference, in PyTorch: of embeddings [n, width] and W [width, D] the normalised rows float32 [n, width] and
    the features float32 [n, 2 D]; NaN where a row is missing."""
    x = embeddings.float()
    norm = x.square().sum(1).sqrt()
    unit = x / torch.where(norm.isfinite(), norm.clamp_min(EPSILON), float("nan"))[:, None]
    angles = unit @ matrix.float()
    return unit, torch.cat([angles.cos(), angles.sin()], 1) / math.sqrt(matrix.shape[1])


@dataclass(frozen=True)
class Discrepancy:
    """How far two windows lie apart.

    biased: the squared distance of the mean features, >= 0; where there is no difference up to 1/n + 1/m on average.
    unbiased: the U-statistic, which is 0 on average where there is none, and may be negative; NaN with fewer than two
    rows on a side. Both are of the kernel that these D frequencies stand for, whose values differ from the Gaussian's
    by some 1/sqrt(D). There is no p-value: what is usual is seen from windows between which nothing changed.
    """

    rows: tuple[int, int]
    biased: float
    unbiased: float


def discrepancy(one: FeatureSums, other: FeatureSums) -> Discrepancy:
    """The squared maximum mean discrepancy of two windows. Waits for the devices. Raises SketchError where the features
    differ or a window has no row that is not missing."""
    _require_equal(one.spec, other.spec)
    sums, rows = [], []
    for window in (one, other):
        found, missing = window.counts.tolist()
        if found == missing:
            raise SketchError("windows of embeddings: expected a row that is not missing, got none")
        rows.append(found - missing)
        sums.append(window.sums.cpu().numpy() / math.sqrt(window.spec.frequencies))
    (n, m), (a, b) = rows, sums
    gap = a / n - b / m
    unbiased = math.nan
    if n > 1 and m > 1:  # |z(x)| = 1, so the sums hold n rows' products with themselves
        unbiased = float((a @ a - n) / (n * (n - 1)) + (b @ b - m) / (m * (m - 1)) - 2 * (a @ b) / (n * m))
    return Discrepancy((n, m), float(gap @ gap), unbiased)


def _require_equal(one: RandomFeatures, other: RandomFeatures) -> None:
    if one != other:
        raise SketchError(f"windows of different random features: {one} and {other}")
