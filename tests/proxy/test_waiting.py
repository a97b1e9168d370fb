"""Requests that wait for a free backend: in turn, for so long, and no more than so many."""

import asyncio
from time import sleep
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.settings import Queue
from proxy.errors import NoBackend, Overloaded
from proxy.waiting import WaitingRoom
from routing.pools import Pool
from tests.proxy.scripted import Clock
from tests.proxy.seeking import Seeker, pool_of
from tests.proxy.wire import ASKED, Backend, Call, answers, begin, eventually, gateway, soon

pytestmark = pytest.mark.anyio


def waits(room: WaitingRoom, *pools: Pool, **asked: Any) -> tuple[Seeker, "asyncio.Task[None]"]:
    """Have a request look for a place in `pools`."""
    seeker = Seeker(pools)
    return seeker, begin(seeker.placed(room, **asked))


async def test_a_place_is_for_who_may_use_it_though_others_came_first() -> None:
    room, spec, plain = WaitingRoom(Queue()), pool_of("spec"), pool_of("plain")
    holder = Seeker([plain])
    holder.take()
    Seeker([spec]).take()
    (first, one), (second, other) = waits(room, spec), waits(room, plain, spec)
    await asyncio.sleep(0)

    holder.leave(room)
    await soon(other)

    assert (first.has, second.has) == (None, (plain, plain.backends[0]))
    assert len(room) == 1
    one.cancel()


async def test_a_place_is_taken_before_anybody_else_runs() -> None:
    room, spec = WaitingRoom(Queue()), pool_of("spec")
    holder = Seeker([spec])
    holder.take()
    seeker, task = waits(room, spec)
    await asyncio.sleep(0)

    holder.leave(room)

    assert seeker.has is not None
    with pytest.raises(Overloaded):
        Seeker([spec]).take()
    await soon(task)


async def test_a_full_queue_refuses_at_once() -> None:
    room = WaitingRoom(Queue(size=0))

    with pytest.raises(Overloaded, match=r"every backend is busy and 0 requests wait \(queue\.s"):
        await Seeker([pool_of("spec", taken=1)]).placed(room)


async def test_who_waits_too_long_is_told_so() -> None:
    room = WaitingRoom(Queue(wait_s=0.01))

    with pytest.raises(Overloaded, match=r"for 0\.01 s \(queue\.wait_s\)"):
        await Seeker([pool_of("spec", taken=1)]).placed(room, within_s=0.01)
    assert len(room) == 0


async def test_the_place_of_one_that_leaves_is_the_nexts() -> None:
    room, spec = WaitingRoom(Queue()), pool_of("spec")
    holder = Seeker([spec])
    holder.take()
    (leaver, gone), (other, task) = waits(room, spec), waits(room, spec)
    await asyncio.sleep(0)

    holder.leave(room)
    gone.cancel()

    await soon(task)
    assert (leaver.has, other.has) == (None, (spec, spec.backends[0]))
    assert spec.in_flight == 1


async def test_a_place_that_comes_as_the_wait_ends_is_taken() -> None:
    room, spec = WaitingRoom(Queue(wait_s=0.02)), pool_of("spec")
    holder = Seeker([spec])
    holder.take()
    seeker, task = waits(room, spec, within_s=0.02)
    await asyncio.sleep(0)

    sleep(0.04)  # noqa: ASYNC251  # the loop is busy until the wait is over
    holder.leave(room)

    await soon(task)
    assert seeker.has is not None


async def test_room_can_be_made_by_one_that_leaves_at_that_moment() -> None:
    room, spec = WaitingRoom(Queue(size=2)), pool_of("spec", taken=1)
    several = [waits(room, spec, key="greedy")[1] for _ in range(2)]
    await asyncio.sleep(0)

    _, newcomer = waits(room, spec, key="modest")
    several[1].cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    assert not newcomer.done()
    for task in (several[0], newcomer):
        task.cancel()
    await asyncio.gather(*several, newcomer, return_exceptions=True)
    assert len(room) == 0


async def test_a_pool_that_has_more_room_serves_as_many_as_it_takes() -> None:
    room, spec = WaitingRoom(Queue()), pool_of("spec", taken=1)
    waiting = [waits(room, spec)[1] for _ in range(3)]
    await asyncio.sleep(0)

    spec.max_in_flight = 3
    room.admit(spec)
    await soon(asyncio.gather(*waiting[:2]))

    assert [task.done() for task in waiting] == [True, True, False]
    waiting[2].cancel()


