"""What servers serve: names that come and go while the gateway runs, at all or some backends."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import orjson
import pytest

from proxy.asking import Refresh
from proxy.team import Commons, Team
from tests import running as processes
from tests.conftest import free_ports_of
from tests.proxy import scripted, streams
from tests.proxy.scripted import Clock
from tests.proxy.wire import (
    ASKED,
    STREAMED,
    Backend,
    Call,
    Running,
    answers,
    begin,
    eventually,
    gateway,
    rejects,
    soon,
)

LORA = {**ASKED, "model": "lora"}
BACKEND = "x-turnout-backend"
LOOKS = 12
"""Connections of their own after which both workers have answered, but once in 2,000."""
UNKNOWN = b'{"error":{"message":"The model `lora` does not exist.","code":404}}'


class Probed(scripted.Server):
    """A backend's side of probes, which counts how often its model list was read."""

    listed = 0

    async def answer(self, request: httpx.Request) -> httpx.Response:
        self.listed += request.url.path == "/v1/models"
        return await super().answer(request)


class Server(Backend):
    """A backend that serves what its model list says."""

    probed: Probed

    def __init__(self, *adapters: str, model: str = "m", speculates: bool = False) -> None:
        super().__init__(self.serves, speculates=speculates)
        self.probed = Probed("", model=model, adapters=adapters, k=5 if speculates else 0)

    @property
    def listed(self) -> int:
        return self.probed.listed

    @property
    def names(self) -> set[str]:
        return {self.probed.model, *self.probed.adapters}

    async def serves(self, call: Call) -> None:
        known = orjson.loads(call.body)["model"] in self.names
        await (answers if known else rejects(404, UNKNOWN))(call)

    async def with_probes(self, call: Call) -> None:
        """Answer requests and probes, which another process sends."""
        if call.method == "POST":
            await self.serves(call)
            return
        answer = await self.probed.answer(httpx.Request("GET", self.url + call.target))
        await call.answer(answer.content, answer.status_code)


async def served_by(
    running: Running, body: dict[str, Any] = LORA, times: int = 8
) -> set[tuple[int, str]]:
    """Return statuses and backends of so many requests, one after the other."""
    found = set()
    for _ in range(times):
        status, _, headers = await running.ask(body)
        found.add((status, headers.get(BACKEND, "")))
    return found


@asynccontextmanager
async def pools(*declared: tuple[str, Sequence[Server]], **given: Any) -> AsyncIterator[Running]:
    """Run a gateway with a pool of each model, with these backends."""
    async with AsyncExitStack() as stack:
        for _, servers in declared:
            for server in servers:
                await stack.enter_async_context(server)
        written = [
            {
                "name": f"pool-{model}",
                "model": model,
                "speculation": "none",
                "backends": [each.url for each in servers],
            }
            for model, servers in declared
        ]
        every: list[Backend] = [server for _, servers in declared for server in servers]
        yield await stack.enter_async_context(
            gateway(known=every, pools=written, **{"policy": "least_loaded", **given})
        )


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("body", [LORA, {**LORA, "stream": True}])
async def test_an_adapter_that_one_of_two_has_is_served_there_alone(
    at: int, body: dict[str, Any]
) -> None:
    servers: list[Backend] = [Server(), Server()]
    servers[at].probed.adapters = ("lora",)
    async with gateway(plain=servers) as running:
        assert await served_by(running, body, 16) == {(200, servers[at].name)}
        both = {(200, server.name) for server in servers}
        assert await served_by(running, ASKED, 16) == both


async def test_an_adapter_of_one_pool_goes_there_whatever_the_policy_says() -> None:
    spec, plain = Server(speculates=True), Server("lora")
    async with gateway(spec=[spec], plain=[plain], policy="spec_only") as running:
        assert await served_by(running) == {(200, plain.name)}
        assert await served_by(running, ASKED) == {(200, spec.name)}


async def test_an_adapter_loaded_later_is_served_when_it_is_asked_for() -> None:
    one, other = Server(), Server()
    async with gateway(plain=[one, other]) as running:
        status, body, _ = await running.ask(LORA)
        assert (status, orjson.loads(body)["error"]["message"]) == (
            404,
            "model 'lora' is not served here; models: m",
        )

        other.probed.adapters = ("lora",)
        assert await served_by(running) == {(200, other.name)}

        one.probed.adapters = ("sql",)
        assert await served_by(running, {**ASKED, "model": "sql"}) == {(200, one.name)}


