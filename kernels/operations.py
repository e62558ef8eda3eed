"""The ops of the IR, with fitted parameters. What each computes is in docs/columns.md; nothing here computes.

An op is immutable and checks itself when made: whatever holds an `Operation` may rely on finite parameters, increasing
edges and values without duplicates. Edges, bounds and fill values are fp32 numbers (held as float): bins compare raw
fp32 input.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from trimtab.kernels import canonical
from trimtab.kernels.errors import ProgramError

FP32_MAX = float(np.finfo(np.float32).max)
FIRST_ID = 3  # 0 PAD, 1 NULL, 2 OOV
PAD, NULL, OOV = 0, 1, 2
MAX_EDGES = 4096
MAX_VALUES = 1_000_000
MAX_BUCKETS = 1 << 24
_INT64 = (-(1 << 63) + 1, (1 << 63) - 1)  # INT64_MIN is the missing integer

Check = Callable[[object, str], object]


def number(value: object, what: str) -> float:
    """A finite float64."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ProgramError(f"{what}: expected a number, got {canonical.name_of(value)}")
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    if not math.isfinite(result):
        raise ProgramError(f"{what}: expected a finite number")
    return result


def fp32(value: object, what: str) -> float:
    """A finite number that float32 holds exactly; -0 becomes +0."""
    result = number(value, what)
    if abs(result) > FP32_MAX or float(np.float32(result)) != result:
        raise ProgramError(f"{what}: {result!r} is not a float32 number")
    return result + 0.0


def scale(value: object, what: str) -> float:
    """A finite number >= 0; 0 stands for a column without spread."""
    result = number(value, what)
    if result < 0:
        raise ProgramError(f"{what}: expected a scale >= 0, got {result!r}")
    return result + 0.0


def period(value: object, what: str) -> float:
    """A number in [1e-30, 1e30]."""
    result = number(value, what)
    if not 1e-30 <= result <= 1e30:
        raise ProgramError(f"{what}: expected a period in [1e-30, 1e30], got {result!r}")
    return result


def flag(value: object, what: str) -> bool:
    """A boolean."""
    if not isinstance(value, bool):
        raise ProgramError(f"{what}: expected a boolean, got {canonical.name_of(value)}")
    return value


def buckets(value: object, what: str) -> int:
    """A number of hash buckets."""
    return canonical.as_integer(value, what, 1, MAX_BUCKETS)


def field_index(value: object, what: str) -> int:
    """A field's position in the schema; the program checks that it is there."""
    return canonical.as_integer(value, what, 0, 1 << 20)


def increasing(value: object, what: str) -> tuple[float, ...]:
    """At most MAX_EDGES strictly increasing fp32 numbers."""
    items = _sequence(value, what)
    if len(items) > MAX_EDGES:
        raise ProgramError(f"{what}: more than {MAX_EDGES} edges")
    edges = tuple(fp32(item, what) for item in items)
    if any(a >= b for a, b in itertools.pairwise(edges)):
        raise ProgramError(f"{what}: expected strictly increasing numbers")
    return edges


def probabilities(value: object, what: str) -> tuple[float, ...]:
    """Non-decreasing numbers in [0, 1]."""
    items = tuple(number(item, what) + 0.0 for item in _sequence(value, what))
    if any(not 0 <= item <= 1 for item in items) or any(a > b for a, b in itertools.pairwise(items)):
        raise ProgramError(f"{what}: expected non-decreasing numbers in [0, 1]")
    return items


def categories(value: object, what: str) -> tuple[int, ...] | tuple[str, ...]:
    """Distinct values, all int64 (never INT64_MIN) or all non-empty strings, in the order of their ids."""
    items = _sequence(value, what)
    if len(items) > MAX_VALUES:
        raise ProgramError(f"{what}: more than {MAX_VALUES} values")
    if len(set(map(_typed, items))) != len(items):
        raise ProgramError(f"{what}: a value appears twice")
    if all(isinstance(item, str) for item in items):
        texts = tuple(canonical.as_text(item, what) for item in items)
        if "" in texts:
            raise ProgramError(f"{what}: the empty string is a missing value and cannot be in a vocabulary")
        return texts
    return tuple(canonical.as_integer(item, what, *_INT64) for item in items)


def _typed(item: object) -> tuple[type, object]:
    return type(item), item if isinstance(item, (int, str)) else id(item)


def _sequence(value: object, what: str) -> tuple[object, ...]:
    if not isinstance(value, (list, tuple)):
        raise ProgramError(f"{what}: expected a list, got {canonical.name_of(value)}")
    return tuple(value)


def checked(check: Check) -> Any:  # Any: a dataclass field of whatever type the check returns
    """A dataclass field that is passed through `check` when the op is made."""
    return dataclasses.field(metadata={"check": check})


@dataclass(frozen=True)
class Operation:
    """Base of the ops. Subclasses declare their parameters; equality and hash are by value."""

    op: ClassVar[str]

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            what = f"{self.op}.{item.name}"
            object.__setattr__(self, item.name, item.metadata["check"](getattr(self, item.name), what))

    def to_json(self) -> dict[str, object]:
        """The op as an object of canonical JSON."""
        items = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return {"op": self.op, **{key: list(v) if isinstance(v, tuple) else v for key, v in items.items()}}


