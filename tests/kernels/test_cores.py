"""Work on all cores."""

from __future__ import annotations

import pytest
from trimtab.kernels.cores import on_all_cores


@pytest.mark.parametrize("count", [0, 1, 2, 3, 1000])
def test_every_number_once(count: int) -> None:
    seen = [0] * count

    def work(i: int) -> None:
        seen[i] += 1

    on_all_cores(work, count)
    assert seen == [1] * count


def test_what_is_raised_comes_out() -> None:
    def work(i: int) -> None:
        if i == 5:
            raise ValueError("five")

    with pytest.raises(ValueError, match="five"):
        on_all_cores(work, 20)
