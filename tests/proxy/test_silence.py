"""Silence: how long an answer may be silent, who says that it is dead, and what follows."""

import asyncio
from typing import Any

import httpx
import pytest

from routing.breaker import CircuitState
from tests.proxy import streams
from tests.proxy.wire import (
    ASKED,
    EVENTS,
    JSON,
    STREAMED,
    Backend,
    Call,
    Running,
    Script,
    answers,
    begin,
    eventually,
    gateway,
    rejects,
    soon,
)

LOOKS: dict[str, Any] = {
    "probes": {"health_interval_s": 0.02, "scrape_interval_s": 0.02, "timeout_s": 30},
    "timeouts": {"first_byte_s": 0.15, "prompt_token_s": 0, "between_chunks_s": 0.15},
}
LONG_S = 0.6
"""Four times as long as a wait of `LOOKS`."""


def lives(backend: Backend) -> None:
    """Have each probe find that its engine has done a step more."""
    server = backend.probed

    def step() -> None:
        server.generated += 1

    server.meanwhile = step


def idles(backend: Backend) -> None:
    """Have its engine be without work, as while a request is prepared or its answer parsed."""
    backend.probed.running = backend.probed.waiting = 0.0


def reads_a_long_prompt(backend: Backend) -> None:
    """Have it show nothing but a KV cache that fills, as while a prompt is read in chunks."""
    server, metrics, filled = backend.probed, backend.probed.metrics, iter(range(10**6))

    def fuller() -> str:
        usage = 0.25 + 1e-6 * next(filled)
        return metrics().replace("} 0.25", f"}} {usage}")

    server.metrics = fuller  # type: ignore[method-assign]


def tells_nothing(backend: Backend) -> None:
    """Have no metrics, as `--disable-log-stats` or another server."""
    backend.probed.answers["/metrics"] = httpx.Response(200, text="python_info 1.0\n")


def stands_still(backend: Backend) -> None:
    """Have work and do nothing: what scripted servers show anyway."""


def after(delay_s: float, then: Script = answers) -> Script:
    """Return a script that answers late."""

    async def script(call: Call) -> None:
        await asyncio.sleep(delay_s)
        await then(call)

    return script


def pauses(head: bytes, rest: bytes, *, for_s: float = LONG_S) -> Script:
    """Return a script whose stream is silent between two parts."""

    async def script(call: Call) -> None:
        await call.stream(*([head] if head else []))
        await asyncio.sleep(for_s)
        await call.send(rest)
        await call.end()

    return script


async def hangs(call: Call) -> None:
    await call.gone.wait()


async def heads(call: Call) -> None:
    await call.head(200, EVENTS)
    await call.gone.wait()


async def stops(call: Call) -> None:
    await call.stream(*streams.CHAT[:2])
    await call.gone.wait()


async def stops_in_its_body(call: Call) -> None:
    await call.head(200, JSON, length=100)
    await call.send(b"{")
    await call.gone.wait()


def circuit_of(running: Running, backend: Backend) -> CircuitState:
    return running.app.fleet.members[backend.name].circuit.state


BODY = streams.CHAT[0] + streams.CHAT[1], b"".join(streams.CHAT[2:]) + streams.DONE


# --- silence of a server that lives ---------------------------------------------------------


@pytest.mark.parametrize("engine", [lives, idles, reads_a_long_prompt, tells_nothing])
async def test_an_answer_that_is_not_streamed_may_take_all_of_its_time(engine: Any) -> None:
    servers = [Backend(after(LONG_S)) for _ in range(2)]
    for server in servers:
        engine(server)
    async with gateway(plain=servers, **LOOKS, policy="least_loaded") as running:
        asked = [begin(running.ask({**ASKED, "user": str(number)})) for number in range(12)]

        assert [(await each)[0] for each in asked] == [200] * 12

        await running.settled(finished=12)
        assert sum(len(server.calls) for server in servers) == 12
        assert not running.count("turnout_upstream_errors_total")
        assert {circuit_of(running, each) for each in servers} == {CircuitState.CLOSED}


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/responses", "/v1/load_lora_adapter"])
async def test_nor_is_what_generates_nothing_cut(path: str) -> None:
    server = Backend(after(LONG_S))
    lives(server)
    extra: dict[str, Any] = {"extra_routes": ["POST /v1/load_lora_adapter"]}
    async with gateway(plain=[server], **LOOKS, **extra) as running:
        assert (await running.ask({"model": "m", "input": "x"}, path=path))[0] == 200


