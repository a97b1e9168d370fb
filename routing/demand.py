"""What is asked for: how often each class comes, and how long its prompts are."""

from math import exp2, log
from typing import NamedTuple

from routing.fading import Moments, fresh
from routing.traffic import TrafficClass

HALF_LIFE_S = 1800.0


class Demand(NamedTuple):
    """What is asked for of one class.

    Attributes:
        rate_per_s: Requests per second.
        prompt_tokens: Mean length of a prompt.
    """

    rate_per_s: float
    prompt_tokens: float


class DemandBook:
    """Finished requests by class, as of the last hour or so.

    Attributes:
        sums: Prompt lengths in tokens, by class.
        began_at: When the first was seen (s, monotonic); None before.
    """

    def __init__(self) -> None:
        self.sums: dict[TrafficClass, Moments] = {}
        self.began_at: float | None = None

    def add(self, traffic_class: TrafficClass, prompt_tokens: int, *, now: float) -> None:
        """Add a finished request."""
        if self.began_at is None:
            self.began_at = now
        sums = self.sums.setdefault(traffic_class, Moments(seen_at=now))
        sums.add(prompt_tokens, memory=fresh(sums.seen_at, now, HALF_LIFE_S), now=now)

    def of(self, model: str, *, now: float) -> dict[TrafficClass, Demand]:
        """Return what is asked for of `model` at `now` (s, monotonic)."""
        if self.began_at is None:
            return {}
        # A request fades; so do the seconds in which it came.
        faded = exp2(-max(1.0, now - self.began_at) / HALF_LIFE_S)
        seconds = (1.0 - faded) * HALF_LIFE_S / log(2.0)
        return {
            traffic_class: Demand(
                sums.count * fresh(sums.seen_at, now, HALF_LIFE_S) / seconds, sums.mean
            )
            for traffic_class, sums in self.sums.items()
            if traffic_class.model == model and sums.count
        }

    def merge(self, other: "DemandBook") -> None:
        """Add what another worker has seen."""
        for traffic_class, sums in other.sums.items():
            mine = self.sums.setdefault(traffic_class, Moments())
            mine.merge(sums, half_life_s=HALF_LIFE_S)
        known = [began for began in (self.began_at, other.began_at) if began is not None]
        self.began_at = min(known, default=None)
