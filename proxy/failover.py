"""Which failures may be tried on another backend, and how often.

Only before the first byte of an answer has gone to the client; `pipeline` sees to that.
"""

import re

from proxy.errors import (
    BackendAborted,
    BackendError,
    BackendRejected,
    BackendTimeout,
    BackendUnauthorized,
    BackendUnreachable,
    EngineDied,
    FirstByteTimeout,
)
from proxy.exchange import Exchange

FURTHER_TRIES_LOST = 2
"""After a connection that failed or was lost before any byte: a dying pool of many backends costs
a request two more connects at most."""
DEATHS = 2
"""Connections lost with the request on them after which no other is tried: it may be the cause."""
FURTHER_TRIES_REJECTED = 1
"""After an error status: the next backend is asked once; more would multiply an overload."""

_BUSY = (429, 503)
_TIMED_OUT = 504
"""What a proxy between gateway and server answers where an answer took too long for it."""

SPECULATION_REFUSES = b"not yet supported with speculative decoding"
"""Part of what a speculating vLLM answers to `min_p` and `logit_bias`: status 400, or status 200
with this as the error of a stream's first event."""

ENGINE_DIED = re.compile(rb'"message":\s*"EngineCore encountered an issue')
"""What a vLLM says whose engine is dead (`EngineDeadError`): status 500, or status 200 with this
as the error of an event, before or after output. Other errors, and texts, may repeat these words
after a client and take no backend out: no message begins with a client's words, and
within a string the quotes are escaped."""


def may_retry(error: BackendError, *, lost: int, deaths: int, rejected: int) -> bool:
    """Whether another backend may be tried.

    An answer that has not begun where the engine stands still is lost with the request on it: what
    it was asked may be the cause. One that stops later is not tried again, nor what was merely too
    slow: it would be as slow elsewhere, and what was done of it is lost.

    Args:
        error: The failure.
        lost: Tries that ended without an answer, this one included.
        deaths: Those of them that lost a connection with the request on it.
        rejected: Tries that ended in an error answer, this one included.
    """
    if isinstance(error, BackendRejected | BackendUnauthorized):
        return rejected <= FURTHER_TRIES_REJECTED
    if not error.connected or isinstance(error, BackendAborted) or lost_with_it(error):
        return lost <= FURTHER_TRIES_LOST and deaths < DEATHS
    return False


def lost_with_it(error: BaseException | None) -> bool:
    """Whether a try was lost with the request on it, which may be the cause.

    Its connection was lost before an answer, its engine was found to stand still or says that it
    died.
    """
    if isinstance(error, FirstByteTimeout):
        return error.connected and error.stalled
    return isinstance(error, BackendUnreachable | EngineDied) and error.connected


def is_slowness(error: BackendError) -> bool:
    """Whether all that can be said of a server is that it is slow, for which none is to blame."""
    return isinstance(error, BackendTimeout) and error.connected and not error.stalled


def is_back_pressure(error: BackendError) -> bool:
    """Whether the backend is only busy: it may be spared, but nothing is wrong with it.

    vLLM answers 503 when its queue is full, what stands before it 429.
    """
    return isinstance(error, BackendRejected) and error.status in _BUSY


def blames_backend(error: BackendError) -> bool:
    """Whether a failure speaks against the backend, and is not the request's fault.

    A 403 may be for what a request asks, as of a filter before the server.
    """
    if isinstance(error, BackendUnauthorized):
        return error.answered != 403
    return not isinstance(error, BackendRejected) or error.status >= 500


def another_may_do_better(status: int) -> bool:
    """Whether an error status is worth another backend; what has timed out is not repeated."""
    return (status >= 500 and status != _TIMED_OUT) or status in _BUSY


def refused_by_speculation(exchange: Exchange, answer: bytes) -> bool:
    """Whether a 400 is one that a plain pool would not give: the server's defaults set `min_p`."""
    features, served = exchange.request.features, exchange.served
    return (
        SPECULATION_REFUSES in answer
        and not features.unsupported
        and exchange.request.pin is None
        and served is not None
        and any(not pool.speculates for pool in served.pools)
    )
