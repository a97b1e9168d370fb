"""The one place that opens connections for the hot path (aiohttp).

aiohttp because it costs a fifth to a thirtieth of httpx per request in a proxy (docs/adr/0003);
every other call of the gateway goes through httpx.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from errno import ECONNREFUSED, EHOSTUNREACH, ENETUNREACH
from typing import NamedTuple, Self

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from config.settings import Timeouts
from proxy.errors import (
    BackendTimeout,
    BackendUnreachable,
    ChunkTimeout,
    ConnectTimeout,
    FirstByteTimeout,
)
from proxy.fleet import Member

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
_SET_HERE = frozenset({b"host", b"content-length", b"accept-encoding", b"expect", b"x-request-id"})
_CREDENTIALS = frozenset({b"authorization", b"x-api-key"})
_ANSWERED_HERE = frozenset({b"date", b"server", b"x-request-id"})

_NOBODY_THERE = frozenset({ECONNREFUSED, EHOSTUNREACH, ENETUNREACH})
"""Failures to connect that say something about the backend. `EMFILE` and `EADDRNOTAVAIL`, for
instance, are the gateway's: by them every backend would go out at once."""

IDLE_S = 4.0
"""How long an idle connection is kept: under uvicorn's 5 s, so that vLLM does not close it just as
it is used again."""


def end_to_end(headers: HeaderList) -> list[tuple[bytes, bytes]]:
    """Return the fields that may travel on, names in lower case."""
    pairs = [(name.lower(), value) for name, value in headers]
    named = {
        token.strip().lower()
        for name, value in pairs
        if name == b"connection"
        for token in value.split(b",")
    }
    return [(name, value) for name, value in pairs if name not in HOP_BY_HOP | named]


class _FirstByte(NamedTuple):
    """The wait for the first byte of an answer.

    Attributes:
        wait_s: How long it may be.
        by: When it is over (s, of the loop).
    """

    wait_s: float
    by: float

    @classmethod
    def within(cls, wait_s: float) -> Self:
        """Return a wait that begins now."""
        return cls(wait_s, asyncio.get_running_loop().time() + wait_s)

    def missed(self, backend: str) -> FirstByteTimeout:
        """Return the error of a backend that sent nothing in time."""
        msg = f"backend {backend} sent no byte of an answer for {self.wait_s:g} s (first_byte_s)"
        return FirstByteTimeout(msg)


class Answer:
    """A backend's response whose head has arrived.

    Attributes:
        status: HTTP status.
        headers: End-to-end fields, as they came.
        streams: Whether it is an event stream.
        encoded: Whether it is compressed, against what was asked, so that it cannot be read.
    """

    __slots__ = ("_first", "_response", "_waits", "encoded", "headers", "status", "streams")

    def __init__(
        self, response: aiohttp.ClientResponse, *, waits: Timeouts, first: "_FirstByte"
    ) -> None:
        self._response = response
        self._waits = waits
        self._first: _FirstByte | None = first
        self.status = response.status
        self.headers = [
            pair for pair in end_to_end(response.raw_headers) if pair[0] not in _ANSWERED_HERE
        ]
        self.streams = response.content_type == "text/event-stream"
        encoding = response.headers.get("content-encoding", "identity")
        self.encoded = encoding.strip().lower() != "identity"

    async def read(self) -> bytes:
        """Return the next bytes as they arrive; empty at the end.

        vLLM sends the head of a stream before the prompt is read, so the wait for the first bytes
        is what remains of `first_byte_s`.

        Raises:
            BackendTimeout: If none arrive in time.
            BackendUnreachable: If the connection is lost before the end.
        """
        if self._first is not None:
            until = self._first.by
        else:
            until = asyncio.get_running_loop().time() + self._waits.between_chunks_s
        try:
            async with asyncio.timeout_at(until):
                piece = await self._response.content.readany()
        except TimeoutError as error:
            raise self._too_long() from error
        except (aiohttp.ClientError, OSError) as error:
            msg = f"the connection to {self._response.url.authority} was lost: {_words(error)}"
            raise BackendUnreachable(msg) from error
        self._first = None
        return piece

    def _too_long(self) -> BackendTimeout:
        backend = self._response.url.authority
        if self._first is not None:
            return self._first.missed(backend)
        waited_s = self._waits.between_chunks_s
        msg = f"backend {backend} stopped amid its answer for {waited_s:g} s (between_chunks_s)"
        return ChunkTimeout(msg)

    async def whole(self, limit: int) -> tuple[bytes, bool]:
        """Return up to about `limit` bytes, and whether that was all."""
        pieces: list[bytes] = []
        size = 0
        while size <= limit:
            piece = await self.read()
            if not piece:
                return b"".join(pieces), True
            pieces.append(piece)
            size += len(piece)
        return b"".join(pieces), False


