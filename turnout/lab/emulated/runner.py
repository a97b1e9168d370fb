"""The engine model run in real time: sequences go in, deltas come out in time."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from math import inf

from turnout.lab.emulated.metrics import Exposition, SequenceTimes
from turnout.lab.emulated.output import Output
from turnout.lab.emulated.settings import EmulatedSettings
from turnout.simulation.engine import (
    NO_DRAFT,
    Engine,
    EngineRequest,
    StepResult,
    drafts_at,
)

logger = logging.getLogger(__name__)

WARN_BEHIND_S = 0.25
"""Lag above which a warning is logged: ten steps of the fastest preset."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """New output of one sequence: `tokens` more of them, and its finish reason if it is over."""

    index: int
    tokens: int
    finish_reason: str | None


@dataclass(slots=True, kw_only=True, eq=False)
class Generation:
    """One sequence on its way through the engine, and what has come out so far."""

    request: EngineRequest
    output: Output
    limit: int
    job: "Job"
    index: int
    arrived: float
    scheduled: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0
    emitted: int = 0
    taken: int = 0
    finish_reason: str | None = None
    accepted_counts: list[int] = field(default_factory=list)
    drafted: int = 0

    @property
    def times(self) -> SequenceTimes:
        """When it went through each stage."""
        return SequenceTimes(
            arrived=self.arrived,
            scheduled=self.scheduled,
            first_token=self.first_token,
            last_token=self.last_token,
        )


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """The sequences of one HTTP request."""

    sequences: list[Generation] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def deltas(self) -> AsyncIterator[Delta]:
        """Yield what is new until every sequence is over.

        As in vLLM, steps that a slow consumer missed arrive merged in one delta.
        """
        open_ = list(self.sequences)
        while open_:
            await self.news.wait()
            self.news.clear()
            for sequence in open_.copy():
                tokens = sequence.emitted - sequence.taken
                sequence.taken = sequence.emitted
                if sequence.finish_reason is not None:
                    open_.remove(sequence)
                if tokens or sequence.finish_reason is not None:
                    yield Delta(
                        index=sequence.index,
                        tokens=tokens,
                        finish_reason=sequence.finish_reason,
                    )


class Runner:
    """Owns the engine and its clock. `behind_s` is how far wall time has outrun the model's."""

    def __init__(
        self, settings: EmulatedSettings, metrics: Exposition, clock: Callable[[], float]
    ) -> None:
        self.settings = settings
        self.engine = Engine(settings.engine())
        self.behind_s = 0.0
        self.aborted = 0
        self.served = 0
        self.drained = asyncio.Event()
        self._metrics = metrics
        self._clock = clock
        self._work = asyncio.Event()
        self._goes = asyncio.Event()
        self._goes.set()
        self._left: list[str] = []
        self._sequences: dict[str, Generation] = {}
        self._drain_by: float | None = None
        self._warned = False
        self._preemptions = 0

    @property
    def draining(self) -> bool:
        """Whether a shutdown has been asked for."""
        return self._drain_by is not None

    @property
    def load(self) -> int:
        """HTTP requests being served."""
        return len({id(sequence.job) for sequence in self._sequences.values()})

    def full(self, more: int) -> bool:
        """Whether `more` sequences would exceed the queue limit."""
        cap = self.settings.max_num_queued_reqs
        return cap is not None and len(self._sequences) + more > cap

    def submit(self, planned: Sequence[tuple[EngineRequest, Output, int]]) -> Job:
        """Start the sequences (request, output, max_tokens) of one HTTP request."""
        job = Job()
        now = self._clock()
        for index, (request, output, limit) in enumerate(planned):
            sequence = Generation(
                request=request, output=output, limit=limit, job=job, index=index, arrived=now,
                accepted_counts=[0] * (self.settings.k + 1),
            )  # fmt: skip
            job.sequences.append(sequence)
            if self.draining:
                self._finish(sequence, "abort")
                continue
            self.engine.submit(request)
            self._sequences[request.id] = sequence
        self._work.set()
        return job

    def abort(self, job: Job) -> None:
        """End what is left of a job with the finish reason `abort`, as of now."""
        for sequence in job.sequences:
            if sequence.finish_reason is None:
                if self._goes.is_set():
                    self.engine.abort(sequence.request.id)
                else:
                    self._left.append(sequence.request.id)
                self._sequences.pop(sequence.request.id, None)
                self._finish(sequence, "abort")

    def drain(self) -> None:
        """Take no more work; abort what is left when the shutdown timeout has passed."""
        if self._drain_by is None:
            self._drain_by = self._clock() + self.settings.shutdown_timeout_s
            self._work.set()

    def freeze(self, frozen: bool) -> None:
        """Take no further step, or go on; until then, as in vLLM, none leaves the engine."""
        self._goes.clear() if frozen else self._goes.set()

    async def run(self) -> None:
        """Step the engine for as long as the server lives."""
        due = self._clock()
        while True:
            if not self._goes.is_set():
                await self._goes.wait()
                while self._left:
                    self.engine.abort(self._left.pop())
                due = self._clock()
            if self._drain_by is not None and self._clock() >= self._drain_by:
                for sequence in list(self._sequences.values()):
                    self.abort(sequence.job)
            started = due
            k = drafts_at(self.engine.settings, self.engine.running)
            result = self.engine.step()
            if result is None:
                if self.draining:
                    self.drained.set()
                self.behind_s = 0.0
                self._work.clear()
                await self._work.wait()
                due = self._clock()
                continue
            due += result.duration_s / self.settings.time_scale
            for request_id in result.admitted:
                sequence = self._sequences[request_id]
                sequence.scheduled = sequence.scheduled or max(started, sequence.arrived)
            await self._wait_until(due)
            self._publish(result, k)

    async def _wait_until(self, due: float) -> None:
        if self.settings.time_scale == inf:
            await asyncio.sleep(0)
            return
        early = due - self._clock()
        await asyncio.sleep(max(0.0, early))
        self.behind_s = max(0.0, self._clock() - due)
        late = self.behind_s > WARN_BEHIND_S
        if late and not self._warned:
            logger.warning("%s is %.2f s behind its own clock", self.settings.name, self.behind_s)
        self._warned = late

    def _publish(self, result: StepResult, k: int) -> None:
        now = self._clock()
        metrics = self._metrics
        metrics.observe("iteration_tokens_total", result.tokens)
        metrics.add("num_preemptions", self.engine.preemptions - self._preemptions)
        self._preemptions = self.engine.preemptions
        for request_id, tokens, accepted in result.emissions:
            sequence = self._sequences.get(request_id)
            if sequence is None:  # aborted while the step ran
                continue
            self._count(sequence, tokens, accepted, k, now)
            sequence.emitted += tokens
            sequence.last_token = now
            sequence.job.news.set()
        for request_id in result.finished:
            sequence = self._sequences.pop(request_id, None)
            if sequence is not None:
                self._finish(sequence, sequence.output.finish_reason)

    def _count(self, sequence: Generation, tokens: int, accepted: int, k: int, now: float) -> None:
        metrics = self._metrics
        metrics.add("generation_tokens", tokens)
        if accepted != NO_DRAFT:
            metrics.speculated(accepted, k)
            sequence.drafted += k
            sequence.accepted_counts[accepted] += 1
        if sequence.emitted:
            metrics.observe("inter_token_latency_seconds", now - sequence.last_token)
            return
        sequence.first_token = now
        prompt = sequence.request.prompt_tokens
        for name in ("prompt_tokens", "prefix_cache_queries"):
            metrics.add(name, prompt)
        metrics.add("prompt_tokens_by_source", prompt, "local_compute")
        metrics.observe("time_to_first_token_seconds", now - sequence.arrived)

    def _finish(self, sequence: Generation, reason: str) -> None:
        sequence.finish_reason = reason
        sequence.job.news.set()
        if reason == "abort":
            self.aborted += 1
            self._metrics.add("request_success", value="abort")
            return
        self.served += 1
        self._metrics.finished(
            reason,
            sequence.times,
            prompt=sequence.request.prompt_tokens,
            generated=sequence.emitted,
            limit=sequence.limit,
            n=len(sequence.job.sequences),
        )
