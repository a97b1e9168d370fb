"""What a client may hold without asking anything, and HTTP that is not as it should be."""

import asyncio
import gc
import json
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from config.settings import Listen
from proxy.connection import Connection, Pipelines, Serve, connection
from proxy.downstream import Downstream
from tests.proxy import streams
from tests.proxy.streams import dumps
from tests.proxy.wire import (
    ASKED,
    CHAT,
    STREAMED,
    Backend,
    Call,
    Running,
    eventually,
    gateway,
    soon,
)

pytestmark = pytest.mark.anyio

BODY = dumps(ASKED)
LIMITS: dict[str, Any] = {"listen": {"head_s": 0.3, "body_s": 0.3, "max_head_bytes": 8192}}


class Raw:
    """A client that writes what it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()

    async def all(self) -> bytes:
        """Return what comes until the gateway closes."""
        return await soon(self.reader.read())  # type: ignore[no-any-return]

    async def head(self) -> bytes:
        return await soon(self.reader.readuntil(b"\r\n\r\n"))  # type: ignore[no-any-return]


@asynccontextmanager
async def raw(running: Running) -> AsyncIterator[Raw]:
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    try:
        yield Raw(reader, writer)
    finally:
        writer.close()


def post(*fields: bytes, body: bytes = BODY, path: str = CHAT) -> bytes:
    lines = [b"POST %b HTTP/1.1" % path.encode(), b"host: x", *fields]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def length(body: bytes = BODY) -> bytes:
    return b"content-length: %d" % len(body)


BAD_CHUNKS = b"zz\r\n" + BODY + b"\r\n0\r\n\r\n"
MALFORMED = {
    "two lengths": post(length(), b"content-length: 3"),
    "length and chunks": post(length(), b"transfer-encoding: chunked", body=BAD_CHUNKS),
    "bad chunk size": post(b"transfer-encoding: chunked", body=BAD_CHUNKS),
    "negative chunk size": post(b"transfer-encoding: chunked", body=b"-5\r\nhello\r\n0\r\n\r\n"),
    "unknown coding": post(b"transfer-encoding: xchunked", length()),
    "negative length": post(b"content-length: -1"),
    "length with a plus": post(b"content-length: +5", body=b"hello"),
    "length in hex": post(b"content-length: 0x10"),
    "folded field": post(b"x-a: one\r\n two", length()),
    "blank before the colon": post(b"content-length : %d" % len(BODY)),
    "no name": post(b": nothing", length()),
    "NUL in a value": post(b"x-a: a\x00b", length()),
    "bare LF in a value": post(b"x-a: a\nb: c", length()),
    "no version": b"POST /v1/chat/completions\r\n\r\n",
    "not HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "bare LF after every line": post(length()).replace(b"\r\n", b"\n"),
    "a tunnel": b"CONNECT /v1/chat/completions HTTP/1.1\r\nhost: x\r\n\r\n",
    "no path": b"POST http://x HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n",
    "query alone": b"POST http://x?a=b HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n",
    "non-ASCII path": b"GET /\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n",
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_malformed_http_is_refused_and_reaches_no_backend(name: str) -> None:
    spec = Backend(speculates=True)
    async with gateway(spec=[spec]) as running, raw(running) as client:
        await client.send(MALFORMED[name])
        client.writer.write_eof()

        answer = await client.all()

        assert answer.startswith(b"HTTP/1.1 4"), answer[:200]
        assert not spec.calls
        assert (await running.ask())[0] == 200


@pytest.mark.parametrize(
    ("path", "anthropics"),
    [
        ("/v1/messages", True),
        ("/v1/messages/count_tokens?beta=true", True),
        ("http://x/v1/%6dessages", True),
        ("/v1/messages2", False),
        (CHAT, False),
    ],
)
async def test_what_is_refused_early_has_the_shape_of_its_path(
    path: str, anthropics: bool
) -> None:
    refused = {
        b"400": post(b"content-length: -1", path=path),
        b"408": post(length(), body=b"{", path=path),
        b"431": post(b"x-a: " + b"a" * 9000, path=path),
    }
    if path == "/v1/messages2":
        del refused[b"408"]  # it is not there: a 404, which waits for no body
    async with gateway(spec=[Backend(speculates=True)], **LIMITS) as running:
        for status, sent in refused.items():
            async with raw(running) as client:
                await client.send(sent)
                head, _, body = (await client.all()).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 " + status)
            told = json.loads(body)
            assert (told.get("type") == "error") == anthropics
            assert told["error"]["type"] == "invalid_request_error"


def chunked(body: bytes, *trailers: bytes) -> bytes:
    lines = [b"%x" % len(body), body, b"0", *trailers]
    return b"\r\n".join(lines) + b"\r\n\r\n"


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_wish_for_another_protocol_is_passed_over(at_once: bool) -> None:
    """Java's HTTP client asks for `h2c` with the first request that it sends."""
    wishes = b"connection: Upgrade, HTTP2-Settings", b"upgrade: h2c", b"http2-settings: AAMAAABk"
    spec = Backend(speculates=True)
    async with gateway(spec=[spec]) as running, raw(running) as client:
        head = post(*wishes, length(), body=b"")
        await client.send(*((head + BODY,) if at_once else (head, BODY)))
        await spec.called()
        await client.send(post(length(), b"connection: close"))

        assert (await client.all()).count(b"HTTP/1.1 200") == 2
        assert [call.body for call in spec.calls] == [BODY, BODY]
        assert not any(spec.calls[0].all(name) for name in (b"upgrade", b"http2-settings"))


