"""Sums that fade: what every estimate here is made of, so that workers can add theirs up."""

from dataclasses import dataclass
from math import exp2
from typing import ClassVar, Self


def fresh(then: float, now: float, half_life_s: float) -> float:
    """Return the share of what was seen at `then` that still counts at `now`, in (0, 1]."""
    return exp2(-max(0.0, now - then) / half_life_s)


class Fading:
    """Sums in the fields `_sums`, and the moment at which one was last added to.

    Attributes:
        seen_at: That moment (s, monotonic).
    """

    _sums: ClassVar[tuple[str, ...]]
    seen_at: float

    @property
    def stamp(self) -> tuple[float, float]:
        """What is another pair whenever something was added."""
        return getattr(self, self._sums[0]), self.seen_at

    def scale(self, share: float) -> None:
        """Keep `share` of the evidence."""
        for name in self._sums:
            setattr(self, name, share * getattr(self, name))

    def merge(self, other: Self, *, half_life_s: float) -> None:
        """Add another worker's; the older of both fades to the age of the newer."""
        now = max(self.seen_at, other.seen_at)
        mine = fresh(self.seen_at, now, half_life_s)
        theirs = fresh(other.seen_at, now, half_life_s)
        for name in self._sums:
            setattr(self, name, mine * getattr(self, name) + theirs * getattr(other, name))
        self.seen_at = now


@dataclass(slots=True)
class Moments(Fading):
    """Count, sum and sum of squares of values.

    Attributes:
        count: Values seen, faded.
        total: Their sum.
        squares: The sum of their squares.
        seen_at: When one was last added (s, monotonic).
    """

    count: float = 0.0
    total: float = 0.0
    squares: float = 0.0
    seen_at: float = 0.0

    _sums: ClassVar = ("count", "total", "squares")

    def add(self, value: float, *, memory: float, now: float) -> None:
        """Add `value`, keeping `memory` of what was before."""
        self.count = memory * self.count + 1.0
        self.total = memory * self.total + value
        self.squares = memory * self.squares + value * value
        self.seen_at = now

    @property
    def mean(self) -> float:
        """The mean; 0 before any."""
        return self.total / self.count if self.count else 0.0

    @property
    def variance(self) -> float:
        """The variance of the values; 0 for fewer than two."""
        if self.count <= 1.0:
            return 0.0
        spread = max(0.0, self.squares - self.total * self.mean)
        return spread / (self.count - 1.0)


@dataclass(slots=True)
class Slope(Fading):
    """How much a second quantity rises with a first: the sums of a linear regression.

    Attributes:
        count: Pairs seen, faded.
        x: Sum of the first.
        y: Sum of the second.
        xx: Sum of the first's squares.
        xy: Sum of their products.
        seen_at: When a pair was last added (s, monotonic).
    """

    count: float = 0.0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0
    seen_at: float = 0.0

    _sums: ClassVar = ("count", "x", "y", "xx", "xy")

    def add(self, x: float, y: float, *, memory: float, weight: float, now: float) -> None:
        """Add a pair, keeping `memory` of what was before."""
        self.count = memory * self.count + weight
        self.x = memory * self.x + weight * x
        self.y = memory * self.y + weight * y
        self.xx = memory * self.xx + weight * x * x
        self.xy = memory * self.xy + weight * x * y
        self.seen_at = now

    @property
    def spread(self) -> float:
        """The first's squared distances from its mean."""
        return max(0.0, self.xx - self.x * self.x / self.count) if self.count else 0.0

    @property
    def common(self) -> float:
        """The products of both's distances from their means: the slope is `common / spread`."""
        return self.xy - self.x * self.y / self.count if self.count else 0.0
