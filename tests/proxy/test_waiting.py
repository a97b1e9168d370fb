"""Requests that wait for a free backend: in turn, for so long, and no more than so many."""

import asyncio
from time import sleep

import pytest

from config.settings import Queue
from proxy.errors import Overloaded
from proxy.waiting import WaitingRoom
from tests.proxy.wire import Backend, Call, answers, begin, eventually, gateway, soon

pytestmark = pytest.mark.anyio


def waits(room: WaitingRoom, *pools: str, within_s: float = 10.0) -> "asyncio.Task[None]":
    until = asyncio.get_running_loop().time() + within_s
    return begin(room.wait(pools, key="", priority=0, until=until, again=False))


async def wait_as(room: WaitingRoom, key: str) -> None:
    until = asyncio.get_running_loop().time() + 10.0
    await room.wait(["spec"], key=key, priority=0, until=until, again=False)


async def test_room_in_a_pool_is_for_who_may_use_it() -> None:
    room = WaitingRoom(Queue())
    spec, plain = waits(room, "spec"), waits(room, "plain", "spec")
    await asyncio.sleep(0)

    room.freed("plain")
    await soon(plain)

    assert not spec.done()
    room.freed("spec")
    await soon(spec)
    assert len(room) == 0


async def test_a_full_queue_refuses_at_once() -> None:
    room = WaitingRoom(Queue(size=0))

    with pytest.raises(Overloaded, match=r"every backend is busy and 0 requests wait \(queue\.s"):
        await waits(room, "spec")


async def test_who_waits_too_long_is_told_so() -> None:
    room = WaitingRoom(Queue(wait_s=0.01))

    with pytest.raises(Overloaded, match=r"for 0\.01 s \(queue\.wait_s\)"):
        await waits(room, "spec", within_s=0.01)
    assert len(room) == 0


async def test_the_turn_of_one_that_leaves_is_the_nexts() -> None:
    room = WaitingRoom(Queue())
    leaver, other = waits(room, "spec"), waits(room, "spec")
    await asyncio.sleep(0)

    room.freed("spec")
    leaver.cancel()

    await soon(other)


async def test_a_turn_that_comes_as_the_wait_ends_is_taken() -> None:
    room = WaitingRoom(Queue(wait_s=0.02))
    waiting = waits(room, "spec", within_s=0.02)
    await asyncio.sleep(0)

    sleep(0.04)  # noqa: ASYNC251  # the loop is busy until the wait is over
    room.freed("spec")

    await soon(waiting)


async def test_room_can_be_made_by_one_that_leaves_at_that_moment() -> None:
    room = WaitingRoom(Queue(size=2))
    several = [begin(wait_as(room, "greedy")) for _ in range(2)]
    await asyncio.sleep(0)

    newcomer = begin(wait_as(room, "modest"))
    several[1].cancel()
    await asyncio.sleep(0.01)

    assert not newcomer.done()
    for task in (several[0], newcomer):
        task.cancel()
    await asyncio.gather(*several, newcomer, return_exceptions=True)
    assert len(room) == 0


async def test_a_backend_that_is_back_frees_as_many_as_it_takes() -> None:
    room = WaitingRoom(Queue())
    waiting = [waits(room, "spec") for _ in range(3)]
    await asyncio.sleep(0)

    room.freed("spec", 2)
    await asyncio.sleep(0.01)

    assert [task.done() for task in waiting] == [True, True, False]
    waiting[2].cancel()


async def test_what_is_over_the_cap_waits_and_is_decided_anew() -> None:
    go = asyncio.Event()

    async def held(call: Call) -> None:
        await go.wait()
        await answers(call)

    spec, plain = Backend(held, speculates=True), Backend(held)
    async with gateway(spec=[spec], plain=[plain], each_pool={"max_in_flight": 1}) as running:
        asked = [begin(running.ask()) for _ in range(3)]
        await eventually(lambda: running.count("turnout_queue_length") == 1.0, what="one waits")
        await spec.called()
        await plain.called()
        assert (len(spec.calls), len(plain.calls)) == (1, 1)
        go.set()
        found = await soon(asyncio.gather(*asked))

        assert [status for status, _, _ in found] == [200, 200, 200]
        await running.settled(finished=3)


async def test_a_full_gateway_says_429_and_when_to_come_again() -> None:
    go = asyncio.Event()

    async def held(call: Call) -> None:
        await go.wait()
        await answers(call)

    spec = Backend(held, speculates=True)
    one = {"max_in_flight": 1}
    async with gateway(spec=[spec], each_pool=one, queue={"size": 0}) as running:
        first = begin(running.ask())
        await spec.called()

        status, body, headers = await running.ask()

        assert status == 429
        assert b'"type":"overloaded"' in body
        fields = [headers[name] for name in ("retry-after", "retry-after-ms", "x-should-retry")]
        assert fields == ["1", "1000", "true"]
        go.set()
        assert (await soon(first))[0] == 200
        await running.settled(finished=1, refused=1)


async def test_a_client_that_leaves_the_queue_gives_up_its_place() -> None:
    go = asyncio.Event()

    async def held(call: Call) -> None:
        await go.wait()
        await answers(call)

    spec = Backend(held, speculates=True)
    async with gateway(spec=[spec], each_pool={"max_in_flight": 1}) as running:
        first = begin(running.ask())
        await spec.called()
        second = begin(running.ask())
        await eventually(lambda: running.count("turnout_queue_length") == 1.0, what="it waits")

        second.cancel()

        await eventually(lambda: running.count("turnout_queue_length") == 0.0, what="it left")
        go.set()
        assert (await soon(first))[0] == 200
        await running.settled(finished=1, cancelled=1)


async def test_all_that_wait_are_decided_anew_and_keep_their_order() -> None:
    room = WaitingRoom(Queue())
    order: list[str] = []

    async def waits_twice(name: str) -> None:
        until = asyncio.get_running_loop().time() + 10.0
        for again in (False, True):
            await room.wait(["spec"], key="", priority=0, until=until, again=again)
        order.append(name)

    waiting = [begin(waits_twice(name)) for name in "abc"]
    await eventually(lambda: len(room) == 3, what="all wait")

    room.renew()

    assert len(room) == 0
    await eventually(lambda: len(room) == 3, what="all wait again")
    for _ in waiting:
        room.freed("spec")
    await soon(asyncio.gather(*waiting))
    assert order == ["a", "b", "c"]


async def test_a_smaller_queue_turns_nobody_away_that_waits() -> None:
    room = WaitingRoom(Queue())
    waiting = [waits(room, "spec") for _ in range(2)]
    await eventually(lambda: len(room) == 2, what="both wait")

    room.configure(Queue(size=1))

    with pytest.raises(Overloaded, match="2 requests wait"):
        await waits(room, "spec")
    room.freed("spec", 2)
    await soon(asyncio.gather(*waiting))
