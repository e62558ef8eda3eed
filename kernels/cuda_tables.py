"""The tables of the CUDA column kernel: items put into groups, and all numbers of a program in one array of words.

The layout is that of csrc/cuda/tables.h. A group is what a block of threads takes of its rows: items whose features lie
side by side, so that they leave the block's shared memory as whole pieces of rows. There are two layouts of a program:
`WIDE` groups of 32 features (128 bytes of a row, what memory likes best) for large batches, `NARROW` ones of 8 for
small batches, where more blocks share the columns. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray
from trimtab.kernels.cuda_items import LANE_EDGES, Item, Parameter, Ref, in_lanes, in_memory, items_of
from trimtab.kernels.cuda_source import source_of
from trimtab.kernels.program import CategoryField, Chain, ColumnProgram, RealField
from trimtab.kernels.sketch_spec import MOMENTS, PREFIX

WARPS = 8
NONE = 0xFFFFFFFF
MAX_ITEMS = 32  # in a group
MAX_GROUPS = 65_535  # what a grid's second dimension holds
HISTOGRAM_WORDS = 4_224  # in a group, but for one field that has more
TILE_WORDS = 8_192


@dataclass(frozen=True)
class Layout:
    """How a program is cut for the GPU. features: in a group, at most. vectors: of four rows, that a lane takes of an
    item at a time (TRIMTAB_VECTORS)."""

    features: int
    vectors: int

    @property
    def warp_rows(self) -> int:
        """Rows that a warp takes of an item at a time."""
        return 128 * self.vectors


WIDE = Layout(32, 2)
NARROW = Layout(8, 1)


@dataclass(frozen=True)
class Tables:
    """What a launch needs to know of a layout. words: uint32, see csrc/cuda/tables.h; items: where these begin.

    tile_rows: a block's rows are a multiple of it, the last block's aside. shared_bytes: of a block.
    """

    words: NDArray[np.uint32]
    items: int
    groups: int
    tile_rows: int
    shared_bytes: int


@dataclass(frozen=True, eq=False)
class Compiled:
    """A program as the GPU takes it: the source, what the host makes of texts, and how many moments a chunk has."""

    program: ColumnProgram
    source: str
    staged: tuple[Chain, ...]
    items: tuple[Item, ...]
    kinds: tuple[int, ...]

    @classmethod
    def of(cls, program: ColumnProgram) -> Compiled:
        """Pure: equal programs, equal results."""
        items, staged = items_of(program)
        source, kinds = source_of(items)
        return cls(program, source, staged, tuple(items), tuple(kinds))

    @cached_property
    def partials(self) -> int:
        """How many fields have moments."""
        return sum(isinstance(field, RealField) for field in self.program.sketch.fields)

    def tables(self, layout: Layout, matrix: bool) -> Tables:
        """The tables for columns, or for the rows of a matrix."""
        return _Tables(self, layout, matrix).made()

    @property
    def refusal(self) -> str | None:
        """Why the GPU does not take the program; None: it does."""
        if not self.items:
            return "it computes and counts nothing"
        groups = len(_groups(self, NARROW))
        return f"{groups} groups of columns are more than {MAX_GROUPS}" if groups > MAX_GROUPS else None


@dataclass
class _Group:
    first: int  # item
    items: list[Item]
    first_feature: int = 0
    width: int = 0
    histogram_words: int = 0
    edge_words: int = 0


def _histogram_words(compiled: Compiled, item: Item) -> int:
    return compiled.program.sketch.fields[item.field].buckets + PREFIX if item.counted else 0


def _edge_words(compiled: Compiled, item: Item) -> int:
    """Of edges in shared memory."""
    field = compiled.program.sketch.fields[item.field]
    if not item.counted or not isinstance(field, RealField) or len(field.edges) <= LANE_EDGES:
        return 0
    return len(in_memory(field.edges))


def _groups(compiled: Compiled, layout: Layout) -> list[_Group]:
    starts = _feature_starts(compiled.program)
    groups: list[_Group] = []
    for position, item in enumerate(compiled.items):
        histogram, edges = _histogram_words(compiled, item), _edge_words(compiled, item)
        start = 0 if item.chain is None else starts[item.chain]
        last = groups[-1] if groups else None
        if (
            last is None
            or len(last.items) == min(MAX_ITEMS, layout.features)
            or last.width + item.width > layout.features
            or last.histogram_words + histogram > HISTOGRAM_WORDS
            or (item.width and last.width and last.first_feature + last.width != start)
        ):
            last = _Group(position, [])
            groups.append(last)
        if item.width and not last.width:
            last.first_feature = start
        last.items.append(item)
        last.width += item.width
        last.histogram_words += histogram
        last.edge_words += edges
    return groups


def _feature_starts(program: ColumnProgram) -> list[int]:
    return [0, *accumulate(chain.width for chain in program.chains)]


class _Tables:
    """Writes the words of one layout."""

    def __init__(self, compiled: Compiled, layout: Layout, matrix: bool) -> None:
        self._compiled, self._layout, self._matrix = compiled, layout, matrix
        self._program = compiled.program
        self._groups = _groups(compiled, layout)
        self._lists: list[bytes] = []
        self._end = 16 * (len(self._groups) + len(compiled.items))  # words

    def made(self) -> Tables:
        items = [row for group in self._groups for row in self._items(group)]
        groups = [self._group(group) for group in self._groups]
        head = np.asarray([*groups, *items], np.uint32).tobytes()
        words = np.frombuffer(head + b"".join(self._lists), np.uint32)
        rows = max(group[4] for group in groups) * self._layout.warp_rows
        shared = max(group[14] for group in groups) * 4
        return Tables(words, 16 * len(groups), len(groups), rows, shared)

    def _put(self, data: bytes) -> int:
        """Adds a list at a multiple of 16 bytes; its word offset."""
        at = self._end
        data += bytes(-len(data) % 16)
        self._lists.append(data)
        self._end += len(data) // 4
        return at

    def _put_parameters(self, parameters: Iterable[Parameter]) -> int:
        words = [self._put(one.data) if isinstance(one, Ref) else one for one in parameters]
        return self._put(np.asarray(words, np.uint32).tobytes())

    def _items(self, group: _Group) -> list[list[int]]:
        program = self._program
        chains, ids = _feature_starts(program), [0, *accumulate(chain.emits_id for chain in program.chains)]
        column = histogram = state = edges = 0
        rows: list[list[int]] = []
        for offset, item in enumerate(group.items):
            field = program.sketch.fields[item.field]
            numbers = item.counted and isinstance(field, RealField)
            sketch = table = edge_words = 0
            if item.counted and isinstance(field, RealField):
                head = np.asarray([field.low, field.high, field.shift, 0.0], np.float32).tobytes()
                edge_words = _edge_words(self._compiled, item)
                table = self._put(in_memory(field.edges).tobytes()) if edge_words else 0
                sketch = self._put(head + (b"" if edge_words else in_lanes(field.edges).tobytes()))
            chain = 0 if item.chain is None else item.chain
            rows.append(
                [
                    self._compiled.kinds[group.first + offset],
                    item.input,
                    column,
                    self._put_parameters(item.parameters),
                    sketch,
                    histogram,
                    state,
                    edges,
                    ids[chain],
                    chains[chain],
                    program.sketch.offsets[item.field] if item.counted else NONE,
                    field.buckets if item.counted else 0,
                    item.field * MOMENTS if numbers else NONE,
                    _before(program, item.field),
                    edge_words,
                    table,
                ]
            )
            column += item.width
            histogram += _histogram_words(self._compiled, item)
            state += numbers
            edges += edge_words
        return rows

    def _group(self, group: _Group) -> list[int]:
        width = -(-group.width // 4) * 4
        own_place = all(item.width == 1 for item in group.items)  # an item's raw column is where its feature goes
        columns = width + (0 if own_place or not self._matrix else -(-len(group.items) // 4) * 4)
        slices = 1
        while 2 * slices * len(group.items) <= WARPS and 2 * slices * columns * self._layout.warp_rows <= TILE_WORDS:
            slices *= 2
        states = slices * sum(item.counted and self._is_number(item) for item in group.items)
        rows = slices * self._layout.warp_rows
        extremes = 32 * 4 * states
        tile = extremes + 32 * 2 * states
        raw = tile if own_place else tile + width * rows
        histograms = tile + (columns if self._matrix else width) * rows
        edges = histograms + slices * group.histogram_words
        shared = max(edges + group.edge_words, 4)
        ends = group.first_feature + group.width == self._program.n_features
        whole = group.first_feature % 4 == 0 and (group.width % 4 == 0 or ends)
        return [
            group.first,
            len(group.items),
            group.first_feature,
            group.width,
            slices,
            int(whole),
            self._first_field(group.items),
            states // slices,
            extremes,
            tile,
            raw,
            histograms,
            group.histogram_words,
            edges,
            shared,
            0,
        ]

    def _is_number(self, item: Item) -> bool:
        return not isinstance(self._program.sketch.fields[item.field], CategoryField)

    def _first_field(self, items: Sequence[Item]) -> int:
        first = items[0].input
        follow = [item.input for item in items] == list(range(first, first + len(items)))
        return first if follow and first % 4 == 0 and len(items) % 4 == 0 else NONE


def _before(program: ColumnProgram, index: int) -> int:
    """How many of the fields before this one have moments."""
    return sum(isinstance(field, RealField) for field in program.sketch.fields[:index])
