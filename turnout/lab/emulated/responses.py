"""`/v1/responses` as vLLM answers it with `VLLM_ENABLE_RESPONSES_API_STORE=1`."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from turnout.lab.emulated.protocol import ApiError, Call, Json, Sampling, filled, schema_of
from turnout.lab.emulated.service import Service, Wanted, fresh_id, temperature
from turnout.lab.emulated.streaming import EventStream, event
from turnout.lab.emulated.tokens import render_chat, text_of

MAX_STORED = 1000
"""Responses kept; vLLM keeps all of them, for ever."""


class ResponsesRequest(Sampling):
    """`POST /v1/responses`."""

    input: str | list[Json]
    instructions: str | None = None
    max_output_tokens: int | None = None
    previous_response_id: str | None = None
    store: bool | None = True
    background: bool | None = False
    text: Json | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class _Stored:
    """One response and the conversation up to and with it."""

    body: Json
    messages: list[Json]
    call: Call


class ResponsesApi:
    """The routes and the store behind them."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._stored: OrderedDict[str, _Stored] = OrderedDict()
        self._background: asyncio.Queue[tuple[Request, _Stored, ResponsesRequest]] = (
            asyncio.Queue()
        )

    def routes(self) -> APIRouter:
        """Return the routes."""
        router = APIRouter()
        router.post("/v1/responses")(self.create)
        router.get("/v1/responses/{response_id}")(self.retrieve)
        router.post("/v1/responses/{response_id}/cancel")(self.cancel)
        return router

    async def create(self, body: ResponsesRequest, request: Request) -> Response:
        """Answer, stream, or answer `queued` and go on in the background."""
        service = self._service
        messages = self._conversation(body)
        service.check_model(body.model)
        refusal = service.refuses(body)
        if refusal is not None and not body.stream:
            raise refusal
        wanted = Wanted(
            prompts=[render_chat(messages)],
            last_words=text_of(messages[-1].get("content")),
            limit=body.max_output_tokens,
            schema=schema_of((body.text or {}).get("format")),
        )
        call = service.start(request, body, wanted, prefix="resp_")
        call.id = f"resp_{fresh_id()}"  # unlike the others, not made of X-Request-Id
        stored = _Stored(body={}, messages=messages, call=call)
        if body.stream:
            events = self._events(request, body, stored, refusal)
            return EventStream(events, lambda: service.runner.abort(call.job))
        if body.background:
            stored.body = self._body(body, call, "queued")
            self._keep(body, stored)
            self._background.put_nowait((request, stored, body))
            return JSONResponse(stored.body)
        await service.collect(request, call)
        self._complete(body, stored)
        return JSONResponse(stored.body)

    async def retrieve(self, response_id: str) -> Response:
        """Answer with a stored response."""
        return JSONResponse(self._find(response_id).body)

    async def cancel(self, response_id: str) -> Response:
        """Cancel a background response."""
        stored = self._find(response_id)
        if not stored.body["background"]:
            raise _invalid(400, "Cannot cancel a synchronous response.")
        if stored.body["status"] == "queued":
            stored.body = stored.body | {"status": "cancelled"}
            self._service.runner.abort(stored.call.job)
        return JSONResponse(stored.body)

    async def run_background(self) -> None:
        """Read background responses to their end for as long as the server lives."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                tasks.create_task(self._finish_background(*await self._background.get()))

    async def _finish_background(
        self, request: Request, stored: _Stored, body: ResponsesRequest
    ) -> None:
        async for _ in self._service.read(request, stored.call):
            pass
        if stored.body["status"] != "cancelled":
            self._complete(body, stored)

    def _find(self, response_id: str) -> _Stored:
        if response_id not in self._stored:
            raise _invalid(404, f"Response with id '{response_id}' not found.")
        return self._stored[response_id]

    def _conversation(self, body: ResponsesRequest) -> list[Json]:
        before: list[Json] = []
        if body.previous_response_id is not None:
            before = self._find(body.previous_response_id).messages
        system = [{"role": "system", "content": body.instructions}] if body.instructions else []
        if isinstance(body.input, str):
            return [*system, *before, {"role": "user", "content": body.input}]
        return [*system, *before, *body.input]

    def _complete(self, body: ResponsesRequest, stored: _Stored) -> None:
        call = stored.call
        cut = call.job.sequences[0].finish_reason == "length"
        stored.body = self._body(body, call, "incomplete" if cut else "completed")
        stored.messages = [*stored.messages, {"role": "assistant", "content": call.texts[0]}]
        self._keep(body, stored)

    def _keep(self, body: ResponsesRequest, stored: _Stored) -> None:
        if body.store is False:
            return
        self._stored[stored.call.id] = stored
        while len(self._stored) > MAX_STORED:
            self._stored.popitem(last=False)

    def _body(self, body: ResponsesRequest, call: Call, status: str) -> Json:
        over = status in ("completed", "incomplete")
        answer = filled(
            "response",
            id=call.id,
            created_at=call.created,
            instructions=body.instructions,
            model=call.model,
            temperature=temperature(body),
            top_p=1.0 if body.top_p is None else body.top_p,
            background=bool(body.background),
            max_output_tokens=body.max_output_tokens or call.job.sequences[0].limit,
            previous_response_id=body.previous_response_id,
            status=status,
            text=body.text,
        )
        metrics = call.metrics(speculation=False) if over else None
        if metrics is None:
            del answer["metrics"]
        if over:
            cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
            part = filled("response part", text=call.texts[0])
            answer |= {"incomplete_details": cut, "output": [_item(call, "completed", [part])]}
            answer |= {"usage": _usage(call)} | ({"metrics": metrics} if metrics else {})
        return answer

    async def _events(
        self, request: Request, body: ResponsesRequest, stored: _Stored, refusal: ApiError | None
    ) -> AsyncIterator[str]:
        call, number = stored.call, 0

        def send(kind: str, **fields: object) -> str:
            nonlocal number
            name = f"response.{kind}"
            data = {**fields, "sequence_number": number, "type": name}
            number += 1
            return event(data, name)

        place = {"output_index": 0}
        text_place = {"content_index": 0, "item_id": _item_id(call), **place}
        opening = self._body(body, call, "in_progress")
        yield send("created", response=opening)
        yield send("in_progress", response=opening)
        if refusal is not None:  # vLLM breaks the connection here
            raise refusal
        yield send("output_item.added", item=_item(call, "in_progress", []), **place)
        yield send("content_part.added", part=filled("response part", logprobs=[]), **text_place)
        async for _, text in self._service.read(request, call):
            if text:
                yield send("output_text.delta", delta=text, logprobs=[], **text_place)
        text = call.texts[0]
        part = filled("response part", text=text)
        yield send("output_text.done", logprobs=[], text=text, **text_place)
        yield send("content_part.done", part=part, **text_place)
        yield send("output_item.done", item=_item(call, "completed", [part]), **place)
        self._complete(body, stored)
        yield send("completed", response=stored.body)


def _invalid(status: int, message: str) -> ApiError:
    return ApiError(status, message, "invalid_request_error", "response_id")


def _item_id(call: Call) -> str:
    return f"msg_{call.id[-16:]}"


def _item(call: Call, status: str, content: list[Json]) -> Json:
    return filled("response item", id=_item_id(call), status=status, content=content)


def _usage(call: Call) -> Json:
    return filled(
        "response usage",
        input_tokens=call.prompt_tokens,
        output_tokens=call.completion_tokens,
        total_tokens=call.prompt_tokens + call.completion_tokens,
    )