@pytest.mark.parametrize("engine", [lives, idles, reads_a_long_prompt])
@pytest.mark.parametrize(
    "script",
    [pauses(b"", BODY[0] + BODY[1]), pauses(*BODY), after(LONG_S)],
    ids=["before its first event", "within", "before its head"],
)
async def test_a_stream_may_be_silent_while_its_engine_lives(script: Script, engine: Any) -> None:
    """A tool-call parser of vLLM holds a call back for minutes."""
    spec, plain = Backend(script, speculates=True), Backend()
    engine(spec)
    async with gateway(spec=[spec], plain=[plain], **LOOKS) as running:
        status, body, _ = await running.ask(STREAMED)

        assert (status, body) == (200, b"".join(BODY))
        assert not plain.calls
        await running.settled(finished=1)
        assert circuit_of(running, spec) is CircuitState.CLOSED


async def test_a_short_while_without_answers_to_probes_cuts_no_stream() -> None:
    """An API server that parses, or is short of CPU, answers no probe for a while."""
    server = Backend(pauses(*BODY))
    lives(server)
    waits = {**LOOKS, "timeouts": {"between_chunks_s": 0.3}}
    async with gateway(plain=[server], **waits) as running:
        asked = begin(running.ask(STREAMED))
        await server.called()
        member = running.app.fleet.members[server.name]
        server.probed.answers["/health"] = httpx.ReadTimeout("slow")
        await eventually(lambda: not member.up, what="it is down")
        del server.probed.answers["/health"]

        assert (await asked)[:2] == (200, b"".join(BODY))


async def test_one_that_is_removed_finishes_what_it_has() -> None:
    spec, plain = Backend(after(LONG_S), speculates=True), Backend()
    async with gateway(spec=[spec], plain=[plain], **LOOKS) as running:
        asked = begin(running.ask())
        await spec.called()
        running.reload(spec=None, policy="plain_only")

        status, _, headers = await asked

        assert (status, headers["x-turnout-pool"]) == (200, "spec")


# --- what was merely too long ---------------------------------------------------------------


@pytest.mark.parametrize("script", [hangs, heads])
@pytest.mark.parametrize("asked", [ASKED, STREAMED])
async def test_what_has_had_all_of_its_time_is_repeated_by_nobody(
    script: Script, asked: Any
) -> None:
    spec, plain = Backend(script, speculates=True), Backend()
    lives(spec)
    waits = {**LOOKS, "timeouts": {**LOOKS["timeouts"], "total_s": LONG_S}}
    async with gateway(spec=[spec], plain=[plain], **waits) as running:
        for _ in range(6):
            status, body, headers = await running.ask(asked)

            assert (status, b"(timeouts.total_s)" in body) == (504, True)
            assert headers["x-should-retry"] == "false"  # or OpenAI's clients do it, twice

        assert (len(spec.calls), len(plain.calls)) == (6, 0)
        assert circuit_of(running, spec) is CircuitState.CLOSED


@pytest.mark.parametrize(
    ("script", "setting"), [(heads, b"(first_byte_s)"), (stops, b"(between_chunks_s)")]
)
async def test_where_an_engine_tells_nothing_the_limits_of_streams_hold_without_blame(
    script: Script, setting: bytes
) -> None:
    spec, plain = Backend(script, speculates=True), Backend()
    tells_nothing(spec)
    async with gateway(spec=[spec], plain=[plain], **LOOKS) as running:
        for _ in range(6):
            assert setting in (await running.ask(STREAMED))[1]

        assert (len(spec.calls), len(plain.calls)) == (6, 0)
        assert circuit_of(running, spec) is CircuitState.CLOSED


