"""What moving one request to a pool does to its speed, from requests that chance sent there.

Comparing pools by what was routed to them compares different requests at different loads. Those
of the holdout and of exploration were sent by a coin: their difference is the pools' doing, at the
loads that the pools had. Routing makes those loads: it fills the better pool until a further
request gains little there. So the difference is that of one request more or less; what speculation
is worth, with all loads as they would be without it, is for `turnout.tuning.advice` to say.
"""

from math import exp, log, sqrt
from typing import NamedTuple

from routing.fading import Moments, fresh
from routing.traffic import TrafficClass

HALF_LIFE_S = 6 * 3600.0
"""Chance sends one request in a hundred, so its evidence must last."""
FEWEST = 5.0
"""Requests on each pool from which a difference is stated."""
Z_95 = 1.96

_Key = tuple[str, TrafficClass]


class SpeedUp(NamedTuple):
    """TPOT on one pool over TPOT on another: above 1 the second is faster.

    Attributes:
        ratio: Of the geometric means.
        low: Lower end of its 95 % interval.
        high: Upper end.
        requests: Requests behind it, on the pool that has fewer.
    """

    ratio: float
    low: float
    high: float
    requests: float


class CausalBook:
    """TPOT by pool and class of requests that chance assigned."""

    def __init__(self) -> None:
        self.sums: dict[_Key, Moments] = {}

    def add(self, pool: str, traffic_class: TrafficClass, tpot_s: float, *, now: float) -> None:
        """Add a request that chance sent to `pool`; `tpot_s` > 0."""
        sums = self.sums.setdefault((pool, traffic_class), Moments(seen_at=now))
        sums.add(log(tpot_s), memory=fresh(sums.seen_at, now, HALF_LIFE_S), now=now)

    def speed_up(self, pool: str, than: str, traffic_class: TrafficClass) -> SpeedUp | None:
        """Return how much faster `pool` is than `than` for a class; None while unknown."""
        one, other = self.sums.get((pool, traffic_class)), self.sums.get((than, traffic_class))
        if one is None or other is None or min(one.count, other.count) < FEWEST:
            return None
        difference = other.mean - one.mean
        error = Z_95 * sqrt(one.variance / one.count + other.variance / other.count)
        return SpeedUp(
            ratio=exp(difference),
            low=exp(difference - error),
            high=exp(difference + error),
            requests=min(one.count, other.count),
        )

    def merge(self, other: "CausalBook") -> None:
        """Add what another worker has seen."""
        for key, sums in other.sums.items():
            self.sums.setdefault(key, Moments()).merge(sums, half_life_s=HALF_LIFE_S)

    def forget(self, pool: str) -> None:
        """Drop what was learnt about `pool`."""
        self.sums = {key: sums for key, sums in self.sums.items() if key[0] != pool}
