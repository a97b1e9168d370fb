"""Credentials: wherever they come, who they let in, and that none of them goes further."""

import asyncio
import io
import json
import logging
import sys
from base64 import b64encode, urlsafe_b64encode
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from types import FrameType
from typing import Any
from urllib.parse import quote, unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.settings import Auth
from proxy import exchange
from proxy.credentials import MOST, Credentials
from proxy.errors import Unauthenticated
from proxy.keys import Keyring, digest
from proxy.reporting import JsonLines
from tests.proxy.wire import (
    ASKED,
    CHAT,
    JSON,
    Backend,
    Call,
    Running,
    Script,
    answers,
    eventually,
    gateway,
    rejects,
)

pytestmark = pytest.mark.anyio

KEY, OTHER = "turnout-Zq81_one-two~three", "turnout-other"
FOREIGN = "sk-of-somebody-else"
POOL_KEY = "sk-vllm"
AUTH = {
    "keys": [
        {"name": "a", "sha256": digest(KEY)},
        {"name": "b", "sha256": digest(OTHER)},
    ]
}
Fields = Sequence[tuple[str, str]]


def basic(text: str) -> str:
    return "Basic " + b64encode(text.encode()).decode()


async def send(
    running: Running, fields: Fields, *, target: str = CHAT, body: Any = ASKED, end: bytes = b""
) -> tuple[int, bytes]:
    """Send fields exactly as they are, and return status and body of the answer."""
    raw = json.dumps(body).encode()
    framing = ("transfer-encoding", "chunked") if end else ("content-length", str(len(raw)))
    given = [("host", "x"), ("content-type", "application/json"), ("connection", "close"), framing]
    lines = "".join(f"{name}: {value}\r\n" for name, value in (*given, *fields))
    head = f"POST {target} HTTP/1.1\r\n{lines}\r\n".encode("latin-1")
    sent = b"%x\r\n%b\r\n0\r\n%b\r\n" % (len(raw), raw, end) if end else raw
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    writer.write(head + sent)
    answer = await reader.read()
    writer.close()
    head, _, rest = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), rest


def seen(backend: Backend) -> bytes:
    """Return all that reached a backend, also as it reads without percent-encoding."""
    raw = b"\n".join(call.came + call.body for call in backend.calls)
    return raw + unquote_to_bytes(raw)


# --- who is let in ----------------------------------------------------------------------------

BEARER = ("authorization", f"Bearer {KEY}")


@pytest.mark.parametrize(
    "fields",
    [
        [BEARER],
        [("Authorization", f"bearer \t {KEY} ")],
        [("authorization", KEY)],
        [("authorization", f"Token {KEY}")],
        [("authorization", f'Bearer "{KEY}"')],
        [("authorization", basic(f"user:{KEY}"))],
        [("authorization", basic(f"{KEY}:"))],
        [("authorization", basic(f"{KEY}:x-oauth-basic"))],
        [("authorization", f"Bearer {FOREIGN}, Bearer {KEY}")],
        [("authorization", f"Bearer {FOREIGN}"), BEARER],
        [("authorization", ""), ("x-api-key", KEY)],
        [("authorization", "Bearer"), ("x-api-key", KEY)],
        [("authorization", f"Bearer {FOREIGN}"), ("x-api-key", KEY)],
        [("authorization", basic("x:y")), ("api-key", KEY)],
        [("x-api-key", FOREIGN), ("x-api-key", KEY)],
        [("x-api-key", f"Bearer {KEY}")],
        [("API-Key", KEY)],
        [("X_API_KEY", KEY)],
        [("x-goog-api-key", KEY)],
        [("Ocp-Apim-Subscription-Key", KEY)],
        [("x-auth-token", KEY)],
        [("proxy-authorization", f"Bearer {KEY}")],
        [("cookie", f"key={OTHER}"), BEARER],
        # of two that are right, the one in Authorization
        [("x-api-key", OTHER), BEARER],
        [BEARER, ("authorization", f"Bearer {OTHER}")],
    ],
)
def test_each_credential_that_came_is_tried_and_the_first_that_is_known_counts(
    fields: Fields,
) -> None:
    ring = Keyring(Auth.model_validate(AUTH))
    given = [(name.lower().encode(), value.encode().strip()) for name, value in fields]

    assert ring.identify(Credentials(given)).name == "a"


