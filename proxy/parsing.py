"""Request bytes to a parsed request, and the two edits that a body may need.

The law: what vLLM reads, the gateway reads, and to the same values; what it can't read passes as
it is, for the server to answer. vLLM reads bodies with Python's `json` and their fields with
pydantic, which takes `"true"` and `1` for true and `"16"` for 16; so does this module, which tries
a faster reader of JSON first.
"""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import orjson
from pydantic import BaseModel, TypeAdapter, ValidationError

from proxy.errors import InvalidRequest
from routing.features import Route


class StreamOptions(BaseModel):
    """What a client wants to be told of tokens: vLLM's class of this name, its defaults too."""

    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


@dataclass(slots=True, kw_only=True)
class ParsedRequest:
    """A request body, as bytes and as JSON.

    Attributes:
        raw: The body as it came.
        body: The same, parsed, with the fields that routing counts on as vLLM reads them.
        model: The `model` field; empty when absent, which vLLM accepts.
        stream: Whether the answer is to stream.
        options: What the client itself asked for; None where vLLM will refuse it.
    """

    raw: bytes
    body: Mapping[str, Any]
    model: str
    stream: bool
    options: StreamOptions | None

    @property
    def wants_usage(self) -> bool:
        """Whether the client itself asked for the final usage chunk."""
        return self.options is not None and bool(self.options.include_usage)

    @property
    def wants_continuous_usage(self) -> bool:
        """Whether it asked for usage in every chunk, which it gets with the final one alone."""
        return self.wants_usage and bool(self.options and self.options.continuous_usage_stats)


def parse(raw: bytes, *, packed: str | None = None) -> ParsedRequest:
    """Parse a JSON object.

    Args:
        raw: The body as it came.
        packed: What its `content-encoding` says, which vLLM does not look at.

    Raises:
        InvalidRequest: If the body is not a JSON object, or `model` is not a string.
    """
    body = _read(raw, packed)
    if not isinstance(body, dict):
        msg = f"the body must be a JSON object, not {_json_type(body)}"
        raise InvalidRequest(msg)
    model = body.get("model")
    if model is not None and not isinstance(model, str):
        msg = f"'model' must be a string, not {_json_type(model)}"
        raise InvalidRequest(msg, param="model")
    _coerce(body)
    return ParsedRequest(
        raw=raw,
        body=body,
        model=model or "",
        stream=body.get("stream") is True,
        options=_options(body.get("stream_options")),
    )


def _read(raw: bytes, packed: str | None) -> object:
    """Return what vLLM reads in `raw`.

    Python's reader takes what `orjson` does not: a byte order mark, UTF-16 and UTF-32, `NaN` and
    `Infinity`, numbers beyond a float, half a surrogate pair.

    Raises:
        InvalidRequest: If it takes it neither, or it is nested too deep for it.
    """
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(_without_halves(_text(raw)))
    except json.JSONDecodeError as error:
        what = f"{error.msg} (line {error.lineno}, column {error.colno})"
    except (RecursionError, ValueError) as error:  # also bytes of no encoding, too long an integer
        what = str(error)
    msg = f"the body is not valid JSON: {what}"
    if packed:
        msg += f"; it is not unpacked here, so send it without content-encoding {packed[:40]!r}"
    raise InvalidRequest(msg) from None


def _text(raw: bytes) -> str:
    """Return JSON as text, decoded as Python's `json` does."""
    return raw.decode(json.detect_encoding(raw), "surrogatepass")


_HALF = re.compile(
    r"\\u[dD](?:[89abAB]\w\w(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]\w\w\\u[dD])[c-fC-F]\w\w)"
)
"""Half of a surrogate pair, where no backslash is itself escaped."""


def _without_halves(text: str) -> str:
    """Return JSON text with halves of surrogate pairs replaced: they can't be written in UTF-8.

    A body may hold millions of escapes, so nothing is called for each.
    """
    aside = "\ud800"  # what is not in the text by then
    text = text.encode("utf-8", "replace").decode().replace(r"\\", aside)
    return _HALF.sub(r"\\ufffd", text).replace(aside, r"\\")


