"""When a failed call is tried again. Pure: the calls and the clock are the caller's.

Only UNAVAILABLE is: the request was not taken, or the server is going. Everything else is an answer. Waits grow
exponentially and are drawn at random below that ("full jitter", Brooker 2015), so that many clients do not come back
at once."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

__all__ = ["Backoff"]


@dataclass(frozen=True)
class Backoff:
    """The waits between attempts, in seconds."""

    retries: int = 4
    """Attempts after the first."""
    first: float = 0.05
    """Upper end of the first wait."""
    factor: float = 2.0
    """Growth of the upper end."""
    longest: float = 2.0
    """Largest upper end."""
    rng: random.Random = field(default_factory=random.Random, compare=False)

    def wait(self, attempt: int, code: str, remaining: float | None) -> float | None:
        """How long to wait after failed attempt number `attempt` (0 is the first), or None to give up.

        `remaining`: seconds left until the call's deadline, None for no deadline.
        """
        if code != "UNAVAILABLE" or attempt >= self.retries:
            return None
        # Not zero: a refused connection fails at once, and all attempts would be over before a restarting server
        # listens.
        wait = self.rng.uniform(0.1, 1.0) * min(self.first * self.factor**attempt, self.longest)
        return None if remaining is not None and wait >= remaining else wait
