"""The gateway's own queue: where requests wait while every backend that may serve them is full.

A server's queue is the worst place to wait: what is in it can't go elsewhere, and its latency is
everybody's. So a backend is given a bounded number of requests, and what comes beyond that waits
here, is decided anew when there is room, and is told to come again when that takes too long.
"""

import asyncio
from collections.abc import Iterable

from config.settings import Queue
from proxy.errors import Overloaded
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
    """

    def __init__(self, settings: Queue) -> None:
        self._settings = settings
        self._queue: FairQueue[_Place] = FairQueue(settings.size)

    def __len__(self) -> int:
        return len(self._queue)

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
        displaced = self._queue.push(one, first=again)
        if displaced is one:
            raise self._full()
        if displaced is not None:
            displaced.item.turn.set_exception(self._full())
        try:
            async with asyncio.timeout_at(until):
                await place.turn
        except TimeoutError:
            msg = f"no backend was free for {self._settings.wait_s:g} s (queue.wait_s)"
            raise Overloaded(msg) from None
        except asyncio.CancelledError:
            if place.turn.done() and not place.turn.cancelled():
                self._pass_on(place)
            raise
        finally:
            self._queue.remove(one)

    def _pass_on(self, place: _Place) -> None:
        """Give the turn of one that left to the next."""
        if place.turn.exception() is None:
            for pool in place.pools:
                self.freed(pool)

    def _full(self) -> Overloaded:
        return Overloaded(f"every backend is busy and {len(self)} requests wait (queue.size)")

    def freed(self, pool: str, count: float = 1) -> None:
        """Let the next `count` requests for `pool` try again."""
        while count >= 1 and len(self._queue):
            place = self._queue.pop(lambda each: pool in each.pools)
            if place is None:
                return
            if not place.turn.done():
                place.turn.set_result(None)
                count -= 1

    def renew(self) -> None:
        """Have all that wait decided anew: pools have come, gone or changed.

        Those that must go on waiting come back to the front one by one, so the last goes first.
        """
        for place in reversed(self._queue.pop_all()):
            if not place.turn.done():
                place.turn.set_result(None)
