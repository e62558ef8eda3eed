"""Rows that a version of tensors can be tried with where a wrong value may cost the process its GPU, and whether
another way to run it agrees with the eager pass on them. tensor_graphs.py has the design.

Made-up rows are those of the entry's `example`; without one, random floats and truth values, and zeros for whole
numbers, which may be indices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from trimtab.models.sharing import GraphError
from trimtab.models.staging import bucket_sizes, padded_sizes
from trimtab.models.tensors import DTYPES, TensorVersion

__all__ = ["check", "made_up", "padding_of"]

Call = Callable[[Mapping[str, Tensor], int], list[Tensor]]


def padding_of(version: TensorVersion) -> dict[str, Tensor]:
    """One row of each input [1, dims...], that the version takes. Raises GraphError where an input has no fixed
    shape."""
    for name, datatype, dims in version.source.shape.inputs:
        if datatype == "BYTES":
            raise GraphError(f"input {name!r} is texts")
        if -1 in dims:
            raise GraphError(f"input {name!r} has dimensions that vary: {list(dims)}")
    return _given(version, 1)


def made_up(version: TensorVersion, rows: int) -> dict[str, Tensor]:
    """Rows of each input [rows, dims...]; always the same. Raises GraphError where `example` gives others."""
    found = _given(version, rows)
    if version.definition.example is not None:
        return found
    generator = torch.Generator().manual_seed(rows)
    for name, value in found.items():
        if value.dtype.is_floating_point:
            found[name] = torch.randn(value.shape, generator=generator).to(value.dtype)
        elif value.dtype == torch.bool:
            found[name] = torch.randint(0, 2, value.shape, generator=generator).bool()
    return found


def check(version: TensorVersion, call: Call, most: int, tolerance: float) -> None:
    """Has `call` answer full buckets of up to `most` rows, then buckets with padding. Raises GraphError unless its
    outputs are the eager ones: floats within the tolerance, relatively or of the output's largest; all else exactly."""
    padded = padded_sizes(most)
    padding, telling = padding_of(version), not padded
    for n in [*bucket_sizes(most), *padded]:
        inputs = made_up(version, n)
        with torch.inference_mode():
            there = {name: value.to(version.device) for name, value in inputs.items()}
            expected = version.run_eagerly(*version.arguments(there))
        for (name, _, _), ours, theirs in zip(version.outputs, expected, call(inputs, n), strict=True):
            _compare(f"{n} made-up rows give {name!r}", ours.cpu(), theirs, tolerance)
        telling = telling or (n in padded and any(not _alike(value, padding[name]) for name, value in inputs.items()))
    if not telling:
        why = "made-up rows are all the same, which does not show whether they depend on one another"
        raise GraphError(f"{why}; give the entry an `example(rows)` of rows that differ")


def _given(version: TensorVersion, rows: int) -> dict[str, Tensor]:
    given, found = version.example(rows), dict[str, Tensor]()
    for name, datatype, dims in version.source.shape.inputs:
        if tuple(given[name].shape) != (rows, *dims):
            raise GraphError(f"`example` of {rows} rows has {name!r} {list(given[name].shape)}, not {[rows, *dims]}")
        found[name] = given[name].to(DTYPES[datatype])
    return found


def _alike(value: Tensor, row: Tensor) -> bool:
    return torch.equal(value, row.expand_as(value))


def _compare(what: str, expected: Tensor, found: Tensor, tolerance: float) -> None:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise GraphError(f"{what} {found.dtype} {list(found.shape)}, not {expected.dtype} {list(expected.shape)}")
    if not expected.dtype.is_floating_point:
        if not torch.equal(found, expected):
            raise GraphError(f"{what} that is not the eager one")
        return
    ours, theirs = expected.double(), found.double()
    finite = ours[ours.isfinite()].abs()
    near = tolerance * max(1.0, float(finite.max()) if finite.numel() else 1.0)
    if not torch.allclose(theirs, ours, rtol=tolerance, atol=near, equal_nan=True):
        raise GraphError(f"{what} that differs by more than {tolerance:g} from the eager one")
