"""What each stage of a request costs in Python alone, against budgets: `make costs`.

A stage and a reference of plain Python are timed in turn, in CPU time, so that a busy machine
slows both: the ratio is what has a budget. Of the ratios the median is taken, as it moves less
than that of the least times: for relaying an answer 10.5 to 11.6 instead of 9.6 to 14.2, with none
to three processes beside it that take all they get (28 November 2026, two cores).
"""

import asyncio
import inspect
from collections.abc import Callable, Iterator, Mapping
from statistics import median
from time import process_time
from typing import Any, NamedTuple

import pytest
import uvloop

from benchmarks.conftest import ROWS
from benchmarks.stages import CHUNKS, Work, gateway, works

pytestmark = pytest.mark.benchmark(timer=process_time, disable_gc=True)

ROUNDS, PER_ROUND = 15, 200


class Stage(NamedTuple):
    """One stage.

    Attributes:
        name: What it does.
        work: Which of `stages.works` that is.
        budget: Its cost over the reference's, at most: some 1.6 times what was measured on
            28 November 2026, since ratios differ between machines.
        of: Times of it in one call.
    """

    name: str
    work: str
    budget: float
    of: int = 1


STAGES = (
    Stage("parse", "parse", 0.42),
    Stage("features", "features", 1.9),
    Stage("classify", "classify", 3.8),
    Stage("decide", "decide", 7.4),
    Stage("relay an answer", "relay", 8.0),
    Stage("relay a chunk", "relay of a stream", 3.4, of=CHUNKS),
    Stage("a request, whole", "request", 42.0),
    Stage("a stream, whole, per chunk", "request of a stream", 4.2, of=CHUNKS),
)


@pytest.fixture(scope="module")
def rows(pytestconfig: pytest.Config) -> list[str]:
    found = pytestconfig.stash[ROWS]
    found += ["| stage | CPU us | over the reference | budget |", "|---|---:|---:|---:|"]
    return found


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as found:
        yield found


@pytest.fixture(scope="module")
def known() -> Iterator[Mapping[str, Work]]:
    with gateway() as app:
        yield works(app)
        app.pipeline.requests.close()


class Thing:
    """An object of the reference."""

    __slots__ = ("name", "numbers")

    def __init__(self, name: str, numbers: list[int]) -> None:
        self.name = name
        self.numbers = numbers


def reference() -> None:
    """Make twenty small objects, put them under their names and look at them.

    That is what most of a request's code does, so that what slows one slows the other. Over a loop
    that adds numbers, which needs no memory, the ratio of relaying moved by 17 %, not by 10 %.
    """
    found = {}
    for number in range(20):
        thing = Thing(f"n{number}", [number, number + 1])
        found[thing.name] = thing.numbers
    sum(numbers[0] for numbers in found.values())


def repeated(work: Work, times: int, runner: asyncio.Runner) -> Callable[[], None]:
    """Return what does `work` so many times."""

    def plainly() -> None:
        for _ in range(times):
            work()

    async def awaited() -> None:
        for _ in range(times):
            await work()  # type: ignore[misc]

    return (lambda: runner.run(awaited())) if inspect.iscoroutinefunction(work) else plainly


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name.replace(" ", "_"))
def test_a_stage_costs_no_more_than_its_budget(
    stage: Stage,
    known: Mapping[str, Work],
    runner: asyncio.Runner,
    rows: list[str],
    benchmark: Any,
) -> None:
    times = PER_ROUND // stage.of
    beside: list[float] = []

    def before() -> None:
        began = process_time()
        for _ in range(PER_ROUND):
            reference()
        beside.append((process_time() - began) / PER_ROUND)

    benchmark.pedantic(
        repeated(known[stage.work], times, runner), setup=before, rounds=ROUNDS, warmup_rounds=1
    )

    costs = [spent / times / stage.of for spent in benchmark.stats.stats.data]
    ratio = median(cost / other for cost, other in zip(costs, beside[-ROUNDS:], strict=True))
    row = f"| {stage.name} | {1e6 * median(costs):.1f} | {ratio:.2f} | {stage.budget:g} |"
    rows.append(row)
    assert ratio <= stage.budget, row
