"""How often one client may ask: a bucket that fills with time."""

from dataclasses import dataclass
from math import inf


@dataclass(slots=True)
class RateLimit:
    """Requests per minute, a minute's worth at once at most.

    Attributes:
        per_minute: How many.
        left: Requests that may come now.
        seen_at: When that was so (s, monotonic).
    """

    per_minute: float
    left: float = inf
    seen_at: float = 0.0

    def take(self, now: float) -> float:
        """Take a request at `now` (s, monotonic).

        Returns:
            0 if it may go, else the seconds after which one may.
        """
        filled = self.left + max(0.0, now - self.seen_at) * self.per_minute / 60.0
        self.left, self.seen_at = min(filled, self.per_minute), max(now, self.seen_at)
        if self.left >= 1.0:
            self.left -= 1.0
            return 0.0
        return (1.0 - self.left) * 60.0 / self.per_minute
