"""Where credentials live in a request, and how the gateway itself bears one to its backends.

Clients put their key into `Authorization` (by any scheme, or bare), into a field of their vendor's
(`x-api-key`, `api-key`, `x-goog-api-key`, `ocp-apim-subscription-key`), into the query, and some
into several of these at once. Whoever has to know goes by this module: who asks (`proxy.keys`),
what is left out on the way to a backend (`proxy.upstream`), what no line may show
(`proxy.reporting`), and what requests and probes bear (`proxy.upstream`, `proxy.asking`).

The order in which they are tried is `Authorization`, other fields as they came, the query. Cookies
are credentials that go no further, but nobody is let in by one: a browser sends them along with
what another site has it ask for. Nor by what asks for a WebSocket, where pages put OpenAI's key.
"""

from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from urllib.parse import unquote_to_bytes

MOST = 32
"""Credentials of one request that are tried; a head of 64 KiB has room for thousands."""
SHORTEST = 8
"""Characters from which a credential that lets nobody in is looked for elsewhere too: clients that
need no key send `EMPTY`, `none` or `unused`, which may be part of anything."""
HIDDEN = "***"

_ENDINGS = (
    *(b"authorization", b"-auth", b"apikey", b"api-key", b"subscription-key", b"access-key"),
    *(b"auth-key", b"functions-key", b"secret-key", b"master-key", b"token", b"secret"),
    *(b"password", b"credential", b"credentials", b"cookie", b"-jwt", b"-jwt-assertion"),
)
"""How names end of fields and parameters that hold a credential: those of vendors (OpenAI,
Anthropic, Azure, Google, AWS) and of proxies that sign people in (oauth2-proxy, Cloudflare). Not
`-key` alone: `idempotency-key` and the keys of caches are none."""
_BARRED = frozenset({b"cookie", b"cookie2", b"sec-websocket-protocol"})
"""What goes no further, and lets nobody in."""
_NAMES = frozenset({b"key", b"auth", b"jwt", b"x-amzn-oidc-data"}) | _BARRED
_SCHEMES = frozenset({b"bearer", b"basic", b"token", b"key", b"apikey", b"api-key"})
"""After which a key follows. After any other word it may, or both may be a key together."""
_STANDARD = bytes.maketrans(b"-_", b"+/")
"""From base64's alphabet for URLs to the one that it has else."""
_LONGEST = 24
"""No ending has more characters, nor has any of the names."""


def names_credential(name: bytes) -> bool:
    """Whether a field or query parameter of this name, in lower case, holds a credential."""
    return _ends_as_one(name[-_LONGEST:])


@lru_cache(maxsize=512)  # clients send the same twenty names again and again
def _ends_as_one(name: bytes) -> bool:
    name = name.replace(b"_", b"-")
    return name.endswith(_ENDINGS) or name in _NAMES


class Credentials:
    """What a request came with to say who sends it; not looked for until somebody asks.

    Args:
        fields: The request's fields, names in lower case.
        target: Its path and query, as they came.
    """

    __slots__ = ("_encoded", "_fields", "_in_query", "_keys", "_names", "_secrets", "_target")

    def __init__(self, fields: Sequence[tuple[bytes, bytes]], target: bytes = b"") -> None:
        self._fields = fields
        self._target = target
        self._keys: Sequence[bytes] | None = None
        self._names: frozenset[bytes] = frozenset()
        self._secrets: list[bytes] = []
        self._encoded: Sequence[bytes] | None = None
        self._in_query = False

    @property
    def keys(self) -> Sequence[bytes]:
        """What may be a key, each once, in the order to try them; `MOST` at most."""
        if self._keys is None:
            self._keys = self._look()
        return self._keys

    def _look(self) -> Sequence[bytes]:
        found = [pair for pair in self._fields if _ends_as_one(pair[0][-_LONGEST:])]
        self._names = frozenset([name for name, _ in found])
        if len(found) > 1:
            found.sort(key=lambda pair: pair[0] != b"authorization")
        values = [value for name, value in found if name not in _BARRED]
        if b"?" in self._target:
            in_query = [*islice(_held_in(self._target.partition(b"?")[2]), MOST)]
            self._in_query = bool(in_query)
            values += in_query
        found_in = [key for value in values[:MOST] for key in _keys_in(value)]
        keys = [*dict.fromkeys(found_in)][:MOST]
        self._hold([key for key in keys if len(key) >= SHORTEST])
        return keys

    def is_secret(self, key: bytes) -> None:
        """Take in that `key` lets somebody in: nothing that shows it goes on, however short."""
        if key not in self._secrets:
            self._hold([*self._secrets, key])

    def _hold(self, secrets: list[bytes]) -> None:
        """Keep what is looked for, the longest first: one may be a part of another."""
        self._secrets = sorted(secrets, key=len, reverse=True)
        self._encoded = None

    @property
    def names(self) -> frozenset[bytes]:
        """Names of the fields that are credentials, cookies included."""
        if self._keys is None:
            self._keys = self._look()
        return self._names

    def without_any(self, pieces: Sequence[bytes], *, between: bytes = b"") -> Sequence[bytes]:
        """Return those of the lines of a head, or pieces of a query, that show none of those.

        There may be thousands, so many are looked at at once: by halves where one of them does.

        Args:
            pieces: The lines, or pieces.
            between: What parts them, if they do not end with it.
        """
        if not pieces or not self.shown_by(between.join(pieces)):
            return pieces
        half = len(pieces) // 2
        halves = (pieces[:half], pieces[half:]) if half else ()
        return [piece for some in halves for piece in self.without_any(some, between=between)]

    def shown_by(self, text: bytes) -> bool:
        """Whether `text` has one that came: as it is, percent-encoded or in base64."""
        if not self.keys or not self._secrets:
            return False
        if _has_any(text, self._secrets):
            return True
        if b"%" in text:
            text = unquote_to_bytes(text)
            if _has_any(text, self._secrets):
                return True
        if self._encoded is None:
            long = (secret for secret in self._secrets if len(secret) >= SHORTEST)
            self._encoded = [each for secret in long for each in _in_base64(secret)]
        return _has_any(text.translate(_STANDARD), self._encoded)

    def target_without(self) -> bytes:
        """Return path and query, without the parameters that are credentials or show one."""
        path, _, query = self._target.partition(b"?")
        if not query:
            return path
        pieces: Sequence[bytes] = query.split(b"&")
        if self.keys and self._in_query:
            pieces = [piece for piece in pieces if not [*_held_in(piece)]]
        kept = self.without_any(pieces, between=b"&")
        return path + b"?" + b"&".join(kept) if kept else path

    def scrub(self, text: str) -> str:
        """Return `text` with those that came blotted out."""
        if self.keys:
            for secret in self._secrets:
                text = text.replace(secret.decode("utf-8", "replace"), HIDDEN)
        return text


