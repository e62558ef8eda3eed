"""What the trainer remembers between retrainings: whole after any crash, and one line where it is damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from trimtab.store.errors import StoreError
from trimtab.trainer.lineage import EvidenceRows, TrainerState, remove_files


def evidence(rows: int, seed: int = 0) -> EvidenceRows:
    generator = np.random.default_rng(seed)
    return EvidenceRows(
        generator.random(rows),
        generator.random(rows),
        np.arange(rows, dtype=np.int64) * 1_000_000,
        generator.random(rows).astype(np.float32),
        np.arange(rows, dtype=np.int64) + 17,
    )


def same(one: EvidenceRows, other: EvidenceRows) -> bool:
    return all(np.array_equal(values, other.arrays()[name]) for name, values in one.arrays().items())


def test_new_folder_has_the_first_state(tmp_path: Path) -> None:
    assert TrainerState.load(tmp_path / "nowhere") == TrainerState()


def test_state_comes_back_as_saved(tmp_path: Path) -> None:
    state = TrainerState().with_(marks=7, challenger="w.challenger.safetensors", alarms=("x",), expected_loss=0.5)
    state.save(tmp_path / "trainer")
    assert TrainerState.load(tmp_path / "trainer") == state
    assert TrainerState().marks == 0


def test_state_of_a_crash_while_saving_is_the_old_one(tmp_path: Path) -> None:
    TrainerState(marks=1).save(tmp_path)
    for leftover in (".state.json.tmp", "state.json.part"):
        (tmp_path / leftover).write_bytes(b'{"marks": ')
    assert TrainerState.load(tmp_path).marks == 1


@pytest.mark.parametrize("data", [b"", b"{", b'{"marks": "many"}', b'{"unheard": 1}', b"\x80\x04K\x01."])
def test_damaged_state_is_one_line_that_says_what_to_do(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "state.json").write_bytes(data)
    with pytest.raises(StoreError, match=r"state\.json cannot be read; delete it") as caught:
        TrainerState.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rows", [0, 1, 100])
def test_evidence_comes_back_bit_for_bit(tmp_path: Path, rows: int) -> None:
    (tmp_path / "e.safetensors").write_bytes(evidence(rows).to_bytes())
    again = EvidenceRows.load(tmp_path / "e.safetensors")
    assert len(again) == rows
    assert same(again, evidence(rows))


def test_evidence_is_joined_in_order() -> None:
    joined = evidence(3, 1).joined(evidence(2, 2))
    assert len(joined) == 5
    assert np.array_equal(joined.challenger[:3], evidence(3, 1).challenger)
    assert np.array_equal(joined.live[3:], evidence(2, 2).live)
    assert same(EvidenceRows.empty().joined(evidence(4)), evidence(4))


def test_evidence_that_is_torn_or_something_else_is_a_store_error(tmp_path: Path) -> None:
    whole = evidence(50).to_bytes()
    for data in (b"", whole[:100], whole[:-1], b"\x80\x04K\x01."):
        with pytest.raises(StoreError):
            EvidenceRows.from_bytes(data)
    with pytest.raises(StoreError):
        EvidenceRows.load(tmp_path / "missing.safetensors")


def test_only_lineage_files_that_no_state_names_are_removed(tmp_path: Path) -> None:
    for name in ("kept.safetensors", "old.safetensors", "state.json", "matured.jsonl", "history.arrow"):
        (tmp_path / name).touch()
    remove_files(tmp_path, {"kept.safetensors", ""})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "history.arrow",
        "kept.safetensors",
        "matured.jsonl",
        "state.json",
    ]
