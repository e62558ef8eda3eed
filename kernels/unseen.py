"""Which values that training did not have dominate the rows of a drift window: from a sample of its rows.

A sketch counts how many values are unseen, exactly; keeping which would cost the hot path a table of texts. What
dominates shows in a sample: a value of 1 % of the rows is in 1,024 of them with a probability above 99.99 %.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from trimtab._native import Slab
from trimtab.kernels.frequent import FrequentValues
from trimtab.kernels.sketch_spec import CategoryField, SketchSpec

__all__ = ["LARGEST_VOCABULARY", "UnseenValue", "UnseenValues"]

LARGEST_VOCABULARY = 100_000
"""Fields of more known values are passed over: making a set of them holds the interpreter's lock for too long."""


@dataclass(frozen=True)
class UnseenValue:
    """A value that is not in a field's vocabulary, and the share of the sampled rows that have it."""

    value: str | int
    share: float


class UnseenValues:
    """Looks through samples of rows of one spec's schema. One thread at a time."""

    def __init__(self, spec: SketchSpec) -> None:
        self.spec = spec
        self._known: dict[int, frozenset[str | int]] = {}

    def of(self, sample: Slab, fields: Iterable[int], most: int = 3) -> dict[int, list[UnseenValue]]:
        """For each of the fields, by position, at most `most` unseen values, the most frequent first; fields of which
        the sample has none are left out, as are booleans and numbers."""
        found: dict[int, list[UnseenValue]] = {}
        for index in fields:
            field = self.spec.fields[index]
            kind = sample.schema.types[index]
            if not isinstance(field, CategoryField) or kind == "boolean" or len(field.values) > LARGEST_VOCABULARY:
                continue
            if index not in self._known:
                self._known[index] = frozenset(field.values)
            values = FrequentValues(max(sample.rows, 1))
            values.add(sample.strings(index) if kind == "string" else sample.integers(index))
            unseen = [
                UnseenValue(value, rows / sample.rows)
                for value, rows in values.counted()
                if value not in self._known[index]
            ]
            if unseen:
                found[index] = unseen[:most]
        return found
