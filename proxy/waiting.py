"""The gateway's own queue: where requests wait while every backend that may serve them is full.

A server's queue is the worst place to wait: what is in it can't go elsewhere, and its latency is
everybody's. So a backend is given a bounded number of requests, and what comes beyond that waits
here and is told to come again when that takes too long.

Law: never is there a place that somebody who waits may have. Whoever frees one offers it to those
that wait, in their order, and the first that can use it has it at once, before anybody else runs.
So no turn is lost on one that can't use it, whatever it waits for, and none has to be passed on.
"""

import asyncio
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from config.settings import Queue
from proxy.errors import Overloaded
from proxy.shared import FREED, Elsewhere
from proxy.team import WAITING, Team
from proxy.watching import Watch
from routing.decision import Decision
from routing.pools import Pool
from routing.queueing import FairQueue, Waiting

Taken = tuple[Decision, Watch]
"""A place that a request has: what was decided, and what counts it at the backend."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What one request waits for.

    Attributes:
        key: Whose it is.
        priority: Higher is served earlier.
        until: When it has waited enough (s, of the loop).
        may_use: Whether it could have a place in a pool that has one, as things stand.
        take: Takes a place and returns it; raises `Overloaded` if there is none for it.
        give_back: Gives back a place for which nobody is left.
        is_particular: Whether it could have a place in a pool that has none for all others.
    """

    key: str
    priority: int
    until: float
    may_use: Callable[[Pool], bool]
    take: Callable[[], Taken]
    give_back: Callable[[Taken], None]
    is_particular: bool = False


class _Place:
    """One request in the queue.

    Attributes:
        wish: What it waits for.
        outcome: What it took, or why it need not wait any more.
    """

    __slots__ = ("outcome", "wish")

    def __init__(self, wish: Wish) -> None:
        self.wish = wish
        self.outcome: asyncio.Future[Taken] = asyncio.get_running_loop().create_future()

    def settle(self, pool: Pool | None) -> bool:
        """Take a place, in `pool` if given, or learn that there will be none; whether it did."""
        if self.outcome.done() or not (pool is None or self.wish.may_use(pool)):
            return False
        try:
            self.outcome.set_result(self.wish.take())
        except Overloaded:
            return False
        except Exception as error:  # noqa: BLE001  # it is this request's, not of who freed the place
            self.outcome.set_exception(error)
        return True


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
        self._particular = 0
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

    async def wait(self, wish: Wish) -> Taken:
        """Return the place that was taken for `wish` once there was one.

        Raises:
            Overloaded: If there is no room to wait, or it has taken too long.
            Exception: What `wish.take` raises beside it.
        """
        place = _Place(wish)
        one = Waiting(place, wish.key, wish.priority)
        self._queue.size = self._settings.size - (self.everywhere - len(self))
        displaced = self._queue.push(one)
        if displaced is one:
            raise self._full()
        if displaced is not None and not displaced.item.outcome.done():
            displaced.item.outcome.set_exception(self._full())
        self._counted()
        self._particular += wish.is_particular
        try:
            async with asyncio.timeout_at(wish.until):
                return await place.outcome
        except TimeoutError:
            if place.outcome.done() and not place.outcome.cancelled():
                return place.outcome.result()  # it came at the last moment
            msg = f"no backend was free for {self._settings.wait_s:g} s (queue.wait_s)"
            raise Overloaded(msg) from None
        except asyncio.CancelledError:
            outcome = place.outcome
            if outcome.done() and not outcome.cancelled() and outcome.exception() is None:
                wish.give_back(outcome.result())
            raise
        finally:
            self._queue.remove(one)
            self._particular -= wish.is_particular
            self._counted()

    def _full(self) -> Overloaded:
        return Overloaded(
            f"every backend is busy and {self.everywhere} requests wait (queue.size)"
        )

    def freed(self, pool: Pool) -> None:
        """Offer what is free in `pool` to those that wait, here or at another worker."""
        if self._elsewhere is not None and self._team is not None:
            waiting = self._elsewhere.each()
            drawn = self._chance() * (sum(waiting) + len(self))
            for seat, there in zip(self._team.other_seats, waiting, strict=True):
                if drawn < there:
                    self._team.tell(FREED, pool.name, seat=seat)
                    return
                drawn -= there
        self.admit(pool)

    def admit(self, pool: Pool) -> None:
        """Offer what is free in `pool` to those that wait here."""
        if len(self._queue):
            self._offer(pool)

    def look(self, pools: Iterable[Pool]) -> None:
        """Offer what is free in `pools`, in case that nobody has told."""
        for pool in pools:
            self.admit(pool)

    def renew(self) -> None:
        """Have all that wait decided anew: pools have come, gone or changed."""
        self._offer(None)

    def _offer(self, pool: Pool | None) -> None:
        """Settle those that wait, each asked once: the room only gets less meanwhile."""
        refused: set[_Place] = set()

        def settles(place: _Place) -> bool:
            if place in refused:
                return False
            if place.settle(pool):
                return True
            refused.add(place)
            return False

        while pool is None or pool.has_room() or self._particular:
            if self._queue.pop(settles) is None:
                return
