"""For all tests: timings decide none of them."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("trimtab", deadline=None)
settings.load_profile("trimtab")
