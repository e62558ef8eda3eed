"""Which versions are put to sleep: the decisions alone, and their effects on models that only pretend."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimtab.server.errors import NoRoom
from trimtab.server.idle import Idle, Use, due, next_due, room
from trimtab.server.memory import ModelMemory

USES = st.lists(
    st.builds(
        Use,
        model=st.sampled_from("ab"),
        number=st.integers(1, 4),
        bytes=st.integers(0, 50),
        used=st.floats(0, 100),
        kept=st.booleans(),
        idle_seconds=st.sampled_from([0.0, 0.5, 10.0]),
    ),
    max_size=12,
)


def use(number: int = 1, **changed: object) -> Use:
    return dataclasses.replace(Use("m", number, 10, 0.0, True, 0.0), **changed)  # type: ignore[arg-type]


def test_never_means_never() -> None:
    assert due([use(idle_seconds=0.0)], 1e9) == []
    assert next_due([use(idle_seconds=0.0)]) is None


def test_idle_from_the_second_on() -> None:
    one, other = use(1, used=10.0, idle_seconds=5.0), use(2, used=12.0, idle_seconds=5.0)
    assert due([one, other], 14.9) == []
    assert due([one, other], 15.0) == [one]
    assert next_due([one, other]) == 15.0


@given(USES, st.floats(0, 200))
def test_what_is_due_is_so_when_it_was_to_be_looked_at(uses: list[Use], now: float) -> None:
    when = next_due(uses)
    assert bool(due(uses, now)) <= (when is not None)
    if when is not None and now > when + 1e-6:
        assert due(uses, now)


@given(USES, st.integers(0, 300), st.floats(100, 200))
def test_room_is_made_in_order_and_never_in_vain(uses: list[Use], lacking: int, now: float) -> None:
    chosen = room(uses, lacking, now)
    may = [one for one in uses if one.kept or (one.idle_seconds and now - one.used >= 1.0)]
    if lacking > sum(one.bytes for one in may):
        assert chosen == []
        return
    assert sum(one.bytes for one in chosen) >= lacking
    assert sum(one.bytes for one in chosen[:-1]) < lacking or not chosen
    assert all(one.kept or one.idle_seconds for one in chosen)
    kept = [one.kept for one in chosen]
    assert kept == sorted(kept, reverse=True)
    for group in (True, False):
        times = [one.used for one in chosen if one.kept is group]
        assert times == sorted(times)


def test_live_versions_stay_awake_unless_their_model_may_sleep() -> None:
    assert room([use(kept=False)], 5, 1e9) == []
    mine = use(kept=False, idle_seconds=100.0, used=50.0)
    assert room([mine], 5, 50.9) == []  # it serves
    assert room([mine], 5, 51.0) == [mine]
    kept = use(2, used=60.0)
    assert room([mine, kept], 5, 61.0) == [kept]
    assert room([mine, kept], 15, 61.0) == [kept, mine]


class Fake:
    """A model whose versions have 40 bytes each."""

    def __init__(self, name: str, memory: ModelMemory, numbers: list[int], *, idle_seconds: float = 0.0) -> None:
        self.name = name
        self.memory = memory
        self.awake = dict.fromkeys(numbers, 0.0)
        self.busy: set[int] = set()
        self.idle_seconds = idle_seconds
        self.reasons: list[str] = []
        self.slept, self.loop = asyncio.Event(), asyncio.get_running_loop()
        for number in numbers:
            memory.reserve(name, number, 40)

    def uses(self) -> list[Use]:
        first = min(self.awake, default=0)
        return [Use(self.name, n, 40, used, n != first, self.idle_seconds) for n, used in self.awake.items()]

    def put_to_sleep(self, number: int, why: str) -> bool:
        if number in self.busy:
            return False
        del self.awake[number]
        self.memory.release(self.name, number)
        self.reasons.append(why)
        self.loop.call_soon_threadsafe(self.slept.set)
        return True


def test_a_new_version_takes_the_place_of_those_that_are_kept() -> None:
    async def main() -> None:
        memory = ModelMemory(100)
        idle = Idle(memory, clock=lambda: 10.0)
        model = Fake("m", memory, [1, 2])
        idle.add(model)
        idle.reserve("m", 3, 60)
        assert model.reasons == ["to make room for 'm' version 3"]
        assert list(model.awake) == [1]
        assert memory.of("m") == {1: 40, 3: 60}
        with pytest.raises(NoRoom, match="needs 61 bytes"):
            idle.reserve("m", 3, 61)  # the live version stays
        assert memory.of("m") == {1: 40, 3: 60}

    asyncio.run(main())


def test_what_is_busy_is_passed_over_and_then_refused() -> None:
    async def main() -> None:
        memory = ModelMemory(120)
        idle = Idle(memory, clock=lambda: 10.0)
        model = Fake("m", memory, [1, 2, 3])
        model.busy = {2}
        idle.add(model)
        with pytest.raises(NoRoom):
            idle.reserve("n", 1, 40 + 40)
        assert list(model.awake) == [1, 2]  # 3 did make room, not enough
        idle.reserve("n", 1, 40)
        idle.remove("m")
        with pytest.raises(NoRoom):
            idle.reserve("n", 2, 40)

    asyncio.run(main())


def test_room_that_came_to_be_meanwhile_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        memory = ModelMemory(100)
        idle = Idle(memory, clock=lambda: 10.0)
        memory.reserve("n", 1, 90)
        plain = memory.lacking

        def lacking(model: str, number: int, size: int) -> int:
            memory.release("n", 1)  # between being refused and looking
            return plain(model, number, size)

        monkeypatch.setattr(memory, "lacking", lacking)
        idle.reserve("m", 1, 60)
        assert memory.of("m") == {1: 60}

    asyncio.run(main())


def test_idle_versions_fall_asleep_and_the_task_waits_for_news() -> None:
    async def main() -> None:
        memory, now = ModelMemory(0), [0.0]
        idle = Idle(memory, clock=lambda: now[0])
        task = asyncio.create_task(idle.run())
        model = Fake("m", memory, [1], idle_seconds=1000.0)
        idle.add(model)
        await asyncio.sleep(0)
        assert model.awake
        now[0] = 1000.0
        idle.news()
        await asyncio.wait_for(model.slept.wait(), 30)
        assert model.reasons == ["idle for 1000 s"]
        model.slept.clear()
        model.awake = {1: 1000.0}
        now[0] = 2000.0
        idle.news()
        await asyncio.wait_for(model.slept.wait(), 30)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(main())
