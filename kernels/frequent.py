"""The most frequent values of an endless column whose values nobody knows beforehand: texts or integers.

At most `capacity` counters (native: csrc/heavy_hitters.h). A count is never too large, and too small by at most `error`
<= 2 * total / capacity: so whatever makes up more of the rows than that is there. Exact up to `capacity` different
values. The same rows, however cut into batches, give the same counts; two merge alike in either order.

Why of our own: the frequent-items sketch of the datasketches package (5.2) is the same algorithm, but takes one Python
object a call: 90 to 130 ns a value, and strings have to be made first. This takes Arrow's buffers, in 10 to 80 ns.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from trimtab._native import HeavyHitters
from trimtab.kernels.slabs import Texts, text_buffers
from trimtab.kernels.summaries import novel_share

__all__ = ["CAPACITY", "FrequentValues"]

CAPACITY = 1 << 16


class FrequentValues:
    """Counts of frequent values, all texts or all integers. One thread at a time."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._found = HeavyHitters(capacity)
        self._texts = True

    def add(self, values: NDArray[np.int64] | pa.StringArray | Texts) -> None:
        """Adds a batch's values; missing ones (INT64_MIN, empty texts) are passed over. The GIL is released."""
        if isinstance(values, tuple):
            self._found.add_texts(*values)
        elif isinstance(values, np.ndarray):
            self._texts = False
            self._found.add_integers(np.ascontiguousarray(values))
        else:
            self._found.add_texts(*text_buffers(values))

    def merge(self, other: FrequentValues) -> None:
        """Adds what another one counted, of values of the same type."""
        self._texts &= other._texts
        self._found.merge(other._found)

    @property
    def total(self) -> int:
        """How many values were added."""
        return self._found.total

    @property
    def error(self) -> int:
        """How much too small a count may be; a value without a counter occurred at most so often."""
        return self._found.error

    @property
    def novel(self) -> float:
        """See `novel_share`."""
        return novel_share((count for _, count in self._found.entries()), self.total)

    def counted(self) -> list[tuple[int | str, int]]:
        """Values and counts, the most frequent first, ties by value."""
        if self._texts:
            return [(value.decode(), count) for value, count in self._found.entries()]
        pairs = [(int(np.frombuffer(value, np.int64)[0]), count) for value, count in self._found.entries()]
        return [*sorted(pairs, key=lambda pair: (-pair[1], pair[0]))]

    def most_common(self, limit: int, least: int = 1) -> list[int | str]:
        """At most `limit` values that were counted at least `least` times, in the order of `counted`."""
        return [value for value, count in self.counted()[:limit] if count >= least]
