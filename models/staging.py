"""Where the rows of a batch lie in the staged buffer, and which graph takes them: plain arithmetic, no device.

A CUDA graph has fixed shapes and addresses. So there is one for each of a few sizes, the buckets, and a batch of n rows
runs in the smallest bucket that holds it; the rows beyond n are zeros, and what comes out for them is dropped. Zeros,
and not what batches before have left there: the buckets share one buffer, each with a layout of its own, so what was
left may be floats where ids are read, and an id out of range is an illegal access that costs the process its GPU. Nor
could an answer ever depend on the rows of another client. The buffer starts with a header that says n: a kernel that
counts rows (columns and statistics on the GPU) reads it there, so that one graph is right for every n of its bucket.

    offset 0        header    int64 [HEADER]     n, then zeros
           256      features  float32 [bucket, F]
           aligned  ids       int64 [bucket, C]

The whole bucket is copied, in one piece: at most twice the bytes, and one call. Tensors of any kinds (tensor_graphs.py)
lie one behind the other likewise, without a header.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["HEADER", "Bucket", "bucket_for", "bucket_sizes", "most_within", "offsets", "padded_sizes"]

HEADER = 8
_ALIGNMENT = 256


@dataclass(frozen=True)
class Bucket:
    """The staged buffer's layout for batches of up to so many rows."""

    rows: int
    features: int
    """float32 values a row."""
    ids: int
    """int64 values a row."""

    @property
    def features_at(self) -> int:
        """In bytes."""
        return _aligned(HEADER * 8)

    @property
    def ids_at(self) -> int:
        """In bytes."""
        return _aligned(self.features_at + self.rows * self.features * 4)

    @property
    def size(self) -> int:
        """Bytes of all."""
        return self.ids_at + self.rows * self.ids * 8


def bucket_sizes(most: int) -> list[int]:
    """Powers of two, and the largest batch there is; the largest first, as they are to be captured: what the first
    graph allocates, the later ones find in the pool. Raises ValueError where there is no batch."""
    if most < 1:
        raise ValueError(f"expected at least one row in a batch, got {most}")
    return sorted({most, *(1 << power for power in range(most.bit_length()) if 1 << power < most)}, reverse=True)


def padded_sizes(most: int) -> list[int]:
    """For each bucket that can have padding, the number of rows with the most of it."""
    sizes = bucket_sizes(most)
    return sorted({size // 2 + 1 for size in sizes} - set(sizes))


def bucket_for(n: int, most: int) -> int:
    """The size of the bucket for n of at most `most` rows. Raises ValueError for another n."""
    if not 1 <= n <= most:
        raise ValueError(f"expected 1 to {most} rows, got {n}")
    return min(1 << (n - 1).bit_length(), most)


def offsets(widths: Sequence[int], rows: int) -> list[int]:
    """Where tensors of so many bytes a row begin, one behind the other, and where the last one ends; in bytes."""
    found = [0]
    for width in widths:
        found.append(_aligned(found[-1] + width * rows))
    return found


def most_within(limit: int, widths: Sequence[int], most: int) -> int:
    """The largest bucket of at most `most` rows whose tensors of so many bytes a row fit into `limit` bytes; 0: not
    even a row does."""
    return next((rows for rows in bucket_sizes(most) if offsets(widths, rows)[-1] <= limit), 0)


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT
