"""Where credentials live in a request, and how the gateway itself bears one to its backends.

Clients put their key into `Authorization` (by any scheme, or bare), into a field of their vendor's
(`x-api-key`, `api-key`, `x-goog-api-key`, `ocp-apim-subscription-key`), into the query, and some
into several of these at once. Whoever has to know goes by this module: who asks (`proxy.keys`),
what is left out on the way to a backend (`proxy.upstream`), what no line may show
(`proxy.reporting`), and what requests and probes bear (`proxy.upstream`, `proxy.asking`).

The order in which they are tried is `Authorization`, other fields as they came, the query. Cookies
are credentials that go no further, but nobody is let in by one: a browser sends them along with
what another site has it ask for.
"""

import re
from base64 import b64decode
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
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
_NAMES = frozenset({b"key", b"auth", b"jwt", b"cookie2", b"x-amzn-oidc-data"})
_COOKIES = (b"cookie", b"cookie2")
_SCHEMES = frozenset({b"bearer", b"basic", b"token", b"key", b"apikey", b"api-key"})
"""After which a key follows. After any other word it may, or both may be a key together."""
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]+")


def names_credential(name: bytes) -> bool:
    """Whether a field or query parameter of this name, in lower case, holds a credential."""
    name = name.replace(b"_", b"-")
    return name.endswith(_ENDINGS) or name in _NAMES


class Credentials:
    """What a request came with to say who sends it; not looked for until somebody asks.

    Args:
        fields: The request's fields, names in lower case.
        target: Its path and query, as they came.
    """

    __slots__ = ("_fields", "_keys", "_names", "_secrets", "_shortest", "_target")

    def __init__(self, fields: Sequence[tuple[bytes, bytes]], target: bytes = b"") -> None:
        self._fields = fields
        self._target = target
        self._keys: Sequence[bytes] | None = None
        self._names: frozenset[bytes] = frozenset()
        self._secrets: list[bytes] = []
        self._shortest = 0

    @property
    def keys(self) -> Sequence[bytes]:
        """What may be a key, each once, in the order to try them; `MOST` at most."""
        if self._keys is None:
            self._keys = self._look()
            for key in self._keys:
                if len(key) >= SHORTEST:
                    self.is_secret(key)
        return self._keys

    def _look(self) -> Sequence[bytes]:
        found = [pair for pair in self._fields if names_credential(pair[0])]
        self._names = frozenset([name for name, _ in found])
        found.sort(key=lambda pair: pair[0] != b"authorization")
        values = [value for name, value in found if name not in _COOKIES]
        _, _, query = self._target.partition(b"?")
        if query:
            values += [value for name, value in _parameters(query) if names_credential(name)]
        return tuple(dict.fromkeys(key for value in values for key in _keys_in(value)))[:MOST]

    def is_secret(self, key: bytes) -> None:
        """Take in that `key` lets somebody in: nothing that shows it goes on, however short."""
        if key not in self._secrets:
            self._secrets.append(key)
            self._secrets.sort(key=len, reverse=True)
            self._shortest = len(self._secrets[-1])

    def held_by(self, name: bytes, line: bytes) -> bool:
        """Whether a field is a credential, or shows one that came.

        Args:
            name: Its name, in lower case.
            line: All of it.
        """
        return self.shown_by(line) or name in self._names

    def shown_by(self, text: bytes) -> bool:
        """Whether `text` has one that came: as it is, percent-encoded or in base64."""
        if not self.keys or not self._secrets:
            return False
        for secret in self._secrets:
            if secret in text:
                return True
        if b"%" in text:
            text = unquote_to_bytes(text)
            if any(secret in text for secret in self._secrets):
                return True
        if len(text) < _encoded(self._shortest):
            return False
        read = _decoded(text, _encoded(self._shortest))
        return any(secret in plain for plain in read for secret in self._secrets)

    def target_without(self) -> bytes:
        """Return path and query, without the parameters that are credentials or show one."""
        path, _, query = self._target.partition(b"?")
        kept = [piece for piece in query.split(b"&") if not self._is_held(piece)] if query else []
        return path + b"?" + b"&".join(kept) if kept else path

    def _is_held(self, piece: bytes) -> bool:
        names = (name for name, _ in _parameters(piece))
        return self.shown_by(piece) or any(map(names_credential, names))

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


def _parameters(query: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield names, in lower case, and values of a query; some separate them by `;` as well."""
    for each in query.replace(b";", b"&").split(b"&"):
        name, _, value = each.partition(b"=")
        yield unquote_to_bytes(name).lower(), unquote_to_bytes(value)


def _keys_in(value: bytes) -> Iterator[bytes]:
    """Yield what a value may hold as keys, also where a proxy has joined several fields."""
    yield from _keys_of(value)
    if b"," in value:
        for part in value.split(b","):
            yield from _keys_of(part)


def _keys_of(value: bytes) -> Iterator[bytes]:
    """Yield the key after a scheme, or else all of it; of `Basic`, password and user."""
    scheme, *rest = value.split(None, 1) or (b"",)
    word = scheme.lower()
    if word not in _SCHEMES:
        yield from _bare(value)
    if rest and word == b"basic":
        user, _, password = next(_decoded(rest[0], 2), b"").partition(b":")
        yield from (*_bare(password), *_bare(user))
    elif rest:
        yield from _bare(rest[0])


def _bare(value: bytes) -> Iterator[bytes]:
    if stripped := value.strip(b' \t"'):
        yield stripped


def _encoded(size: int) -> int:
    """Return how many characters of base64 tell `size` bytes."""
    return -(-size * 4 // 3)


def _decoded(text: bytes, fewest: int) -> Iterator[bytes]:
    """Yield what words of base64 in `text` say, from `fewest` characters on.

    What is encoded may begin within a word, `-` and `_` being letters of one of the alphabets.
    """
    for word in _BASE64.findall(text):
        if len(word) < fewest:
            continue
        standard = word.replace(b"-", b"+").replace(b"_", b"/")
        for start in range(4):
            part = standard[start:]
            part = part[:-1] if len(part) % 4 == 1 else part  # no byte: it is of what follows
            yield b64decode(part + b"=" * (-len(part) % 4))


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
