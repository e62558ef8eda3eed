"""Compile gates, without a GPU: what NVRTC makes of generated sources has few registers, no spills, and few
instructions a value.

The budget is that of an H200, which copies 1M x 64 float32 in 125 us: 55 instructions a value, at all multiprocessors'
full rate. Counted are the item's loop (from one item to the next, all its lanes' values) and its share of what brings
rows in and takes features out, each as instructions of the loop's shortest way over values handled in it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from functools import cache
from pathlib import Path

import pytest
from trimtab.kernels.cuda_compile import CSRC, Cubin, Variant, compile_cubin, nvrtc
from trimtab.kernels.cuda_tables import NARROW, WIDE, Compiled

from tests.kernels.cuda_on_cpu.emulation import SANITIZED
from tests.kernels.sass import blocks_of, disassembled, loops_with
from tests.kernels.test_cuda_parity import all_ops, standard

pytestmark = pytest.mark.skipif(SANITIZED, reason="compiles for another machine, and runs nothing")
REGISTERS, INSTRUCTIONS = 64, 50
VALUES_A_VECTOR = 4
FOUND_NVRTC = nvrtc() is not None
needs_nvrtc = pytest.mark.skipif(
    not FOUND_NVRTC, reason="no NVRTC: cuda-bindings and nvidia-cuda-nvrtc are not installed"
)


def nvdisasm() -> str | None:
    wheels = sorted((Path(sysconfig.get_path("purelib")) / "nvidia").glob("*/bin/nvdisasm"))
    return str(wheels[0]) if wheels else shutil.which("nvdisasm")


@cache
def cubin(program: str, matrix: bool, sketch: bool, vectors: int, architecture: str, staged: bool = False) -> Cubin:
    made = {"standard": standard(64, 31), "every op": all_ops()}[program]
    return compile_cubin(Compiled.of(made).source, Variant(matrix, sketch, vectors, staged), architecture)


def registers_of(log: str) -> int:
    found = re.search(r"Used (\d+) registers", log)
    assert found is not None, log
    return int(found[1])


@needs_nvrtc
@pytest.mark.parametrize("layout", [WIDE, NARROW])
@pytest.mark.parametrize("form", ["columns", "matrix", "staged"])
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
def test_registers_of_the_standard_chain(architecture: str, form: str, layout: object) -> None:
    vectors = layout.vectors  # type: ignore[attr-defined]
    log = cubin("standard", form == "matrix", True, vectors, architecture, form == "staged").log
    assert registers_of(log) <= REGISTERS
    assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in log


@needs_nvrtc
@pytest.mark.slow
@pytest.mark.parametrize("layout", [WIDE])
def test_no_spills_with_every_op(layout: object) -> None:
    log = cubin("every op", False, True, layout.vectors, "sm_90").log  # type: ignore[attr-defined]
    assert registers_of(log) <= 128  # two blocks of 256 threads a multiprocessor
    assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in log


@needs_nvrtc
@pytest.mark.parametrize("form", ["columns", "matrix", "staged"])
def test_instructions_of_the_standard_chain(form: str) -> None:
    """Impute, clip, standardise; moments, minimum, maximum and a histogram of 31 edges."""
    tool = nvdisasm()
    if tool is None:
        pytest.skip("nvdisasm is neither on PATH nor installed by nvidia-cuda-nvdisasm")
    made = cubin("standard", form == "matrix", True, WIDE.vectors, "sm_90", form == "staged")
    blocks = blocks_of(disassembled(made.data, tool))
    # One counter is added to for each value; loads and stores move four.
    parts = {"ATOMS.POPC.INC": 1, "STG.E.128": VALUES_A_VECTOR}
    if form == "matrix":
        parts["LDG.E.EF.128"] = VALUES_A_VECTOR
    total = 0.0
    for mark, values in parts.items():
        loops = loops_with(blocks, lambda instruction, mark=mark: mark in instruction)  # type: ignore[misc]
        assert loops, mark
        total += min(len(loop) / (values * sum(mark in x for x in loop)) for loop in loops)
    assert 30 < total <= INSTRUCTIONS  # less would be miscounted


@needs_nvrtc
def test_no_float_is_added_atomically() -> None:
    """Counts may be added in any order, floats may not."""
    tool = nvdisasm()
    if tool is None:
        pytest.skip("nvdisasm is neither on PATH nor installed by nvidia-cuda-nvdisasm")
    text = disassembled(cubin("standard", False, True, WIDE.vectors, "sm_90").data, tool)
    atomics = set(re.findall(r"\b(?:ATOMS?G?|REDG?|RED)\.[A-Z0-9.]+", text))
    assert "ATOMS.POPC.INC.32" in atomics
    assert not [name for name in atomics if re.search(r"\.F(16|32|64)|\.FTZ|\.RN", name)]


@needs_nvrtc
def test_float64_is_not_contracted() -> None:
    """The one fused multiplication is the square's, which the source asks for: eight values, and eight once more where
    a value was out of range."""
    tool = nvdisasm()
    if tool is None:
        pytest.skip("nvdisasm is neither on PATH nor installed by nvidia-cuda-nvdisasm")
    text = disassembled(cubin("standard", False, True, WIDE.vectors, "sm_90").data, tool)
    assert len(re.findall(r"\bDFMA\b", text)) == 16
    assert not re.findall(r"\bFFMA\b", text)


@pytest.mark.slow
def test_nvcc_compiles_it_too(tmp_path: Path) -> None:
    compiler = shutil.which("nvcc")
    if compiler is None:
        pytest.skip("nvcc is not on PATH")
    source = tmp_path / "columns.cu"
    source.write_text(Compiled.of(standard(64)).source)
    command = [compiler, "-cubin", "-arch=sm_90", "-std=c++20", "--fmad=false", f"-I{CSRC}", "-Xptxas", "-v"]
    command += [f"-D{name}={value}" for name, value in Variant(False, True, 2).defines.items()]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "columns.cubin"), str(source)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "0 bytes spill stores" in done.stderr
