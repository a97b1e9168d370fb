"""The admin API: who may use it, and what each route does to a gateway that serves."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from tests.proxy.test_reloading import held, is_up
from tests.proxy.wire import ASKED, STREAMED, Backend, Running, gateway, soon

pytestmark = pytest.mark.anyio

TOKEN = "s3cret"
BEARER = {"authorization": f"Bearer {TOKEN}"}


@asynccontextmanager
async def admin(**given: Any) -> AsyncIterator[tuple[Running, httpx.AsyncClient]]:
    """Run a gateway with an admin API, and a client of that which bears the token."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TURNOUT_ADMIN_TOKEN", TOKEN)
        async with gateway(admin={}, **given) as running:
            assert running.app.admin is not None
            transport = httpx.ASGITransport(running.app.admin)
            async with httpx.AsyncClient(
                transport=transport, base_url="http://admin", headers=BEARER
            ) as client:
                yield running, client


async def backends(client: httpx.AsyncClient) -> dict[str, dict[str, Any]]:
    answer = (await client.get("/backends")).json()
    return {each["name"]: each for each in answer["backends"]}


@pytest.mark.parametrize(
    "given", [None, f"Bearer {TOKEN}x", f"Basic {TOKEN}", TOKEN, "Bearer", "Bearer \u00e9"]
)
@pytest.mark.parametrize("path", ["/backends", "/openapi.json", "/nothing"])
async def test_every_route_needs_the_token(given: str | None, path: str) -> None:
    async with admin(plain=[Backend()]) as (_, client):
        headers = {} if given is None else {b"authorization": given.encode("latin-1")}
        del client.headers["authorization"]

        answer = await client.get(path, headers=headers)

        assert answer.status_code == 401
        assert answer.json()["error"]["type"] == "authentication_error"


async def test_it_is_not_on_the_gateways_own_port_and_off_unless_configured() -> None:
    async with (
        admin(plain=[Backend()]) as (running, _),
        running.client.get(f"{running.url}/backends", headers=BEARER) as response,
    ):
        assert response.status == 404
    async with gateway(plain=[Backend()]) as running:
        assert running.app.admin is None


async def test_it_describes_itself() -> None:
    async with admin(plain=[Backend()]) as (_, client):
        paths = (await client.get("/openapi.json")).json()["paths"]

        assert set(paths) == {
            "/backends",
            "/backends/{name}",
            "/backends/{name}/drain",
            "/backends/{name}/undrain",
            "/pools/{pool}/backends",
            "/thresholds",
            "/quarantine",
            "/learning/pause",
            "/learning/resume",
        }
        answer = await client.get("/nothing")
        assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found_error")


async def test_a_drained_backend_finishes_what_it_has_and_gets_nothing_more() -> None:
    go = asyncio.Event()
    only = Backend(held(go))
    async with admin(plain=[only]) as (running, client):
        async with running.post(STREAMED) as response:
            answer = await client.post(f"/backends/{only.name}/drain")
            assert answer.json() == {
                "name": only.name,
                "pool": "plain",
                "healthy": False,
                "circuit": "closed",
                "in_flight": 1,
                "drained": True,
            }

            status, body, _ = await running.ask()
            assert (status, b"no healthy backend" in body) == (503, True)
            running.reload()
            assert (await backends(client))[only.name]["drained"]
            go.set()
            assert (await soon(response.read())).endswith(b"data: [DONE]\n\n")

        answer = await client.post(f"/backends/{only.name}/undrain")
        assert answer.json()["healthy"]
        assert (await running.ask())[0] == 200


