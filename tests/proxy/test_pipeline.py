"""The straight line over real sockets: what passes, what is decided, and what is refused."""

import asyncio
import gzip
import json
import re
from typing import Any

import httpx
import pytest
from yarl import URL

from tests.proxy import streams
from tests.proxy.wire import (
    ASKED,
    CHAT,
    EVENTS,
    JSON,
    STREAMED,
    Backend,
    Call,
    answers,
    chat_body,
    eventually,
    gateway,
    rejects,
    soon,
)

OTHER_PATHS = [
    *("/v1/embeddings", "/v1/score", "/score", "/v1/rerank", "/rerank", "/pooling", "/classify"),
    *("/tokenize", "/detokenize", "/v1/messages/count_tokens"),
]


def error_of(body: bytes) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(body)["error"]
    return error


# --- what passes ----------------------------------------------------------------------------


async def test_an_answer_passes_with_what_was_decided() -> None:
    spec, plain = Backend(speculates=True), Backend()
    async with gateway(spec=[spec], plain=[plain]) as running:
        status, body, headers = await running.ask()

        assert (status, body) == (200, chat_body())
        assert headers["x-turnout-pool"] == "spec"
        assert headers["x-turnout-backend"] == spec.name
        assert headers["x-turnout-reason"] == "policy"
        assert headers["x-turnout-class"].endswith("@T<=0.2")
        await running.settled(finished=1)
        assert plain.calls == []


async def test_the_body_goes_out_byte_for_byte_with_fields_nobody_knows() -> None:
    spec = Backend(speculates=True)
    raw = b'{ "messages":[], "temperature" : 0.50, "new_in_0.99":{"a":[1e2,"\\u2713"]}}\n'
    async with gateway(spec=[spec]) as running:
        await running.ask(raw, path=CHAT + "?a=b%20c&d")

        call = spec.calls[0]
        assert call.body == raw
        assert call.target == CHAT + "?a=b%20c&d"


async def test_a_stream_differs_by_the_usage_it_did_not_ask_for() -> None:
    spec = Backend(speculates=True)
    async with gateway(spec=[spec]) as running:
        _, unasked, _ = await running.ask(STREAMED)
        _, asked, _ = await running.ask({**STREAMED, "stream_options": {"include_usage": True}})

        direct = b"".join(streams.CHAT)
        assert unasked == direct + streams.DONE
        assert asked == direct + streams.final_usage() + streams.DONE
        sent = json.loads(spec.calls[0].body)
        assert sent == {**STREAMED, "stream_options": {"include_usage": True}}


async def test_counts_per_chunk_are_asked_for_where_nothing_tells_acceptance() -> None:
    spec, plain = Backend(speculates=True), Backend()
    share = {"continuous_usage_share": 1.0}
    async with gateway(spec=[spec], plain=[plain], observation=share) as running:
        await running.ask(STREAMED)  # shows that acceptance is not reported
        await running.ask(STREAMED)
        await running.ask(STREAMED, x_turnout_pool="plain")

        options = [json.loads(c.body)["stream_options"] for c in (*spec.calls, *plain.calls)]
        both = {"include_usage": True, "continuous_usage_stats": True}
        assert options == [{"include_usage": True}, both, {"include_usage": True}]


async def test_a_server_that_reports_acceptance_is_not_asked_for_counts() -> None:
    report = streams.final_usage(3, 9, num_accepted_draft_tokens=4, num_draft_tokens=10)

    async def reports(call: Call) -> None:
        await call.stream(*streams.CHAT, report, streams.DONE)
        await call.end()

    spec = Backend(reports, speculates=True)
    share = {"continuous_usage_share": 1.0}
    async with gateway(spec=[spec], observation=share) as running:
        await running.ask(STREAMED)
        await running.ask(STREAMED)

        assert b"continuous" not in spec.calls[1].body
        await running.settled(finished=2)
        assert running.count("turnout_acceptance_source_total", source="engine") == 2


async def test_a_client_that_asks_for_counts_per_chunk_gets_them() -> None:
    async def counts(call: Call) -> None:
        await call.stream(streams.text("a", counted=streams.usage(1, 1)), streams.DONE)
        await call.end()

    spec = Backend(counts, speculates=True)
    options = {"include_usage": True, "continuous_usage_stats": True}
    async with gateway(spec=[spec]) as running:
        _, body, _ = await running.ask({**STREAMED, "stream_options": options})

        assert body == streams.text("a", counted=streams.usage(1, 1)) + streams.DONE


