"""A column program's part of a captured batch: from the raw rows in a staged buffer to features, ids and counts.

A captured launch has fixed addresses and a fixed shape. What changes from batch to batch is in the buffer that is
copied to the device first:

    offset 0     header   uint32 [16]   how many rows there are; 0; the epoch that they count in; zeros
           64    columns  one a field, of `rows` values, at multiples of 16 bytes: float32 (real, boolean) or int64
                 ids      int32, of the texts, which the host looks up

So one launch is right for any number of rows up to its bucket's. Features and ids of the rows behind the last are those
of earlier batches, or zero: numbers and ids that the kernel once wrote, so that what reads them reads no nonsense.

Three epochs of counts and moments. Two of them change places when a sketch is read, so that batches go on meanwhile;
the third takes what is not to be counted (another version's rows, more than are watched): capturing each bucket twice,
with and without the sketch, would cost more than the few µs of counting for nothing.

Rows are counted for a sketch and are in it once they were collected: when another sketch is counted for, or `collect`
is called. Not for several threads at a time, but `collect` beside `write`; no launch may be under way when `close` is
called, which whoever waits for each batch (models/graphs.py) sees to.

Turned down: reading how many rows there are from a launch's arguments, for which every batch would have to change the
graph's node (3 µs, and no shared graphs), and a buffer of the device's addresses in what is staged (they are the
bucket's, and stay).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from trimtab._native import Slab
from trimtab.kernels.cuda import WIDE_ARGUMENTS, chunks_of, compiled_for, layout_for
from trimtab.kernels.cuda_compile import Variant
from trimtab.kernels.cuda_device import Device, Launch, Memory
from trimtab.kernels.cuda_epochs import Epochs
from trimtab.kernels.cuda_staging import ALIGNED, Stager
from trimtab.kernels.cuda_tables import NARROW, WIDE
from trimtab.kernels.errors import ExecutorError
from trimtab.kernels.program import ColumnProgram
from trimtab.kernels.sketch import Sketch
from trimtab.kernels.sketch_spec import MOMENTS

__all__ = ["GraphColumns"]

HEADER_BYTES = 64
_SCRAP = 2
_EPOCHS = 3
_BYTES = {"real": 4, "boolean": 4, "integer": 8}


@dataclass(frozen=True)
class _Bucket:
    """Where the columns lie in a staged buffer for so many rows. offsets: bytes, one a field of the slab's, -1 for
    texts and keys. texts: bytes, one a column of ids."""

    rows: int
    offsets: NDArray[np.int64]
    texts: tuple[int, ...]
    size: int


class GraphColumns:
    """See the module. Raises ExecutorError where the program is not for GPUs."""

    def __init__(self, program: ColumnProgram, device: Device) -> None:
        self.program = program
        self._compiled = compiled_for(program)
        self._device = device
        self._stager = Stager(self._compiled)
        self.pitch = -(-program.n_features // 4) * 4
        """Floats from one row of features to the next."""
        self._wide = self._compiled.tables(WIDE, False)
        groups = self._compiled.tables(NARROW, False).groups  # the most there are
        self._control = device.memory(4 * (1 + groups))
        device.copy_in(self._control, 0, np.zeros(1 + groups, np.uint32))
        self._epochs = Epochs(program.sketch, device, _EPOCHS)
        self._buckets: dict[int, _Bucket] = {}
        self._held: list[Memory] = []
        self._epoch = 0
        self._counted_for: Sketch | None = None
        self._reading = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Of device memory: epochs, tables and partial sums of what can be launched."""
        return self._epochs.nbytes + self._control.nbytes + sum(memory.nbytes for memory in self._held)

    def size(self, rows: int) -> int:
        """Bytes of the staged buffer for up to so many rows."""
        return self._bucket(rows).size

    def launcher(self, rows: int, staged: int, features: int, ids: int) -> Callable[[], None]:
        """What launches on the current stream: of the staged buffer at that address, features float32 [rows, pitch] and
        ids int64 [rows, n_ids] to those addresses, and counts. Allocates here, and nothing when it is called."""
        bucket = self._bucket(rows)
        layout = layout_for(rows, self._wide, self._device.processors)
        tables = self._wide if layout == WIDE else self._compiled.tables(layout, False)
        kernel = self._device.kernel(self._compiled.source, Variant(False, True, layout.vectors, staged=True))
        chunk, blocks = chunks_of(rows, tables, self._device.processors)
        words = self._given(tables.words)
        columns = [staged + offset if offset >= 0 else 0 for offset in bucket.offsets.tolist()]
        addresses = self._given(np.asarray([*columns, *(staged + offset for offset in bucket.texts)], np.uint64))
        partials = self._device.memory(max(8 * MOMENTS * blocks * self._compiled.partials, ALIGNED))
        self._held.append(partials)
        launch = Launch(
            (blocks, tables.groups),
            tables.shared_bytes,
            (
                *(words.pointer, tables.items, addresses.pointer, 0, 0),
                *(features, self.pitch, ids, self.program.n_ids),
                *(*self._epochs.arguments, partials.pointer, self._compiled.partials),
                *(self._control.pointer, rows, chunk, 1, staged),
            ),
            WIDE_ARGUMENTS,
        )
        return lambda: kernel(launch)

    def write(
        self, buffer: NDArray[np.uint8], rows: int, slab: Slab, sketch: Sketch | None, start: int, stop: int
    ) -> None:
        """Writes the slab's rows [start, stop), at most `rows`, into the staged buffer on the host; they are counted
        for `sketch`, unless there is none. Raises ExecutorError for rows or a sketch of another program."""
        bucket = self._bucket(rows)
        if slab.schema != self.program.schema:
            raise ExecutorError("expected rows of the program's schema, came of another")
        if not 0 <= start <= stop <= slab.rows or stop - start > rows:
            raise ExecutorError(f"expected at most {rows} rows within [0, {slab.rows}), came [{start}, {stop})")
        epoch = _SCRAP
        if sketch is not None:
            if sketch is not self._counted_for:
                self._change(sketch)
            epoch = self._epoch
        header = buffer[:HEADER_BYTES].view(np.uint32)
        header[0] = stop - start
        header[2] = epoch
        slab.copy_columns(buffer, bucket.offsets, start, stop)
        if bucket.texts:
            for offset, column in zip(bucket.texts, self._stager.texts(slab, start, stop), strict=True):
                buffer[offset : offset + column.nbytes] = column.view(np.uint8)

    def close(self) -> Callable[[], None]:
        """From the next batch on rows count in the other epoch; waits until that has been read. Returns what adds the
        rows that were counted so far to their sketch, on a second stream, beside the next batches; to be called."""
        sketch, closed = self._counted_for, self._epoch
        if sketch is None:
            return lambda: None
        self._reading.acquire()
        self._epoch, self._counted_for = 1 - closed, None
        return lambda: self._read(closed, sketch)

    def _change(self, sketch: Sketch) -> None:
        if sketch.spec is not self.program.sketch and sketch.spec != self.program.sketch:
            raise ExecutorError("the sketch's spec is not the program's")
        self.close()()
        self._counted_for = sketch

    def _read(self, epoch: int, sketch: Sketch) -> None:
        try:
            self._epochs.take(epoch, sketch)
        finally:
            self._reading.release()

    def _given(self, values: NDArray[np.generic]) -> Memory:
        memory = self._device.memory(max(values.nbytes, ALIGNED))
        self._device.copy_in(memory, 0, values)
        self._held.append(memory)
        return memory

    def _bucket(self, rows: int) -> _Bucket:
        found = self._buckets.get(rows)
        if found is None:
            found = self._buckets[rows] = _bucket_of(self.program, self._stager.n_texts, rows)
        return found


def _bucket_of(program: ColumnProgram, texts: int, rows: int) -> _Bucket:
    features = len(program.fields) - program.keys
    at, offsets = HEADER_BYTES, []
    for position, field in enumerate(program.fields):
        nbytes = _BYTES.get(field.type, 0) * rows if position < features else 0
        offsets.append(at if nbytes else -1)
        at += _aligned(nbytes)
    ids = tuple(at + index * _aligned(4 * rows) for index in range(texts))
    return _Bucket(rows, np.asarray(offsets, np.int64), ids, at + texts * _aligned(4 * rows))


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNED) * ALIGNED
