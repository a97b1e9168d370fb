"""Taking connections from a socket that all workers listen on, so that each has its share.

The kernel wakes every worker for a connection; the first takes it, and under load that would be
the same one again and again. One that has more connections than another lets the others go first.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress

log = logging.getLogger("turnout")

YIELD_S = 0.002
"""How long a worker that is ahead leaves a connection to the others."""
_PAUSE_S = 0.5
"""Before the next try where the system has no file left for a connection."""


class Acceptor:
    """Takes connections until it is closed.

    Args:
        listening: The socket.
        make: Makes the protocol of a connection.
        tls: What connections are encrypted with; None where they are not.
        ahead: Whether this worker has more connections than others.
    """

    def __init__(
        self,
        listening: socket.socket,
        make: Callable[[], asyncio.Protocol],
        *,
        tls: ssl.SSLContext | None,
        ahead: Callable[[], bool],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._listening = listening
        self._make = make
        self._tls = tls
        self._ahead = ahead
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        listening.setblocking(False)
        self._wait()

    def _wait(self) -> None:
        self._timer = None
        self._loop.add_reader(self._listening, self._ready)

    def _rest(self, pause_s: float, then: Callable[[], None]) -> None:
        self._loop.remove_reader(self._listening)
        self._timer = self._loop.call_later(pause_s, then)

    def _ready(self) -> None:
        if self._ahead():
            self._rest(YIELD_S, self._after_the_others)
        else:
            self._take()

    def _after_the_others(self) -> None:
        self._wait()
        self._take()

    def _take(self) -> None:
        try:
            taken, _ = self._listening.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another worker was faster, or the client has gone
        except OSError as error:
            log.warning("no connection can be taken: %s", error)
            self._rest(_PAUSE_S, self._wait)
            return
        taken.setblocking(False)
        task = self._loop.create_task(self._connect(taken))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, taken: socket.socket) -> None:
        with suppress(OSError):  # of a handshake: it is the client's affair
            await self._loop.connect_accepted_socket(self._make, taken, ssl=self._tls)

    def close(self) -> None:
        """Take no more."""
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._listening)

    async def wait_closed(self) -> None:
        """Return: connections that were taken are not its own."""
