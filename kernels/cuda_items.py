"""What a warp of the CUDA kernel does with one column: its code, and beside it the parameters that the code reads.

An item is a chain, with the field's part of the sketch at the first chain that has at hand what is counted, or that
part alone. Its code depends on its *shape* (type, ops, whether there is a flag, how many comparisons find a bin), never
on a number that was fitted: those are its parameters. Pure: equal programs give equal items.

Texts never reach the GPU: ids of string vocabularies, hashes and crosses are made on the host while a batch is staged,
by the CPU executor, whose lookup is exact. They come over the wire to the host anyway, four bytes of id are less to
move than the bytes, and lanes whose texts differ in length would wait for each other. Integers and booleans are looked
up and hashed on the GPU.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from trimtab.kernels import operations as ops
from trimtab.kernels.cuda_scaling import inverse_of, scaled_of
from trimtab.kernels.operations import Operation
from trimtab.kernels.program import CategoryField, Chain, ColumnProgram, RealField

Floats = NDArray[np.float32]

LANE_EDGES = 31
"""Up to so many edges lie in a warp's lanes (csrc/cuda/sketch.h)."""


@dataclass(frozen=True, eq=False)
class Ref:
    """A list of the tables; as a parameter it stands for the word offset at which the list lies."""

    data: bytes


Parameter = int | Ref


@dataclass(eq=False)
class Item:
    """What a warp does with one column.

    input: position among the fields, or behind them among the ids that the host made. width: features in the tile.
    chain: position in the program; None: only the sketch. counted: whether the field is sketched here. heavy: whether
    it needs more registers than the usual chains.
    """

    input: int
    field: int
    chain: int | None
    counted: bool
    code: str = ""
    width: int = 0
    heavy: bool = False
    parameters: list[Parameter] = dataclasses.field(default_factory=list)


def items_of(program: ColumnProgram) -> tuple[list[Item], tuple[Chain, ...]]:
    """The program's items in the order of its chains, those without a chain last; and the chains of texts that the host
    runs, each of which gives a column of ids."""
    items: list[Item] = []
    staged: list[Chain] = []
    waiting = set(range(len(program.sketch.fields)))
    for position, chain in enumerate(program.chains):
        counted = chain.field in waiting and _counts(program, chain)
        waiting -= {chain.field} if counted else set()
        items.append(_Writer(program, staged).item(chain.field, position, counted))
    items += [_Writer(program, staged).item(index, None, True) for index in sorted(waiting)]
    return items, tuple(staged)


def levels_of(edges: int) -> int:
    """How many comparisons find a bin among so many edges."""
    return max(edges.bit_length(), 1)


def _counts(program: ColumnProgram, chain: Chain) -> bool:
    """Whether the chain's item has at hand what the field's sketch counts: numbers, or ids of the same values."""
    sketched, terminal = program.sketch.fields[chain.field], chain.terminal
    if isinstance(sketched, RealField):
        return not isinstance(terminal, (ops.Vocabulary, ops.HashBucket, ops.Cross))
    return isinstance(terminal, ops.Vocabulary) and terminal.values == sketched.values


def _is_heavy(chain: Chain | None) -> bool:
    heavy = (ops.Log1p, ops.SignedLog, ops.QuantileNormal, ops.Cyclic, ops.PiecewiseLinear)
    return chain is not None and any(isinstance(op, heavy) for op in chain.operations)


