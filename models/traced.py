"""What a pass does, as far as torch's dispatcher sees it: two passes of one trace are one computation, on weights of
their own. So graphs of the one are right for the other once the weights are exchanged.

A trace is each operation with all that it is given: numbers as they are; of tensors, where they come from. A weight is
where it lies in the buffer of weights; an input and what an operation made, which one it is; any other tensor (a
constant, something that was folded of weights, what is no part of a module) is its values. A pass that writes to its
weights or to such a constant keeps a state; one that looks at values on the host does what these say: neither can be
compared, and both say so.

Not seen is what does not go through the dispatcher: kernels that Python launches by itself, and what numpy does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from trimtab.models.errors import ModelError
from trimtab.models.flat import Flat

__all__ = ["TraceError", "traced"]

CONSTANT_BYTES = 16 << 20
_READS = ("aten._local_scalar_dense", "aten.item", "aten.equal", "aten.is_nonzero", "aten.nonzero")


class TraceError(ModelError):
    """A pass cannot be compared with others; the message says why."""


def traced(run: Callable[[], object], weights: Flat, inputs: Sequence[Tensor]) -> str:
    """The trace of a pass (sha256, hex) whose weights are in that buffer. Raises TraceError, and whatever it raises."""
    with torch.inference_mode(), _Trace(weights, inputs) as trace:
        made = run()
    trace.add("gives", [made])
    return str(trace.digest.hexdigest())


class _Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, weights: Flat, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.digest = hashlib.sha256()
        self._weights = _storage(weights.data)
        self._names = {_storage(value): f"input {position}" for position, value in enumerate(inputs)}
        self._made: list[Tensor] = []  # kept, as constants are: their addresses stay theirs
        self._constants: dict[int, Tensor] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if str(func).startswith(_READS):
            raise TraceError(f"it looks at values on the host ({func})")
        self._writes(func, args, kwargs)
        self.add(str(func), [args, sorted(kwargs.items())])
        out = func(*args, **kwargs)
        for value in tree_leaves(out):
            if not isinstance(value, Tensor) or not value.numel():
                continue
            if self._name(value) is None and _storage(value) not in self._constants:
                self._names[_storage(value)] = f"made {len(self._made)}"
                self._made.append(value)
        return out

    def add(self, what: str, given: Any) -> None:
        """Adds an operation and what it is given."""
        self.digest.update(f"{what} {tree_map(self._described, given)}\n".encode())

    def _writes(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        schema = func._schema.arguments
        named = {**{one.name: value for one, value in zip(schema, args, strict=False)}, **kwargs}
        for one in schema:
            if one.alias_info is None or not one.alias_info.is_write:
                continue
            for value in tree_leaves(named.get(one.name)):
                if isinstance(value, Tensor) and value.numel() and self._name(value) in ("weights", None):
                    raise TraceError(f"it changes what it keeps between two batches ({func})")

    def _name(self, value: Tensor) -> str | None:
        """Where the tensor comes from; None: from elsewhere."""
        place = _storage(value)
        return "weights" if place == self._weights else self._names.get(place)

    def _described(self, value: Any) -> str:
        if not isinstance(value, Tensor):
            # Of a generator, say, its address would be the rest.
            return str(value) if isinstance(value, _PLAIN) or value is None else type(value).__name__
        form = f"{value.dtype} {list(value.shape)} {value.stride()}"
        name = self._name(value)
        if name is not None:
            return f"<{name} +{value.storage_offset() * value.element_size()} {form}>"
        self._constants[_storage(value)] = value
        return f"<{_values(value)} {form}>"


_PLAIN = (bool, int, float, complex, str, torch.dtype, torch.device, torch.layout, torch.memory_format)


def _storage(value: Tensor) -> int:
    """Which memory it is; of what has none in one piece (sparse tensors), which object. All empty ones are the same."""
    if value.layout != torch.strided:
        return ~id(value)
    return value.untyped_storage().data_ptr() if value.numel() else 0


def _values(value: Tensor) -> str:
    if value.nbytes > CONSTANT_BYTES:
        raise TraceError(f"it has a constant of {value.nbytes:,} bytes that is none of its weights")
    there = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(there.numpy().tobytes()).hexdigest()
