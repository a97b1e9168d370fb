"""Streams as vLLM 0.32 writes them, event by event."""

import json
from typing import Any

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"


def dumps(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def sse(value: object, *, name: str = "") -> bytes:
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + dumps(value) + b"\n\n"


def usage(prompt: int, completion: int, **details: Any) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "total_tokens": prompt + completion,
        "completion_tokens": completion,
        **details,
    }


def chat(
    delta: dict[str, Any],
    finish: str | None = None,
    *,
    counted: dict[str, Any] | None = None,
    index: int = 0,
) -> bytes:
    """Return one chunk of a chat stream; `counted` is its continuous usage."""
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
    return sse(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "m",
            "choices": [choice],
            **({"usage": counted} if counted is not None else {}),
        }
    )


def role() -> bytes:
    return chat({"role": "assistant", "content": ""})


def text(content: str, finish: str | None = None, **rest: Any) -> bytes:
    return chat({"content": content}, finish, **rest)


def final_usage(prompt: int = 7, completion: int = 5, **metrics: Any) -> bytes:
    """Return the last chunk, with acceptance where `metrics` gives it."""
    return sse(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "m",
            "choices": [],
            "usage": usage(prompt, completion),
            **({"metrics": {"speculative_decoding": metrics}} if metrics else {}),
        }
    )


def completion(content: str, finish: str | None = None) -> bytes:
    """Return one chunk of a completions stream."""
    choice = {"index": 0, "text": content, "logprobs": None, "finish_reason": finish}
    return sse({"id": "cmpl-1", "object": "text_completion", "model": "m", "choices": [choice]})


def response_event(kind: str, **fields: Any) -> bytes:
    """Return an event of /v1/responses."""
    return sse({"type": kind, **fields}, name=kind)


def a_response(status: str, **fields: Any) -> dict[str, Any]:
    return {"id": "resp_1", "object": "response", "status": status, "output": [], **fields}


def message_event(kind: str, **fields: Any) -> bytes:
    """Return an event of /v1/messages."""
    return sse({"type": kind, **fields}, name=kind)


def error(code: int = 500, message: str = "EngineCore encountered an issue") -> bytes:
    """Return the error event that vLLM puts into a stream under way."""
    kind = "InternalServerError" if code >= 500 else "BadRequestError"
    detail = {"message": message, "type": kind, "param": None, "code": code}
    return b"data: " + json.dumps({"error": detail}).encode() + b"\n\n"


CHAT = (role(), text("Hello"), text(" wor"), text("ld", "stop"))
"""A short answer in three steps."""
RESPONSE = (
    response_event("response.created", response=a_response("in_progress")),
    response_event("response.in_progress", response=a_response("in_progress")),
    response_event("response.output_item.added", item={"type": "message"}),
    response_event("response.output_text.delta", delta="Hi"),
    response_event("response.output_text.delta", delta=" you"),
    response_event(
        "response.completed",
        response=a_response(
            "completed",
            output=[{"type": "message"}],
            usage={"input_tokens": 3, "output_tokens": 6},
        ),
    ),
)
MESSAGE = (
    message_event("message_start", message={"id": "m", "usage": {"input_tokens": 3}}),
    message_event("content_block_start", index=0),
    message_event("content_block_delta", delta={"type": "text_delta", "text": "Hi"}),
    message_event("content_block_stop", index=0),
    message_event(
        "message_delta",
        delta={"stop_reason": "end_turn", "stop_sequence": None},
        usage={"input_tokens": 3, "output_tokens": 2},
    ),
    message_event("message_stop"),
)
