"""Which served rows are kept: a pure policy. State and an injected `now` in, decision out; no clock, no file, no
thread.

A request is kept or left as a whole: its id, hashed with a seed, gives a number in [0, 1), and the request is kept
where that number is below its inclusion probability. The probability is recorded with every kept row, so that a
weighted mean over kept rows estimates the mean over all rows without bias (Horvitz and Thompson, 1952): it depends on
the settings, the prediction and what was kept before, never on the hash itself.

    inclusion = rate of the policy ("all": 1; "rate": one number; "stratified": one per stratum of the prediction)
                × rate of the cap

The cap is a bucket of row tokens that fills at max_rows_per_second and holds one second's worth. While it is at least
half full every row is let through; below, the rate falls in proportion to what is left. So a steady overload of D
rows per second settles by itself where rate × D = max_rows_per_second, without measuring D; over t seconds at most
max_rows_per_second × (t + 1) rows pass (plus one batch). Turned down: a fixed number of rows at the start of every
second (it keeps the first rows of each second and no others).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from trimtab._native import sample_ids
from trimtab.store.settings import CaptureSettings

__all__ = ["Kept", "Sampler", "hash_unit"]

_MASK = 0xFFFFFFFFFFFFFFFF


@dataclass(frozen=True, slots=True)
class Kept:
    """What to keep of n rows."""

    indices: NDArray[np.int32] | None
    """The rows kept, ascending; None: all of them."""
    inclusion: NDArray[np.float32]
    """[kept] the probability with which each kept row was to be kept, in (0, 1]."""
    sampled_out: int
    """Rows that the policy left out."""
    capped: int
    """Rows that only the cap left out."""
    owners: NDArray[np.int32] | None = None
    """Where requests were decided about: which of them each kept row is of."""


class Sampler:
    """Decides for batch after batch. Not thread-safe: one thread decides."""

    def __init__(self, settings: CaptureSettings, *, seed: int = 0, capped: bool = True) -> None:
        """`capped=False` leaves the rate cap out (lockstep)."""
        self._seed = seed
        self._sample = settings.sample
        self._rate = settings.rate
        self._edges = np.array(settings.strata_edges, np.float32)
        self._rates = np.array(settings.strata_rates, np.float64)
        self._bucket = _Bucket(float(settings.max_rows_per_second)) if capped else None

    def decide(self, request_ids: NDArray[np.uint8], predictions: NDArray[np.float32], now: float) -> Kept:
        """What to keep of rows with these ids [n, 16] and predictions [n, K], at `now` (seconds, monotonic)."""
        rows = len(request_ids)
        cap = self._bucket.rate(now) if self._bucket is not None else 1.0
        policy = self._policy(predictions)
        if cap >= 1.0 and isinstance(policy, float) and policy >= 1.0:
            kept = Kept(None, np.ones(rows, np.float32), 0, 0)
        elif isinstance(policy, float):
            share = policy * cap
            indices, wanted = sample_ids(np.ascontiguousarray(request_ids), self._seed & _MASK, share, policy)
            kept = Kept(indices, np.full(len(indices), share, np.float32), rows - wanted, wanted - len(indices))
        else:
            number = hash_unit(request_ids, self._seed)
            inclusion = np.broadcast_to(np.asarray(policy * cap, np.float64), (rows,))
            indices = np.flatnonzero(number < inclusion).astype(np.int32)
            wanted = int(np.count_nonzero(number < policy))
            kept = Kept(indices, inclusion[indices].astype(np.float32), rows - wanted, wanted - len(indices))
        if self._bucket is not None:
            self._bucket.take(len(kept.inclusion))
        return kept

    def decide_requests(self, request_ids: NDArray[np.uint8], counts: NDArray[np.int32], now: float) -> Kept | None:
        """As `decide`, of requests with these ids [m, 16] and numbers of rows [m]; None, and nothing is decided, where
        a policy looks at the rows or all of them would be kept."""
        if self._sample == "stratified":
            return None
        policy = 1.0 if self._sample == "all" else self._rate
        share = policy * (self._bucket.rate(now) if self._bucket is not None else 1.0)
        if share >= 1.0:
            return None
        chosen, _ = sample_ids(request_ids, self._seed & _MASK, share, share)
        rows = wanted = int(counts.sum())
        if policy < 1.0:
            wanted = int(counts[sample_ids(request_ids, self._seed & _MASK, policy, policy)[0]].sum())
        if not len(chosen):
            return Kept(chosen, np.empty(0, np.float32), rows - wanted, wanted, chosen)
        starts, shorter = np.cumsum(counts, dtype=np.int32) - counts, counts[chosen]
        owners = np.repeat(chosen, shorter)
        within = np.arange(len(owners), dtype=np.int32) - np.repeat(
            np.cumsum(shorter, dtype=np.int32) - shorter, shorter
        )
        inclusion = np.full(len(owners), share, np.float32)
        if self._bucket is not None:
            self._bucket.take(len(owners))
        return Kept(starts[owners] + within, inclusion, rows - wanted, wanted - len(owners), owners)

    def _policy(self, predictions: NDArray[np.float32]) -> float | NDArray[np.float64]:
        if self._sample == "all":
            return 1.0
        if self._sample == "rate":
            return self._rate
        # With several outputs, the largest: a classifier's confidence. NaN belongs to the last stratum.
        value = predictions.max(axis=1) if predictions.ndim == 2 else predictions
        rates: NDArray[np.float64] = self._rates[np.searchsorted(self._edges, value, side="right")]
        return rates


class _Bucket:
    """Row tokens: see the module."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._tokens = per_second
        self._filled: float | None = None

    def rate(self, now: float) -> float:
        """The rate to let rows through at, after filling up to `now`."""
        if self._filled is not None:
            self._tokens = min(self._per_second, self._tokens + max(0.0, now - self._filled) * self._per_second)
        self._filled = now
        return min(1.0, max(0.0, 2.0 * self._tokens / self._per_second))

    def take(self, rows: int) -> None:
        """Rows were let through; a batch may leave a debt, which must fill up before anything else passes."""
        self._tokens -= rows


def hash_unit(request_ids: NDArray[np.uint8], seed: int = 0) -> NDArray[np.float64]:
    """[n] numbers in [0, 1), one per id of [n, 16]: the finaliser of splitmix64 (Steele et al., 2014) over both
    halves."""
    halves = np.ascontiguousarray(request_ids).view("<u8").reshape(-1, 2)
    mixed = halves[:, 0] * np.uint64(0x9E3779B97F4A7C15) ^ halves[:, 1] ^ np.uint64(seed & _MASK)
    mixed = (mixed ^ mixed >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ mixed >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    unit: NDArray[np.float64] = (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return unit
