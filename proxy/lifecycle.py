"""Whether the gateway takes work, and how it stops: readiness, drain, the end of grace."""

import asyncio
from typing import Self

from proxy.errors import Draining


class Lifecycle:
    """Counts the requests in hand and lets them finish.

    Attributes:
        draining: Whether new work is refused.
        cut: Whether the grace period is over, so that requests in hand are ended.
    """

    def __init__(self) -> None:
        self.draining = False
        self.cut = False
        self._tasks: set[asyncio.Task[object]] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    def __repr__(self) -> str:
        return f"<Lifecycle [{len(self._tasks)} in hand, draining={self.draining}]>"

    def in_hand(self) -> Self:
        """Return what holds the gateway open for the current task's request, in a `with` block.

        Raises:
            Draining: If new work is refused.
        """
        if self.draining:
            msg = "this gateway is shutting down; try again, another replica may answer"
            raise Draining(msg)
        return self

    def __enter__(self) -> None:
        task = asyncio.current_task()
        if task is None:
            msg = "in_hand() needs a task"
            raise RuntimeError(msg)
        self._tasks.add(task)
        self._idle.clear()

    def __exit__(self, *_: object) -> None:
        if (task := asyncio.current_task()) is not None:
            self._tasks.discard(task)
        if not self._tasks:
            self._idle.set()

    async def drain(self, grace_s: float) -> None:
        """Refuse new work, wait up to `grace_s` seconds for what is in hand, then end it."""
        self.draining = True
        try:
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        except TimeoutError:
            self.cut = True
            for task in self._tasks:
                task.cancel()
            await self._idle.wait()
