"""What ends a request before its own end, and what its waits cost."""

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic

import pytest

from proxy.errors import BackendError, ChunkTimeout, ClientGone, TotalTimeout
from proxy.patience import Patience
from tests.proxy.wire import begin

pytestmark = pytest.mark.anyio


def late() -> BackendError:
    return ChunkTimeout("too late")


def over() -> BackendError:
    return TotalTimeout("over")


async def ended(work: Callable[[Patience], Awaitable[None]]) -> BackendError | None:
    """Return what `work` was ended for."""
    patience = Patience()
    try:
        await work(patience)
    except asyncio.CancelledError:
        return patience.taken()
    finally:
        patience.close()
    return None


async def test_a_wait_that_is_too_long_ends_the_task_with_its_error() -> None:
    async def work(patience: Patience) -> None:
        patience.wait(0.02, late)
        await asyncio.sleep(5.0)

    assert isinstance(await ended(work), ChunkTimeout)
    await asyncio.sleep(0)  # the task goes on


async def test_each_wait_begins_anew_and_none_goes_beyond_the_limit() -> None:
    began = monotonic()

    async def work(patience: Patience) -> None:
        patience.limit(0.3, over)
        while True:
            patience.wait(0.1, late)
            await asyncio.sleep(0.02)
            patience.rest()

    assert isinstance(await ended(work), TotalTimeout)
    assert monotonic() - began > 0.25


async def test_a_shorter_wait_after_a_longer_one_is_kept() -> None:
    async def work(patience: Patience) -> None:
        patience.wait(60.0, late)
        patience.wait(0.02, over)
        await asyncio.sleep(5.0)

    assert isinstance(await ended(work), TotalTimeout)


async def test_who_rests_is_not_ended() -> None:
    async def work(patience: Patience) -> None:
        patience.wait(0.02, late)
        patience.rest()
        await asyncio.sleep(0.06)

    assert await ended(work) is None


@pytest.mark.parametrize("reasons", [(ClientGone(), late()), (late(), ClientGone())])
async def test_only_a_backends_failure_is_taken_and_not_where_the_client_has_left(
    reasons: tuple[Exception, Exception],
) -> None:
    found: list[object] = []

    async def work() -> None:
        patience = Patience()
        for reason in reasons:
            asyncio.get_running_loop().call_soon(patience.end, reason)
        try:
            await asyncio.sleep(5.0)
        except asyncio.CancelledError:
            found.extend((patience.taken(), patience.reason))
            raise

    with pytest.raises(asyncio.CancelledError):
        await begin(work())
    assert found[0] is None
    assert isinstance(found[1], ClientGone)


async def test_a_closed_one_ends_nothing() -> None:
    patience = Patience()
    patience.wait(0.01, late)
    patience.close()

    await asyncio.sleep(0.03)
    assert patience.reason is None


async def test_only_a_task_can_be_ended() -> None:
    loop = asyncio.get_running_loop()
    refused = loop.create_future()

    def make() -> None:
        with pytest.raises(RuntimeError, match="only a task"):
            Patience()
        refused.set_result(True)

    loop.call_soon(make)

    assert await refused


async def test_a_look_may_put_the_end_off_but_not_beyond_the_limit() -> None:
    looks: list[float] = []

    def look() -> float:
        looks.append(monotonic())
        return 0.05

    async def work(patience: Patience) -> None:
        patience.limit(0.3, over)
        patience.wait(0.1, look)
        await asyncio.sleep(5.0)

    assert isinstance(await ended(work), TotalTimeout)
    assert looks
