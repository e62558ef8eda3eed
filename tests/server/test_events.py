"""The event bus: order, filters, slow watchers."""

from __future__ import annotations

import asyncio

import pytest
from trimtab.server import events as module
from trimtab.server.errors import Draining, QueueFull
from trimtab.server.events import EventBus


async def test_watchers_see_what_follows_in_order_from_any_thread() -> None:
    bus = EventBus()
    watch, other = bus.watch("a"), bus.watch()
    first, all_first = asyncio.ensure_future(anext(watch)), asyncio.ensure_future(anext(other))
    await asyncio.sleep(0)
    await asyncio.to_thread(bus.publish, "staged", "b", "not for the first")
    await asyncio.to_thread(bus.publish, "staged", "a", "one", version=3, numbers={"x": 1.0})
    bus.publish("trainer", "", "for all")
    event = await first
    assert (event.message, event.version, dict(event.numbers)) == ("one", 3, {"x": 1.0})
    assert (await anext(watch)).message == "for all"
    assert (await all_first).message == "not for the first"
    await watch.aclose()
    await other.aclose()


async def test_watcher_that_falls_behind_is_cut_off_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BUFFER", 3)
    bus = EventBus()
    watch = bus.watch()
    first = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0)
    for number in range(6):
        bus.publish("drift", "a", str(number))
    assert (await first).message == "0"
    seen = [(await anext(watch)).message for _ in range(2)]
    assert seen == ["1", "2"]
    with pytest.raises(QueueFull, match="more than 3 events behind"):
        await anext(watch)


async def test_closing_ends_watches_and_refuses_new_ones() -> None:
    bus = EventBus()
    watch = bus.watch()
    first = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0)
    bus.close()
    with pytest.raises(Draining):
        await first
    with pytest.raises(Draining):
        await anext(bus.watch())
