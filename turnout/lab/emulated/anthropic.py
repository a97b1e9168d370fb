"""`/v1/messages` and `/v1/messages/count_tokens` as vLLM answers them."""

import json
from collections.abc import AsyncIterator

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from turnout.lab.emulated.protocol import ApiError, Call, Json, Sampling, filled, tool_id
from turnout.lab.emulated.runner import Generation
from turnout.lab.emulated.service import Service, Wanted
from turnout.lab.emulated.streaming import EventStream, event
from turnout.lab.emulated.tokens import render_chat, text_of, tokenize

STOP_REASONS = {"length": "max_tokens", "tool_calls": "tool_use"}


class CountRequest(BaseModel):
    """`POST /v1/messages/count_tokens`."""

    model_config = ConfigDict(extra="allow")
    model: str
    messages: list[Json]
    system: str | list[Json] | None = None


class MessagesRequest(CountRequest):
    """`POST /v1/messages`; `min_p` and `logit_bias` are no fields of it, and have no effect."""

    max_tokens: int
    temperature: float | None = None
    top_p: float | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = False
    tools: list[Json] | None = None
    tool_choice: Json | None = None
    vllm_xargs: dict[str, str | float | int | list[str | float]] | None = None


def routes(service: Service) -> APIRouter:
    """Return the routes."""
    router = APIRouter()

    @router.post("/v1/messages/count_tokens")
    async def count(body: CountRequest) -> Response:
        service.check_model(body.model)
        tokens = len(tokenize(_prompt(body)))
        return JSONResponse(
            {"input_tokens": tokens, "context_management": {"original_input_tokens": tokens}}
        )

    @router.post("/v1/messages")
    async def messages(body: MessagesRequest, request: Request) -> Response:
        sampling = Sampling(
            model=body.model,
            temperature=body.temperature,
            top_p=body.top_p,
            vllm_xargs=body.vllm_xargs,
        )
        call = service.start(request, sampling, _wanted(body), prefix="chatcmpl-")
        if body.stream:
            events = _events(service, request, call)
            return EventStream(events, lambda: service.runner.abort(call.job))
        await service.collect(request, call)
        return JSONResponse(_message(call))

    return router


def _prompt(body: CountRequest) -> str:
    system = [{"role": "system", "content": body.system}] if body.system else []
    return render_chat([*system, *body.messages])


def _wanted(body: MessagesRequest) -> Wanted:
    choice = body.tool_choice or {}
    tools = {tool["name"]: tool for tool in body.tools or []}
    tool = None
    if tools and choice.get("type") in ("any", "tool"):
        tool = tools.get(choice.get("name") or next(iter(tools)))
        if tool is None:
            raise ApiError(400, f"Tool '{choice.get('name')}' has not been passed in `tools`.")
    last = body.messages[-1] if body.messages else {}
    return Wanted(
        prompts=[_prompt(body)],
        last_words=text_of(last.get("content")),
        limit=body.max_tokens,
        stop=body.stop_sequences or [],
        schema=tool.get("input_schema", {}) if tool else None,
        tool=tool["name"] if tool else None,
    )


def _stop(call: Call, sequence: Generation) -> Json:
    if sequence.output.stop_reason is not None and sequence.finish_reason == "stop":
        return {"stop_reason": "stop_sequence", "stop_sequence": sequence.output.stop_reason}
    reason = STOP_REASONS.get(call.reason(sequence) or "", "end_turn")
    return {"stop_reason": reason, "stop_sequence": None}


def _usage(call: Call) -> Json:
    return {"input_tokens": call.prompt_tokens, "output_tokens": call.completion_tokens}


def _message(call: Call) -> Json:
    sequence, text = call.job.sequences[0], call.texts[0]
    block: Json = {"type": "text", "text": text}
    if call.tool:
        block = {
            "type": "tool_use",
            "id": tool_id(call),
            "name": call.tool,
            "input": _object(text),
        }
    stop = _stop(call, sequence)
    message = filled("message", id=call.id, model=call.model, content=[block], usage=_usage(call))
    return {k: v for k, v in (message | stop).items() if v is not None}


def _object(text: str) -> Json:
    try:
        value = json.loads(text)
    except ValueError:  # cut by max_tokens
        return {}
    return value if isinstance(value, dict) else {}


async def _events(service: Service, request: Request, call: Call) -> AsyncIterator[str]:
    block: Json = {"type": "text", "text": ""}
    if call.tool:
        block = {"type": "tool_use", "id": tool_id(call), "name": call.tool, "input": {}}
    opened = False

    def send(kind: str, **fields: object) -> str:
        return event({"type": kind, **fields}, kind)

    try:
        async for _, text in service.read(request, call):
            if not opened:
                opened = True
                usage = _usage(call) | {"output_tokens": 0}
                message = filled("message", id=call.id, model=call.model, usage=usage)
                yield send("message_start", message=message)
                yield send("content_block_start", content_block=block, index=0)
            if not text:
                continue
            delta: Json = {"type": "text_delta", "text": text}
            if call.tool:
                delta = {"type": "input_json_delta", "partial_json": text}
            yield send("content_block_delta", delta=delta, index=0)
    except ApiError as error:
        yield event(error.anthropic_body, "error")
        return
    yield send("content_block_stop", index=0)
    yield send("message_delta", delta=_stop(call, call.job.sequences[0]), usage=_usage(call))
    yield send("message_stop")
