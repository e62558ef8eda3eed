"""The errors of this room; `code` is the gRPC status name where one reaches a client.

TrainerError        INTERNAL
├── RowsUnfit       FAILED_PRECONDITION  the rows given cannot be trained on: too few, one class only, no label known
└── TrainingFailed  INTERNAL             training broke down: losses or weights that are not finite
"""

from __future__ import annotations

from typing import ClassVar

__all__ = ["RowsUnfit", "TrainerError", "TrainingFailed"]


class TrainerError(Exception):
    """Base of every error raised on purpose by `trimtab.trainer`."""

    code: ClassVar[str] = "INTERNAL"


class RowsUnfit(TrainerError):
    """The rows cannot be trained on; the message says why, with numbers."""

    code = "FAILED_PRECONDITION"


class TrainingFailed(TrainerError):
    """Losses or weights became infinite or NaN; nothing of such a fit is kept."""
