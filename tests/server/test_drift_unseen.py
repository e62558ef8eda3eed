"""A drift window whose rows hold values that training did not have says which, once."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from trimtab._native import Schema, Slab
from trimtab.kernels.cpu import CpuExecutor
from trimtab.kernels.program import ColumnProgram, Field
from trimtab.kernels.sketch import Sketch
from trimtab.kernels.sketch_spec import CategoryField, SketchSpec
from trimtab.server.drift import DriftWatch
from trimtab.server.keeping import ClosedWindow, Keeper
from trimtab.store.settings import DriftSettings

SPEC = SketchSpec((CategoryField("carrier", ("AA", "UA"), 2),))
PROGRAM = ColumnProgram((Field("carrier", "string"),), (), SPEC)


class Events:
    def __init__(self) -> None:
        self.told: list[tuple[str, dict[str, float]]] = []

    def publish(self, _kind: str, _model: str, message: str, *, version: int = 0, numbers: Any = None) -> None:
        assert version == 3
        self.told.append((message, numbers))


def rows_of(texts: list[str]) -> Slab:
    slab = Slab(Schema(["carrier"], ["string"]))
    data = "".join(texts).encode()
    offsets = np.concatenate([[0], np.cumsum([len(text.encode()) for text in texts])]).astype(np.int32)
    slab.append_columns([(offsets, np.frombuffer(data, np.uint8))])
    return slab


def version_of() -> Any:
    reference = Sketch(SPEC)
    CpuExecutor(PROGRAM).run(rows_of(["AA", "UA"] * 50), reference)
    return SimpleNamespace(program=PROGRAM, number=3, reference=reference, manifest=SimpleNamespace(files={}))


def windows_of(version: Any, batches: list[list[str]], window_rows: int) -> list[ClosedWindow]:
    """As the compute thread closes them."""
    closed: list[ClosedWindow] = []
    keeper = Keeper(Schema(["carrier"], ["string"]), window_rows, None, closed.append)
    for i, texts in enumerate(batches):
        slab = rows_of(texts)
        sketch = keeper.sketch(version, version, slab.rows)
        assert sketch is not None
        CpuExecutor(PROGRAM).run(slab, sketch)
        ids, counts = np.zeros((1, 16), np.uint8), np.asarray([slab.rows], np.int32)
        predictions = np.zeros((slab.rows, 1), np.float32)
        keeper.keep(slab, ids, counts, np.asarray([i], np.int64), version, predictions, sketch)
    return closed


def test_a_sample_comes_from_all_over_the_window() -> None:
    closed = windows_of(version_of(), [[f"v{i}"] * 40 for i in range(300)], 6000)
    assert [window.sketch.rows for window in closed] == [6000, 6000]
    for window, first in zip(closed, (0, 150), strict=True):
        assert window.sample is not None
        assert window.sample.rows <= 1024
        offsets, data = window.sample.strings(0)
        text = data.tobytes()
        held = {text[a:b].decode() for a, b in pairwise(offsets)}
        assert {f"v{first}", f"v{first + 147}"} <= held
        assert len(held) >= 40


def test_one_long_window_takes_a_bounded_sample() -> None:
    keeper_windows = windows_of(version_of(), [["AA"] * 3000 for _ in range(40)], 120_000)
    assert keeper_windows[0].sample is not None
    assert 0 < keeper_windows[0].sample.rows <= 1024


async def test_unseen_values_are_told_when_they_change(tmp_path: Path) -> None:
    version = version_of()
    usual = ["AA", "UA"] * 20
    batches = [
        usual,
        [*usual[:30], *["ZZ"] * 8, "QQ", "é'"],
        [*usual[:30], *["ZZ"] * 10],
        [*usual[:30], *["QQ"] * 10],
        usual,
        [*usual[:30], *["QQ"] * 10],
    ]
    events: Any = Events()
    watch = DriftWatch("m", tmp_path / "drift.jsonl", DriftSettings(persistence=1000), events, lambda report: None)
    try:
        for window in windows_of(version, batches, 40):
            watch.put(window)
        await watch.settled()
        assert watch.failures == 0
    finally:
        watch.close()
    messages = [message for message, _ in events.told]
    assert len(messages) == 3
    assert "carrier 25.0%, most often 'ZZ'" in messages[0]
    assert "'QQ'" in messages[1]
    assert events.told[0][1] == {"carrier": 0.25}
