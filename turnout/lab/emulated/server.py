"""The ASGI application: vLLM's routes, and `/emulated/...` for tests."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from turnout.lab.emulated import anthropic
from turnout.lab.emulated.faults import Fault, Faults
from turnout.lab.emulated.metrics import Exposition
from turnout.lab.emulated.protocol import (
    ApiError,
    ChatRequest,
    CompletionRequest,
    Json,
    OpenAIRequest,
    chat_body,
    completion_body,
    filled,
    schema_of,
)
from turnout.lab.emulated.responses import ResponsesApi
from turnout.lab.emulated.runner import Runner
from turnout.lab.emulated.service import Service, Wanted, fresh_id, stop_list, unix_now
from turnout.lab.emulated.settings import VERSION, EmulatedSettings
from turnout.lab.emulated.streaming import refused_stream, stream_call
from turnout.lab.emulated.tokens import render_chat, text_of, token_id, token_text, tokenize


class EmulatedApp:
    """One emulated server as an ASGI application; `runner` is its engine."""

    def __init__(self, settings: EmulatedSettings, clock: Callable[[], float]) -> None:
        metrics = Exposition(settings)
        self.settings = settings
        self.runner = Runner(settings, metrics, clock)
        service = Service(settings, self.runner, metrics)
        responses = ResponsesApi(service)
        app = FastAPI(lifespan=self._lifespan, openapi_url=None)
        self._responses = responses
        self._faults = Faults(_RequestIds(app), self.runner.freeze)
        for router in (_generation(service), _utility(service), self._control()):
            app.include_router(router)
        app.include_router(anthropic.routes(service))
        app.include_router(responses.routes())
        app.add_exception_handler(ApiError, _on_api_error)
        app.add_exception_handler(UnicodeEncodeError, _on_half_a_pair)
        app.add_exception_handler(RequestValidationError, _on_validation_error)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        await self._faults(scope, receive, send)

    @asynccontextmanager
    async def _lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(self.runner.run()),
                tasks.create_task(self._responses.run_background()),
            ]
            yield
            for task in running:
                task.cancel()

    def _control(self) -> APIRouter:
        router = APIRouter(prefix="/emulated")

        @router.post("/faults")
        async def set_fault(fault: Fault) -> Fault:
            self._faults.set(fault)
            return fault

        @router.delete("/faults", status_code=204)
        async def clear_faults() -> None:
            self._faults.set(None)

        @router.get("/state")
        async def state() -> dict[str, Any]:
            runner = self.runner
            return {
                "name": self.settings.name,
                "running": runner.engine.running,
                "waiting": runner.engine.waiting,
                "served": runner.served,
                "aborted": runner.aborted,
                "behind_s": runner.behind_s,
                "draining": runner.draining,
                "fault": self._faults.active,
            }

        return router


def create_emulated(
    settings: EmulatedSettings, *, clock: Callable[[], float] = time.monotonic
) -> EmulatedApp:
    """Return an emulated server; it needs an ASGI server that runs its lifespan.

    Args:
        settings: What it emulates.
        clock: Monotonic s, for every time it reports.
    """
    return EmulatedApp(settings, clock)


def _generation(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        return await _serve(service, request, body, _chat_wanted(service, body), chat_body)

    @router.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        service.check_model(body.model)
        prompts = _prompts(body.prompt)
        wanted = Wanted(
            prompts=prompts,
            last_words=prompts[-1],
            limit=body.max_tokens,
            stop=stop_list(body.stop),
        )
        return await _serve(service, request, body, wanted, completion_body)

    return router


async def _serve(
    service: Service,
    request: Request,
    body: OpenAIRequest,
    wanted: Wanted,
    finished: Callable[..., Json],
) -> Response:
    refusal = service.refuses(body)
    if refusal is not None:
        if body.stream:
            return refused_stream(refusal)
        raise refusal
    prefix = "chatcmpl-" if isinstance(body, ChatRequest) else "cmpl-"
    call = service.start(request, body, wanted, prefix=prefix)
    if body.stream:
        return stream_call(service, request, body, call)
    await service.collect(request, call)
    return JSONResponse(finished(call), headers=_load_header(service, request))


def _load_header(service: Service, request: Request) -> dict[str, str]:
    """Return the ORCA header, which vLLM sends where it was asked for."""
    form = request.headers.get("endpoint-load-metrics-format", "").upper()
    engine = service.runner.engine
    load = {"num_requests_waiting": float(engine.waiting), "kv_cache_usage_perc": engine.kv_usage}
    if form == "JSON":
        return {"endpoint-load-metrics": f"JSON {json.dumps({'named_metrics': load})}"}
    if form == "TEXT":
        values = ", ".join(f"named_metrics.{k}={v}" for k, v in load.items())
        return {"endpoint-load-metrics": f"TEXT {values}"}
    return {}


def _chat_wanted(service: Service, body: ChatRequest) -> Wanted:
    service.check_model(body.model)
    if not body.messages:
        raise ApiError(
            400,
            "Cannot apply chat template to an empty conversation. Provide at least one message.",
        )
    function, forced = _chosen_function(body)
    schema = function.get("parameters") or {} if function else schema_of(body.response_format)
    return Wanted(
        prompts=[render_chat(body.messages)],
        last_words=text_of(body.messages[-1].get("content")),
        limit=body.max_completion_tokens or body.max_tokens,
        stop=stop_list(body.stop),
        schema=schema,
        tool=function["name"] if function else None,
        forced=forced,
    )


def _chosen_function(body: ChatRequest) -> tuple[Json | None, bool]:
    """Return the function to call: under `auto` the model never calls one."""
    functions = [tool.get("function") or {} for tool in body.tools or []]
    if body.tool_choice == "required" and functions:
        return functions[0], False
    if isinstance(body.tool_choice, dict):
        name = (body.tool_choice.get("function") or {}).get("name")
        for function in functions:
            if function.get("name") == name:
                return function, True
        raise ApiError(400, f"Tool '{name}' has not been passed in `tools`.")
    return None, False


def _prompts(prompt: str | list[str] | list[int] | list[list[int]]) -> list[str]:
    if isinstance(prompt, str):
        return [prompt]
    if prompt and isinstance(prompt[0], int):
        return ["".join(token_text(t) for t in prompt if isinstance(t, int))]
    return [
        p if isinstance(p, str) else "".join(token_text(t) for t in p)
        for p in prompt
        if not isinstance(p, int)
    ] or [""]


class _TokenizePrompt(BaseModel):
    model: str | None = None
    prompt: str
    return_token_strs: bool | None = False


class _TokenizeChat(BaseModel):
    model: str | None = None
    messages: list[Json]
    return_token_strs: bool | None = False


class _Detokenize(BaseModel):
    model: str | None = None
    tokens: list[int]


def _utility(service: Service) -> APIRouter:
    router = APIRouter()
    settings = service.settings

    @router.get("/health")
    @router.get("/ping")
    @router.post("/ping")
    async def health() -> Response:
        return Response()

    @router.get("/version")
    async def version() -> Json:
        return {"version": VERSION}

    @router.get("/load")
    async def load() -> Json:
        return {"server_load": service.runner.load}

    @router.get("/metrics")
    async def metrics() -> Response:
        page = service.metrics.render(service.runner.engine, service.runner.behind_s)
        return Response(page, media_type=CONTENT_TYPE_LATEST)

    @router.get("/v1/models")
    async def models() -> Json:
        return {"object": "list", "data": [_model_card(settings)]}

    @router.post("/tokenize")
    async def tokenize_(body: _TokenizePrompt | _TokenizeChat) -> Json:
        service.check_model(body.model)
        text = render_chat(body.messages) if isinstance(body, _TokenizeChat) else body.prompt
        tokens = tokenize(text)
        return {
            "count": len(tokens),
            "max_model_len": settings.hardware.max_model_len,
            "tokens": [token_id(token) for token in tokens],
            "token_strs": tokens if body.return_token_strs else None,
        }

    @router.post("/detokenize")
    async def detokenize(body: _Detokenize) -> Json:
        service.check_model(body.model)
        return {"prompt": "".join(token_text(token) for token in body.tokens)}

    return router


def _model_card(settings: EmulatedSettings) -> Json:
    card = filled("model", id=settings.model_name, root=settings.model_name, created=unix_now())
    card["max_model_len"] = settings.hardware.max_model_len
    card["permission"][0] |= {"id": f"modelperm-{fresh_id()}", "created": card["created"]}
    return card


class _RequestIds:
    """`--enable-request-id-headers`: each answer carries the caller's id or a new one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = Headers(scope=scope).get("x-request-id") or uuid4().hex

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id)


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)  # noqa: S101 - registered for this type alone
    anthropic_route = request.url.path.startswith("/v1/messages")
    body = error.anthropic_body if anthropic_route else error.body
    return JSONResponse(body, status_code=error.status)


