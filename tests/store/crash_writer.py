"""What test_crash.py kills: `crash_writer.py KIND FOLDER` writes for ever and prints what is acknowledged."""

from __future__ import annotations

import importlib.util
import itertools
import random
import sys
from pathlib import Path
from typing import Any

from trimtab.store.captures import CaptureWriter
from trimtab.store.ids import new_request_id
from trimtab.store.labels import LabelRow, LabelStore
from trimtab.store.live import Live, LiveStore
from trimtab.store.settings import CaptureSettings
from trimtab.store.versions import Decision, Manifest, VersionStore


def rows_module() -> Any:
    """tests/store/rows.py: the tests are no package that a script could import from."""
    spec = importlib.util.spec_from_file_location("rows", Path(__file__).with_name("rows.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["rows"] = module
    spec.loader.exec_module(module)
    return module


def say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def captures(folder: Path, *, sealing: bool = True) -> None:
    rows_of = rows_module()
    writer = CaptureWriter(
        folder, rows_of.SCHEMA, 1, CaptureSettings(flush_seconds=3600.0, seal_seconds=3600.0), lockstep=True
    )
    chance = random.Random()
    while True:
        rows = rows_of.make_rows(10)
        rows.offer(writer)
        if sealing and chance.random() < 0.3:
            writer.seal()
        else:
            writer.flush()
        say(*(f"rows {value.hex()}" for value in rows.ids()))


def labels(folder: Path) -> None:
    store = LabelStore(folder / "labels.sqlite")
    while True:
        batches = [[LabelRow(new_request_id(), 0, None, "", 1.0, 1.0, 5, "") for _ in range(20)] for _ in range(3)]
        for batch, future in [(batch, store.submit(batch)) for batch in batches]:
            future.result()
            say(*(f"label {label.request_id.hex()}" for label in batch if label.request_id is not None))


def versions(folder: Path) -> None:
    store, live = VersionStore(folder / "versions"), LiveStore(folder / "live.json")
    for i in itertools.count():
        number = store.allocate(f"{random.random()} {i}")
        store.publish(number, {"weights.safetensors": b"w" * 5000, "columns.json": b"{}"}, Manifest(version=number))
        say(f"published {number}")
        live.swap(Live(live=number), expected_epoch=-1, reason="test")
        say(f"live {number}")
        store.decide(Decision(version=number, verdict="promoted", reason="test"))
        say(f"decided {number}")


if __name__ == "__main__":
    kind, folder = sys.argv[1], Path(sys.argv[2])
    if kind == "captures":
        captures(folder)
    elif kind == "frames":
        captures(folder, sealing=False)
    elif kind == "labels":
        labels(folder)
    else:
        versions(folder)
