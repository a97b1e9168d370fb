"""Request bytes to a parsed request, and the two edits that a body may need."""

from collections.abc import Mapping
from dataclasses import dataclass
from json import JSONDecoder
from typing import Any

import orjson

from proxy.errors import InvalidRequest
from routing.features import Route

MAX_DEPTH = 128
"""Levels of nesting in a body; the JSON schema of a tool takes some twenty."""


@dataclass(slots=True, kw_only=True)
class ParsedRequest:
    """A request body, as bytes and as JSON.

    Attributes:
        raw: The body as it came.
        body: The same, parsed.
        model: The `model` field; empty when absent, which vLLM accepts.
        stream: Whether the answer is to stream.
        wants_usage: Whether the client itself asked for the final usage chunk.
        wants_continuous_usage: Whether it asked for usage in every chunk.
    """

    raw: bytes
    body: Mapping[str, Any]
    model: str
    stream: bool
    wants_usage: bool
    wants_continuous_usage: bool


def parse(raw: bytes) -> ParsedRequest:
    """Parse a JSON object.

    Raises:
        InvalidRequest: If the body is not a JSON object, is nested deeper than `MAX_DEPTH`, or
            `model` is not a string.
    """
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        msg = (
            f"the body is not valid JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        )
        raise InvalidRequest(msg) from None
    if not isinstance(body, dict):
        msg = f"the body must be a JSON object, not {_json_type(body)}"
        raise InvalidRequest(msg)
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and _depth(body) > MAX_DEPTH:
        msg = f"the body is nested deeper than {MAX_DEPTH} levels"
        raise InvalidRequest(msg)
    model = body.get("model")
    if model is not None and not isinstance(model, str):
        msg = f"'model' must be a string, not {_json_type(model)}"
        raise InvalidRequest(msg, param="model")
    options = body.get("stream_options")
    options = options if isinstance(options, dict) else {}
    usage = options.get("include_usage") is True
    return ParsedRequest(
        raw=raw,
        body=body,
        model=model or "",
        stream=body.get("stream") is True,
        wants_usage=usage,
        wants_continuous_usage=usage and options.get("continuous_usage_stats") is True,
    )


def _depth(value: object) -> int:
    """Return how deep containers are nested in `value`."""
    depth, level = 0, [value]
    while level := [each for each in level if isinstance(each, dict | list)]:
        depth += 1
        level = [
            inner
            for each in level
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
    return depth


def _json_type(value: object) -> str:
    if value is None:
        return "null"
    names = {list: "an array", dict: "an object", str: "a string", bool: "a boolean"}
    return names.get(type(value), "a number")


def with_model(raw: bytes, model: str) -> bytes:
    """Return the body with its `model` value replaced, every other byte as it was."""
    return _with_value(raw, "model", orjson.dumps(model))


def with_usage(request: ParsedRequest, raw: bytes, *, continuous: bool) -> bytes:
    """Return `raw` asking for the final usage chunk, every other byte as it was.

    Args:
        request: The parsed form of `raw`, whose own stream options are kept.
        raw: The body to edit.
        continuous: Ask for token counts in every chunk as well.
    """
    given = request.body.get("stream_options")
    options = dict(given) if isinstance(given, dict) else {}
    options["include_usage"] = True
    if continuous:
        options["continuous_usage_stats"] = True
    value = orjson.dumps(options)
    if "stream_options" in request.body:
        return _with_value(raw, "stream_options", value)
    at = raw.index(b"{") + 1  # a body that asks for a stream has a member to put it before
    return b'%b"stream_options":%b,%b' % (raw[:at], value, raw[at:])


def _with_value(raw: bytes, key: str, value: bytes) -> bytes:
    """Replace the value of a top-level member: the last of that name, which is the one read."""
    text = raw.decode()
    try:
        start, end = _value_span(text, key)
    except (RecursionError, ValueError) as error:  # orjson reads deeper nesting, longer integers
        msg = f"the body cannot be edited: {error}"
        raise InvalidRequest(msg) from None
    return text[:start].encode() + value + text[end:].encode()


_BLANK = " \t\n\r"
_DECODER = JSONDecoder()


def _value_span(text: str, wanted: str) -> tuple[int, int]:
    """Return where the value of top-level member `wanted` stands in a JSON object that has it."""
    found = (0, 0)
    at = _skip_blank(text, text.index("{") + 1)
    while text[at] == '"':
        key, at = _DECODER.raw_decode(text, at)
        start = _skip_blank(text, _skip_blank(text, at) + 1)
        _, end = _DECODER.raw_decode(text, start)
        if key == wanted:
            found = (start, end)
        at = _skip_blank(text, end)
        if text[at] == ",":
            at = _skip_blank(text, at + 1)
    return found


def _skip_blank(text: str, at: int) -> int:
    while text[at] in _BLANK:
        at += 1
    return at


ROUTES: Mapping[str, Route] = {
    "/v1/chat/completions": Route.CHAT,
    "/v1/completions": Route.COMPLETIONS,
    "/v1/responses": Route.RESPONSES,
    "/v1/messages": Route.MESSAGES,
    "/v1/messages/count_tokens": Route.OTHER,
    "/v1/embeddings": Route.OTHER,
    "/v1/score": Route.OTHER,
    "/score": Route.OTHER,
    "/v1/rerank": Route.OTHER,
    "/rerank": Route.OTHER,
    "/pooling": Route.OTHER,
    "/classify": Route.OTHER,
    "/tokenize": Route.OTHER,
    "/detokenize": Route.OTHER,
}
"""The POST endpoints that take the one pipeline, and how each body is to be read."""
