"""vLLM's request fields that matter here, its errors, and the bodies of chat and completions."""

import json
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from turnout.lab.emulated.runner import Generation, Job
from turnout.lab.emulated.settings import VERSION, EmulatedSettings

Json = dict[str, Any]
_BODIES: Json = json.loads(Path(__file__).with_name("bodies.json").read_text())


def filled(name: str, **fields: Any) -> Json:
    """Return vLLM's body of this name in `bodies.json`, its constants kept, with these fields."""
    body: Json = deepcopy(_BODIES[name])
    return body | fields


class ApiError(Exception):
    """A refusal with vLLM's status, message, type and param."""

    def __init__(
        self, status: int, message: str, kind: str = "BadRequestError", param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message.encode("utf-8", "backslashreplace").decode()  # half a pair is none
        self.kind = kind
        self.param = param

    @property
    def body(self) -> Json:
        """OpenAI's shape, as vLLM sends it."""
        fields = {"message": self.message, "type": self.kind, "param": self.param}
        return {"error": fields | {"code": self.status}}

    @property
    def anthropic_body(self) -> Json:
        """Anthropic's shape, on `/v1/messages`."""
        return {"type": "error", "error": {"type": self.kind, "message": self.message}}


def bad_value(message: str, param: str, value: object) -> ApiError:
    """Return the 400 of a parameter out of its range."""
    return ApiError(400, f"{message} (parameter={param}, value={value})", param=param)


class Sampling(BaseModel):
    """The fields that all generation routes share; unknown ones are let through, as in vLLM."""

    model_config = ConfigDict(extra="allow")
    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    min_p: float | None = None
    n: int = 1
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = False
    logit_bias: dict[str, float] | None = None
    ignore_eos: bool = False
    vllm_xargs: dict[str, str | float | int | list[str | float]] | None = None


class StreamOptions(BaseModel):
    """Which usage a stream carries."""

    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class OpenAIRequest(Sampling):
    """What chat and completions add."""

    max_tokens: int | None = None
    stream_options: StreamOptions | None = None

    @property
    def include_usage(self) -> bool:
        """Whether a last chunk with usage is asked for."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        """Whether every chunk carries usage; needs `include_usage` too."""
        options = self.stream_options
        return bool(options and options.include_usage and options.continuous_usage_stats)


class ChatRequest(OpenAIRequest):
    """`POST /v1/chat/completions`."""

    messages: list[Json]
    max_completion_tokens: int | None = None
    tools: list[Json] | None = None
    tool_choice: str | Json | None = None
    response_format: Json | None = None


def schema_of(response_format: Json | None) -> Json | None:
    """Return the JSON schema of a `response_format` of chat or a `text.format` of responses."""
    kind = (response_format or {}).get("type")
    if response_format is None or kind not in ("json_object", "json_schema"):
        return None
    wrapper = response_format.get("json_schema") or response_format
    return dict(wrapper.get("schema") or {"type": "object"})


class CompletionRequest(OpenAIRequest):
    """`POST /v1/completions`."""

    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: int | None = 16


@dataclass(slots=True, kw_only=True)
class Call:
    """One accepted HTTP request and its sequences.

    Attributes:
        id: Of the answer.
        created: Unix time, s.
        model: Served name.
        prompt_tokens: Over all prompts.
        job: Its sequences.
        settings: Of the server.
        tool: Name of the function that the answer calls.
        forced: Whether the caller named that function, which makes the finish reason `stop`.
        texts: What each sequence has said so far, as far as it was read.
    """

    id: str
    created: int
    model: str
    prompt_tokens: int
    job: Job
    settings: EmulatedSettings
    tool: str | None = None
    forced: bool = False
    texts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.texts = [""] * len(self.job.sequences)

    @property
    def fingerprint(self) -> str:
        """`system_fingerprint`."""
        return f"vllm-{VERSION}-{self.settings.name}"

    @property
    def completion_tokens(self) -> int:
        """Tokens taken by this call's reader so far."""
        return sum(s.taken for s in self.job.sequences)

    def usage(self) -> Json:
        """`usage` as of now."""
        prompt, completion = self.prompt_tokens, self.completion_tokens
        return {
            "prompt_tokens": prompt,
            "total_tokens": prompt + completion,
            "completion_tokens": completion,
        }

    def reason(self, sequence: Generation) -> str | None:
        """The finish reason as chat reports it."""
        if self.tool and not self.forced and sequence.finish_reason == "stop":
            return "tool_calls"
        return sequence.finish_reason

    def metrics(self, *, speculation: bool = True) -> Json | None:
        """Per-request `metrics`; None when they are off or there are several sequences.

        A sequence that a stop string ended has no acceptance figures: vLLM's front end finds the
        string and the engine never reports on it.
        """
        if not self.settings.request_metrics or len(self.job.sequences) != 1:
            return None
        sequence = self.job.sequences[0]
        times, tokens = sequence.times, sequence.emitted
        decode_ms = (times.last_token - times.first_token) * 1e3
        inference_ms = (times.last_token - times.scheduled) * 1e3
        stopped = sequence.output.stop_reason is not None or not tokens
        speculating = speculation and self.settings.speculation != "none" and not stopped
        return {
            "time_to_first_token_ms": (times.first_token - times.scheduled) * 1e3,
            "generation_time_ms": decode_ms,
            "queue_time_ms": (times.scheduled - times.arrived) * 1e3,
            "mean_itl_ms": decode_ms / (tokens - 1) if tokens > 1 else None,
            "tokens_per_second": tokens / inference_ms * 1e3 if inference_ms > 0 else None,
            "speculative_decoding": self._speculation(sequence) if speculating else None,
        }

    def _speculation(self, sequence: Generation) -> Json:
        histogram = sequence.accepted_counts
        drafts = sum(histogram)
        accepted = sum(count * number for count, number in enumerate(histogram))
        drafted = sequence.drafted
        return {
            "mean_acceptance_length": 1.0 + accepted / drafts if drafts else 1.0,
            "draft_acceptance_rate": accepted / drafted if drafted else 0.0,
            "acceptance_histogram": histogram,
            "num_spec_steps": drafts,
            "num_accepted_draft_tokens": accepted,
            "num_draft_tokens": drafted,
            "num_spec_tokens": self.settings.k,
            "per_step_accepted": None,
            "per_step_drafted": None,
        }

    def final_metrics(self) -> Json:
        """`metrics` as the last chunk of a stream carries them: without what is null."""
        metrics = without_nulls(self.metrics() or {})
        return {"metrics": metrics} if metrics else {}

    def body(self, kind: str, choices: list[Json]) -> Json:
        """The answer without streaming, around its choices."""
        details = filled("usage details")
        return filled(
            "chat body" if kind == "chat.completion" else "body",
            **self.head(kind),
            choices=choices,
            system_fingerprint=self.fingerprint,
            usage=self.usage() | details,
            metrics=self.metrics(),
        )

    def head(self, kind: str) -> Json:
        """The first fields of a body and of each chunk."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def without_nulls(value: Json) -> Json:
    """Drop null fields, in nested objects too."""
    return {
        k: without_nulls(v) if isinstance(v, dict) else v
        for k, v in value.items()
        if v is not None
    }


def chat_body(call: Call) -> Json:
    """Return the body of a chat completion."""
    return call.body("chat.completion", [_chat_choice(call, s) for s in call.job.sequences])


def _chat_choice(call: Call, sequence: Generation) -> Json:
    text = call.texts[sequence.index]
    message = filled("chat message", content=None if call.tool else text)
    if call.tool:
        function = {"name": call.tool, "arguments": text}
        message["tool_calls"] = [{"id": tool_id(call), "type": "function", "function": function}]
    return filled(
        "chat choice",
        index=sequence.index,
        message=message | {"reasoning": None},
        finish_reason=call.reason(sequence),
        stop_reason=sequence.output.stop_reason,
    )


def tool_id(call: Call) -> str:
    """Return the id of a call's one tool call."""
    return f"chatcmpl-tool-{call.id[-16:]}"


def completion_body(call: Call) -> Json:
    """Return the body of a completion."""
    choices = [
        filled(
            "choice",
            index=s.index,
            text=call.texts[s.index],
            finish_reason=s.finish_reason,
            stop_reason=s.output.stop_reason,
        )
        for s in call.job.sequences
    ]
    return call.body("text_completion", choices)


def chat_opening(call: Call, *, continuous: bool) -> list[Json]:
    """Return the chunks that carry only the role, one per choice."""
    none_yet = {"prompt_tokens": call.prompt_tokens, "total_tokens": call.prompt_tokens,
                "completion_tokens": 0, "completion_tokens_details": None}  # fmt: skip
    usage = {"usage": none_yet} if continuous else {}
    delta = {"role": "assistant", "content": ""}
    return [
        {
            **call.head("chat.completion.chunk"),
            "choices": [_chunk_choice(s.index, delta)],
            **usage,
            "prompt_token_ids": None,
            "prompt_text": None,
        }
        for s in call.job.sequences
    ]


def _chunk_choice(index: int, delta: Json, finish_reason: str | None = None) -> Json:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def chat_choice_delta(call: Call, sequence: Generation, text: str) -> Json:
    """Return the choice of a chat chunk that carries `text`."""
    delta: Json = {"content": text}
    if call.tool:
        arguments = [{"index": 0, "function": {"arguments": text}}]
        delta = {"content": None, "tool_calls": arguments} if text else {}
    choice = _chunk_choice(sequence.index, delta, call.reason(sequence))
    if sequence.finish_reason is not None:
        choice["stop_reason"] = sequence.output.stop_reason
    return choice | {"token_ids": None}


def tool_opening(call: Call) -> Json:
    """Return the chat chunk that names the function, before its arguments."""
    head = {"id": tool_id(call), "type": "function", "index": 0, "function": {"name": call.tool}}
    choice = _chunk_choice(0, {"content": None, "tool_calls": [head]}) | {"token_ids": None}
    return {**call.head("chat.completion.chunk"), "choices": [choice]}


def completion_choice_delta(_call: Call, sequence: Generation, text: str) -> Json:
    """Return the choice of a completion chunk that carries `text`."""
    return filled(
        "choice delta",
        index=sequence.index,
        text=text,
        finish_reason=sequence.finish_reason,
        stop_reason=sequence.output.stop_reason if sequence.finish_reason else None,
    )
