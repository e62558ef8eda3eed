"""A Device on which generated CUDA sources run on the CPU (cuda_emulation.h): compiled by g++, called by ctypes."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from trimtab.kernels.cuda_compile import CSRC, Variant
from trimtab.kernels.cuda_device import Copy, Kernel, Launch, Memory
from trimtab.kernels.errors import ExecutorError

SANITIZED = "libasan" in os.environ.get("LD_PRELOAD", "")
"""Whether this is a run of tools/sanitize.sh; then the kernels are built with its sanitizers, too, which takes long."""
_RUNNING = threading.Lock()  # a library's fibers and shared memory are its globals
HERE = Path(__file__).parent
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++") or "g++"


@cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="trimtab-cuda-on-cpu-"))


@cache
def built(source: str, variant: Variant, optimised: bool = False) -> Any:
    """The launching function of a source."""
    text = f'#include "cuda_emulation.h"\n{source}\n#include "cuda_emulation_launch.h"\n'
    name = hashlib.sha256(f"{text}{variant}{optimised}".encode()).hexdigest()[:24]
    path, library = _folder() / f"{name}.cpp", _folder() / f"{name}.so"
    path.write_text(text)
    command = [COMPILER, "-std=c++20", "-O2" if optimised else "-O1", "-g0", "-shared", "-fPIC", "-ffp-contract=off"]
    command += ["-fno-strict-aliasing", "-w", f"-I{HERE}", f"-I{CSRC}"]
    if SANITIZED:
        command += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command += [f"-D{key}={value}" for key, value in variant.defines.items()]
    done = subprocess.run([*command, "-o", str(library), str(path)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise AssertionError(done.stderr[:4000])
    launch = ctypes.CDLL(str(library)).launch
    launch.argtypes = [ctypes.c_void_p, *[ctypes.c_uint] * 4]
    launch.restype = ctypes.c_int
    return launch


class HostMemory:
    """Memory that begins at a multiple of 256, filled with what nobody should read."""

    def __init__(self, nbytes: int) -> None:
        self._owner = np.full(nbytes + 256, 0xFF, np.uint8)
        self.offset = -self._owner.ctypes.data % 256
        self.nbytes = nbytes
        self.values = self._owner[self.offset : self.offset + nbytes]
        self.pointer = self.values.ctypes.data


class EmulatedDevice:
    """order: 0 forwards, 1 backwards, else shuffled by that seed. changed: alters the source before it is compiled."""

    def __init__(self, order: int = 0, processors: int = 4, changed: Callable[[str], str] = lambda text: text) -> None:
        self.processors = processors
        self.order = order
        self.launches: list[Launch] = []
        self._changed = changed

    def kernel(self, source: str, variant: Variant) -> Kernel:
        launch = built(self._changed(source), variant)

        def run(call: Launch) -> None:
            self.launches.append(call)
            arguments = np.asarray(call.arguments, np.uint64)
            with _RUNNING:
                result = launch(arguments.ctypes.data, *call.blocks, call.shared_bytes, self.order)
            if result != 0:
                raise ExecutorError({1: "the threads of a block wait for ever", 2: "too much shared memory"}[result])

        return run

    def memory(self, nbytes: int) -> HostMemory:
        return HostMemory(nbytes)

    def copy_in(self, memory: Memory, offset: int, values: np.ndarray) -> None:
        _bytes(memory)[offset : offset + values.nbytes] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)

    def copy_out(self, memory: Memory, offset: int, values: np.ndarray) -> None:
        values.reshape(-1).view(np.uint8)[:] = _bytes(memory)[offset : offset + values.nbytes]

    def aside(self, reads: Sequence[Copy], writes: Sequence[Copy]) -> None:
        for copy in reads:
            self.copy_out(*copy)
        for copy in writes:
            self.copy_in(*copy)


def _bytes(memory: Memory) -> np.ndarray:
    assert isinstance(memory, HostMemory)
    return memory.values
