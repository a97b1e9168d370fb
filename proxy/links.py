"""Connections to backends, kept alive: one request at a time on each (HTTP/1.1).

llhttp reads what comes, through httptools as in uvicorn; an answer is handed on in the pieces that
the socket gave. A connection is used again only after a whole answer, and not when it was idle for
so long that the other side may be closing it.
"""

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Callable
from functools import cache
from typing import NamedTuple, Self, cast
from urllib.parse import urlsplit

import httptools

Fields = list[tuple[bytes, bytes]]

HELD_BYTES = 256 * 2**10
"""What is read ahead of a client that reads slowly; beyond it the backend is paused."""
HEAD_BYTES = 64 * 2**10
"""Longest head of an answer."""
IDLE_S = 4.0
"""How long an idle connection is kept: under uvicorn's 5 s, so that vLLM does not close it just as
it is used again."""
_NO_BODY = (204, 304)
_SILENT = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}
"""When the system asks whether the other side of a silent connection is there: after a minute, and
four times in another. What translates addresses on the way forgets a connection without traffic:
after 350 s in AWS, 240 s in Azure, 900 s in Kubernetes' IPVS."""


class Lost(Exception):
    """The connection ended before the answer did; the message says how."""


class Link(asyncio.Protocol):
    """One connection.

    Attributes:
        status: Of the answer; 0 while its head is not there.
        headers: Its fields, names in lower case.
        whole: Whether all of it has come.
        idle_since: When it last became free (s, of the loop); 0 before its first answer.
    """

    __slots__ = (
        "_body",
        "_fields",
        "_framed",
        "_head_bytes",
        "_held",
        "_keeps",
        "_loop",
        "_lost",
        "_on_free",
        "_parser",
        "_paused",
        "_transport",
        "_unread",
        "_waiter",
        "headers",
        "idle_since",
        "status",
        "whole",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, on_free: Callable[["Link"], None]) -> None:
        self._loop = loop
        self._on_free = on_free
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._lost: str = ""
        self._begin()
        self.whole = True
        self.idle_since = 0.0

    def _begin(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._held = self._head_bytes = self._unread = 0
        self._framed = self._paused = self._keeps = self.whole = False
        self.status = 0
        self.headers: Fields = []
        self._fields: Fields = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Read what came."""
        if self.whole:  # nothing was asked for
            self.close("it sent what nobody had asked for")
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.close("it switched protocols")
        except httptools.HttpParserError as error:
            self.close(f"its answer is not HTTP: {error}")
        if not self.status:  # a field may be without end
            self._unread += len(data)
            if self._unread > HEAD_BYTES:
                self.close("its answer is not HTTP: too long a head")
        self._wake()

    def eof_received(self) -> bool:
        """Take the end of what can come as the end of an answer that has no other."""
        if self.status and not self._framed and not self.whole:
            self.whole = True
            self._wake()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell who waits."""
        self._lost = self._lost or str(exc or "it closed the connection")
        self._transport = None
        self._wake()

    # What the parser calls

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a field; one that follows the body is dropped."""
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > HEAD_BYTES:
            msg = "too long a head"
            raise ValueError(msg)
        name = name.lower()
        if name in (b"content-length", b"transfer-encoding"):
            self._framed = True
        self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        """Take the head, unless it is an interim one."""
        status = self._parser.get_status_code()
        fields, self._fields = self._fields, []
        if status < 200:
            return
        if self.status or status > 599:
            msg = "a second answer, or a status that there is not"
            raise ValueError(msg)
        self.status, self.headers = status, fields
        self._framed = self._framed or status in _NO_BODY

    def on_body(self, body: bytes) -> None:
        """Take a piece."""
        self._body.append(body)
        self._held += len(body)
        if self._held > HELD_BYTES and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        """Take the end."""
        self.whole = self.status != 0
        self._keeps = self._parser.should_keep_alive()

    # What the pipeline calls

    @property
    def at_end(self) -> bool:
        """Whether all of the answer has come and was read."""
        return self.whole and not self._body

    @property
    def usable(self) -> bool:
        """Whether it is open and an answer on it was whole."""
        return self._transport is not None and self.whole and not self._transport.is_closing()

    def send(self, head: bytes, body: bytes | None) -> None:
        """Send a request; the one before has had its whole answer.

        Raises:
            Lost: If the connection is closed.
        """
        self._begin()
        if self._transport is None or self._transport.is_closing():
            raise Lost(self._lost or "it closed the connection")
        if body is None:
            self._transport.write(head)
        elif len(body) < HEAD_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)

    async def head(self) -> None:
        """Wait for the head of the answer.

        Raises:
            Lost: If the connection ends before.
        """
        while not self.status:
            await self._more()

    async def read(self) -> bytes:
        """Return what has come of the body, at least a byte; empty at the end.

        Raises:
            Lost: If the connection ends before the answer does.
        """
        while not self._body:
            if self.whole:
                return b""
            await self._more()
        pieces, self._body, self._held = self._body, [], 0
        if self._paused and self._transport is not None:
            self._paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def _more(self) -> None:
        if self._lost or self._transport is None:
            raise Lost(self._lost or "it closed the connection")
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def done(self) -> None:
        """Be used again, or closed if that can't be."""
        if self.usable and self._keeps and not self._body:
            self._on_free(self)
        else:
            self.close("it was closed here")

    def close(self, why: str) -> None:
        """Close it."""
        self._lost = self._lost or why
        if self._transport is not None:
            self._transport.abort()


def outlast_silence(connection: socket.socket) -> None:
    """Have a silent connection, or those that a listening socket accepts, live as long as needed.

    An answer that is not streamed is silent until it is whole, for all of `timeouts.total_s`.
    """
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _SILENT.items():
        if (option := getattr(socket, name, None)) is not None:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)


