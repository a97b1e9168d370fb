"""The bench's requests: every step on every target, in turns."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from itertools import islice

from turnout.tuning.arrivals import shaped
from turnout.tuning.bench.plan import Step, Workload
from turnout.tuning.holding import Tally, hold
from turnout.tuning.load import LoadGenerator
from turnout.tuning.report import TuningError
from turnout.tuning.sample import Job, Sample
from turnout.tuning.targets import Target

OVER = 1.5
"""Requests of a closed step over those in flight, at least: so that most begin and end in it."""
BATCHES = 3
"""Batches from which capacity is told, the first of them to fill it."""
_WARM_UP_TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One step on one target in one round.

    Attributes:
        step: The load.
        target: Name of the target.
        round: Number of the round, from 0.
        samples: What came of its requests.
        seconds: How long it took, the first request to the last one's end.
    """

    step: Step
    target: str
    round: int
    samples: Sequence[Sample]
    seconds: float


class Bench:
    """Runs steps.

    Args:
        targets: Servers or gateways, each under a name of its own.
        workload: The requests.
        requests: Of a closed step on a target in a round, at least.
        seconds: How long an open step sends.
        shape: Of an open step's arrivals (`turnout.tuning.arrivals.SHAPES`).
        trace: Arrivals to use instead, seconds; `seconds` and `shape` do not count then.
        on_sample: Called at each request's end.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        workload: Workload,
        *,
        requests: int,
        seconds: float,
        shape: str,
        trace: Sequence[float] | None,
        on_sample: Callable[[], None],
    ) -> None:
        self._targets = targets
        self._workload = workload
        self._requests = requests
        self._seconds = seconds
        self._shape = shape
        self._trace = trace
        self._on_sample = on_sample
        self._generators: dict[str, LoadGenerator] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> "Bench":
        for target in self._targets:
            generator = LoadGenerator(target.url, model=target.model, api_key=target.api_key)
            self._generators[target.name] = await self._stack.enter_async_context(generator)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def warm_up(self) -> None:
        """Send a short request of each kind to each target; they count nowhere.

        Raises:
            TuningError: If one is not answered.
        """
        for kind in self._workload.mix:
            step = Step(name="warm-up", kind=kind.label, in_flight=1)
            job = next(self._workload.jobs(step, seed="warm-up"))
            short = replace(job, body={**job.body, "max_tokens": _WARM_UP_TOKENS})
            for target in self._targets:
                sample = await self._generators[target.name].send(short)
                if sample.outcome != "ok":
                    raise TuningError(
                        f"{target.url} did not answer a request of {kind.label}: "
                        f"{sample.error or sample.status}; nothing was measured"
                    )

    async def capacity_per_s(self, target: Target, *, in_flight: int) -> float:
        """Return the requests per second that a target can do of the mix, its batch kept full."""
        step = Step(name="capacity", kind="", in_flight=in_flight)
        run = await self._closed(step, target, 0, requests=BATCHES * in_flight)
        found = full_rate(
            [sample.ended_s for sample in run.samples if sample.outcome == "ok"], in_flight
        )
        if found is None:
            raise TuningError(f"{target.url} did not answer enough requests to tell its capacity")
        return found

    async def run(self, step: Step, round_number: int) -> list[Run]:
        """Run a step on every target; each round begins with another one."""
        turn = round_number % len(self._targets)
        order = [*self._targets[turn:], *self._targets[:turn]]
        if step.rate_per_s is None:
            return [
                await self._closed(step, target, round_number, requests=self._requests)
                for target in order
            ]
        return [await self._open(step, target, round_number) for target in order]

    def expected(self, step: Step) -> int:
        """Return how many requests a target is sent at a step in a round, about."""
        if step.rate_per_s is None:
            return self._enough(step, self._requests)
        return round(step.rate_per_s * self._seconds) if self._trace is None else len(self._trace)

    def _enough(self, step: Step, requests: int) -> int:
        return max(requests, round(OVER * step.in_flight))

    async def _closed(self, step: Step, target: Target, number: int, *, requests: int) -> Run:
        """Hold requests in flight; those that end when no more are begun are left out."""
        tally, generator = Tally(self._on_sample), self._generators[target.name]
        enough = self._enough(step, requests)
        jobs = self._workload.jobs(step, seed=f"{step.name} {number}")
        began = generator.clock()

        async def until() -> None:
            await tally.until(lambda samples: len(samples) >= enough)

        await hold(generator, jobs, in_flight=step.in_flight, tally=tally, meanwhile=until)
        samples = tally.samples[:enough]
        if not samples:
            raise TuningError(f"{target.url} answered nothing for two minutes at {step.name}")
        ended = max(sample.ended_s for sample in samples)
        return Run(
            step=step, target=target.name, round=number, samples=samples, seconds=ended - began
        )

    async def _open(self, step: Step, target: Target, number: int) -> Run:
        generator, samples = self._generators[target.name], list[Sample]()
        arrivals = list(self._arrivals(step, number))
        jobs: Iterator[Job] = islice(
            self._workload.jobs(step, seed=f"{step.name} {number}"), len(arrivals)
        )

        def note(sample: Sample) -> None:
            samples.append(sample)
            self._on_sample()

        began = generator.clock()
        await generator.open(jobs, arrivals=arrivals, on_sample=note, max_in_flight=step.in_flight)
        return Run(
            step=step,
            target=target.name,
            round=number,
            samples=samples,
            seconds=generator.clock() - began,
        )

    def _arrivals(self, step: Step, number: int) -> Sequence[float]:
        if self._trace is not None:
            return self._trace
        assert step.rate_per_s is not None  # noqa: S101 - of open steps only
        found = list(shaped(self._shape, step.rate_per_s, seconds=self._seconds, seed=number + 1))
        return found or [0.0]


def full_rate(ends: Sequence[float], in_flight: int) -> float | None:
    """Return the requests per second of a batch kept full; None where too few ended.

    It counts from the end of the first batch, in which it was filled, to the last end, so that
    batches whose requests end together have the rate of those whose do not.

    Args:
        ends: When requests ended, s; those of whole batches.
        in_flight: Size of the batch.
    """
    first = min(in_flight, len(ends) // 2)
    if first < 1:
        return None
    ordered = sorted(ends)
    seconds = ordered[-1] - ordered[first - 1]
    return (len(ordered) - first) / seconds if seconds > 0.0 else None
