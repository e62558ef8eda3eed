"""What the peers share: environments of their own, and waiting for a server to take requests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

HOME = Path(os.environ.get("PEERS_HOME", "~/.cache/trimtab-peers")).expanduser()
# The model that every peer serves: MLP 32 → 128 → 1 with fixed weights; see models/ of the benchmark.
FEATURES, HIDDEN = 32, 128


class Absent(Exception):
    """The peer cannot be set up on this machine; the text says why."""


def environment(name: str, packages: list[str], imports: str) -> Path:
    """The Python of a virtual environment of its own with these packages, made where it is missing. Raises Absent."""
    folder = HOME / name
    python = folder / "bin" / "python"
    if python.exists() and _succeeds([str(python), "-c", f"import {imports}"]):
        return python
    print(f"peers: installing {' '.join(packages)} into {folder}", file=sys.stderr)
    HOME.mkdir(parents=True, exist_ok=True)
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages],
        [str(python), "-c", f"import {imports}"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise Absent(f"{name}: {' '.join(command[1:4])}: {last}")
    return python


def wait_for_port(process: subprocess.Popen[bytes], port: int, name: str, log: Path, seconds: float = 90.0) -> None:
    """Returns once something listens on the port. Raises Absent where the process ends or the time is up."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if process.poll() is not None:
            break
        with socket.socket() as probe:
            probe.settimeout(1.0)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    if process.poll() is None:
        process.kill()
        process.wait()
    tail = " ".join(log.read_text(errors="replace").split()[-30:])
    raise Absent(f"{name} did not start: {tail}")


def free_port() -> int:
    """A port that nothing listens on, outside of the range that outgoing connections take."""
    for port in range(19000, 29000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            if port not in _given:
                _given.add(port)
                return port
    raise Absent("no free port")


_given: set[int] = set()


def _succeeds(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
