"""Request ids: RFC 9562 version 7, strictly growing, and nothing else accepted."""

from __future__ import annotations

import threading
import time
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimtab.store import ids
from trimtab.store.errors import InvalidId


def test_an_id_is_a_uuid_of_version_7_and_of_now() -> None:
    before = time.time_ns() // 1000
    made = ids.new_request_id()
    after = time.time_ns() // 1000
    parsed = uuid.UUID(bytes=made)
    assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
    # Other ids of this process may have been made ahead of the clock, by one tick (a quarter of a microsecond) each.
    assert before - 1 <= ids.id_time_us(made) <= after + 1_000_000


def test_ids_grow_within_and_across_threads() -> None:
    made: list[list[bytes]] = [[] for _ in range(4)]
    threads = [
        threading.Thread(target=lambda own=own: own.extend(ids.new_request_id() for _ in range(5000))) for own in made
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(own == sorted(own) for own in made)
    assert len({value for own in made for value in own}) == 20_000


def test_ids_grow_when_the_clock_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    first = ids.new_request_id()
    monkeypatch.setattr("trimtab.store.ids.time.time_ns", lambda: 1_000_000_000)
    assert first < ids.new_request_id() < ids.new_request_id()


@given(st.integers(0, (1 << 48) - 1), st.integers(0, 4095))
def test_the_time_in_an_id(milliseconds: int, fraction: int) -> None:
    value = milliseconds << 80 | 7 << 76 | fraction << 64 | 2 << 62
    assert ids.id_time_us(value.to_bytes(16, "big")) == milliseconds * 1000 + fraction * 1000 // 4096


def test_text_and_back() -> None:
    made = ids.new_request_id()
    assert ids.parse_id(ids.format_id(made)) == made == ids.parse_id(ids.format_id(made).upper())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        str(uuid.UUID(int=7)),
        "{0198f5a2-7b3c-7def-8123-456789abcdef}",
        "0198f5a27b3c7def8123456789abcdef",
        "0198f5a2-7b3c-7def-8123-456789abcdeg",
        "0198f5a2-7b3c-7def-8123-456789abcdef\n",
        "0198f5a2-7b3c-4def-8123-456789abcdef",
        "0198f5a2-7b3c-7def-c123-456789abcdef",
        "0198f5a2-7b3c-7def-8123-456789abcde٣",
        "y" * 10_000,
    ],
)
def test_no_ids(text: str) -> None:
    with pytest.raises(InvalidId, match="expected a UUID of version 7") as caught:
        ids.parse_id(text)
    assert len(str(caught.value)) < 200
