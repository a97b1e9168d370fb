"""All that is not inference: models, health, metrics, explanations, and everything that is a 404.

What is not listed here or in `proxy.parsing.ROUTES` does not exist, vLLM's management routes above
all: nothing is passed through by default.
"""

import time
from collections.abc import Callable, Container
from contextlib import AbstractAsyncContextManager
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry
from starlette.exceptions import HTTPException
from starlette.types import Scope

from proxy.credentials import scrubbed
from proxy.discovery import Discovery
from proxy.errors import BodyTooLarge, ClientError, NotServed, ProxyError, speaks_anthropic
from proxy.explain import explain, read_question
from proxy.fleet import Fleet
from proxy.fleet_metrics import gateway_version
from proxy.lifecycle import Lifecycle
from proxy.metrics import exposition
from proxy.openapi import add_inference_routes
from proxy.parsing import ROUTES
from proxy.totals import SpecTotals
from routing.router import Router

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


class MethodNotAllowed(ClientError):
    """The endpoint exists, but not for this method."""

    status = 405
    kind = "invalid_request_error"

    def __init__(self, message: str, *, allow: str) -> None:
        super().__init__(message)
        self.headers = {"allow": allow}


_QUESTION = {
    "type": "object",
    "required": ["body"],
    "properties": {
        "route": {"type": "string", "enum": list(ROUTES)},
        "body": {"type": "object", "additionalProperties": True},
    },
}


