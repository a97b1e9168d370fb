"""What answers say to browsers about pages of other origins; a browser itself is in tests/e2e."""

from typing import Any

import pytest

from tests.proxy import streams
from tests.proxy.test_connection import BODY, LIMITS, length, post, raw
from tests.proxy.test_keys import KEY, auth, bearer
from tests.proxy.wire import (
    CHAT,
    EVENTS,
    JSON,
    Backend,
    Call,
    Running,
    chat_body,
    gateway,
    rejects,
    resets,
)

pytestmark = pytest.mark.anyio

PAGE, STRANGE = "https://chat.example.com", "https://chat.example.com.evil.example"
CORS = {"origins": [PAGE, "http://localhost:3000"]}
TOLD_BY_BACKEND = (
    (b"access-control-allow-origin", b"*"),
    (b"access-control-expose-headers", b"x-other"),
)
EXTRA = "/v1/audio/voices"
Fields = list[tuple[str, str]]


def of_cors(fields: Fields) -> dict[str, str]:
    """Return the fields for browsers, each of which must be there once."""
    found = [(name, value) for name, value in fields if name.startswith("access-control-")]
    assert len(dict(found)) == len(found), found
    return dict(found)


async def asked(running: Running, method: str, path: str, **fields: str) -> tuple[int, Fields]:
    """Return status and fields, names in lower case, of an answer."""
    headers = {name.replace("_", "-"): value for name, value in fields.items()}
    data = BODY if method == "POST" else None
    async with running.client.request(
        method, running.url + path, data=data, headers=headers
    ) as got:
        await got.read()
        return got.status, [(name.lower(), value) for name, value in got.headers.items()]


async def preflight(
    running: Running, path: str, method: str, *, origin: str = PAGE
) -> tuple[int, dict[str, str]]:
    status, fields = await asked(
        running,
        "OPTIONS",
        path,
        origin=origin,
        access_control_request_method=method,
        access_control_request_headers="authorization,content-type",
    )
    return status, of_cors(fields)


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        (CHAT, "POST"),
        ("/v1/messages", "POST"),
        ("/v1/responses/resp_1", "GET"),
        ("/v1/responses/resp_1/cancel", "POST"),
        (EXTRA, "GET, POST"),
        ("/v1/models", "GET"),
        ("/health", "GET"),
        ("/explain", "POST"),
        ("/nowhere", "PATCH"),  # so that the page can read the 404
    ],
)
async def test_a_preflight_needs_no_key_and_is_told_what_the_path_takes(
    path: str, methods: str
) -> None:
    plain = Backend()
    extra = [f"GET {EXTRA}", f"POST {EXTRA}"]
    async with gateway(plain=[plain], auth=auth(KEY), cors=CORS, extra_routes=extra) as running:
        status, told = await preflight(running, path, "PATCH")

        assert status == 204
        assert told["access-control-allow-origin"] == PAGE
        assert set(told["access-control-allow-methods"].split(", ")) >= set(methods.split(", "))
        assert ("PATCH" in told["access-control-allow-methods"]) == (path == "/nowhere")
        assert told["access-control-allow-headers"] == "authorization,content-type"
        assert told["access-control-max-age"] == "600"
        assert "access-control-allow-credentials" not in told
        assert await preflight(running, path, "PATCH", origin=STRANGE) == (403, {})
        assert not plain.calls


async def quick(call: Call) -> None:
    await call.answer(chat_body(), 200, JSON, *TOLD_BY_BACKEND)


async def streams_it(call: Call) -> None:
    await call.head(200, EVENTS, *TOLD_BY_BACKEND)
    await call.send(b"".join((*streams.CHAT, streams.DONE)))
    await call.end()


