"""A load that rises and falls, and a server that dies under it."""

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median

from turnout.lab import Lab, LabError, ServerPlan
from turnout.tuning.comparison import PLAIN, SPEC, explain
from turnout.tuning.holding import Advance, Tally, hold
from turnout.tuning.load import LoadGenerator
from turnout.tuning.sample import Job, Sample

SHED_REASONS = frozenset({"shed", "limit:in_flight", "limit:qps"})
"""A mark that the config writes is a limit, and is named as one."""

RISE = (2, 4, 8, 16, 32)
"""Requests in flight, step by step, until some are shed."""

_FALLING_STEPS = 3
_BEFORE_KILL = 3
_UNDER_KILL = 6
_AFTER_KILL = 10
_UNDER_RESTART = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One load that was held.

    Attributes:
        in_flight: Requests held in flight.
        requests: Requests that ended.
        by_pool: How many each pool answered.
        shed: How many of each kind left the spec pool because of its load.
        reasons: The reasons that those answers carried.
        tpot_s: Median over all kinds, s.
        why: What the gateway said of a request that it shed, if it would shed it then too.
        failed: Requests lost or cut.
    """

    in_flight: int
    requests: int
    by_pool: dict[str, int]
    shed: dict[str, int]
    reasons: Sequence[str]
    tpot_s: float | None
    why: str | None
    failed: int


async def rise_and_fall(
    load: LoadGenerator, jobs: Iterator[Job], *, url: str, advance: Advance
) -> list[Step]:
    """Raise the load until requests are shed, then let it fall until none is."""
    steps: list[Step] = []
    for in_flight in RISE:
        steps.append(await _step(load, jobs, url=url, in_flight=in_flight, advance=advance))
        if steps[-1].shed:
            break
    for _ in range(_FALLING_STEPS):
        steps.append(await _step(load, jobs, url=url, in_flight=RISE[0], advance=advance))
        if not steps[-1].shed and steps[-1].by_pool.get(SPEC):
            break
    return steps


async def _step(
    load: LoadGenerator, jobs: Iterator[Job], *, url: str, in_flight: int, advance: Advance
) -> Step:
    """Hold a load until it had two requests for each in flight; ask why some are shed."""
    tally = Tally(advance)
    wanted = 2 * in_flight
    why: list[str] = []

    async def watch() -> None:
        await tally.until(lambda samples: len(samples) >= wanted or bool(_shed(samples)))
        for sample in _shed(tally.samples)[:1]:
            explained = await explain(url, sample.job, model=load.model)
            if explained["reason"] in SHED_REASONS:
                why.append(explained["sentence"])
        await tally.until(lambda samples: len(samples) >= wanted)

    await hold(load, jobs, in_flight=in_flight, tally=tally, meanwhile=watch)
    shed = _shed(tally.samples)
    times = [sample.tpot_s for sample in tally.samples if sample.tpot_s is not None]
    return Step(
        in_flight=in_flight,
        requests=len(tally.samples),
        by_pool=dict(Counter(sample.pool or "none" for sample in tally.samples)),
        shed=dict(Counter(sample.job.kind for sample in shed)),
        reasons=sorted({str(sample.reason) for sample in shed}),
        tpot_s=median(times) if times else None,
        why=why[0] if why else None,
        failed=sum(sample.outcome != "ok" for sample in tally.samples),
    )


def _shed(samples: Sequence[Sample]) -> list[Sample]:
    return [sample for sample in samples if sample.reason in SHED_REASONS]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """What a killed spec server meant for the requests.

    Attributes:
        under_way: Requests that were in flight when it was killed.
        moved: Of them, those that another backend answered instead.
        cut: Requests whose answer ended after its first byte.
        lost: Requests that failed without a byte.
        errors: How often each error was seen.
        on_plain: Requests sent while it was down that the plain pool answered.
        elsewhere: Requests sent while it was down that it did not answer.
        back_after_s: From the server being up again to its first answer; None if it gave none.
    """

    under_way: int
    moved: int
    cut: int
    lost: int
    errors: dict[str, int]
    on_plain: int
    elsewhere: int
    back_after_s: float | None


async def outage(
    load: LoadGenerator, jobs: Iterator[Job], *, lab: Lab, plan: ServerPlan, advance: Advance
) -> Outage:
    """Kill the spec server under load, then bring it back under a light one."""
    tally = Tally(advance)
    killed_at = gone_at = back_at = 0.0

    async def kill() -> None:
        nonlocal killed_at, gone_at
        await tally.until(lambda samples: len(_by_spec(samples)) >= _BEFORE_KILL)
        killed_at = load.clock()
        await asyncio.to_thread(lab.kill, plan.name)
        gone_at = load.clock()
        await tally.until(lambda samples: len(_since(samples, gone_at)) >= _AFTER_KILL)

    async def restart() -> None:
        nonlocal back_at
        await start_again(lab, plan)
        back_at = load.clock()
        await tally.until(lambda samples: bool(_by_spec(_since(samples, gone_at))))

    await hold(load, jobs, in_flight=_UNDER_KILL, tally=tally, meanwhile=kill, finish=True)
    down = _since(tally.samples, gone_at)
    await hold(load, jobs, in_flight=_UNDER_RESTART, tally=tally, meanwhile=restart, finish=True)
    under_way = [s for s in tally.samples if s.sent_s <= gone_at and s.ended_s > killed_at]
    returned = [sample.ended_s for sample in _by_spec(_since(tally.samples, gone_at))]
    on_plain = sum(sample.pool == PLAIN and sample.outcome == "ok" for sample in down)
    outcomes = Counter(sample.outcome for sample in tally.samples)
    return Outage(
        under_way=len(under_way),
        moved=sum(s.outcome == "ok" and s.reason == "unavailable" for s in under_way),
        cut=outcomes["cut"],
        lost=outcomes["lost"],
        errors=dict(Counter(s.error for s in tally.samples if s.error is not None)),
        on_plain=on_plain,
        elsewhere=len(down) - on_plain,
        back_after_s=max(0.0, min(returned) - back_at) if returned else None,
    )


def _by_spec(samples: Sequence[Sample]) -> list[Sample]:
    return [sample for sample in samples if sample.pool == SPEC and sample.outcome == "ok"]


def _since(samples: Sequence[Sample], moment: float) -> list[Sample]:
    return [sample for sample in samples if sample.sent_s > moment]


async def start_again(lab: Lab, plan: ServerPlan) -> None:
    """Start a server; when cancelled, end it, so that the thread which waits for it ends too."""
    try:
        await asyncio.to_thread(lab.start, plan)
    except asyncio.CancelledError:
        with suppress(LabError):
            lab.kill(plan.name)
        raise
