"""From a parsed request to its deltas: checks, composes, submits, reads, notices who leaves."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from random import Random
from typing import Any
from uuid import uuid4

from starlette.requests import Request

from turnout.lab.emulated.metrics import Exposition
from turnout.lab.emulated.output import Output, compose
from turnout.lab.emulated.protocol import ApiError, Call, OpenAIRequest, Sampling, bad_value
from turnout.lab.emulated.runner import Generation, Runner
from turnout.lab.emulated.settings import EmulatedSettings
from turnout.lab.emulated.tokens import tokenize
from turnout.simulation.acceptance import UNKNOWN_TASK
from turnout.simulation.engine import EngineRequest

GREEDY_BELOW = 1e-5
"""vLLM's `_SAMPLING_EPS`: a lower temperature is greedy, and resets `min_p`."""

ABORT_AFTER = "emulated_abort_after"
"""Scope key of the `abort` fault: deltas after which the engine aborts the request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What one request wants generated.

    Attributes:
        prompts: Rendered prompts, one sequence each per `n`.
        last_words: The user's last message, which an echo repeats.
        limit: `max_tokens`; None for as many as fit.
        stop: Stop strings.
        schema: JSON schema of the answer, if it is to be JSON.
        tool: Name of the function to call.
        forced: Whether the caller named that function.
    """

    prompts: Sequence[str]
    last_words: str
    limit: int | None
    stop: Sequence[str] = ()
    schema: Mapping[str, Any] | None = None
    tool: str | None = None
    forced: bool = False


def unix_now() -> int:
    """Return wall time for `created`, s."""
    return int(datetime.now(UTC).timestamp())


def fresh_id() -> str:
    """Return 16 random hexadecimal digits, as vLLM's ids have."""
    return uuid4().hex[:16]


