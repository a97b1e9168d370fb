"""A config that changes under a gateway that serves: what applies, what stays, what is refused."""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from config.loading import load
from proxy.errors import BackendUnreachable
from proxy.keys import digest
from proxy.reloading import FileWatch, Source
from routing.pools import Speculation
from tests.proxy.streams import CHAT
from tests.proxy.wire import (
    ASKED,
    EVENTS,
    STREAMED,
    Backend,
    Call,
    Running,
    answers,
    begin,
    eventually,
    gateway,
    soon,
)

pytestmark = pytest.mark.anyio

OFTEN_S = 0.02
EAGER = {"health_interval_s": 0.02, "scrape_interval_s": 0.05}


def held(go: asyncio.Event) -> Callable[[Call], Any]:
    """Return a script that begins a stream and ends it when told."""

    async def script(call: Call) -> None:
        await call.head(200, EVENTS)
        await call.send(CHAT[0])
        await call.send(CHAT[1])
        await go.wait()
        for event in (*CHAT[2:], b"data: [DONE]\n\n"):
            await call.send(event)
        await call.end()

    return script


async def is_up(running: Running, backend: Backend) -> None:
    fleet = running.app.fleet
    await eventually(
        lambda: backend.name in fleet.members and fleet.members[backend.name].load.healthy,
        what=f"{backend.name} is up",
    )


# Backends and pools


async def test_a_backend_that_is_added_is_probed_and_gets_requests() -> None:
    first, second = Backend(), Backend()
    async with gateway(plain=[first], spare=[second]) as running:
        running.reload(plain={"backends": [second.url]})
        await is_up(running, second)

        _, _, headers = await running.ask()

        assert headers["x-turnout-backend"] == second.name
        assert not first.calls
        assert list(running.app.fleet.members) == [second.name]
        shown = {"pool": "plain", "kind": "chunk_timeout"}
        series = {
            sample.labels["backend"]
            for family in running.registry.collect()
            for sample in family.samples
            if sample.name == "turnout_upstream_errors_total"
            and shown.items() <= sample.labels.items()
        }
        assert series == {second.name}


async def test_a_request_waits_for_the_first_probe_of_what_takes_the_place_of_others() -> None:
    first, second = Backend(), Backend()
    async with gateway(plain=[first], spare=[second]) as running:
        running.reload(plain={"backends": [second.url]})
        assert not running.app.fleet.members[second.name].load.healthy

        status, _, headers = await soon(running.ask(), within_s=5.0)

        assert (status, headers["x-turnout-backend"]) == (200, second.name)


async def test_a_request_waits_no_longer_than_it_takes_to_find_that_nobody_is_there() -> None:
    first, gone = Backend(), Backend()
    async with gateway(plain=[first], spare=[gone]) as running:
        gone.probed.die()
        running.reload(plain={"backends": [gone.url]})

        status, body, _ = await soon(running.ask(), within_s=5.0)

        assert (status, b"no healthy backend" in body) == (503, True)
        await running.settled(refused=1)


async def test_a_backend_that_is_removed_finishes_what_it_has() -> None:
    go = asyncio.Event()
    first, second = Backend(held(go)), Backend()
    async with gateway(plain=[first], spare=[second]) as running:
        async with running.post(STREAMED) as response:
            running.reload(plain={"backends": [second.url]})
            await is_up(running, second)
            assert running.count("turnout_in_flight", backend=first.name) == 0.0
            _, _, headers = await running.ask()
            assert headers["x-turnout-backend"] == second.name
            go.set()
            assert (await soon(response.read())).endswith(b"data: [DONE]\n\n")
        await running.settled(finished=2)


