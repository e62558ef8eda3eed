"""What a sketch counts: per field the histogram's edges or the categories, and the edges of the prediction's histogram.

A spec is part of a column program but has a hash of its own: sketches merge and compare whenever their specs' hashes
agree, also across versions of a model. It fixes the layout of a sketch's two flat arrays, which native code fills:

  counts (uint64)   rows, then per field: missing, unseen, negative_infinite, positive_infinite, buckets...
  moments (float64) per field: minimum, maximum, sum and sum of squares of (x - shift)

The fields come in schema order, the prediction last. A spec may have a joint part (joint_spec.py): sums over a sample
of rows as a whole, in a third array, by which a change in how columns go together is seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from trimtab.kernels import canonical
from trimtab.kernels.errors import ProgramError
from trimtab.kernels.joint_spec import JointSpec
from trimtab.kernels.operations import FP32_MAX, categories, fp32, increasing, number

PREFIX = 4  # missing, unseen, negative_infinite, positive_infinite
MOMENTS = 4  # minimum, maximum, sum, sum_squares
MAX_COUNTED = 4096
DEFAULT_PREDICTION_EDGES: tuple[float, ...] = tuple(i / 32 for i in range(1, 32))


@dataclass(frozen=True)
class RealField:
    """A numeric field. Buckets: bucket i counts the values with exactly i edges <= x, so len(edges) + 1 of them.

    low, high: the range seen in training, outside of which a value is unseen. shift: subtracted before moments are
    summed.
    """

    name: str
    edges: tuple[float, ...]
    low: float = -FP32_MAX
    high: float = FP32_MAX
    shift: float = 0.0

    def __post_init__(self) -> None:
        what = f"sketch of {self.name!r}"
        object.__setattr__(self, "edges", increasing(self.edges, f"{what}: edges"))
        for key in ("low", "high", "shift"):
            object.__setattr__(self, key, fp32(getattr(self, key), f"{what}: {key}"))
        if self.low > self.high:
            raise ProgramError(f"{what}: low {self.low!r} is above high {self.high!r}")

    @property
    def buckets(self) -> int:
        """Length of the histogram."""
        return len(self.edges) + 1


@dataclass(frozen=True)
class CategoryField:
    """A categorical field. Buckets: one for each of the first `counted` values, then one for all the other known
    values.

    A value that is not in `values` is unseen and counted in no bucket. novel: of how large a share of further rows the
    value may be expected to be one that was not among those that `values` were fitted to (summaries.novel_share).
    """

    name: str
    values: tuple[int, ...] | tuple[str, ...]
    counted: int
    novel: float = 0.0

    def __post_init__(self) -> None:
        what = f"sketch of {self.name!r}"
        object.__setattr__(self, "values", categories(self.values, f"{what}: values"))
        canonical.as_integer(self.counted, f"{what}: counted", 0, min(MAX_COUNTED, len(self.values)))
        if not 0.0 <= number(self.novel, f"{what}: novel") <= 1.0:
            raise ProgramError(f"{what}: novel: expected a share, got {self.novel}")

    @property
    def buckets(self) -> int:
        """Length of the counts."""
        return self.counted + 1


SketchField = RealField | CategoryField


@dataclass(frozen=True)
class SketchSpec:
    """What a sketch counts; immutable, equal by value."""

    fields: tuple[SketchField, ...]
    prediction_edges: tuple[float, ...] = DEFAULT_PREDICTION_EDGES
    joint: JointSpec | None = None
    """Of the fields without the prediction; None in specs of before there was one."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "prediction_edges", increasing(self.prediction_edges, "prediction_edges"))
        if len({field.name for field in self.fields}) != len(self.fields):
            raise ProgramError("sketch: a field appears twice")
        if self.joint is not None:
            self.joint.check([field.buckets for field in self.fields])

    @cached_property
    def prediction(self) -> RealField:
        """The prediction, as a field; it is laid out after the others."""
        edges = self.prediction_edges
        return RealField("prediction", edges, shift=edges[len(edges) // 2] if edges else 0.0)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each field's counts start, the prediction last, then the length of `counts`."""
        offsets = [1]
        for field in (*self.fields, self.prediction):
            offsets.append(offsets[-1] + PREFIX + field.buckets)
        return tuple(offsets)

    @cached_property
    def phases(self) -> NDArray[np.uint16]:
        """Of the joint part; see JointSpec.phases. Raises ProgramError where there is none."""
        if self.joint is None:
            raise ProgramError("sketch: the spec has no joint part")
        return self.joint.phases([field.buckets for field in self.fields])

    @cached_property
    def hash(self) -> str:
        """sha256 of the canonical JSON."""
        return canonical.digest(canonical.dumps(self.to_json()))

    def to_json(self) -> dict[str, object]:
        """The spec as an object of canonical JSON."""
        items: dict[str, object] = {
            "fields": [_field_to_json(field) for field in self.fields],
            "prediction_edges": list(self.prediction_edges),
        }
        return items if self.joint is None else {**items, "joint": self.joint.to_json()}

    @classmethod
    def from_json(cls, value: object) -> SketchSpec:
        """The spec that `to_json` wrote. Raises ProgramError."""
        items = canonical.as_object(value, "sketch")
        known = {"fields", "prediction_edges", *({"joint"} & items.keys())}
        canonical.as_object(value, "sketch", frozenset(known))
        fields = tuple(_field_from_json(field) for field in canonical.as_list(items["fields"], "sketch.fields"))
        joint = JointSpec.from_json(items["joint"]) if "joint" in items else None
        return cls(fields, increasing(items["prediction_edges"], "prediction_edges"), joint)


def _field_to_json(field: SketchField) -> dict[str, object]:
    if isinstance(field, CategoryField):
        known = {"kind": "category", "name": field.name, "values": list(field.values), "counted": field.counted}
        return {**known, "novel": field.novel} if field.novel else known  # as it was before there was one
    return {
        "kind": "real",
        "name": field.name,
        "edges": list(field.edges),
        "low": field.low,
        "high": field.high,
        "shift": field.shift,
    }


def _field_from_json(value: object) -> SketchField:
    items = canonical.as_object(value, "sketch field")
    kind = items.get("kind")
    if kind == "category":
        optional = {"novel"} & items.keys()
        canonical.as_object(value, "sketch field", frozenset({"kind", "name", "values", "counted"} | optional))
        name = canonical.as_text(items["name"], "sketch field name")
        values = categories(items["values"], f"sketch of {name!r}")
        counted = canonical.as_integer(items["counted"], "counted", 0, MAX_COUNTED)
        return CategoryField(name, values, counted, number(items.get("novel", 0.0), f"sketch of {name!r}: novel"))
    if kind == "real":
        canonical.as_object(value, "sketch field", frozenset({"kind", "name", "edges", "low", "high", "shift"}))
        name = canonical.as_text(items["name"], "sketch field name")
        numbers = [fp32(items[key], f"sketch of {name!r}: {key}") for key in ("low", "high", "shift")]
        return RealField(name, increasing(items["edges"], f"sketch of {name!r}: edges"), *numbers)
    raise ProgramError(f"sketch field: unknown kind {str(kind)[:40]!r}")