async def test_who_need_not_wait_any_more_is_told_and_harms_no_other() -> None:
    """What `take` raises is of the request that waits, not of the one that freed a place."""
    room, spec = WaitingRoom(Queue()), pool_of("spec")
    holder, hopeless = Seeker([spec]), Seeker([spec])
    holder.take()

    def refuses() -> Any:
        raise NoBackend("none is left")

    hopeless.take = refuses  # type: ignore[method-assign]
    told = begin(room.wait(hopeless.wish(room)))
    other, served = waits(room, spec)
    await asyncio.sleep(0)

    holder.leave(room)

    with pytest.raises(NoBackend):
        await soon(told)
    await soon(served)
    assert other.has is not None


KINDS = (("spec",), ("plain",), ("spec", "plain"), ("plain", "spec"))
EVENTS = st.lists(
    st.one_of(
        st.tuples(
            st.just("comes"),
            st.sampled_from(KINDS),
            st.sampled_from("ab"),
            st.sampled_from(((), ("spec0",), ("plain0",))),
        ),
        st.tuples(st.sampled_from(("finishes", "gives up", "fails")), st.integers(0, 30)),
    ),
    max_size=40,
)


@given(events=EVENTS)
def test_never_is_there_a_place_that_somebody_who_waits_may_have(events: list[Any]) -> None:
    """In any order of arriving, finishing, giving up, and trying again elsewhere."""
    asyncio.run(_in_that_order(events))


async def _in_that_order(events: list[Any]) -> None:
    room = WaitingRoom(Queue())
    pools = {name: pool_of(name, room=2, backends=2) for name in ("spec", "plain")}
    seekers: dict[Seeker, asyncio.Task[None]] = {}
    for what, *given_ in events:
        placed = [one for one in seekers if one.has]
        if what == "comes":
            kinds, key, excluded = given_
            one = Seeker([pools[name] for name in kinds], excluded=excluded)
            seekers[one] = begin(one.placed(room, key=key))
        elif what == "gives up" and seekers:
            list(seekers.values())[given_[0] % len(seekers)].cancel()
        elif placed:
            one = placed[given_[0] % len(placed)]
            assert one.has is not None
            _, backend = one.has
            one.leave(room)
            del seekers[one]
            if what == "fails":  # it tries another backend
                again = Seeker(one.pools, excluded=one.excluded | {backend.name})
                seekers[again] = begin(again.placed(room, key="a"))
        for _ in range(3):
            await asyncio.sleep(0)
        for one in [one for one, task in seekers.items() if task.done() and not one.has]:
            del seekers[one]
        waiting = [one for one in seekers if one.has is None]
        assert len(room) == len(waiting)
        assert not any(one.may_use(pool) for one in waiting for pool in one.pools)
        for pool in pools.values():
            held = sum(one.has is not None and one.has[0] is pool for one in seekers)
            assert pool.totals[1] == held
    for task in seekers.values():
        task.cancel()
    await asyncio.gather(*seekers.values(), return_exceptions=True)


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


async def test_one_that_waits_has_arrived_once() -> None:
    """Seven requests in no time are a rate of 0.7 by a mean of 10 s, however often decided."""
    go = asyncio.Event()

    async def held(call: Call) -> None:
        await go.wait()
        await answers(call)

    spec, plain = Backend(held, speculates=True), Backend(held)
    async with gateway(
        spec=[spec],
        plain=[plain],
        each_pool={"max_in_flight": 1},
        seams={"clock": Clock()},
        thresholds={"qps": {"high": 0.75, "low": 0.7}},
    ) as running:
        asked = [begin(running.ask()) for _ in range(6)]
        await eventually(lambda: running.count("turnout_queue_length") == 4.0, what="they wait")
        running.reload()  # has them decided anew
        go.set()
        await soon(asyncio.gather(*asked))

        _, _, headers = await running.ask()
        assert headers["x-turnout-reason"] == "policy"


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


