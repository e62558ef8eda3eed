"""How the Triton kernels are defined and launched. Imports Triton; nothing but a kernel's module may import this.

To type checkers `tl`, and the annotations `Value` (a pointer or scalar that a kernel is given, a block within one) and
`constexpr`, are Any: what a kernel's body means is for Triton's compiler to say, which the tests run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language

__all__ = ["Value", "constexpr", "jit", "launch", "tl"]

tl: Any = triton.language
_jit: Any = triton.jit

if TYPE_CHECKING:
    Value = Any
    constexpr = Any
else:  # Triton looks annotations up, and knows only its own
    Value = tl.tensor
    constexpr = tl.constexpr


def jit(*, runtime: Sequence[str] = ()) -> Callable[[Callable[..., Any]], Any]:
    """Makes a kernel, or a function that kernels call. runtime: integers that change from call to call, for whose
    values no other kernel is compiled."""

    def make(function: Callable[..., Any]) -> Any:
        return _jit(function, do_not_specialize=list(runtime))

    return make


def launch(kernel: Any, programs: int, device: torch.device, *arguments: Any, **constants: Any) -> None:
    """Queues a kernel of so many programs on the device's current stream; waits for nothing."""
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[(programs,)](*arguments, **constants)
