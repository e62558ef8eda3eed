"""The back-off policy: only UNAVAILABLE, bounded, jittered, never beyond the deadline."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimtab.client.retry import Backoff


@pytest.mark.parametrize("code", ["INTERNAL", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "UNKNOWN", ""])
def test_other_failures_are_answers(code: str) -> None:
    assert Backoff().wait(0, code, None) is None


@given(st.integers(0, 20), st.integers(0, 10), st.none() | st.floats(0, 10), st.integers(0, 2**32))
def test_waits_are_bounded(attempt: int, retries: int, remaining: float | None, seed: int) -> None:
    backoff = Backoff(retries, rng=random.Random(seed))
    wait = backoff.wait(attempt, "UNAVAILABLE", remaining)
    limit = min(backoff.first * backoff.factor**attempt, backoff.longest)
    if wait is None:
        assert attempt >= retries or (remaining is not None and remaining <= limit)
    else:
        assert attempt < retries
        assert 0.1 * limit <= wait <= limit
        assert remaining is None or wait < remaining


def test_two_clients_do_not_wait_alike() -> None:
    one, other = (Backoff(rng=random.Random(seed)).wait(3, "UNAVAILABLE", None) for seed in (1, 2))
    assert one != other
