"""What a server says of itself while requests run: cache, queue, preemptions."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import httpx

from proxy.vllm_metrics import Exposition
from turnout.tuning.targets import Target, look

EVERY_S = 0.5
"""Between two looks; the gateway reads a server's metrics every 2 s, since often slows it down."""
_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pressure:
    """What was seen of a server over some time.

    Attributes:
        looks: How often it told.
        kv_usage: The highest share of its KV cache in use.
        waiting: The most requests in its queue.
        preemptions: Requests it preempted.
        hit_rate: Share of prompt tokens found in its prefix cache; None where none were looked up.
    """

    looks: int
    kv_usage: float
    waiting: float
    preemptions: float
    hit_rate: float | None


async def watched(target: Target, work: Callable[[], Awaitable[None]]) -> Pressure | None:
    """Look at a server's metrics until `work` is done; None where it does not tell."""
    seen: list[Exposition] = []
    async with httpx.AsyncClient(timeout=_TIMEOUT_S, trust_env=False) as client:

        async def see() -> None:
            if (told := await look(client, target)) is not None:
                seen.append(told)

        async def keep_looking() -> None:
            while True:
                await see()
                await asyncio.sleep(EVERY_S)

        async with asyncio.TaskGroup() as group:
            looking = group.create_task(keep_looking())
            await work()
            looking.cancel()
        await see()
    return pressure_of(seen)


def pressure_of(seen: Sequence[Exposition]) -> Pressure | None:
    """Return what the metrics of a server show, in the order they were read."""
    told = [each for each in seen if each.values]
    if len(told) < 2:
        return None
    first, last = told[0], told[-1]
    queries = last.grown("prefix_cache_queries", first)
    hits = last.grown("prefix_cache_hits", first)
    return Pressure(
        looks=len(told),
        kv_usage=max(each.values.get("kv_cache_usage", 0.0) for each in told),
        waiting=max(each.values.get("waiting", 0.0) for each in told),
        preemptions=last.grown("preemptions", first),
        hit_rate=hits / queries if queries > 0.0 else None,
    )
