"""What a user's `entry` defines: a class of which only `build` is required, or a function that is `build` itself.

    class Model:
        def build(self, shape): ...             # an nn.Module; `shape` may be left out
        def preprocess(self, inputs): ...       # tensors only: the module's arguments, from a dict of what came
        def predict(self, outputs): ...         # tensors only: the outputs, from what the module gave
        def example(self, rows): ...            # tensors only: inputs to warm up with, instead of zeros
        def parameters_to_tune(self, module): ...  # columns only: the parameters that retraining may change

An nn.Module class may be named too; it is built by calling it. Of a model with features ("columns"), the module maps
features f32[n, F] and ids i64[n, C] to logits [n, K]; of one with [[model.input]] ("tensors"), it takes the inputs in
their order and gives the outputs in theirs, as a tensor, a sequence or a dict by name.

Initial weights depend on the seed alone: torch's global generator is seeded while `build` runs, and put back.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from trimtab.models.errors import CodeError

__all__ = ["ColumnShape", "Definition", "TensorShape"]

_HOOKS = {
    "columns": ("parameters_to_tune",),
    "tensors": ("preprocess", "predict", "example"),
}
_ALL_HOOKS = ("preprocess", "predict", "example", "parameters_to_tune", "loss", "metrics")


@dataclass(frozen=True)
class ColumnShape:
    """What a model of columns must fit."""

    features: int
    """F, the real features that the column program makes."""
    categories: tuple[int, ...]
    """The number of ids in each of the C id columns."""
    outputs: int
    """K: the classes of a multiclass task, else 1."""
    task: str
    classes: tuple[str, ...]


@dataclass(frozen=True)
class TensorShape:
    """What a model of tensors must fit: (name, datatype, dims after the rows) of each tensor."""

    inputs: tuple[tuple[str, str, tuple[int, ...]], ...]
    outputs: tuple[tuple[str, str, tuple[int, ...]], ...]


@dataclass(frozen=True)
class Definition:
    """An entry, made sense of."""

    name: str
    builder: Callable[..., Any]
    preprocess: Callable[[Mapping[str, Any]], Any] | None = None
    predict: Callable[[Any], Any] | None = None
    example: Callable[[int], Mapping[str, Any]] | None = None
    parameters_to_tune: Callable[[nn.Module], Any] | None = None
    code: str = ""
    """sha256 in hex of the file that it comes from."""

    @classmethod
    def of(cls, name: str, found: Any, kind: str, code: str = "") -> Definition:
        """The definition in what the entry names; `kind`: "columns" or "tensors". Raises CodeError."""
        if not inspect.isclass(found) or (issubclass(found, nn.Module) and not hasattr(found, "build")):
            return cls(name, found, code=code)
        try:
            made = found()
        except Exception as error:
            raise CodeError(f"entry {name!r}: {type(error).__name__}: {error}") from error
        build = getattr(made, "build", None)
        if not callable(build):
            raise CodeError(f"entry {name!r}: expected a class with a method `build`, found none")
        useless = [hook for hook in _ALL_HOOKS if hasattr(made, hook) and hook not in _HOOKS[kind]]
        if useless:
            what = "columns ([[model.feature]])" if kind == "columns" else "tensors ([[model.input]])"
            raise CodeError(f"entry {name!r}: {', '.join(useless)}: not used for a model of {what}; take it out")
        return cls(name, build, code=code, **{hook: getattr(made, hook, None) for hook in _HOOKS[kind]})

    def build(self, shape: ColumnShape | TensorShape, seed: int) -> nn.Module:
        """The module, on the CPU, with the initial weights that the seed gives. Raises CodeError."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                module = self.builder(shape) if _takes_one(self.builder) else self.builder()
            except Exception as error:
                raise CodeError(f"entry {self.name!r}: build: {type(error).__name__}: {error}") from error
        if not isinstance(module, nn.Module):
            raise CodeError(f"entry {self.name!r}: expected an nn.Module, got {type(module).__name__}")
        strange = [key for key, value in module.state_dict().items() if not isinstance(value, Tensor)]
        if strange:
            raise CodeError(f"entry {self.name!r}: state {strange[0]!r} is no tensor, and cannot be stored")
        return module


def _takes_one(builder: Callable[..., Any]) -> bool:
    """Whether it can be given the shape. A parameter with a default is the user's own."""
    try:
        parameters = inspect.signature(builder).parameters.values()
    except (TypeError, ValueError):
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(p.kind in kinds and p.default is inspect.Parameter.empty for p in parameters)
