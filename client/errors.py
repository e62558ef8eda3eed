"""What can go wrong in a call. Each class carries the gRPC status that it stands for (`code`) and the server's
message (`str()`).

ClientError                 any status without a class of its own
├── InvalidInput            INVALID_ARGUMENT     wrong name, type, shape or value: found here, or by the server
├── NotFound                NOT_FOUND            no such model or version
├── Exhausted               RESOURCE_EXHAUSTED   the queue is full, or a message too large: slow down
├── DeadlineExceeded        DEADLINE_EXCEEDED    the call's time was over
├── Unavailable             UNAVAILABLE          no server there, or it is draining; retries were made
├── Denied                  PERMISSION_DENIED, UNAUTHENTICATED
├── Conflict                ABORTED, ALREADY_EXISTS   something changed since the caller looked
├── Unfit                   FAILED_PRECONDITION, DATA_LOSS   the version or the state does not allow it
├── Unsupported             UNIMPLEMENTED        this server does not do that
├── Cancelled               CANCELLED            the call was cancelled
└── ServerFault             INTERNAL, UNKNOWN    the server's own error
"""

from __future__ import annotations

__all__ = [
    "Cancelled",
    "ClientError",
    "Conflict",
    "DeadlineExceeded",
    "Denied",
    "Exhausted",
    "InvalidInput",
    "NotFound",
    "ServerFault",
    "Unavailable",
    "Unfit",
    "Unsupported",
    "from_status",
]


class ClientError(Exception):
    """A call failed. `code` is the gRPC status's name, `str()` the server's message."""

    code: str = "UNKNOWN"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class InvalidInput(ClientError, ValueError):
    """What was sent, or was about to be, is not what the model takes."""

    code = "INVALID_ARGUMENT"


class NotFound(ClientError):
    """There is no such model or version."""

    code = "NOT_FOUND"


class Exhausted(ClientError):
    """The server's queue is full, or a message is too large."""

    code = "RESOURCE_EXHAUSTED"


class DeadlineExceeded(ClientError, TimeoutError):
    """The call took longer than it might."""

    code = "DEADLINE_EXCEEDED"


class Unavailable(ClientError, ConnectionError):
    """No server answers, or it is draining. Raised after the retries."""

    code = "UNAVAILABLE"


class Denied(ClientError):
    """This caller may not do that."""

    code = "PERMISSION_DENIED"


class Conflict(ClientError):
    """Something changed since the caller looked; look again."""

    code = "ABORTED"


class Unfit(ClientError):
    """The version, or the server's state, does not allow it."""

    code = "FAILED_PRECONDITION"


class Unsupported(ClientError):
    """The server does not do that."""

    code = "UNIMPLEMENTED"


class Cancelled(ClientError):
    """The call was cancelled."""

    code = "CANCELLED"


class ServerFault(ClientError):
    """The server failed."""

    code = "INTERNAL"


_CLASSES: dict[str, type[ClientError]] = {
    "INVALID_ARGUMENT": InvalidInput,
    "OUT_OF_RANGE": InvalidInput,
    "NOT_FOUND": NotFound,
    "RESOURCE_EXHAUSTED": Exhausted,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "UNAVAILABLE": Unavailable,
    "PERMISSION_DENIED": Denied,
    "UNAUTHENTICATED": Denied,
    "ABORTED": Conflict,
    "ALREADY_EXISTS": Conflict,
    "FAILED_PRECONDITION": Unfit,
    "DATA_LOSS": Unfit,
    "UNIMPLEMENTED": Unsupported,
    "CANCELLED": Cancelled,
    "INTERNAL": ServerFault,
    "UNKNOWN": ServerFault,
}


def from_status(code: str, message: str) -> ClientError:
    """The error for a gRPC status's name and message."""
    return _CLASSES.get(code, ClientError)(message or code.lower().replace("_", " "), code=code)
