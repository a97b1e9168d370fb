"""Readiness, drain, and the end of grace."""

import asyncio

import pytest

from proxy.errors import Draining
from proxy.lifecycle import Lifecycle


def this_task() -> "asyncio.Task[object]":
    task = asyncio.current_task()
    assert task is not None
    return task


async def held(lifecycle: Lifecycle, release: asyncio.Event, taken: asyncio.Event) -> str:
    try:
        with lifecycle.in_hand(this_task()):
            taken.set()
            await release.wait()
    except asyncio.CancelledError:
        return "cut"
    return "finished"


async def test_a_drain_refuses_new_work_and_waits_for_what_is_in_hand() -> None:
    lifecycle, release, taken = Lifecycle(), asyncio.Event(), asyncio.Event()

    async with asyncio.TaskGroup() as group:
        request = group.create_task(held(lifecycle, release, taken))
        await taken.wait()
        draining = group.create_task(lifecycle.drain(60.0))
        await asyncio.sleep(0)

        with pytest.raises(Draining), lifecycle.in_hand(this_task()):
            pass
        assert repr(lifecycle) == "<Lifecycle [1 in hand, draining=True]>"
        assert not draining.done()
        release.set()

    assert request.result() == "finished"
    assert not lifecycle.cut


async def test_what_outlives_the_grace_period_is_ended() -> None:
    lifecycle, taken = Lifecycle(), asyncio.Event()

    async with asyncio.TaskGroup() as group:
        request = group.create_task(held(lifecycle, asyncio.Event(), taken))
        await taken.wait()
        await lifecycle.drain(0.01)

    assert request.result() == "cut"
    assert lifecycle.cut
    assert "0 in hand" in repr(lifecycle)


async def test_an_idle_gateway_drains_at_once() -> None:
    lifecycle = Lifecycle()

    await asyncio.wait_for(lifecycle.drain(3600.0), 60.0)

    assert lifecycle.draining
