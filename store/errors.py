"""What can go wrong with what lasts. `code` is the name of the gRPC status that the server's edge answers with.

StoreError                  INTERNAL             reading or writing failed; the message names the file
├── ProjectError            FAILED_PRECONDITION  trimtab.toml is missing or wrong
├── InvalidId               INVALID_ARGUMENT     not a request id that a server could have issued
├── DiskFull                RESOURCE_EXHAUSTED   no space, quota or file size left
├── SegmentDamaged          DATA_LOSS            a sealed segment is not what the index says
├── SegmentGone             NOT_FOUND            a sealed segment was deleted or rewritten: list again
├── LabelsDamaged           DATA_LOSS            labels.sqlite is not a label database, or is corrupt
├── VersionUnknown          NOT_FOUND            no such version
├── VersionConflict         ALREADY_EXISTS       versions are immutable: published before with other contents
├── VersionDamaged          DATA_LOSS            a version's files are not what its manifest says
├── WindowUnknown           NOT_FOUND            no such drift window is kept
├── PinUnfit                FAILED_PRECONDITION  a sketch that drift windows cannot be compared with
├── WindowDamaged           DATA_LOSS            a kept drift window's file is not what was written
├── LiveDamaged             DATA_LOSS            live.json cannot be read
└── StaleEpoch              ABORTED              live.json changed since the caller read it
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "DiskFull",
    "InvalidId",
    "LabelsDamaged",
    "LiveDamaged",
    "PinUnfit",
    "ProjectError",
    "SegmentDamaged",
    "SegmentGone",
    "StaleEpoch",
    "StoreError",
    "VersionConflict",
    "VersionDamaged",
    "VersionUnknown",
    "WindowDamaged",
    "WindowUnknown",
]


class StoreError(Exception):
    """Reading or writing what lasts failed; the message is one line and names the file."""

    code: ClassVar[str] = "INTERNAL"


class ProjectError(StoreError):
    """trimtab.toml is missing or wrong.

    `str()` is one line for the first problem; `problems` has one line for each.
    """

    code = "FAILED_PRECONDITION"

    def __init__(self, first: str, *others: str) -> None:
        self.problems = (first, *others)
        super().__init__(f"{first} (and {len(others)} more)" if others else first)


class InvalidId(StoreError, ValueError):
    """The text or bytes are not a request id (a UUID of version 7)."""

    code = "INVALID_ARGUMENT"


class DiskFull(StoreError):
    """There is no space, quota or permitted file size left to write with."""

    code = "RESOURCE_EXHAUSTED"


class SegmentDamaged(StoreError):
    """A sealed segment is not what the index says it is."""

    code = "DATA_LOSS"


class SegmentGone(StoreError):
    """A sealed segment was deleted (retention) or rewritten (forget) after it was listed: list again."""

    code = "NOT_FOUND"


class LabelsDamaged(StoreError):
    """labels.sqlite is no label database of ours, or is corrupt."""

    code = "DATA_LOSS"


class VersionUnknown(StoreError):
    """There is no such version."""

    code = "NOT_FOUND"


class VersionConflict(StoreError):
    """The version was published before, with other contents. Versions are immutable."""

    code = "ALREADY_EXISTS"


class VersionDamaged(StoreError):
    """A version's files are not what its manifest says they are."""

    code = "DATA_LOSS"


class WindowUnknown(StoreError):
    """No drift window of that number is kept."""

    code = "NOT_FOUND"


class PinUnfit(StoreError):
    """No sketch, or one of other columns or fitted to other data; the message says what was expected."""

    code = "FAILED_PRECONDITION"


class WindowDamaged(StoreError):
    """A drift window's file cannot be read, or has other counts than were written."""

    code = "DATA_LOSS"


class LiveDamaged(StoreError):
    """live.json cannot be read. It is never guessed at: what serves is a person's decision then."""

    code = "DATA_LOSS"


class StaleEpoch(StoreError):
    """live.json changed since the caller read it; read it again and decide again."""

    code = "ABORTED"