def build_api(
    *,
    fleet: Fleet,
    discovery: Discovery,
    registry: CollectorRegistry,
    totals: SpecTotals,
    router: Router,
    lifecycle: Lifecycle,
    lifespan: Lifespan | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> FastAPI:
    """Return the FastAPI application.

    Args:
        fleet: Pools and backends.
        discovery: Knows the models' cards.
        registry: What `/metrics` shows.
        totals: Shown after it, under vLLM's names.
        router: Explains what it would decide.
        lifecycle: Whether the gateway drains.
        lifespan: What runs while the application does.
        clock: Seconds, monotonic.
    """
    api = FastAPI(
        title="Turnout",
        version=gateway_version(),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    add_errors(api)

    @api.get("/v1/models", tags=["models"])
    async def models() -> Response:
        """List the models of all pools, their adapters and aliases, each once."""
        await discovery.refresh_models()
        data = list(merged_cards(fleet, discovery).values())
        return json_answer({"object": "list", "data": data})

    @api.get("/version", tags=["state"])
    async def version() -> Response:
        """Tell the vLLM versions behind this gateway, and its own."""
        versions = sorted({m.version for m in fleet.members.values() if m.version})
        return json_answer(
            {"version": ", ".join(versions) or "unknown", "turnout": gateway_version()}
        )

    @api.get("/health", tags=["state"])
    async def health() -> Response:
        """Answer 200 while the process runs, whatever its backends do."""
        return json_answer({"status": "ok"})

    @api.get("/ready", tags=["state"])
    async def ready() -> Response:
        """Answer 200 if a request could be served: a backend is up, and the gateway stays."""
        why = not_ready(fleet, lifecycle)
        up = {pool.name: len(pool.healthy()) for pool in fleet.pools}
        body = {"ready": why is None, "reason": why, "backends_up": up}
        return json_answer(body, status=200 if why is None else 503)

    @api.get("/metrics", tags=["state"])
    async def metrics() -> Response:
        """Return the gateway's series, and vLLM's speculation counters over all backends."""
        await totals.refreshed()
        text = await exposition(registry, totals)
        return Response(text, media_type=CONTENT_TYPE_PLAIN_0_0_4)

    question = {"required": True, "content": {"application/json": {"schema": _QUESTION}}}

    @api.post("/explain", tags=["state"], openapi_extra={"requestBody": question})
    async def explanation(request: Request) -> Response:
        """Tell what would be decided for a request, and by which rules; nothing is sent."""
        raw = await read_body(request, fleet.settings.listen.max_body_bytes)
        asked, endpoint = read_question(raw)
        answer = explain(asked, endpoint, router=router, fleet=fleet, now=clock())
        return json_answer(answer.to_json())

    api.openapi = lambda: _schema(api)  # type: ignore[method-assign]  # FastAPI's way to extend it
    return api


def merged_cards(fleet: Fleet, discovery: Discovery) -> dict[str, dict[str, Any]]:
    """Return `/v1/models` entries by name: what backends told, what is declared, then aliases.

    Of a name that several backends serve the first one's card stands. An alias is its model's
    card under another `id`, with the model's name as `root`.
    """
    cards: dict[str, dict[str, Any]] = {}
    for name in fleet.members:
        for card in discovery.cards.get(name, ()):
            cards.setdefault(card["id"], dict(card))
    for pool in fleet.pools:
        if pool.model:
            cards.setdefault(pool.model, _bare_card(pool.model))
    for model in fleet.settings.models:
        for alias in model.aliases if model.name in cards else ():
            cards.setdefault(alias, {**cards[model.name], "id": alias, "root": model.name})
    return cards


def _bare_card(name: str) -> dict[str, Any]:
    """Return the card of a model that no backend has told of yet."""
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "vllm",
        "root": name,
        "parent": None,
    }


def not_ready(fleet: Fleet, lifecycle: Lifecycle) -> str | None:
    """Return why no request could be served, or None."""
    if lifecycle.leaving:
        return "this gateway is shutting down"
    members = fleet.members.values()
    if any(member.load.healthy and not member.unauthorized for member in members):
        return None
    why = fleet.unauthorized()
    return f"none of {len(members)} backends is up" + (f"; {why}" if why else "")


async def read_body(request: Request, limit: int) -> bytes:
    """Return the body of `request`.

    Raises:
        BodyTooLarge: If it has more than `limit` bytes.
    """
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > limit:
            msg = f"the body is larger than {limit} bytes (listen.max_body_bytes)"
            raise BodyTooLarge(msg)
    return bytes(raw)


def as_known(scope: Scope, methods: Container[str]) -> Scope:
    """Return a request of ASGI as one that the API knows.

    HEAD is a GET, whose body uvicorn leaves out. By OPTIONS of `/` or `*` a load balancer asks
    whether a server is to be given work (HAProxy's `option httpchk`): whether it is ready.

    Args:
        scope: The request.
        methods: What its path takes.
    """
    if scope["method"] == "HEAD" and "GET" in methods:
        return {**scope, "method": "GET"}
    if scope["method"] == "OPTIONS" and scope["path"] in ("/", "*"):
        return {**scope, "method": "GET", "path": "/ready", "raw_path": b"/ready"}
    return scope


def add_errors(api: FastAPI) -> None:
    """Give every error its API's shape; what went wrong inside stays in the log."""

    @api.exception_handler(ProxyError)
    async def own(request: Request, error: ProxyError) -> Response:
        return error_answer(error, request.scope["path"])

    @api.exception_handler(HTTPException)
    async def unserved(request: Request, error: HTTPException) -> Response:
        whole, method = request.scope["path"], request.method
        path = scrubbed(whole)[:200]
        allow = "POST" if path in ROUTES else (error.headers or {}).get("Allow")
        if allow is not None:
            msg = f"{path} takes {allow}, not {method}"
            return error_answer(MethodNotAllowed(msg, allow=allow), whole)
        return error_answer(NotServed(f"there is no {method} {path} here"), whole)

    @api.exception_handler(Exception)
    async def unforeseen(request: Request, _error_in_log: Exception) -> Response:
        error = ProxyError("the gateway failed to answer; its log says why")
        return error_answer(error, request.scope["path"])


def error_answer(error: ProxyError, path: str) -> Response:
    """Return an error of the gateway's own as an answer; a key in the path is not repeated."""
    error.message = scrubbed(error.message)
    return Response(
        error.body(anthropic=speaks_anthropic(path)),
        status_code=error.status,
        headers=dict(error.headers),
        media_type="application/json",
    )


def json_answer(value: object, *, status: int = 200) -> Response:
    """Return an answer that is JSON."""
    return Response(orjson.dumps(value), status_code=status, media_type="application/json")


def _schema(api: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI schema with the pipeline's endpoints; made once."""
    if api.openapi_schema is None:
        made = get_openapi(title=api.title, version=api.version, routes=api.routes)
        api.openapi_schema = add_inference_routes(made)
    return api.openapi_schema
