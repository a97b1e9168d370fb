"""The load generator against a server that answers as each job asks it to."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import repeat
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from tests.tuning.samples import job
from turnout.tuning.arrivals import poisson
from turnout.tuning.load import LoadGenerator

if TYPE_CHECKING:
    from turnout.tuning.sample import Sample

HEADERS = {
    "x-turnout-pool": "spec",
    "x-turnout-backend": "127.0.0.1:1",
    "x-turnout-reason": "policy",
    "x-turnout-class": "chat@T<=1.0",
}
METRICS = {"speculative_decoding": {"num_accepted_draft_tokens": 6, "num_draft_tokens": 10}}
USAGE = {"prompt_tokens": 5, "completion_tokens": 11, "total_tokens": 16}
BASE = {"id": "x", "created": 1, "model": "m"}
Answer = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


class Server:
    """Keeps what it was sent, and how many requests it had at a time."""

    def __init__(self, answer: Answer) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.running = 0
        self.most = 0
        self.url = ""
        self.idle = asyncio.Event()
        self._answer = answer

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.json())
        self.headers.append({key.lower(): value for key, value in request.headers.items()})
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            return await self._answer(request, self.bodies[-1])
        finally:
            self.running -= 1
            if not self.running:
                self.idle.set()


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[tuple[Server, LoadGenerator]]:
    server = Server(answer)
    app = web.Application()
    app.router.add_post("/v1/chat/completions", server.handle)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        async with LoadGenerator(server.url, model="m", timeout_s=5.0) as load:
            yield server, load
    finally:
        await runner.cleanup()


def chunk(content: str | None = None, finish: str | None = None, **more: Any) -> bytes:
    delta = {} if content is None else {"role": "assistant", "content": content}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    data = BASE | {"object": "chat.completion.chunk", "choices": [choice]} | more
    return f"data: {json.dumps(data)}\n\n".encode()


async def stream(request: web.Request, *pieces: bytes, gap_s: float = 0.0) -> web.StreamResponse:
    response = web.StreamResponse(headers=HEADERS | {"content-type": "text/event-stream"})
    await response.prepare(request)
    for piece in pieces:
        await response.write(piece)
        await asyncio.sleep(gap_s)
    return response


USAGE_CHUNK = chunk(choices=[], usage=USAGE, metrics=METRICS)
DONE = b"data: [DONE]\n\n"


async def good(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    if body.get("stream"):
        pieces = (chunk(""), chunk("a b c"), chunk(" d"), chunk(" e", "stop"), USAGE_CHUNK, DONE)
        return await stream(request, *pieces, gap_s=0.02)
    message = {"role": "assistant", "content": "a b c d e"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    data = BASE | {"object": "chat.completion", "choices": [choice], "usage": USAGE}
    return web.json_response(data | {"metrics": METRICS}, headers=HEADERS)


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_sample_has_what_the_headers_and_the_usage_say(streamed: bool) -> None:
    async with serving(good) as (_, load):
        seen = await load.send(job(stream=streamed))

    assert seen.outcome == "ok"
    assert (seen.status, seen.error) == (200, None)
    assert [seen.pool, seen.backend, seen.reason, seen.traffic_class] == list(HEADERS.values())
    assert (seen.tokens, seen.accepted, seen.drafted) == (11, 6, 10)


async def test_times_of_a_stream_count_tokens_and_not_chunks() -> None:
    async with serving(good) as (_, load):
        seen = await load.send(job())

    assert seen.ttft_s is not None
    assert seen.tpot_s is not None
    assert 0.015 <= seen.ttft_s < seen.ended_s - seen.sent_s  # the role alone is no text
    assert 0 < seen.tpot_s <= (seen.ended_s - seen.sent_s - seen.ttft_s) / 10


async def test_an_answer_in_one_piece_has_no_times_of_tokens() -> None:
    async with serving(good) as (_, load):
        seen = await load.send(job(stream=False))

    assert (seen.ttft_s, seen.tpot_s) == (None, None)


async def test_a_job_is_sent_with_its_own_fields_and_headers() -> None:
    async with serving(good) as (server, load):
        await load.send(job(body={"top_k": 3, "max_tokens": 7}, headers={"x-turnout-pool": "a"}))

    body, headers = server.bodies[0], server.headers[0]
    assert (body["model"], body["top_k"], body["max_tokens"]) == ("m", 3, 7)
    assert body["messages"] == [{"role": "user", "content": "Hello"}]
    assert body["stream_options"] == {"include_usage": True}
    assert headers["x-turnout-pool"] == "a"


async def broken_off(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    if body.get("stream"):
        response = await stream(request, chunk("a"))
    else:
        response = web.StreamResponse(headers=HEADERS | {"content-length": "500"})
        await response.prepare(request)
        await response.write(b'{"id":')
    assert request.transport is not None
    request.transport.abort()
    return response


async def never_begun(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def refused(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    error = {"message": "all full", "type": "pool_saturated", "param": None, "code": 429}
    return web.json_response({"error": error}, status=429, headers=HEADERS)


async def error_event(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    event = b'data: {"error": {"message": "gone", "type": "stream_broken"}}\n\n'
    return await stream(request, chunk("a"), event, DONE)


async def no_end(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return await stream(request, chunk("a"))


async def aborted(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return await stream(request, chunk("a"), chunk("", "abort"), USAGE_CHUNK, DONE)


async def garbage(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return await stream(request, b"data: {nonsense\n\n")


@pytest.mark.parametrize(
    ("answer", "streamed", "outcome", "error"),
    [
        (broken_off, True, "cut", "connection"),
        (broken_off, False, "cut", "connection"),
        (never_begun, True, "lost", "connection"),
        (refused, True, "lost", "pool_saturated"),
        (refused, False, "lost", "pool_saturated"),
        (error_event, True, "cut", "stream_broken"),
        (no_end, True, "cut", "no_end"),
        (aborted, True, "cut", "abort"),
        (garbage, True, "cut", "malformed"),
    ],
)
async def test_a_failure_is_a_sample_that_says_whether_a_byte_was_seen(
    answer: Answer, streamed: bool, outcome: str, error: str
) -> None:
    async with serving(answer) as (server, load):
        seen = await load.send(job(stream=streamed))

    assert (seen.outcome, seen.error) == (outcome, error)
    assert len(server.bodies) == 1  # nothing is retried


async def test_a_server_that_is_not_there_loses_the_request(free_port: int) -> None:
    async with LoadGenerator(f"http://127.0.0.1:{free_port}", model="m") as load:
        seen = await load.send(job())

    assert (seen.outcome, seen.error, seen.status) == ("lost", "connection", None)


async def test_a_closed_loop_holds_its_number_in_flight_and_sends_every_job_once() -> None:
    samples: list[Sample] = []
    async with serving(good) as (server, load):
        jobs = [job(body={"seed": number}) for number in range(7)]

        await load.closed(jobs, in_flight=3, on_sample=samples.append)

    assert server.most == 3
    assert sorted(body["seed"] for body in server.bodies) == list(range(7))
    assert len(samples) == 7


async def test_an_open_loop_does_not_wait_for_answers() -> None:
    samples: list[Sample] = []
    everyone_here = asyncio.Event()

    async def together(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if server.running == 5:
            everyone_here.set()
        await everyone_here.wait()
        return await good(request, body)

    async with serving(together) as (server, load):
        await load.open(repeat(job(), 5), arrivals=poisson(1000, seed=1), on_sample=samples.append)

    assert [seen.outcome for seen in samples] == ["ok"] * 5


async def test_an_open_loop_over_its_bound_sends_late_and_says_so() -> None:
    samples: list[Sample] = []
    async with serving(good) as (server, load):
        await load.open(
            repeat(job(), 4),
            arrivals=poisson(1e6, seed=1),
            on_sample=samples.append,
            max_in_flight=1,
        )

    assert server.most == 1
    assert max(seen.late_s for seen in samples) > 0.1  # three streams of 0.12 s came before it


async def test_the_same_seed_gives_the_same_arrivals() -> None:
    async def dues(seed: int) -> list[float]:
        samples: list[Sample] = []
        async with serving(good) as (_, load):
            start = load.clock()
            await load.open(
                repeat(job(stream=False), 4),
                arrivals=poisson(200, seed=seed),
                on_sample=samples.append,
            )
        return sorted(round(seen.sent_s - seen.late_s - start, 2) for seen in samples)

    assert await dues(3) == pytest.approx(await dues(3), abs=0.02)
    assert await dues(3) != pytest.approx(await dues(4), abs=1e-4)


async def test_a_cancelled_run_leaves_no_request_running() -> None:
    async def never(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        here.release()
        await asyncio.sleep(3600)
        return web.Response()

    here = asyncio.Semaphore(0)
    async with serving(never) as (server, load):
        async with asyncio.TaskGroup() as group:
            running = group.create_task(
                load.closed(repeat(job()), in_flight=4, on_sample=lambda _: None)
            )
            for _ in range(4):
                await here.acquire()
            running.cancel()

        async with asyncio.timeout(60):
            while server.running:  # noqa: ASYNC110  # the server counts it down
                await asyncio.sleep(0.01)
    assert len(server.bodies) == 4
