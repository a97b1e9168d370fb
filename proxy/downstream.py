"""The client's side of a request: its body, its leaving, and the answer, as bytes on a socket.

It stands where uvicorn's protocol has its own request and response cycle, so that pipelining, idle
connections and shutdown are uvicorn's; what ASGI would put between is left out (docs/adr/0011).
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from proxy.errors import BodyTooLarge, BodyTooSlow, ClientGone, ProxyError
from proxy.sse import event

Headers = list[tuple[bytes, bytes]]


LINGER_S = 2.0
"""How long a client may go on with a body that is not wanted, to read the answer in peace; and how
long one that reads nothing is waited for, to be told that its answer has failed."""


class Flow(Protocol):
    """Whether the socket takes more; uvicorn's."""

    write_paused: bool

    async def drain(self) -> None:
        """Wait until it does."""


class Socket(Protocol):
    """What is needed of a transport."""

    def write(self, data: bytes) -> None:
        """Send bytes."""

    def close(self) -> None:
        """Close it when they are sent."""

    def abort(self) -> None:
        """Close it at once."""

    def is_closing(self) -> bool:
        """Whether that has begun."""


class Downstream:
    """One exchange with a client.

    Args:
        method: As it came.
        target: Path and query, as they came.
        path: The path, decoded.
        headers: The request's fields, names in lower case.
        socket: Where the answer goes.
        flow: Whether that takes more.
        own: Fields that every answer of this server has.
        keep_alive: Whether the connection may be used again.
        chunks: Whether the client can read a body in chunks, as HTTP/1.1 has it.
        expects_continue: Whether the client waits to be asked for its body.
        serve: Answers it.
        on_response: Called when the answer is complete.

    Attributes:
        started: Whether a byte of the answer has gone out, so that nothing can be tried again.
        in_events: Whether the answer under way is an event stream, which an event can end.
        added: Fields that the gateway adds to the answer's.
        on_left: Called if the client leaves before it has its whole answer.
        disconnected: Whether it has left.
        response_complete: Whether it has its whole answer.
        size: Bytes of its body that have come.
    """

    __slots__ = (
        "_chunked",
        "_chunks",
        "_expects_continue",
        "_flow",
        "_head",
        "_own",
        "_pieces",
        "_serve",
        "_socket",
        "_waiter",
        "added",
        "disconnected",
        "headers",
        "in_events",
        "keep_alive",
        "method",
        "more_body",
        "on_left",
        "on_response",
        "path",
        "response_complete",
        "size",
        "started",
        "target",
    )

    def __init__(
        self,
        *,
        method: str,
        target: bytes,
        path: str,
        headers: Headers,
        socket: Socket,
        flow: Flow,
        own: Sequence[tuple[bytes, bytes]],
        keep_alive: bool,
        chunks: bool,
        expects_continue: bool,
        serve: "Callable[[Downstream], Awaitable[None]]",
        on_response: Callable[[], None],
    ) -> None:
        self.method = method
        self.target = target
        self.path = path
        self.headers = headers
        self.keep_alive = keep_alive
        self.on_response = on_response
        self.on_left: Callable[[], None] | None = None
        self.more_body = True
        self.started = self.in_events = self.response_complete = self.disconnected = False
        self.added: dict[bytes, bytes] = {}
        self._socket = socket
        self._flow = flow
        self._own = own
        self._chunks = chunks
        self._expects_continue = expects_continue
        self._serve = serve
        self._pieces: list[bytes] = []
        self.size = 0
        self._head = b""
        self._chunked = False
        self._waiter: asyncio.Future[None] | None = None

    # What uvicorn's protocol calls

    @property
    def message_event(self) -> "Downstream":
        """What is set when something has happened."""
        return self

    def set(self) -> None:
        """Look at what has happened: more of the body, its end, or the client's leaving."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if self.disconnected and self.on_left is not None:
            self.on_left()

    async def run_asgi(self, _: object) -> None:
        """Answer the request."""
        try:
            await self._serve(self)
        finally:
            self.on_left = None
            if not self.response_complete:
                # What a client does not read would never be sent, nor its connection closed.
                self._socket.abort() if self._flow.write_paused else self._socket.close()
            self.on_response = _nothing

    def take(self, piece: bytes) -> None:
        """Take a piece of the body."""
        self.size += len(piece)
        self._pieces.append(piece)
        self.set()

    # What the pipeline calls

    def header(self, name: bytes) -> str | None:
        """Return the first value of a request field, or None."""
        return first_of(self.headers, name)

    async def body(self, limit: int, *, wait_s: float) -> bytes:
        """Return the whole request body.

        Args:
            limit: Most bytes.
            wait_s: Longest wait for the next piece of it, s.

        Raises:
            BodyTooSlow: If a piece took longer.
            BodyTooLarge: If it has more than `limit` bytes.
            ClientGone: If the client left while sending it.
        """
        declared = self.header(b"content-length")
        if declared and declared.isdigit() and int(declared) > limit:
            raise BodyTooLarge(_too_large(int(declared), limit))
        while self.more_body and not self.disconnected:
            if self.size > limit:
                raise BodyTooLarge(_too_large(self.size, limit))
            if self._expects_continue:
                self._expects_continue = False
                self._socket.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(wait_s):
                    await self._waiter
            except TimeoutError:
                msg = f"nothing more of the body came for {wait_s:g} s (listen.body_s)"
                raise BodyTooSlow(msg) from None
            finally:
                self._waiter = None
        if self.disconnected:
            raise ClientGone
        if self.size > limit:
            raise BodyTooLarge(_too_large(self.size, limit))
        pieces, self._pieces = self._pieces, []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def start(self, status: int, headers: Headers) -> None:
        """Begin the answer, with the fields in `added` in place of its own.

        It goes out with the first piece of the body.
        """
        self.started = True
        parts, added = [STATUS_LINE[status]], self.added
        length = b""
        for name, value in headers:
            if name in added or name == b"transfer-encoding":
                continue
            if name == b"content-length":
                length = value
                continue
            if name == b"content-type":
                kind = value.partition(b";")[0].strip().lower()
                self.in_events = kind == b"text/event-stream"
            elif name == b"connection":  # of an error of our own; a backend's ends at the backend
                self.keep_alive = False
                continue
            parts.append(b"%b: %b\r\n" % (name, value))
        parts += [b"%b: %b\r\n" % field for field in added.items()]
        parts += [b"%b: %b\r\n" % field for field in self._own]
        # A stream's length may change on the way: the gateway takes out what it asked for itself.
        ends_itself = status in (204, 304) or bool(length and not self.in_events)
        self._chunked = self._chunks and not ends_itself
        if self._chunked:
            parts.append(b"transfer-encoding: chunked\r\n")
        elif length and ends_itself:
            parts.append(b"content-length: %b\r\n" % length)
        # What is left of a body that is not wanted would be read as the next request.
        self.keep_alive = self.keep_alive and not self.more_body
        parts.append(b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n")
        self._head = b"".join(parts)

    async def write(self, body: bytes, *, more: bool) -> None:
        """Send a piece of the answer; waits while the client reads slowly."""
        if self._flow.write_paused and not self.disconnected:
            await self._flow.drain()
        if self.disconnected or self._socket.is_closing():
            return
        head, self._head = self._head, b""
        if not self._chunked:
            data = head + body
        elif body:
            data = b"%b%x\r\n%b\r\n%b" % (head, len(body), body, b"" if more else b"0\r\n\r\n")
        else:
            data = head + (b"" if more else b"0\r\n\r\n")
        self._socket.write(data)
        if not more:
            self.response_complete = True
            if self.lingers:
                asyncio.get_running_loop().call_later(LINGER_S, self._socket.close)
            elif not self.keep_alive:
                self._socket.close()
            self.on_response()

    @property
    def lingers(self) -> bool:
        """Whether the answer is complete while the client still sends a body nobody wants.

        Closed at once, the client's side could lose the answer before it is read.
        """
        return self.response_complete and self.more_body

    @property
    def anthropic(self) -> bool:
        """Whether errors take Anthropic's shape."""
        return self.path.startswith("/v1/messages")

    async def fail(self, error: ProxyError) -> None:
        """Answer with an error of the gateway's own."""
        body = error.body(anthropic=self.anthropic)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            *((key.encode(), value.encode()) for key, value in error.headers.items()),
        ]
        self.start(error.status, headers)
        await self._end(body)

    async def break_off(self, error: ProxyError) -> None:
        """End an event stream under way with an error event, after whatever part of one went out.

        Of any other body, stopping short is the only sign left: the socket is closed.
        """
        if self.in_events and not self.response_complete:
            data = error.body(anthropic=self.anthropic)
            name = "error" if self.anthropic else ""
            await self._end(b"\n\n" + event(data, name=name))

    async def _end(self, body: bytes) -> None:
        """Send the last piece of an error, unless the client reads nothing of what was before."""
        if self._flow.write_paused:
            try:
                async with asyncio.timeout(LINGER_S):
                    await self._flow.drain()
            except TimeoutError:
                return
        await self.write(body, more=False)


def first_of(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str | None:
    """Return the first value of a request field, or None."""
    for key, value in headers:
        if key == name:
            return value.decode("latin-1").strip()
    return None


def _nothing() -> None:
    """Do nothing when an answer is complete: its request has ended already."""


def _too_large(size: int, limit: int) -> str:
    return f"the body has {size} bytes or more; listen.max_body_bytes allows {limit}"
