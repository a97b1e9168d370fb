"""Load marks: switches with two thresholds and a dwell, and the request rate they may watch."""

from dataclasses import dataclass, replace
from math import exp
from typing import Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """The high and low mark of a load signal.

    Attributes:
        high: Above this the mark is passed.
        low: Below this it is passed no longer.
        dwell_s: Seconds a state is held before it may change.

    Raises:
        ValueError: If `low` is not below `high`, which would let the switch flap.
    """

    high: float
    low: float
    dwell_s: float

    def __post_init__(self) -> None:
        if not self.low < self.high:
            msg = f"low mark {self.low:g} must be below high mark {self.high:g}"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """Whether a mark is passed, and the moment (seconds, monotonic) that last changed."""

    on: bool = False
    since: float = float("-inf")

    def step(self, value: float, *, now: float, band: Band) -> Self:
        """Return the switch after seeing `value` at `now` (s, monotonic)."""
        if now - self.since < band.dwell_s:
            return self
        if not self.on and value > band.high:
            return replace(self, on=True, since=now)
        if self.on and value < band.low:
            return replace(self, on=False, since=now)
        return self


class ArrivalRate:
    """Requests per second as an exponentially weighted average.

    Args:
        tau_s: Time constant, seconds. 10 s follows a burst within seconds and rides out single
            arrivals; 60 s would lag a burst by most of its length.
    """

    __slots__ = ("_rate", "_seen_at", "_tau_s")

    def __init__(self, *, tau_s: float = 10.0) -> None:
        self._tau_s = tau_s
        self._rate = 0.0
        self._seen_at = 0.0

    def arrive(self, now: float) -> None:
        """Count one request at `now` (s, monotonic)."""
        self._rate = self.at(now) + 1.0 / self._tau_s
        self._seen_at = now

    def at(self, now: float) -> float:
        """Return the rate at `now`, requests per second."""
        return self._rate * exp(-max(0.0, now - self._seen_at) / self._tau_s)
