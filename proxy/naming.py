"""Which model a request of a further route names: in JSON, in a form, or in its query.

A key may be for some models alone, so what is read here must be what the server reads. Forms are
read with the library that Starlette, and with it vLLM, reads them with; a request that names two
models is refused, as servers differ in which of them counts, and where they look for it.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qs, quote_plus, unquote_plus

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from proxy.errors import InvalidRequest
from proxy.parsing import parse, with_model

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FIELDS = 2_000
"""Fields of a form, at most: Starlette takes 1,000 and as many files."""
PADDING = 100
"""Blanks after a boundary, at most. The library reads them one by one; senders write none."""
NAME_BYTES = 1_000
"""Of a model's name in a form, at most: a longer one is none."""
_BLANK = b" \t\r\n\0\xef\xbb\xbf\xfe\xff"
"""What may stand before JSON, by whatever encoding Python's reader takes: byte order marks too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """What a request calls its model.

    Attributes:
        model: The name; empty where it gives none.
        renamed: Gives the body with another name in that one's place.
        unread: Why its body could not be read although it should be; None where it was.
    """

    model: str
    renamed: Callable[[str], bytes]
    unread: InvalidRequest | None = None


class _Value(NamedTuple):
    """A field's value: its text, and where it stands in the body."""

    text: str
    start: int
    end: int


_Found = tuple[Sequence[str], Callable[[str], bytes]]
"""Names that a body gives, and what gives the body with another in their place."""


def read_naming(content_type: str, target: bytes, raw: bytes) -> Naming:
    """Return what a request calls its model, in its body or its query.

    Args:
        content_type: The field of this name; empty where there is none.
        target: Path and query.
        raw: The body.

    Raises:
        InvalidRequest: If it names two models.
    """
    asked = parse_qs(target.partition(b"?")[2].decode("latin-1")).get("model", [])
    try:
        names, renamed = _in_body(content_type, raw) or ((), lambda _: raw)
    except InvalidRequest as error:
        return Naming(model="", renamed=lambda _: raw, unread=error)
    return Naming(model=_only([*names, *asked]), renamed=renamed)


def _in_body(content_type: str, raw: bytes) -> _Found | None:
    """Return what a body calls the model; None for one that does not name it.

    Raises:
        InvalidRequest: If it is not what `content_type` says.
    """
    kind, options = parse_options_header(content_type)
    first = raw.lstrip(_BLANK)[:1]
    if kind == b"multipart/form-data" and raw:
        return _of_form(raw, _parts(raw, options), str.encode)
    if kind == b"application/x-www-form-urlencoded" and raw:
        found = _fields(raw)
        if first != b"{":  # else it is JSON, whose type a client left to curl
            return _of_form(raw, found, lambda model: quote_plus(model).encode())
        if found:
            msg = "the body can be read as JSON and as a form: say application/json, if it is that"
            raise InvalidRequest(msg)
    is_json = kind == b"application/json" or kind.endswith(b"+json")
    if first == b"[" or not (first == b"{" or (first and is_json)):
        return None
    model = parse(raw).model
    return ([model], partial(with_model, raw)) if model else None


def _of_form(raw: bytes, found: Sequence[_Value], encoded: Callable[[str], bytes]) -> _Found:
    """Return the names that a form's fields `found` give.

    Args:
        raw: The form.
        found: Values of its fields called `model`.
        encoded: Gives a value as it stands in such a form.
    """

    def renamed(model: str) -> bytes:
        body = raw
        for value in reversed(found):
            body = body[: value.start] + encoded(model) + body[value.end :]
        return body

    return [value.text for value in found], renamed


def _only(names: Sequence[str]) -> str:
    """Return the name that all `names` are; empty where there are none.

    Raises:
        InvalidRequest: If they are not the same.
    """
    if len(distinct := dict.fromkeys(names)) > 1:
        listed = " and ".join(repr(name[:80]) for name in list(distinct)[:2])
        msg = f"the request names more than one model: {listed}; give one"
        raise InvalidRequest(msg, param="model")
    return next(iter(distinct), "")


def _parts(raw: bytes, options: Mapping[bytes, bytes]) -> list[_Value]:
    """Return the values of a multipart form's fields called `model`.

    Args:
        raw: The form.
        options: Of its content type.

    Raises:
        InvalidRequest: If it is none, has too many parts, or its names are not in UTF-8.
    """
    boundary = options.get(b"boundary", b"")
    if options.get(b"charset", b"utf-8").lower() not in (b"utf-8", b"utf8"):
        raise InvalidRequest("a form must be in UTF-8: leave the charset out of its content-type")
    delimiter = b"\r\n--" + boundary
    _check_fields(raw.count(delimiter))
    if re.search(rb"%b[ \t]{%d}" % (re.escape(delimiter), PADDING), raw):
        msg = f"the form has {PADDING} blanks or more after a boundary; leave them out"
        raise InvalidRequest(msg)
    reader = _PartReader()
    callbacks: MultipartCallbacks = {
        "on_part_begin": reader.begin,
        "on_header_field": reader.header,
        "on_header_value": reader.content,
        "on_header_end": reader.end_header,
        "on_part_data": reader.value,
        "on_part_end": reader.end,
    }
    try:
        if not boundary:
            raise FormParserError("its content-type gives no boundary")  # noqa: TRY301
        MultipartParser(boundary, callbacks).write(raw)
    except FormParserError as error:
        msg = f"the body is not a multipart form: {error}"
        raise InvalidRequest(msg) from None
    return [_value(_text, raw, start, end) for start, end in reader.found]


class _PartReader:
    """Notes where the values of parts called `model` stand, in a form written in one piece."""

    def __init__(self) -> None:
        self.found: list[tuple[int, int]] = []
        self.begin()

    def begin(self) -> None:
        self._field = self._content = self._name = b""
        self._span = (0, 0)

    def header(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def content(self, data: bytes, start: int, end: int) -> None:
        self._content += data[start:end]

    def end_header(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._name = parse_options_header(self._content)[1].get(b"name", b"")
        self._field = self._content = b""

    def value(self, _: bytes, start: int, end: int) -> None:
        self._span = (start, end)

    def end(self) -> None:
        if self._name == b"model":
            self.found.append(self._span)


def _fields(raw: bytes) -> list[_Value]:
    """Return the values of an encoded form's fields called `model`.

    Raises:
        InvalidRequest: If it has too many.
    """
    _check_fields(raw.count(b"&"))
    found, at = [], 0
    for field in raw.split(b"&"):
        name, equals, value = field.partition(b"=")
        if len(name) <= _NAME_ENCODED and _decoded(name) == "model":
            start = at + len(name) + len(equals)
            found.append(_value(_decoded, raw, start, start + len(value)))
        at += len(field) + 1
    return found


_NAME_ENCODED = len("%6d%6f%64%65%6c")


def _value(decoded: Callable[[bytes], str], raw: bytes, start: int, end: int) -> _Value:
    """Return what stands there.

    Raises:
        InvalidRequest: If it is too long to be a model's name.
    """
    if end - start > NAME_BYTES:
        msg = f"'model' has {end - start} bytes, more than {NAME_BYTES}"
        raise InvalidRequest(msg, param="model")
    return _Value(decoded(raw[start:end]), start, end)


def _decoded(raw: bytes) -> str:
    return unquote_plus(raw.decode("latin-1"))


def _check_fields(count: int) -> None:
    if count > FIELDS:
        msg = f"the form has more than {FIELDS} fields"
        raise InvalidRequest(msg)


def _text(raw: bytes) -> str:
    """Return a value as Starlette reads it."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")
