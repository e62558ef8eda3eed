"""Unseen values in a sample of rows: which, of which fields, how often."""

from __future__ import annotations

import numpy as np
from trimtab._native import Schema, Slab
from trimtab.kernels import unseen
from trimtab.kernels.sketch_spec import CategoryField, RealField, SketchSpec
from trimtab.kernels.unseen import UnseenValue, UnseenValues

SPEC = SketchSpec(
    (
        CategoryField("carrier", ("AA", "UA"), 2),
        CategoryField("gate", (1, 2), 1),
        RealField("x", (0.5,)),
        CategoryField("flag", (0, 1), 2),
    )
)


def sample_of(carriers: list[str], gates: list[int]) -> Slab:
    slab = Slab(Schema(["carrier", "gate", "x", "flag"], ["string", "integer", "real", "boolean"]))
    parts = [text.encode() for text in carriers]
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int32)
    zeros = np.zeros(len(gates), np.float32)
    slab.append_columns(
        [(offsets, np.frombuffer(b"".join(parts), np.uint8)), np.asarray(gates, np.int64), zeros, zeros]
    )
    return slab


def test_the_most_frequent_come_first_and_known_and_missing_ones_not_at_all() -> None:
    slab = sample_of(["ZZ", "AA", "", "日", "ZZ", "x", "y", "z"], [7, 1, -(1 << 63), 7, 2, -1, 7, 1])
    found = UnseenValues(SPEC).of(slab, [0, 1, 2, 3], most=2)
    assert found == {
        0: [UnseenValue("ZZ", 0.25), UnseenValue("x", 0.125)],
        1: [UnseenValue(7, 0.375), UnseenValue(-1, 0.125)],
    }


def test_only_the_fields_that_are_asked_for() -> None:
    slab = sample_of(["ZZ"], [7])
    values = UnseenValues(SPEC)
    assert list(values.of(slab, [1])) == [1]
    assert values.of(slab, []) == {}


def test_nothing_unseen_and_no_rows() -> None:
    assert UnseenValues(SPEC).of(sample_of(["AA", ""], [1, 2]), [0, 1]) == {}
    assert UnseenValues(SPEC).of(sample_of([], []), [0, 1]) == {}


def test_large_vocabularies_are_passed_over() -> None:
    known = tuple(range(unseen.LARGEST_VOCABULARY + 1))
    spec = SketchSpec((SPEC.fields[0], CategoryField("gate", known, 1), *SPEC.fields[2:]))
    assert UnseenValues(spec).of(sample_of(["AA"], [-5]), [0, 1]) == {}
