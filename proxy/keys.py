"""Who asks: API keys, what each may do, and what it has under way.

The config holds SHA-256 digests alone. A key is 256 random bits, so a digest of it can't be
guessed back, and nothing slower than SHA-256 is needed. A key that comes is compared with every
one that there is, in constant time each.
"""

import secrets
from collections.abc import Callable, Iterable
from hashlib import sha256
from hmac import compare_digest
from typing import Self

from config.settings import ApiKey, Auth
from proxy.errors import Forbidden, TooMany, Unauthenticated
from routing.limits import RateLimit

_PREFIX = "turnout-"


def new_key() -> tuple[str, str]:
    """Return a new key and the digest that goes into the config."""
    key = _PREFIX + secrets.token_urlsafe(32)
    return key, digest(key)


def digest(key: str) -> str:
    """Return what the config holds of a key."""
    return sha256(key.encode()).hexdigest()


class Caller:
    """One key and what its holder has under way.

    Args:
        settings: What it may do.

    Attributes:
        name: Its name; the key itself is nowhere.
        priority: Of its requests in the queue.
        in_flight: Its requests under way.
    """

    def __init__(self, settings: ApiKey) -> None:
        self.name = settings.name
        self.in_flight = 0
        self._rate: RateLimit | None = None
        self.configure(settings)

    def configure(self, settings: ApiKey) -> None:
        """Go on by other settings; what is under way and was asked of late still counts."""
        self.priority = settings.priority
        self._settings = settings
        per_minute = settings.requests_per_minute
        if per_minute is None or self._rate is None:
            self._rate = RateLimit(per_minute) if per_minute else None
        else:
            self._rate.per_minute = per_minute

    def permit(self, *, model: str, pin: str | None) -> None:
        """Check what a request asks for.

        Raises:
            Forbidden: If the key may not have it.
        """
        models, pools = self._settings.models, self._settings.pools
        if models is not None and model not in models:
            msg = f"key {self.name!r} may not use model {model[:80]!r}; it may: {_listed(models)}"
            raise Forbidden(msg, param="model")
        if pools is not None and pin is not None and pin not in pools:
            msg = f"key {self.name!r} may not use pool {pin!r}; it may: {_listed(pools)}"
            raise Forbidden(msg)

    @property
    def pools(self) -> frozenset[str] | None:
        """Names of the pools it may use; None for all."""
        pools = self._settings.pools
        return None if pools is None else frozenset(pools)

    def asking(self, now: float) -> Self:
        """Return what counts a request, which begins at `now` (s, monotonic), in a `with` block.

        Raises:
            TooMany: If it is one too many.
        """
        most = self._settings.max_in_flight
        if most is not None and self.in_flight >= most:
            msg = f"key {self.name!r} has {most} requests under way (max_in_flight)"
            raise TooMany(msg, after_s=1.0)
        if self._rate is not None and (after_s := self._rate.take(now)):
            msg = f"key {self.name!r} may ask {self._rate.per_minute:g} times a minute"
            raise TooMany(msg, after_s=after_s)
        return self

    def __enter__(self) -> None:
        self.in_flight += 1

    def __exit__(self, *_: object) -> None:
        self.in_flight -= 1


_ANYBODY = ApiKey(name="open", sha256="0" * 64)


class Keyring:
    """Knows every caller.

    Args:
        settings: The keys, or that none is needed.
    """

    def __init__(self, settings: Auth) -> None:
        self._open: Caller | None = None
        self._callers: list[tuple[bytes, Caller]] = []
        self.configure(settings)

    def configure(self, settings: Auth) -> None:
        """Know the callers of other settings; one of the same name stays who it is."""
        before = {caller.name: caller for _, caller in self._callers}
        self._open = (self._open or Caller(_ANYBODY)) if settings.open else None
        self._callers = []
        for each in settings.keys:
            caller = before.get(each.name) or Caller(each)
            caller.configure(each)
            self._callers.append((each.sha256.encode(), caller))

    @property
    def checks(self) -> bool:
        """Whether a key is needed, so that the one that came goes no further."""
        return self._open is None

    def identify(self, header: Callable[[bytes], str | None]) -> Caller:
        """Return who asks.

        Args:
            header: Gives a field of the request.

        Raises:
            Unauthenticated: If no key came, or one that is not known.
        """
        if self._open is not None:
            return self._open
        scheme, _, bearer = (header(b"authorization") or "").partition(" ")
        key = bearer.strip() if scheme.lower() == "bearer" else header(b"x-api-key")
        if not key:
            msg = "no API key came; send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'"
            raise Unauthenticated(msg)
        came, found = digest(key).encode(), None
        for known, caller in self._callers:
            if compare_digest(known, came):
                found = caller
        if found is None:
            msg = "this API key is not known here"
            raise Unauthenticated(msg)
        return found


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
