"""live.json: one truth, changed as one step, never by somebody who saw an older one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from trimtab.store.errors import LiveDamaged, StaleEpoch
from trimtab.store.live import Live, LiveStore


def test_swapping(tmp_path: Path) -> None:
    store = LiveStore(tmp_path / "flights" / "live.json")
    assert store.read() is None
    first = store.swap(Live(live=1), expected_epoch=0, reason="initial")
    second = store.swap(Live(live=2, previous=1), expected_epoch=1, reason="promoted")
    assert (first.epoch, second.epoch) == (1, 2)
    assert LiveStore(store.path).read() == second
    assert second.changed_us >= first.changed_us > 0
    assert second.reason == "promoted"


def test_a_change_decided_on_an_older_state_is_refused(tmp_path: Path) -> None:
    store = LiveStore(tmp_path / "live.json")
    store.swap(Live(live=1), expected_epoch=0, reason="initial")
    with pytest.raises(StaleEpoch, match="is at epoch 1, the change was decided at 0"):
        store.swap(Live(live=2), expected_epoch=0, reason="late")
    assert store.swap(Live(live=3), expected_epoch=-1, reason="by hand").epoch == 2


def test_of_many_who_saw_the_same_epoch_one_wins(tmp_path: Path) -> None:
    store = LiveStore(tmp_path / "live.json")

    def attempt(number: int) -> bool:
        try:
            LiveStore(store.path).swap(Live(live=number), expected_epoch=0, reason="race")
        except StaleEpoch:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(1, 17))) == 1
    live = store.read()
    assert live is not None
    assert live.epoch == 1


@pytest.mark.parametrize("data", [b"", b"{", b'{"live": "one"}', b'{"live": 1, "cat": 2}', b"\x80\x04\x95", b"null"])
def test_damage_is_never_guessed_at(tmp_path: Path, data: bytes) -> None:
    store = LiveStore(tmp_path / "live.json")
    store.path.write_bytes(data)
    with pytest.raises(LiveDamaged, match=r"live.json cannot be read; put back a copy"):
        store.read()
    with pytest.raises(LiveDamaged):
        store.swap(Live(live=1), expected_epoch=-1, reason="x")
    assert store.path.read_bytes() == data
