"""Errors below `/v1/messages`, as the `anthropic` client reads them."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anthropic
import pytest
from anthropic import AsyncAnthropic

from tests.proxy import streams
from tests.proxy.test_keys import KEY, OTHER, auth
from tests.proxy.wire import Backend, Call, Running, answers, gateway, resets

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]

ASKED: dict[str, Any] = {
    "model": "m",
    "max_tokens": 5,
    "messages": [{"role": "user", "content": "hi"}],
}
Client = AsyncAnthropic
Asks = Callable[[Client], Awaitable[object]]


async def drained(running: Running) -> None:
    await running.app.lifecycle.drain(0.0)


async def no_backend(running: Running) -> None:
    for member in running.app.fleet.members.values():
        member.load.healthy = False


async def defect(running: Running) -> None:
    running.app.pipeline._router.decide = None  # type: ignore[assignment,method-assign]


def asks(**more: Any) -> Asks:
    return lambda client: client.messages.create(**ASKED | more)


def counts(client: Client) -> Awaitable[object]:
    return client.messages.count_tokens(model="none", messages=ASKED["messages"])


def gets(path: str) -> Asks:
    return lambda client: client.get(path, cast_to=object)


async def nothing(_: Running) -> None:
    pass


Case = tuple[Asks, Callable[[Running], Awaitable[None]], int, type[anthropic.APIStatusError], str]
OF_STATUS: dict[str, Case] = {
    "body": (
        asks(system="x" * 3000), nothing, 413, anthropic.ContentTooLargeError, "request_too_large"
    ),
    "model": (asks(model="none"), nothing, 404, anthropic.NotFoundError, "not_found_error"),
    "model to count for": (counts, nothing, 404, anthropic.NotFoundError, "not_found_error"),
    "batches": (
        gets("/v1/messages/batches"), nothing, 404, anthropic.NotFoundError, "not_found_error"
    ),
    "method": (
        gets("/v1/messages"), nothing, 405, anthropic.APIStatusError, "invalid_request_error"
    ),
    "field": (
        asks(model=3), nothing, 400, anthropic.BadRequestError, "invalid_request_error"
    ),
    "lost": (asks(), nothing, 502, anthropic.InternalServerError, "api_error"),
    "no backend": (
        asks(), no_backend, 503, anthropic.ServiceUnavailableError, "overloaded_error"
    ),
    "drain": (asks(), drained, 503, anthropic.ServiceUnavailableError, "overloaded_error"),
    "defect": (asks(), defect, 500, anthropic.InternalServerError, "api_error"),
}  # fmt: skip


def client_of(running: Running, key: str = KEY) -> Client:
    return AsyncAnthropic(base_url=running.url, api_key=key, max_retries=0)


@pytest.mark.parametrize("name", OF_STATUS)
async def test_each_error_is_the_exception_of_its_kind(name: str) -> None:
    ask, given, status, kind, told = OF_STATUS[name]
    limits = {"max_body_bytes": 2000}
    async with gateway(plain=[Backend(resets)], auth=auth(KEY), listen=limits) as running:
        await given(running)
        async with client_of(running) as client:
            with pytest.raises(kind) as raised:
                await ask(client)

    assert (raised.value.status_code, raised.value.type) == (status, told)


async def test_keys_that_may_not_are_told_so() -> None:
    keys = auth(KEY, OTHER)
    keys["keys"][0]["requests_per_minute"] = 1
    keys["keys"][1]["models"] = ["other"]
    async with gateway(plain=[Backend(answers)], auth=keys) as running:
        async with client_of(running) as client:
            await client.messages.create(**ASKED)
            with pytest.raises(anthropic.RateLimitError) as limited:
                await client.messages.create(**ASKED)
        async with client_of(running, OTHER) as client:
            with pytest.raises(anthropic.PermissionDeniedError) as denied:
                await client.messages.create(**ASKED)
        async with client_of(running, "unknown") as client:
            for ask in (asks(), gets("/v1/messages/batches")):
                with pytest.raises(anthropic.AuthenticationError) as refused:
                    await ask(client)
                assert refused.value.type == "authentication_error"

    assert limited.value.type == "rate_limit_error"
    assert denied.value.type == "permission_error"


async def test_a_stream_that_breaks_off_raises_what_its_error_event_says() -> None:
    async def breaks_off(call: Call) -> None:
        await call.stream(*streams.MESSAGE[:3])
        call.cut()

    async with gateway(plain=[Backend(breaks_off)]) as running, client_of(running) as client:
        events: AsyncIterator[object] = await client.messages.create(**ASKED, stream=True)
        with pytest.raises(anthropic.APIStatusError) as raised:
            async for _ in events:
                pass

    assert raised.value.type == "api_error"
    assert isinstance(raised.value.body, dict)
    assert raised.value.body["request_id"] == raised.value.response.headers["x-request-id"]
