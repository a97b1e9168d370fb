"""Words to the client of a stream that is silent for long."""

import asyncio
from typing import Any

import aiohttp
import openai
import orjson
import pytest

from tests.proxy import streams
from tests.proxy.pieces import Client
from tests.proxy.streams import CHAT, DONE, MESSAGE
from tests.proxy.wire import (
    EVENTS,
    STREAMED,
    Backend,
    Call,
    begin,
    gateway,
    soon,
)

ON: dict[str, Any] = {"listen": {"sse_keep_alive_s": 0.05}}
COMMENT = b": keep-alive\n\n"
PING = b'event: ping\ndata: {"type": "ping"}\n\n'
MESSAGES = "/v1/messages"


class Parts:
    """A stream in parts, each sent when the test says so."""

    def __init__(self, *parts: bytes) -> None:
        self._parts = parts
        self._go: asyncio.Queue[None] = asyncio.Queue()

    def next(self) -> None:
        self._go.put_nowait(None)

    async def __call__(self, call: Call) -> None:
        await call.head(200, EVENTS)
        for part in self._parts:
            await self._go.get()
            await call.send(part)
        await call.end()


class Reader:
    """What a client has read of an answer."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.body = b""

    async def until(self, words: bytes, times: int = 1) -> bytes:
        while self.body.count(words) < times:
            piece = await soon(self._response.content.readany())
            assert piece, f"it ended without {words!r}: {self.body!r}"
            self.body += piece
        return self.body

    async def rest(self) -> bytes:
        self.body += await soon(self._response.read())
        return self.body


async def test_a_silent_stream_says_that_it_lives_as_often_as_it_is_silent_for_long() -> None:
    script = Parts(CHAT[0] + CHAT[1], b"".join(CHAT[2:]) + DONE)
    async with gateway(plain=[Backend(script)], **ON) as running:
        script.next()
        async with running.post(STREAMED) as response:
            reader = Reader(response)
            body = await reader.until(COMMENT, 3)
            script.next()
            whole = await reader.rest()

        assert body.startswith(CHAT[0] + CHAT[1])
        assert whole.replace(COMMENT, b"") == b"".join(CHAT) + DONE
        await running.settled(finished=1)


async def test_it_says_nothing_unless_it_was_asked_for() -> None:
    script = Parts(CHAT[0] + CHAT[1], b"".join(CHAT[2:]) + DONE)
    async with gateway(plain=[Backend(script)]) as running:
        script.next()
        asked = begin(running.ask(STREAMED))
        await asyncio.sleep(0.3)
        script.next()

        assert (await asked)[1] == b"".join(CHAT) + DONE


async def test_words_stand_between_events_and_never_in_one() -> None:
    half = len(CHAT[1]) // 2
    script = Parts(CHAT[0] + CHAT[1] + CHAT[2][:half], CHAT[2][half:] + CHAT[3] + DONE)
    async with gateway(plain=[Backend(script)], **ON) as running:
        script.next()
        async with running.post(STREAMED) as response:
            reader = Reader(response)
            assert (await reader.until(COMMENT)).startswith(CHAT[0] + CHAT[1] + COMMENT)
            script.next()

            assert (await reader.rest()).replace(COMMENT, b"") == b"".join(CHAT) + DONE


async def test_none_is_put_into_an_event_that_is_passed_on_in_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.sse.MAX_EVENT_BYTES", 100)
    long = streams.text("x" * 1000)
    script = Parts(CHAT[0] + long[:500], long[500:], DONE)
    async with gateway(plain=[Backend(script)], **ON) as running:
        script.next()
        async with running.post(STREAMED) as response:
            reader = Reader(response)
            await reader.until(long[:500])
            await asyncio.sleep(0.3)
            script.next()
            body = await reader.until(COMMENT)
            script.next()
            await reader.rest()

        assert body.startswith(CHAT[0] + long + COMMENT)


async def test_a_stream_that_has_said_nothing_yet_begins_with_them_and_is_no_longer_moved() -> (
    None
):
    script = Parts(b"")
    spec, plain = Backend(script, speculates=True), Backend()
    async with gateway(spec=[spec], plain=[plain], **ON) as running:
        async with running.post(STREAMED) as response:
            reader = Reader(response)
            assert (response.status, response.headers["x-turnout-pool"]) == (200, "spec")
            assert (await reader.until(COMMENT)).startswith(COMMENT)
            spec.calls[0].cut()
            error = (await reader.rest()).replace(COMMENT, b"").strip()

        assert (
            orjson.loads(error.removeprefix(b"data: "))["error"]["type"] == "backend_unreachable"
        )
        assert not plain.calls
        await running.settled(broken=1)


async def test_what_a_server_refuses_late_is_passed_on_then() -> None:
    refusal = streams.error(400, "min_p is not yet supported with speculative decoding")
    script = Parts(refusal + DONE)
    spec, plain = Backend(script, speculates=True), Backend()
    async with (
        gateway(spec=[spec], plain=[plain], **ON) as running,
        running.post(STREAMED) as response,
    ):
        reader = Reader(response)
        await reader.until(COMMENT)
        script.next()

        assert (await reader.rest()).replace(COMMENT, b"") == refusal + DONE


async def test_before_a_servers_head_nothing_is_said_as_it_may_be_an_error() -> None:
    go = asyncio.Event()

    async def late(call: Call) -> None:
        await go.wait()
        await call.answer(b'{"error":{"message":"no"}}', 400)

    async with gateway(plain=[Backend(late)], **ON) as running:
        asked = begin(running.ask(STREAMED))
        await asyncio.sleep(0.3)
        go.set()

        assert (await asked)[0] == 400


async def test_messages_are_pinged_once_they_have_started() -> None:
    script = Parts(b"".join(MESSAGE[:3]), b"".join(MESSAGE[3:]))
    async with gateway(plain=[Backend(script)], **ON) as running:
        async with running.post({**STREAMED, "max_tokens": 9}, path=MESSAGES) as response:
            reader = Reader(response)
            await reader.until(COMMENT)
            script.next()
            body = await reader.until(PING)
            script.next()
            whole = await reader.rest()

        assert body.replace(COMMENT, b"").startswith(b"".join(MESSAGE[:3]) + PING)
        assert whole.replace(COMMENT, b"").replace(PING, b"") == b"".join(MESSAGE)


async def test_responses_are_told_by_comments() -> None:
    script = Parts(b"".join(streams.RESPONSE[:4]), b"".join(streams.RESPONSE[4:]))
    async with gateway(plain=[Backend(script)], **ON) as running:
        script.next()
        body = {"model": "m", "input": "x", "stream": True}
        async with running.post(body, path="/v1/responses") as response:
            reader = Reader(response)
            await reader.until(COMMENT, 2)
            script.next()

            assert (await reader.rest()).replace(COMMENT, b"") == b"".join(streams.RESPONSE)


async def test_openais_client_reads_over_them() -> None:
    script = Parts(CHAT[0] + CHAT[1], b"".join(CHAT[2:]) + DONE)
    backend = Backend(script)
    async with (
        gateway(plain=[backend], **ON) as running,
        openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client,
    ):
        stream = await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "hello"}], stream=True
        )  # it has begun by a comment
        script.next()
        chunks = [await anext(stream), await anext(stream)]
        await asyncio.sleep(0.3)
        script.next()
        chunks += [chunk async for chunk in stream]

        said = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
        assert "".join(said) == "Hello world"


def test_a_client_that_has_not_read_what_was_sent_is_told_nothing() -> None:
    client = Client()
    client.downstream.start(200, [EVENTS])
    client.write_paused = True

    client.downstream.put_in(COMMENT)

    assert not client.writes