@pytest.mark.parametrize("target", [f"?api-key={KEY}", f"?x=1&%6Bey={quote(KEY, safe='')}"])
def test_a_key_in_the_query_is_a_key(target: str) -> None:
    ring = Keyring(Auth.model_validate(AUTH))

    assert ring.identify(Credentials([], target.encode())).name == "a"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ([], "no API key came"),
        ([(b"authorization", b"Bearer ")], "no API key came"),
        ([(b"x-api-key", b"")], "no API key came"),
        ([(b"cookie", KEY.encode())], "no API key came"),  # or another site could ask with it
        ([(b"sec-websocket-protocol", KEY.encode())], "no API key came"),
        ([(b"x-other", KEY.encode())], "no API key came"),
        ([(b"authorization", f"Bearer{KEY}".encode())], "is known here"),
        ([(b"authorization", f"Basic {KEY}".encode())], "no API key came"),
        ([(b"authorization", b"Bearer \xff\xfe")], "is known here"),
        ([(b"authorization", f"Bearer {KEY}x".encode())], "is known here"),
        ([(b"x-api-key", b"a" * 60_000)], "is known here"),
        ([(b"x-api-key", b"," * 60_000)], "is known here"),
    ],
)
def test_what_is_no_known_key_lets_nobody_in(fields: list[tuple[bytes, bytes]], told: str) -> None:
    with pytest.raises(Unauthenticated, match=told):
        Keyring(Auth.model_validate(AUTH)).identify(Credentials(fields))


def test_a_key_may_have_letters_beyond_ascii() -> None:
    ring = Keyring(Auth.model_validate({"keys": [{"name": "a", "sha256": digest("schlüssel")}]}))

    came = Credentials([(b"authorization", "Bearer schlüssel".encode())])
    assert ring.identify(came).name == "a"


def test_no_more_credentials_are_tried_than_a_client_may_mean() -> None:
    many = b",".join(b"%d" % number for number in range(10_000))

    assert len(Credentials([(b"x-api-key", many)]).keys) == MOST


def calls_of(work: Callable[[], object]) -> int:
    """Return how many functions `work` calls: what it costs, on whatever machine."""
    calls = 0

    def count(_: FrameType, what: str, __: object) -> None:
        nonlocal calls
        calls += what in ("call", "c_call")

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls


HEAD_BYTES = 2**16
SHOWS = [(b"x-api-key", b"%020d" % number) for number in range(MOST)]
LINES = [b"a: b\r\n"] * 9_999 + [b"a: %020d\r\n" % 1]


