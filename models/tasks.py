"""What a model predicts: how labels are read, which loss is trained, what answers mean. Pure; knows no architecture.

Three kinds. *binary* gives the probability of the positive class, *multiclass* one probability per class,
*regression* the value itself. Losses are nats for classifiers. For regression they are squared errors in units of the
training target's standard deviation (`scale`), so that learning rates and the gate's numbers do not depend on the
target's unit.

A label may reach us as a CSV's text, a Parquet's integer or a client's float. `true`, `1`, `1.0` and `"1"` are
therefore one label where the task's classes allow only that reading: a class is first looked up by its exact text,
then by its number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from trimtab.models.errors import LabelError

__all__ = ["MIN_PROBABILITY", "Output", "Task", "TaskKind"]

TaskKind = Literal["binary", "multiclass", "regression"]
Output = tuple[str, str, int]

# The least probability that a reported loss credits: the spacing of float32 just below 1, so that both sides clip
# alike.
MIN_PROBABILITY = 1e-7


@dataclass(frozen=True)
class Task:
    """A kind of prediction with its classes (binary: negative, positive) or its target's scale."""

    kind: TaskKind
    classes: tuple[str, ...] = ()
    center: float = 0.0
    """Regression: mean of the training target."""
    scale: float = 1.0
    """Regression: standard deviation of the training target, > 0."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(TaskKind):
            raise LabelError(f"task: expected one of {list(get_args(TaskKind))}, got {self.kind!r}")
        least = {"binary": 2, "multiclass": 2, "regression": 0}[self.kind]
        if len(self.classes) < least or (self.kind != "multiclass" and len(self.classes) > least):
            raise LabelError(f"{self.kind} task: got {len(self.classes)} classes")
        if len(set(self.classes)) != len(self.classes):
            raise LabelError(f"classes: expected distinct values, got {list(self.classes)}")
        if not (math.isfinite(self.center) and math.isfinite(self.scale) and self.scale > 0):
            raise LabelError(f"regression: expected a finite centre and a scale > 0, got {self.center}, {self.scale}")

    @classmethod
    def of(cls, kind: str, classes: Iterable[str] = (), positive: str = "") -> Task:
        """The task of a model's settings: `classes` in any order for binary, where `positive` names the positive
        one."""
        names = tuple(classes)
        if kind == "binary" and positive:
            if positive not in names:
                raise LabelError(f"positive: expected one of {list(names)}, got {positive!r}")
            names = (*(name for name in names if name != positive), positive)
        return cls(kind, names)  # type: ignore[arg-type]  # checked in __post_init__

    @classmethod
    def from_json(cls, items: Mapping[str, Any]) -> Task:
        """What `to_json` gave. Raises LabelError."""
        try:
            classes = tuple(str(name) for name in items["classes"])
            return cls(items["kind"], classes, float(items["center"]), float(items["scale"]))
        except (KeyError, TypeError, ValueError) as error:
            raise LabelError(f"task: not a description of one: {error}") from error

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {"kind": self.kind, "classes": list(self.classes), "center": self.center, "scale": self.scale}

    def scaled_to(self, labels: NDArray[Any], weights: NDArray[Any] | None = None) -> Task:
        """This task with centre and scale of these training labels; classifiers stay as they are."""
        if self.kind != "regression" or len(labels) == 0:
            return self
        values = np.asarray(labels, dtype=np.float64)
        center = float(np.average(values, weights=weights))
        spread = float(np.sqrt(np.average((values - center) ** 2, weights=weights)))
        return Task("regression", (), center, spread if math.isfinite(spread) and spread > 1e-12 else 1.0)

    # --- answers

    @property
    def width(self) -> int:
        """Numbers in a prediction, K."""
        return len(self.classes) if self.kind == "multiclass" else 1

    def outputs(self) -> list[Output]:
        """The output tensors as (name, datatype, width)."""
        name = {"binary": "probability", "multiclass": "probabilities", "regression": "value"}[self.kind]
        return [(name, "FP32", self.width)]

    def predict(self, logits: torch.Tensor) -> torch.Tensor:
        """float32 [n, K] predictions of logits [n, K]: probabilities, or values in the target's own unit."""
        if self.kind == "binary":
            return torch.sigmoid(logits)
        if self.kind == "multiclass":
            return torch.softmax(logits, dim=1)
        if self.scale == 1.0 and self.center == 0.0:
            return logits
        return logits * self.scale + self.center

    def summary(self, predictions: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 [n]: the one number per row that sketches and strata look at; of several probabilities the
        largest."""
        return predictions.max(axis=1) if self.kind == "multiclass" else predictions.reshape(len(predictions))

    # --- losses

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """[n] losses to train on, of logits [n, K] and labels [n] as `encode_labels` gives them."""
        if self.kind == "multiclass":
            return torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        target = labels if self.kind == "binary" else (labels - self.center) / self.scale
        target = target.to(logits.dtype)
        if self.kind == "binary":
            return torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0], target, reduction="none")
        return (logits[:, 0] - target) ** 2

    def losses_of(self, predictions: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.float64]:
        """float64 [n] losses of predictions [n, K] (or [n] where K = 1), as reports and the gate count them.

        Nats, with probabilities of at least `MIN_PROBABILITY`; or squared errors in units of `scale`.
        """
        given = np.asarray(predictions, dtype=np.float64).reshape(len(labels), self.width)
        if self.kind == "regression":
            return np.square((given[:, 0] - np.asarray(labels, dtype=np.float64)) / self.scale)
        if self.kind == "binary":
            positive = np.asarray(labels) > 0.5
            truth = np.where(positive, given[:, 0], 1.0 - given[:, 0])
        else:
            truth = given[np.arange(len(labels)), np.asarray(labels, dtype=np.int64)]
        losses: NDArray[np.float64] = -np.log(np.clip(truth, MIN_PROBABILITY, 1.0))
        return losses

    # --- labels

    @property
    def label_dtype(self) -> type[np.float32] | type[np.int64] | type[np.float64]:
        """Of encoded labels: float32 0/1, int64 class positions, float64 values in the target's own unit."""
        return {"binary": np.float32, "multiclass": np.int64, "regression": np.float64}[self.kind]  # type: ignore[return-value]

    def encode_labels(self, values: Iterable[object]) -> NDArray[Any]:
        """[n] labels of `label_dtype`. Raises LabelError, naming the first value that is not the task's."""
        items = list(values)
        labels, known = self.try_encode(items)
        if not known.all():
            wrong = items[int(np.argmin(known))]
            expected = "a finite number" if self.kind == "regression" else f"one of {_listed(self.classes)}"
            raise LabelError(f"label: expected {expected}, got {wrong!r:.80}")
        return labels

    def try_encode(self, values: Iterable[object]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """([n] labels, [n] whether each is known). Where it is not, the label is 0 and must not be used."""
        encode = _number if self.kind == "regression" else self._position
        found = [encode(value) for value in values]
        known = np.array([item is not None for item in found], dtype=np.bool_)
        return np.array([item or 0 for item in found], dtype=self.label_dtype), known

    def decode_label(self, label: float | int) -> float | str:
        """The label as a person reads it: a class's name, or the value."""
        return float(label) if self.kind == "regression" else self.classes[int(label)]

    @cached_property
    def _positions(self) -> dict[str, int]:
        """Every text by which a class may be called. An alias that two classes share calls neither."""
        positions = {name: index for index, name in enumerate(self.classes)}
        aliases: dict[str, set[int]] = {}
        for index, name in enumerate(self.classes):
            for alias in _aliases(name, boolean=set(map(str.lower, self.classes)) == {"false", "true"}):
                aliases.setdefault(alias, set()).add(index)
        positions.update({a: at.pop() for a, at in aliases.items() if len(at) == 1 and a not in positions})
        return positions

    def _position(self, value: object) -> int | None:
        for text in _texts(value):
            position = self._positions.get(text)
            if position is not None:
                return position
        return None


def _listed(names: tuple[str, ...]) -> str:
    return str(list(names)) if len(names) <= 12 else f"{list(names[:12])} and {len(names) - 12} more"


def _number(value: object) -> float | None:
    """A finite number; booleans count as 0 and 1, text is read."""
    if isinstance(value, str | bytes) and not value.strip():
        return None
    try:
        number = float(value)  # type: ignore[arg-type]  # whatever float() takes
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _numeral(number: float) -> str:
    return str(int(number)) if number.is_integer() else repr(number)


def _aliases(name: str, *, boolean: bool) -> list[str]:
    number = _number(name)
    aliases = [] if number is None else [_numeral(number)]
    if boolean:
        aliases += ["1" if name.lower() == "true" else "0"]
    if name.lower() in ("true", "false"):
        aliases += [name.lower()]
    if number in (0.0, 1.0):
        aliases += ["true" if number else "false"]
    return aliases


def _texts(value: object) -> list[str]:
    """The texts by which to look a value up, exact first; none for a missing value."""
    if value is None:
        return []
    if isinstance(value, bool | np.bool_):
        return ["true" if value else "false"]
    if isinstance(value, int | np.integer):
        return [str(int(value))]
    if isinstance(value, float | np.floating):
        number = float(value)
        return [repr(number), _numeral(number)] if math.isfinite(number) else []
    text = str(value)
    numeral = _number(text)
    lower = [text.lower()] if text.lower() in ("true", "false") else []
    return [text, *lower] + ([] if numeral is None else [_numeral(numeral)])