@pytest.mark.parametrize("path", OTHER_PATHS)
async def test_what_decodes_nothing_passes_as_it_is(path: str) -> None:
    answer = b'{"data":[{"embedding":[0.25]}]}'
    raw = b'{"model":"m","input":"x","stream":true}'

    async def embeds(call: Call) -> None:
        await call.answer(answer)

    plain = Backend(embeds)
    async with gateway(plain=[plain]) as running:
        status, body, headers = await running.ask(raw, path=path)

        assert (status, body) == (200, answer)
        assert plain.calls[0].body == raw
        assert plain.calls[0].target == path
        assert "x-turnout-class" not in headers


async def test_headers_pass_but_for_those_of_the_hop() -> None:
    async def replies(call: Call) -> None:
        fields = [
            *((b"Connection", b"X-Once, keep-alive"), (b"X-Once", b"1"), (b"Keep-Alive", b"9")),
            *((b"X-Answer", b"a"), (b"Set-Cookie", b"one"), (b"Set-Cookie", b"two")),
            *((b"Server", b"uvicorn"), (b"X-Request-Id", b"theirs"), (b"Trailer", b"x")),
        ]
        await call.answer(b"{}", 200, JSON, *fields)

    spec = Backend(replies, speculates=True)
    async with gateway(spec=[spec]) as running:
        async with running.post(
            connection="x-private, keep-alive",
            x_private="secret",
            te="trailers",
            traceparent="00-1-2-01",
            x_vllm_priority="3",
            authorization="Bearer client",
            accept_encoding="gzip, br",
            x_request_id="mine-1",
        ) as response:
            await response.read()

        call = spec.calls[0]
        for dropped in (b"x-private", b"te", b"keep-alive"):
            assert call.one(dropped) is None, dropped
        assert call.one(b"traceparent") == b"00-1-2-01"
        assert call.one(b"x-vllm-priority") == b"3"
        assert call.one(b"authorization") == b"Bearer client"
        assert call.all(b"accept-encoding") == [b"identity"]
        assert call.all(b"x-request-id") == [b"mine-1"]
        assert call.all(b"host") == [spec.name.encode()]
        assert call.all(b"content-type") == [b"application/json"]
        headers = response.headers
        assert headers["x-answer"] == "a"
        assert headers.getall("set-cookie") == ["one", "two"]
        assert headers.getall("x-request-id") == ["mine-1"]
        for dropped_name in ("x-once", "server", "keep-alive", "trailer"):
            assert dropped_name not in headers


@pytest.mark.parametrize("given", ["4f2a, 9c1b", "Root=1-67; Self=1-68", "a" * 257, "caf\xe9"])
async def test_an_id_that_no_line_could_carry_goes_on_in_a_field_of_its_own(given: str) -> None:
    spec = Backend(speculates=True)
    async with gateway(spec=[spec]) as running:
        status, _, headers = await running.ask(x_request_id=given, x_client_request_id="sdk-1")

        (call,) = spec.calls
        assert status == 200
        assert call.all(b"x-client-request-id") == [b"sdk-1", given.encode()]
        assert call.all(b"x-request-id") == [headers["x-request-id"].encode()]
        assert re.fullmatch("[0-9a-f]{32}", headers["x-request-id"])


@pytest.mark.parametrize("slashes", ["/", "//", "%2F", "/%2f/"])
async def test_slashes_behind_a_path_are_left_out(slashes: str) -> None:
    spec = Backend(speculates=True)
    async with gateway(spec=[spec], extra_routes=["POST /v1/audio/speech/"]) as running:
        for path in (CHAT, "/v1/audio/speech"):
            status, _, _ = await running.ask(path=f"{path}{slashes}?a=b")
            assert (status, spec.calls[-1].target) == (200, f"{path}?a=b")
        for path in ("/v1/models", "/health", "/metrics"):
            url = URL(f"{running.url}{path}{slashes}", encoded=True)
            async with running.client.get(url, allow_redirects=False) as response:
                assert response.status == 200


@pytest.mark.parametrize(
    "path",
    [f"/{CHAT}", f"/v1{CHAT}", "/reset_prefix_cache/", "/v1/../reset_prefix_cache/",
     "/v1/%2e%2e/reset_prefix_cache%2F", f"{CHAT}/../../../reset_prefix_cache/", f"{CHAT}/%00/"],
)  # fmt: skip
async def test_slashes_open_no_other_path(path: str) -> None:
    spec = Backend(speculates=True)
    async with gateway(spec=[spec]) as running:
        url = URL(running.url + path, encoded=True)
        async with running.client.post(url, json=ASKED, allow_redirects=False) as response:
            assert response.status == 404

        assert not spec.calls