async def test_what_stays_is_the_same_with_all_that_is_known_of_it() -> None:
    go = asyncio.Event()
    first, second = Backend(held(go)), Backend()
    async with gateway(plain=[first], spare=[second]) as running:
        (member,) = running.app.fleet.members.values()
        (pool,) = running.app.fleet.pools
        async with running.post(STREAMED) as response:
            running.reload(plain={"backends": [second.url, first.url], "max_in_flight": 7})

            assert running.app.fleet.members[first.name] is member
            assert running.app.fleet.pools[0] is pool
            assert (member.load.in_flight, pool.max_in_flight) == (1, 7)
            go.set()
            await soon(response.read())
        await running.settled(finished=1)
        assert member.load.in_flight == 0


async def test_a_pool_that_comes_is_served_and_one_that_goes_is_not() -> None:
    spec, plain = Backend(speculates=True), Backend()
    async with gateway(spec=[spec], plain=[plain]) as running:
        running.reload(plain=None)
        status, body, _ = await running.ask(x_turnout_pool="plain")
        assert (status, b"does not serve this model" in body) == (400, True)
        assert running.count("turnout_pool_info", pool="plain") == 0.0

        running.reload()
        await is_up(running, plain)
        _, _, headers = await running.ask(x_turnout_pool="plain")
        assert headers["x-turnout-pool"] == "plain"


async def test_no_request_is_lost_while_backends_come_and_go() -> None:
    first, second, third = Backend(), Backend(), Backend()
    async with gateway(plain=[first, second], spare=[third], probes=EAGER) as running:
        pairs = [(first, second), (second, third), (third, first)]
        stop = asyncio.Event()
        statuses: list[int] = []

        async def asks() -> None:
            while not stop.is_set():
                statuses.append((await running.ask(STREAMED))[0])

        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(asks())
            for turn in range(12):
                pair = pairs[turn % 3]
                running.reload(plain={"backends": [each.url for each in pair]})
                await is_up(running, pair[0])
                await is_up(running, pair[1])
                await asyncio.sleep(0.02)
            stop.set()

        assert set(statuses) == {200}
        assert third.calls
        await running.settled(finished=len(statuses))


async def test_what_waits_is_served_by_a_backend_that_comes() -> None:
    go = asyncio.Event()
    first, second = Backend(held(go)), Backend()
    async with (
        gateway(plain=[first], spare=[second], each_pool={"max_in_flight": 1}) as running,
        running.post(STREAMED),
    ):
        waiting = begin(running.ask())
        await eventually(lambda: running.count("turnout_queue_length") == 1.0, what="it waits")

        running.reload(plain={"backends": [first.url, second.url]})

        _, _, headers = await soon(waiting)
        assert headers["x-turnout-backend"] == second.name
        go.set()


async def test_what_waits_is_served_by_a_pool_that_comes() -> None:
    go = asyncio.Event()
    spec, plain = Backend(held(go), speculates=True), Backend()
    pool = {"name": "new", "model": "m", "speculation": "none"}
    async with (
        gateway(spec=[spec], spare=[plain], each_pool={"max_in_flight": 1}) as running,
        running.post(STREAMED),
    ):
        waiting = begin(running.ask())
        await eventually(lambda: running.count("turnout_queue_length") == 1.0, what="it waits")

        new = {**pool, "backends": [plain.url]}
        running.reload(pools=[*running.config["pools"], new])

        _, _, headers = await soon(waiting)
        assert headers["x-turnout-pool"] == "new"
        go.set()


async def test_what_waits_for_a_pool_that_goes_is_told_at_once() -> None:
    go = asyncio.Event()
    spec = Backend(held(go), speculates=True)
    other = Backend()
    async with gateway(spec=[spec], plain=[other], each_pool={"max_in_flight": 1}) as running:
        async with running.post(STREAMED) as response:
            waiting = begin(running.ask(x_turnout_pool="spec"))
            await eventually(lambda: running.count("turnout_queue_length") == 1.0, what="it waits")

            running.reload(spec=None)

            status, _, _ = await soon(waiting, within_s=2.0)
            assert status == 400
            go.set()
            assert (await soon(response.read())).endswith(b"data: [DONE]\n\n")
        await running.settled(finished=1, client_error=1)


