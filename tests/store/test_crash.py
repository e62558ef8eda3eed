"""Writers killed at any moment (kill -9, real processes): what was acknowledged is there, and nothing twice."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from trimtab.store.captures import CaptureWriter
from trimtab.store.labels import LabelReader, LabelStore
from trimtab.store.live import LiveStore
from trimtab.store.segment import read_segment, sealed_segments
from trimtab.store.settings import CaptureSettings
from trimtab.store.versions import VersionStore

from .rows import SCHEMA

WRITER = Path(__file__).with_name("crash_writer.py")
QUIET = CaptureSettings(flush_seconds=3600.0, seal_seconds=3600.0)


def run_and_kill(kind: str, folder: Path, lines: int) -> list[list[str]]:
    """Starts a writer, kills it after so many acknowledgements, and gives all acknowledgements that it wrote."""
    command = [sys.executable, str(WRITER), kind, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        seen = [process.stdout.readline() for _ in range(lines)]
        process.kill()
        rest, errors = process.stdout.read(), process.stderr.read()
    assert process.returncode == -signal.SIGKILL, errors
    # A line that the kill cut in two acknowledged nothing.
    return [line.split() for line in [*seen, *rest.splitlines(keepends=True)] if line.endswith("\n")]


def test_flushed_and_sealed_rows_survive(tmp_path: Path) -> None:
    folder = tmp_path / "captures"
    chance = random.Random(1)
    acknowledged: list[str] = []
    for _ in range(6):
        acknowledged += [line[1] for line in run_and_kill("captures", folder, chance.randrange(1, 60))]
        damages: list[str] = []
        CaptureWriter(folder, SCHEMA, 1, QUIET, on_damage=damages.append).close()
        tables = [read_segment(folder, info) for info in sealed_segments(folder)]
        stored = [value.hex() for table in tables for value in table["_request_id"].to_pylist()]
        assert len(stored) == len(set(stored))
        assert set(acknowledged) <= set(stored)
        # At most the frame that was being written is lost, and then it is said.
        assert all("torn" in damage for damage in damages)
        assert [path.name for path in folder.glob("*.open")] == []


def test_acknowledged_labels_survive(tmp_path: Path) -> None:
    path = tmp_path / "labels.sqlite"
    chance = random.Random(2)
    acknowledged: list[str] = []
    for _ in range(6):
        acknowledged += [line[1] for line in run_and_kill("labels", tmp_path, chance.randrange(1, 100))]
        reader = LabelReader(path)
        stored = {entry.request_id.hex() for entry in reader.since(0, 10_000_000) if entry.request_id is not None}
        reader.close()
        assert set(acknowledged) <= stored
    store = LabelStore(path)
    assert store.count() == len(stored)
    store.close()


def test_versions_and_the_live_pointer_survive(tmp_path: Path) -> None:
    chance = random.Random(3)
    for _ in range(6):
        lines = run_and_kill("versions", tmp_path, chance.randrange(1, 40))
        published = [int(line[1]) for line in lines if line[0] == "published"]
        swapped = [int(line[1]) for line in lines if line[0] == "live"]
        decided = [int(line[1]) for line in lines if line[0] == "decided"]
        store = VersionStore(tmp_path / "versions")
        assert set(published) <= set(store.numbers())
        for number in store.numbers():
            store.verify(number)
        live = LiveStore(tmp_path / "live.json").read()
        assert live is not None
        assert live.live >= max(swapped, default=1)
        assert live.live in store.numbers()
        assert set(decided) <= {line.version for line in store.decisions()}
        # A number that was taken is not taken again by somebody else.
        assert store.allocate("after the crash") not in {*published, *store.numbers()}
        store.abandon(store.allocate("after the crash"), "test")


@pytest.mark.parametrize("bad", ["zeroed", "flipped", "torn"])
def test_a_killed_writers_bad_tail_costs_its_frame_and_is_reported(tmp_path: Path, bad: str) -> None:
    folder = tmp_path / "captures"
    acknowledged = [line[1] for line in run_and_kill("frames", folder, 40)]
    (path,) = folder.glob("*.open")
    data = bytearray(path.read_bytes())
    if bad == "zeroed":
        data[-2000:] = bytes(2000)
    elif bad == "flipped":
        data[-1000] ^= 0x10
    else:
        del data[-1000:]
    path.write_bytes(data)
    damages: list[str] = []
    CaptureWriter(folder, SCHEMA, 1, QUIET, on_damage=damages.append).close()
    stored = [
        value.hex()
        for info in sealed_segments(folder)
        for value in read_segment(folder, info)["_request_id"].to_pylist()
    ]
    assert len(damages) == 1
    assert "bytes lost" in damages[0]
    # What is kept is all that came before the damage, in order; frames hold ten rows.
    assert stored == acknowledged[: len(stored)]
    assert len(stored) >= len(acknowledged) - 30