class Place(NamedTuple):
    """Where a backend listens.

    Attributes:
        host: Name or address.
        port: TCP port.
        tls: How to encrypt; None for plain text.
        authority: `host:port` as it stands in the field `host`.
        path: What its URL has before every path.
    """

    host: str
    port: int
    tls: ssl.SSLContext | None
    authority: bytes
    path: bytes

    @classmethod
    def of(cls, url: str) -> Self:
        """Return the place of a base URL."""
        parts = urlsplit(url)
        tls = authorities() if parts.scheme == "https" else None
        host, port = parts.hostname or "", parts.port or 0
        return cls(
            host, port, tls, parts.netloc.encode("latin-1"), parts.path.rstrip("/").encode()
        )


@cache
def authorities() -> ssl.SSLContext:
    """Return how connections to servers are encrypted, and by whom their certificates may be.

    Those are the system's authorities, or `SSL_CERT_FILE`'s. Read once, as it takes 10 ms.
    """
    return ssl.create_default_context()


class Links:
    """Connections to one backend.

    Args:
        url: Its base URL.
    """

    def __init__(self, url: str) -> None:
        self.place = Place.of(url)
        self._loop = asyncio.get_running_loop()
        self._idle: deque[Link] = deque()
        self._sweep: asyncio.TimerHandle | None = None

    def idle(self) -> Link | None:
        """Return the connection that was used last, if one can be used again."""
        now = self._loop.time()
        while self._idle:
            link = self._idle.pop()
            if link.usable and now - link.idle_since < IDLE_S:
                return link
            link.close("it was idle")
        return None

    async def dial(self) -> Link:
        """Return a new connection.

        Raises:
            OSError: If it can't be made.
        """
        place = self.place
        transport, link = await self._loop.create_connection(
            lambda: Link(self._loop, self._free), place.host, place.port, ssl=place.tls
        )
        outlast_silence(transport.get_extra_info("socket"))
        return link

    def _free(self, link: Link) -> None:
        link.idle_since = self._loop.time()
        self._idle.append(link)
        if self._sweep is None:
            self._sweep = self._loop.call_later(IDLE_S, self._close_idle)

    def _close_idle(self) -> None:
        """Close what was idle for too long, the oldest first."""
        self._sweep, now = None, self._loop.time()
        while self._idle and now - self._idle[0].idle_since >= IDLE_S:
            self._idle.popleft().close("it was idle")
        if self._idle:
            wait_s = IDLE_S - (now - self._idle[0].idle_since)
            self._sweep = self._loop.call_later(wait_s, self._close_idle)

    def close(self) -> None:
        """Close what is idle; what is in use is its user's, and closed soon after."""
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        while self._idle:
            self._idle.pop().close("the gateway stops")
