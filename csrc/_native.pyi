"""Types of the native extension; the code is in csrc/."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Missing values: NaN in reals and booleans, INT64_MIN in integers, an empty string in strings.

class Schema:
    """The typed columns of a model's requests, in order: the features, then the `keys` key columns. Immutable, hashable.

    Types are "real", "boolean", "integer" and "string". Raises ValueError on an unknown type, an empty or repeated name, or
    where no field is left that is not a key.
    """

    def __init__(self, names: Sequence[str], types: Sequence[str], keys: int = 0) -> None: ...
    @property
    def names(self) -> list[str]: ...
    @property
    def types(self) -> list[str]: ...
    @property
    def keys(self) -> int: ...
    def __len__(self) -> int: ...

class Slab:
    """Rows of a schema, column by column; owns its memory and keeps it from batch to batch. One thread at a time may touch it."""

    def __init__(self, schema: Schema) -> None: ...
    @property
    def rows(self) -> int: ...
    @property
    def schema(self) -> Schema: ...
    @property
    def nbytes(self) -> int:
        """Bytes that the rows take."""

    def __len__(self) -> int: ...
    def clear(self) -> None:
        """Drops all rows and keeps the memory."""

    def truncate(self, rows: int) -> None:
        """Drops the rows from `rows` on; IndexError if there are not so many."""

    def reals(self, column: int) -> NDArray[np.float32]:
        """[rows] of a real or boolean column: a read-only view, true until the slab changes, safe to hold longer."""

    def integers(self, column: int) -> NDArray[np.int64]:
        """[rows] of an integer column, a view as of reals()."""

    def strings(self, column: int) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """Offsets [rows + 1] and UTF-8 bytes of a string column, views as of reals()."""

    def extend(self, other: Slab, indices: NDArray[np.int32] | None = None, start: int = 0, stop: int = -1) -> None:
        """Appends rows of a slab of an equal schema: those at `indices`, or [start, stop), where -1 is the end. All or nothing."""

    def append_columns(
        self,
        columns: Sequence[
            NDArray[np.float32] | NDArray[np.int64] | tuple[NDArray[np.int32] | NDArray[np.int64], NDArray[np.uint8]]
        ],
    ) -> None:
        """Appends rows given as one contiguous array per field: float32 (real, boolean), int64 (integer), offsets and bytes
        (string). ValueError, with nothing appended, on another dtype or shape, a boolean other than 0, 1 or NaN, no UTF-8."""

def crc32c(data: bytes | bytearray | memoryview | NDArray[Any], seed: int = 0) -> int:
    """CRC-32C (Castagnoli) of contiguous bytes that follow bytes whose CRC-32C is `seed`."""

def crc32c_portable(data: bytes | bytearray | memoryview | NDArray[Any], seed: int = 0) -> int:
    """crc32c by tables, on any processor: what crc32c falls back to."""