async def test_any_number_of_wishes_for_another_protocol_are_passed_over() -> None:
    head = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: upgrade%b\r\nupgrade: h2c\r\n\r\n"
    async with (
        gateway(spec=[Backend(speculates=True)]) as running,
        raw(running) as client,
    ):
        await client.send(head % b"" * 1_000 + head % b", close")

        assert (await client.all()).count(b"HTTP/1.1 200") == 1_001


@pytest.mark.parametrize("target", [b"http://x", b"http://x?y=1"])
@pytest.mark.parametrize("field", [b"a: b", b"no field", b"a: " + b"b" * 9_000])
async def test_a_target_without_a_path_is_of_the_root(target: bytes, field: bytes) -> None:
    async with (
        gateway(spec=[Backend(speculates=True)], **LIMITS) as running,
        raw(running) as client,
    ):
        head = b"OPTIONS %b HTTP/1.1\r\nhost: x\r\nconnection: close\r\n%b\r\n\r\n"
        await client.send(head % (target, field))

        statuses = {b"a: b": b"200", b"no field": b"400"}
        assert (await client.all()).split()[1] == statuses.get(field, b"431")


async def test_a_body_after_a_wish_for_another_protocol_is_no_further_request() -> None:
    hidden = b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n"
    async with (
        gateway(spec=[Backend(speculates=True)]) as running,
        raw(running) as client,
    ):
        head = post(b"connection: upgrade", b"upgrade: x", length(hidden), body=b"")
        await client.send(head)
        await asyncio.sleep(0.05)  # so that the body is read apart from its head
        await client.send(hidden)

        assert (await client.head()).startswith(b"HTTP/1.1 400")
        await client.send(post(length(), b"connection: close"))
        rest = await client.all()
        assert rest.count(b"HTTP/1.1") == 1
        assert b"HTTP/1.1 200" in rest


async def test_trailers_are_no_fields_of_the_request() -> None:
    spec, plain = Backend(speculates=True), Backend()
    async with gateway(spec=[spec], plain=[plain]) as running, raw(running) as client:
        body = chunked(BODY, b"x-turnout-pool: plain", b"x-added: late")
        for last in (b"x-a: b", b"connection: close"):
            await client.send(post(b"transfer-encoding: chunked", last, body=body))

        assert (await client.all()).count(b"x-turnout-pool: spec") == 2
        assert not any(call.all(b"x-added") for call in spec.calls)


@pytest.mark.parametrize("before", [b"0\r\nx-a: ", b"5;a="])
async def test_what_follows_a_head_without_being_a_body_is_as_bounded_as_a_head(
    before: bytes,
) -> None:
    async with (
        gateway(spec=[Backend(speculates=True)], **LIMITS) as running,
        raw(running) as client,
    ):
        start = b"%x\r\n%b\r\n" % (len(BODY), BODY)
        await client.send(post(b"transfer-encoding: chunked", body=start + before))
        for _ in range(2):
            await asyncio.sleep(0.05)  # what comes in one piece with a body is not counted
            await client.send(b"a" * 5000)
        assert (await client.all()).startswith(b"HTTP/1.1 431")


