"""Connections to backends: what travels, how long is waited, what is lost and tried elsewhere."""

import asyncio
import errno
import json
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trustme

from config.settings import Timeouts
from proxy.app import create_app
from proxy.links import Link, Links, authorities
from tests.proxy import streams
from tests.proxy.scripted import fleet
from tests.proxy.wire import (
    ASKED,
    EVENTS,
    JSON,
    STREAMED,
    Backend,
    Call,
    Running,
    answers,
    begin,
    chat_body,
    eventually,
    gateway,
    rejects,
    resets,
    soon,
)

BODY = chat_body()


async def aborts(call: Call) -> None:
    """Answer as a dying vLLM does: status 200, nothing in it."""
    if b'"stream":true' in call.body:
        await call.stream(streams.role(), streams.text("", "abort"), streams.DONE)
        await call.end()
    else:
        await call.answer(chat_body("", "abort"))


async def aborts_half_done(call: Call) -> None:
    await call.answer(chat_body("half of", "abort"))


async def errs_first(call: Call) -> None:
    await call.stream(streams.error() + streams.DONE)
    await call.end()


async def cuts_the_body(call: Call) -> None:
    await call.head(200, JSON, length=len(BODY))
    await call.send(BODY[:10])
    call.cut()


async def cuts_chunks(call: Call) -> None:
    await call.head(200, JSON)
    await call.send(BODY[:10])
    call.writer.close()


async def cuts_before_output(call: Call) -> None:
    await call.stream(streams.role())
    call.cut()


async def talks_nonsense(call: Call) -> None:
    await call.raw(b"SSH-2.0-OpenSSH_9.9\r\n")
    call.writer.close()


async def hangs(call: Call) -> None:
    await call.gone.wait()


# --- failures before anything went out ------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "asked", "cause"),
    [
        (resets, ASKED, "backend_unreachable"),
        (resets, STREAMED, "backend_unreachable"),
        (talks_nonsense, ASKED, "backend_unreachable"),
        (cuts_the_body, ASKED, "backend_unreachable"),
        (cuts_chunks, ASKED, "backend_unreachable"),
        (cuts_before_output, STREAMED, "backend_unreachable"),
        (aborts, ASKED, "backend_aborted"),
        (aborts, STREAMED, "backend_aborted"),
        (aborts_half_done, ASKED, "backend_aborted"),
        (errs_first, STREAMED, "engine_died"),
    ],
)
async def test_an_answer_lost_before_its_first_byte_comes_from_elsewhere(
    script: Any, asked: Any, cause: str
) -> None:
    spec, plain = Backend(script, speculates=True), Backend()
    async with gateway(spec=[spec], plain=[plain]) as running:
        status, body, headers = await running.ask(asked)

        assert status == 200
        expected = BODY if asked is ASKED else b"".join(streams.CHAT) + streams.DONE
        assert body == expected
        assert headers["x-turnout-pool"] == "plain"
        await running.settled(finished=1)
        assert running.count("turnout_retries_total", cause=cause) == 1
        assert (len(spec.calls), len(plain.calls)) == (1, 1)


async def refuse(running: Running, *backends: Backend) -> None:
    """Make connections to these be refused."""
    for backend in backends:
        await backend.kill()


async def test_refused_connections_are_tried_on_two_further_backends() -> None:
    dead, alive = [Backend(speculates=True), Backend(speculates=True)], Backend()
    async with gateway(spec=dead, plain=[alive]) as running:
        await refuse(running, *dead)

        status, _, headers = await running.ask()

        assert status == 200
        assert headers["x-turnout-pool"] == "plain"
        await running.settled(finished=1)
        assert running.count("turnout_retries_total") == 2
        members = running.app.fleet.members
        assert not any(members[backend.name].load.healthy for backend in dead)


async def test_a_gateway_without_a_socket_left_takes_no_backend_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dial = Links.dial
    spec, plain = Backend(speculates=True), Backend()

    async def full(links: Links) -> Link:
        if links.place.port == spec.port:
            raise OSError(errno.EMFILE, "Too many open files")
        return await dial(links)

    monkeypatch.setattr(Links, "dial", full)
    async with gateway(spec=[spec], plain=[plain]) as running:
        status, _, headers = await running.ask()

        assert (status, headers["x-turnout-pool"]) == (200, "plain")
        assert running.app.fleet.members[spec.name].load.healthy


