"""What answers tell a browser about the pages that may read them (Fetch standard, section 3.3).

One place for every answer, whichever part of the gateway gives it: most do not pass ASGI, so that
no middleware would see them (docs/adr/0015).
"""

from collections.abc import Iterable

from config.settings import Cors as CorsSettings
from proxy.downstream import Headers, first_of
from proxy.errors import Forbidden

_ASKS = b"access-control-request-"
_EXPOSED = (
    "x-request-id, x-turnout-pool, x-turnout-backend, x-turnout-class, x-turnout-reason, "
    "retry-after, retry-after-ms, x-should-retry"
)
"""What a page may read beside the few fields that every page may."""
_VARY = (b"vary", b"Origin")


class Cors:
    """Knows the origins whose pages may use the gateway.

    Args:
        settings: The config; there is none of these where it lists no origin.
    """

    def __init__(self, settings: CorsSettings) -> None:
        self._origins = frozenset(settings.origins)
        self._max_age_s = settings.max_age_s
        self._granted = [(b"access-control-expose-headers", _EXPOSED.encode()), _VARY]
        if settings.credentials:
            self._granted.append((b"access-control-allow-credentials", b"true"))

    def fields(self, headers: Headers) -> Headers:
        """Return what an answer to a request with these fields says to a browser."""
        origin = first_of(headers, b"origin")
        if origin is None or not self._allows(origin):
            return [_VARY]
        granted = "*" if "*" in self._origins else origin
        return [(b"access-control-allow-origin", granted.encode("latin-1")), *self._granted]

    def preflight(self, headers: Headers, methods: Iterable[str]) -> dict[str, str] | None:
        """Return what a preflight is told beside that; None if the request is none.

        Of a path that is not there the method asked for is allowed: the page can then read the
        404. Fields are allowed as they are asked for: none of them gives what a key must give.

        Args:
            headers: The fields of an OPTIONS request.
            methods: What its path takes; none if it is not there.

        Raises:
            Forbidden: If its origin is none of those.
        """
        origin, method = first_of(headers, b"origin"), first_of(headers, _ASKS + b"method")
        if origin is None or method is None:
            return None
        if not self._allows(origin):
            msg = f"pages of {origin[:200]!r} may not use this gateway (cors.origins)"
            raise Forbidden(msg)
        told = {
            "access-control-allow-methods": ", ".join(sorted(methods)) or method,
            "access-control-max-age": str(self._max_age_s),
        }
        if wanted := first_of(headers, _ASKS + b"headers"):
            told["access-control-allow-headers"] = wanted
        return told

    def _allows(self, origin: str) -> bool:
        return "*" in self._origins or origin in self._origins
