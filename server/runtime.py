"""The running server's marks under state/: the lock that only one server holds, and server.json that says where it is.

`state/server.lock` is held (flock) for as long as the process lives, so it cannot be left behind. `state/server.json`
has pid, addresses and the admin socket's path; it is written when the server listens, and removed when it stops. One
left by a server that was killed is overwritten by the next.

The admin socket is state/admin.sock; a path of more than 100 bytes, which a Unix socket cannot have, becomes a
private folder in the temporary one, named by the state folder's hash so that it is found again; in /tmp where TMPDIR
is as long.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import stat
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from trimtab.server.errors import StartError
from trimtab.store.errors import StoreError
from trimtab.store.files import make_dir, write_atomic

__all__ = ["Address", "StateLock", "admin_path", "remove_address", "write_address"]

_SOCKET = "admin.sock"
_SOCKET_BYTES = 100


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is. `grpc` and `http` are HOST:PORT, `admin` the socket's path."""

    pid: int
    grpc: str
    http: str
    admin: str


class StateLock:
    """The one server of a state folder. Raises StartError where there is another."""

    def __init__(self, state: Path) -> None:
        path = state / "server.lock"
        try:
            make_dir(state)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except (StoreError, OSError) as error:
            raise StartError(f"cannot use the state folder {state}: {error}") from None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(self._descriptor, 20, 0).decode("ascii", "replace").strip()
            os.close(self._descriptor)
            who = f" (pid {holder})" if holder else ""
            raise StartError(f"another server{who} runs on {state}; stop it first") from None
        # The pid only helps whoever is refused; a full disk is reported by what matters.
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Lets another server have the folder."""
        os.close(self._descriptor)


def admin_path(state: Path) -> Path:
    """Where the admin socket of this state folder is; makes the folder for it. Raises StartError."""
    folder = _admin_folder(state)
    if folder == state:
        return folder / _SOCKET
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        entry = folder.lstat()
    except OSError as error:
        raise StartError(f"cannot make {folder} for the admin socket: {error.strerror}") from None
    # Somebody else's folder, or one that others may write, could be swapped under us.
    if not stat.S_ISDIR(entry.st_mode) or entry.st_uid != os.getuid() or stat.S_IMODE(entry.st_mode) & 0o077:
        raise StartError(f"{folder}: expected a folder of ours that nobody else may use; remove it")
    return folder / _SOCKET


def _admin_folder(state: Path) -> Path:
    digest = hashlib.sha256(os.fsencode(state)).hexdigest()[:16]
    temporary = [Path(folder) for folder in (tempfile.gettempdir(), "/tmp", "/var/tmp") if os.path.isdir(folder)]
    for folder in (state, *(parent / f"trimtab-{os.getuid()}-{digest}" for parent in temporary)):
        if len(os.fsencode(folder / _SOCKET)) <= _SOCKET_BYTES:
            return folder
    raise StartError(f"no folder for the admin socket, whose path may have {_SOCKET_BYTES} bytes: set TMPDIR to one")


def write_address(state: Path, address: Address) -> None:
    """Says where the server is. Raises StoreError."""
    write_atomic(state / "server.json", json.dumps(asdict(address), indent=2).encode() + b"\n")


def remove_address(state: Path) -> None:
    """Takes server.json away, and the folder of the admin socket if that is the socket's alone."""
    (state / "server.json").unlink(missing_ok=True)
    with contextlib.suppress(OSError, StartError):
        folder = _admin_folder(state)
        if folder != state:
            folder.rmdir()
