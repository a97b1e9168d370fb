"""Servers that die of a parameter: two do, the third is spared, and all else is served."""

import asyncio
import json
import logging
from typing import Any

import pytest

from config.settings import Settings
from proxy.deaths import Deaths
from proxy.fleet import Fleet
from proxy.team import Commons, Team
from routing.quarantine import FIRST_S, Quarantine
from tests.proxy import streams
from tests.proxy.test_admin import admin
from tests.proxy.wire import (
    ASKED,
    EVENTS,
    Backend,
    Call,
    Script,
    answers,
    begin,
    config,
    eventually,
    gateway,
    rejects,
    soon,
)

pytestmark = pytest.mark.anyio

SAMPLED = {**ASKED, "temperature": 0.7}
DEADLY = {**SAMPLED, "top_k": 1}
CURED = {**DEADLY, "top_p": 0.95}
SAID = b'{"error":{"message":"EngineCore encountered an issue. See stack trace (above) for the '
SAID += b'root cause.","type":"InternalServerError","param":null,"code":500}}'


async def resets(call: Call) -> None:
    call.cut()


async def says_so(call: Call) -> None:
    await call.answer(SAID, 500)


async def says_so_in_an_event(call: Call) -> None:
    await call.stream(b"data: " + SAID + b"\n\n", streams.DONE)
    await call.end()


async def says_so_amid_its_answer(call: Call) -> None:
    await call.stream(*streams.CHAT[:3], b"data: " + SAID + b"\n\n", streams.DONE)
    await call.end()


async def breaks_off(call: Call) -> None:
    await call.head(200, EVENTS)
    for event in streams.CHAT[:3]:
        await call.send(event)


class Engine(Backend):
    """A server that dies of `top_k` without `top_p` above temperature 0, taking all with it.

    Args:
        last: What it does first, as its last words.
        waits: Holds every other answer until it is set.
    """

    def __init__(self, last: Script = resets, *, waits: asyncio.Event | None = None) -> None:
        super().__init__(self._serves)
        self._last = last
        self._waits = waits
        self.dead = False

    async def _serves(self, call: Call) -> None:
        body = json.loads(call.body)
        samples, limited = body.get("temperature", 1.0) > 0, body.get("top_k", 0) > 0
        if samples and limited and "top_p" not in body:
            await self._last(call)
            self.dead = True
            begin(self.kill())
            return
        if self._waits is not None:
            await self._waits.wait()
        await answers(call)


def dead(engines: list[Engine]) -> int:
    return sum(engine.dead for engine in engines)


def error_of(answer: tuple[int, bytes, Any]) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(answer[1])["error"]
    return error


@pytest.mark.parametrize("last", [resets, says_so])
async def test_the_third_server_is_spared_and_the_answer_names_the_parameters(
    last: Script, caplog: pytest.LogCaptureFixture
) -> None:
    engines = [Engine(last) for _ in range(3)]
    async with gateway(spec=[*engines]) as running:
        with caplog.at_level(logging.WARNING):
            first = await running.ask(DEADLY)

        assert dead(engines) == 2
        again = [await running.ask({**DEADLY, "top_k": top_k, "seed": None}) for top_k in (1, 40)]
        assert dead(engines) == 2
        for status, body, headers in (first, *again):
            error = json.loads(body)["error"]
            assert (status, error["type"]) == (422, "quarantined_request")
            assert headers["x-should-retry"] == "false"
            for named in (
                "temperature>0",
                "top_k",
                "pool spec",
                *(e.name for e in engines if e.dead),
            ):
                assert named in error["message"]
        warned = [line for line in caplog.messages if "in quarantine" in line]
        assert len(warned) == 1
        assert "top_k" in warned[0]
        held = {"pool": "spec", "parameters": "temperature>0+top_k"}
        assert running.count("turnout_quarantine", **held) == 1.0
        assert running.count("turnout_quarantined_requests_total", pool="spec") == 2.0
        for served in (ASKED, SAMPLED, CURED, {**ASKED, "top_k": 1}, {**SAMPLED, "top_k": -1}):
            assert (await running.ask(served))[0] == 200


