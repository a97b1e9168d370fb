"""What load balancers ask of a gateway, and how one that leaves has them go elsewhere."""

import asyncio

import pytest

from proxy.lifecycle import Lifecycle
from tests.proxy.test_connection import length, post, raw
from tests.proxy.test_keys import KEY, auth, bearer
from tests.proxy.wire import Backend, Running, begin, eventually, gateway, soon

pytestmark = pytest.mark.anyio


async def answered(
    running: Running, method: str, path: str, **fields: str
) -> tuple[int, dict[str, str], bytes]:
    async with running.client.request(method, running.url + path, headers=fields) as got:
        told = {name.lower(): value for name, value in got.headers.items()}
        return got.status, told, await got.read()


@pytest.mark.parametrize("path", ["/health", "/ready", "/version", "/v1/models", "/openapi.json"])
async def test_head_is_what_get_is_without_the_body(path: str) -> None:
    async with gateway(plain=[Backend()], auth=auth(KEY)) as running:
        for fields in ({}, bearer(KEY)):
            status, told, body = await answered(running, "GET", path, **fields)
            assert int(told["content-length"]) == len(body) > 0
            assert await answered(running, "HEAD", path, **fields) == (status, told, b"")
        async with raw(running) as client:  # nothing of a body, which the next answer begins with
            await client.send(b"HEAD /health HTTP/1.1\r\nhost: x\r\n\r\n" * 2)
            assert (await client.head()).startswith(b"HTTP/1.1 200")
            assert (await client.head()).startswith(b"HTTP/1.1 200")


async def test_head_of_metrics_and_of_what_has_no_get() -> None:
    async with gateway(plain=[Backend()]) as running:
        assert (await answered(running, "HEAD", "/metrics"))[::2] == (200, b"")
        status, told, _ = await answered(running, "HEAD", "/v1/chat/completions")
        assert (status, told["allow"]) == (405, "POST")
        assert (await answered(running, "HEAD", "/nowhere"))[0] == 404


@pytest.mark.parametrize("target", [b"/", b"*"])
async def test_options_of_the_server_ask_whether_it_is_ready(target: bytes) -> None:
    async with gateway(plain=[Backend()], auth=auth(KEY)) as running:
        for leaving, status in ((False, b"200"), (True, b"503")):
            running.app.lifecycle.leaving = leaving
            async with raw(running) as client:
                await client.send(b"OPTIONS " + target + b" HTTP/1.0\r\n\r\n")
                assert (await client.head()).split()[1] == status


async def test_one_that_leaves_takes_work_and_has_clients_connect_anew() -> None:
    async with gateway(plain=[Backend()]) as running, raw(running) as client:
        await client.send(post(length()))
        assert b"connection: close" not in await client.head()
        running.app.lifecycle.leaving = True
        async with raw(running) as other:
            await other.send(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            assert b"connection: close" in await other.all()
        async with raw(running) as other:
            await other.send(post(length()))
            answer = await other.all()
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in answer.partition(b"\r\n\r\n")[0]
        assert (await answered(running, "GET", "/ready"))[0] == 503
        assert running.count("turnout_draining") == 1


async def test_a_notice_ends_with_its_time_or_when_it_is_to_end_at_once() -> None:
    lifecycle, at_once = Lifecycle(), asyncio.Event()
    await soon(lifecycle.give_notice(0.001, at_once=at_once))
    notice = begin(lifecycle.give_notice(3600.0, at_once=at_once))
    await eventually(lambda: lifecycle.leaving, what="it leaves")
    assert not lifecycle.draining
    assert not notice.done()
    at_once.set()
    await soon(notice)
