"""The client's side: its body, its leaving, and how an answer ends."""

import asyncio

import pytest

from proxy.downstream import Message, while_connected
from proxy.errors import BodyTooLarge, ClientGone, InvalidRequest, NoBackend, StreamBroken
from tests.proxy.pieces import Client, drive


def piece(body: bytes, *, more: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


async def test_a_body_is_put_together_from_its_pieces() -> None:
    client = Client(piece(b"ab", more=True), piece(b"cd", more=True), piece(b""))

    assert await client.downstream.body(4, wait_s=30.0) == b"abcd"


async def test_a_body_over_the_limit_is_refused_by_its_length_alone() -> None:
    client = Client(headers=[(b"content-length", b"5")])

    with pytest.raises(BodyTooLarge, match="has 5 bytes or more"):
        await client.downstream.body(4, wait_s=30.0)


async def test_a_body_without_length_is_refused_once_it_is_over_the_limit() -> None:
    client = Client(piece(b"abc", more=True), piece(b"de", more=True), piece(b"f" * 100))

    with pytest.raises(BodyTooLarge):
        await client.downstream.body(4, wait_s=30.0)


async def test_a_compressed_body_is_refused_by_name() -> None:
    client = Client(piece(b"x"), headers=[(b"content-encoding", b"gzip")])

    with pytest.raises(InvalidRequest, match="content-encoding 'gzip' is not supported"):
        await client.downstream.body(4, wait_s=30.0)


async def test_identity_is_no_compression() -> None:
    client = Client(piece(b"x"), headers=[(b"content-encoding", b"Identity")])

    assert await client.downstream.body(4, wait_s=30.0) == b"x"


async def test_a_client_that_leaves_amid_its_body_is_gone() -> None:
    client = Client(piece(b"ab", more=True))

    with pytest.raises(ClientGone):
        await client.downstream.body(4, wait_s=30.0)


def test_a_field_is_found_by_its_name() -> None:
    client = Client(headers=[(b"a", b" 1 "), (b"a", b"2")])

    assert client.downstream.header(b"a") == "1"
    assert client.downstream.header(b"b") is None


def test_an_error_is_answered_whole_with_its_fields() -> None:
    client = Client()

    drive(client.downstream.fail(NoBackend("none")))

    assert client.status == 503
    assert client.headers[b"retry-after"] == b"1"
    assert client.headers[b"content-length"] == str(len(client.body)).encode()
    assert client.ended


def test_an_event_stream_under_way_ends_in_an_event() -> None:
    client = Client()
    drive(client.downstream.start(200, [(b"content-type", b"text/event-stream; charset=utf-8")]))

    drive(client.downstream.break_off(StreamBroken("lost")))
    drive(client.downstream.break_off(StreamBroken("twice")))

    assert client.body.startswith(b'\n\ndata: {"error":{"message":"lost"')
    assert client.ended


def test_another_body_under_way_just_stops() -> None:
    client = Client()
    drive(client.downstream.start(200, [(b"content-type", b"application/json")]))

    drive(client.downstream.break_off(StreamBroken("lost")))

    assert client.body == b""
    assert not client.ended


# --- a client that may leave ----------------------------------------------------------------


class Leaving(Client):
    """A client that leaves when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.leaves = asyncio.Event()

    async def _receive(self) -> Message:
        await self.leaves.wait()
        return {"type": "http.disconnect"}


async def test_work_is_done_while_the_client_stays() -> None:
    async def work() -> str:
        await asyncio.sleep(0)
        return "done"

    assert await while_connected(Leaving().downstream, work()) == "done"


async def test_work_ends_when_the_client_leaves() -> None:
    client, ended = Leaving(), asyncio.Event()

    async def work() -> None:
        client.leaves.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.set()

    with pytest.raises(ClientGone):
        await while_connected(client.downstream, work())

    assert ended.is_set()


async def test_a_failure_of_the_work_comes_out_as_it_is() -> None:
    async def work() -> None:
        raise NoBackend("none")

    with pytest.raises(NoBackend, match="none"):
        await while_connected(Leaving().downstream, work())


async def test_a_client_that_leaves_with_its_whole_answer_is_not_gone() -> None:
    client = Leaving()

    async def work() -> str:
        await client.downstream.start(200, [])
        await client.downstream.write(b"all", more=False)
        client.leaves.set()
        await asyncio.sleep(0.01)
        return "done"

    assert await while_connected(client.downstream, work()) == "done"


async def test_a_cancellation_from_outside_is_one() -> None:
    begun = asyncio.Event()

    async def work() -> None:
        begun.set()
        await asyncio.Event().wait()

    async with asyncio.TaskGroup() as group:
        task = group.create_task(while_connected(Leaving().downstream, work()))
        await begun.wait()
        task.cancel()

    assert task.cancelled()
