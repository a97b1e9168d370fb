"""What can go wrong with a request, as the client is told.

* ProxyError                       500 internal_error
  x ClientError                    the caller's fault
    - InvalidRequest                 400 (413 too large, 408 too slow)
    - Unauthenticated                401: no key, or an unknown one
    - Forbidden                      403: the key may not have this
    - TooMany                        429: the key's own limit
    - NotServed                      404: no such endpoint, model or stored response
  x Refused                        turned away before forwarding; nothing was sent
    - NoBackend                      503: none exists or none is healthy
    - Overloaded                     429: all are full, and so is the queue, or it was too slow
    - Draining                       503: this gateway is shutting down
    - Quarantined                    422: engines died with requests of its shape in flight
  x BackendError                   the backend's fault
    - BackendUnreachable             502: connection refused, or lost before any byte of an answer
    - EngineDied                     502: the server is there, its engine is not
    - BackendTimeout                 504: one each for the connection, the first byte, the next
                                       piece and the whole answer
    - BackendRejected                its own status: an error answer that another may not give
    - BackendAborted                 502: status 200, but the engine gave up before any content
    - StreamBroken                   after headers: in-band error event, then close
* ClientGone                       not an error: counted, and the upstream request is cancelled
"""

from collections.abc import Mapping
from math import ceil

import orjson

from routing.quarantine import Held


def come_again(after_s: float) -> Mapping[str, str]:
    """Return the fields that tell a client when to try again, for every client that there is."""
    return {
        "retry-after": str(max(1, ceil(after_s))),
        "retry-after-ms": str(max(1, ceil(1000.0 * after_s))),
        "x-should-retry": "true",
    }


class ProxyError(Exception):
    """An answer of the gateway's own, in OpenAI's error shape.

    Args:
        message: Names the thing, the value and the fix.
        param: Body field at fault, if one is.
    """

    status = 500
    kind = "internal_error"
    headers: Mapping[str, str] = {}

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    def body(self, *, anthropic: bool = False) -> bytes:
        """Return the JSON body; `/v1/messages` uses Anthropic's shape."""
        if anthropic:
            kind = _ANTHROPIC_TYPES.get(self.status, "api_error")
            return orjson.dumps(
                {"type": "error", "error": {"type": kind, "message": self.message}}
            )
        error = {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.status,
        }
        return orjson.dumps({"error": error})


_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class ClientError(ProxyError):
    """The caller's fault."""


class InvalidRequest(ClientError):
    """The request cannot be read."""

    status = 400
    kind = "invalid_request_error"


class BodyTooLarge(InvalidRequest):
    """The body exceeds the configured size."""

    status = 413


class BodyTooSlow(InvalidRequest):
    """The body did not come in time; the connection is of no further use."""

    status = 408
    headers: Mapping[str, str] = {"connection": "close"}


class Unauthenticated(ClientError):
    """No key, or one that is not known."""

    status = 401
    kind = "authentication_error"
    headers: Mapping[str, str] = {"www-authenticate": "Bearer"}


class Forbidden(ClientError):
    """The key may not have this."""

    status = 403
    kind = "permission_error"


class TooMany(ClientError):
    """The key's own limit is reached.

    Args:
        message: Names the key and the limit.
        after_s: When to come again.
    """

    status = 429
    kind = "rate_limit_error"

    def __init__(self, message: str, *, after_s: float) -> None:
        super().__init__(message)
        self.headers = come_again(after_s)


class NotServed(ClientError):
    """No such endpoint, model or stored response here."""

    status = 404
    kind = "not_found_error"


class Refused(ProxyError):
    """Turned away before anything was sent to a backend."""

    status = 503
    headers: Mapping[str, str] = {"retry-after": "1"}


class NoBackend(Refused):
    """No backend exists for it, or none is healthy."""

    kind = "no_backend"


class Overloaded(Refused):
    """Every backend has as many requests as it may, and the queue is full or was too slow."""

    status = 429
    kind = "overloaded"
    headers: Mapping[str, str] = come_again(1.0)


class Draining(Refused):
    """This gateway is shutting down; another replica may answer."""

    kind = "draining"
    headers: Mapping[str, str] = {"retry-after": "1", "connection": "close"}


class Quarantined(Refused):
    """Engines died with requests of its shape in flight, and no other pool may have it.

    No 5xx and no 429, which clients and balancers send again, here or to the next replica.

    Args:
        held: What keeps it from its pools.
        now: The moment (s, monotonic).
    """

    status = 422
    kind = "quarantined_request"
    headers: Mapping[str, str] = {"x-should-retry": "false"}

    def __init__(self, held: Held, now: float) -> None:
        backends = ", ".join(sorted({death.backend for death in held.deaths}))
        super().__init__(
            f"requests with {', '.join(held.shape)} are kept from pool {', '.join(held.pools)}: "
            f"{len(held.deaths)} engines died with one in flight ({backends}), the last "
            f"{now - held.deaths[-1].at:.0f} s ago. Send it without one of these parameters; the "
            f"next like it is tried in {max(0.0, held.until - now):.0f} s, or when an operator "
            "lifts the quarantine (DELETE /quarantine of the admin API, or a restart)"
        )


class BackendError(ProxyError):
    """A backend failed; before the first byte of an answer another may be tried.

    Args:
        message: Names the backend.
        connected: Whether there was a connection, so that the backend may have begun the work.
        refused: Whether nobody is there to connect to; other failures to connect may be the
            gateway's own.
    """

    status = 502
    kind = "backend_error"

    def __init__(self, message: str, *, connected: bool = True, refused: bool = False) -> None:
        super().__init__(message)
        self.connected = connected
        self.refused = refused


class BackendUnreachable(BackendError):
    """No connection, or it was lost."""

    kind = "backend_unreachable"


class EngineDied(BackendError):
    """The backend says that its engine has died: as a 500, or as an event of a stream."""

    kind = "engine_died"


class BackendTimeout(BackendError):
    """A wait on the backend was longer than its limit."""

    status = 504
    kind = "backend_timeout"


class ConnectTimeout(BackendTimeout):
    """For the connection (`timeouts.connect_s`)."""

    kind = "connect_timeout"


class FirstByteTimeout(BackendTimeout):
    """For the first byte of the answer (`timeouts.first_byte_s`)."""

    kind = "first_byte_timeout"


class ChunkTimeout(BackendTimeout):
    """For the next piece of it (`timeouts.between_chunks_s`)."""

    kind = "chunk_timeout"


class TotalTimeout(BackendTimeout):
    """For all of it, every try counted (`timeouts.total_s`)."""

    kind = "total_timeout"


class BackendRejected(BackendError):
    """The backend answered with an error status that another backend may not give.

    Kept whole, so that it can be sent on byte for byte when no other backend is left.

    Args:
        message: Names the backend.
        status: Its status.
        headers: Its end-to-end fields.
        answer: Its body.
    """

    kind = "backend_rejected"

    def __init__(
        self, message: str, *, status: int, headers: list[tuple[bytes, bytes]], answer: bytes
    ) -> None:
        super().__init__(message)
        self.status = status
        self.answer_headers = headers
        self.answer = answer


class BackendAborted(BackendError):
    """The backend answered 200, but its engine aborted before any content."""

    kind = "backend_aborted"


class StreamBroken(BackendError):
    """The backend was lost after part of its answer had been sent on."""

    kind = "stream_broken"


class ClientGone(Exception):
    """The client left; nobody will read an answer."""
