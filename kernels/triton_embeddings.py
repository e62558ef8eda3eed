"""The kernel of `embeddings`: rows to sums of random Fourier features, and normalised rows and features.

The norm is divided out after the product, x W / |x|, so a tile of rows is read once for both. Products are tensor-core
ones that accumulate in float32: half inputs as they are, float32 by three TF32 products, which is as exact as float32.
Sines and cosines come together from one reduction by multiples of pi / 2 and Cephes' polynomials: the library's slow
path for large arguments would spill registers. A program sums its rows in float64 and a second kernel adds the
programs' sums in order; how many there are depends on the shape alone, so the same rows give the same bits. Where there
are more than 64 frequencies, programs of neighbouring blocks of them read the same rows, all but the first from L2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from trimtab.kernels.embeddings import EPSILON, MAX_PROGRAMS
from trimtab.kernels.tensors import interpreted, next_power_of_2
from trimtab.kernels.triton_support import Value, constexpr, jit, launch, tl

__all__ = ["Plan", "compile_options", "features_kernel", "launch_features", "merge_kernel"]

_EPSILON = tl.constexpr(EPSILON)
# pi / 2 in three parts, the first two short enough that their products with the multiples that occur are exact.
_PART1 = tl.constexpr(1.5703125)
_PART2 = tl.constexpr(4.837512969970703125e-4)
_PART3 = tl.constexpr(7.549789948768648e-8)


@jit()
def _cos_sin(x: Value) -> Value:
    """Cosine and sine of float32 |x| < 10,000, within two units in the last place of 1."""
    quarter = tl.floor(x * 0.6366197723675814 + 0.5)
    r = ((x - quarter * _PART1) - quarter * _PART2) - quarter * _PART3
    turn = quarter.to(tl.int32)
    r2 = r * r
    sine = ((-1.9515295891e-4 * r2 + 8.3321608736e-3) * r2 - 1.6666654611e-1) * r2 * r + r
    cosine = ((2.443315711809948e-5 * r2 - 1.388731625493765e-3) * r2 + 4.166664568298827e-2) * r2 * r2 - 0.5 * r2 + 1.0
    swap = (turn & 1) != 0
    c = tl.where(swap, sine, cosine)
    s = tl.where(swap, cosine, sine)
    return tl.where(((turn + 1) & 2) != 0, -c, c), tl.where((turn & 2) != 0, -s, s)


@jit()
def _total(values: Value, valid: Value, COLUMNS: constexpr) -> Value:
    """float64 [columns]: sums of the valid rows."""
    total = tl.sum(tl.where(valid[:, None], values, 0.0), 0)
    # One column a thread; else Triton leaves the running sums as the product lies, 16 doubles in each thread.
    return tl.gather(total, tl.arange(0, COLUMNS), 0).to(tl.float64)


@jit()
def _write_normalised(
    starts: Value,
    normalised: Value,
    rows: Value,
    present: Value,
    scales: Value,
    WIDTH: constexpr,
    BLOCK_WIDTH: constexpr,
) -> None:
    """Writes a tile's rows times their scales; they were just read, so they come from a cache."""
    for first in range(0, WIDTH, BLOCK_WIDTH):
        at = first + tl.arange(0, BLOCK_WIDTH)
        inside = present[:, None] & (at < WIDTH)[None, :]
        x = tl.load(starts + at[None, :], mask=inside, other=0.0).to(tl.float32) * scales[:, None]
        tl.store(normalised + rows[:, None] * WIDTH + at[None, :], x.to(normalised.dtype.element_ty), mask=inside)


@jit(runtime=("n", "tiles"))
def features_kernel(
    embeddings: Value,
    frequencies: Value,
    normalised: Value,
    features: Value,
    counts: Value,
    partials: Value,
    n: Value,
    tiles: Value,
    WIDTH: constexpr,
    STRIDE: constexpr,
    FREQUENCIES: constexpr,
    BLOCK_ROWS: constexpr,
    BLOCK_FREQUENCIES: constexpr,
    BLOCK_WIDTH: constexpr,
    UPCAST: constexpr,
    WRITE_NORMALISED: constexpr,
    WRITE_FEATURES: constexpr,
) -> None:
    """Sums of the features of a program's tiles, for one block of frequencies, to a row of partials."""
    blocks: constexpr = (FREQUENCIES + BLOCK_FREQUENCIES - 1) // BLOCK_FREQUENCIES
    block = tl.program_id(0) % blocks  # neighbours in the grid read the same rows
    program = tl.program_id(0) // blocks
    places = block * BLOCK_FREQUENCIES + tl.arange(0, BLOCK_FREQUENCIES)
    within = tl.arange(0, BLOCK_WIDTH)
    cosines = tl.zeros([BLOCK_FREQUENCIES], tl.float64)
    sines = tl.zeros([BLOCK_FREQUENCIES], tl.float64)
    found, missing = 0, 0

    tile = 0
    while tile < tiles:  # Triton 3.6's interpreter cannot count to a run-time number with NumPy 2.4
        rows = (program * tiles + tile).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        present = rows < n
        starts = embeddings + rows[:, None] * STRIDE
        products = tl.zeros([BLOCK_ROWS, BLOCK_FREQUENCIES], tl.float32)
        squares = tl.zeros([BLOCK_ROWS], tl.float32)
        for first in range(0, WIDTH, BLOCK_WIDTH):
            at = first + within
            x = tl.load(starts + at[None, :], mask=present[:, None] & (at < WIDTH)[None, :], other=0.0)
            w = tl.load(
                frequencies + at[:, None] * FREQUENCIES + places[None, :],
                mask=(at < WIDTH)[:, None] & (places < FREQUENCIES)[None, :],
                other=0.0,
            )
            if UPCAST:
                x, w = x.to(tl.float32), w.to(tl.float32)
            products = tl.dot(x, w, products, input_precision="tf32x3")
            exact = x.to(tl.float32)
            squares += tl.sum(exact * exact, 1)
        norm = tl.sqrt_rn(squares)
        finite = norm < float("inf")  # not of a NaN
        valid = present & finite
        inverse = tl.where(finite, tl.div_rn(1.0, tl.maximum(norm, _EPSILON)), 0.0)
        angles = tl.where(valid[:, None], products * inverse[:, None], 0.0)
        cosine, sine = _cos_sin(angles)
        cosines += _total(cosine, valid, BLOCK_FREQUENCIES)
        sines += _total(sine, valid, BLOCK_FREQUENCIES)
        found += tl.sum(valid.to(tl.int32), 0)
        missing += tl.sum((present & (finite == 0)).to(tl.int32), 0)

        if WRITE_FEATURES:
            scale: constexpr = FREQUENCIES**-0.5
            kind = features.dtype.element_ty
            to = features + rows[:, None] * (2 * FREQUENCIES) + places[None, :]
            inside = present[:, None] & (places < FREQUENCIES)[None, :]
            tl.store(to, tl.where(finite[:, None], cosine * scale, float("nan")).to(kind), mask=inside)
            tl.store(to + FREQUENCIES, tl.where(finite[:, None], sine * scale, float("nan")).to(kind), mask=inside)
        if WRITE_NORMALISED:
            scales = tl.where(finite, inverse, float("nan"))
            if block == 0:
                _write_normalised(starts, normalised, rows, present, scales, WIDTH, BLOCK_WIDTH)
        tile += 1

    parts = partials + program * (2 * FREQUENCIES) + places
    tl.store(parts, cosines, mask=places < FREQUENCIES)
    tl.store(parts + FREQUENCIES, sines, mask=places < FREQUENCIES)
    if block == 0:
        tl.atomic_add(counts, found + missing, sem="relaxed")
        tl.atomic_add(counts + 1, missing, sem="relaxed")


