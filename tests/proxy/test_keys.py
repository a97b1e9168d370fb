"""Keys: who is let in, what each may do, and that none goes further."""

import asyncio
import json
from typing import Any

import pytest

from config.settings import ApiKey, Auth
from proxy.credentials import Credentials
from proxy.errors import Forbidden, TooMany, Unauthenticated
from proxy.keys import Caller, Keyring, digest, new_key
from tests.proxy import streams
from tests.proxy.wire import STREAMED, Backend, Call, answers, begin, eventually, gateway, soon

pytestmark = pytest.mark.anyio

KEY, OTHER = "turnout-one", "turnout-other"


def auth(*keys: str, **limits: Any) -> dict[str, Any]:
    return {"keys": [{"name": f"k{n}", "sha256": digest(k), **limits} for n, k in enumerate(keys)]}


def bearer_of(key: str) -> Credentials:
    return Credentials([(b"authorization", b"Bearer " + key.encode())])


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_a_new_key_is_known_by_its_digest_alone() -> None:
    key, shown = new_key()
    ring = Keyring(Auth(keys=(ApiKey(name="a", sha256=shown),)))

    caller = ring.identify(bearer_of(key))

    assert caller.name == "a"
    assert key not in repr(vars(ring))
    assert new_key()[0] != key


def test_a_caller_has_no_more_under_way_than_it_may() -> None:
    caller = Caller(ApiKey(name="a", sha256=digest(KEY), max_in_flight=1))

    with (
        caller.asking(0.0),
        pytest.raises(TooMany, match="has 1 requests under way"),
        caller.asking(0.0),
    ):
        pass
    with caller.asking(0.0):
        assert caller.in_flight == 1
    assert caller.in_flight == 0


def test_a_caller_asks_no_more_often_than_it_may() -> None:
    caller = Caller(ApiKey(name="a", sha256=digest(KEY), requests_per_minute=1))
    with caller.asking(0.0):
        pass

    with pytest.raises(TooMany, match="may ask 1 times a minute") as raised, caller.asking(30.0):
        pass

    assert raised.value.headers["retry-after"] == "30"
    with caller.asking(60.0):
        pass


def test_a_caller_has_what_its_key_names() -> None:
    caller = Caller(ApiKey(name="a", sha256=digest(KEY), models=("m",), pools=("plain",)))

    caller.permit(model="m", pin="plain")
    with pytest.raises(Forbidden, match="may not use model 'x'; it may: m"):
        caller.permit(model="x", pin=None)
    with pytest.raises(Forbidden, match="may not use pool 'spec'; it may: plain"):
        caller.permit(model="m", pin="spec")


async def test_without_a_key_nothing_is_served_and_nothing_is_sent() -> None:
    spec = Backend(speculates=True)
    async with gateway(spec=[spec], auth=auth(KEY)) as running:
        status, body, headers = await running.ask()
        assert (status, headers["www-authenticate"]) == (401, "Bearer")
        assert b"authentication_error" in body
        async with running.client.get(f"{running.url}/v1/models") as response:
            assert response.status == 401
        for path in ("/health", "/ready", "/metrics"):
            async with running.client.get(running.url + path) as response:
                assert response.status == 200
        assert not spec.calls
        await running.settled(client_error=1)


async def test_a_clients_key_stays_here_and_the_pools_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("POOL_KEY", "secret")
    spec, plain = Backend(speculates=True), Backend()
    async with gateway(spec=[spec], plain=[plain], auth=auth(KEY)) as running:
        await running.ask(**bearer(KEY), x_api_key=KEY)
        call = await spec.called()
        assert call.one(b"authorization") is None
        assert call.one(b"x-api-key") is None
    async with gateway(
        spec=[Backend(speculates=True)], each_pool={"api_key_env": "POOL_KEY"}, auth=auth(KEY)
    ) as running:
        await running.ask(**bearer(KEY))
        (backend,) = running.backends
        assert (await backend.called()).one(b"authorization") == b"Bearer secret"


async def test_a_key_for_one_pool_is_served_by_that_pool() -> None:
    spec, plain = Backend(speculates=True), Backend()
    limited = auth(KEY, pools=["plain"])
    async with gateway(spec=[spec], plain=[plain], auth=limited) as running:
        _, _, headers = await running.ask(**bearer(KEY))
        assert headers["x-turnout-pool"] == "plain"
        status, _, _ = await running.ask(**bearer(KEY), x_turnout_pool="spec")
        assert status == 403


async def _stores(call: Call) -> None:
    chosen = json.loads(call.body or b"{}").get("request_id", "resp_1")
    made = {"id": chosen, "status": "completed", "output": [1], "asked": call.target}
    await call.answer(streams.dumps(made))