@pytest.mark.parametrize("said", ["utf-8", "gzip", ""])
async def test_a_content_encoding_that_says_what_is_not_so_does_no_harm(said: str) -> None:
    spec = Backend(speculates=True)
    async with gateway(spec=[spec]) as running:
        status, _, _ = await running.ask(content_encoding=said)
        packed, why, _ = await running.ask(gzip.compress(b"{}"), content_encoding="gzip")

        assert (status, packed) == (200, 400)
        assert "content-encoding 'gzip'" in error_of(why)["message"]
        assert [call.one(b"content-encoding") for call in spec.calls] == [said.encode()]


async def test_long_fields_of_an_answer_and_bytes_beyond_ascii_pass() -> None:
    async def script(call: Call) -> None:
        seen = call.one(b"x-note") or b""
        await call.answer(chat_body(), 200, JSON, (b"x-long", b"a" * 20_000), (b"x-note", seen))

    note = "caf\xe9 \u2713".encode()
    async with (
        gateway(spec=[Backend(script)]) as running,
        httpx.AsyncClient(base_url=running.url, trust_env=False) as client,
    ):
        answer = await client.post(CHAT, json=ASKED, headers=[(b"x-note", note)])

        assert answer.status_code == 200
        assert len(answer.headers["x-long"]) == 20_000
        assert (b"x-note", note) in answer.headers.raw


async def test_a_stream_of_declared_length_may_become_shorter() -> None:
    events = b"".join((*streams.CHAT, streams.final_usage(), streams.DONE))

    async def script(call: Call) -> None:
        await call.answer(events, 200, EVENTS)

    async with gateway(spec=[Backend(script, speculates=True)]) as running:
        status, body, headers = await running.ask(STREAMED)

        assert status == 200
        assert body == b"".join((*streams.CHAT, streams.DONE))
        assert "content-length" not in headers


async def test_a_request_id_is_made_where_none_came() -> None:
    spec = Backend(speculates=True)
    async with gateway(spec=[spec]) as running:
        _, _, first = await running.ask()
        _, _, second = await running.ask()

        ids = [first["x-request-id"], second["x-request-id"]]
        assert len(set(ids)) == 2
        assert [call.one(b"x-request-id") for call in spec.calls] == [i.encode() for i in ids]


async def test_the_gateways_own_fields_are_not_passed_to_backends() -> None:
    spec = Backend(speculates=True)
    async with gateway(spec=[spec]) as running:
        await running.ask(x_turnout_pool="spec", x_turnout_task="code")

        assert not any(name.startswith(b"x-turnout") for name, _ in spec.calls[0].headers)


async def test_a_pool_with_a_key_of_its_own_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVERS_KEY", "sk-pool")
    spec = Backend(speculates=True)
    async with gateway(spec=[spec], each_pool={"api_key_env": "SERVERS_KEY"}) as running:
        await running.ask(authorization="Bearer client")

        assert spec.calls[0].all(b"authorization") == [b"Bearer sk-pool"]


async def test_a_compressed_answer_passes_unread() -> None:
    packed = gzip.compress(chat_body())

    async def packs(call: Call) -> None:
        await call.answer(packed, 200, JSON, (b"content-encoding", b"gzip"))

    async with gateway(spec=[Backend(packs, speculates=True)]) as running:
        status, body, headers = await running.ask()

        assert (status, body, headers["content-encoding"]) == (200, packed, "gzip")


async def test_a_compressed_stream_passes_as_it_comes() -> None:
    async def packs(call: Call) -> None:
        await call.head(200, EVENTS, (b"content-encoding", b"gzip"))
        await call.send(b"\x1f\x8bone")
        await call.gone.wait()

    async with gateway(spec=[Backend(packs, speculates=True)]) as running:
        async with running.post(STREAMED) as response:
            assert await soon(response.content.readany()) == b"\x1f\x8bone"
            response.close()

        await running.settled(cancelled=1)


# --- models and pools -----------------------------------------------------------------------


async def test_an_alias_is_rewritten_for_the_server() -> None:
    spec = Backend(speculates=True)
    models = [{"name": "m", "aliases": ["gpt-4"]}]
    async with gateway(spec=[spec], models=models) as running:
        await running.ask(b'{"model" : "gpt-4", "seed":12345678901234567890123}')

        assert spec.calls[0].body == b'{"model" : "m", "seed":12345678901234567890123}'


