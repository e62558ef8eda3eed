"""The errors of this room; `code` is the gRPC status name where one reaches a client.

TrainerError        INTERNAL
├── RowsUnfit       FAILED_PRECONDITION  the rows given cannot be trained on: too few, one class only, no label known
├── TrainingFailed  INTERNAL             training broke down: losses or weights that are not finite
├── PickleRefused   DATA_LOSS            a row of the workflow database claims to be a pickle; it was not read
└── ServerGone      UNAVAILABLE          there is no server for this folder, or it went away
"""

from __future__ import annotations

from typing import ClassVar

__all__ = ["PickleRefused", "RowsUnfit", "ServerGone", "TrainerError", "TrainingFailed"]


class TrainerError(Exception):
    """Base of every error raised on purpose by `trimtab.trainer`."""

    code: ClassVar[str] = "INTERNAL"


class RowsUnfit(TrainerError):
    """The rows cannot be trained on; the message says why, with numbers."""

    code = "FAILED_PRECONDITION"


class TrainingFailed(TrainerError):
    """Losses or weights became infinite or NaN; nothing of such a fit is kept."""


class PickleRefused(TrainerError):
    """Something stored wants to be unpickled. It is not."""

    code = "DATA_LOSS"


class ServerGone(TrainerError):
    """The server that this trainer belongs to is not there."""

    code = "UNAVAILABLE"