async def test_a_backend_is_added_and_removed_until_the_config_is_read_again() -> None:
    first, second = Backend(), Backend()
    async with admin(plain=[first], spare=[second]) as (running, client):
        answer = await client.post("/pools/plain/backends", json={"url": f"{second.url}/"})
        assert (answer.status_code, answer.json()["name"]) == (201, second.name)
        await is_up(running, second)

        answer = await client.delete(f"/backends/{first.name}")
        assert answer.json() == {"removed": first.name}
        assert list(await backends(client)) == [second.name]
        assert (await running.ask())[2]["x-turnout-backend"] == second.name
        answer = await client.post("/pools/plain/backends", json={"url": first.url})
        assert answer.status_code == 201
        await is_up(running, first)
        await client.delete(f"/backends/{second.name}")
        assert list(await backends(client)) == [first.name]

        await client.delete(f"/backends/{first.name}")
        assert await backends(client) == {}
        running.reload()
        assert list(await backends(client)) == [first.name]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "says"),
    [
        ("POST", "/backends/x:1/drain", None, 404, "there is no backend 'x:1'; there are: 127"),
        ("POST", "/backends/x:1/undrain", None, 404, "there is no backend"),
        ("DELETE", "/backends/x:1", None, 404, "there is no backend"),
        ("POST", "/pools/x/backends", {"url": "http://a:1"}, 404, "no pool 'x'; there are: plain"),
        ("POST", "/pools/plain/backends", {}, 400, "'url' must be a backend's base URL"),
        ("POST", "/pools/plain/backends", {"url": "a:1"}, 400, "URL scheme should be"),
        ("POST", "/pools/plain/backends", {"url": "http://a/v1"}, 400, "leave out '/v1'"),
        ("POST", "/pools/plain/backends", {"url": "dns+http://a:1"}, 400, "of one backend"),
        ("POST", "/pools/plain/backends", [], 400, "must be a JSON object"),
        ("PATCH", "/thresholds", {"max_temperature": -1}, 400, "thresholds.max_temperature: -1"),
        ("PATCH", "/thresholds", {"temperature": 1}, 400, "there is no such setting"),
        ("PATCH", "/backends", None, 405, "/backends takes GET, not PATCH"),
    ],
)
async def test_what_cannot_be_done_is_said(
    method: str, path: str, body: Any, status: int, says: str
) -> None:
    async with admin(plain=[Backend()]) as (_, client):
        answer = await client.request(method, path, json=body)

        assert answer.status_code == status
        assert says in answer.json()["error"]["message"]


async def test_a_backend_that_is_there_is_not_added_again() -> None:
    only = Backend()
    async with admin(plain=[only]) as (_, client):
        answer = await client.post("/pools/plain/backends", json={"url": only.url})

        assert answer.status_code == 400
        assert f"backend {only.name} is there, in pool 'plain'" in answer.text


async def test_a_threshold_that_is_set_binds_until_the_config_is_read_again() -> None:
    spec, plain = Backend(speculates=True), Backend()
    hot = {**ASKED, "temperature": 0.9}
    async with admin(spec=[spec], plain=[plain]) as (running, client):
        before = (await client.get("/thresholds")).json()
        assert before["written"] == []
        assert before["thresholds"]["max_temperature"] == 0.7
        assert (await running.ask(hot))[2]["x-turnout-pool"] == "spec"

        patch = {"max_temperature": 0.4, "tasks": {"ngram": {"code": "never"}}}
        answer = (await client.patch("/thresholds", json=patch)).json()
        assert answer["written"] == ["max_temperature", "tasks", "tasks.ngram.code"]
        assert answer["thresholds"]["max_temperature"] == 0.4
        assert (await running.ask(hot))[2]["x-turnout-pool"] == "plain"

        answer = (await client.patch("/thresholds", json={"max_temperature": None})).json()
        assert answer["written"] == ["tasks", "tasks.ngram.code"]
        assert (await running.ask(hot))[2]["x-turnout-pool"] == "spec"

        running.reload()
        assert (await client.get("/thresholds")).json() == before


async def test_nothing_is_learnt_while_learning_is_paused() -> None:
    async with admin(spec=[Backend(speculates=True)]) as (running, client):
        learner = running.app.pipeline._router.learner
        assert (await client.post("/learning/pause")).json() == {"paused": True}
        assert running.count("turnout_learning_paused") == 1.0

        await running.ask(STREAMED)
        await running.settled(finished=1)
        assert not learner.lengths.sums

        assert (await client.post("/learning/resume")).json() == {"paused": False}
        assert running.count("turnout_learning_paused") == 0.0
        await running.ask(STREAMED)
        await running.settled(finished=2)
        assert learner.lengths.sums
