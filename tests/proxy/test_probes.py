import asyncio
import logging
from collections.abc import AsyncIterator, Callable

import httpx
import pytest
import respx

from config.settings import Probes, Settings
from proxy.discovery import Discovery
from proxy.fleet import Change, Member
from proxy.probes import MODELS_EVERY_S, STALE_AFTER, Prober
from proxy.readings import Readings
from proxy.team import Team
from proxy.vllm_metrics import Exposition
from routing.pools import Speculation
from tests.proxy.scripted import PLAIN, SPEC, Clock, Server, fleet, member

SETTINGS = Probes(health_interval_s=1.0, scrape_interval_s=2.0, timeout_s=2.0, failures=2)


class World:
    """Two scripted servers, a prober whose sleep is one turn of the loop, and what it called."""

    def __init__(self, client: httpx.AsyncClient, network: respx.MockRouter) -> None:
        self.network = network
        self.clock = Clock()
        self.fleet = fleet()
        self.server = Server(SPEC, k=5).listen(network)
        self.plain_server = Server(PLAIN).listen(network)
        self.called: list[tuple[str, str]] = []
        self.slept: list[float] = []
        self.draw = 0.5
        self.fact: Callable[[], bool] = lambda: False
        self.holds = asyncio.Event()
        self.discovery = Discovery(self.fleet, client, clock=self.clock)
        self.prober = Prober(
            self.fleet,
            client,
            self.discovery,
            Readings(Team()),
            settings=SETTINGS,
            clock=self.clock,
            sleep=self.sleep,
            draw=lambda: self.draw,
            on_change=lambda member: self.called.append(
                ("up" if member.up else "down", member.name)
            ),
            on_restart=lambda member: self.called.append(("restart", member.name)),
        )

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.clock.now += seconds
        if self.fact():
            self.holds.set()
        await asyncio.sleep(0)

    def asked(self, url: str) -> list[str]:
        """Return the paths that a server was asked for."""
        return [
            str(c.request.url.path)
            for c in self.network.calls
            if str(c.request.url).startswith(url)
        ]

    @property
    def spec(self) -> Member:
        return member(self.fleet, "spec")

    async def started(self) -> None:
        """Have both servers up and learnt, with nothing called yet."""
        await self.prober.first_round()
        self.called.clear()

    async def checks(self, count: int) -> bool:
        """Check the speculating server so often; return whether it is in."""
        for _ in range(count):
            self.clock.now += 1.0
            await self.prober.check(self.spec)
        return self.spec.up

    async def runs_until(self, fact: Callable[[], bool]) -> None:
        """Run the loops until `fact` holds."""
        self.fact, self.holds = fact, asyncio.Event()
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            running = group.create_task(self.prober.run())
            await self.holds.wait()
            running.cancel()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    with respx.mock(assert_all_called=False) as network:
        async with httpx.AsyncClient() as client:
            yield World(client, network)


async def test_the_first_round_learns_scrapes_and_brings_in_every_server(world: World) -> None:
    await world.prober.first_round()

    assert world.spec.up
    assert world.spec.pool.speculation is Speculation.NGRAM
    assert world.spec.gauges["running"] == 2.0
    assert world.spec.scraped_at == world.clock.now
    assert sorted(world.called) == [("up", "plain:8002"), ("up", "spec:8001")]


