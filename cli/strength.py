"""How much one column alone says about the label: out of fold, for any kind of column. Pure NumPy.

Values become codes (quantile bins of numbers, the commonest categories, a code for missing). The label's mean per
code is learned on one half of the rows and judged on the other, so that a column with a value of its own in each row
says nothing by that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

__all__ = ["Coder", "auc", "numbers", "strength"]

_SMOOTHING = 1.0


@dataclass(frozen=True)
class Coder:
    """Values of one column as codes 0 … size-1: bins or categories, then "other" (strings), then missing."""

    edges: NDArray[np.float64] | None
    """Numbers: ascending inner edges; bin i is edges[i-1] < x ≤ edges[i]."""
    categories: tuple[str, ...] = ()
    """Strings: the categories that have a code of their own."""

    @classmethod
    def of(cls, sample: pa.Array[Any], most: int) -> Coder:
        """A coder with at most `most` bins or categories, from a sample."""
        if pa.types.is_string(sample.type):
            present: Any = sample.drop_null()
            counted = sorted(present.value_counts().to_pylist(), key=lambda i: (-i["counts"], i["values"]))
            return cls(None, tuple(item["values"] for item in counted[:most]))
        values = numbers(sample)
        values = values[np.isfinite(values)]
        if len(values) == 0:
            return cls(np.zeros(0))
        distinct = np.unique(values)
        if len(distinct) <= most:
            return cls(distinct[:-1])
        return cls(np.unique(np.quantile(values, np.arange(1, most) / most, method="inverted_cdf")))

    @property
    def size(self) -> int:
        """How many codes there are, missing included."""
        return (len(self.categories) + 1 if self.edges is None else len(self.edges) + 1) + 1

    def codes(self, values: pa.Array[Any]) -> NDArray[np.int64]:
        """int64 [n]."""
        if self.edges is None:
            found: Any = pc.index_in(values, value_set=pa.array(self.categories, pa.string()))
            codes = np.asarray(found.fill_null(len(self.categories)).to_numpy(zero_copy_only=False), dtype=np.int64)
            codes[np.asarray(values.is_null().to_numpy(zero_copy_only=False), dtype=bool)] = self.size - 1
            return codes
        plain = numbers(values)
        codes = np.searchsorted(self.edges, plain, side="left").astype(np.int64)
        codes[np.isnan(plain)] = self.size - 1
        return codes


def numbers(values: pa.Array[Any]) -> NDArray[np.float64]:
    """Numbers or booleans as float64 [n], NaN where missing."""
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.uint8())
    return np.asarray(values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), dtype=np.float64)


def strength(codes: NDArray[np.int64], size: int, labels: NDArray[np.float64], task: str) -> float:
    """What the column alone achieves on rows it was not learned from: AUC (binary), mean one-against-rest AUC
    (multiclass) or R² (regression). NaN where there are too few rows of a class to say."""
    known = ~np.isnan(labels)
    codes, labels = codes[known], labels[known]
    if task == "regression":
        return _r_squared(codes, size, labels)
    classes = np.unique(labels)
    if len(classes) < 2:
        return float("nan")
    if task == "binary":
        return _one_class(codes, size, labels == 1)
    each = [_one_class(codes, size, labels == one) for one in classes]
    kept = [value for value in each if not np.isnan(value)]
    return float(np.mean(kept)) if kept else float("nan")


def auc(scores: NDArray[np.float64], positives: NDArray[Any], negatives: NDArray[Any]) -> float:
    """Area under the ROC curve of groups of rows with a common score: P(a positive's is higher) + ½ P(equal)."""
    _, places = np.unique(scores, return_inverse=True)
    up = np.bincount(places, positives)
    down = np.bincount(places, negatives)
    below = np.cumsum(down) - down
    return float((up * (below + 0.5 * down)).sum() / (up.sum() * down.sum()))


def _one_class(codes: NDArray[np.int64], size: int, positive: NDArray[np.bool_]) -> float:
    halves = np.arange(len(codes)) % 2
    found = []
    for half in (0, 1):
        learn, judge = halves == half, halves != half
        if min(positive[judge].sum(), (~positive[judge]).sum()) < 20:
            return float("nan")
        base = positive[learn].mean()
        hits = np.bincount(codes[learn], positive[learn], size) + _SMOOTHING * base
        rate = hits / (np.bincount(codes[learn], minlength=size) + _SMOOTHING)
        up = np.bincount(codes[judge], positive[judge], size)
        down = np.bincount(codes[judge], ~positive[judge], size)
        found.append(auc(rate, up, down))
    return float(np.mean(found))


def _r_squared(codes: NDArray[np.int64], size: int, labels: NDArray[np.float64]) -> float:
    halves = np.arange(len(codes)) % 2
    found = []
    for half in (0, 1):
        learn, judge = halves == half, halves != half
        if judge.sum() < 40 or learn.sum() < 40 or labels[judge].std() == 0:
            return float("nan")
        base = labels[learn].mean()
        means = (np.bincount(codes[learn], labels[learn], size) + _SMOOTHING * base) / (
            np.bincount(codes[learn], minlength=size) + _SMOOTHING
        )
        found.append(1.0 - float(((labels[judge] - means[codes[judge]]) ** 2).mean() / labels[judge].var()))
    return float(np.mean(found))
