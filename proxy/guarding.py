"""The server's HTTP protocol with limits on what a client may hold without asking anything.

uvicorn limits neither how long a request's head may be nor how long it may take to come, nor how
many connections one client has; each costs the gateway a socket and memory. Bodies are limited
where they are read (`proxy.downstream`).
"""

import asyncio
from collections import Counter
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from config.settings import Listen


def guarded(limits: Listen) -> type[HttpToolsProtocol]:
    """Return a protocol class that holds its connections to `limits`."""

    class Guarded(_Guarded):
        listen: ClassVar[Listen] = limits
        clients: ClassVar[Counter[str]] = Counter()

    return Guarded


class _Guarded(HttpToolsProtocol):
    """One connection.

    Attributes:
        listen: The limits.
        clients: Connections by address.
    """

    listen: ClassVar[Listen]
    clients: ClassVar[Counter[str]]

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._address = ""
        self._in_head = True
        self._head_bytes = self._fields_bytes = 0
        self._too_late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, unless its client has enough of them."""
        super().connection_made(transport)
        self._address = self.client[0] if self.client else ""
        self.clients[self._address] += 1
        if self.clients[self._address] > self.listen.connections_per_client:
            self._refuse(b"429 Too Many Requests", "this address has too many connections open")
        else:
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a connection."""
        self._head_is_there()
        self.clients[self._address] -= 1
        if not self.clients[self._address]:
            del self.clients[self._address]
        super().connection_lost(exc)

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
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Expect the next request's head."""
        self._in_head, self._head_bytes = True, 0
        super().on_message_complete()

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
