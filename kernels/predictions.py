"""Statistics of predictions from logits: what a sketch counts of them, and the probabilities, from one read.

Of each row of logits: the prediction (of several classes the largest probability, of one logit the positive class's:
what `Sketch.add_predictions` counts), the entropy in nats, the margin between the two likeliest classes, and the
likeliest class. `PredictionStatistics` keeps running totals on the device and becomes a `Sketch`, so that all that
compares windows compares these.

A row is missing, and counted as nothing else, where its softmax is not a number: with a NaN, with +Inf among several
classes (fp16 logits that overflowed), or where all are -Inf. A single logit of +-Inf is a probability of 1 or 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from trimtab.kernels.errors import TensorError
from trimtab.kernels.operations import FP32_MAX, increasing
from trimtab.kernels.sketch import Sketch
from trimtab.kernels.sketch_spec import (
    DEFAULT_PREDICTION_EDGES,
    MAX_COUNTED,
    MOMENTS,
    PREFIX,
    CategoryField,
    RealField,
    SketchSpec,
)
from trimtab.kernels.tensors import FLOATS, check_tensor, next_power_of_2, runs_triton

__all__ = ["MAX_CLASSES", "STATISTICS", "PredictionSpec", "PredictionStatistics", "prediction_rows"]

MAX_CLASSES = 16384
MAX_EDGES = 127  # beyond, registers would spill
MAX_PROGRAMS = 4096
"""How many programs of a kernel may keep moments of their own."""
STATISTICS = ("prediction", "entropy", "margin")


@dataclass(frozen=True)
class PredictionSpec:
    """What is counted of a model's predictions. width: logits a row, 1 (binary) or one a class, at most 16,384.

    Edges are strictly increasing float32 numbers, at most 127 of each; bucket i counts the values with exactly i edges
    <= x. Entropy edges default to 32 equal parts of [0, log classes], margin edges to those of [0, 1]. Raises
    TensorError, and ProgramError for edges.
    """

    width: int
    prediction_edges: tuple[float, ...] = DEFAULT_PREDICTION_EDGES
    entropy_edges: tuple[float, ...] | None = None
    margin_edges: tuple[float, ...] = DEFAULT_PREDICTION_EDGES

    def __post_init__(self) -> None:
        if not 1 <= self.width <= MAX_CLASSES:
            raise TensorError(f"width: expected 1 to {MAX_CLASSES} logits a row, got {self.width}")
        if self.entropy_edges is None:
            parts = np.asarray(DEFAULT_PREDICTION_EDGES) * np.log(self.classes)
            object.__setattr__(self, "entropy_edges", tuple(parts.astype(np.float32).tolist()))
        for name in ("prediction_edges", "entropy_edges", "margin_edges"):
            edges = increasing(getattr(self, name), name)
            if len(edges) > MAX_EDGES:
                raise TensorError(f"{name}: expected at most {MAX_EDGES}, got {len(edges)}")
            object.__setattr__(self, name, edges)

    @property
    def classes(self) -> int:
        """How many classes are told apart: 2 where there is one logit."""
        return max(self.width, 2)

    @cached_property
    def sketch(self) -> SketchSpec:
        """The same as a sketch's spec: `class`, `entropy`, `margin` and the prediction. Classes beyond the first 4,096
        share a bucket there."""
        chosen = CategoryField("class", tuple(range(self.classes)), min(self.classes, MAX_COUNTED))
        return SketchSpec((chosen, *self._others), self.prediction_edges)

    @property
    def fields(self) -> tuple[RealField, ...]:
        """The numbers that are counted, in the order of STATISTICS."""
        return self.sketch.prediction, *self._others

    @property
    def _others(self) -> list[RealField]:
        named = (("entropy", self.entropy_edges or ()), ("margin", self.margin_edges))
        return [RealField(name, edges, shift=edges[len(edges) // 2] if edges else 0.0) for name, edges in named]


class PredictionStatistics:
    """Running totals of predictions on one device; belongs to one thread and one stream at a time.

    counts: int64 [2 + 3 * (E + 1)], rows, missing, then each statistic's buckets (E: the next power of two of the most
    edges). classes: int64 [classes]. moments: float64 [3, 4], of each statistic minimum, maximum, sum and sum of
    squares of (x - shift).
    """

    def __init__(self, spec: PredictionSpec, device: torch.device | str = "cpu") -> None:
        self.spec = spec
        self.device = torch.empty(0, device=device).device  # cuda is cuda:0
        fields = spec.fields
        self._edges_each = max(16, *(next_power_of_2(max(len(field.edges), 1)) for field in fields))
        edges = np.full((3, self._edges_each), np.nan, np.float32)
        for row, field in zip(edges, fields, strict=True):
            row[: len(field.edges)] = field.edges
        self._edges = torch.from_numpy(edges).to(self.device)
        self._shifts = torch.tensor([field.shift for field in fields], dtype=torch.float64, device=self.device)
        self.counts = torch.zeros(2 + 3 * (self._edges_each + 1), dtype=torch.int64, device=self.device)
        self.classes = torch.zeros(spec.classes, dtype=torch.int64, device=self.device)
        self.moments = torch.empty(3, MOMENTS, dtype=torch.float64, device=self.device)
        self._partials = torch.empty(3 * MOMENTS, MAX_PROGRAMS, dtype=torch.float64, device=self.device)
        self.clear()

    def clear(self) -> None:
        """Forgets everything that was added. Queued on the current stream like everything here."""
        self.counts.zero_()
        self.classes.zero_()
        self.moments.zero_()
        self.moments[:, 0] = float("inf")
        self.moments[:, 1] = float("-inf")

    def add(
        self,
        logits: torch.Tensor,
        probabilities: torch.Tensor | None = None,
        per_row: torch.Tensor | None = None,
    ) -> None:
        """Adds logits [n, width], float32, float16 or bfloat16, n >= 0.

        probabilities: contiguous [n, width] of one of these dtypes, which softmax (of one logit sigmoid) is written to.
        per_row: contiguous float32 [n, 3], for each row the STATISTICS; NaN where it is missing. On CUDA this launches
        two kernels, allocates nothing and waits for nothing, so it can be captured in a graph, once one call with the
        same dtypes has compiled it. Raises TensorError.
        """
        check_tensor("logits", logits, FLOATS, ("n", self.spec.width), self.device)
        rows = logits.shape[0]
        if probabilities is not None:
            shape = (rows, self.spec.width)
            check_tensor("probabilities", probabilities, FLOATS, shape, self.device, contiguous=True)
        if per_row is not None:
            check_tensor("per_row", per_row, (torch.float32,), (rows, 3), self.device, contiguous=True)
        if not rows:
            return
        if runs_triton(self.device):
            from trimtab.kernels.triton_predictions import launch_statistics

            totals = (self.counts, self.classes, self.moments, self._partials)
            launch_statistics(logits, probabilities, per_row, totals, self._edges, self._shifts)
        else:
            self._add_reference(logits, probabilities, per_row)

    def _add_reference(
        self, logits: torch.Tensor, probabilities: torch.Tensor | None, per_row: torch.Tensor | None
    ) -> None:
        """What the kernels do, in PyTorch."""
        values, likeliest, answer = prediction_rows(logits)
        if probabilities is not None:
            probabilities.copy_(answer)
        if per_row is not None:
            per_row.copy_(values)
        known = ~values[:, 0].isnan()
        values = values[known]
        self.counts[0] += len(known)
        self.counts[1] += len(known) - len(values)
        self.classes += torch.bincount(likeliest[known], minlength=self.spec.classes)
        for i, field in enumerate(self.spec.fields):
            column = values[:, i].contiguous()
            start = 2 + i * (self._edges_each + 1)
            places = torch.bucketize(column, self._edges[i, : len(field.edges)], right=True)
            self.counts[start : start + len(field.edges) + 1] += torch.bincount(places, minlength=len(field.edges) + 1)
            if len(column):
                away = column.double() - self._shifts[i]
                found = torch.stack([column.min().double(), column.max().double(), away.sum(), away.square().sum()])
                low, high = torch.minimum(self.moments[i], found), torch.maximum(self.moments[i], found)
                self.moments[i] = torch.stack([low[0], high[1], *(self.moments[i] + found)[2:]])

    def sketch(self) -> Sketch:
        """The totals as a sketch of `spec.sketch`, for merging, keeping and comparing. Waits for the device."""
        sketch = Sketch(self.spec.sketch)
        counts, chosen, moments = (t.cpu().numpy() for t in (self.counts, self.classes, self.moments))
        rows, missing = (np.uint64(count) for count in counts[:2])
        sketch.counts[0] = rows
        buckets = [np.append(chosen[:MAX_COUNTED], chosen[MAX_COUNTED:].sum())]
        for i, field in enumerate(self.spec.fields):
            start = 2 + i * (self._edges_each + 1)
            buckets.append(counts[start : start + field.buckets])
        order = (0, 2, 3, 1)  # class, entropy, margin, and the prediction last
        for place, which in enumerate(order):
            start, stop = sketch.spec.offsets[place : place + 2]
            sketch.counts[start] = missing
            sketch.counts[start + PREFIX : stop] = buckets[which].astype(np.uint64)
        sketch.moments[MOMENTS:] = moments[[1, 2, 0]].reshape(-1)
        return sketch


def prediction_rows(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The reference, in PyTorch: of logits [n, width] the STATISTICS float32 [n, 3], the likeliest class int64 [n] and
    the probabilities float32 [n, width]. A missing row's statistics are NaN, and its class means nothing."""
    x = logits.float()
    binary = x.shape[1] == 1
    if binary:
        x = torch.cat([torch.zeros_like(x), x.clamp(-FP32_MAX, FP32_MAX)], 1)
    top = x.topk(2, 1)
    shifted = x - top.values[:, :1]
    powers = shifted.exp()
    total = powers.sum(1)
    products = torch.where(powers > 0, powers * shifted, 0.0)
    missing = total.isnan()
    entropy = (total.log() - products.sum(1) / total).masked_fill(missing, float("nan"))
    margin = ((1.0 - (top.values[:, 1] - top.values[:, 0]).exp()) / total).masked_fill(missing, float("nan"))
    likeliest = (shifted == 0).int().argmax(1)
    probabilities = powers / total[:, None]
    if binary:
        probabilities = probabilities[:, 1:]
        likeliest = (probabilities[:, 0] >= 0.5).long()
    prediction = probabilities[:, 0] if binary else (1.0 / total)
    return torch.stack([prediction, entropy, margin], 1), likeliest, probabilities
