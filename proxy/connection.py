"""The server's HTTP protocol: uvicorn's, with limits, and a shorter way to the pipeline.

uvicorn limits neither how long a request's head may be nor how long it may take to come, nor how
many connections one client has; each costs the gateway a socket and memory. Bodies are limited
where they are read (`proxy.downstream`).

What the pipeline serves does not pass ASGI, which would cost as much again as the decision
(docs/adr/0011); all else goes to FastAPI as ever.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, Protocol
from urllib.parse import unquote

from httptools import parse_url
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from config.settings import Listen
from proxy.downstream import Downstream
from proxy.shared import Clients

PIPELINED, PIPELINED_BYTES = 4, 64 * 2**10
"""Requests that may wait behind another on a connection, and how long the body of one may be,
before no more is read. Until then the client is heard when it leaves."""

Serve = Callable[[Downstream], Awaitable[None]]


class Pipelines(Protocol):
    """Knows what the pipeline serves."""

    def pipeline_for(self, method: str, path: str) -> Serve | None:
        """Return what serves a path; None for what goes to the application."""


class _NoPipelines:
    """All goes to the application."""

    def pipeline_for(self, method: str, path: str) -> Serve | None:
        """Return None."""
        del method, path
        return None


def connection(
    limits: Listen, pipelines: Pipelines | None = None, *, counted: Clients | None = None
) -> type[HttpToolsProtocol]:
    """Return a protocol class that holds its connections to `limits`.

    Args:
        limits: What a client may hold.
        pipelines: What is served without ASGI; nothing by default.
        counted: Where connections are counted; apart from all others by default.
    """

    class Limited(Connection):
        listen: ClassVar[Listen] = limits
        clients: ClassVar[Clients] = counted or Clients()
        known: ClassVar[Pipelines] = pipelines or _NoPipelines()

    return Limited


class Connection(HttpToolsProtocol):
    """One connection of a client.

    Attributes:
        listen: The limits.
        clients: Connections by address.
        known: What is served without ASGI.
    """

    listen: ClassVar[Listen]
    clients: ClassVar[Clients]
    known: ClassVar[Pipelines]

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._address = ""
        self._in_head = True
        self._head_bytes = self._fields_bytes = 0
        self._too_late: asyncio.TimerHandle | None = None
        self._served: Downstream | None = None
        """The request under way, if the pipeline serves it."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, unless its client has enough of them."""
        super().connection_made(transport)
        self._address = self.client[0] if self.client else ""
        if self.clients.add(self._address) > self.listen.connections_per_client:
            self._refuse(b"429 Too Many Requests", "this address has too many connections open")
        else:
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a connection."""
        self._head_is_there()
        self.clients.remove(self._address)
        super().connection_lost(exc)
        # What is pipelined behind it is not begun; uvicorn knows of the last that came alone.
        self.pipeline.clear()
        if self._served is not None and not self._served.response_complete:
            self._served.disconnected = True
            self._served.set()

    def data_received(self, data: bytes) -> None:
        """Take bytes, as long as a head is not too long."""
        if self.transport.is_closing():
            return
        if self._in_head:
            if self._too_late is None:  # the first bytes of a further request
                self._expect_head()
            self._head_bytes += len(data)
            # A body may come with its head; it is no longer a head's length once that is read.
            if self._head_bytes > self.listen.max_head_bytes and b"\r\n\r\n" not in data:
                self._refuse(b"431 Request Header Fields Too Large", "the head is too long")
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """Begin with a head; ASGI's scope is made for what goes that way."""
        self.url, self.headers, self.expect_100_continue = b"", [], False

    def on_url(self, url: bytes) -> None:
        """Take the target."""
        super().on_url(url)
        self._fields_bytes = len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a field, unless the head is too long, which may have come in one piece."""
        super().on_header(name, value)
        self._fields_bytes += len(name) + len(value)
        if self._fields_bytes > self.listen.max_head_bytes:
            raise ValueError("too long a head")

    def on_headers_complete(self) -> None:
        """Let the request begin."""
        self._head_is_there()
        method = self.parser.get_method().decode("ascii")
        url = parse_url(self.url)
        path = url.path.decode("ascii")
        if "%" in path:
            path = unquote(path)
        serve = self.known.pipeline_for(method, path)
        if serve is None:
            target, headers, expects = self.url, self.headers, self.expect_100_continue
            super().on_message_begin()
            self.url, self.expect_100_continue = target, expects
            self.headers += headers  # the list that ASGI's scope has
            super().on_headers_complete()
            return
        before = self.cycle
        self.cycle = Downstream(  # type: ignore[assignment]
            method=method,
            target=url.path if url.query is None else b"%b?%b" % (url.path, url.query),
            path=path,
            headers=self.headers,
            socket=self.transport,
            flow=self.flow,
            own=self.server_state.default_headers,
            keep_alive=self.parser.get_http_version() == "1.1" and self.parser.should_keep_alive(),
            expects_continue=self.expect_100_continue,
            serve=serve,
            on_response=self.on_response_complete,
        )
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, self.app)
        else:
            self.pipeline.appendleft((self.cycle, self.app))
            if len(self.pipeline) >= PIPELINED:
                self.flow.pause_reading()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        """Begin with a request."""
        self._served = cycle if isinstance(cycle, Downstream) else None
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body."""
        if isinstance(self.cycle, Downstream):
            if not self.cycle.response_complete:
                self.cycle.take(body)
                if self.cycle is not self._served and self.cycle.size > PIPELINED_BYTES:
                    self.flow.pause_reading()
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Expect the next request's head."""
        self._in_head, self._head_bytes = True, 0
        super().on_message_complete()
        if isinstance(self.cycle, Downstream) and self.cycle.lingers:
            self.transport.close()  # what was left of its body is over

    def _expect_head(self) -> None:
        self._in_head, self._head_bytes = True, 0
        self._too_late = self.loop.call_later(self.listen.head_s, self._give_up)

    def _head_is_there(self) -> None:
        self._in_head = False
        if self._too_late is not None:
            self._too_late.cancel()
            self._too_late = None

    def _give_up(self) -> None:
        self._too_late = None
        if not self.transport.is_closing():
            self._refuse(b"408 Request Timeout", "the request's head did not come in time")

    def _refuse(self, status: bytes, message: str) -> None:
        body = b'{"error":{"message":"%b","type":"invalid_request_error","param":null,"code":%b}}'
        body %= message.encode(), status[:3]
        self.transport.write(
            b"HTTP/1.1 %b\r\ncontent-type: application/json\r\nconnection: close\r\n"
            b"content-length: %d\r\n\r\n%b" % (status, len(body), body)
        )
        self.transport.close()
