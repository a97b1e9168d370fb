"""How requests arrive: steadily, in bursts, and over drifts and restarts."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from random import Random


class Shape(StrEnum):
    """What happens while requests arrive."""

    STEADY = "steady"
    BURST = "burst"  # three times the rate for 5 s of every 20 s
    DRIFT = "drift"  # at half time the mix flips and acceptance halves
    RESTART = "restart"  # a third of the way in, a server is gone for 10 s


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Arrivals of a cell.

    Attributes:
        name: Its name.
        share: Mean rate, as a share of what two plain servers can do.
        shape: What happens.
    """

    name: str
    share: float
    shape: Shape = Shape.STEADY


LOADS: Mapping[str, Load] = {
    load.name: load
    for load in (
        Load(name="10", share=0.10),
        Load(name="40", share=0.40),
        Load(name="85", share=0.85),
        Load(name="120", share=1.20),
        Load(name="burst", share=0.50, shape=Shape.BURST),
        Load(name="drift", share=0.60, shape=Shape.DRIFT),
        Load(name="restart", share=0.40, shape=Shape.RESTART),
    )
}

BURST_S, PERIOD_S, BURST_FACTOR = 5.0, 20.0, 3.0
OUTAGE_S = 10.0
OUTAGE_AT = 1 / 3
"""Share of the arrivals before a restart's outage."""


def load_named(name: str) -> Load:
    """Return a known load, or a steady one for a number: percent of plain capacity.

    Raises:
        ValueError: If it is neither, naming the known ones.
    """
    if (known := LOADS.get(name)) is not None:
        return known
    try:
        share = float(name) / 100.0
    except ValueError:
        share = 0.0
    if not 0.0 < share <= 5.0:
        msg = f"load {name!r} is no percentage up to 500 and not one of {', '.join(LOADS)}"
        raise ValueError(msg)
    return Load(name=name, share=share)


WARM_UP = 0.1
"""Share of a cell's requests, the first, that no statistic counts."""
WARM_UP_LOAD = 0.4
"""They come at this share of plain capacity at most: a load does not begin at its height."""


def arrivals(load: Load, *, rate: float, count: int, random: Random) -> list[float]:
    """Return the times, s, of `count` Poisson arrivals at `rate` per second after the warm-up."""
    times, at = [], 0.0
    slower = min(1.0, WARM_UP_LOAD / load.share)
    for number in range(count):
        at += random.expovariate(rate if number >= WARM_UP * count else slower * rate)
        times.append(at)
    return [_warped(at) for at in times] if load.shape is Shape.BURST else times


def _warped(at: float) -> float:
    """Return when a burst pattern of the same mean rate has had as many arrivals.

    Its rate is low, then `BURST_FACTOR` times as much for the last `BURST_S` of each period.
    """
    calm_s = PERIOD_S - BURST_S
    low = PERIOD_S / (calm_s + BURST_FACTOR * BURST_S)
    periods, rest = divmod(at, PERIOD_S)
    within = rest / low
    if within > calm_s:
        within = calm_s + (within - calm_s) / BURST_FACTOR
    return periods * PERIOD_S + within
