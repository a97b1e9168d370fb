"""Acceptance per traffic class and pool, as sums that fade.

`tau` is tokens per engine step, all steps counted: (N - 1) / (N - 1 - A) for a request with N
completion tokens (the first comes from prefill) of which A are accepted drafts. The acceptance
rate is accepted / drafted, which is what vLLM's counters and the rules of practice mean by it.
"""

from dataclasses import dataclass
from math import exp2

from routing.traffic import TrafficClass

MEMORY = 0.98
"""What a request leaves of the sums before it: a memory of about 50 requests of the class."""
HALF_LIFE_S = 1800.0
"""Evidence fades by the clock too, so that a class judged once is measured again."""


@dataclass(slots=True)
class AcceptanceSums:
    """Decayed sums of one class on one pool; additive over workers."""

    tokens: float = 0.0  # decoded tokens, N - 1 per request
    accepted: float = 0.0
    drafted: float = 0.0
    seen_at: float = 0.0

    def add(self, *, tokens: int, accepted: int, drafted: int, now: float) -> None:
        """Fold one finished request in at `now` (s, monotonic)."""
        keep = MEMORY * self._faded(now)
        self.tokens = keep * self.tokens + tokens
        self.accepted = keep * self.accepted + accepted
        self.drafted = keep * self.drafted + drafted
        self.seen_at = now

    def evidence(self, now: float) -> float:
        """Return the drafted tokens that still count at `now`."""
        return self.drafted * self._faded(now)

    def _faded(self, now: float) -> float:
        return exp2(-max(0.0, now - self.seen_at) / HALF_LIFE_S)

    @property
    def rate(self) -> float:
        """Accepted / drafted, in [0, 1]; 0 when nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def tau(self) -> float:
        """Tokens per engine step; 1 when nothing was decoded."""
        steps = self.tokens - self.accepted
        return self.tokens / steps if steps > 0 else 1.0


class AcceptanceBook:
    """The sums of every (pool, class) seen."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, TrafficClass], AcceptanceSums] = {}

    def add(
        self,
        pool: str,
        traffic_class: TrafficClass,
        *,
        tokens: int,
        accepted: int,
        drafted: int,
        now: float,
    ) -> None:
        """Fold one finished request of `traffic_class` on `pool` in."""
        sums = self._sums.setdefault((pool, traffic_class), AcceptanceSums(seen_at=now))
        sums.add(tokens=tokens, accepted=accepted, drafted=drafted, now=now)

    def of(self, pool: str, traffic_class: TrafficClass) -> AcceptanceSums | None:
        """Return the sums, or None when nothing was seen."""
        return self._sums.get((pool, traffic_class))

    def forget(self, pool: str) -> None:
        """Drop what was learnt about `pool`: its draft may be another one."""
        for key in [key for key in self._sums if key[0] == pool]:
            del self._sums[key]