class _Writer:
    """Writes one item: its code line by line, and beside it the parameters that the code reads."""

    def __init__(self, program: ColumnProgram, staged: list[Chain]) -> None:
        self._program = program
        self._staged = staged
        self._lines: list[str] = []
        self._parameters: list[Parameter] = []
        self._width = 0

    def item(self, index: int, position: int | None, counted: bool) -> Item:
        chain = None if position is None else self._program.chains[position]
        kind = self._program.fields[index].type
        sketched = self._program.sketch.fields[index] if counted else None
        terminal = chain.terminal if chain else None
        source = index
        if isinstance(terminal, (ops.Vocabulary, ops.HashBucket, ops.Cross)) or isinstance(sketched, CategoryField):
            source = self._category(index, chain, terminal, sketched if isinstance(sketched, CategoryField) else None)
        else:
            self._line(f"Values x; {'load_reals(warp, item, place, x)' if kind != 'integer' else INTEGERS};")
            if isinstance(sketched, RealField):
                self._sketch_numbers(sketched)
            if chain is not None:
                self._numbers(chain, terminal)
        code = "".join(f"    {line}\n" if line[:1] != "#" else f"{line}\n" for line in self._lines)
        return Item(source, index, position, counted, code, self._width, _is_heavy(chain), self._parameters)

    def _line(self, *lines: str) -> None:
        self._lines += lines

    def _each(self, *lines: str) -> None:
        """For each of a lane's values."""
        self._line("#pragma unroll", "for (Word v = 0; v < kValues; ++v) {", *(f"    {line}" for line in lines), "}")

    def _slot(self, *parameters: Parameter) -> str:
        """Adds parameters, from a multiple of 16 bytes on; where they are."""
        at = len(self._parameters)
        self._parameters += [*parameters, *[0] * (-len(parameters) % 4)]
        return f"p + {at}"

    # --- the sketch -------------------------------------------------------------------------------------------------

    def _sketch_numbers(self, sketched: RealField) -> None:
        few = len(sketched.edges) <= LANE_EDGES
        name = f"sketch_in_lanes<{levels_of(len(sketched.edges))}>" if few else "sketch_in_memory"
        self._line("#if TRIMTAB_SKETCH", f"{name}(warp, item, x);", "#endif")

    def _sketch_ids(self) -> None:
        self._line("#if TRIMTAB_SKETCH", "sketch_ids(warp, item, ids);", "#endif")

    # --- categories -------------------------------------------------------------------------------------------------

    def _category(
        self, index: int, chain: Chain | None, terminal: Operation | None, sketched: CategoryField | None
    ) -> int:
        """An item of ids; gives its input."""
        if terminal is None:
            assert sketched is not None
            terminal = ops.Vocabulary(sketched.values)
        texts = self._program.fields[index].type == "string" or (
            isinstance(terminal, ops.Cross) and self._program.fields[terminal.other].type == "string"
        )
        source = index
        self._line("Ids ids;")
        if texts:
            self._staged.append(Chain(index, (terminal,)))
            source = len(self._program.fields) + len(self._staged) - 1
            self._each("ids.at[v] = staged(warp, item.input, v);")
        else:
            self._each(f"ids.at[v] = {self._id(index, terminal)};")
            self._line("pad(warp, ids);")
        if sketched is not None:
            self._sketch_ids()
        if chain is not None:
            self._put_ids(chain)
        return source

    def _id(self, index: int, terminal: Operation) -> str:
        value = f"{self._column(index)}::at(warp, item.input, v)"
        if isinstance(terminal, ops.Vocabulary):
            known = np.asarray(terminal.values, np.int64)
            order = np.argsort(known)
            ids = (order + ops.FIRST_ID).astype(np.uint32)
            p = self._slot(len(known), Ref(known[order].tobytes()), Ref(ids.tobytes()))
            return f"vocabulary(tables, {p}, {value})"
        assert isinstance(terminal, (ops.HashBucket, ops.Cross))
        p = self._slot(*_words(np.asarray([terminal.buckets, ((1 << 64) - 1) // terminal.buckets], np.uint64)))
        if isinstance(terminal, ops.HashBucket):
            return f"hash_bucket({p}, {value})"
        other = self._slot(terminal.other)
        return f"cross({p}, {value}, {self._column(terminal.other)}::at(warp, word({other}), v))"

    def _column(self, index: int) -> str:
        return "IntegerColumn" if self._program.fields[index].type == "integer" else "BooleanColumn"

    def _put_ids(self, chain: Chain) -> None:
        if chain.one_hot:
            width = self._slot(chain.id_size - 1)
            self._line(f"put_one_hot(warp, item.feature, word({width}), ids);")
        else:
            self._line("warp.put_ids(item.id, ids);")

    # --- numbers ----------------------------------------------------------------------------------------------------

    def _numbers(self, chain: Chain, terminal: Operation | None) -> None:
        before = [
            op for op in chain.operations if op is not terminal and not isinstance(op, (ops.OneHot, ops.Embedding))
        ]
        if terminal is None:
            if not self._scaled(before):
                self._values(1, *self._real(before), "y0.at[v] = ops::emit(d);")
        elif isinstance(terminal, ops.Cyclic):
            period = self._slot(*_doubles(terminal.period))
            angle = f"const ops::Angle angle = ops::cyclic(d, wide({period}));"
            sine, cosine = (f"y{i}.at[v] = static_cast<float>(angle.{part});" for i, part in enumerate(PARTS))
            self._values(2, *self._real(before), angle, sine, cosine)
        elif isinstance(terminal, ops.PiecewiseLinear) and len(terminal.edges) < 2:
            self._values(1, "y0.at[v] = 0.0F;")
        elif isinstance(terminal, ops.PiecewiseLinear):
            self._shares(terminal, before, chain.flagged)
            return
        elif isinstance(terminal, ops.Bucketise):
            self._bins(terminal, before, chain)
            return
        if chain.flagged:
            self._line(f"warp.put_flags(item.column + {self._width}, x);")
            self._width += 1

    def _values(self, columns: int, *lines: str) -> None:
        self._line("Values " + ", ".join(f"y{i}" for i in range(columns)) + ";")
        self._each(*lines)
        self._line(*(f"warp.put(item.column + {i}, y{i});" for i in range(columns)))
        self._width = columns

    def _scaled(self, before: Sequence[Operation]) -> bool:
        """The chain as csrc/cuda/chains.h's Scaled has it; False where it is none."""
        hot = scaled_of(before)
        if hot is None:
            return False
        shape = ", ".join("true" if one else "false" for one in (hot.clips, hot.scales, hot.bounded))
        p = self._slot(*_doubles(hot.shift, hot.inverse), *_floats(hot.low, hot.high, hot.fill))
        self._line(f"const Scaled<{shape}> scaled({p});")
        self._values(1, "y0.at[v] = scaled(x.at[v]);")
        return True

    def _real(self, before: Sequence[Operation]) -> list[str]:
        """The ops on x as a float64, d."""
        return ["double d = static_cast<double>(x.at[v]);", *(f"d = {self._real_op(op)};" for op in before)]

    def _real_op(self, op: Operation) -> str:
        match op:
            case ops.Impute():
                return f"ops::impute(d, wide({self._slot(*_doubles(op.value))}))"
            case ops.Clip():
                p = self._slot(*_doubles(op.low, op.high))
                return f"ops::clip(d, wide({p}), wide({p} + 2))"
            case ops.Log1p():
                return "ops::log1p(d)"
            case ops.SignedLog():
                return "ops::signed_log(d)"
            case ops.Affine():
                p = self._slot(*_doubles(op.shift, inverse_of(op.scale)))
                return f"ops::affine(d, wide({p}), wide({p} + 2))"
            case ops.QuantileNormal():
                if not op.knots:
                    return "ops::affine(d, 0.0, 0.0)"
                return f"quantile_normal(tables, {self._slot(*_quantiles(op))}, d)"
        raise AssertionError(f"{op.op} is no real op")

    def _edges(self, edges: tuple[float, ...]) -> str:
        """Declares `edges`, which finds bins, and `table`, where they lie."""
        words = in_lanes(edges) if len(edges) <= LANE_EDGES else in_memory(edges)
        p = self._slot(len(words), Ref(words.tobytes()))
        self._line(f"const Word* const table = tables + word({p} + 1);")
        if len(edges) <= LANE_EDGES:
            self._line(f"const LaneEdges<{levels_of(len(edges))}> edges(table, warp.lane);")
        else:
            self._line(f"const TableEdges edges{{table, word({p})}};")
        return p

    def _bins(self, terminal: ops.Bucketise, before: Sequence[Operation], chain: Chain) -> None:
        self._edges(terminal.edges)
        self._line("Ids ids;")
        value = "const float value = ops::round_down(d);"
        self._each(*self._real(before), value, "ids.at[v] = id_of_bin(edges.bin_of(value), value);")
        self._line("pad(warp, ids);")
        self._put_ids(chain)
        if chain.flagged:
            self._write_flags(chain.id_size - 1 if chain.one_hot else 0)

    def _shares(self, terminal: ops.PiecewiseLinear, before: Sequence[Operation], flagged: bool) -> None:
        self._edges(terminal.edges)
        width = self._slot(len(terminal.edges) - 1)
        self._line("Ids bins;", "Values shares;", f"const Word width = word({width});")
        share = "bins.at[v] = share_of(edges, table, static_cast<int>(width) - 1, d, shares.at[v]);"
        self._each(*self._real(before), share)
        self._line("warp.spread(item.feature, width, bins, shares, 1.0F);")
        if flagged:
            self._write_flags(len(terminal.edges) - 1)

    def _write_flags(self, behind: int) -> None:
        self._line(f"warp.write_flags(item.feature + word({self._slot(behind)}), x);")


INTEGERS = "warp.load_integers(item.input, x)"
PARTS = ("sine", "cosine")


def in_lanes(edges: Sequence[float]) -> Floats:
    """The edges and NaN behind them, as lanes read them (LaneEdges in csrc/cuda/sketch.h)."""
    return _filled(edges, LANE_EDGES + 8)


def in_memory(edges: Sequence[float]) -> Floats:
    """The edges, filled up with NaN to a power of two less one, as a search goes through them."""
    return _filled(edges, (1 << len(edges).bit_length()) - 1)


def _filled(edges: Sequence[float], size: int) -> Floats:
    words = np.full(size, np.nan, np.float32)
    words[: len(edges)] = edges
    return words


def _quantiles(op: ops.QuantileNormal) -> list[Parameter]:
    words = in_memory(op.knots)
    knots, shares = np.asarray(op.knots), np.asarray(op.probabilities)
    slopes = np.append(np.diff(shares) / np.diff(knots), 0.0)
    return [len(words), Ref(words.tobytes()), len(knots), Ref(shares.tobytes()), Ref(slopes.tobytes())]


def _doubles(*values: float) -> list[Parameter]:
    return _words(np.asarray(values, np.float64))


def _floats(*values: float) -> list[Parameter]:
    return _words(np.asarray(values, np.float32))


def _words(values: NDArray[Any]) -> list[Parameter]:
    return [int(word) for word in np.frombuffer(values.tobytes(), np.uint32)]
