"""Servers fail under load: what has not had a byte of its answer comes from another one.

What several workers have in common, or each sees for itself, is tried with two as well: probes,
circuits, the queue, what is left open.
"""

import asyncio
import signal
from collections.abc import Iterator
from time import monotonic

import pytest

from tests.chaos.world import ServerProcess, World, faults_of
from tests.conftest import free_ports_of
from tests.running import eventually

pytestmark = [pytest.mark.chaos, pytest.mark.anyio]

FAULTY = 30
"""Requests that are sent while something fails: over a second of the load."""
TIMEOUTS = {"first_byte_s": 3.0, "prompt_token_s": 0.0, "between_chunks_s": 4.0}


@pytest.fixture(scope="module", params=[1, 2], ids=["workers1", "workers2"])
def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    with World(
        tmp_path_factory.mktemp("chaos"),
        free_ports_of(3),
        workers=request.param,
        timeouts=TIMEOUTS,
        policy="least_loaded",
    ) as found:
        yield found


by_one_worker = pytest.mark.parametrize("world", [1], ids=["workers1"], indirect=True)


@pytest.fixture(autouse=True)
async def _back_to_normal(world: World) -> None:
    for server in (world.spec, world.plain):
        await world.holds("turnout_backend_up", 1.0, server.name)


async def settled(world: World) -> None:
    """Wait until nothing is in flight."""
    await world.holds("turnout_in_flight", 0.0, "backend")


@pytest.mark.parametrize("name", ["spec", "plain"])
async def test_a_server_that_is_killed_loses_no_request_it_had_not_begun(
    world: World, name: str
) -> None:
    server = getattr(world, name)
    async with world.load() as result:
        server.kill()
        killed_at = monotonic()
        moved_s = await world.holds("turnout_backend_up", 0.0, server.name)
        await result.grows(FAULTY)
        await asyncio.to_thread(server.start)
        back_s = await world.holds("turnout_backend_up", 1.0, server.name)
    await settled(world)

    print(f"killed {name}: {result}, out after {moved_s:.2f} s, back after {back_s:.2f} s")
    assert not result.lost, faults_of(result.lost)
    assert all(each.sent_at < killed_at for each in result.broken), faults_of(result.broken)


async def test_a_server_that_stops_dead_loses_no_request_it_had_not_begun(world: World) -> None:
    async with world.load() as result:
        world.spec.send(signal.SIGSTOP)
        stopped_at = monotonic()
        moved_s = await world.holds("turnout_backend_up", 0.0, world.spec.name)
        await result.grows(FAULTY)
        world.spec.send(signal.SIGCONT)
    await settled(world)

    print(f"stopped: {result}, out after {moved_s:.2f} s")
    assert not result.lost, faults_of(result.lost)
    assert all(each.sent_at < stopped_at + moved_s for each in result.broken)


@pytest.mark.parametrize(
    ("name", "fault"),
    # In turn, as a circuit stays open for longer each time.
    [("spec", "reset"), ("plain", "half_stream"), ("spec", "freeze")],
)
async def test_a_server_that_fails_its_requests_is_left_alone_and_nothing_is_lost(
    world: World, name: str, fault: str
) -> None:
    await is_left_alone(world, name, fault=fault)


@by_one_worker
@pytest.mark.parametrize("fault", [{"fault": "abort"}, {"fault": "status", "status": 500}])
async def test_so_is_one_that_fails_them_in_words(world: World, fault: dict[str, object]) -> None:
    await is_left_alone(world, "plain", **fault)


async def is_left_alone(world: World, name: str, **fault: object) -> None:
    server: ServerProcess = getattr(world, name)
    async with world.load() as result:
        with server.fault(**fault):
            began = monotonic()
            moved_s = await world.holds("turnout_backend_circuit", 2.0, server.name, within_s=30.0)
            await result.grows(FAULTY)
            over = monotonic()
        back_s = await world.holds("turnout_backend_circuit", 0.0, server.name, within_s=60.0)
    await settled(world)

    print(f"{fault}: {result}, out after {moved_s:.2f} s, back after {back_s:.2f} s")
    assert not result.lost, faults_of(result.lost)
    assert len(result.broken) <= 5, faults_of(result.broken)
    assert all(began - 5.0 < each.sent_at < over for each in result.broken)


@pytest.mark.parametrize("status", [429, 503])
async def test_back_pressure_is_no_failure_and_nothing_is_lost(world: World, status: int) -> None:
    async with world.load() as result:
        with world.spec.fault(fault="status", status=status):
            await result.grows(FAULTY)
            assert not any(world.figures("turnout_backend_circuit", world.spec.name))
    await settled(world)

    print(f"storm of {status}: {result}")
    assert not result.lost, faults_of(result.lost)


@by_one_worker
async def test_a_server_whose_answers_are_held_back_while_it_works_is_no_failed_one(
    world: World,
) -> None:
    """As by a tool-call parser; three times as long as a first byte may take."""
    async with world.load() as result:
        with world.spec.fault(fault="stall"):
            await asyncio.sleep(3.0)
        assert not any(world.figures("turnout_backend_circuit", world.spec.name))
    await settled(world)

    print(f"held back: {result}")
    assert not result.lost, faults_of(result.lost)
    assert not result.broken, faults_of(result.broken)


@by_one_worker
async def test_a_slow_server_is_no_failed_one(world: World) -> None:
    async with world.load() as result:
        with world.spec.fault(fault="slow", delay_s=0.1):
            await result.grows(FAULTY)
    await settled(world)

    print(f"slow: {result}")
    assert not result.lost
    assert not result.broken


async def test_both_pools_gone_and_back(world: World) -> None:
    async with world.load() as result:
        for server in (world.spec, world.plain):
            server.kill()
        gone_at = monotonic()
        for server in (world.spec, world.plain):
            await world.holds("turnout_backend_up", 0.0, server.name)
        await result.grows(FAULTY)
        for server in (world.spec, world.plain):
            await asyncio.to_thread(server.start)
        for server in (world.spec, world.plain):
            await world.holds("turnout_backend_up", 1.0, server.name)
        back_at = monotonic()
        await result.grows(FAULTY)
    await settled(world)

    print(f"both pools gone: {result}, back {back_at - gone_at:.2f} s later")
    assert {each.status for each in result.lost if each.sent_at > gone_at} <= {0, 502, 503}
    assert not [each for each in result.asked if each.sent_at > back_at and each.fault]


@by_one_worker
async def test_garbage_is_passed_on_and_harms_nobody_else(world: World) -> None:
    async with world.load() as result:
        with world.spec.fault(fault="garbage", count=5):
            await result.grows(FAULTY)
    await settled(world)

    print(f"garbage: {result}")
    assert len(result.lost) + len(result.broken) <= 5


async def test_after_all_of_it_nothing_is_left_open_and_memory_stays(world: World) -> None:
    memory, most = world.memory_mib, world.files_at_first + 2 * len(world.workers)  # for probes
    for fault in ("reset", "half_stream", "abort"):
        async with world.load() as result:
            with world.spec.fault(fault=fault):
                await result.grows(FAULTY)
        await settled(world)
    await asyncio.to_thread(
        eventually, lambda: world.open_files <= most, within_s=60, what=f"{most} files are open"
    )

    print(
        f"files {world.files_at_first} to {world.open_files}, "
        f"memory {memory:.1f} to {world.memory_mib:.1f} MiB"
    )
    assert world.memory_mib < memory + 10.0
