"""Compiles Triton kernels for an H100 without one, as launches would; what they take, from the machine code."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

_TYPES = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.uint8: "*u8",
}
_OPTIONS = ("num_warps", "num_stages", "maxnreg")
_SCALAR = "i32"


@dataclass(frozen=True)
class Compiled:
    """registers: of a thread. stack: bytes of local memory of a thread, where spilled registers go. sass: the machine
    code, an instruction each."""

    name: str
    registers: int
    stack: int
    sass: tuple[str, ...]

    def count(self, pattern: str) -> int:
        """How many instructions match a regular expression."""
        return sum(re.search(pattern, line) is not None for line in self.sass)


def compiled(module: ModuleType, launcher: Callable[[], None], folder: Path) -> list[Compiled]:
    """The kernels that a launcher of the module would launch, with what it would give them."""
    launches: list[tuple[Any, Sequence[Any], dict[str, Any]]] = []

    def record(kernel: Any, programs: int, device: torch.device, *arguments: Any, **constants: Any) -> None:
        launches.append((kernel, arguments, constants))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "launch", record)
        patch.setenv("TRITON_CACHE_DIR", str(folder / "cache"))
        launcher()
        return [_compiled(*launch, folder) for launch in launches]


def _compiled(kernel: Any, arguments: Sequence[Any], constants: dict[str, Any], folder: Path) -> Compiled:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    options = {name: constants[name] for name in _OPTIONS if name in constants}
    values = {name: value for name, value in constants.items() if name not in options}
    types = [_TYPES[item.dtype] if isinstance(item, torch.Tensor) else _SCALAR for item in arguments]
    signature = dict(zip(kernel.arg_names, types, strict=False)) | dict.fromkeys(values, "constexpr")
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(types) if kind != _SCALAR}
    assert sorted(signature) == sorted(kernel.arg_names)
    source = ASTSource(kernel, signature, values, aligned)
    result = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(result.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    usage, sass = (
        subprocess.run([tool, flag, cubin], capture_output=True, text=True, check=True).stdout
        for flag in ("-res-usage", "-sass")
    )
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    assert found is not None, usage
    registers, stack, local = map(int, found.groups())
    lines = tuple(line.strip() for line in sass.splitlines() if re.search(r"/\*[0-9a-f]{4,}\*/ +\S", line))
    return Compiled(kernel.__name__, registers, stack + local, lines)
