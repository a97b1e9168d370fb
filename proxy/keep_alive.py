"""A word now and then to the client of an event stream that is silent for long.

What stands before the gateway closes a connection on which nothing comes: nginx after 60 s
(`proxy_read_timeout`), an AWS load balancer after 60 s. A comment is no event to any client.
"""

import asyncio
from collections.abc import Callable
from typing import Self

from proxy.patience import Patience

COMMENT = b": keep-alive\n\n"
"""As vLLM writes it (`--sse-keep-alive-interval`)."""
PING = b'event: ping\ndata: {"type": "ping"}\n\n'
"""As Anthropic's API writes it, anywhere after `message_start`."""


class KeepAlive:
    """Has something said whenever nothing came for a while, within a `with` block.

    It looks at when the request's last wait began, so that pieces cost nothing.

    Args:
        patience: Of the request.
        every_s: After how much silence; None never.
        silent_s: How long the client has waited already.
        say: Says it.
    """

    __slots__ = ("_begun_at", "_every_s", "_loop", "_patience", "_said_at", "_say", "_timer")

    def __init__(
        self,
        patience: Patience,
        every_s: float | None,
        *,
        silent_s: float,
        say: Callable[[], None],
    ) -> None:
        self._patience = patience
        self._every_s = every_s
        self._say = say
        self._loop = asyncio.get_running_loop()
        self._said_at = self._loop.time() - silent_s
        self._timer: asyncio.TimerHandle | None = None
        self._begun_at = patience.since

    def __enter__(self) -> Self:
        self._set(self._said_at)
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _set(self, quiet_since: float) -> None:
        if self._every_s is not None:
            self._timer = self._loop.call_at(
                quiet_since + self._every_s, self._ring, self._every_s
            )

    def _ring(self, every_s: float) -> None:
        quiet_since, since = self._said_at, self._patience.since
        if since != self._begun_at:  # something came
            quiet_since = max(quiet_since, since)
        now = self._loop.time()
        if now - quiet_since >= every_s:
            self._say()
            quiet_since = self._said_at = now
        self._set(quiet_since)
