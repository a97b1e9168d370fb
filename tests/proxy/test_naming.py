"""A request's model is what its server would read, by the form parser of Starlette and vLLM."""

import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any
from urllib.parse import quote_plus

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import FormParser, MultiPartException, MultiPartParser

from proxy.errors import InvalidRequest
from proxy.naming import read_naming
from tests.proxy.pieces import drive

MULTIPART, ENCODED = "multipart/form-data; boundary=b0und", "application/x-www-form-urlencoded"
Field = tuple[str, str, bool]
NAMES = st.sampled_from(["model", "Model", "file", "mod\u00e9l", "model "])
VALUES = st.sampled_from(
    ["m1", "m2", "", "a/b-c.d", "m\u00e9", "--b0und", "x=1&model=m3", "+%6d", "\rm", "m\r\n--b0un",
     "\r\n--b0und-m", "\r\n--b0und\rm", "\r\n\r\n-"]
)  # fmt: skip
FIELDS = st.lists(st.tuples(NAMES, VALUES, st.booleans()), max_size=5)


def multipart(fields: Sequence[Field]) -> bytes:
    """Return a form of fields, each with whether it is a file."""
    parts = []
    for name, value, is_file in fields:
        disposition = f'form-data; name="{name}"' + '; filename="a.wav"' * is_file
        parts.append(f"--b0und\r\nContent-Disposition: {disposition}\r\n\r\n{value}\r\n".encode())
    return b"".join(parts) + b"--b0und--\r\n"


def encoded(fields: Sequence[Field]) -> bytes:
    return "&".join(
        f"{quote_plus(name)}={quote_plus(value)}" for name, value, _ in fields
    ).encode()


async def pieces(raw: bytes, size: int) -> AsyncIterator[bytes]:
    for at in range(0, len(raw), size):
        yield raw[at : at + size]
    yield b""


def of_starlette(content_type: str, raw: bytes, size: int) -> FormData:
    """Return the form as Starlette reads it, which comes in pieces of `size` bytes.

    Raises:
        MultiPartException: If it can't.
    """
    parser = MultiPartParser if content_type.startswith("multipart") else FormParser
    headers = Headers({"content-type": content_type})
    return drive(parser(headers, pieces(raw, size)).parse())  # type: ignore[arg-type]


def text(value: str | UploadFile) -> str:
    if isinstance(value, str):
        return value
    with value.file as file:
        return file.read().decode(errors="replace")


def items(form: FormData) -> list[tuple[str, str]]:
    return [(name, text(value)) for name, value in form.multi_items()]


SIZES = st.sampled_from([1, 7, 2**16])


@given(FIELDS, st.booleans(), SIZES)
def test_the_name_is_the_one_that_starlette_reads_and_a_new_one_takes_its_place(
    fields: list[Field], is_encoded: bool, size: int
) -> None:
    kind, raw = (ENCODED, encoded(fields)) if is_encoded else (MULTIPART, multipart(fields))
    read = items(of_starlette(kind, raw, size))
    names = {value for name, value in read if name == "model"}

    if len(names) > 1:
        with pytest.raises(InvalidRequest, match="more than one model"):
            read_naming(kind, b"/x", raw)
        return
    naming = read_naming(kind, b"/x", raw)

    assert naming.unread is None
    assert naming.model == next(iter(names), "")
    if naming.model:
        renamed = items(of_starlette(kind, naming.renamed("the new & one"), size))
        assert renamed == [(n, "the new & one" if n == "model" else v) for n, v in read]


KINDS = st.sampled_from(
    [MULTIPART, ENCODED, "Multipart/Form-Data;boundary=b0und ; charset=utf-16"]
)
WORDS = st.sampled_from(
    [b"--b0und", b"--", b"\r\n", b"\r", b"\n", b"Content-Disposition: form-data; ", b"name=",
     b'"model"', b"name*=utf-8''model", b"model", b"=", b"&", b";", b"m1", b"m2", b"\0", b" ",
     b'content-disposition: form-data; name="model"\r\n\r\n', b'; filename="f"', b"%6Dodel"]
)  # fmt: skip


