"""The tests of the kernels for tensors again, with the kernels: in Triton's interpreter, which needs no GPU.

A process interprets kernels or compiles them (Triton decides when it is imported), so this is a process of its own.
With a GPU those tests run the compiled kernels themselves, and this still runs, in tensors of the CPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from trimtab.kernels.tensors import interpreted

pytest.importorskip("triton", reason="Triton is not installed")
HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.skipif(interpreted(), reason="this is the interpreter")
@pytest.mark.parametrize("module", ["predictions", "embeddings", "images"])
def test_kernels_in_the_interpreter(module: str) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    # The interpreter takes one thread's part at a time; NumPy warns of the NaN and infinities that it is given.
    environment = {**clean, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    options = ["-q", "-x", "-p", "no:cacheprovider", "-W", "ignore::RuntimeWarning"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(HERE / f"test_{module}.py")],
        env=environment,
        cwd=HERE.parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
