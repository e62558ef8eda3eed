"""How much of something that costs time may be done: so much a second. Pure: it is told the time."""

from __future__ import annotations

__all__ = ["Allowance"]


class Allowance:
    """Of which a second's worth may have been saved up, and that may be overdrawn; it is full at first."""

    def __init__(self, per_second: int) -> None:
        self._per_second = float(per_second)
        self._saved = self._per_second
        self._refilled = 0.0

    def left(self, now: float) -> float:
        """What may be taken, at a time of the monotonic clock, seconds."""
        self._saved = min(self._saved + (now - self._refilled) * self._per_second, self._per_second)
        self._refilled = now
        return self._saved

    def take(self, amount: int) -> None:
        """Takes it, whether there is so much or not."""
        self._saved -= amount