async def test_a_server_that_is_down_at_the_start_is_warned_of_and_used_when_it_answers(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.server.die()

    await world.prober.first_round()
    assert not world.spec.up
    assert member(world.fleet, "plain").up
    assert "backend spec:8001 of pool spec is not there yet" in caplog.text

    world.server.answers.clear()
    assert await world.checks(1)
    assert world.spec.pool.k == 5


async def test_what_is_not_as_declared_is_warned_of_in_the_first_round(
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = fleet({"name": "spec", "backends": [SPEC], "speculation": "none"})
    with respx.mock as network:
        Server(SPEC, k=5).listen(network)
        async with httpx.AsyncClient() as client:
            known = Discovery(found, client), Readings(Team())
            await Prober(found, client, *known, settings=SETTINGS).first_round()

    assert "drafts, but the pool's speculation is none" in caplog.text


@pytest.mark.parametrize(
    "failure",
    [
        httpx.ConnectError("refused"),
        httpx.ConnectTimeout("slow"),
        httpx.ReadTimeout("slow"),
        httpx.RemoteProtocolError("garbage"),
        httpx.Response(503),
        httpx.Response(500),
        httpx.Response(404),
    ],
)
async def test_so_many_failures_in_a_row_take_a_server_out_and_one_success_brings_it_back(
    world: World, failure: httpx.Response | Exception
) -> None:
    await world.started()

    world.server.answers["/health"] = failure
    assert await world.checks(1)
    assert not await world.checks(1)
    assert not await world.checks(1)
    world.server.answers.clear()
    assert await world.checks(1)

    assert world.called == [("down", "spec:8001"), ("up", "spec:8001")]


async def test_failures_with_a_success_between_them_are_not_in_a_row(world: World) -> None:
    await world.started()

    for failure in (httpx.Response(503), None, httpx.Response(503), None):
        world.server.answers = {"/health": failure} if failure else {}
        assert await world.checks(1)

    assert world.called == []


async def test_a_server_that_is_healthy_but_does_not_tell_its_model_stays_out(
    world: World,
) -> None:
    world.server.answers["/v1/models"] = httpx.Response(500)

    assert not await world.checks(3)
    world.server.answers.clear()
    assert await world.checks(1)


async def test_a_refused_connection_takes_a_server_out_at_once_until_a_probe_succeeds(
    world: World,
) -> None:
    await world.started()

    world.prober.note_refusal(world.spec)
    assert not world.spec.up
    world.prober.note_refusal(world.spec)
    assert await world.checks(1)

    assert world.called == [("down", "spec:8001"), ("up", "spec:8001")]


async def test_a_probe_that_was_asked_before_a_refusal_does_not_bring_the_server_back(
    world: World,
) -> None:
    await world.started()

    world.server.meanwhile = lambda: world.prober.note_refusal(world.spec)
    assert not await world.checks(1)
    world.server.meanwhile = lambda: None
    assert await world.checks(1)


async def test_a_server_never_learnt_is_not_scraped(world: World) -> None:
    await world.prober.scrape(world.spec)

    assert world.spec.scraped_at is None
    assert world.spec.gauges == {}


@pytest.mark.parametrize(
    "failure",
    [
        httpx.ReadTimeout("slow"),
        httpx.ConnectError("refused"),
        httpx.Response(500),
        httpx.Response(200, text="<html>"),
        httpx.Response(200, text='vllm:num_requests_running{engine="0"} NaN\n'),
    ],
)
async def test_gauges_are_cleared_after_three_misses_and_their_age_is_kept(
    world: World, failure: httpx.Response | Exception
) -> None:
    await world.started()
    scraped_at = world.spec.scraped_at
    world.server.answers["/metrics"] = failure

    for missed in range(STALE_AFTER):
        assert world.spec.gauges, missed
        world.clock.now += 2.0
        await world.prober.scrape(world.spec)

    assert world.spec.gauges == {}
    assert world.spec.scraped_at == scraped_at
    world.server.answers.clear()
    await world.prober.scrape(world.spec)
    assert world.spec.gauges["running"] == 2.0


async def test_a_full_cache_counts_when_it_was_read_twice_and_not_when_stale(
    world: World,
) -> None:
    await world.started()
    full = world.server.metrics().replace("} 0.25\n", "} 0.97\n")
    world.server.answers["/metrics"] = httpx.Response(200, text=full)

    seen = []
    for _ in range(2):
        await world.prober.scrape(world.spec)
        seen.append(world.spec.load.kv_usage)
    world.server.answers["/metrics"] = httpx.Response(500)
    for _ in range(STALE_AFTER):
        await world.prober.scrape(world.spec)

    assert seen == [0.25, 0.97]
    assert world.spec.load.kv_usage == 0.0


async def test_misses_with_a_scrape_between_them_are_not_in_a_row(world: World) -> None:
    await world.started()

    for missed in (True, True, False, True, True):
        world.server.answers = {"/metrics": httpx.Response(500)} if missed else {}
        await world.prober.scrape(world.spec)

    assert world.spec.gauges


async def test_a_restarted_server_is_told_of_once_and_learnt_again(world: World) -> None:
    await world.started()

    world.server.started, world.server.k, world.server.drafts_per_step = 2.0, 3, 1.0
    await world.prober.scrape(world.spec)
    await world.prober.scrape(world.spec)

    assert world.called == [("restart", "spec:8001")]
    assert world.spec.pool.speculation is Speculation.DRAFT_MODEL
    assert world.spec.pool.k == 3


async def test_a_restarted_server_that_goes_away_again_is_left_to_the_health_checks(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    await world.started()

    world.server.started = 2.0
    world.server.answers["/v1/models"] = httpx.ConnectError("refused")
    await world.prober.scrape(world.spec)

    assert world.called == [("restart", "spec:8001")]
    assert "/v1/models failed: refused" in caplog.text


async def test_statistics_that_become_readable_later_settle_an_auto_pool(world: World) -> None:
    world.server.answers["/metrics"] = httpx.Response(404)
    await world.started()
    assert not world.spec.pool.speculates

    world.server.answers.clear()
    await world.prober.scrape(world.spec)

    assert world.spec.pool.speculation is Speculation.NGRAM


async def test_the_loops_take_a_server_out_and_bring_it_back(world: World) -> None:
    await world.started()

    world.server.die()
    await world.runs_until(lambda: not world.spec.up)
    world.server.answers.clear()
    await world.runs_until(lambda: world.spec.up)

    assert member(world.fleet, "plain").up


async def test_the_loops_wait_the_interval_with_the_scrapes_jittered_by_a_tenth(
    world: World,
) -> None:
    await world.started()

    for draw in (0.0, 0.5, 1.0 - 1e-9):
        world.draw = draw
        world.slept.clear()
        await world.runs_until(lambda: len(world.slept) >= 4)
        assert {round(slept, 6) for slept in world.slept} == {1.0, round(1.8 + 0.4 * draw, 6)}


async def test_a_defect_of_ours_is_logged_and_does_not_end_a_loop(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.started()

    async def break_down(_: Member, __: Exposition) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(world.discovery, "read", break_down)

    def failed() -> int:
        return caplog.text.count("a probe failed in the gateway itself")

    with caplog.at_level(logging.ERROR):
        await world.runs_until(lambda: failed() >= 3)

    assert "RuntimeError: a defect" in caplog.text
    assert world.spec.up


async def test_members_that_come_are_probed_at_once_and_those_that_go_no_more(
    world: World,
) -> None:
    plain = member(world.fleet, "plain")
    settings = world.fleet.settings
    both = {"spec": [SPEC], "plain": [PLAIN]}

    def becomes(**urls: list[str]) -> None:
        change = world.fleet.update(settings, urls=urls, api_keys={})
        world.discovery.follow(change)
        world.prober.follow(change)

    becomes(spec=[SPEC])  # before it runs
    world.fact, world.holds = (lambda: world.spec.up), asyncio.Event()
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        running = group.create_task(world.prober.run())
        await world.holds.wait()
        assert not plain.up

        becomes(**both)
        again = member(world.fleet, "plain")
        assert again is not plain
        world.fact, world.holds = (lambda: again.up and bool(again.gauges)), asyncio.Event()
        await world.holds.wait()
        assert world.discovery.cards[PLAIN.removeprefix("http://")]

        becomes(plain=[PLAIN])
        asked = len(world.asked(SPEC))
        world.fact, world.holds = (lambda: len(world.slept) > 400), asyncio.Event()
        world.slept.clear()
        await world.holds.wait()
        assert len(world.asked(SPEC)) == asked
        running.cancel()


async def test_a_pool_that_is_void_is_learnt_anew(world: World) -> None:
    await world.started()
    world.server.k = 3
    change = Change(void=[world.spec.pool])

    world.discovery.follow(change)
    assert not world.spec.reached
    assert world.spec.up
    await world.checks(1)

    assert world.spec.pool.k == 3
    assert world.spec.reached


@pytest.mark.parametrize("what", ["models", "metrics", "health"])
@pytest.mark.parametrize("with_its_pool", [False, True])
async def test_what_a_server_tells_while_it_is_removed_is_dropped(
    world: World, what: str, with_its_pool: bool
) -> None:
    await world.started()
    fleet, spec = world.fleet, world.spec
    pools = [{"name": "plain", "backends": [PLAIN]}]
    rest = Settings.model_validate({"pools": pools, "auth": {"open": True}})
    settings = rest if with_its_pool else fleet.settings

    def removed() -> None:
        change = fleet.update(settings, urls={"plain": [PLAIN]}, api_keys={})
        world.discovery.follow(change)
        world.prober.follow(change)

    world.server.meanwhile = removed
    spec.reached, spec.up = what == "metrics", False
    probes = {
        "models": world.discovery.ask_models,
        "metrics": world.prober.scrape,
        "health": world.prober.check,
    }
    await probes[what](spec)

    assert spec.name not in world.discovery.cards
    assert (spec.up, world.called) == (False, [])
    assert not world.discovery.verify()


async def test_a_method_that_is_declared_while_it_is_found_out_stands(world: World) -> None:
    world.server.drafts_per_step = 1.0
    pools = [
        {"name": "spec", "backends": [SPEC], "speculation": "suffix"},
        {"name": "plain", "backends": [PLAIN]},
    ]
    declared = Settings.model_validate({"pools": pools, "auth": {"open": True}})
    urls = {"spec": [SPEC], "plain": [PLAIN]}

    def says() -> None:
        if world.server.asked:
            world.fleet.update(declared, urls=urls, api_keys={})

    world.server.meanwhile = says
    await world.prober.first_round()

    assert world.server.asked
    assert world.spec.pool.speculation is Speculation.SUFFIX


async def test_a_server_that_comes_back_is_asked_what_it_serves_before_it_is_in(
    world: World,
) -> None:
    world.server.adapters = ("lora",)
    await world.started()
    assert set(world.spec.models) == {"m", "lora"}
    world.server.die()
    assert not await world.checks(2)
    assert set(world.spec.models) == {"m", "lora"}

    world.server.answers.clear()
    world.server.adapters = ()
    assert await world.checks(1)
    assert set(world.spec.models) == {"m"}


async def test_what_a_server_serves_is_asked_every_ten_seconds_and_kept_where_it_does_not_say(
    world: World,
) -> None:
    await world.started()
    began, before = world.clock.now, world.asked(SPEC).count("/v1/models")
    world.server.adapters = ("lora",)
    await world.runs_until(lambda: "lora" in world.spec.models)
    await world.runs_until(lambda: world.clock.now > began + 200)

    asked = world.asked(SPEC).count("/v1/models") - before
    assert 10 <= asked <= (world.clock.now - began) / MODELS_EVERY_S
    world.server.answers["/v1/models"] = httpx.Response(500)
    await world.runs_until(lambda: world.clock.now > began + 400)
    assert set(world.spec.models) == {"m", "lora"}
