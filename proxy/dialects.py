"""How each API says the same things in a stream and in a body.

A dialect answers: is this event still before any output, does it carry tokens, is it the end, did
the engine abort, and what do usage and acceptance read. Shapes are those of vLLM 0.32 and 0.33.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from proxy.sse import payload
from routing.features import Route

Json = Mapping[str, Any]


@dataclass(slots=True, kw_only=True)
class Usage:
    """What an answer says it cost.

    Attributes:
        prompt_tokens: Tokens read.
        completion_tokens: Tokens written.
        accepted: Accepted draft tokens, where the server tells.
        drafted: Drafted tokens, where the server tells.
        generation_s: Seconds from the first output token to the last, where the server tells.
    """

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    accepted: int | None = None
    drafted: int | None = None
    generation_s: float | None = None


class Dialect(Protocol):
    """One API's way of streaming."""

    asks_usage: bool
    """Whether the final usage chunk must be asked for (`stream_options.include_usage`)."""

    def is_prelude(self, data: Json) -> bool:
        """Whether the event comes before any output and says nothing yet."""
        ...

    def has_tokens(self, raw: bytes) -> bool:
        """Whether the event carries output tokens; sees bytes, for it runs on every event."""
        ...

    def is_end(self, raw: bytes) -> bool:
        """Whether the event ends a whole stream."""
        ...

    def aborted(self, data: Json) -> bool:
        """Whether an opening event or a body says that the engine gave up, with no output."""
        ...

    def cut_short(self, data: Json) -> bool:
        """Whether a body says that the engine gave up part way."""
        ...

    def failed(self, raw: bytes) -> bool:
        """Whether an event says that the engine failed or gave up; sees bytes."""
        ...

    def usage(self, data: Json) -> Usage | None:
        """Return the usage an event or body carries, if it does."""
        ...

    def response_id(self, data: Json) -> str | None:
        """Return the id of a stored response, if the event or body names one."""
        ...


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _mapping(value: object) -> Json:
    return value if isinstance(value, dict) else {}


def _openai_usage(data: Json) -> Usage | None:
    usage = data.get("usage")
    if not isinstance(usage, dict):
        return None
    metrics = _mapping(data.get("metrics"))
    speculative = _mapping(metrics.get("speculative_decoding"))
    generation_ms = metrics.get("generation_time_ms")
    return Usage(
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
        accepted=_count(speculative.get("num_accepted_draft_tokens")),
        drafted=_count(speculative.get("num_draft_tokens")),
        generation_s=generation_ms / 1000 if isinstance(generation_ms, int | float) else None,
    )


class OpenAIDialect:
    """`/v1/chat/completions` and `/v1/completions`."""

    asks_usage = True

    def is_prelude(self, data: Json) -> bool:
        """Whether it is the role-only first chunk: no finish reason, no text of any kind."""
        choices = data.get("choices")
        if not isinstance(choices, list) or not choices:
            return False
        return all(
            choice.get("finish_reason") is None and not self._has_output(choice)
            for choice in choices
            if isinstance(choice, dict)
        )

    @staticmethod
    def _has_output(choice: Json) -> bool:
        delta = choice.get("delta", choice.get("message"))
        if not isinstance(delta, dict):
            return bool(choice.get("text"))
        return any(value for key, value in delta.items() if key != "role")

    def has_tokens(self, raw: bytes) -> bool:
        """Whether it carries a choice."""
        return b'"choices":[{' in raw

    def is_end(self, raw: bytes) -> bool:
        """Whether it is `data: [DONE]`."""
        return raw.startswith(b"data: [DONE]") or payload(raw) == b"[DONE]"

    def aborted(self, data: Json) -> bool:
        """Whether every choice ends in `abort` without output."""
        choices = data.get("choices")
        if not isinstance(choices, list) or not choices:
            return False
        return all(
            isinstance(choice, dict)
            and choice.get("finish_reason") == "abort"
            and not self._has_output(choice)
            for choice in choices
        )

    def cut_short(self, data: Json) -> bool:
        """Whether a choice ends in `abort`."""
        choices = data.get("choices")
        return isinstance(choices, list) and any(
            isinstance(choice, dict) and choice.get("finish_reason") == "abort"
            for choice in choices
        )

    def failed(self, raw: bytes) -> bool:
        """Whether a choice ends in `abort`, or it is an error."""
        return b'"finish_reason":"abort"' in raw or raw.startswith(b'data: {"error"')

    def usage(self, data: Json) -> Usage | None:
        """Return the usage object's counts, with the acceptance beside it."""
        return _openai_usage(data)

    def response_id(self, data: Json) -> None:
        """Return nothing: these answers are not stored."""


