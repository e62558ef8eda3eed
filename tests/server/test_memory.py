"""The bound on what loaded versions take together."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimtab.server.errors import NoRoom
from trimtab.server.memory import ModelMemory


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 3), st.integers(0, 60)), max_size=30), st.integers(1, 99)
)
def test_never_more_than_the_limit(steps: list[tuple[str, int, int]], limit: int) -> None:
    memory, expected = ModelMemory(limit), dict[tuple[str, int], int]()
    for model, number, size in steps:
        rest = sum(taken for key, taken in expected.items() if key != (model, number))
        if rest + size > limit:
            with pytest.raises(NoRoom, match=f"model '{model}' version {number} needs {size} bytes"):
                memory.reserve(model, number, size)
        else:
            memory.reserve(model, number, size)
            expected[model, number] = size
        assert memory.used == sum(expected.values()) <= limit
        assert memory.of(model) == {n: taken for (m, n), taken in expected.items() if m == model}


def test_what_is_let_go_makes_room() -> None:
    memory = ModelMemory(100)
    memory.reserve("a", 1, 60)
    memory.reserve("a", 2, 40)
    with pytest.raises(NoRoom, match=r"100 of \[server\] max_model_bytes = 100 are taken by versions of 'a' \[1, 2\]"):
        memory.reserve("b", 1, 1)
    memory.count("a", {1: 60, 2: 40})
    memory.keep("a", {2: 40})
    memory.reserve("b", 1, 60)
    memory.release("b", 1)
    memory.release("b", 7)
    assert memory.used == 40


def test_no_limit() -> None:
    memory = ModelMemory(0)
    memory.reserve("a", 1, 1 << 60)
    assert memory.used == 1 << 60


def test_versions_that_load_at_once_do_not_exceed_it_together() -> None:
    memory, refused = ModelMemory(50), list[int]()
    barrier = threading.Barrier(8)

    def load(number: int) -> None:
        barrier.wait()
        try:
            memory.reserve("a", number, 10)
        except NoRoom:
            refused.append(number)

    threads = [threading.Thread(target=load, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert memory.used == 50
    assert len(refused) == 3


def test_what_loads_stays_reserved_whatever_else_the_model_keeps() -> None:
    memory = ModelMemory(100)
    memory.reserve("a", 1, 30)
    memory.keep("a", {1: 30})
    memory.reserve("a", 2, 40)  # loads
    memory.keep("a", {1: 30})
    assert memory.of("a") == {1: 30, 2: 40}
    memory.keep("a", {1: 30, 2: 0})  # wakes: it is known, and takes nothing yet
    assert memory.of("a") == {1: 30, 2: 40}
    with pytest.raises(NoRoom):
        memory.reserve("b", 1, 40)
    memory.keep("a", {1: 30, 2: 45})
    memory.keep("a", {1: 30, 2: 0})  # loaded, and asleep since
    assert memory.of("a") == {1: 30, 2: 0}
    memory.reserve("a", 3, 10)
    memory.release("a", 3)
    memory.keep("a", {1: 30})
    assert memory.of("a") == {1: 30}
    memory.reserve("a", 3, 10)
    memory.forget("a")
    memory.keep("a", {})
    assert memory.used == 0


def test_counting_the_others_anew_keeps_what_is_being_woken_reserved() -> None:
    """Which takes nothing yet."""
    memory = ModelMemory(100)
    memory.reserve("a", 1, 60)
    memory.count("a", {1: 60})
    memory.reserve("a", 2, 30)
    memory.count("a", {1: 60, 2: 0, 3: 5})
    assert memory.of("a") == {1: 60, 2: 30, 3: 5}
    memory.count("a", {1: 50, 2: 40, 3: 5})
    assert memory.of("a") == {1: 50, 2: 40, 3: 5}
    memory.count("a", {2: 0})  # asleep
    assert memory.used == 55
