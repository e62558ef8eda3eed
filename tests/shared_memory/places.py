"""What regions of shared memory lie in, of each kind, for tests that every kind must pass.

`KINDS` are parameters of a fixture: an object in /dev/shm; memory of another process on a device that is played by
pretend_driver.cpp; the same on a GPU, by NVIDIA's driver.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import pytest
from trimtab._native import CudaDriver, SharedMemory

_HERE = Path(__file__).parent
_COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or "c++"
NVIDIA = "libcuda.so.1"
KINDS = ["system", "pretended", pytest.param("gpu", marks=pytest.mark.gpu)]
CUDA_KINDS = KINDS[1:]


class Place(Protocol):
    """Bytes that a client shares."""

    size: int

    def register(self, memory: SharedMemory, name: str, byte_size: int) -> bool:
        """As the region `name`, its first `byte_size` bytes."""
        ...

    def unregister(self, memory: SharedMemory, name: str) -> bool: ...
    def read(self, at: int, size: int) -> bytes: ...
    def write(self, at: int, data: bytes) -> None: ...
    def free(self) -> None: ...


@cache
def _compiled() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="trimtab-pretended-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    made = folder / "pretended.so"
    command = [_COMPILER, "-std=c++20", "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-o", str(made)]
    subprocess.run([*command, str(_HERE / "pretend_driver.cpp")], check=True)
    return made


def pretended_driver(folder: Path) -> Path:
    """A libcuda.so.1 of its own in `folder`: what it has been through is not another test's."""
    folder.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(_compiled(), folder / NVIDIA))


class Exporter:
    """A process that has memory on a GPU: exporter.py."""

    def __init__(self, library: str) -> None:
        own = {key: value for key, value in os.environ.items() if not key.startswith("PRETEND_CUDA_")}
        self.process = subprocess.Popen(
            [sys.executable, str(_HERE / "exporter.py"), library],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=own,
        )

    def ask(self, do: str, **arguments: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def allocate(self, size: int, device: int = 0) -> CudaPlace:
        made = self.ask("allocate", size=size, device=device)
        return CudaPlace(self, made["number"], base64.b64decode(made["handle"]), size, device)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


class CudaPlace:
    """An allocation of the exporter."""

    def __init__(self, exporter: Exporter, number: int, handle: bytes, size: int, device: int) -> None:
        self.handle, self.size, self.device = handle, size, device
        self._exporter, self._number = exporter, number

    def register(self, memory: SharedMemory, name: str, byte_size: int) -> bool:
        return memory.register_cuda(name, self.handle, self.device, byte_size)

    def unregister(self, memory: SharedMemory, name: str) -> bool:
        return memory.unregister_cuda(name)

    def read(self, at: int, size: int) -> bytes:
        return base64.b64decode(self._exporter.ask("read", number=self._number, at=at, size=size)["data"])

    def write(self, at: int, data: bytes) -> None:
        self._exporter.ask("write", number=self._number, at=at, data=base64.b64encode(data).decode())

    def free(self) -> None:
        self._exporter.ask("free", number=self._number)


class SystemPlace:
    """An object in /dev/shm, of random name."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.name = f"trimtab-test-{uuid.uuid4().hex}"
        self.key = f"/{self.name}"
        self.path = Path("/dev/shm") / self.name
        self.path.write_bytes(bytes(size))

    def register(self, memory: SharedMemory, name: str, byte_size: int) -> bool:
        return memory.register(name, self.key, 0, byte_size)

    def unregister(self, memory: SharedMemory, name: str) -> bool:
        return memory.unregister(name)

    def read(self, at: int, size: int) -> bytes:
        return self.path.read_bytes()[at : at + size]

    def write(self, at: int, data: bytes) -> None:
        with self.path.open("r+b") as file:
            file.seek(at)
            file.write(data)

    def free(self) -> None:
        self.path.unlink(missing_ok=True)


class Places:
    """Makes places of one kind, and the registry that opens them."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.driver: CudaDriver | None = None
        self.exporter: Exporter | None = None
        self._made: list[SystemPlace] = []
        if kind != "system":
            library = NVIDIA if kind == "gpu" else str(pretended_driver(folder))
            self.driver = CudaDriver(library)
            assert not self.driver.missing
            self.exporter = Exporter(library)

    def memory(self, most_bytes: int) -> SharedMemory:
        return SharedMemory(most_bytes, self.driver)

    def make(self, size: int) -> Place:
        if self.exporter is not None:
            return self.exporter.allocate(size)
        self._made.append(SystemPlace(size))
        return self._made[-1]

    def close(self) -> None:
        if self.exporter is not None:
            self.exporter.close()
        for made in self._made:
            made.free()


@contextlib.contextmanager
def places_of(kind: str, folder: Path) -> Iterator[Places]:
    """For a fixture, or a test."""
    made = Places(kind, folder)
    try:
        yield made
    finally:
        made.close()