class ResponsesDialect:
    """`/v1/responses`: typed events, each with a `type`."""

    asks_usage = False
    _PRELUDE = frozenset(
        {
            "response.created",
            "response.queued",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.reasoning_part.added",
        }
    )

    def is_prelude(self, data: Json) -> bool:
        """Whether the event only announces the response or an item of it."""
        return data.get("type") in self._PRELUDE

    def has_tokens(self, raw: bytes) -> bool:
        """Whether it is a delta of text, reasoning or arguments."""
        return b'.delta"' in raw

    def is_end(self, raw: bytes) -> bool:
        """Whether it is one of the closing events."""
        return any(_is_of(kind, raw) for kind in _RESPONSE_ENDS)

    def aborted(self, data: Json) -> bool:
        """Whether the response ended with no output at all: an abort can read `completed`."""
        response = _mapping(data.get("response", data))
        ended = response.get("status") in ("completed", "failed", "incomplete", "cancelled")
        tokens = _mapping(response.get("usage")).get("output_tokens")
        limited = _mapping(response.get("incomplete_details")).get("reason") is not None
        return ended and not limited and not response.get("output") and not tokens

    def cut_short(self, data: Json) -> bool:
        """Whether the response was cancelled, as an abort can read."""
        return data.get("status") == "cancelled"

    def failed(self, raw: bytes) -> bool:
        """Whether it is a failure's closing event, or an error."""
        return _is_of(b"response.failed", raw) or raw.startswith(_ERROR_EVENTS)

    def usage(self, data: Json) -> Usage | None:
        """Return the counts of a whole response or of the event that closes one."""
        usage = _mapping(data.get("response", data)).get("usage")
        if not isinstance(usage, dict):
            return None
        return Usage(
            prompt_tokens=_count(usage.get("input_tokens")),
            completion_tokens=_count(usage.get("output_tokens")),
        )

    def response_id(self, data: Json) -> str | None:
        """Return the id of the response that an event or body is about."""
        found = _mapping(data.get("response", data)).get("id")
        return found if isinstance(found, str) and found.startswith("resp_") else None


_ERROR_EVENTS = (b"event: error\n", b'data: {"error"')
_RESPONSE_ENDS = (b"response.completed", b"response.incomplete", b"response.failed")


def _is_of(kind: bytes, raw: bytes) -> bool:
    """Whether an event is of a type, and does not merely speak of it: read only if it does."""
    return kind in raw and read_json(payload(raw)).get("type") == kind.decode()


class MessagesDialect:
    """`/v1/messages`, Anthropic's API."""

    asks_usage = False

    def is_prelude(self, data: Json) -> bool:
        """Whether the event only opens the message or a block."""
        return data.get("type") in ("message_start", "content_block_start", "ping")

    def has_tokens(self, raw: bytes) -> bool:
        """Whether it is a delta of a content block."""
        return b"content_block_delta" in raw

    def is_end(self, raw: bytes) -> bool:
        """Whether it is `message_stop`, or vLLM's `[DONE]`."""
        return _is_of(b"message_stop", raw) or (
            b"data: [DONE]" in raw and payload(raw) == b"[DONE]"
        )

    def aborted(self, data: Json) -> bool:
        """Whether a message ends without a reason, as an abort reads, with nothing counted."""
        tokens = _mapping(data.get("usage")).get("output_tokens")
        if data.get("type") == "message_delta":
            return not tokens and _mapping(data.get("delta")).get("stop_reason") is None
        return data.get("type") == "message" and not data.get("content") and not tokens

    def cut_short(self, data: Json) -> bool:
        """Whether the message ends without a reason, as an abort reads."""
        return data.get("type") == "message" and data.get("stop_reason") is None

    def failed(self, raw: bytes) -> bool:
        """Whether the closing delta has no reason, or it is an error."""
        return raw.startswith(_ERROR_EVENTS) or (
            b'"type":"message_delta"' in raw and b'"stop_reason":null' in raw
        )

    def usage(self, data: Json) -> Usage | None:
        """Return the counts of a message or of its closing delta."""
        usage = data.get("usage")
        if not isinstance(usage, dict):
            return None
        return Usage(
            prompt_tokens=_count(usage.get("input_tokens")),
            completion_tokens=_count(usage.get("output_tokens")),
        )

    def response_id(self, data: Json) -> None:
        """Return nothing: messages are not stored."""


DIALECTS: Mapping[Route, Dialect] = {
    Route.CHAT: OpenAIDialect(),
    Route.COMPLETIONS: OpenAIDialect(),
    Route.RESPONSES: ResponsesDialect(),
    Route.MESSAGES: MessagesDialect(),
}
"""The dialect of each endpoint that generates."""


def read_json(raw: bytes) -> Json:
    """Return `raw` as a JSON object; empty when it is anything else."""
    try:
        return _mapping(orjson.loads(raw))
    except orjson.JSONDecodeError:
        return {}
