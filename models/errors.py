"""The errors of this room; `code` is the gRPC status name that an error has when it reaches a client.

ModelError             INTERNAL
├── LabelError         INVALID_ARGUMENT     a label that is none of the task's
├── ArchitectureError  INVALID_ARGUMENT     a module's configuration that means nothing
├── CodeError          FAILED_PRECONDITION  code of the user's own that may not run, cannot be loaded or is no model
└── VersionUnfit       FAILED_PRECONDITION  a version that must not serve: damaged, wrong shapes, not finite
"""

from __future__ import annotations

from typing import ClassVar

__all__ = ["ArchitectureError", "CodeError", "LabelError", "ModelError", "VersionUnfit"]


class ModelError(Exception):
    """Base of every error raised on purpose by `trimtab.models`."""

    code: ClassVar[str] = "INTERNAL"


class LabelError(ModelError, ValueError):
    """A label's value is not one that the task knows."""

    code = "INVALID_ARGUMENT"


class ArchitectureError(ModelError):
    """A module's configuration is not one that `build` understands."""

    code = "INVALID_ARGUMENT"


class CodeError(ModelError):
    """Code that trimtab.toml names cannot be used; the message says why."""

    code = "FAILED_PRECONDITION"


class VersionUnfit(ModelError):
    """A version cannot serve; the message says why."""

    code = "FAILED_PRECONDITION"