async def _on_half_a_pair(request: Request, _: Exception) -> Response:
    """Refuse text with half a surrogate pair, which JSON can carry and no tokenizer reads."""
    message = "Input should be a valid string, unable to parse raw data as a unicode string"
    return await _on_api_error(request, ApiError(400, message))


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for this type alone
    media_type = request.headers.get("content-type", "application/json").partition(";")[0]
    if media_type != "application/json":
        lines, param = ["Unsupported Media Type: Only 'application/json' is allowed"], None
    else:
        found = [_described(e) for e in error.errors()]
        lines, param = [str(e) for e in found], found[0]["loc"]
    plural = "s" if len(lines) > 1 else ""
    message = f"{len(lines)} validation error{plural}:\n  " + "\n  ".join(lines)
    return JSONResponse(ApiError(400, message, "Bad Request", param).body, status_code=400)


def _described(error: Json) -> Json:
    """Return one validation error as vLLM prints it: a dotted place, containers only counted."""
    place = [str(p) for p in error["loc"] if not str(p).startswith("_Tokenize")]
    value = error.get("input")
    if isinstance(value, dict | list):
        value = f"<{type(value).__name__} of {len(value)} items>"
    described = {
        "type": error["type"],
        "loc": ".".join(place),
        "msg": error["msg"],
        "input": value,
    }
    return described | ({"ctx": error["ctx"]} if "ctx" in error else {})
