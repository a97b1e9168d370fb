"""A request that waits for a place, without a gateway around it."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import cast

from proxy.errors import Overloaded
from proxy.waiting import Taken, WaitingRoom, Wish
from routing.pools import Backend, Pool, Speculation


def pool_of(name: str, *, room: int = 1, taken: int = 0, backends: int = 1) -> Pool:
    """Return a pool whose backends may each have `room` requests and have `taken`."""
    each = [Backend(name=f"{name}{n}", in_flight=taken) for n in range(backends)]
    return Pool(
        name=name, model="m", speculation=Speculation.NONE, max_in_flight=room, backends=each
    )


class Seeker:
    """Takes a place in the first of its pools that has one, of a backend it has not tried.

    Attributes:
        has: Where it has a place now.
    """

    def __init__(self, pools: Sequence[Pool], *, excluded: Iterable[str] = ()) -> None:
        self.pools = pools
        self.excluded = frozenset(excluded)
        self.has: tuple[Pool, Backend] | None = None

    def may_use(self, pool: Pool) -> bool:
        return pool in self.pools and pool.has_room(self.excluded)

    def take(self) -> Taken:
        for pool in self.pools:
            if (backend := pool.pick(0.0, self.excluded)) is not None:
                backend.change(1, 0.0)
                self.has = pool, backend
                return cast("Taken", self)
        msg = "all are full"
        raise Overloaded(msg)

    def leave(self, room: WaitingRoom) -> None:
        """Give back the place that it has."""
        assert self.has is not None
        (pool, backend), self.has = self.has, None
        backend.change(-1, 0.0)
        room.freed(pool)

    def wish(
        self, room: WaitingRoom, *, key: str = "", priority: int = 0, within_s: float = 10.0
    ) -> Wish:
        return Wish(
            key=key,
            priority=priority,
            until=asyncio.get_running_loop().time() + within_s,
            may_use=self.may_use,
            take=self.take,
            give_back=lambda _: self.leave(room),
        )

    async def placed(self, room: WaitingRoom, **asked: object) -> None:
        """Take a place, waiting for it where there is none."""
        try:
            self.take()
        except Overloaded:
            await room.wait(self.wish(room, **asked))  # type: ignore[arg-type]  # as in `wish`
