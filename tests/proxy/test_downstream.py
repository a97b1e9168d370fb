"""The client's side: its body, its leaving, and how an answer ends."""

import pytest

from proxy.errors import BodyTooLarge, ClientGone, NoBackend, StreamBroken
from tests.proxy.pieces import Client, drive


async def test_a_body_is_put_together_from_its_pieces() -> None:
    client = Client(b"ab", b"cd", b"")

    assert await client.downstream.body(4, wait_s=30.0) == b"abcd"


async def test_a_body_over_the_limit_is_refused_by_its_length_alone() -> None:
    client = Client(headers=[(b"content-length", b"5")])

    with pytest.raises(BodyTooLarge, match="has 5 bytes or more"):
        await client.downstream.body(4, wait_s=30.0)


async def test_a_body_without_length_is_refused_once_it_is_over_the_limit() -> None:
    client = Client(b"abc", b"de", ends=False)

    with pytest.raises(BodyTooLarge):
        await client.downstream.body(4, wait_s=30.0)


async def test_a_client_that_leaves_amid_its_body_is_gone() -> None:
    client = Client(b"ab", ends=False)
    client.downstream.disconnected = True

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
    client.downstream.start(200, [(b"content-type", b"text/event-stream; charset=utf-8")])

    drive(client.downstream.break_off(StreamBroken("lost")))
    drive(client.downstream.break_off(StreamBroken("twice")))

    assert client.body.startswith(b'\n\ndata: {"error":{"message":"lost"')
    assert client.ended


def test_another_body_under_way_just_stops() -> None:
    client = Client()
    client.downstream.start(200, [(b"content-type", b"application/json")])

    drive(client.downstream.break_off(StreamBroken("lost")))

    assert client.body == b""
    assert not client.ended
