"""The kernel of `predictions`: rows of logits to counts and moments, and probabilities.

A program takes tiles of whole rows, and every sum that it needs stays in registers until its last tile. Rows of up to
512 logits a warp stay in registers too; longer ones are read again from the cache, once for the largest and once for
the sums. Counts are integers: for each edge the values that are >= it, which costs one compare and one add whatever the
values are; `tl.histogram` of Triton 3.6 lowers to ballots, 80 to 180 instructions a value, and atomics in a loop make
rows of one bin slow. At its end a program adds them to the totals by integer atomics, which give the same in any order.
Moments are float64: a program's go to a column of their own, and a second kernel adds these up in order. How many
programs there are depends on the shape alone, so the same rows give the same bits.

Turned down: an online softmax in one pass, which takes two exponentials a logit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from trimtab.kernels.predictions import MAX_PROGRAMS
from trimtab.kernels.sketch_spec import MOMENTS
from trimtab.kernels.tensors import next_power_of_2
from trimtab.kernels.triton_support import Value, constexpr, jit, launch, tl

__all__ = ["Plan", "launch_statistics", "merge_kernel", "statistics_kernel"]

_FP32_MAX = tl.constexpr(3.4028234663852886e38)


@jit()
def _load_logits(logits: Value, starts: Value, present: Value, columns: Value, WIDTH: constexpr) -> Value:
    """float32 [rows, columns]. One logit x is read as the two logits 0 and x; what is beyond the width is -Inf."""
    if WIDTH == 1:
        at = logits + starts[:, None] + (columns * 0)[None, :]
        x = tl.load(at, mask=present[:, None] & (columns == 1)[None, :], other=0.0).to(tl.float32)
        return tl.where(tl.abs(x) == float("inf"), tl.where(x > 0, _FP32_MAX, -_FP32_MAX), x)
    else:  # noqa: RET505  # Triton compiles either, but takes no return before another
        at = logits + starts[:, None] + columns[None, :]
        return tl.load(at, mask=present[:, None] & (columns < WIDTH)[None, :], other=float("-inf")).to(tl.float32)


@jit()
def _powers(x: Value, most: Value) -> Value:
    """x - most, and e to its power. Below -128 that is 0 in float32 anyway, and 0 times -Inf would be NaN."""
    shifted = tl.maximum(x - most[:, None], -128.0, propagate_nan=tl.PropagateNan.ALL)
    return shifted, tl.exp(shifted)


@jit()
def _load_edges(edges: Value, GROUPS: constexpr, LANES: constexpr, EDGES: constexpr) -> Value:
    """float32 [1, edges / lanes, groups, lanes], the same for each group. Loaded in this shape because Triton then lays
    the comparisons out so: a lane takes one group of a tile's rows, and fetches few of the other lanes' values."""
    places = tl.arange(0, EDGES // LANES)[:, None, None] * LANES + tl.arange(0, LANES)[None, None, :]
    return tl.load(edges + (places + tl.arange(0, GROUPS)[None, :, None] * 0))[None, :, :, :]


@jit()
def _a_row_a_lane(values: Value, valid: Value, ROWS: constexpr) -> Value:
    """The values, NaN where they are not valid, a row to a lane: Triton would leave them as the logits lie, a row in
    several lanes and several rows in one."""
    return tl.gather(tl.where(valid, values, float("nan")), tl.arange(0, ROWS), 0)


@jit()
def _count_at_least(values: Value, edges: Value, ROWS: constexpr, GROUPS: constexpr) -> Value:
    """int32 [edges / lanes, groups, lanes]: how many values of each group of rows are >= each edge; NaN is none."""
    values = tl.reshape(tl.gather(values, tl.arange(0, ROWS), 0), [ROWS // GROUPS, 1, GROUPS, 1])
    return tl.sum((values >= edges).to(tl.int32), 0)


@jit()
def _add_buckets(buckets: Value, reached: Value, valid: Value, places: Value) -> None:
    """Adds to int64 buckets what lies between neighbouring edges: of the valid values, `reached` are >= each edge."""
    reached = reached.to(tl.int64)
    tl.atomic_add(buckets, valid, sem="relaxed")
    tl.atomic_add(buckets + places, -reached, mask=reached > 0, sem="relaxed")
    tl.atomic_add(buckets + places + 1, reached, mask=reached > 0, sem="relaxed")


@jit()
def _add_moments(values: Value, shift: Value, low: Value, high: Value, sums: Value, squares: Value) -> Value:
    """Each row slot's minimum, maximum, sum and sum of squares of (x - shift) with a tile's values, but NaN."""
    known = values == values
    low = tl.minimum(low, tl.where(known, values, float("inf")))  # which of a NaN and a number is less is not defined
    high = tl.maximum(high, tl.where(known, values, float("-inf")))
    away = tl.where(known, values.to(tl.float64) - shift, 0.0)
    return low, high, sums + away, squares + away * away


@jit()
def _store_moments(partials: Value, low: Value, high: Value, sums: Value, squares: Value, PROGRAMS: constexpr) -> None:
    """Keeps a program's moments for the second kernel."""
    tl.store(partials, tl.min(low, 0).to(tl.float64))
    tl.store(partials + PROGRAMS, tl.max(high, 0).to(tl.float64))
    tl.store(partials + 2 * PROGRAMS, tl.sum(sums, 0))
    tl.store(partials + 3 * PROGRAMS, tl.sum(squares, 0))


