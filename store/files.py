"""Writing files so that they last: aside, fsync, rename, fsync of the folder. Everything durable in this room goes
through here.

An error of the system becomes one StoreError that names the file; a full disk becomes DiskFull.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from trimtab.store.errors import DiskFull, StoreError

__all__ = [
    "append_line",
    "fsync_dir",
    "locked",
    "make_dir",
    "now_us",
    "os_errors",
    "read_lines",
    "sha256_bytes",
    "sha256_file",
    "write_all",
    "write_atomic",
    "write_new",
]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def now_us() -> int:
    """The wall clock: µs since the Unix epoch, UTC. For records only; durations are measured on the monotonic clock."""
    return time.time_ns() // 1000


@contextlib.contextmanager
def os_errors(action: str, path: Path) -> Iterator[None]:
    """Turns an OSError into a StoreError saying `cannot ACTION PATH: why`; a full disk into DiskFull."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        if error.errno in _FULL:
            raise DiskFull(f"cannot {action} {path}: {reason.lower()}; free some space or lower the budgets") from error
        raise StoreError(f"cannot {action} {path}: {reason.lower()}") from error


def fsync_dir(path: Path) -> None:
    """Makes the folder's entries (files created, renamed, removed in it) last."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_dir(path: Path) -> None:
    """Makes the folder and its parents, if they are not there, and makes them last."""
    with os_errors("make folder", path):
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        for folder in missing:
            fsync_dir(folder.parent)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Writes every byte, also where the system takes them in parts."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def write_new(path: Path, data: bytes | memoryview) -> None:
    """Writes a file that must not exist yet, and fsyncs it (not its folder). Takes the file away again on failure."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        write_all(descriptor, data)
        os.fsync(descriptor)
    except BaseException:
        os.unlink(path)
        raise
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes | memoryview) -> None:
    """Replaces the file's contents as one step: after a crash at any moment it has the old contents or the new ones.

    Written to `.NAME.PID.tmp` beside it first. Raises StoreError.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with os_errors("write", path):
        aside.unlink(missing_ok=True)
        write_new(aside, data)
        try:
            os.rename(aside, path)
        except OSError:
            aside.unlink(missing_ok=True)
            raise
        fsync_dir(path.parent)


def append_line(path: Path, text: str) -> None:
    """Appends one line and fsyncs. A crash can leave a torn last line; read_lines passes over it, and the next append
    cuts it off.

    One writer at a time (the caller holds a lock, or is the only one). On failure nothing of the line stays. Raises
    StoreError.
    """
    with os_errors("append to", path):
        existed = path.exists()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            end = os.lseek(descriptor, 0, os.SEEK_END)
            if end > 0 and os.pread(descriptor, 1, end - 1) != b"\n":
                end = path.read_bytes().rfind(b"\n") + 1
                os.ftruncate(descriptor, end)
            try:
                write_all(descriptor, f"{text}\n".encode())
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, end)
                raise
        finally:
            os.close(descriptor)
        if not existed:
            fsync_dir(path.parent)


def read_lines(path: Path) -> list[bytes]:
    """The file's whole lines, those that a crash did not tear; none if there is no file. Raises StoreError."""
    with os_errors("read", path):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return []
    # What follows the last newline is a line being written, or one that was never finished.
    return [line for line in data.split(b"\n")[:-1] if line]


def sha256_bytes(data: bytes | memoryview) -> str:
    """sha256 as hex."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """sha256 of a plain file, as hex. A symlink is refused (OSError), not followed."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with open(descriptor, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on the file (made if missing), across processes and threads; waits for it."""
    with os_errors("lock", path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
