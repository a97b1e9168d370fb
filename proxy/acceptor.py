"""Taking connections: many at once, and each worker its share.

libuv takes one connection in a turn of its loop, so that at a busy gateway 200 new ones would wait
for seconds; here a turn takes as many as there are. Where workers listen on one socket, the kernel
wakes all of them for a connection and the first has it, which under load would be the same one
again and again: one that has more connections than another lets the others go first.
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
AT_ONCE = 64
"""Connections taken in a turn, before what is there is served."""
_PAUSE_S = 0.5
"""Before the next try where the system has no file left for a connection."""


class Acceptor:
    """Takes connections until it is closed.

    Args:
        listening: The socket.
        make: Makes the protocol of a connection.
        tls: What connections are encrypted with; None where they are not.
        handshake_s: Longest wait for a client's part in that.
        ahead: Whether this worker has more connections than others; None where there are none.
    """

    def __init__(
        self,
        listening: socket.socket,
        make: Callable[[], asyncio.Protocol],
        *,
        tls: ssl.SSLContext | None,
        handshake_s: float,
        ahead: Callable[[], bool] | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._listening = listening
        self._make = make
        self._tls = tls
        self._handshake_s = None if tls is None else handshake_s
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
        if self._ahead is not None and self._ahead():
            self._rest(YIELD_S, self._after_the_others)
        else:
            self._take()

    def _after_the_others(self) -> None:
        self._wait()
        self._take()

    def _take(self) -> None:
        """Take one connection, and further ones until others have fewer."""
        for _ in range(AT_ONCE):
            try:
                taken, _ = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return  # there is none, or another worker was faster, or its client has gone
            except OSError as error:
                log.warning("no connection can be taken: %s", error)
                self._rest(_PAUSE_S, self._wait)
                return
            taken.setblocking(False)
            task = self._loop.create_task(self._connect(taken))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            if self._ahead is not None:
                return

    async def _connect(self, taken: socket.socket) -> None:
        with suppress(OSError):  # of a handshake: it is the client's affair
            await self._loop.connect_accepted_socket(
                self._make, taken, ssl=self._tls, ssl_handshake_timeout=self._handshake_s
            )

    def close(self) -> None:
        """Take no more, here; other workers go on."""
        if self._listening.fileno() < 0:
            return  # it is closed
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._listening)
        self._listening.close()

    async def wait_closed(self) -> None:
        """Return: connections that were taken are not its own."""
