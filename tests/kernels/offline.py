"""Compiles a Triton kernel for an H100 without one, and reads from the machine code what it takes."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

_TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.uint8: "u8",
}
CUOBJDUMP = "backends/nvidia/bin/cuobjdump"


@dataclass(frozen=True)
class Compiled:
    """registers: of a thread. stack: bytes of local memory of a thread, where spilled registers go. shared: bytes.
    sass: the machine code, a line an instruction."""

    registers: int
    stack: int
    shared: int
    sass: tuple[str, ...]

    def count(self, pattern: str) -> int:
        """How many instructions match a regular expression."""
        return sum(re.search(pattern, line) is not None for line in self.sass)


def compiled(kernel: Any, arguments: Mapping[str, torch.dtype | str], **constants: Any) -> Compiled:
    """A kernel as its launch would compile it.

    arguments: a dtype for a pointer to tensors of it, taken to be aligned to 16 bytes as torch allocates them, or a
    scalar's type. constants: the constexprs, and num_warps, num_stages and maxnreg.
    """
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages", "maxnreg") if name in constants}
    return _compiled(kernel, tuple(arguments.items()), tuple(constants.items()), tuple(options.items()))


@cache
def _compiled(kernel: Any, arguments: Any, constants: Any, options: Any) -> Compiled:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {name: f"*{_TYPES[kind]}" if isinstance(kind, torch.dtype) else kind for name, kind in arguments}
    attributes = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names)
        if signature.get(name, "").startswith("*")
    }
    ordered = {name: signature.get(name, "constexpr") for name in kernel.arg_names}
    source = ASTSource(kernel, ordered, dict(constants), attributes)
    result = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=dict(options))
    tool = Path(triton.__file__).parent / CUOBJDUMP
    with TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(result.asm["cubin"])
        usage, sass = (
            subprocess.run([tool, flag, cubin], capture_output=True, text=True, check=True).stdout
            for flag in ("-res-usage", "-sass")
        )
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage)
    if found is None:
        raise AssertionError(f"cuobjdump told no resources: {usage}")
    registers, stack, _, local = map(int, found.groups())
    lines = tuple(line.strip() for line in sass.splitlines() if re.search(r"/\*[0-9a-f]{4,}\*/ +\S", line))
    return Compiled(registers, stack + local, result.metadata.shared, lines)