async def test_names_that_nobody_has_cost_few_questions() -> None:
    one, other = Server(), Server()
    async with gateway(plain=[one, other]) as running:
        before = one.listed
        asked = [running.ask({**ASKED, "model": f"none-{n}"}) for n in range(40)]
        one_by_one = [await each for each in asked[:10]]
        found = [*one_by_one, *await asyncio.gather(*asked[10:])]

        assert {status for status, *_ in found} == {404}
        assert 1 <= one.listed - before <= 5
        assert not one.calls
        assert not other.calls


async def test_questions_of_their_own_time_are_three_at_once_and_one_a_second() -> None:
    clock, asked = Clock(), 0

    async def ask_all() -> None:
        nonlocal asked
        asked += 1
        clock.now += 0.001

    refresh = Refresh(ask_all, clock=clock)
    counts = []
    for passed_s in (0.001, 0.001, 0.001, 0.001, 0.5, 0.6, 0.1, 100.0, 0.1, 0.1, 0.1):
        clock.now += passed_s
        await refresh.anew()
        counts.append(asked)

    assert counts == [1, 2, 3, 3, 3, 4, 4, 5, 6, 7, 7]


async def test_all_that_come_while_a_round_is_under_way_share_the_next() -> None:
    clock, asked, go = Clock(), 0, asyncio.Event()

    async def ask_all() -> None:
        nonlocal asked
        asked += 1
        await go.wait()

    refresh = Refresh(ask_all, clock=clock)
    first = begin(refresh.anew())
    await eventually(lambda: asked == 1, what="the first round is under way")
    clock.now += 0.1
    later = [begin(refresh.anew()) for _ in range(9)]
    await asyncio.sleep(0)
    clock.now += 0.1
    go.set()
    await soon(asyncio.gather(first, *later))

    assert asked == 2


async def test_an_adapter_unloaded_from_one_is_served_by_the_other() -> None:
    one, other = Server("lora"), Server("lora")
    async with gateway(plain=[one, other]) as running:
        assert len(await served_by(running, LORA, 16)) == 2

        other.probed.adapters = ()
        other.calls.clear()
        assert await served_by(running, {**LORA, "stream": True}, 16) == {(200, one.name)}
        assert len(other.calls) <= 1
        assert running.count("turnout_backend_circuit", backend=other.name) == 0.0


async def test_an_adapter_unloaded_everywhere_is_the_servers_404_then_the_gateways() -> None:
    one, other = Server("lora"), Server("lora")
    async with gateway(plain=[one, other]) as running:
        one.probed.adapters = other.probed.adapters = ()

        status, body, _ = await running.ask(LORA)
        assert (status, body) == (404, UNKNOWN)
        status, body, headers = await running.ask(LORA)
        assert (status, BACKEND in headers) == (404, False)
        assert b"is not served here; models: m" in body
        assert len(one.calls) + len(other.calls) == 1


async def test_a_404_holds_no_place_while_others_are_asked_for_the_name() -> None:
    one, go, asked = Server(), asyncio.Event(), asyncio.Event()
    told = one.probed.answer

    async def slow(request: httpx.Request) -> httpx.Response:
        if one.calls and request.url.path == "/v1/models":
            asked.set()
            await go.wait()
        return await told(request)

    async def knows_from_the_second_on(call: Call) -> None:
        await (rejects(404, UNKNOWN) if len(one.calls) == 1 else answers)(call)

    one.script = knows_from_the_second_on
    probes = {"health_interval_s": 3600, "scrape_interval_s": 3600, "timeout_s": 60}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one.probed, "answer", slow)
        async with gateway(plain=[one], each_pool={"max_in_flight": 1}, probes=probes) as running:
            first = begin(running.ask())
            await soon(asked.wait())

            assert (await soon(running.ask(), within_s=20.0))[0] == 200
            assert not first.done()
            go.set()
            assert (await soon(first))[:2] == (404, UNKNOWN)
            await running.settled(finished=1, rejected=1)


async def test_a_404_of_another_kind_passes_as_it_came() -> None:
    server, other = Server(), Server()
    server.script = other.script = rejects(404, b'{"detail":"Not Found"}')
    async with gateway(plain=[server, other]) as running:
        for _ in range(20):
            status, body, _ = await running.ask(path="/pooling")
            assert (status, body) == (404, b'{"detail":"Not Found"}')
        assert len(server.calls) + len(other.calls) == 20
        assert server.listed < 12