async def test_a_stored_response_is_its_keys_alone() -> None:
    """Read, continued, cancelled or taken over by another it would be that one's to read."""
    path, store = "/v1/responses", Backend(_stores)
    async with gateway(plain=[store], auth=auth(KEY, OTHER)) as running:
        await running.ask({"input": "hi"}, path=path, **bearer(KEY))
        follow = {"input": "and", "previous_response_id": "resp_1"}

        async def all_of(key: str) -> list[int]:
            url, client = f"{running.url}{path}/resp_1", running.client
            found = []
            async with client.get(url, headers=bearer(key)) as got:
                found.append(got.status)
            async with client.post(f"{url}/cancel", headers=bearer(key)) as got:
                found.append(got.status)
            found.append((await running.ask(follow, path=path, **bearer(key)))[0])
            return found

        assert await all_of(OTHER) == [404, 404, 404]
        assert len(store.calls) == 1
        taken = {"input": "mine", "request_id": "resp_1"}
        status, body, _ = await running.ask(taken, path=path, **bearer(OTHER))
        assert (status, json.loads(body)["error"]["param"]) == (400, "request_id")
        assert await all_of(KEY) == [200, 200, 200]
        assert (await running.ask(taken, path=path, **bearer(KEY)))[0] == 200


async def test_a_response_that_nobody_is_known_to_have_made_is_not_continued() -> None:
    """The server may hold it for a key that made it before the gateway was started."""
    store = Backend(_stores)
    follow = {"input": "and", "previous_response_id": "resp_9"}
    async with gateway(plain=[store], auth=auth(KEY)) as running:
        status, body, _ = await running.ask(follow, path="/v1/responses", **bearer(KEY))

        assert (status, json.loads(body)["error"]["param"]) == (404, "previous_response_id")
        assert store.calls == []
    async with gateway(plain=[store]) as running:  # in an open gateway anybody is everybody
        assert (await running.ask(follow, path="/v1/responses"))[0] == 200


async def test_a_stored_response_is_for_keys_that_may_still_use_its_pool_and_model() -> None:
    path, spec = "/v1/responses", Backend(_stores, speculates=True)
    async with gateway(spec=[spec], plain=[Backend(_stores)], auth=auth(KEY)) as running:
        await running.ask({"input": "hi"}, path=path, **bearer(KEY))
        for limit in ({"pools": ["plain"]}, {"models": ["other"]}):
            running.reload(auth=auth(KEY, **limit))

            async with running.client.get(
                f"{running.url}{path}/resp_1", headers=bearer(KEY)
            ) as refused:
                assert refused.status == 403
        assert len(spec.calls) == 1


def test_a_key_that_is_removed_and_added_again_has_what_it_had_left() -> None:
    keys = Auth.model_validate(auth(KEY, requests_per_minute=1, max_in_flight=1))
    ring = Keyring(keys)
    with ring.identify(bearer_of(KEY)).asking(0.0):
        ring.configure(Auth.model_validate(auth()))
        ring.configure(keys)
        again = ring.identify(bearer_of(KEY))

        with pytest.raises(TooMany, match="has 1 requests under way"), again.asking(60.0):
            pass
    with pytest.raises(TooMany, match="may ask 1 times a minute"), again.asking(1.0):
        pass


async def test_one_key_cannot_starve_another() -> None:
    """Ten of one key's requests wait; the other's first is served after at most two of them."""
    go = asyncio.Event()
    order: list[bytes] = []

    async def held(call: Call) -> None:
        order.append(call.one(b"x-request-id") or b"")
        await go.wait()
        await answers(call)

    spec = Backend(held, speculates=True)
    async with gateway(
        spec=[spec], auth=auth(KEY, OTHER), each_pool={"max_in_flight": 1}
    ) as running:
        flood = [
            begin(running.ask(STREAMED, **bearer(KEY), x_request_id=f"flood{n}"))
            for n in range(10)
        ]
        await eventually(lambda: running.count("turnout_queue_length") == 9.0, what="nine wait")
        other = begin(running.ask(**bearer(OTHER), x_request_id="other"))
        await eventually(lambda: running.count("turnout_queue_length") == 10.0, what="it waits")

        go.set()
        await soon(asyncio.gather(*flood, other))

        assert order.index(b"other") <= 2


def test_a_key_that_stays_keeps_what_it_has_and_takes_its_new_limits() -> None:
    ring = Keyring(Auth.model_validate(auth(KEY, requests_per_minute=2, max_in_flight=2)))
    caller = ring.identify(bearer_of(KEY))
    with caller.asking(0.0):
        ring.configure(Auth.model_validate(auth(OTHER, requests_per_minute=1, priority=3)))

        assert ring.identify(bearer_of(OTHER)) is caller  # the same name, with a new secret
        with pytest.raises(Unauthenticated):
            ring.identify(bearer_of(KEY))
        assert (caller.in_flight, caller.priority) == (1, 3)
        with caller.asking(0.0):
            pass
        with pytest.raises(TooMany, match="1 times a minute"), caller.asking(0.0):
            pass
        ring.configure(Auth.model_validate(auth(OTHER)))
        with caller.asking(0.0):
            pass


def test_keys_may_come_to_be_needed_and_not_to_be() -> None:
    ring = Keyring(Auth(open=True))
    anybody = ring.identify(bearer_of(KEY))
    assert not ring.checks

    ring.configure(Auth.model_validate(auth(KEY)))
    assert ring.checks
    assert ring.identify(bearer_of(KEY)).name == "k0"
    ring.configure(Auth(open=True))
    assert ring.identify(Credentials([])) is not anybody
    ring.configure(Auth(open=True, keys=()))
    assert not ring.checks