async def test_a_missing_model_is_the_only_one_there_is() -> None:
    spec = Backend(speculates=True)
    async with gateway(spec=[spec]) as running:
        status, _, _ = await running.ask(b'{"messages":[]}')

        assert status == 200
        assert spec.calls[0].body == b'{"messages":[]}'


async def test_an_unknown_model_is_a_404_in_openais_shape() -> None:
    spec = Backend(speculates=True)
    async with gateway(spec=[spec]) as running:
        status, body, _ = await running.ask({**ASKED, "model": "gpt-5"})

        assert status == 404
        assert error_of(body)["param"] == "model"
        assert "models: m" in error_of(body)["message"]
        await running.settled(client_error=1)
        assert spec.calls == []


async def test_a_pin_names_the_pool() -> None:
    spec, plain = Backend(speculates=True), Backend()
    async with gateway(spec=[spec], plain=[plain]) as running:
        _, _, headers = await running.ask(x_turnout_pool="plain")

        assert headers["x-turnout-pool"] == "plain"
        assert headers["x-turnout-reason"] == "pinned"
        assert (len(spec.calls), len(plain.calls)) == (0, 1)


@pytest.mark.parametrize(
    ("given", "pin", "status", "says"),
    [
        ({"allow_pinning": False}, "plain", 400, "not permitted"),
        ({}, "other", 400, "pools that do: spec, plain"),
    ],
)
async def test_a_pin_that_cannot_be_followed_is_told(
    given: dict[str, Any], pin: str, status: int, says: str
) -> None:
    async with gateway(spec=[Backend(speculates=True)], plain=[Backend()], **given) as running:
        got, body, _ = await running.ask(x_turnout_pool=pin)

        assert got == status
        assert says in error_of(body)["message"]
        await running.settled(client_error=1)


async def test_a_pinned_pool_that_is_down_is_a_503() -> None:
    spec, plain = Backend(speculates=True), Backend()
    async with gateway(spec=[spec], plain=[plain]) as running:
        running.app.fleet.members[plain.name].load.healthy = False

        status, body, headers = await running.ask(x_turnout_pool="plain")

        assert status == 503
        assert headers["retry-after"] == "1"
        assert "pinned pool 'plain'" in error_of(body)["message"]
        await running.settled(refused=1)


async def test_what_a_speculating_server_refuses_goes_to_the_plain_pool() -> None:
    spec, plain = Backend(speculates=True), Backend()
    async with gateway(spec=[spec], plain=[plain]) as running:
        _, _, headers = await running.ask({**ASKED, "logit_bias": {"5": 1}})

        assert headers["x-turnout-reason"] == "unsupported"
        assert (len(spec.calls), len(plain.calls)) == (0, 1)


# --- bodies that cannot be read -------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "says"),
    [(b"{", "not valid JSON"), (b"[]", "not an array"), (b'{"model":3}', "must be a string")],
)
async def test_a_body_that_cannot_be_read_is_a_400(raw: bytes, says: str) -> None:
    async with gateway(spec=[Backend(speculates=True)]) as running:
        status, body, headers = await running.ask(raw)

        assert status == 400
        assert says in error_of(body)["message"]
        assert "x-request-id" in headers
        await running.settled(client_error=1)


async def test_a_body_over_the_limit_is_a_413() -> None:
    async with gateway(spec=[Backend(speculates=True)], listen={"max_body_bytes": 100}) as running:
        status, body, _ = await running.ask(b'{"x":"' + b"y" * 200 + b'"}')

        assert status == 413
        assert "listen.max_body_bytes allows 100" in error_of(body)["message"]


async def test_a_compressed_body_is_a_400() -> None:
    async with gateway(spec=[Backend(speculates=True)]) as running:
        status, body, _ = await running.ask(gzip.compress(b"{}"), content_encoding="gzip")

        assert status == 400
        assert "content-encoding 'gzip'" in error_of(body)["message"]


async def test_errors_of_messages_have_anthropics_shape() -> None:
    async with gateway(spec=[Backend(speculates=True)]) as running:
        _, body, _ = await running.ask(b"{", path="/v1/messages")

        assert json.loads(body)["type"] == "error"
        assert error_of(body)["type"] == "invalid_request_error"