async def test_what_waits_for_a_backend_that_is_drained_is_told_at_once() -> None:
    go = asyncio.Event()

    async def held(call: Call) -> None:
        await go.wait()
        await answers(call)

    only = Backend(held)
    async with gateway(
        plain=[only], each_pool={"max_in_flight": 1}, queue={"wait_s": 600.0}
    ) as running:
        first = begin(running.ask())
        await only.called()
        second = begin(running.ask())
        await eventually(lambda: running.count("turnout_queue_length") == 1.0, what="it waits")

        await running.app.command("drain", backend=only.name, drained=True)

        status, body, _ = await soon(second, within_s=20.0)
        assert (status, b"no_backend" in body) == (503, True)
        go.set()
        assert (await soon(first))[0] == 200


async def test_a_place_at_a_backend_that_is_removed_at_that_moment_is_left_for_another() -> None:
    go = asyncio.Event()

    async def held(call: Call) -> None:
        await go.wait()
        await answers(call)

    one, other = Backend(held), Backend()
    async with gateway(plain=[one], spare=[other], each_pool={"max_in_flight": 1}) as running:
        first = begin(running.ask())
        await one.called()
        second = begin(running.ask())
        await eventually(lambda: running.count("turnout_queue_length") == 1.0, what="it waits")

        running.reload(plain={"max_in_flight": 2})  # gives it a place
        running.reload(plain={"backends": [other.url]})  # before it could go there

        status, _, headers = await soon(second)
        assert (status, headers["x-turnout-backend"]) == (200, other.name)
        go.set()
        assert (await soon(first))[0] == 200
        await running.settled(finished=2)


async def test_all_that_wait_are_decided_anew_and_keep_their_order() -> None:
    room, spec = WaitingRoom(Queue()), pool_of("spec", taken=1)
    waiting = [waits(room, spec) for _ in range(3)]
    await asyncio.sleep(0)

    room.renew()

    assert len(room) == 3
    for served in range(1, 4):
        spec.max_in_flight = 1 + served
        room.renew()
        assert [one.has is not None for one, _ in waiting] == [n < served for n in range(3)]
    await soon(asyncio.gather(*(task for _, task in waiting)))


async def test_a_smaller_queue_turns_nobody_away_that_waits() -> None:
    room, spec = WaitingRoom(Queue()), pool_of("spec", taken=1)
    waiting = [waits(room, spec)[1] for _ in range(2)]
    await asyncio.sleep(0)

    room.configure(Queue(size=1))

    with pytest.raises(Overloaded, match="2 requests wait"):
        await Seeker([spec]).placed(room)
    spec.max_in_flight = 3
    room.admit(spec)
    await soon(asyncio.gather(*waiting))


async def test_one_that_waits_for_plain_alone_does_not_stop_the_others() -> None:
    """A request with `min_p` can't use a speculating pool; ten of another key can."""
    go = asyncio.Event()

    async def held(call: Call) -> None:
        await go.wait()
        await answers(call)

    spec, plain = Backend(answers, speculates=True), Backend(held)
    one = {"max_in_flight": 1}
    async with gateway(spec=[spec], plain=[plain], each_pool=one, queue={"wait_s": 60}) as running:
        min_p = {**ASKED, "temperature": 1.0, "min_p": 0.1}
        bound = [begin(running.ask(min_p)) for _ in range(2)]
        await plain.called()
        await eventually(lambda: running.count("turnout_queue_length") == 1.0, what="one waits")

        found = await soon(asyncio.gather(*(running.ask() for _ in range(10))))

        assert [status for status, _, _ in found] == [200] * 10
        assert len(plain.calls) == 1
        go.set()
        assert [status for status, _, _ in await soon(asyncio.gather(*bound))] == [200, 200]
        await running.settled(finished=12)


async def test_one_that_is_tried_again_elsewhere_does_not_stop_the_others() -> None:
    """After a 500 it waits for the other backend; the one that failed it serves others."""
    go = asyncio.Event()

    async def held(call: Call) -> None:
        await go.wait()
        await answers(call)

    async def fails_first(call: Call) -> None:
        if len(one.calls) == 1:
            await call.answer(b'{"error":{"message":"no"}}', 500)
        else:
            await answers(call)

    one, other = Backend(fails_first), Backend(held)
    room = {"max_in_flight": 1}
    async with gateway(plain=[one, other], each_pool=room, queue={"wait_s": 60}) as running:
        asked = [begin(running.ask()) for _ in range(14)]

        await eventually(
            lambda: running.endings["finished"] >= 12, what="all but the held and the failed"
        )

        assert len(other.calls) == 1
        go.set()
        assert {status for status, _, _ in await soon(asyncio.gather(*asked))} == {200}
        await running.settled(finished=14)