async def test_a_refusal_of_a_backend_that_was_removed_meanwhile_is_tried_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = Backend(), Backend()
    async with gateway(spec=[first], plain=[second], policy="spec_only") as running:
        upstream = running.app.pipeline._upstream
        send = upstream.send

        async def refuses(member: Any, patience: Any, **given: Any) -> Any:
            if member.name != first.name:
                return await send(member, patience, **given)
            running.reload(spec=None)
            raise BackendUnreachable("nobody is there", connected=False, refused=True)

        monkeypatch.setattr(upstream, "send", refuses)

        status, _, headers = await running.ask()

        assert (status, headers["x-turnout-backend"]) == (200, second.name)


async def test_a_pool_declared_to_be_another_is_forgotten_and_found_out_anew() -> None:
    spec = Backend(speculates=True)
    async with gateway(spec=[spec], plain=[Backend()], probes=EAGER) as running:
        learner = running.app.pipeline._router.learner
        pool, plain = running.app.fleet.pools
        for each in (pool, plain):
            learner.stepped(each, each.backends[0], 0.03, in_flight=1, now=0.0, count=50)

        running.reload(spec={"speculation": "auto", "k": None})

        assert [key[0] for key in learner.steps.sums] == ["plain"]
        assert pool.speculation is Speculation.NGRAM  # until its servers tell otherwise
        await eventually(lambda: pool.k == 5, what="k is asked")
        member = running.app.fleet.members[spec.name]
        await eventually(lambda: member.reached, what="it is learnt")
        assert member.load.healthy


# Settings


async def test_settings_apply_to_the_next_request() -> None:
    spec, plain = Backend(speculates=True), Backend()
    async with gateway(spec=[spec], plain=[plain]) as running:

        async def asked(body: Any = None, **headers: str) -> tuple[int, str | None]:
            status, _, found = await running.ask(body, **headers)
            return status, found.get("x-turnout-pool")

        assert await asked() == (200, "spec")
        running.reload(policy="plain_only")
        assert await asked() == (200, "plain")
        running.reload(thresholds={"max_temperature": 0.3})
        assert await asked({**ASKED, "temperature": 0.5}) == (200, "plain")
        running.reload(listen={"max_body_bytes": 10})
        assert await asked() == (413, None)
        running.reload(allow_pinning=False)
        assert (await asked(x_turnout_pool="plain"))[0] == 400
        running.reload(models=[{"name": "m", "aliases": ["fast"]}])
        assert await asked({**ASKED, "model": "fast"}) == (200, "spec")
        running.reload(auth={"keys": [{"name": "a", "sha256": digest("secret")}]})
        assert (await asked())[0] == 401
        assert await asked(authorization="Bearer secret") == (200, "spec")
        running.reload(extra_routes=["POST /v1/load_lora_adapter"])
        status, _, _ = await running.ask(path="/v1/load_lora_adapter")
        assert status == 200
        running.reload()
        status, _, _ = await running.ask(path="/v1/load_lora_adapter")
        assert status == 404
        running.reload(shadow="plain_only")
        await asked()
        await eventually(
            lambda: running.count("turnout_shadow_decisions_total") == 1.0, what="it is shadowed"
        )


async def test_waits_and_limits_apply_to_the_next_request() -> None:
    async def silent(call: Call) -> None:
        await call.gone.wait()

    async with gateway(spec=[Backend(silent, speculates=True)]) as running:
        running.reload(timeouts={"total_s": 0.05})
        assert (await running.ask())[0] == 504
        running.reload(spec={"max_in_flight": 1}, queue={"size": 0})
        stuck = begin(running.ask())
        await eventually(lambda: running.in_flight == 1, what="one is there")
        assert (await running.ask())[0] == 429
        stuck.cancel()


