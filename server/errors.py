"""What can go wrong in serving. `code` is the name of the gRPC status that the transport's edge answers with.

ServerError                 INTERNAL
├── InvalidRequest          INVALID_ARGUMENT     the message says what was expected and what came
├── NotFound                NOT_FOUND            no such model or version
├── AlreadyExists           ALREADY_EXISTS       the name is taken
├── QueueFull               RESOURCE_EXHAUSTED   more waits than max_queue_size (or its bytes) allows; try again later
├── TooLarge                RESOURCE_EXHAUSTED   a message beyond max_message_bytes
├── DeadlinePassed          DEADLINE_EXCEEDED    its time was over before it was computed; the work was not done
├── Disconnected            CANCELLED            the client went away
├── Draining                UNAVAILABLE          the server is starting or stopping; try another one
├── Stalled                 UNAVAILABLE          the model's batch takes longer than stall_seconds; try again later
├── DeviceLost              UNAVAILABLE          the GPU is lost to this process, which ends; try again later
├── OutOfMemory             RESOURCE_EXHAUSTED   a batch did not fit into memory; send fewer rows at a time
├── Denied                  PERMISSION_DENIED    this caller may not do that
├── Unfit                   FAILED_PRECONDITION  a version that must not serve, and why
├── NoRoom                  FAILED_PRECONDITION  a version that does not fit into memory, or [server] max_model_bytes
├── NoTrainer               FAILED_PRECONDITION  what was asked for needs a trainer, and none runs here
├── Unsupported             UNIMPLEMENTED        a method or feature that this server does not have
├── BatchFailed             INTERNAL             computing the batch failed; the message has the reason
└── StartError              (no status)          the server cannot start: one line for the person, exit code 1

Errors of the rooms below (store, kernels, models) carry a `code` of their own; `status` translates them all, once.
"""

from __future__ import annotations

from typing import ClassVar

from trimtab._native import WireError

__all__ = [
    "AlreadyExists",
    "BatchFailed",
    "DeadlinePassed",
    "Denied",
    "DeviceLost",
    "Disconnected",
    "Draining",
    "InvalidRequest",
    "NoRoom",
    "NoTrainer",
    "NotFound",
    "OutOfMemory",
    "QueueFull",
    "ServerError",
    "Stalled",
    "StartError",
    "TooLarge",
    "Unfit",
    "Unsupported",
    "error_of",
    "status",
    "status_name",
    "status_number",
]


class ServerError(Exception):
    """Base of every error raised on purpose by `trimtab.server`."""

    code: ClassVar[str] = "INTERNAL"


class InvalidRequest(ServerError):
    """The request is not what the protocol or the model asks for."""

    code = "INVALID_ARGUMENT"


class NotFound(ServerError):
    """There is no such model, or no such version of it is loaded."""

    code = "NOT_FOUND"


class AlreadyExists(ServerError):
    """There is one of that name."""

    code = "ALREADY_EXISTS"


class QueueFull(ServerError):
    """As much waits as may."""

    code = "RESOURCE_EXHAUSTED"


class TooLarge(ServerError):
    """A message is larger than any may be."""

    code = "RESOURCE_EXHAUSTED"


class Disconnected(ServerError):
    """Nobody waits for an answer any more."""

    code = "CANCELLED"


class DeadlinePassed(ServerError):
    """The request's time was over before its batch was formed."""

    code = "DEADLINE_EXCEEDED"


class Draining(ServerError):
    """The server takes no new requests."""

    code = "UNAVAILABLE"


class Stalled(ServerError):
    """The model computes for too long, and takes no requests meanwhile."""

    code = "UNAVAILABLE"


class DeviceLost(ServerError):
    """The GPU failed in a way that this process cannot recover from."""

    code = "UNAVAILABLE"


class OutOfMemory(ServerError):
    """A batch needs more memory than there is."""

    code = "RESOURCE_EXHAUSTED"


class Denied(ServerError):
    """The caller may not do that."""

    code = "PERMISSION_DENIED"


class Unfit(ServerError):
    """A version that must not go live."""

    code = "FAILED_PRECONDITION"


class NoRoom(Unfit):
    """A version for which there is no memory left."""


class NoTrainer(ServerError):
    """This server runs without a trainer."""

    code = "FAILED_PRECONDITION"


class Unsupported(ServerError):
    """Nothing here does that."""

    code = "UNIMPLEMENTED"


class BatchFailed(ServerError):
    """The batch that the request was in could not be computed."""


class StartError(ServerError):
    """The server cannot start. The message is one line."""


def status(error: Exception) -> tuple[str, str]:
    """The gRPC status name and the message for an error that a handler raised; unexpected ones are INTERNAL."""
    code = getattr(error, "code", None)
    if isinstance(code, str):
        return code, str(error)
    if isinstance(error, WireError):
        return "INVALID_ARGUMENT", str(error)
    return "INTERNAL", f"{type(error).__name__}: {error}"


_CODES = """
    OK CANCELLED UNKNOWN INVALID_ARGUMENT DEADLINE_EXCEEDED NOT_FOUND ALREADY_EXISTS PERMISSION_DENIED
    RESOURCE_EXHAUSTED FAILED_PRECONDITION ABORTED OUT_OF_RANGE UNIMPLEMENTED INTERNAL UNAVAILABLE DATA_LOSS
    UNAUTHENTICATED
"""
_NUMBERS = {name: number for number, name in enumerate(_CODES.split())}
_CLASSES: dict[int, type[ServerError]] = {
    _NUMBERS[kind.code]: kind
    for kind in (BatchFailed, Draining, DeadlinePassed, Denied, InvalidRequest, NotFound, QueueFull, Unfit, Unsupported)
}


def status_number(error: Exception) -> int:
    """gRPC's number of the status that an error is answered with."""
    return _NUMBERS[status(error)[0]]


def status_name(number: int) -> str:
    """The name of gRPC's status of that number."""
    return next(name for name, known in _NUMBERS.items() if known == number)


def error_of(number: int, message: str) -> ServerError:
    """The error for a status that native code answered with."""
    return _CLASSES.get(number, ServerError)(message)
