"""The client's side of a request: its body, its leaving, and the answer to it (raw ASGI)."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeVar

from proxy.errors import BodyTooLarge, BodyTooSlow, ClientGone, InvalidRequest, ProxyError
from proxy.sse import event

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]
T = TypeVar("T")


class Downstream:
    """One exchange with a client.

    Attributes:
        path: The path asked for.
        headers: The request's fields, names in lower case.
        started: Whether a byte of the answer has gone out, so that nothing can be tried again.
        in_events: Whether the answer under way is an event stream, which an event can end.
        complete: Whether all of it has.
        added: Fields that the gateway adds to the answer's.
    """

    __slots__ = (
        "_receive",
        "_send",
        "added",
        "complete",
        "headers",
        "in_events",
        "method",
        "path",
        "query",
        "started",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query: bytes = scope["query_string"]
        self.headers: Headers = scope["headers"]
        self.started = False
        self.in_events = False
        self.complete = False
        self.added: dict[bytes, bytes] = {}
        self._receive = receive
        self._send = send

    def header(self, name: bytes) -> str | None:
        """Return the first value of a request field, or None."""
        for key, value in self.headers:
            if key == name:
                return value.decode("latin-1").strip()
        return None

    async def body(self, limit: int, *, wait_s: float) -> bytes:
        """Return the whole request body.

        Args:
            limit: Most bytes.
            wait_s: Longest wait for the next piece of it, s.

        Raises:
            BodyTooSlow: If a piece took longer.
            BodyTooLarge: If it has more than `limit` bytes.
            InvalidRequest: If it is compressed; it could not be read.
            ClientGone: If the client left while sending it.
        """
        encoding = self.header(b"content-encoding")
        if encoding and encoding.lower() != "identity":
            msg = f"content-encoding {encoding[:40]!r} is not supported; send the body as it is"
            raise InvalidRequest(msg)
        declared = self.header(b"content-length")
        if declared and declared.isdigit() and int(declared) > limit:
            raise BodyTooLarge(_too_large(int(declared), limit))
        pieces: list[bytes] = []
        size = 0
        while True:
            try:
                async with asyncio.timeout(wait_s):
                    message = await self._receive()
            except TimeoutError:
                msg = f"nothing more of the body came for {wait_s:g} s (listen.body_s)"
                raise BodyTooSlow(msg) from None
            if message["type"] == "http.disconnect":
                raise ClientGone
            piece = message.get("body", b"")
            size += len(piece)
            if size > limit:
                raise BodyTooLarge(_too_large(size, limit))
            pieces.append(piece)
            if not message.get("more_body", False):
                return b"".join(pieces) if len(pieces) > 1 else piece

    async def left(self) -> None:
        """Wait until the client leaves, or has its whole answer.

        Raises:
            ClientGone: If it left before that.
        """
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self.complete:
            raise ClientGone

    async def start(self, status: int, headers: Headers) -> None:
        """Send the head of the answer, with the fields in `added` in place of its own."""
        self.started = True
        kept = [(name, value) for name, value in headers if name not in self.added]
        head = [*kept, *self.added.items()]
        self.in_events = (b"content-type", b"text/event-stream") in (
            (name, value.partition(b";")[0].strip().lower()) for name, value in kept
        )
        await self._send({"type": "http.response.start", "status": status, "headers": head})

    async def write(self, body: bytes, *, more: bool) -> None:
        """Send a piece of the answer; waits while the client reads slowly."""
        self.complete = not more
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    @property
    def anthropic(self) -> bool:
        """Whether errors take Anthropic's shape."""
        return self.path.startswith("/v1/messages")

    async def fail(self, error: ProxyError) -> None:
        """Answer with an error of the gateway's own."""
        body = error.body(anthropic=self.anthropic)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            *((key.encode(), value.encode()) for key, value in error.headers.items()),
        ]
        await self.start(error.status, headers)
        await self.write(body, more=False)

    async def break_off(self, error: ProxyError) -> None:
        """End an event stream under way with an error event, after whatever part of one went out.

        Of any other body, stopping short is the only sign left: the server closes the socket.
        """
        if self.in_events and not self.complete:
            data = error.body(anthropic=self.anthropic)
            name = "error" if self.anthropic else ""
            await self.write(b"\n\n" + event(data, name=name), more=False)


def _too_large(size: int, limit: int) -> str:
    return f"the body has {size} bytes or more; listen.max_body_bytes allows {limit}"


async def while_connected(downstream: Downstream, work: Awaitable[T]) -> T:
    """Await `work`, but no longer than the client stays.

    Raises:
        ClientGone: If the client left first; `work` has been cancelled and has ended.
    """
    try:
        async with asyncio.TaskGroup() as group:
            watcher = group.create_task(downstream.left())
            result = await work
            watcher.cancel()
    except BaseExceptionGroup as failures:
        gone = failures.subgroup(ClientGone)
        raise (gone or failures).exceptions[0] from None
    return result
