"""What a candidate must show before it may be staged: that it is for these requests, and answers numbers.

Runs on rows served lately, where there are any, and on made-up ones: zeros, ones, everything missing, categories that
nobody has seen, and random numbers of ordinary size. A version that takes tensors was checked against trimtab.toml when
it was loaded, and may answer what it likes. Warming runs every batch size that serving can form, so that the
first requests after a swap do not pay for allocations and kernels chosen late.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from trimtab._native import Schema, Slab, TensorSchema
from trimtab.models.loading import Version
from trimtab.models.made_up import made_up_rows, synthetic_rows
from trimtab.models.tensors import TensorVersion
from trimtab.models.version import LoadedVersion, missing_rows
from trimtab.server.errors import Unfit

__all__ = ["Latency", "batch_sizes", "check_finite", "check_like", "measure"]

_EVERY_SIZE_UP_TO = 1024
_REPEATS = 15


@dataclass(frozen=True, slots=True)
class Latency:
    """Median time of one batch, in µs."""

    one: float
    full: float


def batch_sizes(most: int) -> list[int]:
    """The sizes to warm: all of them, but beyond 1,024 only powers of two and the largest."""
    large = [size for power in range(11, 40) if (size := 1 << power) < most]
    return [*range(1, min(most, _EVERY_SIZE_UP_TO) + 1), *large, *([most] if most > _EVERY_SIZE_UP_TO else [])]


def check_like(candidate: Version, schema: Schema | TensorSchema, live: Version | None) -> None:
    """Raises Unfit unless the candidate takes and gives what clients send and expect."""
    if isinstance(candidate, TensorVersion) or isinstance(schema, TensorSchema) or isinstance(live, TensorVersion):
        return
    ours, theirs = _fields(schema), _fields(candidate.program.schema)
    if ours != theirs:
        different = [f"{a} instead of {b}" for a, b in zip(theirs, ours, strict=False) if a != b]
        what = different[0] if different else f"{len(theirs)} fields instead of {len(ours)}"
        raise Unfit(f"version {candidate.number}: takes other requests than this model's: {what}")
    if live is not None and (candidate.task.outputs(), candidate.task.classes) != (
        live.task.outputs(),
        live.task.classes,
    ):
        raise Unfit(
            f"version {candidate.number}: answers {candidate.task.outputs()} {list(candidate.task.classes)}, "
            f"the live version {live.number} {live.task.outputs()} {list(live.task.classes)}"
        )


def check_finite(candidate: Version, recent: Slab | None) -> None:
    """Raises Unfit where a prediction on recent or made-up rows is NaN or infinite."""
    if isinstance(candidate, TensorVersion):
        return
    probes = [("rows of missing values", missing_rows(candidate.program, 3))]
    probes.append(("made-up rows", synthetic_rows(candidate.program.schema)))
    if recent is not None and recent.rows:
        probes.insert(0, ("rows served lately", recent))
    for what, slab in probes:
        finite = np.isfinite(candidate.predict(slab)).all(axis=1)
        wrong = int(np.count_nonzero(~finite))
        if wrong:
            raise Unfit(f"version {candidate.number}: {wrong} of {slab.rows} predictions on {what} are NaN or infinite")


def measure(candidate: Version, most: int) -> Latency:
    """Times one row and a full batch, on made-up rows."""
    if isinstance(candidate, TensorVersion):
        return Latency(candidate.measure(1), candidate.measure(most))
    full = made_up_rows(candidate.program.schema, most)
    return Latency(_median_us(candidate, full, 1), _median_us(candidate, full, most))


def _fields(schema: Schema) -> list[tuple[str, str]]:
    return list(zip(schema.names, schema.types, strict=True))


def _median_us(candidate: LoadedVersion, slab: Slab, rows: int) -> float:
    times = []
    for _ in range(_REPEATS):
        began = time.perf_counter_ns()
        candidate.predict(slab, None, 0, rows)
        times.append(time.perf_counter_ns() - began)
    return sorted(times)[_REPEATS // 2] / 1000
