"""The CUDA executor: a column program on a GPU, columns and sketch of a batch in one launch.

What runs is generated for the program's shape (`cuda_source`), compiled by NVRTC (`cuda_compile`) and told the
program's numbers by tables (`cuda_tables`). Features and ids are the CPU executor's, but for the sign of a zero;
counts, minima and maxima are the same; sums are in float64, in an order that depends on the launch's shape alone.

    host    rows of a slab ─▶ one staging buffer: addresses, columns, ids of texts ─▶ one copy to the device
    device  launch: features and ids stay there; counts and moments are added to the open epoch
    collect the epochs change places; the closed one is read and cleared on a second stream, while launches go on

There are two epochs of accumulators so that reading a sketch never holds up a batch: which one is open is a word in
device memory, so that a launch that was captured in a graph follows it, too.

Features come with a pitch, a row's length in floats, that is a multiple of four, so that rows begin at 16 bytes: a GEMM
takes that as its leading dimension. The executor keeps its device memory between calls and may be used by one thread at
a time; `run` takes a lock. Columns longer than `MAX_ROWS` are refused.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from trimtab._native import ColumnTable, Slab
from trimtab.kernels.cpu import CpuExecutor
from trimtab.kernels.cuda_compile import Variant
from trimtab.kernels.cuda_device import Device, Kernel, Launch, Memory
from trimtab.kernels.cuda_epochs import Epochs
from trimtab.kernels.cuda_staging import ALIGNED, Stager, packed, packed_size
from trimtab.kernels.cuda_tables import NARROW, WIDE, Compiled, Layout, Tables
from trimtab.kernels.errors import ExecutorError
from trimtab.kernels.program import ColumnProgram
from trimtab.kernels.sketch import Sketch
from trimtab.kernels.sketch_spec import MOMENTS

MAX_ROWS = 1 << 30
BLOCKS_A_PROCESSOR = 3  # that a wide layout's shared memory lets run at a time
WIDE_ARGUMENTS = (True, False, *(True,) * 12, False, True, False, False, False, True)
"""Which arguments of the kernel have 64 bits (csrc/cuda/kernel.h)."""


@dataclass(frozen=True)
class DeviceRows:
    """Rows in device memory. columns: the address of an array of addresses, one a field: float32 (real, boolean) or
    int64 (integer). Or matrix: the address of float32 [rows, n_fields], each row `pitch` floats after the one before,
    of a program of reals without keys.

    columns_aligned: whether all columns begin at multiples of 16 bytes; where they do not it is slower.
    """

    rows: int
    columns: int = 0
    matrix: int = 0
    pitch: int = 0
    columns_aligned: bool = True

    @property
    def aligned(self) -> bool:
        """Whether the kernel may load four values at a time."""
        return self.matrix % 16 == 0 and self.pitch % 4 == 0 if self.matrix else self.columns_aligned


@dataclass(frozen=True)
class DeviceArray:
    """A view of device memory that CuPy and PyTorch take without a copy (torch.as_tensor, cupy.asarray).

    strides: in bytes. The view keeps the memory alive.
    """

    memory: Memory
    shape: tuple[int, int]
    strides: tuple[int, int]
    kind: str

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3 of the CUDA array interface."""
        data = (self.memory.pointer if min(self.shape) else 0, False)
        return {"version": 3, "shape": self.shape, "strides": self.strides, "typestr": self.kind, "data": data}


@dataclass(frozen=True)
class DeviceOutput:
    """What a launch makes, in device memory that the executor writes to again at its next launch.

    features: float32 [rows, n_features], whose rows begin at multiples of 16 bytes. ids: int64 [rows, n_ids],
    contiguous.
    """

    features: DeviceArray
    ids: DeviceArray