@dataclass(frozen=True)
class Impute(Operation):
    """Missing → value; with flag, one more feature that is 1 where the raw value was missing."""

    op: ClassVar[str] = "impute"
    value: float = checked(fp32)
    flag: bool = checked(flag)


@dataclass(frozen=True)
class Clip(Operation):
    """Into [low, high]."""

    op: ClassVar[str] = "clip"
    low: float = checked(fp32)
    high: float = checked(fp32)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low > self.high:
            raise ProgramError(f"clip: low {self.low!r} is above high {self.high!r}")


@dataclass(frozen=True)
class Log1p(Operation):
    """log(1 + max(x, 0))."""

    op: ClassVar[str] = "log1p"


@dataclass(frozen=True)
class SignedLog(Operation):
    """sign(x) · log(1 + |x|)."""

    op: ClassVar[str] = "signed_log"


@dataclass(frozen=True)
class Affine(Operation):
    """(x - shift) / scale, or 0 where the scale is 0; base of three ops that differ in how they are fitted."""

    shift: float = checked(number)
    scale: float = checked(scale)


@dataclass(frozen=True)
class Standardise(Affine):
    """By mean and standard deviation."""

    op: ClassVar[str] = "standardise"


@dataclass(frozen=True)
class MinMax(Affine):
    """By minimum and range."""

    op: ClassVar[str] = "min_max"


@dataclass(frozen=True)
class Robust(Affine):
    """By median and interquartile range."""

    op: ClassVar[str] = "robust"


@dataclass(frozen=True)
class QuantileNormal(Operation):
    """Through the fitted distribution to a standard normal: Φ⁻¹ of the probability interpolated between knots."""

    op: ClassVar[str] = "quantile_normal"
    knots: tuple[float, ...] = checked(increasing)
    probabilities: tuple[float, ...] = checked(probabilities)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.knots) != len(self.probabilities):
            raise ProgramError(f"quantile_normal: {len(self.knots)} knots, {len(self.probabilities)} probabilities")


@dataclass(frozen=True)
class Bucketise(Operation):
    """An id: the number of edges <= x."""

    op: ClassVar[str] = "bucketise"
    edges: tuple[float, ...] = checked(increasing)


@dataclass(frozen=True)
class PiecewiseLinear(Operation):
    """One feature a bin: 1 above it, 0 below it, linear inside (Gorishniy et al. 2022, "On Embeddings for Numerical
    Features")."""

    op: ClassVar[str] = "piecewise_linear"
    edges: tuple[float, ...] = checked(increasing)


@dataclass(frozen=True)
class Cyclic(Operation):
    """sin and cos of 2π x / period."""

    op: ClassVar[str] = "cyclic"
    period: float = checked(period)


@dataclass(frozen=True)
class Vocabulary(Operation):
    """An id: 3 + the value's position."""

    op: ClassVar[str] = "vocabulary"
    values: tuple[int, ...] | tuple[str, ...] = checked(categories)


@dataclass(frozen=True)
class HashBucket(Operation):
    """An id: 3 + hash modulo buckets."""

    op: ClassVar[str] = "hash_bucket"
    buckets: int = checked(buckets)


@dataclass(frozen=True)
class Cross(Operation):
    """An id from the hashes of this field and another."""

    op: ClassVar[str] = "cross"
    other: int = checked(field_index)
    buckets: int = checked(buckets)


@dataclass(frozen=True)
class Embedding(Operation):
    """The id goes to the model as an index: what happens anyway, said aloud."""

    op: ClassVar[str] = "embedding"


@dataclass(frozen=True)
class OneHot(Operation):
    """The id becomes features, one for each id but PAD, instead of an index."""

    op: ClassVar[str] = "one_hot"


_CLASSES: tuple[type[Operation], ...] = (
    Impute,
    Clip,
    Log1p,
    SignedLog,
    Standardise,
    MinMax,
    Robust,
    QuantileNormal,
    Bucketise,
    PiecewiseLinear,
    Cyclic,
    Vocabulary,
    HashBucket,
    Cross,
    Embedding,
    OneHot,
)
OPERATIONS: dict[str, type[Operation]] = {cls.op: cls for cls in _CLASSES}


def operation_from_json(value: object, what: str) -> Operation:
    """The op that `Operation.to_json` wrote. Raises ProgramError."""
    items = canonical.as_object(value, what)
    name = items.get("op")
    cls = OPERATIONS.get(name) if isinstance(name, str) else None
    if cls is None:
        raise ProgramError(f"{what}: unknown op {str(name)[:40]!r}")
    expected = frozenset({"op", *(item.name for item in dataclasses.fields(cls))})
    canonical.as_object(value, f"{what}: {name}", expected)
    try:
        return cls(**{key: item for key, item in items.items() if key != "op"})
    except ProgramError as error:
        raise ProgramError(f"{what}: {error}") from None
