"""The CPU executor: a column program compiled to native code (csrc/columns_program.h).

Compiling happens once, in the constructor; running allocates its outputs, where none are given, and nothing else in
Python. Any number of threads may use an executor at a time, each with rows, a sketch and outputs of its own. Rows come
in a slab, or lie in a ColumnTable: columns, or a row-major matrix, that somebody else owns and that are not copied.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from trimtab._native import ColumnTable, CompiledProgram, Slab
from trimtab.kernels import operations as ops
from trimtab.kernels.errors import ExecutorError, ProgramError
from trimtab.kernels.joint import even_sample
from trimtab.kernels.operations import Operation
from trimtab.kernels.program import ColumnProgram
from trimtab.kernels.sketch import Sketch
from trimtab.kernels.sketch_spec import CategoryField, SketchField

NativeOp = tuple[str, list[float], list[int], list[bytes]]
NativeField = tuple[str, list[float], list[int], list[bytes], int]


class CpuExecutor:
    """Runs a program on the CPU. Raises ProgramError where native code refuses the program.

    `level`: one of trimtab._native.CPU_LEVELS instead of CPU_LEVEL, for tests and measurements.
    """

    def __init__(self, program: ColumnProgram, level: str | None = None) -> None:
        self.program = program
        # The spec that was compared last and is the same: comparing takes longer than a small batch.
        self._same = program.sketch
        chains = [(chain.field, [_native_op(op) for op in chain.operations]) for chain in program.chains]
        try:
            sketch = [_native_field(field) for field in program.sketch.fields]
            self._compiled = CompiledProgram(program.schema, chains, sketch, level)
        except (ValueError, TypeError) as error:
            raise ProgramError(str(error)) from None
        if (self._compiled.n_features, self._compiled.n_ids) != (program.n_features, program.n_ids):
            raise ProgramError("column program: native code lays out its outputs in another way")

    def run(
        self,
        rows: Slab | ColumnTable,
        sketch: Sketch | None = None,
        start: int = 0,
        stop: int = -1,
        features: NDArray[np.float32] | None = None,
        ids: NDArray[np.int64] | None = None,
        threads: int = 1,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Features, float32 [n, n_features], and ids, int64 [n, n_ids], of the rows [start, stop); -1 is the
        end; in `features` and `ids`, where they are given, C-contiguous and of those shapes.

        Adds the raw values of the same rows to `sketch`. `threads`: how many share a long input; the results are the
        same to the bit. The GIL is released on long inputs: nobody else may touch the rows or the sketch until the call
        returns. Raises ExecutorError for rows of another schema or out of range, or a sketch of another spec; nothing
        has been computed or counted then.
        """
        counts = moments = None
        if sketch is not None:
            self._check(sketch)
            counts, moments = sketch.counts, sketch.moments
        try:
            return self._compiled.run(rows, counts, moments, start, stop, features, ids, threads)
        except (ValueError, IndexError, TypeError) as error:
            raise ExecutorError(str(error)) from None

    def _check(self, sketch: Sketch) -> None:
        if sketch.spec is not self._same:
            if sketch.spec != self.program.sketch:
                raise ExecutorError("the sketch's spec is not the program's")
            self._same = sketch.spec

    def sum_jointly(self, rows: Slab | ColumnTable, taken: NDArray[np.int64], sketch: Sketch) -> None:
        """Adds the rows at the positions `taken`, int64 [k], to the joint part of `sketch`, whose spec has one. Raises
        ExecutorError as `run` does; nothing has been added then."""
        self._check(sketch)
        if not len(sketch.joint):
            raise ExecutorError("the sketch's spec has no joint part")
        try:
            # Not the phases of the sketch's own spec, which may be another object: they take a while to make.
            self._compiled.sum_jointly(rows, taken, self.program.sketch.phases, sketch.joint)
        except (ValueError, IndexError, TypeError) as error:
            raise ExecutorError(str(error)) from None


def sketch_table(program: ColumnProgram, slab: Slab) -> Sketch:
    """The sketch of a whole table, such as a version's training data: all rows, an even sample of them in its joint
    part, and no predictions yet."""
    executor, sketch = CpuExecutor(program), Sketch(program.sketch)
    executor.run(slab, sketch)
    if len(sketch.joint):
        executor.sum_jointly(slab, even_sample(0, slab.rows, slab.rows, len(program.fields)), sketch)
    return sketch


def _native_op(op: Operation) -> NativeOp:
    reals: list[float] = []
    integers: list[int] = []
    texts: list[bytes] = []
    match op:
        case ops.Impute():
            reals, integers = [op.value], [int(op.flag)]
        case ops.Clip():
            reals = [op.low, op.high]
        case ops.Affine():
            reals = [op.shift, op.scale]
        case ops.QuantileNormal():
            reals = [*op.knots, *op.probabilities]
        case ops.Bucketise() | ops.PiecewiseLinear():
            reals = list(op.edges)
        case ops.Cyclic():
            reals = [op.period]
        case ops.Vocabulary():
            integers, texts = _native_values(op.values)
        case ops.HashBucket():
            integers = [op.buckets]
        case ops.Cross():
            integers = [op.other, op.buckets]
        case _:
            pass
    return op.op, reals, integers, texts


def _native_values(values: tuple[int, ...] | tuple[str, ...]) -> tuple[list[int], list[bytes]]:
    return (
        [value for value in values if isinstance(value, int)],
        [value.encode() for value in values if isinstance(value, str)],
    )


def _native_field(field: SketchField) -> NativeField:
    if isinstance(field, CategoryField):
        return "category", [], *_native_values(field.values), field.counted
    return "real", [field.low, field.high, field.shift, *field.edges], [], [], 0
