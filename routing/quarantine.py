"""Which requests end engines: shapes that were in flight whenever one died, kept from their pools.

An engine dies of one request and takes all that it had in flight with it, so the dead tell only
who was there. Three rules tell the cause from those around it:

    deaths    a shape is suspected from its second death on; of one, chance may be the cause
    survival  a shape that a pool has finished of late is not what ends its engines
    names     of several suspects the one with the most parameters is held, the others go on;
              a shape without any explains nothing and is never held

What is held is kept from the pools where it saw engines die, for a time that doubles. Then it is
tried: one request a minute, until one is finished, which frees it, or ends an engine, which holds
it for longer. Evidence is per pool, since what ends a speculating engine may suit a plain one.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from routing.shapes import Shape

DEATHS = 2
"""In flight at so many, a shape is held: as many as one request may see (`proxy.failover`)."""
REMEMBERED_S = 3600.0
"""How long a death counts: a large model takes a quarter of an hour to be back for the next."""
SURVIVES_S = 600.0
"""How long a request that was finished speaks for its shape. Short, since servers change."""
FIRST_S, LONGEST_S = 600.0, 86400.0
"""How long a shape is held the first time, and at most."""
TRIAL_S = 60.0
"""Between two requests that try whether a shape ends engines still."""
MAX_SHAPES = 4096
"""Shapes and pools of which survival is remembered; what goes on being finished comes back."""
MAX_SUSPECTS, MAX_HELD = 256, 20
"""Shapes that are suspected, and held, at a time; the oldest give way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """An engine that died. Times are seconds, monotonic.

    Attributes:
        at: When.
        pool: Its pool.
        backend: Its name.
    """

    at: float
    pool: str
    backend: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A shape in quarantine.

    Attributes:
        shape: What is held.
        pools: Names of those that it is not sent to.
        until: When the next request of its shape is tried (s, monotonic).
        times: How often it has been held.
        deaths: What it is held for.
    """

    shape: Shape
    pools: tuple[str, ...]
    until: float
    times: int
    deaths: tuple[Death, ...]


class Quarantine:
    """Keeps shapes that end engines from their pools. `now` is seconds, monotonic.

    Attributes:
        held: What it keeps, by shape.
    """

    def __init__(self) -> None:
        self.held: dict[Shape, Held] = {}
        self._deaths: dict[Shape, tuple[Death, ...]] = {}
        self._survived: dict[tuple[str, Shape], float] = {}

    def survived(self, pool: str, shape: Shape, *, now: float) -> bool:
        """A pool has finished a request of this shape; whether it was held there."""
        self._survived[pool, shape] = now
        _trim(self._survived, MAX_SHAPES)
        if not self._deaths and not self.held:
            return False
        if left := [death for death in self._deaths.pop(shape, ()) if death.pool != pool]:
            self._deaths[shape] = tuple(left)
        held = self.held.get(shape)
        if held is None or pool not in held.pools:
            return False
        del self.held[shape]
        if pools := tuple(name for name in held.pools if name != pool):
            self.hold(replace(held, pools=pools))
        return True

    def died(self, death: Death, shapes: Iterable[Shape]) -> list[Held]:
        """An engine died with requests of these shapes in flight; returns what is held for it."""
        found = {shape: self._note(shape, death) for shape in sorted(set(shapes))}
        suspects = {
            shape: deaths
            for shape, deaths in found.items()
            if len(deaths) >= DEATHS or (deaths and shape in self.held)
        }
        most = max(map(len, suspects), default=0)
        return [self._hold(*suspect) for suspect in suspects.items() if len(suspect[0]) == most]

    def _note(self, shape: Shape, death: Death) -> tuple[Death, ...]:
        """Return the deaths that a shape is suspected of, this one too; none if it is innocent."""
        finished_at = self._survived.get((death.pool, shape), -inf)
        if not shape or death.at - finished_at < SURVIVES_S:
            return ()
        recent = [d for d in self._deaths.pop(shape, ()) if death.at - d.at < REMEMBERED_S]
        self._deaths[shape] = deaths = (*recent, death)
        _trim(self._deaths, MAX_SUSPECTS)
        return deaths

    def _hold(self, shape: Shape, deaths: tuple[Death, ...]) -> Held:
        before = self.held.pop(shape, None)
        pools, times = {death.pool for death in deaths}, 1
        if before is not None:
            pools, times = pools | {*before.pools}, before.times + 1
        held = Held(
            shape=shape,
            pools=tuple(sorted(pools)),
            until=deaths[-1].at + min(FIRST_S * 2.0 ** (times - 1), LONGEST_S),
            times=times,
            deaths=deaths,
        )
        self.hold(held)
        return held

    def hold(self, held: Held) -> None:
        """Hold a shape, as another worker does."""
        self.held[held.shape] = held
        _trim(self.held, MAX_HELD)

    def bars(self, pool: str, shape: Shape, *, now: float) -> Held | None:
        """Return what keeps requests of `shape` from `pool`, or None where nothing does."""
        held = self.held.get(shape)
        return held if held is not None and pool in held.pools and now < held.until else None

    def sent(self, pool: str, shape: Shape, *, now: float) -> None:
        """A request of `shape` goes to `pool`: if it was held there, this is its trial."""
        held = self.held.get(shape)
        if held is not None and pool in held.pools:
            self.held[shape] = replace(held, until=max(held.until, now + TRIAL_S))

    def lift(self) -> None:
        """Hold and suspect nothing."""
        self.held.clear()
        self._deaths.clear()


def _trim(shapes: dict[Any, Any], most: int) -> None:
    """Drop the oldest of `shapes` if they are more than `most`."""
    if len(shapes) > most:
        del shapes[next(iter(shapes))]
