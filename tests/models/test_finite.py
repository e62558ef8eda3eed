"""Finite or not, against torch.isfinite."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trimtab.models.finite import all_finite

VALUES = st.lists(st.one_of(st.floats(width=16), st.sampled_from([float("nan"), float("inf"), float("-inf"), -0.0])))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@given(values=VALUES, at=st.integers(0, 5000))
def test_it_says_what_isfinite_says(dtype: torch.dtype, values: list[float], at: int) -> None:
    tensor = torch.tensor(values, dtype=dtype)
    assert all_finite(tensor) == bool(torch.isfinite(tensor).all())
    # One value among many, wherever it stands in the vectors that are compared.
    many = torch.zeros(5001, dtype=dtype)
    many[at] = values[0] if values else 0.0
    assert all_finite(many) == bool(torch.isfinite(many).all())
    assert all_finite(many.reshape(3, -1).T) == all_finite(many)


def test_integers_and_nothing_are_finite() -> None:
    assert all_finite(torch.tensor([1, 2]))
    assert all_finite(torch.tensor([True]))
    assert all_finite(torch.zeros(0, 3))


def test_complex_numbers_are_looked_at_in_full() -> None:
    assert all_finite(torch.tensor([1 + 2j]))
    assert not all_finite(torch.tensor([complex(1, float("nan"))]))
