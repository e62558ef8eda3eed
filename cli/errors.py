"""What can go wrong in a command, and how any error becomes one line on stderr and an exit code.

UserError        exit 1   something that the person can put right: the message says what, and how
├── UsageError   exit 2   flags or arguments that do not fit together
├── DataError    exit 1   a CSV or Parquet file that cannot be read, or does not have what was asked for
├── ModelExists  exit 1   the command would make a second version 1
└── NoServer     exit 1   no server is running for the folder

`line_of` knows the error bases of every room without importing one: whoever raised the error has imported it.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import ClassVar

__all__ = ["DataError", "ModelExists", "NoServer", "UsageError", "UserError", "line_of"]


class UserError(Exception):
    """Something that the person can put right. `str()` is one line, without a full stop."""

    exit_code: ClassVar[int] = 1


class UsageError(UserError):
    """Flags or arguments that do not fit together."""

    exit_code = 2


class DataError(UserError):
    """A data file that cannot be read, or does not have what was asked for."""


class ModelExists(UserError):
    """The command would make a second version 1."""


class NoServer(UserError):
    """No server is running for the folder."""


# The rooms' error bases: what they raise on purpose has a message for people.
_ROOMS = (
    ("trimtab.kernels.errors", "KernelError"),
    ("trimtab.store.errors", "StoreError"),
    ("trimtab.models.errors", "ModelError"),
    ("trimtab.server.errors", "ServerError"),
    ("trimtab.trainer.errors", "TrainerError"),
    ("trimtab.client.errors", "ClientError"),
)

_OS_LINES = {
    errno.ENOSPC: "no space left on the device",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would become too large",
    errno.EADDRINUSE: "the port is in use; give another one, or 0 for a free one",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.ENOENT: "no such file or folder",
    errno.EISDIR: "is a folder; a file was expected",
    errno.ENOTDIR: "is a file; a folder was expected",
}


def line_of(error: BaseException) -> tuple[str, int] | None:
    """(one line, exit code) for an error that a person can do something about; None for one that is our fault."""
    if isinstance(error, UserError):
        return one_line(str(error)), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    if isinstance(error, OSError):
        return _os_line(error), 1
    if isinstance(error, MemoryError):
        return "not enough memory", 1
    for module, name in _ROOMS:
        base = getattr(sys.modules.get(module), name, None)
        if base is not None and isinstance(error, base):
            return one_line(str(error)) or type(error).__name__, 1
    return None


def one_line(text: str) -> str:
    """The text without line breaks."""
    return " ".join(text.split())


def _os_line(error: OSError) -> str:
    reason = _OS_LINES.get(error.errno or 0) or (error.strerror or str(error) or type(error).__name__)
    where = next(
        (os.fspath(name) for name in (error.filename, error.filename2) if isinstance(name, str | os.PathLike)), ""
    )
    return one_line(f"{where}: {reason}" if where else reason)
