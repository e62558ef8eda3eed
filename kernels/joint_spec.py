"""How rows are summed up as a whole, so that a change in how columns go together is seen: random Fourier features.

A row's value in every field falls into one of the sketch's buckets, or is missing or unseen. Each of these has
`FREQUENCIES` phases; a row's phases are the sums of its fields', and their cosines and sines are its features z, of
which sums and sums of products are kept (`LENGTH`). For phases that are random and normal the mean of z·z' is a kernel:
the product over the fields of exp(-d²/2F), where F is the number of fields, and d between numbers the distance of their
normal scores (Φ⁻¹ of where the bucket's middle lies in the reference), between categories √2 (Rahimi and Recht, 2007).
Means of z are then mean embeddings, of which kernels/joint.py makes a test.

Of a category only those values stand alone that any reference would have found frequent; the others and unseen ones are
one, for which values are rare, or there at all, is chance in the reference, and every window would differ.

All of it is integers: phases are shares of a turn in 16 bits, which wrap where angles do, z are multiples of 2^-13, and
sums are exact. So sketches of the same rows are equal bit for bit whatever merged them, on every machine. Phases are
derived from the spec by a counter-based generator and multiplications alone, without libm.

Turned down: features of the raw values (one outlier, or one unit, would rule the kernel; floating-point sums depend on
their order); 64 frequencies (four times the memory for little power at 1,000 rows).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from trimtab.kernels import canonical
from trimtab.kernels.errors import ProgramError
from trimtab.kernels.operations import number

__all__ = ["FREQUENCIES", "LENGTH", "ONE", "TURN", "WIDTH", "JointSpec"]

FREQUENCIES = 32
WIDTH = 2 * FREQUENCIES
"""Features of a row: the cosines, then the sines."""
LENGTH = 1 + WIDTH + WIDTH * (WIDTH + 1) // 2
"""Integers of a sketch's joint part: rows, sums of z, sums of z_i z_j for i <= j by rows of the upper triangle."""
ONE = 1 << 13
"""What stands for 1 in z."""
TURN = 1 << 16
"""What stands for 2π in a phase."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_UNIFORMS = 12  # of 16 bits, whose sum is nearly normal
_DEVIATION = 131072.0  # of such a sum of odd numbers within ±65535


@dataclass(frozen=True)
class JointSpec:
    """scores: for each field where the values of its buckets lie, in deviations of a normal distribution; none where
    buckets have no order. alone: of each field without scores how many of its first buckets are told apart; the others
    and unseen values are one, as far from these and from missing values as those from one another."""

    scores: tuple[tuple[float, ...], ...]
    alone: tuple[int, ...]
    seed: int = 1

    def __post_init__(self) -> None:
        for scores in self.scores:
            for score in scores:
                if not -16.0 <= score <= 16.0:
                    raise ProgramError(f"joint sketch: expected scores within ±16, got {score!r}")
        canonical.as_integer(self.seed, "joint sketch: seed", 0, (1 << 63) - 1)

    def check(self, buckets: Sequence[int]) -> None:
        """Raises ProgramError where the fields do not have so many buckets."""
        if len(self.scores) != len(buckets) or len(self.alone) != len(buckets):
            raise ProgramError(f"joint sketch: expected scores of {len(buckets)} fields, got {len(self.scores)}")
        for i, (scores, alone, count) in enumerate(zip(self.scores, self.alone, buckets, strict=True)):
            if scores and len(scores) != count:
                raise ProgramError(f"joint sketch: field {i} has {count} buckets and {len(scores)} scores")
            canonical.as_integer(alone, f"joint sketch: field {i}: alone", 0, count)

    def phases(self, buckets: Sequence[int]) -> NDArray[np.uint16]:
        """[Σ(buckets + 2), FREQUENCIES]: for each field the phases of its buckets, of missing, of unseen."""
        parts = []
        narrow = 1.0 / math.sqrt(max(len(buckets), 1)) * (TURN / 6.283185307179586)
        for i, (scores, alone, count) in enumerate(zip(self.scores, self.alone, buckets, strict=True)):
            turns = self._normal(i, count + 3) * narrow
            if scores:
                # The field's own frequencies are the last row.
                turns[:count] = turns[count + 2] * np.asarray(scores, np.float64)[:, None]
            else:
                turns[alone:count] = turns[count + 1]
            parts.append(np.floor(turns[: count + 2] + 0.5).astype(np.int64).astype(np.uint16))
        return np.concatenate(parts) if parts else np.zeros((0, FREQUENCIES), np.uint16)

    def _normal(self, field: int, rows: int) -> NDArray[np.float64]:
        """[rows, FREQUENCIES] of a field: nearly normal, variance 1; exact sums of integers over a power of two."""
        size = rows * FREQUENCIES * _UNIFORMS // 4
        start = _mix(_mix(np.asarray([self.seed], np.uint64)) + np.uint64(field))
        with np.errstate(over="ignore"):
            words = _mix(start + _GOLDEN * np.arange(1, size + 1, dtype=np.uint64))
        uniforms = words.astype("<u8").view("<u2").astype(np.int64).reshape(rows, FREQUENCIES, _UNIFORMS)
        sums: NDArray[np.float64] = (2 * uniforms - (TURN - 1)).sum(axis=2) / _DEVIATION
        return sums

    def to_json(self) -> dict[str, object]:
        """As an object of canonical JSON."""
        return {"seed": self.seed, "scores": [list(scores) for scores in self.scores], "alone": list(self.alone)}

    @classmethod
    def from_json(cls, value: object) -> JointSpec:
        """What `to_json` gave. Raises ProgramError."""
        items = canonical.as_object(value, "joint sketch", frozenset({"seed", "scores", "alone"}))
        scores = tuple(
            tuple(number(score, "joint sketch: score") for score in canonical.as_list(one, "joint sketch: scores"))
            for one in canonical.as_list(items["scores"], "joint sketch: scores")
        )
        alone = tuple(
            canonical.as_integer(count, "joint sketch: alone", 0, 1 << 31)
            for count in canonical.as_list(items["alone"], "joint sketch: alone")
        )
        return cls(scores, alone, canonical.as_integer(items["seed"], "joint sketch: seed", 0, (1 << 63) - 1))


def _mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele, Lea and Flood, 2014)."""
    with np.errstate(over="ignore"):
        words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
