"""Requests to backends: what is sent, how long is waited, and the answer as it comes."""

import asyncio
from collections.abc import Callable, Iterable
from errno import ECONNREFUSED, EHOSTUNREACH, ENETUNREACH
from time import monotonic
from typing import NamedTuple, Self

from config.settings import Timeouts
from proxy.credentials import Access, Credentials
from proxy.errors import (
    BackendError,
    BackendTimeout,
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


class Lookout(NamedTuple):
    """Who judges a long wait for a backend.

    Attributes:
        member: The backend.
        patience: What waits.
        clock: Seconds, monotonic; that of the probes.
    """

    member: Member
    patience: Patience
    clock: Callable[[], float]

    def look(
        self, within_s: float, kind: type[BackendTimeout], what: str, *, ends: bool = True
    ) -> BackendError | float:
        """Return what ends a wait that has become long, or in how many seconds to look again.

        Args:
            within_s: How long a server may show no life.
            kind: The error.
            what: What was waited for, and the setting.
            ends: Whether it ends where nothing is known of the engine.
        """
        waited_s = asyncio.get_running_loop().time() - self.patience.since
        again_s = self.member.vitals.look(
            self.clock(), within_s=within_s, waited_s=waited_s, up=self.member.up
        )
        if again_s is None:
            return kind(f"backend {self.member.name} {what}") if ends else within_s
        if again_s:
            return again_s
        msg = f"backend {self.member.name} {what}, and its engine did nothing meanwhile"
        return kind(msg, stalled=True)


class Answer:
    """A backend's response whose head has arrived.

    Attributes:
        status: HTTP status.
        headers: End-to-end fields, as they came, names in lower case.
        streams: Whether it is an event stream.
        readable: Whether it can be read: JSON or events, not compressed against what was asked.
    """

    __slots__ = (
        "_begun",
        "_between_s",
        "_link",
        "_lookout",
        "headers",
        "readable",
        "status",
        "streams",
    )

    def __init__(self, link: Link, lookout: Lookout, *, between_s: float) -> None:
        self._link = link
        self._lookout = lookout
        self._between_s = between_s
        self._begun = False
        self.status = link.status
        self.headers = []
        kind, encoding = b"application/json", b"identity"  # where it does not say
        named = named_by_connection(link.headers)
        for pair in link.headers:
            name, value = pair
            if name in _ANSWERED_HERE or name in named:
                continue
            if name == b"content-type":
                kind = value.partition(b";")[0].strip().lower()
            elif name == b"content-encoding":
                encoding = value.strip().lower()
            self.headers.append(pair)
        self.streams = kind == b"text/event-stream"
        is_json = kind == b"application/json" or kind.endswith(b"+json")
        self.readable = encoding == b"identity" and (self.streams or is_json)

    async def read(self) -> bytes:
        """Return the next bytes as they arrive; empty at the end.

        vLLM sends the head of a stream before the prompt is read, so the wait for the first bytes
        is still that for `first_byte_s`. A wait that is judged too long ends the request's task.

        Raises:
            BackendUnreachable: If the connection is lost before the end.
        """
        member, patience, _ = self._lookout
        if self._begun:
            patience.wait(self._between_s, self._stopped)
        try:
            piece = await self._link.read()
        except Lost as lost:
            msg = f"the connection to {member.name} was lost: {lost}"
            raise BackendUnreachable(msg) from lost
        patience.rest()
        self._begun = True
        return piece

    def _stopped(self) -> BackendError | float:
        within_s = self._between_s
        what = f"stopped amid its answer for {within_s:g} s (between_chunks_s)"
        return self._lookout.look(within_s, ChunkTimeout, what)

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
        clock: Seconds, monotonic; that of the probes.
    """

    def __init__(self, timeouts: Timeouts, *, clock: Callable[[], float] = monotonic) -> None:
        self.configure(timeouts)
        self._clock = clock
        self._links: dict[str, Links] = {}

    def configure(self, timeouts: Timeouts) -> None:
        """Open further requests by other settings; those under way keep theirs."""
        self._timeouts = timeouts

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
        credentials: Credentials,
        body: bytes | None,
        request_id: str,
        prompt_tokens: float = 0.0,
        streams: bool = False,
    ) -> Answer:
        """Send a request and return its answer once the head is there; to be closed.

        Where a connection that was idle is lost before an answer, the backend may have closed it
        at that moment: that says nothing of it, and the request is sent once more on a new one.
        The longer its prompt, the longer the first byte may take. Of an answer that is not
        streamed the first byte comes with the last: only an engine that stands still ends that
        wait, or the request's own time. A wait that is judged too long ends the request's task.

        Raises:
            BackendUnreachable: If no connection could be made, or it was lost before the head.
        """
        waits = self._timeouts
        links = self._links.get(member.url)
        if links is None:
            links = self._links[member.url] = Links(member.url)
        first_s = waits.first_byte_s + waits.prompt_token_s * prompt_tokens

        lookout = Lookout(member, patience, self._clock)

        def late() -> BackendError | float:
            what = f"sent no byte of an answer for {first_s:g} s (first_byte_s)"
            return lookout.look(first_s, FirstByteTimeout, what, ends=streams)

        head = self._head(
            links.place,
            member.access,
            method,
            target,
            headers,
            credentials,
            body,
            request_id=request_id,
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
        return Answer(link, lookout, between_s=waits.between_chunks_s)

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

    @staticmethod
    def _head(
        place: Place,
        access: Access,
        method: str,
        target: bytes,
        headers: HeaderList,
        credentials: Credentials,
        body: bytes | None,
        *,
        request_id: str,
    ) -> bytes:
        """Return the request's head: the client's end-to-end fields, without the gateway's."""
        dropped, passes = named_by_connection(headers), access.passes
        if not passes:
            target, dropped = credentials.target_without(), dropped | credentials.names
        lines = [
            b"%b: %b\r\n" % (name, value)
            for name, value in headers
            if name not in _SET_HERE and name not in dropped and not name.startswith(b"x-turnout-")
        ]
        first = method.encode(), place.path + target, place.authority
        parts = [b"%b %b HTTP/1.1\r\nhost: %b\r\n" % first]
        parts += lines if passes else credentials.without_any(lines)
        # The answer is read as it passes, so it must not be compressed.
        parts.append(
            b"accept-encoding: identity\r\nx-request-id: %b\r\n" % request_id.encode("latin-1")
        )
        parts.extend(b"%b: %b\r\n" % pair for pair in access.fields)
        if body is not None:
            parts.append(b"content-length: %d\r\n" % len(body))
        parts.append(b"\r\n")
        return b"".join(parts)
