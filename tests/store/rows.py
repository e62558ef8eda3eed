"""Rows to capture: made from a seed, so that what comes back can be told from what went in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from trimtab._native import Schema, Slab
from trimtab.store.captures import CaptureWriter
from trimtab.store.ids import new_request_id

SCHEMA = Schema(
    ["temperature", "holiday", "distance", "carrier", "flight"], ["real", "boolean", "integer", "string", "string"], 1
)


@dataclass
class Rows:
    """One served batch: everything that `offer` takes."""

    slab: Slab
    request_ids: NDArray[np.uint8]
    rows: NDArray[np.int32]
    time_us: NDArray[np.int64]
    predictions: NDArray[np.float32]

    def offer(self, writer: CaptureWriter, version: int = 1, start: int = 0, stop: int = -1) -> None:
        writer.offer(self.slab, self.request_ids, self.rows, self.time_us, version, self.predictions, start, stop)

    def ids(self) -> list[bytes]:
        return [value.tobytes() for value in self.request_ids]


def columns(count: int, seed: int) -> dict[str, list[Any]]:
    """The rows' fields as Arrow gives them back; every fifth value is missing."""
    random = np.random.default_rng(seed)
    gaps = random.random((5, count)) < 0.2
    values: dict[str, list[Any]] = {
        "temperature": [float(np.float32(value)) for value in random.normal(size=count)],
        "holiday": [bool(value) for value in random.integers(0, 2, count)],
        "distance": [int(value) for value in random.integers(-(1 << 40), 1 << 40, count)],
        "carrier": [f"ü{value}" for value in random.integers(0, 9, count)],
        "flight": [f"UA{value}" for value in random.integers(1, 999, count)],
    }
    return {
        name: [None if gap else value for gap, value in zip(gaps[i], column, strict=True)]
        for i, (name, column) in enumerate(values.items())
    }


def make_rows(count: int, seed: int = 0, *, time_us: int = 0, width: int = 1) -> Rows:
    """`count` requests of one row each, at data times time_us, time_us + 1, ..."""
    slab = Slab(SCHEMA)
    slab.append_columns([_storage(SCHEMA.types[i], column) for i, column in enumerate(columns(count, seed).values())])
    ids = np.frombuffer(b"".join(new_request_id() for _ in range(count)), np.uint8).reshape(count, 16)
    random = np.random.default_rng(seed)
    return Rows(
        slab=slab,
        request_ids=ids,
        rows=np.zeros(count, np.int32),
        time_us=time_us + np.arange(count, dtype=np.int64),
        predictions=random.random((count, width)).astype(np.float32),
    )


def _storage(kind: str, column: list[Any]) -> Any:
    """A column as slabs store it."""
    if kind == "string":
        encoded = [(value or "").encode() for value in column]
        offsets = np.cumsum([0, *map(len, encoded)]).astype(np.int32)
        return offsets, np.frombuffer(b"".join(encoded), np.uint8)
    if kind == "integer":
        return np.array([-(1 << 63) if value is None else value for value in column], np.int64)
    return np.array([np.nan if value is None else value for value in column], np.float32)