async def test_the_last_backend_with_an_adapter_is_tried_though_its_circuit_is_open() -> None:
    one, other = Server("lora"), Server()
    async with gateway(plain=[one, other], retries={"error_answers": 1.0}) as running:
        one.script = rejects(500)
        for _ in range(10):
            await running.ask(LORA)
        assert running.count("turnout_backend_circuit", backend=one.name) != 0.0

        one.script = one.serves
        status, _, headers = await running.ask(LORA)
        assert (status, headers[BACKEND]) == (200, one.name)


async def test_while_all_that_have_an_adapter_are_gone_it_is_a_503_that_names_them() -> None:
    one, other = Server("lora"), Server()
    async with gateway(plain=[one, other]) as running:
        await one.kill()
        await running.ask(LORA)

        status, body, headers = await running.ask(LORA)
        error = orjson.loads(body)["error"]
        assert (status, error["type"], headers["retry-after"]) == (503, "no_backend", "1")
        assert "'lora'" in error["message"]
        assert one.name in error["message"]
        assert other.name not in error["message"]
        assert await served_by(running, ASKED) == {(200, other.name)}

        other.probed.adapters = ("lora",)
        assert await served_by(running) == {(200, other.name)}


async def test_a_request_for_an_adapter_waits_for_its_backend_and_holds_up_no_other() -> None:
    held, go = Server("lora"), asyncio.Event()
    free = Server()

    async def holds(call: Call) -> None:
        await go.wait()
        await held.serves(call)

    held.script = holds
    async with gateway(plain=[held, free], each_pool={"max_in_flight": 1}) as running:
        first = begin(running.ask(LORA))
        await held.called()
        second = begin(running.ask(LORA))
        await eventually(lambda: running.count("turnout_queue_length") == 1, what="it waits")

        assert await served_by(running, ASKED, 4) == {(200, free.name)}
        assert not second.done()
        go.set()
        for each in (await soon(first), await soon(second)):
            assert (each[0], each[2][BACKEND]) == (200, held.name)


async def test_what_waits_goes_to_a_backend_that_comes_to_have_the_name() -> None:
    held, go = Server("lora"), asyncio.Event()
    free = Server()

    async def holds(call: Call) -> None:
        await go.wait()
        await held.serves(call)

    held.script = holds
    async with gateway(plain=[held, free], each_pool={"max_in_flight": 1}) as running:
        first = begin(running.ask(LORA))
        await held.called()
        second = begin(running.ask(LORA))
        await eventually(lambda: running.count("turnout_queue_length") == 1, what="it waits")

        free.probed.adapters = ("lora",)
        async with running.client.get(f"{running.url}/v1/models") as listed:
            assert listed.status == 200
        status, _, headers = await soon(second)
        assert (status, headers[BACKEND]) == (200, free.name)
        go.set()
        await soon(first)


async def test_a_backend_that_lacks_its_pools_model_gets_none_of_its_requests() -> None:
    right, wrong = Server(), Server(model="n")
    async with gateway(plain=[right, wrong]) as running:
        assert await served_by(running, ASKED, 16) == {(200, right.name)}
        assert running.count("turnout_backend_model_mismatch", backend=wrong.name) == 1.0
        assert await served_by(running, {**ASKED, "model": "n"}) == {(200, wrong.name)}


async def test_where_no_backend_says_that_it_has_the_declared_model_each_is_asked_itself() -> None:
    server = Server(model="n")
    server.script = answers  # as one that takes any name
    async with gateway(plain=[server]) as running:
        assert await served_by(running, ASKED, 2) == {(200, server.name)}


async def test_a_backend_that_gives_no_list_serves_its_pools_model() -> None:
    silent, other = Server("lora"), Server("lora")
    async with gateway(plain=[silent, other]) as running:
        silent.probed.answers["/v1/models"] = httpx.Response(500)
        async with running.client.get(f"{running.url}/v1/models") as listed:
            assert {card["id"] for card in (await listed.json())["data"]} == {"m", "lora"}
        assert len(await served_by(running, LORA, 16)) == 2  # it keeps what it told


async def test_what_another_pool_is_for_is_not_taken_from_a_list() -> None:
    own, claims = Server(), Server("m", model="n")
    async with pools(("m", [own]), ("n", [claims])) as running:
        assert await served_by(running, ASKED, 16) == {(200, own.name)}
        await own.kill()
        await running.ask()
        assert {status for status, _ in await served_by(running, ASKED, 4)} == {503}
        assert not claims.calls