@pytest.mark.parametrize(
    ("fields", "query", "work", "most"),
    [
        ([(b"authorization", b"a," * (HEAD_BYTES // 2))], b"", lambda came: came.keys, 1_000),
        (SHOWS, b"", lambda came: came.without_any(LINES), 5_000),
        (SHOWS, b"%&" * 9_999 + b"%020d" % 1, lambda came: came.target_without(), 150_000),
    ],
)
def test_a_head_of_many_small_pieces_costs_no_more_than_reading_it(
    fields: list[tuple[bytes, bytes]],
    query: bytes,
    work: Callable[[Credentials], object],
    most: int,
) -> None:
    came = Credentials(fields, b"/x?" + query)

    assert calls_of(lambda: work(came)) < most


PIECES = st.sampled_from(
    [
        KEY,
        FOREIGN,
        quote(KEY, safe=""),
        b64encode(KEY.encode()).decode(),
        "x",
        "%",
        "a=b",
        "key=",
        "",
    ]
)


@given(st.lists(st.lists(PIECES, max_size=3).map("".join), max_size=30))
def test_what_shows_a_key_is_found_among_any_number_of_pieces(pieces: list[str]) -> None:
    came = Credentials([(b"x-api-key", KEY.encode()), (b"api-key", FOREIGN.encode())])
    lines = [f"x: {piece}\r\n".encode() for piece in pieces]

    assert list(came.without_any(lines)) == [line for line in lines if not came.shown_by(line)]


# --- what goes on -----------------------------------------------------------------------------

ELSEWHERE: Sequence[tuple[str, str]] = [
    ("api-key", KEY),
    ("API-KEY", FOREIGN),
    ("x-goog-api-key", KEY),
    ("ocp-apim-subscription-key", KEY),
    ("proxy-authorization", f"Bearer {KEY}"),
    ("cookie", f'session="{KEY}"; other=1'),
    ("cookie", "another=session-of-a-browser"),
    ("sec-websocket-protocol", "realtime, openai-insecure-api-key.another"),
    ("x-auth-token", "another-token"),
    ("authorization", basic(f"me:{KEY}")),
    ("authorization", f"Bearer {KEY}"),
    ("x-my-company", KEY),
    ("X-My-Company", f"prefix-{KEY}-suffix"),
    ("x-forwarded-authorization", f"Bearer {FOREIGN}"),
    ("referer", f"https://x/?key={quote(KEY, safe='')}"),
    ("x-percent", "".join(f"%{byte:02x}" for byte in KEY.encode())),
    ("x-base64", b64encode(f"me:{KEY}".encode()).decode()),
    ("x-url-base64", "at_" + urlsafe_b64encode(f"??>{KEY}".encode()).decode().rstrip("=")),
    ("user-agent", f"client/1 ({FOREIGN})"),
    ("x-request-id", KEY),
    ("connection", "x-my-company"),
]


@pytest.mark.parametrize("pool_key", [None, POOL_KEY])
async def test_no_field_that_shows_a_presented_key_reaches_a_backend(
    pool_key: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    each_pool: dict[str, Any] = {}
    if pool_key:
        monkeypatch.setenv("POOL_KEY", pool_key)
        each_pool = {"api_key_env": "POOL_KEY"}
    spec = Backend(speculates=True)
    async with gateway(spec=[spec], auth=AUTH, each_pool=each_pool) as running:
        kept = ("idempotency-key", "made-up"), ("x-tenant", "7"), ("traceparent", "00-4bf9-01")
        given = [("authorization", f"Bearer {FOREIGN}"), ("x-api-key", KEY), *ELSEWHERE, *kept]
        status, _ = await send(running, given)

        assert status == 200
        for spelt in (KEY, FOREIGN, b64encode(KEY.encode()).decode()[:-4], "another", "session"):
            assert spelt.encode() not in seen(spec)
        (call,) = spec.calls
        assert [call.one(name.encode()) for name, _ in kept] == [v.encode() for _, v in kept]
        assert call.all(b"authorization") == ([f"Bearer {POOL_KEY}".encode()] if pool_key else [])
        assert call.one(b"content-type") == b"application/json"


async def test_trailers_bear_nothing_to_a_backend() -> None:
    spec = Backend(speculates=True)
    async with gateway(spec=[spec], auth=AUTH) as running:
        trailer = f"x-api-key: {KEY}\r\nx-other: {KEY}\r\n".encode()
        status, _ = await send(running, [BEARER, ("trailer", "x-other")], end=trailer)

        assert status == 200
        assert KEY.encode() not in seen(spec)


@pytest.mark.parametrize(
    ("query", "goes_on"),
    [
        (f"key={KEY}", ""),
        (f"api-version=1&api_key={FOREIGN}&x=2", "?api-version=1&x=2"),
        (f"x=1&%61ccess_token={FOREIGN}", "?x=1"),
        (f"x={quote(quote(KEY)).replace('_', '%5F')}&y=%20", "?y=%20"),
        (f"x=1;token={FOREIGN}", ""),
        ("x=1&&flag", "?x=1&&flag"),
    ],
)
async def test_the_query_goes_on_without_credentials(query: str, goes_on: str) -> None:
    spec = Backend(speculates=True)
    async with gateway(spec=[spec], auth=AUTH) as running:
        status, _ = await send(running, [BEARER], target=f"{CHAT}?{query}")

        assert status == 200
        assert (await spec.called()).target == CHAT + goes_on
        assert KEY.encode() not in seen(spec)


@given(
    st.lists(
        st.tuples(
            st.from_regex(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,20}", fullmatch=True),
            st.sampled_from(["{}", "Bearer {}", "a={};b", '"{}"', "{}{}", "x {} y"]),
            st.sampled_from([KEY, quote(KEY, safe=""), b64encode(KEY.encode()).decode()]),
        ),
        max_size=20,
    )
)
def test_no_name_of_a_field_lets_a_key_pass(
    fields: list[tuple[str, str, str]],
) -> None:
    framed = {"host", "content-length", "transfer-encoding", "connection", "upgrade", "expect"}
    given = [
        (name, form.format(text, text))
        for name, form, text in fields
        if name.lower() not in {*framed, "content-encoding", "x-turnout-pool"}
    ]

    async def sent() -> bytes:
        spec = Backend(speculates=True)
        async with gateway(spec=[spec], auth=AUTH) as running:
            status, told = await send(running, [BEARER, *given])
            assert status == 200, told
        return seen(spec)

    reached = asyncio.run(sent())
    assert KEY.encode() not in reached
    assert b64encode(KEY.encode())[:-4] not in reached


async def test_where_no_key_is_checked_a_clients_own_goes_to_a_pool_without_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("POOL_KEY", POOL_KEY)
    mine = [BEARER, ("api-key", KEY), ("cookie", "a=session"), ("x-copy", KEY)]
    spec = Backend(speculates=True)
    async with gateway(spec=[spec]) as running:
        await send(running, mine, target=f"{CHAT}?key={KEY}")

        call = await spec.called()
        assert [call.one(name.encode()) for name, _ in mine] == [v.encode() for _, v in mine]
        assert call.target == f"{CHAT}?key={KEY}"

        running.reload(spec={"api_key_env": "POOL_KEY"})
        await send(running, mine, target=f"{CHAT}?key={KEY}")

        call = await spec.called(2)
        assert KEY.encode() not in call.came
        assert b"session" not in call.came
        assert call.all(b"authorization") == [f"Bearer {POOL_KEY}".encode()]


# --- what is written --------------------------------------------------------------------------


@contextmanager
def logged() -> Iterator[io.StringIO]:
    """Take what the process would write to standard error."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    logging.getLogger().addHandler(handler)
    try:
        yield stream
    finally:
        logging.getLogger().removeHandler(handler)


@pytest.mark.parametrize("auth", [AUTH, {"open": True}])
async def test_no_line_and_no_error_of_the_gateways_shows_a_presented_key(
    auth: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = Backend(rejects(503), speculates=True)

    def fails(*_: Any, **__: Any) -> None:
        raise KeyError(KEY)

    with logged() as log:
        async with gateway(spec=[spec], auth=auth) as running:
            fields = [BEARER, ("x-request-id", KEY)]
            told = [
                await send(running, fields, target=f"{CHAT}?key={KEY}"),
                await send(running, fields, body={**ASKED, "model": KEY}),
                await send(running, [*fields, ("x-turnout-pool", KEY)]),
                await send(running, fields, target=f"/v1/{KEY}"),
                await send(running, fields, target=f"/{'a' * 180}{KEY}"),
                await send(running, fields, target="/explain", body={"route": KEY, "body": {}}),
                await send(running, [("api-key", FOREIGN), ("x-request-id", FOREIGN)]),
            ]
            monkeypatch.setattr(exchange, "extract", fails)
            told.append(await send(running, fields))
            await eventually(lambda: len(running.lines) > 0, what="lines are written")

    statuses = [status for status, _ in told]
    assert statuses == [503, 404, 400, 404, 404, 404, 401 if auth is AUTH else 503, 500]
    assert not any(KEY[:12].encode() in body for _, body in told)
    assert "met a defect" in log.getvalue()
    assert "KeyError" in log.getvalue()
    for key in (KEY, FOREIGN):
        assert key not in log.getvalue()
        assert key.encode() not in b"".join(running.lines)
        assert not any(key.encode() in body for _, body in told)


async def test_a_key_of_few_letters_is_no_id_either() -> None:
    plain, short = Backend(), "s3cret"
    auth = {"keys": [{"name": "a", "sha256": digest(short)}]}
    async with gateway(plain=[plain], auth=auth) as running:
        fields = [("authorization", f"Bearer {short}"), ("x-request-id", short)]
        status, _ = await send(running, fields)
        await eventually(lambda: len(running.lines) > 0, what="a line is written")

        assert status == 200
        assert short.encode() not in seen(plain)
        assert short.encode() not in b"".join(running.lines)


# --- what the gateway bears, and what becomes of it -------------------------------------------


def guarded(key: str, *, only: str = "/", status: int = 401) -> Script:
    """Return a script of a whole vLLM server whose paths under `only` want a key."""

    async def script(call: Call) -> None:
        probed = Backend().probed
        path = call.target.partition("?")[0]
        if path.startswith(only) and call.one(b"authorization") != f"Bearer {key}".encode():
            await call.answer(b'{"error":"Unauthorized"}', status)
        elif path == "/metrics":
            await call.answer(probed.metrics().encode(), 200, (b"content-type", b"text/plain"))
        elif path == "/v1/models":
            await call.answer(json.dumps(probed.cards()).encode(), 200, JSON)
        elif path in ("/health", "/version"):
            await call.answer(b"{}", 200, JSON)
        else:
            await answers(call)

    return script


@asynccontextmanager
async def asked_over_sockets(*backends: Backend, **given: Any) -> AsyncIterator[Running]:
    """Run a gateway whose probes go over sockets too, often."""
    probes = {"health_interval_s": 0.05, "scrape_interval_s": 0.05, "failures": 1}
    given = {"probes": probes, **given}
    async with gateway(plain=list(backends), seams={"transport": None}, **given) as running:
        yield running


async def ready(running: Running) -> dict[str, Any]:
    async with running.client.get(f"{running.url}/ready") as response:
        return {"status": response.status, **await response.json()}


@pytest.mark.parametrize("model", ["m", None])
async def test_a_backend_that_guards_every_path_is_asked_with_the_pools_key(
    model: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POOL_KEY", POOL_KEY)
    plain = Backend(guarded(POOL_KEY))
    each_pool = {"api_key_env": "POOL_KEY", "model": model}
    async with asked_over_sockets(plain, each_pool=each_pool) as running:
        assert (await running.ask())[0] == 200
        async with running.client.get(f"{running.url}/v1/models") as response:
            assert [card["id"] for card in (await response.json())["data"]] == ["m"]
        async with running.client.get(f"{running.url}/metrics") as response:
            assert response.status == 200

        paths = ("/health", "/metrics", "/version", "/v1/models", CHAT)
        await eventually(lambda: {c.target for c in plain.calls} == {*paths}, what="all is asked")
        assert {c.one(b"authorization") for c in plain.calls} == {f"Bearer {POOL_KEY}".encode()}


@pytest.mark.parametrize(  # vLLM itself guards /v1 alone
    ("only", "model"), [("/", "m"), ("/v1", "m"), ("/v1", None)]
)
@pytest.mark.parametrize("named", [None, "POOL_KEY"])
async def test_a_backend_that_does_not_let_the_gateway_in_is_told_as_that(
    only: str,
    model: str | None,
    named: str | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("POOL_KEY", "wrong")
    plain = Backend(guarded(POOL_KEY, only=only))
    each_pool = {"api_key_env": named, "model": model}
    async with asked_over_sockets(plain, auth=AUTH, each_pool=each_pool) as running:
        await eventually(lambda: len(plain.calls) > 6, what="it was probed some times")

        state = await ready(running)
        assert (state["status"], state["ready"]) == (503, False)
        status, body, _ = await running.ask(authorization=f"Bearer {KEY}")
        error = json.loads(body)["error"]
        assert (status, error["type"]) == (503, "backend_unauthorized")
        headers = {"authorization": f"Bearer {KEY}"}
        question = {"body": ASKED}
        asked = running.client.post(f"{running.url}/explain", json=question, headers=headers)
        async with asked as response:
            explained = (await response.json())["error"]
        assert explained["kind"] == "backend_unauthorized"
        for told in (state["reason"], error["message"], explained["message"]):
            assert plain.name in told
            assert "pool plain" in told
            assert "401" in told
            assert "api_key_env" in told
            assert ("POOL_KEY" in told) is (named is not None)
        warned = [r for r in caplog.records if "api_key_env" in r.getMessage()]
        assert [record.levelname for record in warned] == ["WARNING"]

        monkeypatch.setenv("POOL_KEY", POOL_KEY)
        running.reload(plain={"api_key_env": "POOL_KEY"}, auth=AUTH)
        member = running.app.fleet.members[plain.name]
        await eventually(lambda: member.load.healthy, what="it is up")
        assert (await ready(running))["status"] == 200
        assert (await running.ask(authorization=f"Bearer {KEY}"))[0] == 200


async def test_where_clients_own_keys_go_on_a_401_is_theirs_and_its_backend_is_up() -> None:
    plain = Backend(guarded("sk-client", only="/v1"))
    async with asked_over_sockets(plain) as running:
        assert (await running.ask(authorization="Bearer sk-client"))[0] == 200
        status, body, _ = await running.ask(authorization="Bearer other")

        assert (status, body) == (401, b'{"error":"Unauthorized"}')
        assert (await ready(running))["status"] == 200
        assert running.count("turnout_upstream_errors_total") == 0


async def test_a_401_to_a_request_is_tried_elsewhere_and_its_backend_left_alone_until_it_lets_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("POOL_KEY", POOL_KEY)
    keys = [POOL_KEY, POOL_KEY]

    def script(number: int) -> Script:
        async def guards(call: Call) -> None:
            await guarded(keys[number])(call)

        return guards

    one, two = Backend(script(0)), Backend(script(1))
    each_pool = {"api_key_env": "POOL_KEY"}
    slow = {"health_interval_s": 3600, "scrape_interval_s": 3600}
    async with asked_over_sockets(one, two, each_pool=each_pool, probes=slow) as running:
        members = running.app.fleet.members
        keys[0] = "another"

        for _ in range(12):
            assert (await running.ask())[0] == 200

        tried = [call for call in one.calls if call.target == CHAT]
        assert len(tried) == 1
        assert not members[one.name].load.healthy
        assert "POOL_KEY" in members[one.name].unauthorized
        kind = "backend_unauthorized"
        assert running.count("turnout_upstream_errors_total", backend=one.name, kind=kind) == 1
        assert running.count("turnout_retries_total", cause=kind) == 1

        keys[1] = "another"
        status, body, headers = await running.ask()
        error = json.loads(body)["error"]
        assert (status, error["type"]) == (502, kind)
        assert "www-authenticate" not in headers
        assert "of pool plain answered 401" in error["message"]
        assert "POOL_KEY" in error["message"]
        assert POOL_KEY not in body.decode()
        state = await ready(running)
        assert state["status"] == 503
        assert "401" in state["reason"]


async def test_a_backend_is_used_again_once_it_lets_the_gateway_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("POOL_KEY", POOL_KEY)
    keys = [POOL_KEY]

    async def guards(call: Call) -> None:
        await guarded(keys[0], only="/v1")(call)

    plain = Backend(guards)
    async with asked_over_sockets(plain, each_pool={"api_key_env": "POOL_KEY"}) as running:
        member = running.app.fleet.members[plain.name]
        keys[0] = "rotated"
        assert (await running.ask())[0] == 502
        await eventually(lambda: not member.up, what="it is found out")
        assert (await running.ask())[0] == 503

        keys[0] = POOL_KEY
        await eventually(lambda: member.load.healthy, what="it is found to let in")
        assert (await running.ask())[0] == 200
        assert member.unauthorized == ""


async def test_a_403_to_a_request_is_not_the_clients_and_takes_nothing_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What stands before a server may refuse one request for what it asks."""
    monkeypatch.setenv("POOL_KEY", POOL_KEY)
    plain = Backend(rejects(403))
    async with gateway(plain=[plain], each_pool={"api_key_env": "POOL_KEY"}) as running:
        for _ in range(6):
            status, body, _ = await running.ask()
            assert (status, json.loads(body)["error"]["type"]) == (502, "backend_unauthorized")

        assert running.app.fleet.members[plain.name].load.healthy
        assert running.count("turnout_backend_circuit") == 0
        assert (await ready(running))["status"] == 200
