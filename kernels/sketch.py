"""The sketch: what a stream of rows looked like, in a few kilobytes, that merge across batches, processes and nodes.

Two flat arrays in the layout of `sketch_spec`, filled in place by native code in the same pass that computes the
features. A sketch belongs to one thread at a time. Counts merge exactly in any order; sums merge in the order of the
calls. A third array, of a spec with a joint part, holds exact sums over a sample of the rows.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from trimtab._native import sketch_values
from trimtab.kernels import canonical
from trimtab.kernels.errors import KernelError, SketchError
from trimtab.kernels.joint_spec import LENGTH
from trimtab.kernels.sketch_spec import MOMENTS, PREFIX, CategoryField, SketchField, SketchSpec

_COUNTED = ("missing", "unseen", "negative_infinite", "positive_infinite")
_SUMMED = ("minimum", "maximum", "sum", "sum_squares")
_ARROW = pa.schema(
    [("field", pa.string())]
    + [(name, pa.uint64()) for name in _COUNTED]
    + [(name, pa.float64()) for name in _SUMMED]
    + [("buckets", pa.list_(pa.uint64()))]
)


@dataclass(frozen=True)
class FieldSummary:
    """One field's part of a sketch.

    field: what was counted and how. rows: how many values were seen, missing ones included. missing, unseen (outside
    the training range, or not in the vocabulary), negative_infinite, positive_infinite: counts. minimum, maximum, mean,
    variance (population): of the finite values; NaN where there are none, and for categories. buckets: uint64 counts,
    see the spec.
    """

    field: SketchField
    rows: int
    missing: int
    unseen: int
    negative_infinite: int
    positive_infinite: int
    minimum: float
    maximum: float
    mean: float
    variance: float
    buckets: NDArray[np.uint64]

    @property
    def missing_rate(self) -> float:
        """missing / rows; 0 without rows."""
        return self.missing / self.rows if self.rows else 0.0

    @property
    def unseen_rate(self) -> float:
        """unseen / rows; 0 without rows."""
        return self.unseen / self.rows if self.rows else 0.0


class Sketch:
    """Counts, extremes, moments and histograms of the fields of a spec, and of the predictions."""

    def __init__(self, spec: SketchSpec) -> None:
        self.spec = spec
        self.counts: NDArray[np.uint64] = np.zeros(spec.offsets[-1], np.uint64)
        self.moments: NDArray[np.float64] = np.zeros((len(spec.fields) + 1) * MOMENTS, np.float64)
        self.joint: NDArray[np.int64] = np.zeros(LENGTH if spec.joint is not None else 0, np.int64)
        start, stop = spec.offsets[-2:]
        prediction = spec.prediction
        # What adding predictions takes, with views into the arrays above.
        self._prediction = (
            np.asarray(prediction.edges, np.float32),
            prediction.low,
            prediction.high,
            prediction.shift,
            self.counts[start:stop],
            self.moments[-MOMENTS:],
        )
        self.clear()

    @property
    def rows(self) -> int:
        """How many rows were added."""
        return int(self.counts[0])

    def clear(self) -> None:
        """Forgets everything that was added."""
        self.counts[:] = 0
        self.joint[:] = 0
        self.moments[:] = np.tile([np.inf, -np.inf, 0.0, 0.0], len(self.moments) // MOMENTS)

    def copy(self) -> Sketch:
        """An independent sketch of the same contents."""
        other = Sketch(self.spec)
        other.counts[:] = self.counts
        other.moments[:] = self.moments
        other.joint[:] = self.joint
        return other

    def merge(self, other: Sketch) -> None:
        """Adds what another sketch of an equal spec counted. Raises SketchError where the specs differ."""
        if self.spec is not other.spec and self.spec.hash != other.spec.hash:
            raise SketchError(f"sketches of different specs: {self.spec.hash[:12]} and {other.spec.hash[:12]}")
        self.counts += other.counts
        self.joint += other.joint
        mine, theirs = self.moments.reshape(-1, MOMENTS), other.moments.reshape(-1, MOMENTS)
        np.minimum(mine[:, 0], theirs[:, 0], out=mine[:, 0])
        np.maximum(mine[:, 1], theirs[:, 1], out=mine[:, 1])
        mine[:, 2:] += theirs[:, 2:]

    def add_predictions(self, values: NDArray[np.float32]) -> None:
        """Adds predictions, float32 [n], or of several outputs [n, K] each row's largest; NaN counts as missing."""
        sketch_values(values, *self._prediction)

    def field(self, index: int) -> FieldSummary:
        """The summary of the field at a position of the spec; -1 is the prediction."""
        fields = (*self.spec.fields, self.spec.prediction)
        position = range(len(fields))[index]
        start, stop = self.spec.offsets[position : position + 2]
        missing, unseen, negative, positive = (int(count) for count in self.counts[start : start + PREFIX])
        buckets = self.counts[start + PREFIX : stop].copy()
        summary = fields[position]
        total = int(buckets.sum())
        rows = missing + total + (unseen if isinstance(summary, CategoryField) else 0)
        finite = 0 if isinstance(summary, CategoryField) else total - negative - positive
        low, high, mean, variance = (float("nan"),) * 4
        if finite and not isinstance(summary, CategoryField):
            low, high, sums, squares = (float(x) for x in self.moments[position * MOMENTS : (position + 1) * MOMENTS])
            mean = summary.shift + sums / finite
            variance = max(squares / finite - (sums / finite) ** 2, 0.0)
        return FieldSummary(summary, rows, missing, unseen, negative, positive, low, high, mean, variance, buckets)

    @property
    def fields(self) -> list[FieldSummary]:
        """The summaries of all fields, in schema order, without the prediction."""
        return [self.field(i) for i in range(len(self.spec.fields))]

    @property
    def prediction(self) -> FieldSummary:
        """The summary of the predictions."""
        return self.field(-1)

    def __eq__(self, other: object) -> bool:
        """Equal specs, counts, moments and joint sums, bit for bit."""
        if not isinstance(other, Sketch):
            return NotImplemented
        return (
            self.spec == other.spec
            and np.array_equal(self.counts, other.counts)
            and self.moments.tobytes() == other.moments.tobytes()
            and np.array_equal(self.joint, other.joint)
        )

    __hash__ = None  # type: ignore[assignment]  # mutable

    def to_bytes(self) -> bytes:
        """An Arrow IPC file: one row a field (the prediction last), the spec, the number of rows and the joint sums in
        the metadata."""
        summaries = [self.field(i) for i in range(len(self.spec.fields) + 1)]
        moments = self.moments.reshape(-1, MOMENTS)
        columns: list[Any] = [pa.array([summary.field.name for summary in summaries], pa.string())]
        columns += [pa.array([getattr(summary, name) for summary in summaries], pa.uint64()) for name in _COUNTED]
        columns += [pa.array(moments[:, i]) for i in range(MOMENTS)]
        columns.append(pa.array([summary.buckets for summary in summaries], pa.list_(pa.uint64())))
        metadata = {"trimtab.spec": canonical.dumps(self.spec.to_json()), "trimtab.rows": str(self.rows)}
        if len(self.joint):
            metadata["trimtab.joint"] = base64.b64encode(self.joint.astype("<i8").tobytes()).decode()
        schema = _ARROW.with_metadata(metadata)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, schema) as writer:
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
        return bytes(sink.getvalue())

    @classmethod
    def from_bytes(cls, data: bytes) -> Sketch:
        """The sketch that `to_bytes` wrote. Raises SketchError on anything else."""
        try:
            with pa.ipc.open_file(pa.BufferReader(data)) as reader:
                schema, table = reader.schema, reader.read_all()
            table.validate(full=True)
            metadata = schema.metadata or {}
            if not schema.remove_metadata().equals(_ARROW):
                raise SketchError("sketch: the Arrow schema is not a sketch's")
            spec = SketchSpec.from_json(json.loads(metadata[b"trimtab.spec"]))
            sketch = cls(spec)
            names = [field.name for field in (*spec.fields, spec.prediction)]
            if table.num_rows != len(names) or table.column("field").to_pylist() != names:
                raise SketchError("sketch: the rows are not the spec's fields")
            sketch.counts[0] = int(metadata[b"trimtab.rows"])
            for i, row in enumerate(table.to_pylist()):
                start, stop = spec.offsets[i : i + 2]
                sketch.counts[start:stop] = [*(row[name] for name in _COUNTED), *row["buckets"]]
                sketch.moments[i * MOMENTS : (i + 1) * MOMENTS] = [row[name] for name in _SUMMED]
            if len(sketch.joint):
                sketch.joint[:] = np.frombuffer(base64.b64decode(metadata[b"trimtab.joint"], validate=True), "<i8")
        except SketchError:
            raise
        except (KernelError, pa.ArrowException, ValueError, TypeError, KeyError, OverflowError, OSError) as error:
            raise SketchError(f"sketch: damaged bytes: {error}") from None
        return sketch
