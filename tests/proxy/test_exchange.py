"""Requests in time: when bytes go out, who leaves when, what a slow client holds up, drains."""

import asyncio
import json
import logging
import random
import uuid
from collections.abc import Callable, Coroutine
from typing import Any

import aiohttp
import pytest

from proxy.reporting import JsonLines
from tests.proxy import streams
from tests.proxy.wire import (
    ASKED,
    CHAT,
    EVENTS,
    JSON,
    STREAMED,
    Backend,
    Call,
    Running,
    answers,
    chat_body,
    eventually,
    gateway,
    resets,
    soon,
)

BUSY_S = 1.0
"""Within this a client's leaving must have reached the backend."""


class Paced:
    """A stream whose every event the test releases."""

    def __init__(self, *events: bytes, head: bool = True) -> None:
        self._events = events
        self._head = head
        self._go: asyncio.Queue[None] = asyncio.Queue()

    def next(self) -> None:
        self._go.put_nowait(None)

    async def __call__(self, call: Call) -> None:
        if self._head:
            await call.head(200, EVENTS)
        for event in self._events:
            await self._go.get()
            await call.send(event)
        await self._go.get()
        await call.end()


async def hangs(call: Call) -> None:
    await call.gone.wait()


async def begins(call: Call) -> None:
    """Begin a stream and never end it."""
    await call.stream(*streams.CHAT[:2])
    await call.gone.wait()


# --- when bytes go out ----------------------------------------------------------------------


async def test_each_event_goes_out_when_it_came_in() -> None:
    script = Paced(*streams.CHAT, streams.DONE)
    asked = {**STREAMED, "stream_options": {"include_usage": True}}
    async with gateway(spec=[Backend(script, speculates=True)]) as running:
        script.next()  # the role-only chunk waits for the next
        script.next()
        async with running.post(asked) as response:
            assert await soon(response.content.readany()) == streams.CHAT[0] + streams.CHAT[1]
            for event in (*streams.CHAT[2:], streams.DONE):
                script.next()
                assert await soon(response.content.readany()) == event
            script.next()
            assert await soon(response.content.readany()) == b""


async def test_the_head_waits_for_the_first_event_that_says_something() -> None:
    script = Paced(*streams.CHAT, streams.DONE)
    spec = Backend(script, speculates=True)
    async with gateway(spec=[spec]) as running, asyncio.TaskGroup() as group:
        asking = group.create_task(running.ask(STREAMED))
        script.next()
        await spec.called()
        await asyncio.sleep(0.05)  # time in which a head could have come, and does not

        assert running.endings == {}
        assert not asking.done()
        for _ in range(5):
            script.next()
        status, body, _ = await soon(asking)
        assert (status, body) == (200, b"".join(streams.CHAT) + streams.DONE)


async def test_a_keep_alive_comment_goes_out_at_once() -> None:
    script = Paced(streams.KEEP_ALIVE, *streams.CHAT, streams.DONE)
    async with gateway(spec=[Backend(script, speculates=True)]) as running:
        script.next()
        async with running.post(STREAMED) as response:
            assert await soon(response.content.readany()) == streams.KEEP_ALIVE
            for _ in range(6):
                script.next()
            assert await soon(response.content.read()) == b"".join(streams.CHAT) + streams.DONE


async def test_time_to_first_token_is_that_of_the_first_output() -> None:
    script = Paced(*streams.CHAT, streams.final_usage(3, 5), streams.DONE)
    async with gateway(spec=[Backend(script, speculates=True)]) as running:
        for _ in range(7):
            script.next()
        await running.ask(STREAMED)
        await running.settled(finished=1)

        assert running.count("turnout_ttft_seconds_count") == 1
        assert running.count("turnout_tokens_total", kind="completion") == 5


# --- streams that break ---------------------------------------------------------------------


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
async def test_a_stream_lost_under_way_ends_in_an_error_event(path: str) -> None:
    async def breaks(call: Call) -> None:
        await call.stream(*streams.CHAT[:3])
        await call.send(streams.CHAT[3][:20])
        call.writer.close()

    spec, plain = Backend(breaks, speculates=True), Backend()
    async with gateway(spec=[spec], plain=[plain]) as running:
        status, body, _ = await running.ask(STREAMED, path=path)

        assert status == 200
        rest = body.removeprefix(b"".join(streams.CHAT[:3]))
        error = json.loads(rest.strip().removeprefix(b"data: "))["error"]
        assert error["type"] == "stream_broken"
        assert spec.name in error["message"]
        await running.settled(broken=1)
        assert plain.calls == []