# --- what servers reject --------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 404, 422])
async def test_a_servers_4xx_passes_byte_for_byte_and_is_not_tried_again(status: int) -> None:
    raw = b'{"error" : "Unauthorized"}\n'
    spec, plain = Backend(rejects(status, raw), speculates=True), Backend()
    async with gateway(spec=[spec], plain=[plain]) as running:
        got, body, headers = await running.ask()

        assert (got, body) == (status, raw)
        assert headers["x-turnout-pool"] == "spec"
        await running.settled(rejected=1)
        assert (len(spec.calls), len(plain.calls)) == (1, 0)


@pytest.mark.parametrize(("status", "is_spared"), [(500, False), (503, True), (429, True)])
async def test_an_error_that_is_the_servers_or_its_queues_is_tried_once_elsewhere(
    status: int, is_spared: bool
) -> None:
    spec, plain = Backend(rejects(status), speculates=True), Backend()
    async with gateway(spec=[spec], plain=[plain]) as running:
        got, body, headers = await running.ask()

        assert (got, body) == (200, chat_body())
        assert headers["x-turnout-pool"] == "plain"
        await running.settled(finished=1)
        assert running.count("turnout_retries_total", cause="backend_rejected") == 1
        assert running.count("turnout_upstream_errors_total", backend=spec.name) == 1
        assert running.app.fleet.members[spec.name].load.healthy is not is_spared


async def test_after_two_5xx_the_last_passes_byte_for_byte() -> None:
    first = Backend(rejects(500, b"first"), speculates=True)
    rest = [Backend(rejects(503, b"second \xff")) for _ in range(3)]
    async with gateway(spec=[first], plain=rest) as running:
        status, body, _ = await running.ask()

        assert (status, body) == (503, b"second \xff")
        await running.settled(rejected=1)
        assert len(first.calls) + sum(len(backend.calls) for backend in rest) == 2


async def test_a_5xx_of_the_only_backend_passes_byte_for_byte() -> None:
    async with gateway(spec=[Backend(rejects(500, b"only"), speculates=True)]) as running:
        status, body, _ = await running.ask()

        assert (status, body) == (500, b"only")
        await running.settled(rejected=1)


async def test_an_error_answer_too_large_to_hold_passes_as_it_comes() -> None:
    raw = b"x" * (3 * 2**20)
    async with gateway(spec=[Backend(rejects(500, raw), speculates=True)]) as running:
        status, body, _ = await running.ask()

        assert (status, len(body)) == (500, len(raw))
        await running.settled(rejected=1)


async def test_a_servers_own_min_p_is_met_by_the_plain_pool() -> None:
    words = (
        b"The min_p and logit_bias sampling parameters are not yet supported with speculative "
        b"decoding."
    )
    refusal = b'{"error":{"message":"' + words + b'","code":400}}'
    spec, plain = Backend(rejects(400, refusal), speculates=True), Backend()
    async with gateway(spec=[spec], plain=[plain]) as running:
        status, _, headers = await running.ask()
        pinned, body, _ = await running.ask(x_turnout_pool="spec")

        assert (status, headers["x-turnout-reason"]) == (200, "unsupported")
        assert (pinned, body) == (400, refusal)
        await running.settled(finished=1, rejected=1)
        assert running.count("turnout_retries_total", cause="unsupported") == 1


async def test_the_same_refusal_as_the_first_event_of_a_stream_is_met_too() -> None:
    words = (
        b"The min_p and logit_bias sampling parameters are not yet supported with speculative "
        b"decoding."
    )
    refusal = b'data: {"error":{"message":"' + words + b'","code":400}}\n\ndata: [DONE]\n\n'

    async def refuses(call: Call) -> None:
        await call.stream(refusal)

    spec, plain = Backend(refuses, speculates=True), Backend()
    async with gateway(spec=[spec], plain=[plain]) as running:
        status, _, headers = await running.ask(STREAMED)
        pinned, body, _ = await running.ask(STREAMED, x_turnout_pool="spec")

        assert (status, headers["x-turnout-reason"]) == (200, "unsupported")
        assert (pinned, body) == (200, refusal)


# --- stored responses -----------------------------------------------------------------------


def a_store() -> Backend:
    """Return a backend that makes a response named after itself, and knows only that."""

    async def script(call: Call) -> None:
        mine = f"resp_{backend.port}"
        if call.method == "POST" and call.target == "/v1/responses":
            made = {"id": mine, "status": "completed", "output": [1]}
            await call.answer(streams.dumps(made))
        elif mine in call.target:
            await call.answer(streams.dumps({"id": mine, "target": call.target}))
        else:
            await rejects(404)(call)

    backend = Backend(script)
    return backend