async def test_a_fourth_backend_is_not_tried() -> None:
    dead, alive = [Backend(speculates=True) for _ in range(3)], Backend()
    async with gateway(spec=dead, plain=[alive]) as running:
        await refuse(running, *dead)

        status, body, _ = await running.ask()

        assert status == 502
        assert "no connection to backend" in json.loads(body)["error"]["message"]
        await running.settled(failed=1)
        assert alive.calls == []

        status, _, _ = await running.ask()  # they are known to be down by then

        assert status == 200


async def test_a_request_that_two_backends_died_of_is_not_given_a_third() -> None:
    deadly = [Backend(resets, speculates=True), Backend(resets, speculates=True)]
    third = Backend()
    async with gateway(spec=deadly, plain=[third]) as running:
        status, body, _ = await running.ask()

        assert status == 502
        assert json.loads(body)["error"]["type"] == "backend_unreachable"
        await running.settled(failed=1)
        assert third.calls == []
        assert all(member.load.healthy for member in running.app.fleet.members.values())


async def test_with_no_backend_left_the_last_failure_is_told() -> None:
    async with gateway(spec=[Backend(aborts, speculates=True)]) as running:
        status, body, _ = await running.ask()

        assert status == 502
        assert json.loads(body)["error"]["type"] == "backend_aborted"
        await running.settled(failed=1)


async def test_no_healthy_backend_is_a_503() -> None:
    spec = Backend(speculates=True)
    async with gateway(spec=[spec]) as running:
        running.app.fleet.members[spec.name].load.healthy = False

        status, body, headers = await running.ask()

        assert (status, headers["retry-after"]) == (503, "1")
        assert json.loads(body)["error"]["type"] == "no_backend"
        await running.settled(refused=1)


async def test_an_idle_connection_that_a_backend_closed_is_not_used_again() -> None:
    spec = Backend(speculates=True)
    async with gateway(spec=[spec]) as running:
        await running.ask()
        await running.settled(finished=1)
        spec.calls[0].writer.close()
        await spec.calls[0].writer.wait_closed()
        await eventually(lambda: not kept(running), what="the gateway sees it closed")

        status, _, _ = await running.ask()

        assert status == 200
        assert running.count("turnout_retries_total") == 0


async def test_a_connection_that_is_closed_as_it_is_used_again_is_no_loss() -> None:
    """The backend's end of it and the request may pass each other on the wire."""
    spec = Backend(speculates=True)
    async with gateway(spec=[spec]) as running:
        await running.ask()
        await running.settled(finished=1)
        cuts = iter([resets, answers])

        async def once(call: Call) -> None:
            await next(cuts)(call)

        spec.script = once

        assert (await running.ask())[0] == 200

        assert [len({call.one(b"x-request-id") for call in spec.calls}), len(spec.calls)] == [2, 3]
        await running.settled(finished=2)
        assert running.count("turnout_upstream_errors_total") == 0


async def test_a_backend_that_dies_of_a_request_on_a_connection_used_again_counts_as_dead() -> (
    None
):
    deadly = [Backend(speculates=True), Backend(speculates=True)]
    third = Backend()

    async def waits_for_both(call: Call) -> None:
        await asyncio.gather(*(backend.called() for backend in deadly))
        await answers(call)

    async def dies(call: Call) -> None:
        next(each for each in deadly if call in each.calls)._server.close()
        call.cut()

    async with gateway(spec=deadly, plain=[third]) as running:
        for backend in deadly:
            backend.script = waits_for_both
        await asyncio.gather(running.ask(), running.ask())
        for backend in deadly:
            backend.script = dies

        status, _, _ = await running.ask()

        assert status == 502
        assert [len(backend.calls) for backend in (*deadly, third)] == [2, 2, 0]


async def test_a_request_is_tried_elsewhere_if_no_new_connection_comes_in_time_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dial = Links.dial
    spec, plain = Backend(speculates=True), Backend()
    waits = {"connect_s": 0.2}
    async with gateway(spec=[spec], plain=[plain], timeouts=waits) as running:
        await running.ask()
        spec.script = resets

        async def hangs_for_spec(links: Links) -> Link:
            if links.place.port == spec.port:
                await asyncio.Event().wait()
            return await dial(links)

        monkeypatch.setattr(Links, "dial", hangs_for_spec)

        status, _, headers = await running.ask()

        assert (status, headers["x-turnout-pool"]) == (200, "plain")


async def test_a_backend_that_is_removed_while_a_connection_is_made_serves_its_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dial = Links.dial
    spec, plain = Backend(speculates=True), Backend()
    async with gateway(spec=[spec], plain=[plain]) as running:

        async def slowly(links: Links) -> Link:
            link = await dial(links)
            running.reload(spec=None, policy="plain_only")
            return link

        monkeypatch.setattr(Links, "dial", slowly)

        assert (await running.ask())[0] == 200

        await running.settled(finished=1)
        assert len(spec.calls) == 1


