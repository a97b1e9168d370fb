"""One backend out of a pool: the less loaded of two drawn at random.

Two random choices avoid the herding that "least loaded of all" shows when several gateways act on
the same picture (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001).
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar


class _Loaded(Protocol):
    @property
    def in_flight(self) -> int: ...


B = TypeVar("B", bound=_Loaded)


def pick(backends: Sequence[B], draw: float) -> B:
    """Return the backend with fewer requests in flight of two distinct ones.

    Args:
        backends: At least one candidate.
        draw: Float in [0, 1) that selects the pair, and the first of it wins a tie.
    """
    count = len(backends)
    if count == 1:
        return backends[0]
    scaled = draw * count
    first = int(scaled)
    second = (first + 1 + int((scaled - first) * (count - 1))) % count
    one, other = backends[first], backends[second]
    return other if other.in_flight < one.in_flight else one