async def test_a_stream_that_ends_early_ends_in_an_error_event() -> None:
    async def stops(call: Call) -> None:
        await call.stream(*streams.CHAT[:3])
        await call.end()

    async with gateway(spec=[Backend(stops, speculates=True)]) as running:
        _, body, _ = await running.ask(STREAMED)

        assert b'"type":"stream_broken"' in body
        await running.settled(broken=1)


async def test_messages_break_off_in_anthropics_shape() -> None:
    async def breaks(call: Call) -> None:
        await call.stream(*streams.MESSAGE[:3])
        call.writer.close()

    async with gateway(spec=[Backend(breaks, speculates=True)]) as running:
        _, body, _ = await running.ask(STREAMED, path="/v1/messages")

        last = body.rstrip().split(b"\n\n")[-1]
        assert last.strip().startswith(b'event: error\ndata: {"type":"error"')
        await running.settled(broken=1)


async def test_a_large_body_lost_under_way_stops_short() -> None:
    size = 5 * 2**20

    async def breaks(call: Call) -> None:
        await call.head(200, JSON, length=size)
        await call.send(b"x" * (size - 1))
        call.writer.close()

    async with gateway(spec=[Backend(breaks, speculates=True)]) as running:
        async with running.post() as response:
            with pytest.raises(aiohttp.ClientPayloadError):
                await soon(response.read())

        await running.settled(broken=1)


async def test_a_stored_responses_stream_lost_under_way_ends_in_an_error_event() -> None:
    async def script(call: Call) -> None:
        if call.method == "POST":
            await call.answer(streams.dumps({"id": "resp_1", "status": "queued"}))
            return
        await call.stream(*streams.RESPONSE[:3])
        call.writer.close()

    async with gateway(spec=[Backend(script, speculates=True)]) as running:
        await running.ask({"input": "x", "background": True}, path="/v1/responses")
        async with running.client.get(running.url + "/v1/responses/resp_1?stream=true") as got:
            body = await soon(got.read())

        assert body.startswith(b"".join(streams.RESPONSE[:3]))
        assert b'"type":"backend_unreachable"' in body
        await running.settled(finished=1, broken=1)


# --- clients that leave ---------------------------------------------------------------------


@pytest.mark.parametrize("asked", [ASKED, STREAMED])
async def test_a_client_that_leaves_before_the_first_byte_frees_the_backend(asked: Any) -> None:
    spec, plain = Backend(hangs, speculates=True), Backend()
    async with gateway(spec=[spec], plain=[plain]) as running:
        async with asyncio.TaskGroup() as group:
            asking = group.create_task(running.ask(asked))
            call = await spec.called()
            asking.cancel()

        await soon(call.gone.wait(), within_s=BUSY_S)
        await running.settled(cancelled=1)
        assert plain.calls == []


async def test_a_client_that_leaves_in_mid_stream_frees_the_backend() -> None:
    spec = Backend(begins, speculates=True)
    async with gateway(spec=[spec]) as running:
        async with running.post(STREAMED) as response:
            await soon(response.content.readany())
            response.close()

        await soon(spec.calls[0].gone.wait(), within_s=BUSY_S)
        await running.settled(cancelled=1)


async def test_a_client_that_leaves_while_another_backend_is_tried_frees_that_one() -> None:
    spec, plain = Backend(resets, speculates=True), Backend(hangs)
    async with gateway(spec=[spec], plain=[plain]) as running:
        async with asyncio.TaskGroup() as group:
            asking = group.create_task(running.ask())
            call = await plain.called()
            asking.cancel()

        await soon(call.gone.wait(), within_s=BUSY_S)
        await running.settled(cancelled=1)