@jit(runtime=("programs",))
def merge_kernel(partials: Value, sums: Value, programs: Value, WIDTH: constexpr, BLOCK: constexpr) -> None:
    """Adds the programs' sums [programs, WIDTH] to the totals, in an order that the number of programs fixes."""
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    merged = tl.load(sums + places, mask=places < WIDTH, other=0.0)
    first = 0
    while first < programs:
        at = first + tl.arange(0, 32)
        inside = (at < programs)[:, None] & (places < WIDTH)[None, :]
        merged += tl.sum(tl.load(partials + at[:, None] * WIDTH + places[None, :], mask=inside, other=0.0), 0)
        first += 32
    tl.store(sums + places, merged, mask=places < WIDTH)


def compile_options(writes: bool) -> dict[str, Any]:
    """At 128 registers two programs of eight warps fit a multiprocessor, and one computes sines while the other
    multiplies. Where rows or features are written, as many would spill."""
    options = {"num_warps": 8, "num_stages": 3}
    return options if writes else {**options, "maxnreg": 128}


@dataclass(frozen=True)
class Plan:
    """How the kernel is laid out: a pure function of the shape and of whether values have two bytes. programs: at most
    128 of `tiles` tiles each, for each of `blocks` blocks of frequencies."""

    programs: int
    tiles: int
    blocks: int
    block_rows: int
    block_frequencies: int
    block_width: int

    @classmethod
    def of(cls, rows: int, width: int, frequencies: int, dtype: torch.dtype) -> Plan:
        """The plan for rows > 0 rows. Tensor cores take no fewer than 16 of anything."""
        block_rows = min(max(next_power_of_2(rows), 16), 64)
        block_frequencies = min(max(next_power_of_2(frequencies), 16), 64)
        block_width = min(max(next_power_of_2(width), 16), 16 if dtype == torch.float32 else 64)
        all_tiles = -(-rows // block_rows)
        tiles = -(-all_tiles // MAX_PROGRAMS)
        blocks = -(-frequencies // block_frequencies)
        return cls(-(-all_tiles // tiles), tiles, blocks, block_rows, block_frequencies, block_width)


def launch_features(
    embeddings: torch.Tensor,
    matrix: torch.Tensor,
    normalised: torch.Tensor | None,
    features: torch.Tensor | None,
    counts: torch.Tensor,
    sums: torch.Tensor,
    partials: torch.Tensor,
) -> None:
    """Adds embeddings [n, width], n > 0, to counts and sums. partials: float64 [MAX_PROGRAMS, 2 D], room for the
    programs' sums. Nothing is checked here."""
    rows, width = embeddings.shape
    frequencies = matrix.shape[1]
    plan = Plan.of(rows, width, frequencies, embeddings.dtype)
    launch(
        *(features_kernel, plan.programs * plan.blocks, embeddings.device, embeddings, matrix),
        *(embeddings if normalised is None else normalised, embeddings if features is None else features),
        *(counts, partials, rows, plan.tiles),
        WIDTH=width,
        STRIDE=embeddings.stride(0) if rows > 1 else width,
        FREQUENCIES=frequencies,
        BLOCK_ROWS=plan.block_rows,
        BLOCK_FREQUENCIES=plan.block_frequencies,
        BLOCK_WIDTH=plan.block_width,
        UPCAST=interpreted(),  # whose products of bfloat16 are those of their bits
        WRITE_NORMALISED=normalised is not None,
        WRITE_FEATURES=features is not None,
        **compile_options(normalised is not None or features is not None),
    )
    launch(
        *(merge_kernel, -(-2 * frequencies // 32), embeddings.device, partials, sums, plan.programs),
        WIDTH=2 * frequencies,
        BLOCK=32,
        num_warps=4,
    )
