"""The sweep's requests: the same ones to both servers in turn, round by round over all cells.

Each round sends one request of every cell, so that a run that is stopped, or whose time is up,
has as many of each, and what disturbs the machine for a while disturbs all cells alike.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import cycle
from random import Random
from time import monotonic
from typing import NamedTuple

import httpx

from proxy.vllm_metrics import (
    SPEC_ACCEPTED,
    SPEC_DRAFT_TOKENS,
    Exposition,
)
from routing.acceptance import steps_of
from turnout.tuning.load import LoadGenerator
from turnout.tuning.material import Prompt
from turnout.tuning.report import TuningError
from turnout.tuning.sample import Job, Sample
from turnout.tuning.targets import Target, does_not_speculate, exposition, look

FEWEST_ROUNDS = 5
"""Requests of a cell under which its interval says nothing; cells are left out before that."""
_WARM_UP_TOKENS = 16
SPEC, PLAIN = "spec", "plain"


class Source(StrEnum):
    """Where acceptance was read, best first."""

    ENGINE = "engine"  # the answer's own metrics
    COUNTERS = "counters"  # by how much the server's counters rose
    CHUNKS = "chunks"  # output tokens against chunks with text


class Cell(NamedTuple):
    """What is measured: a task at a temperature."""

    task: str
    temperature: float

    def __str__(self) -> str:
        return f"{self.task}@{self.temperature:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One request of the sweep.

    Attributes:
        round: Its round, from 0.
        cell: Its cell.
        pool: `spec` or `plain`.
        sample: What came of it.
        source: Where `accepted` was read; None on the plain server.
        accepted: Draft tokens accepted; None where unknown. By chunks: tokens beyond one a chunk.
        drafted: Draft tokens proposed; None where unknown.
        disturbed: Whether the counters also counted other traffic.
        k: Draft tokens per step; 0 while unknown, or on the plain server.
    """

    round: int
    cell: Cell
    pool: str
    sample: Sample
    source: Source | None = None
    accepted: int | None = None
    drafted: int | None = None
    disturbed: bool = False
    k: int = 0

    @property
    def tau(self) -> float | None:
        """Tokens per engine step, (N - 1) / (N - 1 - A); None while unknown."""
        if self.steps is None or self.sample.tokens is None:
            return None
        return (self.sample.tokens - 1) / self.steps

    @property
    def steps(self) -> int | None:
        """Engine steps after the first token; None while unknown or none."""
        tokens = self.sample.tokens
        if tokens is None or self.accepted is None or tokens < 2:
            return None
        return steps_of(tokens - 1, self.accepted, self.k)

    @property
    def acceptance(self) -> float | None:
        """Accepted / drafted, in [0, 1]; None where nothing is known to have been drafted."""
        if self.accepted is None or not self.drafted:
            return None
        return min(1.0, self.accepted / self.drafted)


OnTrial = Callable[[Trial], None]


