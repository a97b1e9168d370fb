import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
import respx
from prometheus_client import generate_latest

from proxy.readings import Readings
from proxy.team import Team
from proxy.totals import SpecTotals
from proxy.vllm_metrics import SPEC_ACCEPTED, SPEC_DRAFTS, SpecKey
from tests.proxy.scripted import PLAIN, SPEC, SPEC_2, Clock, Server, fleet, member

DRAFTS = SpecKey(SPEC_DRAFTS, "m")


class World:
    """Two speculating servers and a plain one, behind totals with a clock of their own."""

    def __init__(self, client: httpx.AsyncClient, network: respx.MockRouter) -> None:
        self.clock = Clock()
        self.fleet = fleet(
            {"name": "spec", "backends": [SPEC, SPEC_2]}, {"name": "plain", "backends": [PLAIN]}
        )
        self.one = Server(SPEC, k=2, drafts=10, accepted=5).listen(network)
        self.two = Server(SPEC_2, k=2, drafts=100, accepted=50).listen(network)
        self.plain = Server(PLAIN).listen(network)
        for found in self.fleet.members.values():
            found.load.healthy = True
        self.network = network
        self.readings = Readings(Team())
        self.totals = SpecTotals(self.fleet, client, self.readings, clock=self.clock)

    async def drafts(self) -> float:
        """Return the drafts of all servers a second later."""
        self.clock.now += 1.0
        await self.totals.refreshed()
        return self.readings.sums()[DRAFTS]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    with respx.mock(assert_all_called=False) as network:
        async with httpx.AsyncClient() as client:
            yield World(client, network)


async def test_servers_add_up(world: World) -> None:
    assert await world.drafts() == 110
    assert world.readings.sums()[SpecKey(SPEC_ACCEPTED, "m")] == 55


async def test_a_server_that_restarted_adds_to_what_it_had_reached(world: World) -> None:
    await world.drafts()

    world.one.drafts, world.one.started = 3, 2.0
    assert await world.drafts() == 113
    world.one.drafts = 4
    assert await world.drafts() == 114


async def test_a_restart_is_noticed_even_if_the_counter_has_passed_its_old_value(
    world: World,
) -> None:
    await world.drafts()

    world.one.drafts, world.one.started = 30, 2.0

    assert await world.drafts() == 140


async def test_a_server_that_came_back_without_speculation_keeps_what_it_had(
    world: World,
) -> None:
    await world.drafts()

    world.one.k, world.one.started = 0, 2.0

    assert await world.drafts() == 110
    assert await world.drafts() == 110


@pytest.mark.parametrize(
    "failure",
    [
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
        httpx.Response(500),
        httpx.Response(200, text="<html>"),
    ],
)
async def test_a_server_that_can_t_be_read_keeps_its_last_values(
    world: World, failure: httpx.Response | Exception
) -> None:
    await world.drafts()

    world.one.answers["/metrics"] = failure
    world.two.drafts = 101

    assert await world.drafts() == 111


async def test_only_servers_that_are_up_and_may_draft_are_asked(world: World) -> None:
    member(world.fleet, "spec2").load.healthy = False
    member(world.fleet, "plain").speculates = False

    assert await world.drafts() == 10
    assert [str(call.request.url) for call in world.network.calls] == [f"{SPEC}/metrics"]


async def test_servers_are_asked_at_most_once_a_second(world: World) -> None:
    await world.drafts()
    world.one.drafts = 20

    world.clock.now += 0.99
    await world.totals.refreshed()
    assert world.readings.sums()[DRAFTS] == 110

    world.clock.now += 0.01
    await world.totals.refreshed()
    assert world.readings.sums()[DRAFTS] == 120


async def test_callers_at_the_same_time_share_one_round(world: World) -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(world.totals.refreshed())

    assert world.network.calls.call_count == 3
    assert world.readings.sums()[DRAFTS] == 110


async def test_a_caller_that_leaves_does_not_spoil_the_round_for_the_next() -> None:
    asked = asyncio.Event()
    server = Server(SPEC, k=2, drafts=10)

    async def hang_once(request: httpx.Request) -> httpx.Response:
        if not asked.is_set():
            asked.set()
            await asyncio.Event().wait()
        return await server.answer(request)

    found = fleet({"name": "spec", "backends": [SPEC]})
    member(found, "spec").load.healthy = True
    async with httpx.AsyncClient(transport=httpx.MockTransport(hang_once)) as client:
        readings = Readings(Team())
        totals = SpecTotals(found, client, readings, clock=Clock())
        async with asyncio.TaskGroup() as group:
            leaving = group.create_task(totals.refreshed())
            await asked.wait()
            leaving.cancel()

        await totals.refreshed()

    assert readings.sums()[DRAFTS] == 10


async def test_a_total_stands_once_per_model_and_position_in_vllm_s_own_names(
    world: World,
) -> None:
    await world.drafts()

    lines = [
        line
        for line in generate_latest(world.totals).decode().splitlines()
        if not line.startswith("#")
    ]

    name = "vllm:spec_decode_num"
    assert lines == [
        f'{name}_drafts_total{{engine="0",model_name="m"}} 110.0',
        f'{name}_draft_tokens_total{{engine="0",model_name="m"}} 220.0',
        f'{name}_accepted_tokens_total{{engine="0",model_name="m"}} 55.0',
        f'{name}_accepted_tokens_per_pos_total{{engine="0",model_name="m",position="0"}} 55.0',
        f'{name}_accepted_tokens_per_pos_total{{engine="0",model_name="m",position="1"}} 0.0',
    ]


async def test_without_a_speculating_server_there_is_no_series_as_with_vllm(
    world: World,
) -> None:
    world.one.k = world.two.k = 0
    await world.totals.refreshed()

    assert generate_latest(world.totals) == b""
