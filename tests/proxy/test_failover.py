"""Which failures are tried elsewhere, and how often."""

from typing import Any

import pytest

from proxy.errors import (
    BackendAborted,
    BackendError,
    BackendRejected,
    BackendTimeout,
    BackendUnauthorized,
    BackendUnreachable,
    StreamBroken,
)
from proxy.failover import may_retry

REFUSED = BackendUnreachable("refused", connected=False)
LOST = BackendUnreachable("lost")
ABORTED = BackendAborted("aborted")
SLOW = BackendTimeout("slow")
UNCONNECTED = BackendTimeout("slow to connect", connected=False)
REJECTED = BackendRejected("503", status=503, headers=[], answer=b"")
LOCKED = BackendUnauthorized("401", answered=401)


@pytest.mark.parametrize(
    ("error", "tries", "allowed"),
    [
        (REFUSED, {"lost": 1}, True),
        (REFUSED, {"lost": 2}, True),
        (REFUSED, {"lost": 3}, False),
        (UNCONNECTED, {"lost": 2}, True),
        (UNCONNECTED, {"lost": 3}, False),
        (LOST, {"lost": 1, "deaths": 1}, True),
        (LOST, {"lost": 2, "deaths": 2}, False),
        (REFUSED, {"lost": 2, "deaths": 1}, True),
        (ABORTED, {"lost": 2}, True),
        (ABORTED, {"lost": 3}, False),
        (REJECTED, {"rejected": 1}, True),
        (REJECTED, {"rejected": 2}, False),
        (REJECTED, {"lost": 1, "rejected": 1}, True),
        (LOCKED, {"rejected": 1}, True),
        (LOCKED, {"rejected": 2}, False),
        (SLOW, {"lost": 1}, False),
        (StreamBroken("half"), {"lost": 1}, False),
    ],
)
def test_a_failure_may_be_tried_elsewhere(
    error: BackendError, tries: dict[str, Any], allowed: bool
) -> None:
    counts = {"lost": 0, "deaths": 0, "rejected": 0, **tries}

    assert may_retry(error, **counts) is allowed