@pytest.mark.parametrize("last", [says_so_in_an_event, says_so_amid_its_answer, breaks_off])
async def test_a_death_under_a_status_200_counts(last: Script) -> None:
    engines = [Engine(last) for _ in range(3)]
    async with gateway(spec=[*engines]) as running:
        answered = [await running.ask({**DEADLY, "stream": True}) for _ in range(3)]

        assert dead(engines) == 2
        assert answered[-1][0] == 422
        assert (await running.ask(SAMPLED))[0] == 200


async def test_what_was_beside_it_goes_on_and_is_not_blamed() -> None:
    """Neither what the pool has finished of late, nor what carries less than what it died of."""
    go = asyncio.Event()
    engines = [Engine(waits=go) for _ in range(3)]
    beside = [SAMPLED, {**SAMPLED, "seed": 1, "stop": ["x"], "presence_penalty": 0.5}, ASKED]
    async with gateway(spec=[*engines]) as running:
        go.set()
        assert [(await running.ask(body))[0] for body in beside] == [200] * 3
        go.clear()
        waiting = [begin(running.ask(body)) for body in beside * 4]
        await eventually(lambda: running.in_flight == 12, what="all are at work")

        assert (await running.ask(DEADLY))[0] == 422
        go.set()
        statuses = [(await soon(each))[0] for each in waiting]

        assert dead(engines) == 2
        assert statuses.count(200) >= 6, "what was lost at both servers is not tried again"
        assert [(await running.ask(body))[0] for body in beside] == [200] * 3


async def test_a_plain_pool_gets_it_and_the_reason_says_why() -> None:
    engines, plain = [Engine() for _ in range(2)], Backend()
    async with gateway(spec=[*engines], plain=[plain]) as running:
        assert (await running.ask(DEADLY))[0] == 422

        status, _, headers = await running.ask(DEADLY)
        pinned = await running.ask(DEADLY, x_turnout_pool="spec")

        assert (status, headers["x-turnout-pool"]) == (200, "plain")
        assert headers["x-turnout-reason"] == "quarantined"
        assert (pinned[0], error_of(pinned)["type"]) == (422, "quarantined_request")


async def test_a_connection_that_is_lost_where_the_server_lives_blames_nobody() -> None:
    lossy = [Backend(resets) for _ in range(3)]
    async with gateway(spec=[*lossy]) as running:
        answer = await running.ask(DEADLY)
        error = error_of(answer)

        assert (answer[0], error["type"]) == (502, "backend_unreachable")
        assert "temperature>0, top_k" in error["message"]
        for backend in lossy:
            backend.script = answers
        assert (await running.ask(DEADLY))[0] == 200
        assert not running.count("turnout_quarantine")


class Hours:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now = 1e6

    def __call__(self) -> float:
        return self.now


REPEATED = 'Failed to compile "EngineCore encountered an issue"'


async def repeats_it_in_an_event(call: Call) -> None:
    await call.stream(streams.role(), streams.error(400, REPEATED), streams.DONE)
    await call.end()


async def repeats_it_in_text(call: Call) -> None:
    said = '{"error":{"message":"EngineCore encountered an issue'
    await call.stream(*streams.CHAT[:3], streams.text(said, "abort"), streams.DONE)
    await call.end()


