"""Keeps the trainer running beside the server: starts it, watches it, starts it again, stops it.

The trainer is a process of its own group and low priority. It dies with the server, however the server dies: a
launcher asks the kernel for SIGKILL on the parent's death (PR_SET_PDEATHSIG, Linux), then becomes the trainer. The
launcher is a few lines run with -I -S, since a preexec_fn would run Python between fork and exec in a process with
many threads.

What it prints goes to state/trainer.log (rotated once, at 8 MiB) and the last lines are kept for `last_error`.

Restarts: after an exit, the next start waits 0.5 s, doubling up to 60 s; a trainer that attended the channel starts
again from 0.5 s. After 5 starts without attending, its state is "failed" and whoever waits for it is told; it is
still tried for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from trimtab.server.channel import TrainerChannel
from trimtab.server.errors import Draining
from trimtab.server.events import EventBus

__all__ = ["TRAINER", "Supervisor", "back_off"]

TRAINER = (sys.executable, "-m", "trimtab.trainer")
"""What is run, with -C and the project's folder."""

_FIRST_DELAY, _LAST_DELAY, _FAILED_AFTER = 0.5, 60.0, 5
_LOG_BYTES = 8 << 20
_LAST_LINES = 40
_NICE = 10
_LAUNCHER = """
import ctypes, os, sys
parent, nice = int(sys.argv[1]), int(sys.argv[2])
try:
    ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
except (OSError, AttributeError):
    pass
if os.getppid() != parent:
    sys.exit(0)
os.nice(nice)
os.execv(sys.argv[3], sys.argv[3:])
"""


def back_off(failures: int) -> float:
    """Seconds to wait before the next start, after so many exits in a row without having attended."""
    return float(min(_LAST_DELAY, _FIRST_DELAY * 2.0 ** min(max(failures - 1, 0), 20)))


class Supervisor:
    """`startup`, then the trainer runs until `shutdown`. Lives on the loop."""

    def __init__(
        self,
        directory: Path,
        log: Path,
        channel: TrainerChannel,
        events: EventBus,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Events of kind "trainer" tell of changes. `environment`: what the trainer's has beside the server's."""
        self.state = "absent"
        self.restarts = 0
        self.last_error = ""
        self._command = [*TRAINER, "-C", str(directory)]
        self._directory = directory
        self._log_path = log
        self._environment = dict(environment or {})
        self._channel = channel
        self._events = events
        self._process: subprocess.Popen[bytes] | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._attended = False
        self._lines: deque[str] = deque(maxlen=_LAST_LINES)

    @property
    def pid(self) -> int:
        """Of the trainer; 0 while there is none."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else 0

    def startup(self) -> None:
        """Begins to keep the trainer running."""
        self._set("starting", "the trainer starts")
        self._task = asyncio.get_running_loop().create_task(self._keep_running(), name="trainer supervisor")

    def attended(self) -> None:
        """The trainer has connected: it works."""
        self._attended = True
        if self.state == "starting":
            self._set("idle", "the trainer attends")

    def renew(self) -> None:
        """Has the trainer start anew, once it has finished what it is at: it reads trimtab.toml when it starts."""
        process = self._process
        if process is not None and process.poll() is None:
            _signal(process, signal.SIGTERM)

    async def shutdown(self, timeout: float) -> None:
        """Asks the trainer to leave (it has been sent `shutdown` if it attends), then makes it."""
        self._stopping.set()
        if self._task is None:
            return
        process = self._process
        if process is not None and process.poll() is None and not self._channel.attending:
            _signal(process, signal.SIGTERM)
        for last in (signal.SIGTERM, signal.SIGKILL):
            done, _ = await asyncio.wait([self._task], timeout=timeout / 2)
            if done:
                break
            if self._process is not None:
                _signal(self._process, last)
        else:
            await asyncio.wait([self._task], timeout=1.0)
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self.state = "absent"

    async def _keep_running(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            self._attended = False
            try:
                code = await self._run_once()
            except OSError as error:
                code, self.last_error = -1, f"the trainer cannot be started: {error.strerror or error}"
            if self._stopping.is_set():
                return
            self.restarts += 1
            failures = 1 if self._attended else failures + 1
            delay = back_off(failures)
            state = "failed" if failures >= _FAILED_AFTER else "backing-off"
            self.last_error = self._describe(code)
            self._set(state, f"the trainer ended ({_ending(code)}), is started again in {delay:g} s: {self.last_error}")
            if state == "failed":
                self._channel.fail_waiting(Draining(f"the trainer does not start: {self.last_error}"))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay)

    async def _run_once(self) -> int:
        """Starts the trainer and returns its exit code when it has ended."""
        self._lines.clear()
        launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), str(_NICE)]
        reading, writing = os.pipe()
        try:
            # Not asyncio's: uvloop's subprocesses take no process_group. It returns as soon as the launcher runs.
            self._process = process = subprocess.Popen(  # noqa: ASYNC220
                [*launcher, *self._command],
                stdin=subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                cwd=self._directory,
                process_group=0,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **self._environment},
            )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        if self.state != "failed":
            self._set("starting", f"the trainer starts (pid {process.pid})")
        copier = asyncio.ensure_future(self._copy_output(os.fdopen(reading, "rb", 0)))
        try:
            await _ended(process)
            # What it forked may hold the pipe open; what matters has been written by now.
            await asyncio.wait([copier], timeout=1.0)
        finally:
            copier.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await copier
            if process.poll() is None:
                _signal(process, signal.SIGKILL)
                process.wait()
        return process.returncode

    async def _copy_output(self, pipe: IO[bytes]) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=1 << 20)
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        try:
            while data := await reader.read(1 << 16):
                text = data.decode("utf-8", "replace")
                self._lines.extend(line for line in text.splitlines() if line.strip())
                self._write_log(data)
        finally:
            transport.close()

    def _write_log(self, data: bytes) -> None:
        # A log that cannot be written must not stop the trainer from running.
        with contextlib.suppress(OSError):
            if self._log_path.exists() and self._log_path.stat().st_size > _LOG_BYTES:
                self._log_path.replace(self._log_path.with_suffix(".log.1"))
            with self._log_path.open("ab") as file:
                file.write(data)

    def _describe(self, code: int) -> str:
        return self._lines[-1][:400] if self._lines else f"it said nothing ({_ending(code)})"

    def _set(self, state: str, message: str) -> None:
        changed = state != self.state
        self.state = state
        if changed:
            self._events.publish("trainer", "", message)


async def _ended(process: subprocess.Popen[bytes]) -> None:
    """Returns when the process has ended, without polling: its pidfd becomes readable then."""
    loop = asyncio.get_running_loop()
    descriptor = os.pidfd_open(process.pid)
    ended = asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    process.wait()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(-code).name}"
    return f"killed by signal {-code}"
