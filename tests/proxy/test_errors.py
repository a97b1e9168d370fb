"""The gateway's own answers."""

import orjson
import pytest

from proxy.errors import (
    BackendAborted,
    BackendTimeout,
    BackendUnreachable,
    BodyTooLarge,
    Draining,
    InvalidRequest,
    NoBackend,
    NotServed,
    ProxyError,
    StreamBroken,
)

STATUSES = [
    (ProxyError, 500, "internal_error", "api_error"),
    (InvalidRequest, 400, "invalid_request_error", "invalid_request_error"),
    (BodyTooLarge, 413, "invalid_request_error", "request_too_large"),
    (NotServed, 404, "not_found_error", "not_found_error"),
    (NoBackend, 503, "no_backend", "overloaded_error"),
    (Draining, 503, "draining", "overloaded_error"),
    (BackendUnreachable, 502, "backend_unreachable", "api_error"),
    (BackendTimeout, 504, "backend_timeout", "timeout_error"),
    (BackendAborted, 502, "backend_aborted", "api_error"),
    (StreamBroken, 502, "stream_broken", "api_error"),
]


@pytest.mark.parametrize(("error", "status", "kind", "anthropic"), STATUSES)
def test_an_error_has_the_shape_of_the_api_it_is_told_in(
    error: type[ProxyError], status: int, kind: str, anthropic: str
) -> None:
    made = error("why")

    assert made.status == status
    assert orjson.loads(made.body()) == {
        "error": {"message": "why", "type": kind, "param": None, "code": status}
    }
    assert orjson.loads(made.body(anthropic=True)) == {
        "type": "error",
        "error": {"type": anthropic, "message": "why"},
    }


def test_the_field_at_fault_is_named() -> None:
    error = InvalidRequest("'model' must be a string", param="model")

    assert orjson.loads(error.body())["error"]["param"] == "model"


@pytest.mark.parametrize("error", [NoBackend("none"), Draining("stopping")])
def test_who_is_turned_away_is_told_when_to_return(error: ProxyError) -> None:
    assert error.headers["retry-after"] == "1"
