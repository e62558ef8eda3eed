"""The errors of this room.

KernelError
├── ProgramError    a column program, transform or feature that means nothing: unknown op, wrong parameter, damaged JSON
├── ColumnError     a table that does not have the columns a schema asks for
├── FitError        a program cannot be fitted from these rows
├── SketchError     sketches that do not belong together, damaged sketch bytes
├── TensorError     a tensor whose shape, dtype, layout or device a kernel for tensors does not take
└── ExecutorError   a slab, device or program that an executor cannot run

`code` is the gRPC status name that an error has when it reaches a client; the server translates it once, at its edge.
"""

from __future__ import annotations

from typing import ClassVar


class KernelError(Exception):
    """Base of every error raised on purpose by `trimtab.kernels`."""

    code: ClassVar[str] = "INTERNAL"


class ProgramError(KernelError):
    """A column program or a part of one is invalid."""

    code = "INVALID_ARGUMENT"


class ColumnError(KernelError):
    """A table's column is absent or of a type that the schema's field cannot hold."""

    code = "INVALID_ARGUMENT"


class FitError(KernelError):
    """The rows given do not allow the program to be fitted."""

    code = "FAILED_PRECONDITION"


class SketchError(KernelError):
    """Sketches of different specs were mixed, or a sketch's bytes are damaged."""

    code = "FAILED_PRECONDITION"


class TensorError(KernelError):
    """A kernel for tensors was given a tensor that it does not take."""

    code = "INVALID_ARGUMENT"


class ExecutorError(KernelError):
    """An executor was given what it cannot run."""

    code = "FAILED_PRECONDITION"
