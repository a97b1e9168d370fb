"""Requests to backends: what is sent, how long is waited, and the answer as it comes."""

import asyncio
from collections.abc import Iterable
from errno import ECONNREFUSED, EHOSTUNREACH, ENETUNREACH
from typing import Self

from config.settings import Timeouts
from proxy.errors import (
    BackendError,
    BackendUnreachable,
    ChunkTimeout,
    ConnectTimeout,
    FirstByteTimeout,
)
from proxy.fleet import Change, Member
from proxy.links import Link, Links, Lost, Place
from proxy.patience import Patience

HeaderList = Iterable[tuple[bytes, bytes]]

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Fields that end at each hop (RFC 9110, section 7.6.1), beside those `Connection` names."""
_SET_HERE = HOP_BY_HOP | {b"host", b"content-length", b"accept-encoding", b"expect"}
_SET_HERE |= {b"x-request-id"}
_CREDENTIALS = frozenset({b"authorization", b"x-api-key"})
_ANSWERED_HERE = HOP_BY_HOP | {b"date", b"server", b"x-request-id"}

_NOBODY_THERE = frozenset({ECONNREFUSED, EHOSTUNREACH, ENETUNREACH})
"""Failures to connect that say something about the backend. `EMFILE` and `EADDRNOTAVAIL`, for
instance, are the gateway's: by them every backend would go out at once."""

SEEN_S = 1.0
"""How long it may take to see whether a backend that lost a request is there."""

_NO_NAMES: frozenset[bytes] = frozenset()


def named_by_connection(headers: HeaderList) -> frozenset[bytes]:
    """Return the fields that end at this hop because a field `Connection` names them."""
    found = [value for name, value in headers if name == b"connection"]
    if not found:
        return _NO_NAMES
    return frozenset(token.strip().lower() for value in found for token in value.split(b","))


class Answer:
    """A backend's response whose head has arrived.

    Attributes:
        status: HTTP status.
        headers: End-to-end fields, as they came, names in lower case.
        streams: Whether it is an event stream.
        encoded: Whether it is compressed, against what was asked, so that it cannot be read.
    """

    __slots__ = (
        "_begun",
        "_link",
        "_member",
        "_patience",
        "_waits",
        "encoded",
        "headers",
        "status",
        "streams",
    )

    def __init__(self, link: Link, member: Member, *, waits: Timeouts, patience: Patience) -> None:
        self._link = link
        self._member = member
        self._waits = waits
        self._patience = patience
        self._begun = False
        self.status = link.status
        self.streams = self.encoded = False
        self.headers = []
        named = named_by_connection(link.headers)
        for pair in link.headers:
            name, value = pair
            if name in _ANSWERED_HERE or name in named:
                continue
            if name == b"content-type":
                self.streams = value.partition(b";")[0].strip().lower() == b"text/event-stream"
            elif name == b"content-encoding":
                self.encoded = value.strip().lower() != b"identity"
            self.headers.append(pair)

    async def read(self) -> bytes:
        """Return the next bytes as they arrive; empty at the end.

        vLLM sends the head of a stream before the prompt is read, so the wait for the first bytes
        is what remains of `first_byte_s`. Too long a wait ends the request's task.

        Raises:
            BackendUnreachable: If the connection is lost before the end.
        """
        if self._begun:
            self._patience.wait(self._waits.between_chunks_s, self._stopped)
        try:
            piece = await self._link.read()
        except Lost as lost:
            msg = f"the connection to {self._member.name} was lost: {lost}"
            raise BackendUnreachable(msg) from lost
        self._patience.rest()
        self._begun = True
        return piece

    def _stopped(self) -> BackendError:
        waited_s = self._waits.between_chunks_s
        msg = f"backend {self._member.name} stopped amid its answer for {waited_s:g} s "
        return ChunkTimeout(msg + "(between_chunks_s)")

    async def whole(self, limit: int) -> tuple[bytes, bool]:
        """Return up to about `limit` bytes, and whether that was all."""
        pieces: list[bytes] = []
        size = 0
        while size <= limit:
            piece = await self.read()
            if piece:
                pieces.append(piece)
                size += len(piece)
            if self._link.at_end:
                return b"".join(pieces), True
        return b"".join(pieces), False

    def close(self) -> None:
        """Be done with it: the connection is used again if all of it was read."""
        self._link.done()


