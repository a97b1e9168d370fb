"""The server's HTTP protocol: uvicorn's, with limits, and a shorter way to the pipeline.

uvicorn limits neither how long a request's head may be nor how long it may take to come, nor how
many connections one client has; each costs the gateway a socket and memory. Bodies are limited
where they are read (`proxy.downstream`).

What the pipeline serves does not pass ASGI, which would cost as much again as the decision
(docs/adr/0011); all else goes to FastAPI as ever.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar
from urllib.parse import quote, unquote

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser, parse_url
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from config.settings import Listen
from proxy.cors import Cors
from proxy.downstream import Downstream, Headers
from proxy.errors import InvalidRequest, speaks_anthropic
from proxy.shared import Clients

PIPELINED, PIPELINED_BYTES = 4, 64 * 2**10
"""Requests that may wait behind another on a connection, and how long the body of one may be,
before no more is read. Until then the client is heard when it leaves."""

_TOO_LONG = b"431 Request Header Fields Too Large", "the head is too long (listen.max_head_bytes)"

Serve = Callable[[Downstream], Awaitable[None]]


class Pipelines:
    """What the pipeline serves, and what holds for every answer; by itself nothing.

    Attributes:
        cors: What answers say to browsers; None where they say nothing.
    """

    cors: Cors | None = None

    @property
    def leaving(self) -> bool:
        """Whether clients had better connect elsewhere for their next request."""
        return False

    def pipeline_for(self, method: str, path: str) -> Serve | None:
        """Return what serves a path; None for what goes to the application."""
        del method, path
        return None


def connection(
    limits: Listen, pipelines: Pipelines | None = None, *, counted: Clients | None = None
) -> type[HttpToolsProtocol]:
    """Return a protocol class that holds its connections to `limits`.

    Args:
        limits: What a client may hold; a reload does not change it.
        pipelines: What is served without ASGI; nothing by default.
        counted: Where connections are counted; apart from all others by default.
    """

    class Limited(Connection):
        listen: ClassVar[Listen] = limits
        clients: ClassVar[Clients] = counted or Clients()
        known: ClassVar[Pipelines] = pipelines or Pipelines()

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
        self.url, self.headers = b"", []
        self._begun: Any = None
        """The request that is answered or was answered last."""

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
        self._nothing_is_due()
        self.clients.remove(self._address)
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # uvicorn leaves it to one that was reset
        # What is pipelined behind it is not begun; uvicorn knows of the last that came alone.
        self.pipeline.clear()
        if self._is_answering and isinstance(self._begun, Downstream):
            self._begun.disconnected = True
            self._begun.set()

    def data_received(self, data: bytes) -> None:
        """Take bytes, as long as a head is not too long."""
        if self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        if self._in_head and self._too_late is None:  # the first bytes of a further request
            self._expect_head()
        self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except HttpParserUpgrade as stopped:
            self._read_without_upgrade(data[stopped.args[0] :])
            return
        except HttpParserError:
            if self._fields_bytes > self.listen.max_head_bytes:
                self._refuse(*_TOO_LONG)
            else:
                self.logger.warning("what %s sent is not HTTP/1.1", self._address or "a client")
                self._refuse(b"400 Bad Request", "this is not HTTP as it should be")
            return
        # What comes between the pieces of a body or after it may be without end too.
        if self._head_bytes > self.listen.max_head_bytes:
            self._refuse(*_TOO_LONG)

    def _read_without_upgrade(self, rest: bytes) -> None:
        """Read a head anew as if it had not asked for another protocol, as RFC 9110 (7.8) allows.

        After such a head the parser takes what follows, its body, for the other protocol's, or
        for a further request: Java's client asks for `h2c` with the first request it sends.
        """
        version = self.parser.get_http_version().encode()
        head = [b"%b %b HTTP/%b\r\n" % (self.parser.get_method(), self.url, version)]
        head += [b"%b: %b\r\n" % field for field in self.headers if field[0] != b"upgrade"]
        self.parser = HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
        self._head_bytes = 0
        self.data_received(b"%b\r\n%b" % (b"".join(head), rest))

    def on_message_begin(self) -> None:
        """Begin with a head; ASGI's scope is made for what goes that way."""
        self.url, self.headers, self.expect_100_continue = b"", [], False
        self._fields_bytes = 0

    def on_url(self, url: bytes) -> None:
        """Take the target."""
        super().on_url(url)
        self._fields_bytes += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a field, unless the head is too long, which may have come in one piece."""
        super().on_header(name, value)
        self._fields_bytes += len(name) + len(value)
        if self._fields_bytes > self.listen.max_head_bytes:
            raise ValueError("too long a head")

    def on_headers_complete(self) -> None:
        """Let the request begin."""
        method = self.parser.get_method().decode("ascii")
        if self.parser.should_upgrade():
            if method == "CONNECT":
                raise ValueError("no tunnels here")
            return  # it is read anew: the parser takes no body after it
        self._in_head, self._head_bytes = False, 0
        self._nothing_is_due()
        path, self.url = _addressed(self.url)
        serve, cors = self.known.pipeline_for(method, path), self.known.cors
        own = self.server_state.default_headers
        if cors is not None:
            own = [*own, *cors.fields(self.headers)]
        if serve is None:
            target, headers, expects = self.url, self.headers, self.expect_100_continue
            super().on_message_begin()
            self.url, self.expect_100_continue = target, expects
            self.headers += headers  # the list that ASGI's scope has
            super().on_headers_complete()
            self.cycle.default_headers = own
            self.cycle.keep_alive = self.cycle.keep_alive and not self.known.leaving
            self._expect_body()
            self.headers = []
            return
        before = self.cycle
        is_1_1 = self.parser.get_http_version() == "1.1"
        self.cycle = Downstream(  # type: ignore[assignment]
            method=method,
            target=self.url,
            path=path,
            headers=self.headers,
            socket=self.transport,
            flow=self.flow,
            own=own,
            cors=cors is not None,
            keep_alive=is_1_1 and self.parser.should_keep_alive() and not self.known.leaving,
            chunks=is_1_1,
            expects_continue=is_1_1 and self.expect_100_continue,
            serve=serve,
            on_response=self.on_response_complete,
        )
        self.headers = []  # for trailers, which are no fields of the request and are dropped
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, self.app)
        else:
            self.pipeline.appendleft((self.cycle, self.app))
            if len(self.pipeline) >= PIPELINED:
                self.flow.pause_reading()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        """Begin with a request."""
        self._begun = cycle
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body."""
        self._head_bytes = 0
        if isinstance(self.cycle, Downstream):
            if not self.cycle.response_complete:
                self.cycle.take(body)
                if self.cycle is not self._begun and self.cycle.size > PIPELINED_BYTES:
                    self.flow.pause_reading()
        else:
            self._expect_body()
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Expect the next request's head."""
        if self._in_head:
            return  # that was a head alone, which is read anew
        self._in_head, self._head_bytes = True, 0
        if self._too_late is not None:
            self._nothing_is_due()
        super().on_message_complete()
        if isinstance(self.cycle, Downstream) and self.cycle.lingers:
            self.transport.close()  # what was left of its body is over

    def _expect_head(self) -> None:
        self._in_head, self._head_bytes = True, 0
        self._too_late = self.loop.call_later(self.listen.head_s, self._give_up)

    def _expect_body(self) -> None:
        """Wait for a piece of a body; what the pipeline serves has a wait of its own for it."""
        self._nothing_is_due()
        self._too_late = self.loop.call_later(self.listen.body_s, self._give_up)

    def _nothing_is_due(self) -> None:
        if self._too_late is not None:
            self._too_late.cancel()
            self._too_late = None

    def _give_up(self) -> None:
        self._too_late = None
        if self._is_answering and (self._in_head or self.cycle is not self._begun):
            # It stands behind an answer under way, which does not end for that.
            self._too_late = self.loop.call_later(self.listen.head_s, self._give_up)
        elif not self.transport.is_closing():
            what, limit = ("head", "head_s") if self._in_head else ("body", "body_s")
            message = f"the request's {what} did not come in time (listen.{limit})"
            self._refuse(b"408 Request Timeout", message)

    @property
    def _is_answering(self) -> bool:
        return self._begun is not None and not self._begun.response_complete

    def _refuse(self, status: bytes, message: str) -> None:
        """Refuse what came last and close, without a word if that would be read as another's."""
        if self._may_refuse:
            self._write_refusal(status, message)
        self.transport.close()

    @property
    def _may_refuse(self) -> bool:
        """Whether what is written next answers what came last."""
        begun = self._begun
        if begun is None or begun.response_complete:
            return self._in_head
        started = begun.started if isinstance(begun, Downstream) else begun.response_started
        return begun is self.cycle and begun.more_body and not started

    def _write_refusal(self, status: bytes, message: str) -> None:
        path, headers = self._refused()
        error, cors = InvalidRequest(message), self.known.cors
        error.status = int(status[:3])
        body = error.body(anthropic=speaks_anthropic(path))
        fields = b"" if cors is None else b"".join(b"%b: %b\r\n" % f for f in cors.fields(headers))
        self.transport.write(
            b"HTTP/1.1 %b\r\ncontent-type: application/json\r\nconnection: close\r\n"
            b"%bcontent-length: %d\r\n\r\n%b" % (status, fields, len(body), body)
        )

    def _refused(self) -> tuple[str, Headers]:
        """Return path and fields of what is refused, as far as they came."""
        if not self._in_head:
            begun = self._begun
            if isinstance(begun, Downstream):
                return begun.path, begun.headers
            return begun.scope["path"], begun.scope["headers"]
        try:
            return _addressed(self.url)[0], self.headers
        except (HttpParserError, UnicodeDecodeError):
            return "", self.headers


def _addressed(url: bytes) -> tuple[str, bytes]:
    """Return the decoded path of a target, and the target with no more than path and query.

    Slashes at the end of the path are left out: vLLM sends a client to the path without them.
    """
    parsed = parse_url(url)
    raw, query = parsed.path or b"/", parsed.query
    path = raw.decode("ascii")
    if "%" in path:
        path = unquote(path)
    if path.endswith("/") and path.strip("/"):
        path = path.rstrip("/")
        raw = quote(path).encode()
    return path, raw if query is None else b"%b?%b" % (raw, query)
