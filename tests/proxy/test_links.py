"""One connection to a backend, byte by byte."""

import asyncio
import socket
from typing import Any

import pytest

from config.settings import Listen
from proxy.links import HEAD_BYTES, HELD_BYTES, Link, Links, Lost
from proxy.server import _bound
from tests.proxy.wire import Backend, begin, eventually

pytestmark = pytest.mark.anyio

WHOLE = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Transport:
    """Notes what is done with a socket."""

    def __init__(self) -> None:
        self.sent = b""
        self.aborted = self.paused = False

    def write(self, data: bytes) -> None:
        self.sent += data

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.aborted

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


class Opened:
    """A connection, and who is told that it is free."""

    def __init__(self) -> None:
        self.free: list[Link] = []
        self.transport = Transport()
        self.link = Link(asyncio.get_running_loop(), self.free.append)
        self.link.connection_made(self.transport)  # type: ignore[arg-type]

    async def answered(self, *pieces: bytes) -> bytes:
        """Return the body of an answer that comes in pieces."""
        self.link.send(b"GET / HTTP/1.1\r\n\r\n", None)
        for piece in pieces:
            self.link.data_received(piece)
        await self.link.head()
        body = b""
        while piece := await self.link.read():
            body += piece
        return body


async def test_a_connection_is_used_again_after_a_whole_answer_alone() -> None:
    opened = Opened()

    assert await opened.answered(WHOLE) == b"ok"
    opened.link.done()
    assert opened.free == [opened.link]
    assert await opened.answered(*(WHOLE[n : n + 1] for n in range(len(WHOLE)))) == b"ok"

    opened.link.send(b"GET / HTTP/1.1\r\n\r\n", None)
    opened.link.data_received(WHOLE[:-1])
    await opened.link.head()
    opened.link.done()
    assert opened.free == [opened.link]
    assert opened.transport.aborted


@pytest.mark.parametrize("field", [b"connection: close\r\n", b""])
async def test_an_answer_that_ends_with_its_connection_is_whole_and_the_last(
    field: bytes,
) -> None:
    opened = Opened()
    opened.link.send(b"GET / HTTP/1.1\r\n\r\n", None)
    opened.link.data_received(b"HTTP/1.1 200 OK\r\n" + field + b"\r\nsome")
    await opened.link.head()

    assert await opened.link.read() == b"some"
    rest = begin(opened.link.read())
    await asyncio.sleep(0)
    opened.link.eof_received()

    assert await rest == b""
    opened.link.done()
    assert opened.free == []


async def test_interim_answers_are_passed_over() -> None:
    interim = b"HTTP/1.1 100 Continue\r\nx-a: 1\r\n\r\n"
    opened = Opened()

    assert await opened.answered(interim + interim + WHOLE) == b"ok"
    assert opened.link.status == 200
    assert opened.link.headers == [(b"content-length", b"2")]


async def test_what_nobody_asked_for_closes_an_idle_connection() -> None:
    opened = Opened()
    await opened.answered(WHOLE)

    opened.link.data_received(WHOLE)

    assert opened.transport.aborted
    assert not opened.link.usable


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (b"SSH-2.0-OpenSSH_9.9\r\n", "is not HTTP"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"a" * (HEAD_BYTES + 1) + b"\r\n\r\n", "is not HTTP"),
        (b"HTTP/1.1 999 Odd\r\ncontent-length: 0\r\n\r\n", "is not HTTP"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"a" * (HEAD_BYTES + 1), "too long a head"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * HEAD_BYTES, "too long a head"),
        (b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", "protocols"),
    ],
)
async def test_an_answer_that_cannot_be_read_is_lost(sent: bytes, says: str) -> None:
    opened = Opened()

    with pytest.raises(Lost, match=says):
        await opened.answered(sent)

    assert opened.transport.aborted


async def test_of_two_answers_to_a_request_the_first_is_its_own_and_the_connections_last() -> None:
    opened = Opened()
    second = b"HTTP/1.1 500 No\r\nx-second: 1\r\ncontent-length: 3\r\n\r\nbad"

    assert await opened.answered(WHOLE + second) == b"ok"

    assert opened.link.status == 200
    assert opened.link.headers == [(b"content-length", b"2")]
    opened.link.done()
    assert opened.free == []
    assert opened.transport.aborted


async def test_fields_after_a_body_are_no_fields_of_the_answer() -> None:
    opened = Opened()
    chunked = (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-a: 1\r\n\r\n"
    )

    assert await opened.answered(chunked) == b"ok"
    assert opened.link.headers == [(b"transfer-encoding", b"chunked")]


async def test_what_is_free_after_its_backend_is_gone_is_closed_soon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.links.IDLE_S", 0.05)
    async with Backend() as backend:
        links = Links(backend.url)
        one, other = [await links.dial() for _ in range(2)]
        for link in (one, other):
            link.send(b"POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n", None)
            while await link.read():
                pass
        one.done()

        links.close()
        other.done()

        await eventually(lambda: not (one.usable or other.usable), what="both are closed")


async def test_a_connection_that_ends_amid_an_answer_loses_it() -> None:
    opened = Opened()
    opened.link.send(b"GET / HTTP/1.1\r\n\r\n", None)
    opened.link.data_received(WHOLE[:-1])
    assert await opened.link.read() == b"o"
    rest = begin(opened.link.read())
    await asyncio.sleep(0)

    opened.link.connection_lost(ConnectionResetError("reset by peer"))

    with pytest.raises(Lost, match="reset by peer"):
        await rest
    with pytest.raises(Lost, match="reset by peer"):
        opened.link.send(b"", None)


async def test_a_reader_that_is_slow_pauses_the_backend() -> None:
    opened = Opened()
    opened.link.send(b"GET / HTTP/1.1\r\n\r\n", None)
    size = HELD_BYTES + 1

    opened.link.data_received(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (size + 1))
    opened.link.data_received(b"a" * size)
    assert opened.transport.paused

    assert await opened.link.read() == b"a" * size
    assert not opened.transport.paused


async def test_a_large_body_is_sent_after_its_head() -> None:
    opened = Opened()

    opened.link.send(b"head", b"b" * HEAD_BYTES)

    await eventually(lambda: opened.transport.sent == b"head" + b"b" * HEAD_BYTES, what="sent")


def asked_after_s(connection: Any) -> int:
    """Return after how much silence the other side is asked whether it is there; 0 never."""
    asked: int = connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    after_s: int = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
    return after_s if asked else 0


async def test_connections_to_both_sides_outlast_a_silence() -> None:
    """A balancer or address translation on the way forgets those without traffic, in minutes."""
    with _bound(Listen(port=0), key="listen") as listening:
        listening.listen()
        link = await Links(f"http://127.0.0.1:{listening.getsockname()[1]}").dial()
        accepted, _ = listening.accept()
        with accepted:
            assert link._transport is not None
            assert asked_after_s(link._transport.get_extra_info("socket")) == 60
            assert asked_after_s(accepted) == 60
        link.close("it was made")