async def test_a_stored_response_is_asked_of_the_backend_that_made_it() -> None:
    stores = [a_store() for _ in range(3)]
    async with gateway(plain=stores) as running:
        for _ in range(4):
            _, body, _ = await running.ask({"input": "hi"}, path="/v1/responses")
            made = json.loads(body)["id"]
            path = f"/v1/responses/{made}"

            async with running.client.get(f"{running.url}{path}?stream=false") as got:
                assert (await got.json())["target"] == f"{path}?stream=false"
                assert got.headers["x-turnout-reason"] == "stored_response"
            async with running.client.post(f"{running.url}{path}/cancel") as cancelled:
                assert (await cancelled.json())["target"] == f"{path}/cancel"
            follow = {"input": "and", "previous_response_id": made}
            _, body, headers = await running.ask(follow, path="/v1/responses")
            assert json.loads(body)["id"] == made
            assert headers["x-turnout-reason"] == "stored_response"


async def test_an_unknown_response_is_a_404() -> None:
    async with (
        gateway(plain=[a_store()]) as running,
        running.client.get(running.url + "/v1/responses/resp_0") as got,
    ):
        assert got.status == 404
        assert "resp_0" in error_of(await got.read())["message"]


async def test_a_response_whose_holder_is_down_is_a_503() -> None:
    store, other = a_store(), a_store()
    async with gateway(plain=[store, other]) as running:
        _, body, headers = await running.ask({"input": "hi"}, path="/v1/responses")
        running.app.fleet.members[headers["x-turnout-backend"]].load.healthy = False

        path = "/v1/responses/" + json.loads(body)["id"]
        async with running.client.get(running.url + path) as got:
            assert got.status == 503
            assert "which holds the response" in error_of(await got.read())["message"]


# --- routes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("POST", path) for path in ("/sleep", "/collective_rpc", "/invocations", "/")),
        *(("POST", path) for path in ("/v1/load_lora_adapter", "/abort_requests", "/v1/foo")),
        *(("GET", "/v1/responses/"), ("POST", "/v1/responses/resp_1/delete")),
        *(("POST", "/v1/chat/completionss"), ("DELETE", "/v1/responses/resp_1")),
        ("POST", "/v1/responses/../sleep"),
        ("POST", "//v1/chat/completions"),
    ],
)
async def test_what_is_not_served_is_a_404_in_openais_shape(method: str, path: str) -> None:
    spec = Backend(speculates=True)
    async with gateway(spec=[spec]) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        head = f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\nconnection: close"
        writer.write(head.encode() + b"\r\n\r\n{}")
        raw = await soon(reader.read())
        writer.close()

        head_bytes, _, body = raw.partition(b"\r\n\r\n")
        assert head_bytes.split(b" ")[1] in (b"404", b"405")
        assert error_of(body)["message"]
        assert spec.calls == []


async def test_a_listed_route_passes_through() -> None:
    async def script(call: Call) -> None:
        await call.answer(b"slept", 200, (b"content-type", b"text/plain"))

    spec = Backend(script, speculates=True)
    async with gateway(spec=[spec], extra_routes=["POST /sleep"]) as running:
        status, body, _ = await running.ask(b"not json", path="/sleep?level=1")

        assert (status, body) == (200, b"slept")
        assert (spec.calls[0].target, spec.calls[0].body) == ("/sleep?level=1", b"not json")
        await running.settled(finished=1)
        assert running.count("turnout_requests_total", endpoint="extra") == 1


async def test_a_defect_of_the_gateway_is_a_500_in_openais_shape(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with gateway(spec=[Backend(answers, speculates=True)]) as running:
        monkeypatch.setattr(
            running.app.pipeline._router, "decide", lambda *_, **__: 1 / 0, raising=True
        )

        status, body, _ = await running.ask()

        assert status == 500
        assert error_of(body)["type"] == "internal_error"
        assert "met a defect" in caplog.text
        await running.settled(failed=1)


async def test_a_defect_of_observation_harms_no_request(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with gateway(spec=[Backend(answers, speculates=True)]) as running:
        monkeypatch.setattr(running.app.pipeline._metrics, "observe", lambda _: 1 / 0)

        status, body, _ = await running.ask()

        assert (status, body) == (200, chat_body())
        await eventually(lambda: "could not be observed" in caplog.text, what="it is logged")
