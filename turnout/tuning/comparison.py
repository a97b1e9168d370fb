"""The same requests to each pool and then to the router, and what each took."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import httpx

from turnout.tuning.crossover import Cell, measure
from turnout.tuning.holding import WAIT_S, Advance, Tally, hold
from turnout.tuning.load import LoadGenerator
from turnout.tuning.prompts import KINDS, Kind, Workload
from turnout.tuning.sample import Job, Sample

SPEC, PLAIN = POOLS = ("spec", "plain")

_WARM_UP_TOKENS = 8
_ROUTED_IN_FLIGHT = 2


async def warm_up(load: LoadGenerator, workload: Workload) -> None:
    """Send each kind to each pool once; what these requests take counts nowhere."""
    short = replace(workload, max_tokens=_WARM_UP_TOKENS)
    for kind in KINDS:
        for pool in POOLS:
            await load.send(next(short.of(kind, pool=pool)))


async def pinned(
    load: LoadGenerator, workload: Workload, *, in_flight: int, requests: int, advance: Advance
) -> list[Cell]:
    """Measure each kind of request on each pool.

    One at a time the pools take turns, so that what disturbs one disturbs the other; above that
    they run side by side, each with `in_flight` requests.
    """
    cells: list[Cell] = []
    for kind in KINDS:
        if in_flight == 1:
            samples = await _in_turn(load, workload, kind, requests, advance)
        else:
            samples = await _side_by_side(load, workload, kind, in_flight, requests, advance)
        cells += (
            measure(samples[pool][:requests], kind=kind.name, pool=pool, in_flight=in_flight)
            for pool in POOLS
        )
    return cells


async def _in_turn(
    load: LoadGenerator, workload: Workload, kind: Kind, requests: int, advance: Advance
) -> dict[str, list[Sample]]:
    jobs = {pool: workload.of(kind, pool=pool) for pool in POOLS}
    samples: dict[str, list[Sample]] = {pool: [] for pool in POOLS}
    for _ in range(requests):
        for pool in POOLS:
            samples[pool].append(await load.send(next(jobs[pool])))
            advance()
    return samples


async def _side_by_side(
    load: LoadGenerator,
    workload: Workload,
    kind: Kind,
    in_flight: int,
    requests: int,
    advance: Advance,
) -> dict[str, list[Sample]]:
    """Take the first samples at a steady load; the last would run in an ever emptier batch."""
    tallies = {pool: Tally(advance) for pool in POOLS}

    async def fill(pool: str) -> None:
        tally, jobs = tallies[pool], workload.of(kind, pool=pool)

        async def enough() -> None:
            await tally.until(lambda samples: len(samples) >= requests)

        await hold(load, jobs, in_flight=in_flight, tally=tally, meanwhile=enough)

    async with asyncio.TaskGroup() as group:
        for pool in POOLS:
            group.create_task(fill(pool))
    return {pool: tally.samples for pool, tally in tallies.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Routed:
    """What the router did with one kind of request.

    Attributes:
        cell: What was measured, on the pool that most went to.
        traffic_class: The class that the gateway sees in the first prompt.
        by_reason: How often each pool was chosen for which reason, as `plain policy`.
        why: What the gateway says of the first prompt, by the load of that moment.
    """

    cell: Cell
    traffic_class: str | None
    by_reason: dict[str, int]
    why: str


async def routed(
    load: LoadGenerator, workload: Workload, *, url: str, requests: int, advance: Advance
) -> list[Routed]:
    """Send a mixed workload and let the gateway choose."""
    tally = Tally(advance)
    jobs = islice(workload.mixed(seed=0), requests)
    await load.closed(jobs, in_flight=_ROUTED_IN_FLIGHT, on_sample=tally)
    return [
        _routed(
            kind,
            tally.samples,
            explained=await explain(url, next(workload.of(kind)), model=load.model),
        )
        for kind in KINDS
    ]


def _routed(kind: Kind, samples: Sequence[Sample], *, explained: dict[str, Any]) -> Routed:
    mine = [sample for sample in samples if sample.job.kind == kind.name]
    (pool, _), *_ = Counter(sample.pool or PLAIN for sample in mine).most_common()
    return Routed(
        cell=measure(mine, kind=kind.name, pool=pool, in_flight=None),
        traffic_class=explained["class"],
        by_reason=dict(Counter(f"{sample.pool} {sample.reason}" for sample in mine)),
        why=explained["sentence"],
    )


async def explain(url: str, job: Job, *, model: str) -> dict[str, Any]:
    """Return what the gateway would do with `job` at this moment, as `turnout explain --json`."""
    body = {"model": model, "messages": list(job.messages), **job.body}
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=WAIT_S) as client:
        answer = await client.post("/explain", json={"body": body})
    answer.raise_for_status()
    explained: dict[str, Any] = answer.json()
    return explained