@jit(runtime=("n", "tiles"))
def statistics_kernel(
    logits: Value,
    probabilities: Value,
    per_row: Value,
    counts: Value,
    classes: Value,
    partials: Value,
    edges: Value,
    shifts: Value,
    n: Value,
    tiles: Value,
    WIDTH: constexpr,
    STRIDE: constexpr,
    BLOCK_ROWS: constexpr,
    BLOCK_CLASSES: constexpr,
    CHUNKS: constexpr,
    EDGES: constexpr,
    PROGRAMS: constexpr,
    WRITE_PROBABILITIES: constexpr,
    WRITE_ROWS: constexpr,
) -> None:
    """Adds a program's `tiles` tiles of [BLOCK_ROWS, WIDTH] logits to counts and classes; its moments to partials."""
    GROUPS: constexpr = min(BLOCK_ROWS, 4)
    LANES: constexpr = 32 // GROUPS
    program = tl.program_id(0)
    columns = tl.arange(0, BLOCK_CLASSES)
    places = tl.arange(0, EDGES)
    edges_p = _load_edges(edges, GROUPS, LANES, EDGES)
    edges_h = _load_edges(edges + EDGES, GROUPS, LANES, EDGES)
    edges_m = _load_edges(edges + 2 * EDGES, GROUPS, LANES, EDGES)
    shift_p, shift_h, shift_m = tl.load(shifts), tl.load(shifts + 1), tl.load(shifts + 2)
    zero = tl.zeros([BLOCK_ROWS], tl.float64)
    far = tl.full([BLOCK_ROWS], float("inf"), tl.float32)
    reached_p = tl.zeros([EDGES // LANES, GROUPS, LANES], tl.int32)
    reached_h = tl.zeros([EDGES // LANES, GROUPS, LANES], tl.int32)
    reached_m = tl.zeros([EDGES // LANES, GROUPS, LANES], tl.int32)
    sum_p, sum_h, sum_m = zero, zero, zero
    square_p, square_h, square_m = zero, zero, zero
    low_p, low_h, low_m = far, far, far
    high_p, high_h, high_m = -far, -far, -far
    found, missing = 0, 0
    chosen = tl.zeros([BLOCK_CLASSES], tl.int32)  # up to 128 classes each has a count
    last = tl.zeros([BLOCK_ROWS], tl.int32)  # beyond, each slot of the tile counts its run of rows of one class
    run = tl.zeros([BLOCK_ROWS], tl.int32)

    tile = 0
    while tile < tiles:  # Triton 3.6's interpreter cannot count to a run-time number with NumPy 2.4
        rows = (program * tiles + tile).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        present = rows < n
        starts = rows * STRIDE
        x = _load_logits(logits, starts, present, columns, WIDTH)
        most = tl.max(x, 1)
        for chunk in range(1, CHUNKS):
            x = _load_logits(logits, starts, present, columns + chunk * BLOCK_CLASSES, WIDTH)
            most = tl.maximum(most, tl.max(x, 1))

        total = tl.zeros([BLOCK_ROWS], tl.float32)
        products = tl.zeros([BLOCK_ROWS], tl.float32)
        second = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
        likeliest = tl.full([BLOCK_ROWS], CHUNKS * BLOCK_CLASSES, tl.int32)
        ties = tl.zeros([BLOCK_ROWS], tl.int32)
        for chunk in range(CHUNKS):
            if CHUNKS > 1:
                x = _load_logits(logits, starts, present, columns + chunk * BLOCK_CLASSES, WIDTH)
            shifted, powers = _powers(x, most)
            total += tl.sum(powers, 1)
            products += tl.sum(powers * shifted, 1)
            top = shifted == 0
            places_of_top = tl.where(top, (columns + chunk * BLOCK_CLASSES)[None, :], CHUNKS * BLOCK_CLASSES)
            likeliest = tl.minimum(likeliest, tl.min(places_of_top, 1))
            ties += tl.sum(top.to(tl.int32), 1)
            second = tl.maximum(second, tl.max(tl.where(top, float("-inf"), shifted), 1))

        known = total == total
        valid = present & known
        share = tl.div_rn(1.0, total)
        prediction = share
        entropy = tl.where(known, tl.log(total) - products * share, float("nan"))
        margin = tl.where(known, (1.0 - tl.where(ties > 1, 1.0, tl.exp(second))) * share, float("nan"))
        if WIDTH == 1:
            shifted, powers = _powers(x, most)
            prediction = tl.sum(tl.where(columns[None, :] == 1, powers, 0.0), 1) * share
            likeliest = (prediction >= 0.5).to(tl.int32)

        if WRITE_PROBABILITIES:
            kind = probabilities.dtype.element_ty
            if WIDTH == 1:
                tl.store(probabilities + rows, prediction.to(kind), mask=present)
            else:
                for chunk in range(CHUNKS):
                    at = columns + chunk * BLOCK_CLASSES
                    if CHUNKS > 1:
                        x = _load_logits(logits, starts, present, at, WIDTH)
                    shifted, powers = _powers(x, most)
                    answer = (powers * share[:, None]).to(kind)
                    inside = present[:, None] & (at < WIDTH)[None, :]
                    tl.store(probabilities + (rows * WIDTH)[:, None] + at[None, :], answer, mask=inside)
        if WRITE_ROWS:
            tl.store(per_row + rows * 3, prediction, mask=present)
            tl.store(per_row + rows * 3 + 1, entropy, mask=present)
            tl.store(per_row + rows * 3 + 2, margin, mask=present)

        found += tl.sum(valid.to(tl.int32), 0)
        missing += tl.sum((present & (total != total)).to(tl.int32), 0)
        if CHUNKS * BLOCK_CLASSES <= 128:
            chosen += tl.sum(((columns[None, :] == likeliest[:, None]) & valid[:, None]).to(tl.int32), 0)
        else:
            ends = valid & (likeliest != last)
            tl.atomic_add(classes + last, run.to(tl.int64), mask=ends & (run > 0), sem="relaxed")
            run = tl.where(ends, 1, run + valid.to(tl.int32))
            last = tl.where(ends, likeliest, last)
        p = _a_row_a_lane(prediction, valid, BLOCK_ROWS)
        h = _a_row_a_lane(entropy, valid, BLOCK_ROWS)
        m = _a_row_a_lane(margin, valid, BLOCK_ROWS)
        reached_p += _count_at_least(p, edges_p, BLOCK_ROWS, GROUPS)
        reached_h += _count_at_least(h, edges_h, BLOCK_ROWS, GROUPS)
        reached_m += _count_at_least(m, edges_m, BLOCK_ROWS, GROUPS)
        low_p, high_p, sum_p, square_p = _add_moments(p, shift_p, low_p, high_p, sum_p, square_p)
        low_h, high_h, sum_h, square_h = _add_moments(h, shift_h, low_h, high_h, sum_h, square_h)
        low_m, high_m, sum_m, square_m = _add_moments(m, shift_m, low_m, high_m, sum_m, square_m)
        tile += 1

    tl.atomic_add(counts, found + missing, sem="relaxed")
    tl.atomic_add(counts + 1, missing, sem="relaxed")
    _add_buckets(counts + 2, tl.reshape(tl.sum(reached_p, 1), [EDGES]), found, places)
    _add_buckets(counts + 2 + (EDGES + 1), tl.reshape(tl.sum(reached_h, 1), [EDGES]), found, places)
    _add_buckets(counts + 2 + 2 * (EDGES + 1), tl.reshape(tl.sum(reached_m, 1), [EDGES]), found, places)
    if CHUNKS * BLOCK_CLASSES <= 128:
        tl.atomic_add(classes + columns, chosen.to(tl.int64), mask=chosen > 0, sem="relaxed")
    else:
        tl.atomic_add(classes + last, run.to(tl.int64), mask=run > 0, sem="relaxed")
    _store_moments(partials + program, low_p, high_p, sum_p, square_p, PROGRAMS)
    _store_moments(partials + 4 * PROGRAMS + program, low_h, high_h, sum_h, square_h, PROGRAMS)
    _store_moments(partials + 8 * PROGRAMS + program, low_m, high_m, sum_m, square_m, PROGRAMS)


@jit(runtime=("programs",))
def merge_kernel(partials: Value, moments: Value, programs: Value, PROGRAMS: constexpr, BLOCK: constexpr) -> None:
    """Adds the programs' moments to the totals in order; one program for each of the moments."""
    moment = tl.program_id(0)
    kind = moment % 4
    blank = 0.0
    if kind == 0:
        blank = float("inf")
    if kind == 1:
        blank = float("-inf")
    merged = tl.zeros([BLOCK], tl.float64) + blank
    start = 0
    while start < programs:
        at = start + tl.arange(0, BLOCK)
        part = tl.load(partials + moment * PROGRAMS + at, mask=at < programs, other=0.0)
        part = tl.where(at < programs, part, blank)
        if kind == 0:
            merged = tl.minimum(merged, part)
        elif kind == 1:
            merged = tl.maximum(merged, part)
        else:
            merged += part
        start += BLOCK
    before = tl.load(moments + moment)
    if kind == 0:
        tl.store(moments + moment, tl.minimum(before, tl.min(merged, 0)))
    elif kind == 1:
        tl.store(moments + moment, tl.maximum(before, tl.max(merged, 0)))
    else:
        tl.store(moments + moment, before + tl.sum(merged, 0))


@dataclass(frozen=True)
class Plan:
    """How the kernel is laid out over rows: a pure function of the shape. programs: at most MAX_PROGRAMS, of `tiles`
    tiles each. block_rows, block_classes: a tile, of which a row has `chunks`; a thread holds at most 16 logits."""

    programs: int
    tiles: int
    block_rows: int
    block_classes: int
    chunks: int
    warps: int

    @classmethod
    def of(cls, rows: int, width: int) -> Plan:
        """The plan for rows > 0 rows of so many logits. Larger tiles would take more registers than they save
        instructions."""
        warps = 1 if width <= 1024 else 4 if width <= 10240 else 8
        block_classes = min(next_power_of_2(max(width, 2)), 512 * warps)
        block_rows = 32 if block_classes == 2 else min(max(256 // block_classes, 1), 8)
        all_tiles = -(-rows // block_rows)
        tiles = -(-all_tiles // MAX_PROGRAMS)
        return cls(-(-all_tiles // tiles), tiles, block_rows, block_classes, -(-width // block_classes), warps)


def launch_statistics(
    logits: torch.Tensor,
    probabilities: torch.Tensor | None,
    per_row: torch.Tensor | None,
    totals: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    edges: torch.Tensor,
    shifts: torch.Tensor,
) -> None:
    """Adds logits [n, width], n > 0, to the totals: counts, classes, moments, and room for the programs' moments.

    edges: float32 [3, E], E a power of two, NaN after the last one. shifts: float64 [3]. Nothing is checked here.
    """
    counts, classes, moments, partials = totals
    rows, width = logits.shape
    plan = Plan.of(rows, width)
    launch(
        *(statistics_kernel, plan.programs, logits.device),
        *(logits, logits if probabilities is None else probabilities, edges if per_row is None else per_row),
        *(counts, classes, partials, edges, shifts, rows, plan.tiles),
        WIDTH=width,
        STRIDE=logits.stride(0) if rows > 1 else width,
        BLOCK_ROWS=plan.block_rows,
        BLOCK_CLASSES=plan.block_classes,
        CHUNKS=plan.chunks,
        EDGES=edges.shape[1],
        PROGRAMS=MAX_PROGRAMS,
        WRITE_PROBABILITIES=probabilities is not None,
        WRITE_ROWS=per_row is not None,
        num_warps=plan.warps,
    )
    launch(
        *(merge_kernel, 3 * MOMENTS, logits.device, partials, moments, plan.programs),
        PROGRAMS=MAX_PROGRAMS,
        BLOCK=256,
        num_warps=4,
    )
