"""Two workers decide like one, and a gateway outlives either of them."""

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import httpx
import pytest

from proxy.vllm_metrics import parse
from tests.chaos.world import MODEL, Rising, World, faults_of, open_files_of
from tests.conftest import free_ports_of
from tests.running import eventually

pytestmark = [pytest.mark.chaos, pytest.mark.anyio]

MOST = 3
"""Requests that each backend may have at a time."""
HELD = "vllm:num_requests_running{", "vllm:num_requests_waiting{"
REQUESTS, RELOADS = "turnout_requests_total", "turnout_config_reloads_total"
LOOKS = 12
"""Connections of their own after which both workers have answered, but once in 2,000."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, three_ports: list[int]) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TURNOUT_ADMIN_TOKEN", "s3cret")
        made = World(
            tmp_path_factory.mktemp("workers"),
            three_ports,
            engine=("--time-scale", "3"),
            each_pool={"max_in_flight": MOST},
            workers=2,
            listen={"grace_s": 5},
            admin={"port": free_ports_of(1)[0]},
            policy="least_loaded",
        )
        with made as found:
            yield found


def admin_of(world: World) -> str:
    config = json.loads(world.config.read_text())
    return f"http://127.0.0.1:{config['admin']['port']}"


def ask_admin(world: World, method: str, path: str, **more: object) -> httpx.Response:
    headers = {"authorization": "Bearer s3cret"}
    url = admin_of(world) + path
    return httpx.request(method, url, headers=headers, timeout=60, **more)  # type: ignore[arg-type]


async def replaced(world: World, *, seat: int) -> int:
    """Kill a worker and wait for the one that takes its place; return how often that was."""
    victim, restarts = world.workers[seat], world.figure("turnout_worker_restarts_total")
    os.kill(victim, signal.SIGKILL)
    eventually(
        lambda: victim not in world.workers and len(world.workers) == 2,
        within_s=60,
        what=f"worker {victim} is replaced",
    )
    await world.holds("turnout_worker_restarts_total", restarts + 1.0)
    return victim


def body(tokens: int = 24) -> dict[str, object]:
    talk = [{"role": "user", "content": "Write a strange poem about rust."}]
    return {"model": MODEL, "messages": talk, "max_tokens": tokens, "temperature": 0.5}


async def asked(url: str, tokens: int = 24, *, pool: str | None = None) -> httpx.Response:
    """Ask on a connection of its own."""
    pin = {} if pool is None else {"x-turnout-pool": pool}
    async with httpx.AsyncClient(timeout=60, trust_env=False, headers=pin) as client:
        return await client.post(f"{url}/v1/chat/completions", json=body(tokens))


async def test_limits_hold_for_both_together_and_both_serve(world: World) -> None:
    before = world.figure("turnout_requests_total")
    most = 0.0
    busy: dict[int, float] = {pid: cpu_s(pid) for pid in world.workers}

    async def watch() -> None:
        nonlocal most
        async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
            while True:
                for server in (world.spec, world.plain):
                    text = (await client.get(f"{server.url}/metrics")).text
                    held = [
                        float(line.rsplit(" ", 1)[1])
                        for line in text.splitlines()
                        if line.startswith(
                            ("vllm:num_requests_running{", "vllm:num_requests_waiting{")
                        )
                    ]
                    most = max(most, sum(held))
                await asyncio.sleep(0.02)

    async with asyncio.TaskGroup() as group:
        watching = group.create_task(watch())
        answers = await asyncio.gather(*(asked(world.url) for _ in range(60)))
        watching.cancel()

    assert [each.status_code for each in answers] == [200] * 60
    assert 0 < most <= MOST
    assert world.figure("turnout_requests_total") == before + 60
    await world.holds("turnout_in_flight", 0.0)
    await world.holds("turnout_queue_length", 0.0)
    assert all(cpu_s(pid) > spent for pid, spent in busy.items())


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def test_a_worker_that_is_killed_is_replaced_and_what_it_counted_stays(
    world: World,
) -> None:
    restarts = world.figure("turnout_worker_restarts_total")
    async with world.load() as result:
        await result.grows(20)
        counted = world.figure("turnout_requests_total")
        killed_at = monotonic()
        victim = world.workers[0]
        os.kill(victim, signal.SIGKILL)
        await world.holds("turnout_worker_restarts_total", restarts + 1.0)
        await result.grows(40)
    print(f"a worker killed: {result}")

    assert not [each for each in result.lost if each.sent_at > killed_at + 0.5]
    assert all(each.sent_at < killed_at for each in result.broken), faults_of(result.broken)
    assert len(result.lost) + len(result.broken) < len(result.asked) / 4
    assert victim not in world.workers
    assert len(world.workers) == 2
    assert world.figure("turnout_requests_total") > counted
    await world.holds("turnout_in_flight", 0.0)
    await world.holds("turnout_worker_restarts_total", restarts + 1.0)


async def test_workers_killed_in_turn_amid_reloads_leave_nothing_and_answer_nothing_twice(
    world: World,
) -> None:
    before = {name: world.figure(name) for name in (REQUESTS, RELOADS)}
    served, rising = servers_finished(world), Rising()
    files = open_files_of(world.pid)
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(rising.watch(world))
        async with world.load() as result:
            for number in range(6):
                victim = world.workers[0]  # the older one
                os.kill(victim, signal.SIGKILL)
                await asyncio.sleep((0.0, 0.05, 0.5)[number % 3])  # dead, beginning, serving
                world.reload()
                await asyncio.to_thread(
                    eventually,
                    lambda gone=victim: gone not in world.workers and len(world.workers) == 2,
                    within_s=60,
                    what=f"worker {victim} is replaced",
                )
                await world.holds(RELOADS, before[RELOADS] + number + 1.0)
                await result.grows(20)
        await world.holds("turnout_in_flight", 0.0)
        await world.holds("turnout_queue_length", 0.0)
        watching.cancel()
    whole = [each for each in result.asked if not each.fault]
    counted = world.figure(REQUESTS) - before[REQUESTS]
    finished = servers_finished(world) - served
    print(f"6 workers killed: {result}; {counted:.0f} counted, {finished:.0f} by servers")

    assert open_files_of(world.pid) == files
    assert not rising.fallen
    assert len(whole) > len(result.asked) / 2
    assert len(whole) <= counted <= len(result.asked)
    assert len(whole) <= finished <= len(result.asked)
    assert world.figures("turnout_config_last_reload_ok") == [1.0, 1.0]


def servers_finished(world: World) -> float:
    """Return how many requests the servers say that they have answered, whoever asked."""
    texts = (httpx.get(f"{each.url}/metrics").text for each in (world.spec, world.plain))
    return sum(parse(text).values["requests"] for text in texts)


async def test_what_an_operator_orders_holds_at_both_and_at_those_that_follow(
    world: World,
) -> None:
    name = world.spec.name
    assert ask_admin(world, "POST", f"/backends/{name}/drain").is_success
    assert ask_admin(world, "PATCH", "/thresholds", json={"max_temperature": 0.1}).is_success
    assert ask_admin(world, "POST", "/learning/pause").is_success
    try:
        await world.holds("turnout_backend_drained", 1.0)
        await world.holds("turnout_learning_paused", 1.0)
        for seat in (0, 0):  # the one that is started last is the last of them
            await replaced(world, seat=seat)
        await world.holds("turnout_backend_drained", 1.0)
        await world.holds("turnout_learning_paused", 1.0)
        answers = await asyncio.gather(*(asked(world.url) for _ in range(LOOKS)))
        assert {a.headers["x-turnout-backend"] for a in answers} == {world.plain.name}
        assert limits(world) == {0.1}
    finally:
        ask_admin(world, "POST", f"/backends/{name}/undrain")
        ask_admin(world, "POST", "/learning/resume")
    await world.holds("turnout_backend_drained", 0.0)
    await world.holds("turnout_learning_paused", 0.0)


async def test_a_config_that_changes_is_read_by_both(world: World) -> None:
    config = json.loads(world.config.read_text())
    reloads = world.figure("turnout_config_reloads_total", "applied")
    config["thresholds"] = {"max_temperature": 0.33}
    world.config.write_text(json.dumps(config))

    eventually(lambda: limits(world) == {0.33}, within_s=60, what="both have read the config")
    assert world.figure("turnout_config_reloads_total", "applied") == reloads + 1
    world.reload()
    eventually(
        lambda: world.figure("turnout_config_reloads_total", "applied") == reloads + 2,
        within_s=60,
        what="SIGHUP is obeyed once",
    )


def limits(world: World) -> set[float]:
    """Return the highest temperatures that the workers go by."""
    found = (ask_admin(world, "GET", "/thresholds").json() for _ in range(LOOKS))
    return {each["thresholds"]["max_temperature"] for each in found}


async def test_a_worker_that_is_replaced_goes_by_what_applies_not_by_a_file_that_is_wrong(
    world: World,
) -> None:
    """It could else only go by the config of the gateway's start, whose keys may be revoked."""
    config, before = world.config.read_text(), limits(world)
    world.config.write_text(config.replace('"pools"', '"pool"'))
    try:
        await world.holds("turnout_config_last_reload_ok", 0.0)
        await replaced(world, seat=0)
        await replaced(world, seat=0)
        await world.holds("turnout_config_last_reload_ok", 0.0)
        assert limits(world) == before == {0.33}
    finally:
        world.config.write_text(config)
    await world.holds("turnout_config_last_reload_ok", 1.0)


