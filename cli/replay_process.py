"""A child process of a replay: its own session, so that Ctrl-C reaches only the replay, which then stops it in order;
gone with the replay, however that ends (PR_SET_PDEATHSIG on Linux); its stderr in a file whose last lines say why it
failed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

__all__ = ["Child"]

# Runs before the command, with -I -S, in its place: a preexec_fn would run Python in a fork of a process with threads.
_LAUNCHER = """
import ctypes, os, sys
parent, nice = int(sys.argv[1]), int(sys.argv[2])
try:
    ctypes.CDLL(None).prctl(1, 15, 0, 0, 0)
except (OSError, AttributeError):
    pass
if os.getppid() != parent:
    sys.exit(0)
os.nice(nice)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Child:
    """A Python program that runs beside the replay. A context manager: leaving it stops the program."""

    def __init__(
        self, arguments: Sequence[str], log: Path, *, nice: int = 0, environment: Mapping[str, str] | None = None
    ) -> None:
        """Starts `python ARGUMENTS`, its stderr appended to `log`. Raises OSError."""
        self.log = log
        command = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), str(nice), sys.executable, *arguments]
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
                env={**os.environ, **(environment or {})},
            )

    @property
    def out(self) -> IO[bytes]:
        """Its stdout."""
        assert self._process.stdout is not None
        return self._process.stdout

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def poll(self) -> int | None:
        """Its exit status, if it has ended."""
        return self._process.poll()

    def wait(self, seconds: float | None = None) -> int:
        """Its exit status. Raises subprocess.TimeoutExpired."""
        return self._process.wait(seconds)

    def last_lines(self, count: int = 12) -> str:
        """The end of its log."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(self.log.stat().st_size - 8192, 0))
                text = file.read().decode("utf-8", "replace")
        except OSError:
            return ""
        return "\n".join(line for line in text.splitlines()[-count:] if line.strip())

    def stop(self, seconds: float = 15.0) -> int:
        """SIGTERM, and after so many seconds SIGKILL to all that it started; its exit status."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return self.kill()
        finally:
            self.out.close()

    def kill(self) -> int:
        """Ends it and its children at once."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        return self._process.wait()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