class Measuring:
    """Runs a sweep.

    Args:
        spec: The server that speculates.
        plain: The one that does not.
        prompts: By task.
        temperatures: Of each task.
        max_tokens: Output limit of every request.
        on_trial: Called at each request's end.
        clock: Seconds, monotonic.

    Attributes:
        cells: Those that are measured; some are given up where time is short.
        left_out: Those that were given up.
        source: Where acceptance is read.
    """

    def __init__(
        self,
        spec: Target,
        plain: Target,
        *,
        prompts: Mapping[str, Sequence[Prompt]],
        temperatures: Sequence[float],
        max_tokens: int,
        on_trial: OnTrial,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.cells = [Cell(task, each) for task in prompts for each in dict.fromkeys(temperatures)]
        self.left_out: list[Cell] = []
        self.source = Source.CHUNKS
        self._targets = {SPEC: spec, PLAIN: plain}
        self._jobs = {
            cell: _jobs(cell, prompts[cell.task], max_tokens=max_tokens) for cell in self.cells
        }
        self._on_trial = on_trial
        self._clock = clock
        self._order = Random(0)  # noqa: S311 - an order of requests, not a secret

    async def run(self, rounds: int, *, until: float | None = None) -> None:
        """Send `rounds` requests of each cell to each server, or as many as there is time for.

        Args:
            rounds: Requests of each cell.
            until: When time is up, on the clock: no round is begun that would not be over.

        Raises:
            TuningError: If a server refuses the first request.
        """
        spec, plain = (self._generator(pool) for pool in (SPEC, PLAIN))
        async with spec, plain:
            generators = {SPEC: spec, PLAIN: plain}
            await self._warm_up(generators)
            for number in range(rounds):
                began = self._clock()
                await self._round(number, generators)
                took_s = self._clock() - began
                if until is None:
                    continue
                if number == 0:
                    planned = len(self.cells)
                    self._give_up(int((until - began) / took_s), rounds)
                    took_s *= len(self.cells) / planned
                if self._clock() + took_s > until:
                    return

    def _generator(self, pool: str) -> LoadGenerator:
        target = self._targets[pool]
        return LoadGenerator(target.url, model=target.model, api_key=target.api_key)

    async def _warm_up(self, generators: Mapping[str, LoadGenerator]) -> None:
        """Send one short request of each task, which count nowhere, and see what is told."""
        firsts = {cell.task: cell for cell in reversed(self.cells)}
        for cell in firsts.values():
            job = next(self._jobs[cell])
            short = replace(job, body={**job.body, "max_tokens": _WARM_UP_TOKENS})
            for pool, generator in generators.items():
                sample = await generator.send(short)
                if sample.outcome != "ok":
                    raise TuningError(
                        f"{self._targets[pool].url} did not answer a request of {cell}: "
                        f"{sample.error or sample.status}; nothing was measured"
                    )
                if pool == SPEC and sample.accepted is not None:
                    self.source = Source.ENGINE
        if self.source is not Source.ENGINE and (seen := exposition(self._targets[SPEC])):
            if seen.speculates is False:
                raise TuningError(does_not_speculate(self._targets[SPEC]))
            if seen.speculates:
                self.source = Source.COUNTERS

    async def _round(self, number: int, generators: Mapping[str, LoadGenerator]) -> None:
        order = list(self.cells)
        self._order.shuffle(order)
        for place, cell in enumerate(order):
            job = next(self._jobs[cell])
            for pool in (SPEC, PLAIN) if (number + place) % 2 else (PLAIN, SPEC):
                self._on_trial(await self._trial(number, cell, pool, job, generators[pool]))

    async def _trial(
        self, number: int, cell: Cell, pool: str, job: Job, generator: LoadGenerator
    ) -> Trial:
        counts = pool == SPEC and self.source is Source.COUNTERS
        before = await self._scrape() if counts else None
        sample = await generator.send(job)
        trial = Trial(round=number, cell=cell, pool=pool, sample=sample)
        if pool == PLAIN:
            return trial
        trial = replace(trial, k=self._targets[SPEC].k)
        if self.source is Source.ENGINE:
            return replace(
                trial, source=Source.ENGINE, accepted=sample.accepted, drafted=sample.drafted
            )
        if before is not None and (after := await self._scrape()) is not None:
            return _counted(trial, before, after)
        return _by_chunks(trial)

    async def _scrape(self) -> Exposition | None:
        async with httpx.AsyncClient(trust_env=False) as client:
            return await look(client, self._targets[SPEC])

    def _give_up(self, possible: int, wanted: int) -> None:
        """Leave out cells until the rest can have `FEWEST_ROUNDS`, temperatures before tasks.

        The ends of the range say most, so the temperatures between them go first.
        """
        keep = len(self.cells) * possible / min(wanted, FEWEST_ROUNDS)
        for cell in _dispensable(self.cells):
            if len(self.cells) <= max(1.0, keep):
                return
            self.cells.remove(cell)
            self.left_out.append(cell)


def _jobs(cell: Cell, prompts: Sequence[Prompt], *, max_tokens: int) -> Iterator[Job]:
    for prompt in cycle(prompts):
        body = {"temperature": cell.temperature, "max_tokens": max_tokens, **prompt.body}
        yield Job(
            kind=str(cell), true_task=cell.task, messages=prompt.messages, body=body, stream=True
        )


def _dispensable(cells: Sequence[Cell]) -> list[Cell]:
    """Return cells in the order in which to do without them."""
    temperatures = sorted({cell.temperature for cell in cells})
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    between = temperatures[1:-1]
    ends = [each for each in temperatures if each not in between]
    return [
        *(Cell(task, each) for each in between for task in reversed(tasks)),
        *(Cell(task, each) for task in reversed(tasks) for each in reversed(ends)),
    ]


def _counted(trial: Trial, before: Exposition, after: Exposition) -> Trial:
    """Take from the counters what one request accepted; they may have counted others as well."""
    accepted = after.total(SPEC_ACCEPTED) - before.total(SPEC_ACCEPTED)
    drafted = after.total(SPEC_DRAFT_TOKENS) - before.total(SPEC_DRAFT_TOKENS)
    generated = after.grown("generation_tokens", before)
    return replace(
        trial,
        source=Source.COUNTERS,
        accepted=round(accepted),
        drafted=round(drafted),
        disturbed=generated != (trial.sample.tokens or 0),
    )


def _by_chunks(trial: Trial) -> Trial:
    """Count each chunk with text as a step: accepted tokens are those beyond one a chunk."""
    sample = trial.sample
    if sample.tokens is None or sample.gaps_s is None:
        return replace(trial, source=Source.CHUNKS)
    return replace(
        trial, source=Source.CHUNKS, accepted=max(0, sample.tokens - 1 - len(sample.gaps_s))
    )