class Service:
    """One emulated server behind its routes."""

    def __init__(self, settings: EmulatedSettings, runner: Runner, metrics: Exposition) -> None:
        self.settings = settings
        self.runner = runner
        self.metrics = metrics
        self._numbers = count()

    def start(self, request: Request, body: Sampling, wanted: Wanted, *, prefix: str) -> Call:
        """Check a request and submit its sequences.

        Raises:
            ApiError: What vLLM answers instead, before the first byte of a stream.
        """
        self.check_model(body.model)
        self._check_sampling(body, wanted)
        if self.runner.draining and self.settings.shutdown_answer == "error":
            raise ApiError(
                500, "cannot schedule new futures after shutdown", "InternalServerError"
            )
        lengths = [self._checked_length(prompt) for prompt in wanted.prompts]
        sequences = len(lengths) * body.n
        if self.runner.full(sequences):
            self.metrics.rejections.labels(self.settings.model_name, "max_num_queued_reqs").inc()
            raise ApiError(
                503,
                "The engine is currently busy and cannot accept new requests. "
                "Please try again later or on a different instance.",
                "Service Unavailable",
            )
        planned = [
            self._plan(body, wanted, prompt, length, choice)
            for prompt, length in zip(wanted.prompts, lengths, strict=True)
            for choice in range(body.n)
        ]
        call = Call(
            id=prefix + (request.headers.get("x-request-id") or fresh_id()),
            created=unix_now(),
            model=self.settings.model_name,
            prompt_tokens=sum(lengths),
            job=self.runner.submit(planned),
            settings=self.settings,
            tool=wanted.tool,
            forced=wanted.forced,
        )
        if request.scope.get(ABORT_AFTER) == 0:
            self.runner.abort(call.job)
        return call

    def check_model(self, model: str | None) -> None:
        """Raise vLLM's 404 unless `model` is served here; none or an empty one is accepted."""
        served = self.settings.model_name
        if model and model != served:
            raise ApiError(
                404,
                f"The model `{model}` does not exist. Valid aliases: {served}.",
                "NotFoundError",
                "model",
            )

    def refuses(self, body: Sampling) -> ApiError | None:
        """Return the refusal of `min_p` and `logit_bias` by a server that speculates.

        It comes late in vLLM: a stream has its status 200 by then.
        """
        min_p = bool(body.min_p) and temperature(body) >= GREEDY_BELOW
        if self.settings.speculation == "none" or not (min_p or body.logit_bias):
            return None
        return ApiError(
            400,
            "The min_p and logit_bias sampling parameters are not yet supported with "
            "speculative decoding.",
        )

    def _check_sampling(self, body: Sampling, wanted: Wanted) -> None:
        longest = self.settings.hardware.max_model_len
        heat, limit = temperature(body), wanted.limit
        if isinstance(body, OpenAIRequest) and body.stream_options and not body.stream:
            message = "Stream options can only be defined when `stream=True`."
            raise ApiError(400, f"{message} (parameter=stream_options)", param="stream_options")
        if limit is not None and limit > longest:
            message = (
                f"max_tokens={limit} cannot be greater than max_model_len={longest}. "
                "Please request fewer output tokens."
            )
            raise bad_value(message, "max_tokens", limit)
        if body.n < 1:
            raise ApiError(400, f"n must be at least 1, got {body.n}.")
        if heat < 0.0:
            raise bad_value(f"temperature must be non-negative, got {heat}.", "temperature", heat)
        if body.top_p is not None and not 0.0 < body.top_p <= 1.0:
            raise bad_value(f"top_p must be in (0, 1], got {body.top_p}.", "top_p", body.top_p)
        if body.min_p is not None and not 0.0 <= body.min_p <= 1.0:
            raise ApiError(400, f"min_p must be in [0, 1], got {body.min_p}.")
        if limit is not None and limit < 1:
            raise bad_value(f"max_tokens must be at least 1, got {limit}.", "max_tokens", limit)
        if body.n > 1 and heat < GREEDY_BELOW:
            raise ApiError(400, f"n must be 1 when using greedy sampling, got {body.n}.")

    def _checked_length(self, prompt: str) -> int:
        longest = self.settings.hardware.max_model_len
        length = len(tokenize(prompt))
        if length > longest:
            # vLLM truncates while tokenising, hence "at least" and one token over.
            message = (
                f"This model's maximum context length is {longest} tokens. However, your prompt "
                f"contains at least {longest + 1} input tokens, which exceeds this limit even "
                "without any output tokens. Please reduce the length of the input prompt."
            )
            raise bad_value(message, "input_tokens", longest + 1)
        return max(1, length)

    def _plan(
        self, body: Sampling, wanted: Wanted, prompt: str, length: int, choice: int
    ) -> tuple[EngineRequest, Output, int]:
        number = next(self._numbers)
        heat = temperature(body)
        source: object = body.seed
        if source is None:
            source = "greedy" if heat < GREEDY_BELOW else f"{self.settings.seed}:{number}"
        random = Random(f"{source}/{choice}/{prompt}")  # noqa: S311 - pseudo-text, not a secret
        told = body.vllm_xargs or {}
        room = max(1, self.settings.hardware.max_model_len - length)
        limit = min(wanted.limit or room, room)
        exact = limit + 1 if body.ignore_eos else _number(told.get("output_tokens"))
        output = compose(
            prompt=wanted.last_words,
            schema=wanted.schema,
            limit=limit,
            length=None if exact is None else int(exact),
            stop=wanted.stop,
            random=random,
        )
        request = EngineRequest(
            id=str(number),
            prompt_tokens=length,
            output_tokens=len(output.tokens),
            task=str(told.get("true_task", UNKNOWN_TASK)),
            temperature=heat,
            acceptance=_number(told.get("acceptance")),
            seed=random.getrandbits(32),
        )
        return request, output, limit

    async def read(self, request: Request, call: Call) -> AsyncIterator[tuple[Generation, str]]:
        """Yield each delta's sequence and text, and add the text to `call.texts`.

        Raises:
            ApiError: If the server is going down and answers with errors.
        """
        abort_after = request.scope.get(ABORT_AFTER)
        number = 0
        async for delta in call.job.deltas():
            sequence = call.job.sequences[delta.index]
            if delta.finish_reason == "abort" and self._dies_with_errors:
                raise ApiError(
                    500,
                    "EngineCore encountered an issue. See stack trace (above) for the root cause.",
                    "InternalServerError",
                )
            end = "".join(sequence.output.tokens[: sequence.taken])[: len(sequence.output.text)]
            text = end[len(call.texts[delta.index]) :]
            call.texts[delta.index] = end
            yield sequence, text
            number += 1
            if abort_after is not None and number >= abort_after:
                self.runner.abort(call.job)

    @property
    def _dies_with_errors(self) -> bool:
        return self.runner.draining and self.settings.shutdown_answer == "error"

    async def collect(self, request: Request, call: Call) -> None:
        """Read a call to its end, or abort it when its client leaves.

        Raises:
            ApiError: As `read`.
        """
        failure: ApiError | None = None
        async with asyncio.TaskGroup() as tasks:
            watch = tasks.create_task(self._abort_when_gone(request, call))
            try:
                async for _ in self.read(request, call):
                    pass
            except ApiError as error:
                failure = error
            watch.cancel()
        if failure is not None:
            raise failure

    async def _abort_when_gone(self, request: Request, call: Call) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self.runner.abort(call.job)


def temperature(body: Sampling) -> float:
    """Return the effective temperature: vLLM's default is 1."""
    return 1.0 if body.temperature is None else body.temperature


def stop_list(stop: str | list[str] | None) -> list[str]:
    """Return stop strings as a list."""
    return [stop] if isinstance(stop, str) else stop or []


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