ANSWERS: dict[str, tuple[Any, str, str, dict[str, Any], int]] = {
    "an answer": (quick, "POST", CHAT, {}, 200),
    "a stream": (streams_it, "POST", CHAT, {}, 200),
    "a backend's error": (rejects(400), "POST", CHAT, {}, 400),
    "a lost backend": (resets, "POST", CHAT, {}, 502),
    "no key": (quick, "POST", CHAT, {"authorization": ""}, 401),
    "no key for the list": (quick, "GET", "/v1/models", {"authorization": ""}, 401),
    "the list": (quick, "GET", "/v1/models", {}, 200),
    "another method": (quick, "GET", CHAT, {}, 405),
    "nothing there": (quick, "POST", "/v1/nothing", {}, 404),
    "no such pool": (quick, "POST", CHAT, {"x_turnout_pool": "none"}, 400),
    "a probe": (quick, "HEAD", "/ready", {}, 200),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_every_answer_can_be_read_by_those_pages_alone(name: str) -> None:
    script, method, path, fields, status = ANSWERS[name]
    sent = {**bearer(KEY), **fields}
    async with gateway(plain=[Backend(script)], auth=auth(KEY), cors=CORS) as running:
        for origin in (PAGE, "http://localhost:3000"):
            found, told = await asked(running, method, path, origin=origin, **sent)
            assert found == status
            assert of_cors(told)["access-control-allow-origin"] == origin
            assert "x-turnout-pool" in of_cors(told)["access-control-expose-headers"]
            assert ("vary", "Origin") in told
        for strange in ({"origin": STRANGE}, {"origin": "null"}, {}):
            found, told = await asked(running, method, path, **strange, **sent)
            assert (found, of_cors(told)) == (status, {})
            assert ("vary", "Origin") in told


REFUSED = {
    "too long a head": (post(b"x-a: " + b"a" * 9000), b"431"),
    "no HTTP": (post(b"content-length: -1"), b"400"),
    "too long a body": (post(b"content-length: 9999999"), b"413"),
    "a body that stops": (post(length(), body=b"{"), b"408"),
    "a body that stops beside inference": (post(length(), body=b"{", path="/explain"), b"408"),
    "a head that stops": (b"POST / HTTP/1.1\r\nx-b: c\r\n", b"408"),
    "shutting down": (post(length()), b"503"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_is_refused_early_can_be_read_too(name: str) -> None:
    sent, status = REFUSED[name]
    limits: dict[str, Any] = {"listen": {**LIMITS["listen"], "max_body_bytes": 1000}}
    async with gateway(plain=[Backend()], cors=CORS, **limits) as running, raw(running) as client:
        if name == "shutting down":
            await running.app.lifecycle.drain(0.0)
        first, rest = sent.split(b"\r\n", 1)
        await client.send(first + b"\r\norigin: " + PAGE.encode() + b"\r\n" + rest)

        head = await client.head()

        assert head.startswith(b"HTTP/1.1 " + status)
        assert head.count(b"access-control-allow-origin: " + PAGE.encode() + b"\r\n") == 1
        assert head.count(b"access-control-allow-origin") == 1


async def test_it_follows_the_config_and_without_origins_leaves_all_to_the_backends() -> None:
    backend = {name.decode(): value.decode() for name, value in TOLD_BY_BACKEND}
    async with gateway(plain=[Backend(quick)]) as running:
        _, fields = await asked(running, "POST", CHAT, origin=PAGE)
        assert of_cors(fields) == backend
        assert (await preflight(running, CHAT, "POST"))[0] == 405

        running.reload(cors={"origins": ["*"], "max_age_s": 5})
        _, fields = await asked(running, "POST", CHAT, origin=STRANGE)
        assert of_cors(fields)["access-control-allow-origin"] == "*"
        assert (await preflight(running, CHAT, "POST"))[1]["access-control-max-age"] == "5"

        running.reload(cors={"origins": [PAGE], "credentials": True})
        _, fields = await asked(running, "POST", CHAT, origin=PAGE)
        assert of_cors(fields)["access-control-allow-credentials"] == "true"
        _, told = await preflight(running, CHAT, "POST")
        assert told["access-control-allow-credentials"] == "true"

        running.reload(cors={})
        _, fields = await asked(running, "POST", CHAT, origin=PAGE)
        assert of_cors(fields) == backend


async def test_options_that_is_no_preflight_is_as_ever() -> None:
    async with gateway(plain=[Backend()], auth=auth(KEY), cors=CORS) as running:
        status, told = await asked(running, "OPTIONS", CHAT, origin=PAGE)
        assert status == 401
        assert of_cors(told)["access-control-allow-origin"] == PAGE
        status, told = await asked(running, "OPTIONS", CHAT, origin=PAGE, **bearer(KEY))
        assert (status, dict(told)["allow"]) == (405, "POST")