async def test_a_client_that_leaves_amid_its_body_reaches_no_backend() -> None:
    spec = Backend(speculates=True)
    async with gateway(spec=[spec]) as running:
        _, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: 90\r\n\r\n{{".encode())
        await writer.drain()
        writer.transport.abort()

        await running.settled(cancelled=1)
        assert spec.calls == []


async def test_a_client_that_leaves_while_it_reads_slowly_frees_the_backend() -> None:
    spec = Backend(Flood(), speculates=True)
    async with gateway(spec=[spec]) as running:
        async with running.post(STREAMED) as response:
            await stalled(spec.script)
            response.close()

        await soon(spec.calls[0].gone.wait())
        await running.settled(cancelled=1)


# --- slow clients ---------------------------------------------------------------------------


class Flood:
    """A stream of 96 MiB, as fast as it is taken."""

    event = streams.text("x" * 2**16)
    events = 96 * 16

    def __init__(self) -> None:
        self.sent = 0

    async def __call__(self, call: Call) -> None:
        await call.head(200, EVENTS)
        for _ in range(self.events):
            await call.send(self.event)
            self.sent += 1
        await call.send(streams.DONE)
        await call.end()


async def stalled(script: Any) -> int:
    """Wait until nothing more is taken of a flood, and return how many events were."""
    before = -1
    while script.sent != before or not script.sent:
        before = script.sent
        await asyncio.sleep(0.3)
    return before


async def test_a_slow_client_holds_the_backend_up_and_fills_no_memory() -> None:
    flood = Flood()
    async with gateway(spec=[Backend(flood, speculates=True)]) as running:
        async with running.post(STREAMED) as response:
            assert await stalled(flood) < flood.events // 2  # what the sockets hold, and no more

            size = 0
            while piece := await soon(response.content.readany(), within_s=60.0):
                size += len(piece)

        assert size == flood.events * len(flood.event) + len(streams.DONE)
        await running.settled(finished=1)


async def test_a_slow_client_is_no_silence_of_the_backend() -> None:
    flood = Flood()
    waits = {"between_chunks_s": 0.5}
    async with gateway(spec=[Backend(flood, speculates=True)], timeouts=waits) as running:
        async with running.post(STREAMED) as response:
            await stalled(flood)
            await asyncio.sleep(1.0)  # twice what a backend may be silent
            while await soon(response.content.readany(), within_s=60.0):
                pass

        await running.settled(finished=1)


async def test_a_client_that_reads_nothing_is_cut_off_when_its_time_is_over() -> None:
    flood, waits = Flood(), {"total_s": 1.5}
    async with (
        gateway(spec=[Backend(flood, speculates=True)], timeouts=waits) as running,
        running.post(STREAMED) as response,
    ):
        await stalled(flood)

        await running.settled(broken=1)

        with pytest.raises(aiohttp.ClientError):
            await soon(response.read(), within_s=60.0)


# --- counting -------------------------------------------------------------------------------


async def finishes(running: Running) -> str:
    assert (await running.ask(ASKED, x_turnout_pool="plain"))[0] == 200
    return "finished"


async def finishes_a_stream(running: Running) -> str:
    assert (await running.ask(STREAMED, x_turnout_pool="plain"))[0] == 200
    return "finished"


async def fails_over(running: Running) -> str:
    assert (await running.ask({**ASKED, "user": "resets"}))[0] == 200
    return "finished"


async def is_rejected(running: Running) -> str:
    assert (await running.ask({**ASKED, "user": "rejects"}))[0] == 422
    return "rejected"


async def breaks_off(running: Running) -> str:
    _, body, _ = await running.ask({**STREAMED, "user": "breaks"})
    assert b"stream_broken" in body
    return "broken"


async def fails(running: Running) -> str:
    """Fail at the one pool it names, or be refused while that pool's circuit is open."""
    status, _, _ = await running.ask({**ASKED, "user": "resets"}, x_turnout_pool="spec")
    return {502: "failed", 503: "refused"}[status]


async def is_misread(running: Running) -> str:
    assert (await running.ask(b"["))[0] == 400
    return "client_error"


async def leaves_waiting(running: Running) -> str:
    name = uuid.uuid4().hex
    async with asyncio.TaskGroup() as group:
        asking = group.create_task(running.ask({**ASKED, "user": "hangs"}, x_request_id=name))
        await running.arrived(name)
        asking.cancel()
    return "cancelled"


async def leaves_in_mid_stream(running: Running) -> str:
    async with running.post({**STREAMED, "user": "begins"}) as response:
        await response.content.readany()
        response.close()
    return "cancelled"


WAYS: list[Callable[[Running], Coroutine[Any, Any, str]]] = [
    *(finishes, finishes_a_stream, fails_over, is_rejected, breaks_off, fails, is_misread),
    *(leaves_waiting, leaves_in_mid_stream),
]


async def as_told(call: Call) -> None:
    """Do what the request's `user` says."""
    match json.loads(call.body).get("user"):
        case "resets":
            call.cut()
        case "rejects":
            await call.answer(b"{}", 422)
        case "breaks":
            await call.stream(*streams.CHAT[:2])
            await call.end()
        case "hangs":
            await hangs(call)
        case "begins":
            await begins(call)
        case _:
            await answers(call)


async def as_told_but_lasting(call: Call) -> None:
    """Do what the request's `user` says, but for losing connections."""
    await (answers if b'"resets"' in call.body else as_told)(call)


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_in_any_order_each_request_is_counted_once_and_none_stays_in_flight(
    seed: int,
) -> None:
    order = WAYS * 12
    random.Random(seed).shuffle(order)
    spec, plain = Backend(as_told, speculates=True), Backend(as_told_but_lasting)
    async with gateway(spec=[spec], plain=[plain]) as running:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(way(running)) for way in order]
        endings = [task.result() for task in tasks]

        await running.settled(**{ending: endings.count(ending) for ending in set(endings)})
        assert "0 in hand" in repr(running.app.lifecycle)


async def test_requests_in_flight_are_counted_where_they_are() -> None:
    spec, plain = Backend(hangs, speculates=True), Backend(hangs)
    async with gateway(spec=[spec], plain=[plain]) as running:
        members = running.app.fleet.members
        async with asyncio.TaskGroup() as group:
            asking = [
                group.create_task(running.ask(x_turnout_pool=pool))
                for pool in ("spec", "spec", "plain")
            ]
            await spec.called(2)
            await plain.called()

            assert members[spec.name].load.in_flight == 2
            assert members[plain.name].load.in_flight == 1
            for task in asking:
                task.cancel()

        await running.settled(cancelled=3)


# --- the log --------------------------------------------------------------------------------


async def test_nothing_logged_has_words_of_a_request_or_keys(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    secret, key = "xyzzy-prompt", "sk-xyzzy"

    async def breaks(call: Call) -> None:
        await call.stream(*streams.CHAT[:2])
        call.cut()

    asked = {**STREAMED, "messages": [{"role": "user", "content": secret}], "user": secret}
    spec, plain = Backend(resets, speculates=True), Backend(breaks)
    async with gateway(spec=[spec], plain=[plain]) as running:
        await running.ask(asked, authorization=f"Bearer {key}", x_request_id="r-9")
        await running.ask({**asked, "model": "gpt"}, authorization=f"Bearer {key}")
        await running.ask(b'{"' + secret.encode(), authorization=f"Bearer {key}")
        await running.settled(broken=1, client_error=2)

    lines = [JsonLines().format(record) for record in caplog.records]
    lines += b"".join(running.lines).decode().splitlines()
    requests = [json.loads(line) for line in lines if '"turnout.requests"' in line]
    assert len(requests) == 3
    assert requests[0]["request_id"] == "r-9"
    assert requests[0]["ending"] == "broken"
    assert requests[0]["tries"] == 2
    assert requests[0]["pool"] == "plain"
    ours = [line for line in lines if "turnout" in line or "proxy" in line]
    assert not [line for line in ours if "xyzzy" in line]


async def test_requests_need_not_be_logged() -> None:
    async with gateway(
        spec=[Backend(speculates=True)], observation={"log_requests": False}
    ) as running:
        await running.ask()
        await running.settled(finished=1)

    assert not running.lines


# --- drain ----------------------------------------------------------------------------------


async def test_a_drain_lets_streams_finish_and_refuses_new_work() -> None:
    script = Paced(*streams.CHAT, streams.DONE)
    async with gateway(spec=[Backend(script, speculates=True)]) as running:
        script.next()
        script.next()
        async with running.post(STREAMED) as response, asyncio.TaskGroup() as group:
            first = await soon(response.content.readany())
            draining = group.create_task(running.app.lifecycle.drain(60.0))
            await eventually(lambda: running.app.lifecycle.draining, what="it drains")

            status, body, headers = await running.ask()
            assert (status, headers["retry-after"]) == (503, "1")
            assert json.loads(body)["error"]["type"] == "draining"
            async with running.client.get(running.url + "/ready") as ready:
                assert ready.status == 503
            assert not draining.done()
            for _ in range(4):
                script.next()
            rest = await soon(response.read())

        assert first + rest == b"".join(streams.CHAT) + streams.DONE
        await running.settled(refused=1, finished=1)


async def test_what_outlives_the_grace_period_ends_in_a_sign() -> None:
    spec, plain = Backend(begins, speculates=True), Backend(hangs)
    async with gateway(spec=[spec], plain=[plain]) as running:
        async with (
            running.post(STREAMED) as stream,
            asyncio.TaskGroup() as group,
        ):
            await soon(stream.content.readany())
            waiting = group.create_task(running.ask(x_turnout_pool="plain"))
            call = await plain.called()
            await running.app.lifecycle.drain(0.05)

            assert b"grace period is over" in await soon(stream.content.read())
            status, body, _ = await soon(waiting)
            assert status == 502
            assert b"grace period is over" in body
            await soon(call.gone.wait())

        await running.settled(broken=1, failed=1)


async def test_an_answer_is_whole_before_the_gateway_counts_it() -> None:
    async with gateway(spec=[Backend(speculates=True)]) as running:
        _, body, _ = await running.ask()

        assert body == chat_body()
        await running.settled(finished=1)
        assert running.count("turnout_request_duration_seconds_count") == 1
