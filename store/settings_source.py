"""Settings of models of one's own: the tensors that they take and give, and which of their versions are loaded."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator
from trimtab.store.settings_base import Count, Settings

__all__ = ["ENTRY", "SHA256", "InputSettings", "OutputSettings", "VersionsSettings"]

ENTRY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
SHA256 = re.compile(r"[0-9a-f]{64}")

Dimension = Annotated[int, Field(ge=-1)]


def _dims(value: tuple[int, ...]) -> tuple[int, ...]:
    if 0 in value or len(value) > 7:
        raise ValueError(f"dims: expected at most 7 sizes from 1 on, or -1 for any, got {list(value)}")
    return value


Datatype = Literal[
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "BF16",
    "FP32",
    "FP64",
    "BYTES",
]


class InputSettings(Settings):
    """One input tensor of a model that takes tensors as they are."""

    name: Annotated[str, Field(min_length=1)]
    """Name of the input in requests."""
    datatype: Datatype
    """Datatype of the protocol. BYTES reach the model as a NumPy array of bytes."""
    dims: tuple[Dimension, ...]
    """Sizes of the dimensions after the rows, `[]` for one value a row; -1 takes any size, and only requests that
    agree on it share a batch."""

    @field_validator("dims")
    @classmethod
    def _sizes(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return _dims(value)


class OutputSettings(Settings):
    """One output tensor of a model that takes tensors as they are."""

    name: Annotated[str, Field(min_length=1)]
    """Name of the output in answers."""
    datatype: Datatype
    """Datatype of the protocol; what the model gives must have it. BYTES: a list or NumPy array of bytes or text."""
    dims: tuple[Dimension, ...]
    """Sizes of the dimensions after the rows; -1 where they depend on the input."""

    @field_validator("dims")
    @classmethod
    def _sizes(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return _dims(value)


class VersionsSettings(Settings):
    """Which published versions are loaded beside the live one, the one before it, the staged candidates and those that
    an alias names. Refused and abandoned versions are loaded only where they are listed."""

    policy: Literal["live", "latest", "all", "specific"] = "live"
    """"live": no others. "latest": those with the highest numbers. "all": every one. "specific": those listed."""
    latest: Count = 1
    """For "latest": how many."""
    numbers: tuple[Count, ...] = ()
    """For "specific": their numbers."""

    @model_validator(mode="after")
    def _listed(self) -> VersionsSettings:
        if bool(self.numbers) != (self.policy == "specific"):
            raise ValueError('policy = "specific" and numbers belong together')
        return self
