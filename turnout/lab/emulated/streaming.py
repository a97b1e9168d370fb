"""Server-sent events as vLLM writes them."""

import json
from collections.abc import AsyncIterator, Callable

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from turnout.lab.emulated.protocol import (
    ApiError,
    Call,
    Json,
    OpenAIRequest,
    chat_choice_delta,
    chat_opening,
    completion_choice_delta,
    tool_opening,
)
from turnout.lab.emulated.service import Service

DONE = "data: [DONE]\n\n"


def event(data: Json, name: str | None = None) -> str:
    """Return one event, with its `event:` line if it has a name."""
    line = f"data: {json.dumps(data, separators=(',', ':'))}\n\n"
    return f"event: {name}\n{line}" if name else line


def _error(error: ApiError) -> str:
    return f"data: {json.dumps(error.body)}\n\n"


class EventStream(StreamingResponse):
    """A stream that tells when it is over, also where its client left before the first event."""

    def __init__(self, content: AsyncIterator[str], on_close: Callable[[], None]) -> None:
        super().__init__(content, media_type="text/event-stream")
        self._on_close = on_close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_close()


def stream_call(
    service: Service, request: Request, body: OpenAIRequest, call: Call
) -> EventStream:
    """Return the stream of a chat completion or a completion."""
    chat = call.id.startswith("chatcmpl-")
    events = _events(service, request, body, call, chat=chat)
    return EventStream(events, lambda: service.runner.abort(call.job))


async def _events(
    service: Service, request: Request, body: OpenAIRequest, call: Call, *, chat: bool
) -> AsyncIterator[str]:
    kind = "chat.completion.chunk" if chat else "text_completion"
    choice_delta = chat_choice_delta if chat else completion_choice_delta
    opened = not chat
    try:
        async for sequence, text in service.read(request, call):
            if not opened:
                opened = True
                for chunk in chat_opening(call, continuous=body.continuous_usage):
                    yield event(chunk)
                if call.tool:
                    yield event(tool_opening(call))
            chunk = {**call.head(kind), "choices": [choice_delta(call, sequence, text)]}
            if body.continuous_usage:
                details = {"completion_tokens_details": None} if chat else {}
                chunk["usage"] = call.usage() | details
            if chunk["choices"][0]["finish_reason"] and not body.include_usage:
                chunk["system_fingerprint"] = call.fingerprint
            yield event(chunk)
        if body.include_usage:
            yield event(
                {
                    **call.head(kind),
                    "choices": [],
                    "usage": call.usage(),
                    "system_fingerprint": call.fingerprint,
                    **call.final_metrics(),
                }
            )
    except ApiError as error:
        yield _error(error)
    yield DONE


def refused_stream(error: ApiError) -> EventStream:
    """Return the stream of a request that vLLM refuses after its status 200 is out."""

    async def events() -> AsyncIterator[str]:
        yield _error(error)
        yield DONE

    return EventStream(events(), lambda: None)