async def test_a_key_that_stays_keeps_what_it_has_under_way() -> None:
    go = asyncio.Event()
    key = {"name": "a", "sha256": digest("secret")}
    bearer = {"authorization": "Bearer secret"}
    async with gateway(spec=[Backend(held(go))], auth={"keys": [key]}) as running:
        async with running.post(STREAMED, **bearer) as response:
            running.reload(auth={"keys": [{**key, "max_in_flight": 1}]})
            assert (await running.ask(**bearer))[0] == 429
            go.set()
            await soon(response.read())
        await eventually(lambda: running.in_flight == 0, what="it has ended")
        assert (await running.ask(**bearer))[0] == 200


async def test_what_needs_a_restart_stays_and_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with gateway(spec=[Backend()]) as running:
        running.reload(
            listen={"host": "0.0.0.0", "port": 1},
            learning={"state_file": tmp_path / "learnt", "save_interval_s": 5},
        )

        applied = running.app.settings
        assert (applied.listen.host, applied.listen.port) == ("127.0.0.1", 8080)
        assert applied.learning.state_file is None
        assert applied.learning.save_interval_s == 5
        for key in ("listen.host", "listen.port", "learning.state_file"):
            assert f"{key} was changed: it needs a restart" in caplog.text


async def test_a_reload_has_the_gateway_learn_again() -> None:
    async with gateway(spec=[Backend()]) as running:
        learner = running.app.pipeline._router.learner
        learner.paused = True

        running.reload()

        assert not learner.paused


# Files


def written(file: Path, running: Running, **given: Any) -> None:
    """Write the config of `running`, with changes, as people write it."""
    settings = running.changed(**given).model_dump(mode="json", exclude_unset=True)
    file.write_text(yaml.safe_dump(settings))


def outcome(running: Running, which: str) -> float:
    return running.count("turnout_config_reloads_total", outcome=which)


async def test_a_file_that_changes_is_read_again_and_one_that_is_not_valid_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text("")
    seams = {
        "source": Source(file=file, read=partial(load, file, environ={})),
        "watched_every_s": OFTEN_S,
    }
    async with gateway(spec=[Backend(speculates=True)], plain=[Backend()], seams=seams) as running:
        with caplog.at_level(logging.INFO, logger="turnout"):
            written(file, running, policy="plain_only")
            await eventually(lambda: outcome(running, "applied") == 1.0, what="it is read")
            assert (await running.ask())[2]["x-turnout-pool"] == "plain"
            assert running.count("turnout_config_last_reload_ok") == 1.0

            file.write_text("policy: fastest")
            await eventually(lambda: outcome(running, "refused") == 1.0, what="it is refused")
            assert (await running.ask())[2]["x-turnout-pool"] == "plain"
            assert running.count("turnout_config_last_reload_ok") == 0.0
            assert f"{file}:1: policy: " in caplog.text

            written(file, running)
            await eventually(lambda: outcome(running, "applied") == 2.0, what="it is mended")
            assert running.count("turnout_config_last_reload_ok") == 1.0
            assert "the config was read again and applies" in caplog.text


async def test_who_asks_has_the_config_read_again(caplog: pytest.LogCaptureFixture) -> None:
    seams: dict[str, Any] = {"watched_every_s": 3600.0}
    async with gateway(spec=[Backend()], seams=seams) as running:
        running.app.reloader.ask()
        await eventually(lambda: "no config to read again" in caplog.text, what="it is said")
    changed: list[Any] = []
    seams["source"] = Source(file=None, read=lambda: changed[0])
    async with gateway(spec=[Backend()], plain=[Backend()], seams=seams) as running:
        changed.append(running.changed(policy="plain_only"))
        running.app.reloader.ask()
        await eventually(lambda: outcome(running, "applied") == 1.0, what="it is read")
        assert (await running.ask())[2]["x-turnout-pool"] == "plain"

        changed.clear()
        running.app.reloader.ask()
        await eventually(lambda: outcome(running, "refused") == 1.0, what="a defect is survived")
        assert (await running.ask())[0] == 200


