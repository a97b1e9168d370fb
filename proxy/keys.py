"""Who asks: API keys, what each may do, and what it has under way.

The config holds SHA-256 digests alone. A key is 256 random bits, so a digest of it can't be
guessed back, and nothing slower than SHA-256 is needed. A key that comes is looked up by its
digest, of which nobody can choose a part: how long that takes tells nothing of the keys there are.
"""

import secrets
from collections.abc import Iterable
from contextlib import nullcontext
from hashlib import sha256
from typing import Self

from config.settings import ApiKey, Auth
from proxy.credentials import Credentials
from proxy.errors import Forbidden, TooMany, Unauthenticated
from proxy.shared import Elsewhere, SharedLimit
from proxy.team import CALLER, Team
from routing.limits import RateLimit

_PREFIX = "turnout-"


def new_key() -> tuple[str, str]:
    """Return a new key and the digest that goes into the config."""
    key = _PREFIX + secrets.token_urlsafe(32)
    return key, digest(key)


def digest(key: str | bytes) -> str:
    """Return what the config holds of a key."""
    return sha256(key.encode() if isinstance(key, str) else key).hexdigest()


class Caller:
    """One key and what its holder has under way.

    Args:
        settings: What it may do.
        team: The workers that it may ask.

    Attributes:
        name: Its name; the key itself is nowhere.
        priority: Of its requests in the queue.
    """

    def __init__(self, settings: ApiKey, team: Team | None = None) -> None:
        self.name = settings.name
        self._in_flight = 0
        self._team = None if team is None or team.alone else team
        self._elsewhere = (
            None if self._team is None else Elsewhere(self._team, (CALLER, settings.name))
        )
        self._rate: RateLimit | None = None
        self.configure(settings)

    def configure(self, settings: ApiKey) -> None:
        """Go on by other settings; what is under way and was asked of late still counts."""
        self.priority = settings.priority
        self._settings = settings
        per_minute = settings.requests_per_minute
        if per_minute is None or self._rate is None:
            self._rate = self._limit(per_minute) if per_minute else None
        else:
            self._rate.per_minute = per_minute

    def _limit(self, per_minute: float) -> RateLimit:
        return (
            RateLimit(per_minute)
            if self._team is None
            else SharedLimit(self._team, self.name, per_minute)
        )

    @property
    def in_flight(self) -> int:
        """Its requests under way."""
        return self._in_flight + (int(self._elsewhere.count()) if self._elsewhere else 0)

    def permit(self, *, model: str, pin: str | None) -> None:
        """Check what a request asks for.

        Raises:
            Forbidden: If the key may not have it.
        """
        models = self._settings.models
        if models is not None and model not in models:
            msg = f"key {self.name!r} may not use model {model[:80]!r}; it may: {_listed(models)}"
            raise Forbidden(msg, param="model")
        if pin is not None:
            self.permit_pool(pin)

    @property
    def is_known(self) -> bool:
        """Whether a key told who it is; in an open gateway anybody is everybody."""
        return self._settings is not _ANYBODY

    def permit_pool(self, pool: str) -> None:
        """Check that it may use a pool.

        Raises:
            Forbidden: If it may not.
        """
        pools = self._settings.pools
        if pools is not None and pool not in pools:
            msg = f"key {self.name!r} may not use pool {pool!r}; it may: {_listed(pools)}"
            raise Forbidden(msg)

    @property
    def models(self) -> frozenset[str] | None:
        """Names of the models it may use; None for all."""
        models = self._settings.models
        return None if models is None else frozenset(models)

    @property
    def pools(self) -> frozenset[str] | None:
        """Names of the pools it may use; None for all."""
        pools = self._settings.pools
        return None if pools is None else frozenset(pools)

    def asking(self, now: float) -> Self:
        """Count a request, which begins at `now` (s, monotonic), until a `with` block ends.

        Raises:
            TooMany: If it is one too many.
        """
        most = self._settings.max_in_flight
        if most is None and self._rate is None:
            self._count(1)
            return self
        with nullcontext() if self._team is None else self._team.lock():
            self._check(most, now)
            self._count(1)
        return self

    def _check(self, most: int | None, now: float) -> None:
        if most is not None and self.in_flight >= most:
            msg = f"key {self.name!r} has {most} requests under way (max_in_flight)"
            raise TooMany(msg, after_s=1.0)
        if self._rate is not None and (after_s := self._rate.take(now)):
            msg = f"key {self.name!r} may ask {self._rate.per_minute:g} times a minute"
            raise TooMany(msg, after_s=after_s)

    def _count(self, requests: int) -> None:
        self._in_flight += requests
        if self._elsewhere is not None:
            self._elsewhere.post(self._in_flight)

    def __enter__(self) -> None:
        """Nothing more: it is counted."""

    def __exit__(self, *_: object) -> None:
        self._count(-1)


_ANYBODY = ApiKey(name="open", sha256="0" * 64)


class Keyring:
    """Knows every caller.

    Args:
        settings: The keys, or that none is needed.
        team: The workers that have the callers in common.
    """

    def __init__(self, settings: Auth, team: Team | None = None) -> None:
        self._team = team
        self._open: Caller | None = None
        self._callers: dict[str, Caller] = {}
        self._by_name: dict[str, Caller] = {}
        """Those that were removed too: added again, they have what they had left."""
        self.configure(settings)

    def configure(self, settings: Auth) -> None:
        """Know the callers of other settings; one of the same name stays who it is."""
        self._open = (self._open or Caller(_ANYBODY, self._team)) if settings.open else None
        self._callers = {}
        for each in settings.keys:
            if (caller := self._by_name.get(each.name)) is None:
                caller = self._by_name[each.name] = Caller(each, self._team)
            caller.configure(each)
            self._callers[each.sha256] = caller

    @property
    def checks(self) -> bool:
        """Whether a key is needed, so that the one that came goes no further."""
        return self._open is None

    def identify(self, credentials: Credentials) -> Caller:
        """Return who asks: whose key is the first that is known of those that came.

        Raises:
            Unauthenticated: If no key came, or none that is known.
        """
        if self._open is not None:
            return self._open
        for key in credentials.keys:
            if (found := self._callers.get(digest(key))) is not None:
                credentials.is_secret(key)
                return found
        if credentials.keys:
            msg = "no API key that came is known here"
        else:
            msg = "no API key came; send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'"
        raise Unauthenticated(msg)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