def kept(running: Running) -> list[Link]:
    """Return the connections that the gateway keeps to backends."""
    upstream = running.app.pipeline._upstream
    return [link for links in upstream._links.values() for link in links._idle if link.usable]


async def test_connections_are_used_again() -> None:
    spec = Backend(speculates=True)
    async with gateway(spec=[spec]) as running:
        for asked in (ASKED, STREAMED, ASKED):
            await running.ask(asked)
        await running.settled(finished=3)

        assert len({call.writer.get_extra_info("peername") for call in spec.calls}) == 1


# --- waits ----------------------------------------------------------------------------------


async def test_a_first_byte_that_does_not_come_is_a_504_naming_the_wait() -> None:
    spec, waits = Backend(hangs, speculates=True), {"first_byte_s": 0.2, "prompt_token_s": 0.1}
    async with gateway(spec=[spec], timeouts=waits) as running:
        status, body, _ = await running.ask()

        assert status == 504  # "hello" is about a token and a quarter
        assert "no byte of an answer for 0.325 s (first_byte_s)" in body.decode()
        await soon((await spec.called()).gone.wait())
        await running.settled(failed=1)
        assert running.count("turnout_upstream_errors_total", kind="first_byte_timeout") == 1


async def test_a_first_byte_that_does_not_come_is_awaited_elsewhere_once() -> None:
    spec, plain = Backend(hangs, speculates=True), [Backend() for _ in range(2)]
    waits = {"first_byte_s": 0.2}
    async with gateway(spec=[spec], plain=plain, timeouts=waits) as running:
        assert (await running.ask())[0] == 200
        for backend in plain:
            backend.script = hangs

        assert (await running.ask())[0] == 504

        assert len(spec.calls) + sum(len(backend.calls) for backend in plain) == 4
        await running.settled(finished=1, failed=1)


async def test_a_longer_prompt_may_take_longer_to_begin() -> None:
    async def late(call: Call) -> None:
        await asyncio.sleep(0.4)
        await answers(call)

    asked = {**ASKED, "messages": [{"role": "user", "content": "x " * 4000}]}
    waits = {"first_byte_s": 0.1, "prompt_token_s": 0.001}
    async with gateway(spec=[Backend(late, speculates=True)], timeouts=waits) as running:
        assert (await running.ask(asked))[0] == 200
        assert (await running.ask())[0] == 504


async def test_a_request_has_so_long_and_no_longer_over_all_tries() -> None:
    async def drips(call: Call) -> None:
        await call.stream(*streams.CHAT[:2])
        while not call.gone.is_set():
            await call.send(streams.text("x"))
            await asyncio.sleep(0.05)

    spec = Backend(drips, speculates=True)
    async with gateway(spec=[spec], timeouts={"total_s": 0.4}) as running:
        _, body, _ = await running.ask(STREAMED)

        assert b"(timeouts.total_s)" in body
        await soon((await spec.called()).gone.wait())
        await running.settled(broken=1)
        assert running.count("turnout_upstream_errors_total", kind="total_timeout") == 1


async def test_its_time_is_over_in_the_queue_too() -> None:
    spec, plain = Backend(rejects(503), speculates=True), Backend(hangs)
    one: dict[str, Any] = {"max_in_flight": 1}
    async with gateway(spec=[spec], plain=[plain], each_pool=one) as running:
        other = begin(running.ask(x_turnout_pool="plain"))
        await plain.called()
        running.reload(timeouts={"total_s": 0.3})

        status, body, _ = await running.ask()  # refused by one, it waits for the other

        assert (status, b"(timeouts.total_s)" in body) == (504, True)
        assert running.count("turnout_queue_length") == 0.0
        other.cancel()
        await running.settled(failed=1, cancelled=1)


async def test_a_streams_head_is_not_yet_its_first_byte() -> None:
    async def heads(call: Call) -> None:
        await call.head(200, EVENTS)
        await call.gone.wait()

    waits = {"first_byte_s": 0.3, "between_chunks_s": 0.05}
    async with gateway(spec=[Backend(heads, speculates=True)], timeouts=waits) as running:
        status, body, _ = await running.ask(STREAMED)

        assert status == 504
        assert "(first_byte_s)" in body.decode()
        await running.settled(failed=1)