_BOOL, _INT, _FLOAT = TypeAdapter(bool), TypeAdapter(int), TypeAdapter(float)
_FIELDS: tuple[tuple[str, tuple[type, ...], TypeAdapter[Any]], ...] = (
    ("stream", (bool,), _BOOL),
    *((name, (int,), _INT) for name in ("max_tokens", "max_completion_tokens")),
    *((name, (int,), _INT) for name in ("max_output_tokens", "n", "top_k", "seed")),
    *((name, (float, int), _FLOAT) for name in ("temperature", "min_p")),
)
"""What routing reads, the types that it takes as they are, and how vLLM reads any other."""


def _coerce(body: dict[str, Any]) -> None:
    """Put what vLLM will read in place of `"0.5"`, `1.0`, `"yes"` and their like."""
    for name, plain, reader in _FIELDS:
        value = body.get(name)
        if value is None or type(value) in plain:
            continue
        with suppress(ValidationError):  # vLLM will answer that with a 400
            body[name] = reader.validate_python(value)


_NOTHING_ASKED = StreamOptions()
_OPTIONS = TypeAdapter(StreamOptions)


def _options(given: object) -> StreamOptions | None:
    """Return `stream_options` as vLLM reads them; None for what it refuses."""
    if given is None:
        return _NOTHING_ASKED
    try:
        return _OPTIONS.validate_python(given)
    except ValidationError:
        return None


def _json_type(value: object) -> str:
    if value is None:
        return "null"
    names = {list: "an array", dict: "an object", str: "a string", bool: "a boolean"}
    return names.get(type(value), "a number")


def with_model(raw: bytes, model: str) -> bytes:
    """Return the body with its `model` value replaced, every other character as it was."""
    return _with_value(raw, "model", orjson.dumps(model))


def with_usage(request: ParsedRequest, raw: bytes, *, continuous: bool) -> bytes:
    """Return `raw` asking for the final usage chunk, every other character as it was.

    Args:
        request: The parsed form of `raw`, whose own stream options are kept; vLLM takes them.
        raw: The body to edit.
        continuous: Ask for token counts in every chunk as well.

    Raises:
        InvalidRequest: If it cannot be edited.
    """
    options = {**(request.body.get("stream_options") or {}), "include_usage": True}
    if continuous or "continuous_usage_stats" in options:  # without the first it asks for nothing
        options["continuous_usage_stats"] = continuous or request.wants_continuous_usage
    try:
        value = json.dumps(options, separators=(",", ":")).encode()
    except RecursionError as error:
        raise _uneditable(error) from None
    if "stream_options" in request.body:
        return _with_value(raw, "stream_options", value)
    raw = _utf8(raw)
    at = raw.index(b"{") + 1  # a body that asks for a stream has a member to put it before
    return b'%b"stream_options":%b,%b' % (raw[:at], value, raw[at:])


def _utf8(raw: bytes) -> bytes:
    """Return JSON in UTF-8, without a byte order mark."""
    if json.detect_encoding(raw) == "utf-8":
        return raw
    return _text(raw).encode("utf-8", "surrogatepass")


def _with_value(raw: bytes, key: str, value: bytes) -> bytes:
    """Replace the value of a top-level member: the last of that name, which is the one read."""
    text = _text(raw)
    try:
        start, end = _value_span(text, key)
    except (RecursionError, ValueError) as error:  # orjson reads deeper nesting, longer integers
        raise _uneditable(error) from None
    before, after = (part.encode("utf-8", "surrogatepass") for part in (text[:start], text[end:]))
    return before + value + after


def _uneditable(error: Exception) -> InvalidRequest:
    return InvalidRequest(f"the body cannot be edited: {error}")


_BLANK = " \t\n\r"
_DECODER = json.JSONDecoder()


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
