"""For all tests: timings decide none of them; those for a GPU are skipped where there is none."""

from __future__ import annotations

import pytest
from hypothesis import settings

settings.register_profile("trimtab", deadline=None)
settings.load_profile("trimtab")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what is marked `gpu` where torch sees none."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs an NVIDIA GPU, and torch sees none")
