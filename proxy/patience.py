"""What may end a request before its own end: its time, its client, its backend.

A request has one timer. Its deadline moves with every piece of an answer; that is a number, looked
at when the timer fires, which is then set again. So to wait costs next to nothing.
"""

import asyncio
from collections.abc import Callable
from math import inf

from proxy.errors import BackendError, ClientGone

Late = Callable[[], BackendError | float]
"""Looks at a wait that is long: the error that ends it, or seconds until the next look."""


class Patience:
    """Ends the current task when a wait is over, or for a reason from outside.

    Attributes:
        task: The task.
        reason: Why it was ended; None while it was not.
        since: When the last wait began (s, of the loop).
    """

    __slots__ = (
        "_at",
        "_by",
        "_late",
        "_limit",
        "_loop",
        "_over",
        "_timer",
        "reason",
        "since",
        "task",
    )

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        if task is None:
            msg = "only a task can be patient"
            raise RuntimeError(msg)
        self.task = task
        self._timer: asyncio.TimerHandle | None = None
        self._at = self._by = self._limit = inf
        self.since = self._loop.time()
        self._late: Late = _never
        self._over: Late = _never
        self.reason: Exception | None = None

    def limit(self, within_s: float, over: Late) -> None:
        """Bound all waits from now on: none goes beyond `within_s`."""
        self._limit, self._over = self._loop.time() + within_s, over
        self._wait_until(self._limit, over)

    def wait(self, within_s: float, late: Late) -> None:
        """Begin to wait: ask `late` what to do unless another wait begins within that time."""
        self.since = now = self._loop.time()
        self._wait_until(now + within_s, late)

    def rest(self) -> None:
        """Wait for nothing, as long as the limit allows."""
        self._by, self._late = self._limit, self._over

    def _wait_until(self, by: float, late: Late) -> None:
        if by > self._limit:
            by, late = self._limit, self._over
        self._by, self._late = by, late
        if by < self._at:
            if self._timer is not None:
                self._timer.cancel()
            self._at, self._timer = by, self._loop.call_at(by, self._ring)

    def _ring(self) -> None:
        self._at, self._timer = inf, None
        now = self._loop.time()
        if self._by > now:
            if self._by < inf:
                self._at, self._timer = self._by, self._loop.call_at(self._by, self._ring)
            return
        found = self._late()
        if isinstance(found, BackendError):
            self.end(found)
        else:
            self._wait_until(now + found, self._late)

    def end(self, reason: Exception) -> None:
        """End the task for `reason`, unless it was ended; a client that has left goes before."""
        if self.reason is None:
            self.task.cancel()
        elif not isinstance(reason, ClientGone):
            return
        self.reason = reason

    def taken(self) -> BackendError | None:
        """Return the backend's failure that ended the task, which goes on; None for all else."""
        reason = self.reason
        if not isinstance(reason, BackendError):
            return None
        self.task.uncancel()
        self.reason = None
        return reason

    def close(self) -> None:
        """Wait for nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _never() -> BackendError:
    msg = "nothing was waited for"
    raise RuntimeError(msg)
