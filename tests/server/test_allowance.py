"""So much a second, whatever the calls."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from trimtab.server.allowance import Allowance


def test_full_at_first_and_no_fuller_later() -> None:
    allowance = Allowance(100)
    assert allowance.left(1000.0) == 100
    allowance.take(30)
    assert allowance.left(1000.0) == 70
    assert allowance.left(1000.125) == 82.5
    assert allowance.left(5000.0) == 100


def test_overdrawn_it_recovers() -> None:
    allowance = Allowance(100)
    allowance.left(0.0)
    allowance.take(350)
    assert allowance.left(0.0) == -250
    assert allowance.left(2.0) == -50
    assert allowance.left(3.0) == 50


@given(st.integers(1, 1000), st.lists(st.tuples(st.floats(0, 3), st.integers(0, 500)), max_size=50))
def test_never_more_than_a_second_ahead(rate: int, asked: list[tuple[float, int]]) -> None:
    allowance, now, taken = Allowance(rate), 0.0, 0
    for wait, amount in asked:
        now += wait
        if amount <= allowance.left(now):
            allowance.take(amount)
            taken += amount
        assert taken <= rate * (now + 1.0) + 1e-6