class CudaExecutor:
    """Runs a program on a GPU. Raises ExecutorError where the program is not for GPUs (`Compiled.refusal`)."""

    def __init__(self, program: ColumnProgram, device: Device) -> None:
        self.program = program
        self._compiled = compiled_for(program)
        self._device = device
        self._stager = Stager(self._compiled)
        self._known: dict[tuple[Layout, bool], Tables] = {}
        self._pitch = -(-program.n_features // 4) * 4
        self._lock = threading.Lock()
        self._kernels: dict[tuple[Layout, bool, bool], tuple[Kernel, Tables, Memory]] = {}
        self._memories: dict[str, Memory] = {}
        self._epoch = 0
        self._on_host: CpuExecutor | None = None
        # The spec that was compared last and is the same: comparing takes longer than a small batch.
        self._same = program.sketch
        # The epoch's number, then a ticket for each group.
        self._control = device.memory(4 * (1 + self._tables(NARROW, False).groups))
        self._epochs = Epochs(program.sketch, device, 2)
        device.copy_in(self._control, 0, np.zeros(self._control.nbytes // 4, np.uint32))

    def prepare(self) -> None:
        """Compiles and loads now what batches of columns will need; raises ExecutorError where that fails. A matrix's
        kernels wait for the first one."""
        with self._lock:
            for layout in (WIDE, NARROW):
                for counted in (True, False):
                    self._kernel(layout, False, counted)

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
        """See `CpuExecutor.run`; features and ids are copied to the host, and the call waits for them.

        `threads`: for the ids that the host makes of texts. What was launched and not collected goes to `sketch`, too.
        """
        if sketch is not None:
            self._check(sketch)
        start, stop = self._span(rows, start, stop)
        if threads < 1:
            raise ExecutorError("expected at least one thread, came 0")
        features = _output(features, (stop - start, self.program.n_features), np.float32, "features")
        ids = _output(ids, (stop - start, self.program.n_ids), np.int64, "ids")
        with self._lock:
            output = self._launch(rows, start, stop, sketch is not None, threads)
            if output is not None:
                padded = np.empty((stop - start, self._pitch), np.float32)
                self._device.copy_out(output.features.memory, 0, padded)
                features[:] = padded[:, : self.program.n_features]
                self._device.copy_out(output.ids.memory, 0, ids)
            if sketch is not None:
                self._collect(sketch)
        return features, ids

    def sum_jointly(self, rows: Slab | ColumnTable, taken: NDArray[np.int64], sketch: Sketch) -> None:
        """See `CpuExecutor.sum_jointly`, which does it: of a few rows, that lie on the host anyway."""
        with self._lock:
            if self._on_host is None:
                self._on_host = CpuExecutor(self.program)
        self._on_host.sum_jointly(rows, taken, sketch)

    def launch(
        self, rows: Slab | ColumnTable, start: int = 0, stop: int = -1, counted: bool = True
    ) -> DeviceOutput | None:
        """Stages and launches the rows [start, stop), and does not wait. With `counted` they are added to the open
        epoch. None: there are no rows. Raises ExecutorError as `run` does."""
        start, stop = self._span(rows, start, stop)
        with self._lock:
            return self._launch(rows, start, stop, counted, 1)

    def launch_on(self, rows: DeviceRows, counted: bool = True) -> DeviceOutput | None:
        """As `launch`, of rows that are in device memory already; nothing is copied, so a graph may capture it once a
        launch of as many rows has been made. Programs that read texts take no such rows: ExecutorError."""
        if self._compiled.staged:
            raise ExecutorError("the program reads texts, whose ids the host makes: launch rows of a slab or table")
        if not 0 <= rows.rows <= MAX_ROWS:
            raise ExecutorError(f"expected at most {MAX_ROWS} rows at a time, came {rows.rows}")
        with self._lock:
            return self._launch_on(rows, counted) if rows.rows else None

    def collect(self, sketch: Sketch) -> None:
        """Adds to `sketch` what was launched with `counted` since it was last called. Raises ExecutorError on a sketch
        of another spec."""
        self._check(sketch)
        with self._lock:
            self._collect(sketch)

    def _check(self, sketch: Sketch) -> None:
        if sketch.spec is not self._same:
            if sketch.spec != self.program.sketch:
                raise ExecutorError("the sketch's spec is not the program's")
            self._same = sketch.spec

    def _span(self, rows: Slab | ColumnTable, start: int, stop: int) -> tuple[int, int]:
        if rows.schema != self.program.schema:
            raise ExecutorError("expected rows of the program's schema, came of another")
        count = len(rows)
        stop = count if stop == -1 else stop
        if not 0 <= start <= stop <= count:
            raise ExecutorError(f"expected rows within [0, {count}), came [{start}, {stop})")
        if stop - start > MAX_ROWS:
            raise ExecutorError(f"expected at most {MAX_ROWS} rows at a time, came {stop - start}")
        return start, stop

    def _launch(
        self, rows: Slab | ColumnTable, start: int, stop: int, counted: bool, threads: int
    ) -> DeviceOutput | None:
        if start == stop:
            return None
        if isinstance(rows, ColumnTable) and isinstance(rows.values, np.ndarray):
            matrix = np.ascontiguousarray(rows.values[start:stop])
            memory = self._memory("matrix", matrix.nbytes)
            self._device.copy_in(memory, 0, matrix)
            width = matrix.shape[1]
            return self._launch_on(DeviceRows(stop - start, matrix=memory.pointer, pitch=width), counted)
        columns = self._stager.columns(rows, start, stop, threads)
        memory = self._memory("columns", packed_size(columns))
        self._device.copy_in(memory, 0, packed(columns, memory.pointer))
        return self._launch_on(DeviceRows(stop - start, columns=memory.pointer), counted)

    def _launch_on(self, rows: DeviceRows, counted: bool) -> DeviceOutput:
        matrix, count = rows.matrix != 0, rows.rows
        layout = layout_for(count, self._tables(WIDE, False), self._device.processors)
        kernel, tables, words = self._kernel(layout, matrix, counted)
        chunk, blocks = chunks_of(count, tables, self._device.processors)
        n_features, n_ids, n_partials = self.program.n_features, self.program.n_ids, self._compiled.partials
        features = self._memory("features", 4 * count * self._pitch)
        ids = self._memory("ids", 8 * count * n_ids)
        partials = self._memory("partials", 8 * MOMENTS * blocks * n_partials)
        arguments = (
            *(words.pointer, tables.items, rows.columns, rows.matrix, rows.pitch),
            *(features.pointer, self._pitch, ids.pointer, n_ids),
            *(*self._epochs.arguments, partials.pointer, n_partials),
            *(self._control.pointer, count, chunk, int(rows.aligned), 0),
        )
        kernel(Launch((blocks, tables.groups), tables.shared_bytes, arguments, WIDE_ARGUMENTS))
        return DeviceOutput(
            DeviceArray(features, (count, n_features), (4 * self._pitch, 4), "<f4"),
            DeviceArray(ids, (count, n_ids), (8 * n_ids, 8), "<i8"),
        )

    def _collect(self, sketch: Sketch) -> None:
        closed = self._epoch
        self._epoch = 1 - closed
        self._device.copy_in(self._control, 0, np.asarray([self._epoch], np.uint32))
        self._epochs.take(closed, sketch)

    def _tables(self, layout: Layout, matrix: bool) -> Tables:
        found = self._known.get((layout, matrix))
        if found is None:
            found = self._known[layout, matrix] = self._compiled.tables(layout, matrix)
        return found

    def _kernel(self, layout: Layout, matrix: bool, counted: bool) -> tuple[Kernel, Tables, Memory]:
        found = self._kernels.get((layout, matrix, counted))
        if found is None:
            kernel = self._device.kernel(self._compiled.source, Variant(matrix, counted, layout.vectors))
            tables = self._tables(layout, matrix)
            words = self._device.memory(tables.words.nbytes)
            self._device.copy_in(words, 0, tables.words)
            found = self._kernels[layout, matrix, counted] = kernel, tables, words
        return found

    def _memory(self, name: str, nbytes: int) -> Memory:
        """Memory of its own for each purpose, as large as was ever asked for."""
        memory = self._memories.get(name)
        if memory is None or memory.nbytes < nbytes:
            memory = self._memories[name] = self._device.memory(max(nbytes, ALIGNED))
        return memory


def chunks_of(rows: int, tables: Tables, processors: int) -> tuple[int, int]:
    """How many rows a block takes, and how many blocks share them: so many that all processors are busy, each with a
    whole number of tiles. Pure."""
    wanted = max(processors * BLOCKS_A_PROCESSOR // tables.groups, 1)
    tiles = -(-rows // tables.tile_rows)
    chunk = -(-tiles // wanted) * tables.tile_rows
    return chunk, -(-rows // chunk)


def layout_for(rows: int, wide: Tables, processors: int) -> Layout:
    """Wide, unless that leaves processors without a block. Pure."""
    _, blocks = chunks_of(rows, wide, processors)
    return WIDE if blocks * wide.groups >= processors else NARROW


def compiled_for(program: ColumnProgram) -> Compiled:
    """The program for a GPU. Raises ExecutorError where it is not for one."""
    compiled = Compiled.of(program)
    if compiled.refusal is not None:
        raise ExecutorError(f"the program cannot run on a GPU: {compiled.refusal}")
    return compiled


def _output(given: Any, shape: tuple[int, int], kind: type[np.generic], what: str) -> NDArray[Any]:
    if given is None:
        return np.empty(shape, kind)
    fits = isinstance(given, np.ndarray) and given.dtype == kind and given.shape == shape
    if not fits or not given.flags.c_contiguous or not given.flags.writeable:
        raise ExecutorError(f"expected {what} {list(shape)}, a writeable contiguous array of {np.dtype(kind)}")
    taken: NDArray[Any] = given
    return taken
