"""Features as a user writes them: a name, a type and a chain of transforms with fixed parameters.

Fitting (`fit`) turns them into a column program. `Schema`, the native description of a model's request columns, is
re-exported.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from trimtab._native import Schema
from trimtab.kernels import grammar
from trimtab.kernels.errors import ProgramError
from trimtab.kernels.grammar import FIELD_TYPES, FieldType

__all__ = ["FIELD_TYPES", "FeatureSpec", "FieldType", "Schema", "Transform", "parse_transforms"]

Scalar = bool | int | float | str


@dataclass(frozen=True, slots=True)
class _Parameter:
    """A fixed parameter: its type, bounds or choices, and default (None: no default; `required` says whether it must
    come)."""

    kind: type
    default: Scalar | None = None
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()
    required: bool = False


_BINS = _Parameter(int, 16, 1, 1024)
_FP32 = 3.4028234663852886e38
_PARAMETERS: Mapping[str, Mapping[str, _Parameter]] = {
    "impute": {
        "strategy": _Parameter(str, "median", choices=("median", "mean", "constant")),
        "value": _Parameter(float, 0.0, -_FP32, _FP32),
        "flag": _Parameter(bool, True),
    },
    "clip": {
        "low": _Parameter(float, None, -_FP32, _FP32),
        "high": _Parameter(float, None, -_FP32, _FP32),
        "quantile": _Parameter(float, 0.001, 0.0, 0.499),
    },
    "log1p": {},
    "signed_log": {},
    "standardise": {},
    "min_max": {},
    "robust": {},
    "quantile_normal": {"knots": _Parameter(int, 101, 2, 1024)},
    "bucketise": {"bins": _BINS},
    "piecewise_linear": {"bins": _BINS},
    "cyclic": {"period": _Parameter(float, None, 1e-30, 1e30, required=True)},
    "vocabulary": {"max": _Parameter(int, 1000, 1, 1_000_000), "min_count": _Parameter(int, 2, 1, 1_000_000_000)},
    "hash_bucket": {"buckets": _Parameter(int, 1024, 1, 1 << 24)},
    "cross": {"with": _Parameter(str, None, required=True), "buckets": _Parameter(int, 4096, 1, 1 << 24)},
    "embedding": {},
    "one_hot": {},
}


@dataclass(frozen=True, slots=True)
class Transform:
    """One op of a chain with the parameters that the user fixed, sorted by name. Raises ProgramError on wrong ones."""

    op: str
    params: tuple[tuple[str, Scalar], ...] = ()

    def __post_init__(self) -> None:
        if self.op in grammar.RESERVED:
            raise ProgramError(f"op {self.op!r} is reserved and not implemented")
        if self.op not in _PARAMETERS:
            raise ProgramError(f"unknown op {self.op!r}{_nearest(self.op, _PARAMETERS)}")
        known = _PARAMETERS[self.op]
        checked = {key: _checked(self.op, key, value, known) for key, value in self.params}
        for key, parameter in known.items():
            if parameter.required and key not in checked:
                raise ProgramError(f"{self.op}: parameter {key!r} is required")
        low, high = checked.get("low"), checked.get("high")
        if isinstance(low, float) and isinstance(high, float) and low > high:
            raise ProgramError(f"{self.op}: low {low} is above high {high}")
        object.__setattr__(self, "params", tuple(sorted(checked.items())))

    @classmethod
    def of(cls, op: str, **params: Scalar) -> Transform:
        """`Transform.of("clip", low=0.0)`; a parameter whose name is a Python keyword takes a trailing underscore."""
        return cls(op, tuple((key.rstrip("_"), value) for key, value in params.items()))

    @classmethod
    def parse(cls, value: object) -> Transform:
        """From the form of trimtab.toml: a name, or a table `{ op = "clip", low = 0.0 }`."""
        if isinstance(value, Transform):
            return value
        if isinstance(value, str):
            return cls(value)
        if not isinstance(value, Mapping):
            raise ProgramError(f"transform: expected a name or a table with a key 'op', got {type(value).__name__}")
        op = value.get("op")
        if not isinstance(op, str):
            raise ProgramError("transform: the table needs a key 'op' that names the op")
        return cls(op, tuple((str(key), item) for key, item in value.items() if key != "op"))

    def to_toml(self) -> str | dict[str, Scalar]:
        """What `parse` reads back as an equal transform."""
        return {"op": self.op, **dict(self.params)} if self.params else self.op

    def get(self, key: str) -> Scalar | None:
        """The parameter's value, or its default."""
        return dict(self.params).get(key, _PARAMETERS[self.op][key].default)

    def number(self, key: str) -> float:
        """A numeric parameter that has a value or default."""
        value = self.get(key)
        if isinstance(value, str) or value is None:
            raise ProgramError(f"{self.op}: parameter {key!r} is not a number")
        return float(value)

    def integer(self, key: str) -> int:
        """An integer parameter that has a value or default."""
        return int(self.number(key))


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """A feature before fitting. Raises ProgramError where the chain means nothing for the type."""

    name: str
    type: FieldType
    transforms: tuple[Transform, ...] = ()

    def __post_init__(self) -> None:
        if not self.name:
            raise ProgramError("a feature needs a name")
        if self.type not in FIELD_TYPES:
            raise ProgramError(
                f"feature {self.name!r}: unknown type {self.type!r}, expected one of {list(FIELD_TYPES)}"
            )
        object.__setattr__(self, "transforms", parse_transforms(self.transforms))
        self.branches()

    def branches(self) -> list[tuple[Transform, ...]]:
        """The chain cut at its terminals; see `grammar`."""
        cuts = grammar.split(self.name, self.type, [transform.op for transform in self.transforms])
        return [tuple(self.transforms[i] for i in cut) for cut in cuts]


def parse_transforms(values: Iterable[object]) -> tuple[Transform, ...]:
    """A chain from the form of trimtab.toml. Raises ProgramError."""
    if isinstance(values, (str, bytes, Mapping)):
        raise ProgramError("transforms: expected a list of names or tables")
    return tuple(Transform.parse(value) for value in values)


def parameters(op: str) -> Mapping[str, Scalar | None]:
    """The fixed parameters of an op with their defaults (None where there is none): for reference docs and messages."""
    return MappingProxyType({key: parameter.default for key, parameter in _PARAMETERS[op].items()})


def _checked(op: str, key: str, value: object, known: Mapping[str, _Parameter]) -> Scalar:
    parameter = known.get(key)
    if parameter is None:
        raise ProgramError(f"{op}: unknown parameter {key!r}{_nearest(key, known)}; it takes {sorted(known) or 'none'}")
    wanted = parameter.kind
    if wanted is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 1000:
        value = float(value)
    if type(value) is not wanted or not isinstance(value, (bool, int, float, str)):
        raise ProgramError(f"{op}: parameter {key!r}: expected {wanted.__name__}, got {value!r}")
    if parameter.choices and value not in parameter.choices:
        raise ProgramError(f"{op}: parameter {key!r}: expected one of {list(parameter.choices)}, got {value!r}")
    if not isinstance(value, str) and not parameter.low <= value <= parameter.high:
        raise ProgramError(f"{op}: parameter {key!r}: expected {parameter.low:g} to {parameter.high:g}, got {value!r}")
    return value


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), 1)
    return f" (did you mean {near[0]!r}?)" if near else ""