async def test_a_504_of_what_stands_before_a_server_is_passed_on() -> None:
    spec, plain = Backend(rejects(504, b"gateway time-out"), speculates=True), Backend()
    async with gateway(spec=[spec], plain=[plain]) as running:
        assert (await running.ask())[:2] == (504, b"gateway time-out")

        assert not plain.calls


# --- an engine that stands still ------------------------------------------------------------


@pytest.mark.parametrize("asked", [ASKED, STREAMED])
async def test_what_an_engine_that_stands_still_has_not_begun_goes_elsewhere_once(
    asked: Any,
) -> None:
    spec, plain = Backend(hangs, speculates=True), [Backend() for _ in range(2)]
    for each in plain:
        lives(each)
    async with gateway(spec=[spec], plain=plain, **LOOKS) as running:
        assert (await running.ask(asked))[0] == 200
        for backend in plain:
            backend.script = hangs
            backend.probed.meanwhile = lambda: None

        status, body, headers = await running.ask(asked)

        assert status == 504
        assert b"sent no byte of an answer for 0.15 s (first_byte_s), and its engine" in body
        assert headers["x-should-retry"] == "false"
        assert len(spec.calls) + sum(len(backend.calls) for backend in plain) == 4
        assert running.count("turnout_upstream_errors_total", kind="first_byte_timeout") == 3
        await soon(spec.calls[0].gone.wait())
        await running.settled(finished=1, failed=1)


async def test_a_longer_prompt_may_take_longer_to_begin() -> None:
    asked = {**STREAMED, "messages": [{"role": "user", "content": "x " * 4000}]}
    waits = {**LOOKS, "timeouts": {"first_byte_s": 0.15, "prompt_token_s": 0.001}}
    server = Backend(after(LONG_S))
    async with gateway(plain=[server], **waits) as running:
        assert (await running.ask(asked))[0] == 200
        assert (await running.ask(STREAMED))[0] == 504


@pytest.mark.parametrize(
    ("script", "asked", "status", "said"),
    [
        (stops, STREAMED, 200, b"stopped amid its answer for 0.15 s (between_chunks_s), and its"),
        (stops_in_its_body, ASKED, 504, b"(between_chunks_s), and its engine"),
        (heads, STREAMED, 504, b"(first_byte_s), and its engine"),
    ],
)
async def test_an_answer_stops_where_its_engine_stands_still(
    script: Script, asked: Any, status: int, said: bytes
) -> None:
    server = Backend(script)
    async with gateway(plain=[server], **LOOKS) as running:
        for _ in range(5):
            found, body, _ = await running.ask(asked)

            assert (found, said in body) == (status, True)
            assert found == 504 or body.startswith(BODY[0])

        await soon(server.calls[-1].gone.wait())
        assert circuit_of(running, server) is CircuitState.OPEN


async def test_a_stream_stops_where_its_server_answers_no_probe_for_as_long() -> None:
    server = Backend(stops)
    lives(server)
    async with gateway(plain=[server], **LOOKS) as running:
        asked = begin(running.ask(STREAMED))
        await server.called()
        server.probed.answers["/health"] = httpx.ReadTimeout("slow")
        server.probed.answers["/metrics"] = httpx.ReadTimeout("slow")

        assert b"(between_chunks_s), and its engine did nothing" in (await asked)[1]


async def test_an_engine_that_lives_again_goes_on() -> None:
    """What it had not done before is no part of the wait."""
    server = Backend(pauses(BODY[0], BODY[1], for_s=1.0))
    waits = {**LOOKS, "timeouts": {"between_chunks_s": 0.5}}
    async with gateway(plain=[server], **waits) as running:
        asked = begin(running.ask(STREAMED))
        await server.called()
        await asyncio.sleep(0.4)
        lives(server)

        assert (await asked)[:2] == (200, b"".join(BODY))