SERVED: ContextVar[Credentials | None] = ContextVar("SERVED", default=None)
"""Those of the request that this task serves."""


def scrubbed(text: str) -> str:
    """Return `text` without the credentials of the request that is being served."""
    credentials = SERVED.get()
    return text if credentials is None else credentials.scrub(text)


def _has_any(text: bytes, parts: Sequence[bytes]) -> bool:
    for part in parts:  # noqa: SIM110 - any() takes four times as long
        if part in text:
            return True
    return False


def _held_in(query: bytes) -> Iterator[bytes]:
    """Yield the values of parameters that are credentials; some separate them by `;` too."""
    for each in query.replace(b";", b"&").split(b"&"):
        name, _, value = each.partition(b"=")
        if names_credential(unquote_to_bytes(name[-3 * _LONGEST :]).lower()):
            yield unquote_to_bytes(value)


def _keys_in(value: bytes) -> Iterator[bytes]:
    """Yield what a value may hold as keys, also where a proxy has joined several fields."""
    yield from _keys_of(value)
    if b"," in value:
        for part in value.split(b",", MOST)[:MOST]:
            yield from _keys_of(part)


def _keys_of(value: bytes) -> Iterator[bytes]:
    """Yield the key after a scheme, or else all of it; of `Basic`, password and user."""
    scheme, *rest = value.split(None, 1) or (b"",)
    word = scheme.lower()
    if word not in _SCHEMES:
        yield from _bare(value)
    if rest and word == b"basic":
        user, _, password = _decoded(rest[0]).partition(b":")
        yield from (*_bare(password), *_bare(user))
    elif rest:
        yield from _bare(rest[0])


def _bare(value: bytes) -> Iterator[bytes]:
    if stripped := value.strip(b' \t"'):
        yield stripped


def _decoded(text: bytes) -> bytes:
    """Return what base64 says; nothing where it is none."""
    text = text.strip().rstrip(b"=").translate(_STANDARD)
    try:
        return b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except NotBase64:
        return b""


def _in_base64(secret: bytes) -> Iterator[bytes]:
    """Yield how base64 spells `secret`, which may begin at any byte of what is encoded."""
    for before in range(3):
        encoded = b64encode(bytes(before) + secret)
        yield encoded[-(-before * 4 // 3) : (before + len(secret)) * 4 // 3]


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How requests to a pool's servers are let in.

    Attributes:
        key: What the gateway bears there; None where it bears nothing of its own.
        variable: Environment variable that it is from (`api_key_env`).
        passes: Whether a client's own credentials are the servers' and go on to them: the gateway
            checks none and bears none.
    """

    key: str | None = field(default=None, repr=False)
    variable: str | None = None
    passes: bool = False

    @property
    def fields(self) -> Sequence[tuple[bytes, bytes]]:
        """What a request of the gateway's bears."""
        return () if self.key is None else ((b"authorization", b"Bearer " + self.key.encode()),)

    def refused(self, status: int) -> str:
        """Return what a server did that answers 401 or 403, and what its operator can do."""
        if self.key is None:
            cure = "set api_key_env of its pool to a variable that holds its key"
            return f"answered {status}: {cure}"
        cure = f"set {self.variable} (api_key_env) to the key of its servers"
        return f"answered {status} to the key of its pool: {cure}"
