"""The inference endpoints in `/openapi.json`: the pipeline serves them, FastAPI never sees them.

Bodies are described as loosely as they are read: what vLLM adds to them tomorrow passes too.
"""

from typing import Any

from proxy.parsing import ROUTES

_TAKES = {
    "/v1/chat/completions": "messages",
    "/v1/completions": "prompt",
    "/v1/responses": "input",
    "/v1/messages": "messages",
    "/v1/messages/count_tokens": "messages",
    "/v1/embeddings": "input",
    "/v1/rerank": "query",
    "/rerank": "query",
    "/detokenize": "tokens",
}
_LOOSE = {"type": "object", "additionalProperties": True}
_SCHEMAS: dict[str, Any] = {
    "Error": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "code"],
                "properties": {
                    "message": {"type": "string"},
                    "type": {"type": "string"},
                    "param": {"type": ["string", "null"]},
                    "code": {"type": "integer"},
                },
            }
        },
    },
    "AnthropicError": {
        "type": "object",
        "required": ["type", "error"],
        "properties": {
            "type": {"const": "error"},
            "error": {
                "type": "object",
                "required": ["type", "message"],
                "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
            },
        },
    },
}
_HEADERS = {
    "x-turnout-pool": "Name of the pool to use, where the config permits it.",
    "x-turnout-task": "Task of the request, instead of the classifier's guess.",
    "x-request-id": "Kept when it is 1 to 256 printable characters and no blank, else made.",
}
_ANSWER_HEADERS = {
    "x-turnout-pool": "Pool that answered.",
    "x-turnout-backend": "Backend that answered, `host:port`.",
    "x-turnout-reason": "Rule that chose the pool.",
    "x-turnout-class": "Traffic class, `task@temperature`.",
    "x-request-id": "Id of the request.",
}


def add_inference_routes(schema: dict[str, Any]) -> dict[str, Any]:
    """Return an OpenAPI schema with the endpoints of the pipeline added to it."""
    schema.setdefault("components", {}).setdefault("schemas", {}).update(_SCHEMAS)
    paths = schema["paths"]
    for path in ROUTES:
        paths[path] = {"post": _operation(path, body=_body(path))}
    stored = "/v1/responses/{response_id}"
    response_id = {
        "name": "response_id",
        "in": "path",
        "required": True,
        "schema": {"type": "string"},
    }
    paths[stored] = {"get": _operation(stored), "parameters": [response_id]}
    paths[f"{stored}/cancel"] = {
        "post": _operation(f"{stored}/cancel"),
        "parameters": [response_id],
    }
    return schema


def _body(path: str) -> dict[str, Any]:
    properties: dict[str, Any] = {"model": {"type": "string"}}
    body: dict[str, Any] = {**_LOOSE, "properties": properties}
    if path in _TAKES:
        properties[_TAKES[path]] = {}
        body["required"] = [_TAKES[path]]
    return {"required": True, "content": {"application/json": {"schema": body}}}


def _operation(path: str, *, body: dict[str, Any] | None = None) -> dict[str, Any]:
    error = "AnthropicError" if path.startswith("/v1/messages") else "Error"
    ref = {"schema": {"$ref": f"#/components/schemas/{error}"}}
    operation: dict[str, Any] = {
        "tags": ["inference"],
        "summary": f"vLLM's {path}, on the pool that serves it best",
        "parameters": [_header(name, text, where="header") for name, text in _HEADERS.items()],
        "responses": {
            "200": {
                "description": "vLLM's answer, as it came; an event stream if asked for.",
                "headers": {name: _header(None, text) for name, text in _ANSWER_HEADERS.items()},
                "content": {
                    "application/json": {"schema": _LOOSE},
                    "text/event-stream": {"schema": {"type": "string"}},
                },
            },
            "4XX": {
                "description": "The gateway's own error, or the backend's as it came.",
                "content": {"application/json": ref},
            },
            "5XX": {
                "description": "No backend could answer.",
                "content": {"application/json": ref},
            },
        },
    }
    if body is not None:
        operation["requestBody"] = body
    return operation


def _header(name: str | None, text: str, *, where: str | None = None) -> dict[str, Any]:
    """Return a header's description; as a parameter it also has a name and a place."""
    described: dict[str, Any] = {"description": text, "schema": {"type": "string"}}
    return described if name is None else {"name": name, "in": where, **described}
