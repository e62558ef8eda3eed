"""The oracle: what a column program computes, said a second time in NumPy float64 and plain Python.

Slow and simple on purpose. It shares nothing with the native executor but the program, the slab and the layout of a
sketch; the tests hold the executors against it. `real_op` is also what fitting uses to carry values through the ops
that are fitted already.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri
from trimtab._native import Slab
from trimtab.kernels import operations as ops
from trimtab.kernels.joint_spec import FREQUENCIES, ONE, TURN, WIDTH
from trimtab.kernels.operations import FIRST_ID, FP32_MAX, NULL, OOV, Operation
from trimtab.kernels.program import Chain, ColumnProgram
from trimtab.kernels.sketch import Sketch
from trimtab.kernels.sketch_spec import MOMENTS, PREFIX, RealField

Reals = NDArray[np.float64]
Raw = list[str | None] | list[int | None]

_MASK = (1 << 64) - 1


def run_reference(
    program: ColumnProgram, slab: Slab, sketch: Sketch | None = None
) -> tuple[NDArray[np.float64], NDArray[np.int64], Sketch]:
    """Features float64 [n, n_features], ids int64 [n, n_ids], and the rows' sketch (added to `sketch`, where one is
    given)."""
    feature_columns: list[Reals] = []
    id_columns: list[NDArray[np.int64]] = []
    for chain in program.chains:
        features, ids = _run_chain(program, chain, slab)
        feature_columns += features
        id_columns += ids
    features_out = np.zeros((slab.rows, program.n_features))
    ids_out = np.zeros((slab.rows, program.n_ids), np.int64)
    for i, feature in enumerate(feature_columns):
        features_out[:, i] = np.clip(np.where(np.isnan(feature), 0.0, feature), -FP32_MAX, FP32_MAX)
    for i, column in enumerate(id_columns):
        ids_out[:, i] = column
    result = Sketch(program.sketch) if sketch is None else sketch
    _run_sketch(program, slab, result)
    return features_out, ids_out, result


def reference_joint(program: ColumnProgram, slab: Slab, taken: Sequence[int]) -> NDArray[np.int64]:
    """What these rows of the slab add to the joint sums of the program's sketch, int64 [LENGTH]."""
    phases, first = program.sketch.phases.astype(np.int64), 0
    turned = np.zeros((len(taken), FREQUENCIES), np.int64)
    for i, field in enumerate(program.sketch.fields):
        kind = program.fields[i].type
        buckets = np.zeros(slab.rows, np.int64)
        if isinstance(field, RealField):
            raw = _raw_reals(slab, i, kind)
            buckets = np.searchsorted(np.asarray(field.edges, np.float32), raw, side="right")
            buckets = np.where(np.isnan(raw), field.buckets, buckets)
        else:
            position = {value: min(j, field.counted) for j, value in enumerate(field.values)}
            for row, value in enumerate(_raw_categories(slab, i, kind)):
                buckets[row] = field.buckets if value is None else position.get(value, field.buckets + 1)
        turned += phases[first + buckets[list(taken)]]
        first += field.buckets + 2
    angles = 2 * np.pi * (turned % TURN // 16) / (TURN // 16)
    z = np.floor(np.concatenate([np.cos(angles), np.sin(angles)], axis=1) * ONE + 0.5).astype(np.int64)
    products = z.T @ z
    return np.concatenate([[len(z)], z.sum(axis=0), products[np.triu_indices(WIDTH)]])


def real_op(op: Operation, x: Reals) -> Reals:
    """One real op on float64 values; NaN is missing."""
    match op:
        case ops.Impute():
            return np.where(np.isnan(x), op.value, x)
        case ops.Clip():
            return np.clip(x, op.low, op.high)
        case ops.Log1p():
            return np.log1p(np.maximum(x, 0.0))
        case ops.SignedLog():
            return np.sign(x) * np.log1p(np.abs(x))
        case ops.Affine():
            if op.scale == 0:
                return np.where(np.isnan(x), np.nan, 0.0)
            with np.errstate(over="ignore", under="ignore"):
                return (x - op.shift) / op.scale
        case ops.QuantileNormal():
            if not op.knots:
                return np.where(np.isnan(x), np.nan, 0.0)
            # With one knot np.interp answers for NaN, too.
            p = np.where(np.isnan(x), np.nan, np.interp(x, op.knots, op.probabilities))
            return np.asarray(ndtri(np.clip(p, 1e-7, 1 - 1e-7)), np.float64)
    raise TypeError(f"{op.op} is not a real op")


def hash_of(value: str | int) -> int:
    """The 64-bit hash of a category."""
    if isinstance(value, int):
        return _mix(value + 0x9E3779B97F4A7C15)
    h = 0xCBF29CE484222325
    for byte in value.encode():
        h = (h ^ byte) * 0x100000001B3 & _MASK
    return _mix(h)


def _mix(h: int) -> int:
    h &= _MASK
    h = (h ^ h >> 33) * 0xFF51AFD7ED558CCD & _MASK
    h = (h ^ h >> 33) * 0xC4CEB9FE1A85EC53 & _MASK
    return h ^ h >> 33


def _raw_reals(slab: Slab, field: int, kind: str) -> NDArray[np.float32]:
    if kind == "integer":
        values = slab.integers(field)
        missing = values == np.iinfo(np.int64).min
        return np.where(missing, np.float32(np.nan), values.astype(np.float32))
    return slab.reals(field).copy()


def _raw_categories(slab: Slab, field: int, kind: str) -> Raw:
    if kind == "string":
        offsets, data = slab.strings(field)
        content = data.tobytes()
        texts = [content[a:b].decode() for a, b in itertools.pairwise(offsets)]
        return [text or None for text in texts]
    if kind == "integer":
        return [None if value == -(1 << 63) else value for value in slab.integers(field).tolist()]
    return [None if math.isnan(value) else int(value != 0) for value in slab.reals(field).tolist()]


def _run_chain(program: ColumnProgram, chain: Chain, slab: Slab) -> tuple[list[Reals], list[NDArray[np.int64]]]:
    kind = program.fields[chain.field].type
    terminal = chain.terminal
    features: list[Reals] = []
    ids: NDArray[np.int64] | None = None
    raw = np.zeros(0, np.float32)
    if isinstance(terminal, (ops.Vocabulary, ops.HashBucket, ops.Cross)):
        ids = _category_ids(program, chain, slab)
    else:
        raw = _raw_reals(slab, chain.field, kind)
        x = raw.astype(np.float64)
        for op in chain.operations:
            if op is terminal:
                break
            x = real_op(op, x)
        match terminal:
            case None:
                features = [x]
            case ops.Bucketise():
                edges = np.asarray(terminal.edges, np.float32)
                bins = np.searchsorted(edges, x.astype(np.float32), side="right")
                ids = np.where(np.isnan(x), NULL, FIRST_ID + bins)
            case ops.PiecewiseLinear():
                features = _piecewise_linear(terminal, x)
            case ops.Cyclic():
                turns = x / terminal.period
                known = np.isfinite(turns)
                angle = 2 * np.pi * np.where(known, turns - np.floor(np.where(known, turns, 0.0)), 0.0)
                features = [np.where(known, np.sin(angle), 0.0), np.where(known, np.cos(angle), 0.0)]
    if ids is not None and chain.one_hot:
        features = [(ids == i).astype(np.float64) for i in range(1, chain.id_size)]
        ids = None
    if chain.flagged:
        features.append(np.isnan(raw).astype(np.float64))
    return features, [] if ids is None else [ids]


def _piecewise_linear(op: ops.PiecewiseLinear, x: Reals) -> list[Reals]:
    if len(op.edges) < 2:
        return [np.zeros(len(x))]
    known = ~np.isnan(x)
    shares = (np.clip((x - low) / (high - low), 0.0, 1.0) for low, high in zip(op.edges, op.edges[1:], strict=False))
    return [np.where(known, share, 0.0) for share in shares]


def _category_ids(program: ColumnProgram, chain: Chain, slab: Slab) -> NDArray[np.int64]:
    values = _raw_categories(slab, chain.field, program.fields[chain.field].type)
    terminal = chain.terminal
    ids: list[int] = []
    if isinstance(terminal, ops.Vocabulary):
        position = {value: FIRST_ID + i for i, value in enumerate(terminal.values)}
        ids = [NULL if value is None else position.get(value, OOV) for value in values]
    elif isinstance(terminal, ops.HashBucket):
        ids = [NULL if value is None else FIRST_ID + hash_of(value) % terminal.buckets for value in values]
    elif isinstance(terminal, ops.Cross):
        others = _raw_categories(slab, terminal.other, program.fields[terminal.other].type)
        for first, second in zip(values, others, strict=True):
            if first is None or second is None:
                ids.append(NULL)
            else:
                h = _mix(hash_of(first) ^ (_mix(hash_of(second)) + 0x9E3779B97F4A7C15 & _MASK))
                ids.append(FIRST_ID + h % terminal.buckets)
    return np.asarray(ids, np.int64)


def _run_sketch(program: ColumnProgram, slab: Slab, sketch: Sketch) -> None:
    sketch.counts[0] += np.uint64(slab.rows)
    for i, field in enumerate(program.sketch.fields):
        kind = program.fields[i].type
        counts = sketch.counts[slice(*program.sketch.offsets[i : i + 2])]
        moments = sketch.moments[i * MOMENTS : (i + 1) * MOMENTS]
        if isinstance(field, RealField):
            _add_reals(field, _raw_reals(slab, i, kind), counts, moments)
            continue
        position = {value: min(j, field.counted) for j, value in enumerate(field.values)}
        for value in _raw_categories(slab, i, kind):
            if value is None:
                counts[0] += np.uint64(1)
            elif value not in position:
                counts[1] += np.uint64(1)
            else:
                counts[PREFIX + position[value]] += np.uint64(1)


def _add_reals(field: RealField, raw: NDArray[np.float32], counts: NDArray[np.uint64], moments: Reals) -> None:
    known = raw[~np.isnan(raw)]
    finite = known[np.isfinite(known)].astype(np.float64)
    bins = np.searchsorted(np.asarray(field.edges, np.float32), known, side="right")
    added = [
        int(np.isnan(raw).sum()),
        int(((known < np.float32(field.low)) | (known > np.float32(field.high))).sum()),
        int((known == -np.inf).sum()),
        int((known == np.inf).sum()),
        *np.bincount(bins, minlength=field.buckets).tolist(),
    ]
    counts += np.asarray(added, np.uint64)
    if len(finite):
        moments[0] = min(moments[0], finite.min() + 0.0)
        moments[1] = max(moments[1], finite.max() + 0.0)
        moments[2] += math.fsum(finite - field.shift)
        moments[3] += math.fsum((finite - field.shift) ** 2)