async def test_an_older_client_is_sent_no_chunks_and_not_asked_for_its_body() -> None:
    async with gateway(spec=[Backend(speculates=True)]) as running:
        for asked in (ASKED, STREAMED):
            body = dumps(asked)
            async with raw(running) as client:
                sent = post(length(body), b"expect: 100-continue", body=body)
                await client.send(sent.replace(b"HTTP/1.1", b"HTTP/1.0"))
                head, _, got = (await client.all()).partition(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200")
                assert b"transfer-encoding" not in head
                assert b"connection: close" in head
                whole = b"".join(streams.CHAT) + streams.DONE
                assert got == (whole if asked is STREAMED else got.strip())


async def slowly(call: Call) -> None:
    """Stream for longer than a head may take."""
    await call.stream(*streams.CHAT[:2])
    for _ in range(8):
        await asyncio.sleep(0.1)
        await call.send(streams.text("x"))
    await call.send(streams.DONE)
    await call.end()


@asynccontextmanager
async def behind_an_answer(more: bytes) -> AsyncIterator[tuple[Running, Raw]]:
    """Send more while a stream comes."""
    spec, body = Backend(slowly, speculates=True), dumps(STREAMED)
    async with gateway(spec=[spec], **LIMITS) as running, raw(running) as client:
        await client.send(post(length(body), body=body))
        await client.head()
        await client.send(more)
        yield running, client


@pytest.mark.parametrize("more", [b"\r\n", b"POST /v1/ch", post(b"content-length: 9", body=b"{")])
async def test_what_comes_behind_an_answer_under_way_does_not_end_it(more: bytes) -> None:
    async with behind_an_answer(more) as (running, client):
        streamed = await soon(client.reader.readuntil(b"0\r\n\r\n"))

        assert streams.DONE in streamed
        assert b"HTTP/1.1" not in streamed
        await running.settled(finished=1, **({"client_error": 1} if b"{" in more else {}))


@pytest.mark.parametrize("more", [b"\x00", b"GET /" + b"a" * 9000])
async def test_a_refusal_is_never_written_into_an_answer_under_way(more: bytes) -> None:
    async with behind_an_answer(more) as (running, client):
        assert b"HTTP/1.1" not in await client.all()
        await running.settled(cancelled=1)


async def test_a_body_that_stops_is_a_408_beside_inference_too() -> None:
    async with gateway(spec=[Backend(speculates=True)], **LIMITS) as running:
        async with raw(running) as client:
            await client.send(post(length(), body=BODY[:10], path="/explain"))
            answer = await client.all()
            assert answer.startswith(b"HTTP/1.1 408")
            assert b"listen.body_s" in answer
        async with raw(running) as client:
            await client.send(post(length(), body=b"", path="/explain"))
            for start in range(0, len(BODY), 20):
                await client.send(BODY[start : start + 20])
                await asyncio.sleep(0.1)
            assert (await client.head()).startswith(b"HTTP/1.1 400")  # no question, but all of it
        async with raw(running) as client:
            await client.send(post(length(), body=b"", path="/health"))
            assert (await client.head()).startswith(b"HTTP/1.1 405")
            await client.send(b"x")
            assert b"HTTP/1.1" not in await client.all()


MOST_PIPELINED = 3
SEQUENCES = {
    "pipelined": post(length()) * MOST_PIPELINED,
    "empty lines": b"\r\n" + post(length()) + b"\r\n\r\n" + post(length()),
    "chunks with trailers": post(
        b"transfer-encoding: chunked", body=b"2;a=b\r\n{}\r\n1\r\n \r\n0\r\nx-a: b\r\n\r\n"
    )
    * 2,
    "other protocols": post(b"connection: upgrade", b"upgrade: h2c", length()) + post(length()),
    "empty fields": post(b"x-a:", b"x-b: ", length())
    + post(b"x-c:", b"content-length: 0", body=b""),
}


@pytest.mark.parametrize("name", SEQUENCES)
async def test_requests_are_read_alike_in_whatever_pieces_they_come(name: str) -> None:
    sent = SEQUENCES[name]
    whole = await taken(sent)

    assert len(whole) == sent.count(b"HTTP/1.1")
    for at in range(1, len(sent)):
        assert await taken(sent[:at], sent[at:]) == whole


async def taken(*pieces: bytes) -> list[tuple[bytes, ...]]:
    """Return the fields and the body of each request that is taken from `pieces`."""
    found: list[tuple[bytes, ...]] = []

    class Taking(Pipelines):
        def pipeline_for(self, method: str, path: str) -> Serve:
            assert (method, path) == ("POST", CHAT)
            return serve

    async def serve(downstream: Downstream) -> None:
        body = await downstream.body(2**20, wait_s=5.0)
        found.append((*(b": ".join(field) for field in downstream.headers), body))
        downstream.start(200, [(b"content-length", b"0")])
        await downstream.write(b"", more=False)

    config = uvicorn.Config(Taking, http=connection(Listen(), Taking()), ws="none")
    config.load()
    made: Any = config.http_protocol_class
    protocol = made(config=config, server_state=ServerState(), app_state={})
    protocol.connection_made(Socket())
    for piece in pieces:
        protocol.data_received(piece)
        await asyncio.sleep(0)
    for _ in range(3 * MOST_PIPELINED):  # steps of the loop that a request takes
        await asyncio.sleep(0)
    protocol.connection_lost(None)
    return found


class Socket:
    """A transport to nowhere."""

    def get_extra_info(self, name: str) -> object:
        return None

    def __getattr__(self, name: str) -> object:
        return lambda *_: None


async def test_pipelined_requests_are_answered_in_turn_and_a_smuggled_one_is_one_of_them() -> None:
    spec = Backend(speculates=True)
    async with gateway(spec=[spec]) as running, raw(running) as client:
        one = post(length(), b"x-request-id: one")
        two = post(length(), b"x-request-id: two", b"connection: close")
        await client.send(one + two)

        answer = await client.all()

        assert answer.count(b"HTTP/1.1 200") == 2
        assert answer.index(b"x-request-id: one") < answer.index(b"x-request-id: two")
        assert [call.one(b"x-request-id") for call in spec.calls] == [b"one", b"two"]
        await running.settled(finished=2)


async def test_a_target_reaches_the_backend_as_path_and_query_alone() -> None:
    spec = Backend(speculates=True)
    async with gateway(spec=[spec]) as running:
        for target in (f"http://elsewhere.example{CHAT}?a=%20b", f"{CHAT}?a=%20b#part"):
            async with raw(running) as client:
                await client.send(post(length(), b"connection: close", path=target))
                assert (await client.all()).startswith(b"HTTP/1.1 200")
        assert [call.target for call in spec.calls] == [f"{CHAT}?a=%20b"] * 2
        assert spec.calls[0].all(b"host") == [spec.name.encode()]


async def test_a_refusal_can_be_read_while_the_body_it_is_about_goes_on() -> None:
    limits: dict[str, Any] = {"listen": {"max_body_bytes": 1000}}
    async with gateway(spec=[Backend(speculates=True)], **limits) as running:
        async with raw(running) as client:
            await client.send(post(b"content-length: 1000000", body=b"x" * 1000))
            assert (await client.head()).startswith(b"HTTP/1.1 413")
            await client.send(b"x" * 999_000)
            rest = await client.all()
            assert b"listen.max_body_bytes" in rest
            assert b"HTTP/1.1" not in rest
        async with raw(running) as client:
            await client.send(post(b"content-length: 1000000", body=b"x"))
            answer = await client.all()  # it is closed though the body never ends
            assert b"connection: close" in answer


async def test_a_client_that_waits_to_be_asked_for_its_body_is_asked() -> None:
    spec = Backend(speculates=True)
    async with gateway(spec=[spec]) as running, raw(running) as client:
        await client.send(post(length(), b"expect: 100-continue", b"connection: close", body=b""))
        assert await client.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(BODY)

        assert (await client.all()).startswith(b"HTTP/1.1 200")
        assert spec.calls[0].one(b"expect") is None


async def test_a_client_that_leaves_with_another_request_behind_begins_only_the_first() -> None:
    async def hangs(call: Call) -> None:
        await call.gone.wait()

    spec = Backend(hangs, speculates=True)
    async with gateway(spec=[spec]) as running:
        async with raw(running) as client:
            await client.send(post(length()) * 2)
            call = await spec.called()
        await soon(call.gone.wait())
        await running.settled(cancelled=1)
        assert len(spec.calls) == 1


async def test_a_head_that_is_too_long_is_a_431() -> None:
    async with gateway(spec=[Backend(speculates=True)], **LIMITS) as running:
        many = (b"x-%d: %b" % (n, b"a" * 500) for n in range(20))
        for sent in (post(b"x-a: " + b"a" * 9000), post(*many), b"GET /" + b"a" * 9000):
            async with raw(running) as client:
                await client.send(sent)
                answer = await client.all()
                assert answer.startswith((b"HTTP/1.1 431", b"HTTP/1.1 400")), answer[:100]
        async with raw(running) as client:
            await client.send(b"GET /health HTTP/1.1\r\n", *[b"x-a: %b\r\n" % (b"a" * 500)] * 20)
            assert (await client.all()).startswith(b"HTTP/1.1 431")


async def test_a_long_body_is_no_long_head() -> None:
    async with gateway(spec=[Backend(speculates=True)], **LIMITS) as running:
        body = dumps({**ASKED, "messages": [{"role": "user", "content": "x" * 100_000}]})
        async with raw(running) as client:
            await client.send(post(length(body), b"connection: close", body=body))
            assert (await client.all()).startswith(b"HTTP/1.1 200")


async def test_a_head_that_takes_too_long_is_a_408() -> None:
    async with (
        gateway(spec=[Backend(speculates=True)], **LIMITS) as running,
        raw(running) as silent,
        raw(running) as slow,
    ):
        await slow.send(b"POST / HTTP/1.1\r\nhost")
        assert (await silent.all()).startswith(b"HTTP/1.1 408")
        assert (await slow.all()).startswith(b"HTTP/1.1 408")


async def test_a_second_head_is_timed_too_but_an_idle_connection_is_not() -> None:
    async with (
        gateway(spec=[Backend(speculates=True)], **LIMITS) as running,
        raw(running) as client,
    ):
        await client.send(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await client.head()).startswith(b"HTTP/1.1 200")
        await asyncio.sleep(0.5)
        await client.send(b"GET /hea")
        assert b"HTTP/1.1 408" in await client.all()


async def test_a_body_that_stops_is_a_408_and_a_slow_one_is_not() -> None:
    spec = Backend(speculates=True)
    async with gateway(spec=[spec], **LIMITS) as running:
        async with raw(running) as client:
            await client.send(post(length(), body=BODY[:10]))
            answer = await client.all()
            assert answer.startswith(b"HTTP/1.1 408")
            assert b"listen.body_s" in answer
        assert not spec.calls
        async with raw(running) as client:
            await client.send(post(length(), b"connection: close", body=b""))
            for start in range(0, len(BODY), 20):
                await client.send(BODY[start : start + 20])
                await asyncio.sleep(0.1)
            assert (await client.all()).startswith(b"HTTP/1.1 200")
        await running.settled(client_error=1, finished=1)


async def test_one_address_has_no_more_connections_than_it_may() -> None:
    limits: dict[str, Any] = {"listen": {"connections_per_client": 3}}
    async with (
        gateway(spec=[Backend(speculates=True)], **limits) as running,
        raw(running) as one,
        raw(running) as two,
    ):
        await one.send(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        await one.head()
        async with raw(running), raw(running) as fourth:
            assert (await fourth.all()).startswith(b"HTTP/1.1 429")
        await two.send(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await two.head()).startswith(b"HTTP/1.1 200")


async def test_a_client_that_leaves_at_any_byte_leaves_nothing_behind() -> None:
    spec, request = Backend(speculates=True), post(length())
    async with gateway(spec=[spec]) as running:
        for end in range(1, len(request), 7):
            async with raw(running) as client:
                await client.send(request[:end])
        await eventually(lambda: running.in_flight == 0, what="nothing is in flight")
        assert not spec.calls
        assert (await running.ask())[0] == 200


async def test_a_connection_that_is_reset_is_let_go_of_at_once() -> None:
    """Not when it would have been idle for too long."""
    here = asyncio.get_running_loop()

    def kept() -> int:
        gc.collect()
        return sum(isinstance(each, Connection) and each.loop is here for each in gc.get_objects())

    async with gateway(spec=[Backend(speculates=True)]) as running:
        for _ in range(5):
            async with raw(running) as client:
                await client.send(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
                await client.head()
                abrupt = client.writer.get_extra_info("socket")
                abrupt.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await eventually(lambda: kept() == 0, what="no connection is kept", within_s=30.0)