@given(KINDS, st.lists(WORDS, max_size=12).map(b"".join), SIZES)
@example(
    MULTIPART, b'--b0und\r\ncontent-disposition: form-data; name="model"\r\n\r\nm2\r\n--b0und', 7
)
@example(
    MULTIPART, b"--b0und\r\ncontent-disposition: form-data; name=model\r\n\r\n\r\n--b0und--", 7
)
@example(ENCODED, b"%6Dodel=m2&x", 7)
@example(ENCODED, b'{"model":"m1","x":"&model=m2&"}', 7)
def test_no_form_names_a_model_to_the_server_that_is_not_read_here(
    kind: str, raw: bytes, size: int
) -> None:
    try:
        asked = [value for name, value in items(of_starlette(kind, raw, size)) if name == "model"]
    except MultiPartException:
        return  # so does the server refuse it
    try:
        naming = read_naming(kind, b"/x", raw)
    except InvalidRequest:
        return

    assert naming.unread is not None or not asked or naming.model == asked[-1]


@pytest.mark.parametrize(
    ("content_type", "target", "raw", "model"),
    [
        ("application/json", b"/x", b'{"model":"a","model":"b"}', "b"),
        ("application/json", b"/x", b"[1]", ""),
        ("application/json", b"/x?model=q", b"", "q"),
        ("application/json", b"/x?model=q", b'{"x":1}', "q"),
        ("application/json", b"/x", b'{"model":null}', ""),
        ("", b"/x", b' \n{"model":"a"}', "a"),
        ("", b"/x", b'\xef\xbb\xbf{"model":"a"}', "a"),
        ("text/plain", b"/x", ' {"model":"a"}'.encode("utf-16-be"), "a"),
        ("", b"/x", ' {"model":"a"}'.encode("utf-32"), "a"),
        ("audio/wav", b"/x?model=q&model=q", b"RIFF", "q"),
        (ENCODED, b"/x", b'{"model":"a"}', "a"),
        (ENCODED, b"/x?model=q", b"x=1", "q"),
        (MULTIPART, b"/x?model=q", multipart([("x", "1", False)]), "q"),
        ("", b"/x", b"", ""),
    ],
)
def test_a_name_is_read_from_the_body_or_the_query(
    content_type: str, target: bytes, raw: bytes, model: str
) -> None:
    naming = read_naming(content_type, target, raw)

    assert (naming.model, naming.unread) == (model, None)


PART = b'--b0und\r\ncontent-disposition: form-data; name="x"\r\n\r\n\r\n--b0und'
SIZE = 2**20
COSTLY: list[tuple[str, bytes, bool]] = [
    (MULTIPART, PART + b" \t" * SIZE, False),
    (MULTIPART, PART + b"\r\n" + b"a" * SIZE, False),
    (MULTIPART, PART + b"\r\n" + b"a: b\r\n" * SIZE, False),
    (ENCODED, b"model=" + b"%41" * SIZE, False),
    (ENCODED, b"%6Dodel=a&" + b"%41" * SIZE, True),
    (ENCODED, b'{"model":"m2","x":"&model=m1&"}', False),
    ("", b"\0{" + b"a" * SIZE, False),
]


@pytest.mark.parametrize(("kind", "raw", "is_read"), COSTLY, ids=range(len(COSTLY)))
def test_what_would_take_long_or_has_two_meanings_is_not_read(
    kind: str, raw: bytes, is_read: bool
) -> None:
    steps = 0

    def count(*_: object) -> Any:
        nonlocal steps
        steps += 1
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        naming = read_naming(kind, b"/x", raw)
    finally:
        sys.settrace(before)

    assert (naming.unread is None, naming.model) == (is_read, "a" if is_read else "")
    assert steps < 10_000  # lines of Python, for a megabyte
