"""Reading bodies: how much is held, and for how long."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from trimtab.server.errors import Disconnected, InvalidRequest, QueueFull, TooLarge
from trimtab.server.rest_body import Bodies, compress


def pieces(*chunks: bytes, then: str = "") -> Callable[[], Awaitable[Any]]:
    """A client that sends these, and then `then`: "" ends the body, "gone" disconnects, "hang" sends nothing."""
    left = list(chunks)

    async def receive() -> Any:
        if left:
            return {"type": "http.request", "body": left.pop(0), "more_body": bool(left) or then != ""}
        if then == "gone":
            return {"type": "http.disconnect"}
        return await asyncio.Event().wait()

    return receive


async def test_pieces_are_joined() -> None:
    with Bodies(100).hold() as reader:
        assert await reader.read(pieces(b"ab", b"", b"c"), {}) == b"abc"


async def test_what_is_held_is_bounded_over_all_bodies_and_given_back() -> None:
    bodies = Bodies(100, together=150)
    with bodies.hold() as first:
        await first.read(pieces(b"x" * 100), {})
        with pytest.raises(QueueFull), bodies.hold() as second:
            await second.read(pieces(b"x" * 30, b"x" * 30), {})
    with bodies.hold() as third:
        await third.read(pieces(b"x" * 100), {})


async def test_unpacked_bytes_count_as_held() -> None:
    bodies = Bodies(10_000, together=10_010)
    with pytest.raises(QueueFull), bodies.hold() as reader:
        await reader.read(pieces(gzip.compress(b"x" * 10_000)), {"content-encoding": "gzip"})


async def test_a_size_is_believed_only_to_refuse_it() -> None:
    with Bodies(10).hold() as reader:
        with pytest.raises(TooLarge):
            await reader.read(pieces(b""), {"content-length": "11"})
        with pytest.raises(TooLarge):
            await reader.read(pieces(b"x" * 11), {"content-length": "1"})


async def test_a_client_that_stops_sending_is_not_waited_for() -> None:
    with Bodies(100, patience=0.01).hold() as reader, pytest.raises(InvalidRequest, match="came 2 bytes"):
        await reader.read(pieces(b"ab", then="hang"), {})


async def test_a_client_that_goes_away() -> None:
    with Bodies(100).hold() as reader, pytest.raises(Disconnected):
        await reader.read(pieces(b"ab", then="gone"), {})


async def test_small_answers_are_not_compressed() -> None:
    assert await compress(b"x" * 100, "gzip") == (b"x" * 100, "")
    packed, encoding = await compress(b"x" * 1000, "identity, deflate, gzip")
    assert encoding == "deflate"
    assert len(packed) < 100
    assert (await compress(b"x" * 100_000, "gzip"))[1] == "gzip"
    assert (await compress(b"x" * 1000, ""))[1] == ""
