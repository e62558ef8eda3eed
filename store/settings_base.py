"""What the settings classes of trimtab.toml are made of: their base, and the kinds of values that several share."""

from __future__ import annotations

import datetime
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from trimtab.store.durations import parse_duration

__all__ = ["Count", "Duration", "Port", "Scalar", "Settings", "Share", "scalar_text"]

Duration = Annotated[int, BeforeValidator(parse_duration)]


def scalar_text(value: object) -> object:
    """A class or data value as text: it may be written bare, as 1, true or 2013-02-01."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(value) if isinstance(value, int | float) else value


Scalar = Annotated[str, BeforeValidator(scalar_text)]
Port = Annotated[int, Field(ge=0, le=65535)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Settings(BaseModel):
    """What all sections share: unknown keys are errors, values are not coerced, nothing changes after loading."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        validate_by_name=False,
    )
