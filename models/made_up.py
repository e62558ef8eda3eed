"""Rows that nobody sent, to try a version on: all that a column can be, the ordinary and the extreme."""

from __future__ import annotations

from typing import Any

import numpy as np
from trimtab._native import Schema, Slab

__all__ = ["made_up_rows", "synthetic_rows"]


def synthetic_rows(schema: Schema, rows: int = 61) -> Slab:
    """Zeros, ones, and random rows of ordinary size; always the same."""
    rng = np.random.default_rng(0)
    columns: list[Any] = []
    for kind in schema.types:
        if kind == "boolean":
            columns.append(np.concatenate([[0, 1], rng.integers(0, 2, rows - 2)]).astype(np.float32))
        elif kind == "real":
            columns.append(np.concatenate([[0, 1], rng.normal(0, 10, rows - 2)]).astype(np.float32))
        elif kind == "integer":
            columns.append(np.concatenate([[0, 1], rng.integers(-1000, 1000, rows - 2)]).astype(np.int64))
        else:
            texts = [b"", b"?", *(f"unseen {i}".encode() for i in range(rows - 2))]
            offsets = np.concatenate([[0], np.cumsum([len(text) for text in texts])]).astype(np.int32)
            columns.append((offsets, np.frombuffer(b"".join(texts), np.uint8)))
    slab = Slab(schema)
    slab.append_columns(columns)
    return slab


def made_up_rows(schema: Schema, rows: int) -> Slab:
    """So many rows: the synthetic ones, over and over."""
    slab, made = Slab(schema), synthetic_rows(schema)
    while slab.rows < rows:
        slab.extend(made, stop=min(made.rows, rows - slab.rows))
    return slab
