"""Connections are taken as they come, and left to others who have fewer."""

import asyncio
import errno
import socket
import ssl
from collections.abc import Iterator
from contextlib import closing, suppress

import pytest

from proxy import acceptor as module
from proxy.acceptor import Acceptor

MANY = 40


class Counting(asyncio.Protocol):
    """Counts the connections that were made."""

    made = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        Counting.made += 1
        self._transport = transport


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    Counting.made = 0
    with closing(socket.create_server(("127.0.0.1", 0))) as made:
        yield made


def connected(listening: socket.socket, count: int) -> list[socket.socket]:
    return [socket.create_connection(listening.getsockname()) for _ in range(count)]


async def taken(count: int) -> None:
    async with asyncio.timeout(60):
        while Counting.made < count:  # noqa: ASYNC110  # protocols tell nobody
            await asyncio.sleep(0.001)


def end(clients: list[socket.socket], acceptor: Acceptor) -> None:
    for each in clients:
        each.close()
    acceptor.close()


async def test_all_that_wait_are_taken_in_one_turn(listening: socket.socket) -> None:
    clients = connected(listening, MANY)
    acceptor = Acceptor(listening, Counting, tls=None, handshake_s=1.0)
    acceptor._ready()

    with pytest.raises(BlockingIOError):
        listening.accept()
    await taken(MANY)
    end(clients, acceptor)
    await acceptor.wait_closed()


async def test_one_that_is_ahead_leaves_a_connection_to_the_others_for_a_while(
    listening: socket.socket,
) -> None:
    ahead = [False, True, True]
    acceptor = Acceptor(listening, Counting, tls=None, handshake_s=1.0, ahead=lambda: ahead.pop(0))
    clients = connected(listening, 1)
    await taken(1)
    clients += connected(listening, 2)
    await taken(3)

    assert not ahead
    end(clients, acceptor)


async def test_without_files_left_it_tries_again(
    listening: socket.socket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_PAUSE_S", 0.01)

    class Full:
        """A socket at which the system has no file left, once."""

        faults = 1

        def __getattr__(self, name: str) -> object:
            return getattr(listening, name)

        def accept(self) -> object:
            if Full.faults:
                Full.faults -= 1
                raise OSError(errno.EMFILE, "Too many open files")
            return listening.accept()

    acceptor = Acceptor(Full(), Counting, tls=None, handshake_s=1.0)  # type: ignore[arg-type]
    clients = connected(listening, 1)
    await taken(1)

    assert "Too many open files" in caplog.text
    with suppress(OSError):
        end(clients, acceptor)


async def test_closed_while_it_rests_it_takes_nothing(listening: socket.socket) -> None:
    acceptor = Acceptor(listening, Counting, tls=None, handshake_s=1.0, ahead=lambda: True)
    client = connected(listening, 1)
    acceptor._ready()
    end(client, acceptor)
    acceptor.close()
    await asyncio.sleep(0.01)

    assert Counting.made == 0


async def test_a_client_that_never_says_hello_is_let_go(listening: socket.socket) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    acceptor = Acceptor(listening, Counting, tls=context, handshake_s=0.05)
    reader, writer = await asyncio.open_connection(*listening.getsockname())

    async with asyncio.timeout(60):
        assert await reader.read() == b""

    writer.close()
    end([], acceptor)
