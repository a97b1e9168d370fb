"""The gateway's own queue: where requests wait while every backend that may serve them is full.

A server's queue is the worst place to wait: what is in it can't go elsewhere, and its latency is
everybody's. So a backend is given a bounded number of requests, and what comes beyond that waits
here, is decided anew when there is room, and is told to come again when that takes too long.
"""

import asyncio
import random
from collections.abc import Callable, Iterable

from config.settings import Queue
from proxy.errors import Overloaded
from proxy.shared import FREED, Elsewhere
from proxy.team import WAITING, Team
from routing.pools import Pool
from routing.queueing import FairQueue, Waiting


class _Place:
    """One request in the queue.

    Attributes:
        pools: Names of those that may serve it.
        turn: Set when it may try again, or failed when it has no room any more.
    """

    __slots__ = ("pools", "turn")

    def __init__(self, pools: frozenset[str]) -> None:
        self.pools = pools
        self.turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class WaitingRoom:
    """Lets requests wait until a backend is free.

    Args:
        settings: How many may wait, and how long.
        team: The workers, each of which has a room; what may wait is for all of them.
        chance: Floats in [0, 1).

    Attributes:
        everywhere: How many wait, at other workers too.
    """

    def __init__(
        self,
        settings: Queue,
        team: Team | None = None,
        *,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._settings = settings
        self._queue: FairQueue[_Place] = FairQueue(settings.size)
        self._chance = chance
        self._team = None if team is None or team.alone else team
        self._elsewhere = None if self._team is None else Elsewhere(self._team, (WAITING,))

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def everywhere(self) -> int:
        """How many wait, at other workers too."""
        return len(self) + (int(self._elsewhere.count()) if self._elsewhere else 0)

    def _counted(self) -> None:
        if self._elsewhere is not None:
            self._elsewhere.post(len(self))

    def configure(self, settings: Queue) -> None:
        """Go on by other settings; what waits has the patience it came with."""
        self._settings = settings
        self._queue.size = settings.size

    async def wait(
        self, pools: Iterable[str], *, key: str, priority: int, until: float, again: bool
    ) -> None:
        """Return when one of `pools` may have room.

        Args:
            pools: Names of those that may serve the request.
            key: Whose it is.
            priority: Higher is served earlier.
            until: When it has waited enough (s, of the loop).
            again: Whether its turn came before, and another was faster.

        Raises:
            Overloaded: If there is no room to wait, or it has taken too long.
        """
        place = _Place(frozenset(pools))
        one = Waiting(place, key, priority)
        self._queue.size = self._settings.size - (self.everywhere - len(self))
        displaced = self._queue.push(one, first=again)
        if displaced is one:
            raise self._full()
        if displaced is not None and not displaced.item.turn.done():
            displaced.item.turn.set_exception(self._full())
        self._counted()
        try:
            async with asyncio.timeout_at(until):
                await place.turn
        except TimeoutError:
            if place.turn.done() and not place.turn.cancelled():
                return place.turn.result()  # it came at the last moment
            msg = f"no backend was free for {self._settings.wait_s:g} s (queue.wait_s)"
            raise Overloaded(msg) from None
        except asyncio.CancelledError:
            if place.turn.done() and not place.turn.cancelled():
                self._pass_on(place)
            raise
        finally:
            self._queue.remove(one)
            self._counted()

    def _pass_on(self, place: _Place) -> None:
        """Give the turn of one that left to the next."""
        if place.turn.exception() is None:
            for pool in place.pools:
                self.freed(pool)

    def _full(self) -> Overloaded:
        return Overloaded(
            f"every backend is busy and {self.everywhere} requests wait (queue.size)"
        )

    def freed(self, pool: str, count: float = 1) -> None:
        """Let the next `count` requests for `pool` try again, here or at another worker."""
        if self._elsewhere is None or self._team is None:
            self.admit(pool, count)
            return
        waiting = self._elsewhere.each()
        if not (total := sum(waiting)):
            self.admit(pool, count)
            return
        drawn = self._chance() * (total + len(self))
        for seat, there in zip(self._team.other_seats, waiting, strict=True):
            if drawn < there:
                self._team.tell(FREED, pool, seat=seat)
                return
            drawn -= there
        self.admit(pool, count)

    def admit(self, pool: str, count: float = 1) -> None:
        """Let the next `count` requests that wait here for `pool` try again."""
        while count >= 1 and len(self._queue):
            place = self._queue.pop(lambda each: pool in each.pools)
            if place is None:
                return
            if not place.turn.done():
                place.turn.set_result(None)
                count -= 1

    def look(self, pools: Iterable[Pool]) -> None:
        """Let those try again whose pools have room, in case that nobody has told."""
        if len(self._queue):
            for pool in pools:
                if pool.has_room():
                    self.admit(pool.name)

    def renew(self) -> None:
        """Have all that wait decided anew: pools have come, gone or changed.

        Those that must go on waiting come back to the front one by one, so the last goes first.
        """
        for place in reversed(self._queue.pop_all()):
            if not place.turn.done():
                place.turn.set_result(None)
