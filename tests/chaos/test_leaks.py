"""Whatever becomes of requests, nothing of them is left: no task, no socket, no count."""

import asyncio
import gc
from collections import Counter
from pathlib import Path

import pytest

from tests.proxy import streams
from tests.proxy.wire import ASKED, STREAMED, Backend, Call, Running, answers, eventually, gateway

pytestmark = [pytest.mark.chaos, pytest.mark.anyio]

ROUNDS, EACH = 5, 40


async def scripted(call: Call) -> None:
    """Do what the prompt says."""
    if b"reset" in call.body:
        call.cut()
    elif b"fail" in call.body:
        await call.answer(b"{}", 500)
    elif b"half" in call.body:
        await call.stream(*streams.CHAT[:2])
        call.cut()
    elif b"hang" in call.body:
        await call.gone.wait()
    elif b"crawl" in call.body:
        await call.stream(*streams.CHAT[:2])
        await call.gone.wait()
    else:
        await answers(call)


def asked(what: str, *, streamed: bool) -> dict[str, object]:
    messages = [{"role": "user", "content": what}]
    return {**(STREAMED if streamed else ASKED), "messages": messages}


async def one(running: Running, what: str, *, streamed: bool) -> None:
    try:
        async with asyncio.timeout(0.2 if what in ("hang", "crawl") else 30.0):
            await running.ask(asked(what, streamed=streamed))
    except (TimeoutError, OSError, EOFError, ValueError):
        pass  # the client leaves, or sees its answer end


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def test_nothing_is_left_of_requests_however_they_end() -> None:
    kinds = ("answer", "reset", "fail", "half", "hang", "crawl")
    async with gateway(spec=[Backend(scripted)], plain=[Backend(scripted)]) as running:
        left: list[Counter[str]] = []
        for _ in range(ROUNDS):
            for what in kinds:
                work = (one(running, what, streamed=n % 2 == 0) for n in range(EACH))
                await asyncio.gather(*work, return_exceptions=True)
            await eventually(lambda: running.in_flight == 0, what="nothing is in flight")
            await asyncio.sleep(0.2)
            gc.collect()
            left.append(
                Counter(
                    tasks=len(asyncio.all_tasks()),
                    in_hand=len(running.app.lifecycle._tasks),
                    waiting=len(running.app.pipeline._room),
                    files=open_files(),
                )
            )

    print(f"{ROUNDS} x {len(kinds) * EACH} requests, left after each round: {left}")
    assert left[-1]["in_hand"] == left[-1]["waiting"] == 0
    for what in ("tasks", "files"):
        # Idle connections, and the tasks that serve them, vary with how they were reused.
        assert left[-1][what] <= max(each[what] for each in left[:2]) + 5