async def test_a_file_of_backends_is_watched_too(tmp_path: Path) -> None:
    file, listed = tmp_path / "gateway.yaml", tmp_path / "backends"
    first, second = Backend(), Backend()
    listed.write_text("# none yet\n")
    file.write_text("")
    seams = {
        "source": Source(file=file, read=partial(load, file, environ={})),
        "watched_every_s": OFTEN_S,
    }
    async with gateway(plain=[first], spare=[second], seams=seams) as running:
        pool = {"backends": [], "backends_file": str(listed)}
        written(file, running, plain=pool)
        await eventually(lambda: outcome(running, "refused") == 1.0, what="an empty one is no")
        assert list(running.app.fleet.members) == [first.name]

        listed.write_text(f"{second.url}  # the new one\n")
        await eventually(lambda: outcome(running, "applied") == 1.0, what="it is read")
        await is_up(running, second)
        assert list(running.app.fleet.members) == [second.name]

        listed.write_text(f"{second.url}\n{first.url}/\n")
        await is_up(running, first)


def test_a_file_is_read_when_it_has_stopped_changing(tmp_path: Path) -> None:
    file, other = tmp_path / "a", tmp_path / "b"
    file.write_text("1")
    watch = FileWatch([file, other])

    assert not watch.changed()
    file.write_text("12")
    assert not watch.changed()
    file.write_text("123")
    assert not watch.changed()
    assert watch.changed()
    assert not watch.changed()
    other.write_text("1")
    assert not watch.changed()
    assert watch.changed()
    file.write_text("1234")
    watch.seen()
    assert not watch.changed()
    assert not watch.changed()
    other.unlink()
    watch.watch([other])
    assert not watch.changed()
    assert watch.changed()


# Names


async def test_a_name_is_a_backend_at_each_of_its_addresses(
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = Backend()
    known: dict[str, list[str]] = {"plain.internal": ["127.0.0.1"]}

    async def resolver(name: str, port: int) -> list[str]:
        del port
        if not known[name]:
            raise OSError("no such name")
        return known[name]

    async with first:
        url = f"dns+http://plain.internal:{first.port}"
        probes = {"resolve_interval_s": OFTEN_S, "health_interval_s": 0.02}
        async with gateway(
            spec=[Backend()],
            pools=[{"name": "plain", "backends": [url], "model": "m", "speculation": "none"}],
            probes=probes,
            seams={"resolver": resolver},
        ) as running:
            members = running.app.fleet
            assert list(members.members) == [first.name]

            known["plain.internal"] = ["127.0.0.1", "::1"]
            await eventually(lambda: len(members.members) == 2, what="it has come")
            assert list(members.members) == [first.name, f"[::1]:{first.port}"]
            known["plain.internal"] = []
            failures = "turnout_discovery_failures_total"
            await eventually(lambda: running.count(failures, pool="plain") > 1.0, what="it fails")
            assert len(members.members) == 2
            assert caplog.text.count("no address of plain.internal, of pool plain") == 1
            known["plain.internal"] = ["127.0.0.1"]
            await eventually(lambda: len(members.members) == 1, what="it has gone")


async def test_a_defect_in_looking_names_up_is_survived(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[int] = []

    async def resolver(name: str, port: int) -> list[str]:
        del name
        calls.append(port)
        if len(calls) == 2:
            raise RuntimeError("a defect")
        return ["127.0.0.1"]

    async with gateway(
        spec=[Backend()],
        pools=[{"name": "plain", "backends": ["dns+http://n:1"], "model": "m"}],
        probes={"resolve_interval_s": OFTEN_S},
        seams={"resolver": resolver},
    ):
        await eventually(lambda: len(calls) > 3, what="it goes on")
    assert "could not be looked up" in caplog.text


async def test_answers_are_unaffected_by_a_reload_that_changes_nothing() -> None:
    async with gateway(spec=[Backend(answers)]) as running:
        before = running.app.fleet.members
        running.reload()
        assert list(running.app.fleet.members.items()) == list(before.items())
        assert (await running.ask())[0] == 200