class Upstream:
    """Connections to every backend: kept alive, without a limit of their own.

    Args:
        timeouts: Waits on a backend.
        pass_keys: Whether a client's key is the backends' and goes on to them, where a pool has
            none of its own; else it is the gateway's.
    """

    def __init__(self, timeouts: Timeouts, *, pass_keys: bool) -> None:
        self.configure(timeouts, pass_keys=pass_keys)
        self._session: aiohttp.ClientSession | None = None
        self._urls: dict[tuple[str, str], URL] = {}

    def configure(self, timeouts: Timeouts, *, pass_keys: bool) -> None:
        """Open further requests by other settings; those under way keep theirs."""
        self._timeouts = timeouts
        self._pass_keys = pass_keys
        self._limits = aiohttp.ClientTimeout(total=None, sock_connect=timeouts.connect_s)

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_S),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            max_line_size=_HEAD_BYTES,
            max_field_size=_HEAD_BYTES,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    @asynccontextmanager
    async def open(
        self,
        member: Member,
        *,
        method: str,
        path: str,
        query: bytes,
        headers: HeaderList,
        body: bytes | None,
        request_id: str,
        api_key: str | None,
        prompt_tokens: float = 0.0,
    ) -> AsyncIterator[Answer]:
        """Send a request and give its answer once the head is there; close it on leaving.

        The longer its prompt, the longer the first byte may take.

        Raises:
            BackendUnreachable: If no connection could be made, or it was lost before the head.
            BackendTimeout: If connecting or the head took too long.
        """
        if self._session is None:
            msg = "Upstream is used outside its context"
            raise RuntimeError(msg)
        waits = self._timeouts
        first = _FirstByte.within(waits.first_byte_s + waits.prompt_token_s * prompt_tokens)
        try:
            async with asyncio.timeout_at(first.by):
                response = await self._session.request(
                    method,
                    self._url(member.url, path, query),
                    data=body,
                    headers=_outgoing(
                        headers,
                        request_id=request_id,
                        api_key=api_key,
                        pass_keys=self._pass_keys and api_key is None,
                    ),
                    allow_redirects=False,
                    timeout=self._limits,
                )
        except aiohttp.ConnectionTimeoutError as error:
            msg = f"no connection to backend {member.name} in {waits.connect_s:g} s (connect_s)"
            raise ConnectTimeout(msg, connected=False) from error
        except aiohttp.ClientConnectorError as error:
            msg = f"no connection to backend {member.name}: {_words(error)}"
            refused = error.os_error.errno in _NOBODY_THERE
            raise BackendUnreachable(msg, connected=False, refused=refused) from error
        except TimeoutError as error:
            raise first.missed(member.name) from error
        except (aiohttp.ClientError, OSError) as error:
            msg = f"backend {member.name} was lost before it answered: {_words(error)}"
            raise BackendUnreachable(msg) from error
        try:
            yield Answer(response, waits=waits, first=first)
        finally:
            response.release() if response.content.at_eof() else response.close()

    def _url(self, base: str, path: str, query: bytes) -> URL:
        if query:
            return URL(f"{base}{path}?{query.decode('latin-1')}", encoded=True)
        known = self._urls.get((base, path))
        if known is None:
            if len(self._urls) >= _KEPT_URLS:  # /v1/responses/{id} has no end of paths
                self._urls.clear()
            known = self._urls[base, path] = URL(base + path, encoded=True)
        return known


_KEPT_URLS = 4096
_HEAD_BYTES = 64 * 2**10
"""Longest field of an answer; what stands before vLLM may set long cookies."""


def _outgoing(
    headers: HeaderList, *, request_id: str, api_key: str | None, pass_keys: bool
) -> CIMultiDict[str]:
    """Return the fields to send: the client's end-to-end ones, without what is the gateway's."""
    sent: CIMultiDict[str] = CIMultiDict()
    for name, value in end_to_end(headers):
        if name in _SET_HERE or name.startswith(b"x-turnout-"):
            continue
        if name in _CREDENTIALS and not pass_keys:
            continue
        sent.add(name.decode("ascii"), _text(value))
    sent["accept-encoding"] = "identity"  # the answer is read as it passes
    sent["x-request-id"] = request_id
    if api_key is not None:
        sent["authorization"] = f"Bearer {api_key}"
    return sent


def _text(value: bytes) -> str:
    """Return a field's value as text that is sent as the same bytes: aiohttp writes UTF-8."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _words(error: BaseException) -> str:
    """Return what went wrong in a few words, without the URL that aiohttp puts in."""
    cause: BaseException | None = error
    if isinstance(error, aiohttp.ClientConnectorError):
        cause = error.os_error
    text: Sequence[object] = getattr(cause, "args", ())
    strerror = getattr(cause, "strerror", None)
    return str(
        strerror or (text[0] if text and isinstance(text[0], str) else type(error).__name__)
    )