async def test_a_circuit_that_one_opens_is_open_for_both(world: World) -> None:
    with world.spec.fault(fault="status", status=500):
        for _ in range(40):
            await asked(world.url, 4, pool="spec")
            if world.figure("turnout_backend_circuit", world.spec.name) == 2.0:
                break
        assert 0.0 not in world.figures("turnout_backend_circuit", world.spec.name)
    async with asyncio.timeout(60):
        while any(world.figures("turnout_backend_circuit", world.spec.name)):
            await asked(world.url, 4, pool="spec")


async def test_a_stored_response_is_continued_by_either(world: World) -> None:
    async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
        made = await client.post(
            f"{world.url}/v1/responses",
            json={"model": MODEL, "input": "Say something.", "max_output_tokens": 8},
        )
    assert made.is_success, made.text
    holder = made.headers["x-turnout-backend"]
    found = set()
    for _ in range(LOOKS):
        async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
            answer = await client.get(f"{world.url}/v1/responses/{made.json()['id']}")
            found.add(answer.headers.get("x-turnout-backend"))
    assert found == {holder}


async def test_it_drains_and_leaves_nobody_behind(world: World) -> None:
    """The last of this module: the gateway is gone after it."""
    workers = world.workers
    async with asyncio.TaskGroup() as group:
        under_way = [group.create_task(asked(world.url, 150)) for _ in range(4)]
        await world.holds("turnout_in_flight", 4.0)
        os.kill(world.pid, signal.SIGTERM)

    assert [each.result().status_code for each in under_way] == [200] * 4
    eventually(
        lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers),
        within_s=60,
        what="every worker has ended",
    )
    assert world.status(within_s=60) == 0


async def test_workers_end_when_their_supervisor_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del monkeypatch
    made = World(tmp_path, free_ports_of(3), workers=2, listen={"grace_s": 1})
    with made as found:
        workers = found.workers
        os.kill(found.pid, signal.SIGKILL)
        eventually(
            lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers),
            within_s=60,
            what="every worker has ended",
        )