class Upstream:
    """Connections to every backend: kept alive, without a limit of their own.

    Args:
        timeouts: Waits on a backend.
        pass_keys: Whether a client's key is the backends' and goes on to them, where a pool has
            none of its own; else it is the gateway's.
    """

    def __init__(self, timeouts: Timeouts, *, pass_keys: bool) -> None:
        self.configure(timeouts, pass_keys=pass_keys)
        self._links: dict[str, Links] = {}

    def configure(self, timeouts: Timeouts, *, pass_keys: bool) -> None:
        """Open further requests by other settings; those under way keep theirs."""
        self._timeouts = timeouts
        self._pass_keys = pass_keys

    def follow(self, change: Change) -> None:
        """Close idle connections to members that are gone."""
        for member in change.removed:
            if (links := self._links.pop(member.url, None)) is not None:
                links.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for links in self._links.values():
            links.close()
        self._links.clear()

    async def send(
        self,
        member: Member,
        patience: Patience,
        *,
        method: str,
        target: bytes,
        headers: HeaderList,
        body: bytes | None,
        request_id: str,
        api_key: str | None,
        prompt_tokens: float = 0.0,
    ) -> Answer:
        """Send a request and return its answer once the head is there; to be closed.

        Where a connection that was idle is lost before an answer, the backend may have closed it
        at that moment: that says nothing of it, and the request is sent once more on a new one.
        The longer its prompt, the longer the first byte may take. Too long a wait ends the
        request's task.

        Raises:
            BackendUnreachable: If no connection could be made, or it was lost before the head.
        """
        waits = self._timeouts
        links = self._links.get(member.url)
        if links is None:
            links = self._links[member.url] = Links(member.url)
        first_s = waits.first_byte_s + waits.prompt_token_s * prompt_tokens

        def late() -> BackendError:
            msg = f"backend {member.name} sent no byte of an answer for {first_s:g} s "
            return FirstByteTimeout(msg + "(first_byte_s)")

        head = self._head(
            links.place, method, target, headers, body, request_id=request_id, api_key=api_key
        )
        link, sent = links.idle(), False
        while True:
            if link is None:
                link = await self._dial(links, member, patience, waits, sent=sent)
            patience.wait(first_s, late)
            try:
                link.send(head, body)
                await link.head()
            except Lost as lost:
                link.close("it was lost")
                if not link.idle_since:
                    msg = f"backend {member.name} was lost before it answered: {lost}"
                    raise BackendUnreachable(msg) from lost
                link, sent = None, True
            except BaseException:
                link.close("nobody waits for the answer")
                raise
            else:
                break
        return Answer(link, member, waits=waits, patience=patience)

    async def refuses(self, member: Member) -> bool:
        """Whether nobody is there to connect to any more."""
        try:
            async with asyncio.timeout(SEEN_S):
                link = await Links(member.url).dial()
        except OSError as error:
            return error.errno in _NOBODY_THERE
        link.close("it was to see whether somebody is there")
        return False

    @staticmethod
    async def _dial(
        links: Links, member: Member, patience: Patience, waits: Timeouts, *, sent: bool
    ) -> Link:
        """Return a new connection to `member`.

        Args:
            links: Its connections.
            member: The backend.
            patience: Ends the wait.
            waits: How long that may be.
            sent: Whether the request was lost there on another connection.

        Raises:
            BackendUnreachable: If none can be made.
        """

        def late() -> BackendError:
            msg = f"no connection to backend {member.name} in {waits.connect_s:g} s (connect_s)"
            return ConnectTimeout(msg, connected=False)

        patience.wait(waits.connect_s, late)
        try:
            return await links.dial()
        except OSError as error:
            refused = error.errno in _NOBODY_THERE
            msg = f"no connection to backend {member.name}: {error.strerror or error}"
            raise BackendUnreachable(msg, connected=sent, refused=refused) from error

    def _head(
        self,
        place: Place,
        method: str,
        target: bytes,
        headers: HeaderList,
        body: bytes | None,
        *,
        request_id: str,
        api_key: str | None,
    ) -> bytes:
        """Return the request's head: the client's end-to-end fields, without the gateway's."""
        target = place.path + target
        parts = [b"%b %b HTTP/1.1\r\nhost: %b\r\n" % (method.encode(), target, place.authority)]
        named = named_by_connection(headers)
        drops_keys = api_key is not None or not self._pass_keys
        for name, value in headers:
            if name in _SET_HERE or name in named or name.startswith(b"x-turnout-"):
                continue
            if drops_keys and name in _CREDENTIALS:
                continue
            parts.append(b"%b: %b\r\n" % (name, value))
        # The answer is read as it passes, so it must not be compressed.
        parts.append(
            b"accept-encoding: identity\r\nx-request-id: %b\r\n" % request_id.encode("latin-1")
        )
        if api_key is not None:
            parts.append(b"authorization: Bearer %b\r\n" % api_key.encode())
        if body is not None:
            parts.append(b"content-length: %d\r\n" % len(body))
        parts.append(b"\r\n")
        return b"".join(parts)