@pytest.mark.parametrize(
    "script",
    [rejects(500, streams.error(500, REPEATED)), repeats_it_in_an_event, repeats_it_in_text],
)
async def test_who_repeats_a_clients_words_of_death_is_alive(
    script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    async with gateway(spec=[Backend(script)]) as running:
        await running.ask({**DEADLY, "stream": True})

        (member,) = running.app.fleet.members.values()
        assert member.up
        assert "engine has died" not in caplog.text


async def test_after_its_time_one_request_tries_and_frees_or_holds_for_longer() -> None:
    clock = Hours()
    engines = [Engine() for _ in range(4)]
    async with gateway(spec=[*engines], seams={"clock": clock}) as running:
        assert (await running.ask(DEADLY))[0] == 422
        clock.now += FIRST_S - 1.0
        assert (await running.ask(DEADLY))[0] == 422
        assert dead(engines) == 2

        clock.now += 2.0
        tried = await running.ask(DEADLY)

        assert (tried[0], dead(engines)) == (422, 3)
        clock.now += 2 * FIRST_S - 1.0
        assert (await running.ask(DEADLY))[0] == 422
        clock.now += 2.0
        last = next(engine for engine in engines if not engine.dead)
        go = asyncio.Event()
        last.script = held_until(go)
        trial = begin(running.ask(DEADLY))
        await last.called(1)
        assert (await running.ask(DEADLY))[0] == 422, "one at a time"
        go.set()
        assert (await soon(trial))[0] == 200
        assert (await running.ask(DEADLY))[0] == 200
        assert not running.count("turnout_quarantine")


def held_until(go: asyncio.Event) -> Script:
    async def script(call: Call) -> None:
        await go.wait()
        await answers(call)

    return script


async def test_an_operator_sees_and_lifts_it() -> None:
    engines = [Engine() for _ in range(3)]
    async with admin(spec=[*engines]) as (running, client):
        assert (await running.ask(DEADLY))[0] == 422
        (held,) = (await client.get("/quarantine")).json()["quarantine"]
        assert held["parameters"] == ["temperature>0", "top_k"]
        assert held["pools"] == ["spec"]
        assert held["backends"] == sorted(engine.name for engine in engines if engine.dead)
        assert 0 < held["for_s"] <= FIRST_S

        lifted = (await client.delete("/quarantine")).json()["lifted"]

        assert [each["parameters"] for each in lifted] == [held["parameters"]]
        next(engine for engine in engines if not engine.dead).script = answers
        assert (await running.ask(DEADLY))[0] == 200


async def test_what_one_worker_holds_or_frees_all_do(commons: Commons) -> None:
    ours, theirs = [Engine() for _ in range(2)], Engine()
    seats = [{"team": Team(commons, seat)} for seat in (0, 1)]
    async with (
        admin(spec=[*ours], seams=seats[0]) as (running, client),
        gateway(spec=[theirs], seams=seats[1]) as other,
    ):
        assert (await running.ask(DEADLY))[0] == 422
        await eventually(lambda: other.count("turnout_quarantine") == 1, what="it is told")
        assert (await other.ask(DEADLY))[0] == 422
        assert not theirs.dead

        await client.delete("/quarantine")
        await eventually(lambda: not other.count("turnout_quarantine"), what="it is told")


async def test_one_worker_after_the_other_tries_what_is_held(commons: Commons) -> None:
    """Else each would at the same moment, at the price of an engine each."""
    clock, team = Hours(), Team(commons, 1)
    pools = config([Backend(port=1), Backend(port=2)], [], each_pool={})
    fleet = Fleet(Settings.model_validate(pools))
    first = Deaths(Quarantine(), clock=clock, seat=0, order=Team(commons, 0).order)
    second = Deaths(Quarantine(), clock=clock, seat=1)
    shape = ("temperature>0", "top_k")
    for member in fleet.members.values():
        first.changed(member, [shape])
    for order in team.orders():
        second.obey(order)

    def barring() -> list[bool]:
        now = clock()
        return [d.quarantine.bars("spec", shape, now=now) is not None for d in (first, second)]

    assert barring() == [True, True]
    clock.now += FIRST_S
    assert barring() == [False, True]

    first.finished(next(iter(fleet.members.values())), shape)
    for order in team.orders():
        second.obey(order)

    assert not second.quarantine.held
