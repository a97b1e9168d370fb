"""Whether the gateway takes work, and how it stops: readiness, drain, the end of grace."""

import asyncio
from contextlib import suppress

from proxy.errors import Draining


class Lifecycle:
    """Counts the requests in hand and lets them finish.

    Attributes:
        leaving: Whether it is about to stop, so that load balancers are to send work elsewhere.
        draining: Whether new work is refused.
        cut: Whether the grace period is over, so that requests in hand are ended.
    """

    def __init__(self) -> None:
        self.leaving = self.draining = False
        self.cut = False
        self._tasks: set[asyncio.Task[object]] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    def __repr__(self) -> str:
        return f"<Lifecycle [{len(self._tasks)} in hand, draining={self.draining}]>"

    def in_hand(self, task: "asyncio.Task[object]") -> "_Hand":
        """Return what holds the gateway open for a task's request, in a `with` block.

        Raises:
            Draining: If new work is refused.
        """
        if self.draining:
            msg = "this gateway is shutting down; try again, another replica may answer"
            raise Draining(msg)
        return _Hand(self, task)

    def take(self, task: "asyncio.Task[object]") -> None:
        """Have a request in hand."""
        self._tasks.add(task)
        if len(self._tasks) == 1:
            self._idle.clear()

    def leave(self, task: "asyncio.Task[object]") -> None:
        """Have it no longer."""
        self._tasks.discard(task)
        if not self._tasks:
            self._idle.set()

    async def give_notice(self, delay_s: float, *, at_once: asyncio.Event) -> None:
        """Fail readiness, and take work for `delay_s` more seconds or until told not to."""
        self.leaving = True
        with suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                await at_once.wait()

    async def drain(self, grace_s: float) -> None:
        """Refuse new work, wait up to `grace_s` seconds for what is in hand, then end it."""
        self.leaving = self.draining = True
        try:
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        except TimeoutError:
            self.cut = True
            for task in self._tasks:
                task.cancel()
            await self._idle.wait()


class _Hand:
    """One request in hand."""

    __slots__ = ("_lifecycle", "_task")

    def __init__(self, lifecycle: Lifecycle, task: "asyncio.Task[object]") -> None:
        self._lifecycle = lifecycle
        self._task = task

    def __enter__(self) -> None:
        self._lifecycle.take(self._task)

    def __exit__(self, *_: object) -> None:
        self._lifecycle.leave(self._task)