async def test_a_body_that_stops_is_a_504_naming_the_wait() -> None:
    async def stops(call: Call) -> None:
        await call.head(200, JSON, length=100)
        await call.send(b"{")
        await call.gone.wait()

    waits = {"between_chunks_s": 0.2}
    async with gateway(spec=[Backend(stops, speculates=True)], timeouts=waits) as running:
        status, body, _ = await running.ask()

        assert status == 504
        assert "stopped amid its answer for 0.2 s (between_chunks_s)" in body.decode()
        await running.settled(failed=1)


async def test_a_stream_that_stops_ends_in_an_error_event_naming_the_wait() -> None:
    async def stops(call: Call) -> None:
        await call.stream(*streams.CHAT[:2])
        await call.gone.wait()

    spec, waits = Backend(stops, speculates=True), {"between_chunks_s": 0.2}
    async with gateway(spec=[spec], timeouts=waits) as running:
        status, body, _ = await running.ask(STREAMED)

        assert status == 200
        assert body.startswith(streams.CHAT[0] + streams.CHAT[1])
        assert b"(between_chunks_s)" in body
        await soon(spec.calls[0].gone.wait())
        await running.settled(broken=1)


@pytest.fixture
def deaf() -> Iterator[str]:
    """The URL of a host that drops connection requests, as one that is gone does.

    Its backlog is full.
    """
    with socket.socket() as listener, socket.socket() as one, socket.socket() as other:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for filler in (one, other):
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


async def test_a_connection_that_is_not_made_in_time_is_tried_elsewhere(deaf: str) -> None:
    spec, plain = Backend(speculates=True), Backend()
    async with gateway(spec=[spec], plain=[plain], timeouts={"connect_s": 0.2}) as running:
        running.app.fleet.members[spec.name].url = deaf

        status, _, headers = await running.ask()

        assert (status, headers["x-turnout-pool"]) == (200, "plain")


async def test_a_connection_that_is_slow_leaves_the_backend_to_the_health_checks(
    deaf: str,
) -> None:
    """A gateway that stalls for `connect_s` runs into it with every backend at once."""
    spec, plain = Backend(speculates=True), Backend()
    async with gateway(spec=[spec], plain=[plain], timeouts={"connect_s": 0.2}) as running:
        running.app.fleet.members[spec.name].url = deaf

        await running.ask()

        assert running.app.fleet.members[spec.name].load.healthy


async def test_a_connection_that_is_made_nowhere_is_a_504_naming_the_wait(deaf: str) -> None:
    plain = Backend()
    async with gateway(plain=[plain], timeouts={"connect_s": 0.2}) as running:
        running.app.fleet.members[plain.name].url = deaf

        status, body, _ = await running.ask()

        assert status == 504
        assert "in 0.2 s (connect_s)" in body.decode()
        await running.settled(failed=1)


# --- sockets --------------------------------------------------------------------------------


def sends_at_once(transport: Any) -> bool:
    option = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    return bool(option)


async def test_small_writes_leave_at_once_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without TCP_NODELAY a chunk waits for the acknowledgement of the last: 40 ms on Linux."""
    spec, accepted = Backend(speculates=True), []
    async with gateway(spec=[spec]) as running:
        handle = running.app.pipeline.handle

        async def noting(downstream: Any) -> None:
            accepted.append(downstream._socket)
            await handle(downstream)

        monkeypatch.setattr(running.app.pipeline, "handle", noting)
        async with running.post():
            (made,) = [link._transport for link in kept(running)]

            assert sends_at_once(made)
            assert sends_at_once(accepted[0])


async def test_further_connections_are_opened_by_other_settings(deaf: str) -> None:
    plain = Backend()
    async with gateway(plain=[plain]) as running:
        running.app.fleet.members[plain.name].url = deaf
        upstream = running.app.pipeline._upstream

        upstream.configure(Timeouts(connect_s=0.1), pass_keys=True)

        status, body, _ = await running.ask()
        assert (status, b"in 0.1 s (connect_s)" in body) == (504, True)


async def test_requests_and_probes_trust_the_same_authorities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, serving = trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(serving)
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    authorities.cache_clear()
    targets: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            targets.append((await reader.readuntil(b"\r\n\r\n")).split(b" ")[1])
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=serving)
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    app = create_app(fleet({"name": "p", "backends": [url], "model": "m"}).settings)
    async with app.api.router.lifespan_context(app.api):
        up = [member.up for member in app.fleet.members.values()]
        (await Links(url).dial()).close("it was made")
    server.close()
    authorities.cache_clear()

    assert up == [True]
    assert b"/health" in targets
