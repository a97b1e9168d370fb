"""The load generator: sends jobs with the `openai` client and reports each one's `Sample`.

A closed loop holds a number of requests in flight, an open loop sends at given times whatever
comes back (`turnout.tuning.arrivals`). Both take jobs from an iterable and end when it does, so
that a generator which looks at the clock, a count or an event decides how long a run is. Samples
go to a callback as they arrive; nothing is kept. A cancelled run closes its connections, so that
the engines stop.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from types import TracebackType
from typing import Self, cast

import httpx2
import openai
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessageParam

from turnout.tuning.sample import Job, Sample

OnSample = Callable[[Sample], None]

MAX_IN_FLIGHT = 1000
"""Bound on an open loop's requests, that of the client's connections; beyond it requests leave
late, which `Sample.late_s` shows."""

_ABORT = "abort"  # vLLM's finish reason for a request that its engine gave up


@dataclass(slots=True, kw_only=True)
class _Seen:
    """What has been seen of a request so far."""

    begun: bool = False
    finish_reason: str | None = None
    status: int | None = None
    error: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    first_at: float | None = None
    last_at: float | None = None
    gaps_s: list[float] = field(default_factory=list)
    prompt_tokens: int | None = None
    tokens: int | None = None
    accepted: int | None = None
    drafted: int | None = None

    def note_head(self, status: int, headers: Mapping[str, str]) -> None:
        self.status, self.headers = status, headers

    def note_text(self, now: float) -> None:
        if self.last_at is None:
            self.first_at = now
        else:
            self.gaps_s.append(now - self.last_at)
        self.last_at = now

    def note_usage(self, answer: ChatCompletion | ChatCompletionChunk) -> None:
        """Take token counts, and acceptance where the server tells it (vLLM's `metrics`)."""
        if answer.usage is not None:
            self.tokens = answer.usage.completion_tokens
            self.prompt_tokens = answer.usage.prompt_tokens
        speculative = _speculative(answer)
        self.accepted = speculative.get("num_accepted_draft_tokens", self.accepted)
        self.drafted = speculative.get("num_draft_tokens", self.drafted)

    def sample(self, job: Job, *, due: float, sent: float, ended: float) -> Sample:
        complete = self.error is None and self.finish_reason not in (None, _ABORT)
        tpot_s = None
        if self.first_at is not None and self.last_at is not None and (self.tokens or 0) > 1:
            tpot_s = (self.last_at - self.first_at) / ((self.tokens or 0) - 1)
        return Sample(
            job=job,
            sent_s=sent,
            late_s=sent - due,
            ended_s=ended,
            begun=self.begun,
            complete=complete,
            status=self.status,
            error=self.error or (None if complete else self.finish_reason or "no_end"),
            pool=self.headers.get("x-turnout-pool"),
            backend=self.headers.get("x-turnout-backend"),
            reason=self.headers.get("x-turnout-reason"),
            traffic_class=self.headers.get("x-turnout-class"),
            ttft_s=None if self.first_at is None else self.first_at - sent,
            tpot_s=tpot_s,
            prompt_tokens=self.prompt_tokens,
            tokens=self.tokens,
            accepted=self.accepted,
            drafted=self.drafted,
            gaps_s=self.gaps_s if job.stream else None,
        )


class LoadGenerator:
    """Sends jobs to one gateway or server.

    Retries are off: a failure that a client's retry would hide is what a run is to show.

    Args:
        url: Base URL, without `/v1`.
        model: Model named in every request.
        api_key: Sent as the bearer token.
        timeout_s: For each wait on the network.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str,
        api_key: str = "unused",
        timeout_s: float = 300.0,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self.model = model
        self.clock = clock
        self._client = openai.AsyncOpenAI(
            base_url=f"{url}/v1", api_key=api_key, timeout=timeout_s, max_retries=0
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._client.close()

    async def closed(self, jobs: Iterable[Job], *, in_flight: int, on_sample: OnSample) -> None:
        """Send `jobs` with `in_flight` at a time; return when the last has ended."""
        waiting = iter(jobs)

        async def work() -> None:
            for job in waiting:
                on_sample(await self.send(job))

        async with asyncio.TaskGroup() as group:
            for _ in range(in_flight):
                group.create_task(work())

    async def open(
        self,
        jobs: Iterable[Job],
        *,
        arrivals: Iterable[float],
        on_sample: OnSample,
        max_in_flight: int = MAX_IN_FLIGHT,
    ) -> None:
        """Send each of `jobs` when it is due, and wait for the last.

        Args:
            jobs: What to send; the run ends with them, or with `arrivals`.
            arrivals: When each is due, seconds from now, rising.
            on_sample: Called at each request's end.
            max_in_flight: Beyond it requests leave late.
        """
        room = asyncio.Semaphore(max_in_flight)
        began = self.clock()

        async def fire(job: Job, due: float) -> None:
            try:
                on_sample(await self.send(job, due=due))
            finally:
                room.release()

        async with asyncio.TaskGroup() as group:
            for job, arrives_s in zip(jobs, arrivals, strict=False):
                due = began + arrives_s
                await asyncio.sleep(max(0.0, due - self.clock()))
                await room.acquire()
                group.create_task(fire(job, due))

    async def send(self, job: Job, *, due: float | None = None) -> Sample:
        """Send one job and return what came of it; failures are results, never exceptions.

        Args:
            job: What to send.
            due: When it should have been sent, on the generator's clock; now by default.
        """
        seen = _Seen()
        sent = self.clock()
        try:
            await (self._stream(job, seen) if job.stream else self._ask(job, seen))
        except openai.APIStatusError as error:
            seen.note_head(error.status_code, error.response.headers)
            seen.error = error.type or f"status_{error.status_code}"
        except openai.APITimeoutError:
            seen.error = "timeout"
        except (openai.APIConnectionError, httpx2.HTTPError):
            seen.error = "connection"
        except openai.APIError as error:
            seen.error = error.type or "error_event"
        except (ValueError, AttributeError, IndexError):
            seen.error = "malformed"  # the client does not check what it parses
        due = sent if due is None else due
        return seen.sample(job, due=due, sent=sent, ended=self.clock())

    async def _stream(self, job: Job, seen: _Seen) -> None:
        async with self._client.chat.completions.with_streaming_response.create(
            model=self.model,
            messages=_messages(job),
            stream=True,
            stream_options={"include_usage": True},
            extra_body=dict(job.body),
            extra_headers=dict(job.headers),
        ) as response:
            seen.begun = True
            seen.note_head(response.status_code, response.headers)
            async for chunk in await response.parse():
                for choice in chunk.choices:
                    if choice.delta.content or choice.finish_reason:
                        seen.note_text(self.clock())
                    seen.finish_reason = choice.finish_reason or seen.finish_reason
                seen.note_usage(chunk)

    async def _ask(self, job: Job, seen: _Seen) -> None:
        async with self._client.chat.completions.with_streaming_response.create(
            model=self.model,
            messages=_messages(job),
            extra_body=dict(job.body),
            extra_headers=dict(job.headers),
        ) as response:
            seen.begun = True
            seen.note_head(response.status_code, response.headers)
            answer = await response.parse()
            seen.finish_reason = answer.choices[0].finish_reason
            seen.note_usage(answer)


def _speculative(answer: ChatCompletion | ChatCompletionChunk) -> Mapping[str, int]:
    """Return what vLLM tells of an answer's drafts; empty where it does not."""
    metrics = (answer.model_extra or {}).get("metrics") or {}
    return metrics.get("speculative_decoding") or {}


def _messages(job: Job) -> list[ChatCompletionMessageParam]:
    return cast("list[ChatCompletionMessageParam]", [dict(message) for message in job.messages])