async def test_explain_knows_which_backends_have_the_name() -> None:
    one, other = Server(), Server("lora")
    async with gateway(plain=[one, other]) as running:
        for prompt in ("a", "b", "c"):
            body = {"body": {**LORA, "messages": [{"role": "user", "content": prompt}]}}
            _, told, _ = await running.ask(body, path="/explain")
            assert orjson.loads(told)["backend"] == other.name


async def test_a_stream_for_an_adapter_is_tried_at_the_other_that_has_it() -> None:
    dying, without, other = Server("lora"), Server(), Server("lora")

    async def dies(call: Call) -> None:
        call.cut()

    dying.script = dies
    async with gateway(plain=[dying, without, other]) as running:
        asked = {**STREAMED, "model": "lora"}
        assert await served_by(running, asked, 6) == {(200, other.name)}
        assert not without.calls


async def test_what_one_worker_has_found_the_other_asks_of_that_backend_itself(
    commons: Commons,
) -> None:
    one, other = Server(), Server()
    async with (
        gateway(plain=[one, other], seams={"team": Team(commons, 0)}) as first,
        gateway(
            known=[one, other], pools=first.config["pools"], seams={"team": Team(commons, 1)}
        ) as second,
    ):
        listed = one.listed, other.listed
        other.probed.adapters = ("lora",)
        assert await served_by(first, times=1) == {(200, other.name)}
        asked = (listed[0] + 1, listed[1] + 2)
        await eventually(lambda: (one.listed, other.listed) == asked, what="both have asked")

        for server in (one, other):
            server.probed.answers["/v1/models"] = httpx.Response(500)
        assert await served_by(second) == {(200, other.name)}
        assert (one.listed, other.listed) == asked


async def test_every_worker_serves_an_adapter_that_is_loaded_later(tmp_path: Path) -> None:
    one, other = Server(), Server()
    config = tmp_path / "gateway.json"
    (port,) = free_ports_of(1)
    url = f"http://127.0.0.1:{port}"
    async with one, other:
        one.script, other.script = one.with_probes, other.with_probes
        pool = {"name": "plain", "model": "m", "backends": [one.url, other.url]}
        written = {"auth": {"open": True}, "pools": [pool], "probes": {"timeout_s": 30}}
        config.write_bytes(streams.dumps(written))
        command = processes.gateway_command(port, "--config", str(config), "--workers", "2")
        with processes.running(command, ready=lambda: True, log=tmp_path / "gateway.log"):
            answered = partial(processes.answers, f"{url}/ready")
            wait = partial(processes.eventually, answered, within_s=60, what="it is ready")
            await asyncio.to_thread(wait)
            other.probed.adapters = ("lora",)
            statuses = [await asked_alone(url) for _ in range(LOOKS)]

            assert statuses == [200] * LOOKS
            assert not any(call.method == "POST" for call in one.calls)


async def asked_alone(url: str) -> int:
    """Ask for the adapter on a connection of its own, at whichever worker takes it."""
    async with (
        aiohttp.ClientSession() as client,
        client.post(f"{url}/v1/chat/completions", json=LORA) as answer,
    ):
        await answer.read()
        return answer.status


async def test_what_waits_for_the_last_backend_of_an_adapter_has_its_place_though_it_is_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It does not let the gateway in, until its next probe tells otherwise in an hour."""
    one, other, go = Server("lora"), Server(), asyncio.Event()

    async def holds(call: Call) -> None:
        await go.wait()
        await one.serves(call)

    monkeypatch.setenv("SERVERS_KEY", "k")
    one.script = rejects(401)
    async with gateway(
        plain=[one, other],
        each_pool={"max_in_flight": 1, "api_key_env": "SERVERS_KEY"},
        queue={"wait_s": 50.0},
    ) as running:
        await running.ask(LORA)
        assert not running.app.fleet.members[one.name].load.healthy
        one.script = holds
        first = begin(running.ask(LORA))
        await one.called(2)
        second = begin(running.ask(LORA))
        await eventually(lambda: running.count("turnout_queue_length") == 1, what="it waits")

        go.set()
        for each in (await soon(first), await soon(second, within_s=20.0)):
            assert (each[0], each[2][BACKEND]) == (200, one.name)
