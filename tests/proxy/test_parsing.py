"""Reading a request body, and the two edits it may need."""

import json
import re
from typing import Any

import orjson
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from proxy.errors import InvalidRequest
from proxy.parsing import parse, with_model, with_usage

NAMES = st.text(max_size=6) | st.sampled_from(["model", "stream_options", "messages", "stream"])
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=6)
BLANK = st.text(" \t\r\n", max_size=2)


@st.composite
def bodies(draw: st.DrawFn, given: dict[str, Any]) -> bytes:
    """Return JSON text of `given` and other members, in any order, spaced and escaped freely."""
    members = [*draw(OBJECTS).items(), *given.items()]
    members = draw(st.permutations(members))
    members = [pair for pair in members if pair[0] not in given or pair[1] == given[pair[0]]]
    ascii_only = draw(st.booleans())
    parts = [
        f"{draw(BLANK)}{json.dumps(key, ensure_ascii=ascii_only)}{draw(BLANK)}:{draw(BLANK)}"
        f"{json.dumps(value, ensure_ascii=ascii_only)}{draw(BLANK)}"
        for key, value in members
    ]
    text = f"{draw(BLANK)}{{{','.join(parts) or draw(BLANK)}}}{draw(BLANK)}"
    try:
        return text.encode()
    except UnicodeEncodeError:  # a lone surrogate is not JSON text
        assume(False)
        raise


def changed(before: bytes, after: bytes) -> tuple[bytes, bytes]:
    """Return what was taken out and what was put in, between equal beginnings and ends."""
    start = 0
    while start < min(len(before), len(after)) and before[start] == after[start]:
        start += 1
    end = 0
    while end < min(len(before), len(after)) - start and before[-1 - end] == after[-1 - end]:
        end += 1
    return before[start : len(before) - end], after[start : len(after) - end]


@given(bodies({"model": "alias"}), st.text(max_size=12))
def test_an_alias_changes_the_model_and_no_other_byte(raw: bytes, name: str) -> None:
    edited = with_model(raw, name)

    assert orjson.loads(edited) == {**orjson.loads(raw), "model": name}
    gone, put = changed(raw, edited)
    assert gone in b'"alias"'
    assert put in orjson.dumps(name)


@given(bodies({"stream": True}), st.booleans())
def test_asking_for_usage_changes_the_stream_options_and_no_other_byte(
    raw: bytes, continuous: bool
) -> None:
    request = parse_or_skip(raw)
    assume(request.options is not None)

    edited = with_usage(request, raw, continuous=continuous)

    wanted = {**(request.body.get("stream_options") or {}), "include_usage": True}
    if continuous:
        wanted["continuous_usage_stats"] = True
    before, after = orjson.loads(raw), orjson.loads(edited)
    assert after == {**before, "stream_options": wanted}
    if "stream_options" not in before:
        gone, put = changed(raw, edited)
        assert gone == b""
        assert len(put) == len(b'"stream_options":,' + orjson.dumps(wanted))


def parse_or_skip(raw: bytes) -> Any:
    try:
        return parse(raw)
    except InvalidRequest as error:  # a drawn `model` that is no string
        assume(error.param is None)
        raise


def test_of_two_members_of_one_name_the_last_is_the_one_replaced() -> None:
    raw = b'{"model":"a","x":{"model":"b"},"model":"c"}'

    assert parse(raw).model == "c"
    assert with_model(raw, "d") == b'{"model":"a","x":{"model":"b"},"model":"d"}'


def test_a_name_in_escapes_is_the_same_name() -> None:
    raw = rb'{"mod\u0065l":"a","stream":true,"stream\u005foptions":{"include_usage":false}}'
    request = parse(raw)

    assert with_model(raw, "b").startswith(rb'{"mod\u0065l":"b",')
    assert orjson.loads(with_usage(request, raw, continuous=False))["stream_options"] == {
        "include_usage": True
    }


def test_names_inside_strings_and_objects_are_left_alone() -> None:
    text = r'{"messages":[{"content":"\"model\": \"x\" ✓"}],"o":{"model":1},"model": "a" }'
    raw = text.encode()

    edited = with_model(raw, "b")

    assert edited == raw.replace(b'"model": "a"', b'"model": "b"')


def test_numbers_that_json_readers_disagree_on_pass_as_they_are() -> None:
    raw = b'{"seed":' + b"9" * 40 + b',"t":1E400,"u":-0.0,"model":"a","stream":true}'
    request = parse(raw.replace(b"1E400", b"1.10"))

    edited = with_usage(request, raw, continuous=False)

    assert edited.endswith(raw[1:])


def test_stream_options_that_are_not_an_object_are_replaced() -> None:
    raw = b'{"stream":true,"stream_options":null}'

    edited = with_usage(parse(raw), raw, continuous=False)

    assert edited == b'{"stream":true,"stream_options":{"include_usage":true}}'


def test_further_stream_options_are_kept() -> None:
    raw = b'{"stream":true,"stream_options":{"x":1,"include_usage":false}}'

    edited = with_usage(parse(raw), raw, continuous=True)

    assert orjson.loads(edited)["stream_options"] == {
        "x": 1,
        "include_usage": True,
        "continuous_usage_stats": True,
    }


def test_counts_that_a_client_asked_for_in_vain_stay_out() -> None:
    raw = b'{"stream":true,"stream_options":{"include_usage":null,"continuous_usage_stats":"on"}}'

    edited = with_usage(parse(raw), raw, continuous=False)

    assert orjson.loads(edited)["stream_options"] == {
        "include_usage": True,
        "continuous_usage_stats": False,
    }


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


def test_a_body_too_deep_to_edit_is_told_so() -> None:
    raw = b'{"x":' + nested(1000) + b',"model":"a"}'

    with pytest.raises(InvalidRequest, match="cannot be edited"):
        with_model(raw, parse(raw).model)


def test_stream_options_too_deep_to_write_are_told_so() -> None:
    raw = b'{"stream":true,"stream_options":{"x":' + nested(1010) + b"}}"

    with pytest.raises(InvalidRequest, match="cannot be edited"):
        with_usage(parse(raw), raw, continuous=False)


ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_an_edit_is_made_in_utf_8_whatever_the_body_came_in(encoding: str) -> None:
    text = '{"model":"a","stream":true,"x":["\u2713",NaN,-Infinity,1e999,"\\ud800"]}'
    raw = text.encode(encoding)
    request = parse(raw)

    assert (request.model, request.stream) == ("a", True)
    assert with_model(raw, "b").decode() == text.replace('"a"', '"b"')
    asked = with_usage(request, raw, continuous=False).decode()
    assert asked == text.replace("{", '{"stream_options":{"include_usage":true},', 1)


def test_half_a_surrogate_pair_is_read_as_a_character_that_can_be_written() -> None:
    raw = rb'{"a":"\ud83d\ude00","b":"\\ud800","c":"\udc00\ud800!","d":"' + b'\xed\xa0\x80"}'

    body = parse(raw).body

    assert body == {"a": "\U0001f600", "b": "\\ud800", "c": "\ufffd\ufffd!", "d": "?"}


ESCAPED = st.sampled_from([r"\ud83d", r"\uDE00", r"\uDfff", r"\u0041", "\\\\", r"\n", "ud83d"])


@given(st.lists(ESCAPED).map("".join))
def test_halves_of_pairs_alone_are_replaced_whatever_stands_around_them(escaped: str) -> None:
    body = parse(b'{"a":"%b","b":NaN}' % escaped.encode()).body

    assert body["a"] == re.sub("[\ud800-\udfff]", "\ufffd", json.loads(f'"{escaped}"'))


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON.*line 1, column 2"),
        (b'{"a":1}x', "not valid JSON"),
        (b'{"a":"\xff"}', "not valid JSON"),
        (b'{"a":' + nested(200_000) + b"}", "not valid JSON"),
        (b'{"a":' + b"9" * 5000 + b"}", "not valid JSON"),
        ('{"a":1}x'.encode("utf-16"), "not valid JSON"),
        (b"[]", "a JSON object, not an array"),
        (b'"x"', "a JSON object, not a string"),
        (b"null", "a JSON object, not null"),
        (b"true", "a JSON object, not a boolean"),
        (b"1.5", "a JSON object, not a number"),
    ],
)
def test_a_body_that_is_no_json_object_is_a_clear_400(raw: bytes, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says) as caught:
        parse(raw)

    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("model", "kind"),
    [("1", "a number"), ("true", "a boolean"), ("[]", "an array"), ("{}", "an object")],
)
def test_a_model_that_is_no_string_is_a_400_naming_it(model: str, kind: str) -> None:
    with pytest.raises(InvalidRequest, match=f"'model' must be a string, not {kind}") as caught:
        parse(b'{"model":' + model.encode() + b"}")

    assert caught.value.param == "model"


@pytest.mark.parametrize("raw", [b"{}", b'{"model":null}', b'{"model":""}'])
def test_a_missing_model_is_left_to_the_fleet(raw: bytes) -> None:
    assert parse(raw).model == ""


def test_a_body_that_came_packed_is_told_that_it_is_not_unpacked() -> None:
    with pytest.raises(InvalidRequest, match="without content-encoding 'gzip'"):
        parse(b"\x1f\x8b", packed="gzip")


@pytest.mark.parametrize(
    ("options", "usage", "continuous"),
    [
        (b"null", False, False),
        (b"{}", False, False),
        (b'{"include_usage":true}', True, False),
        (b'{"include_usage":1,"continuous_usage_stats":null}', True, False),
        (b'{"include_usage":"Yes","continuous_usage_stats":"on"}', True, True),
        (b'{"include_usage":"off","continuous_usage_stats":1.0}', False, False),
        (b'{"continuous_usage_stats":true}', False, False),
    ],
)
def test_what_a_client_asks_of_usage_is_read(
    options: bytes, usage: bool, continuous: bool
) -> None:
    request = parse(b'{"stream":true,"stream_options":' + options + b"}")

    assert request.options is not None
    assert (request.wants_usage, request.wants_continuous_usage) == (usage, continuous)


REFUSED_OPTIONS = [b'"usage"', b"[]", b"7", b"false", b'""', b'{"include_usage":"perhaps"}',
                   b'{"include_usage":2}', b'{"continuous_usage_stats":[]}']  # fmt: skip


@pytest.mark.parametrize("options", REFUSED_OPTIONS)
def test_options_that_vllm_refuses_ask_for_nothing(options: bytes) -> None:
    assert parse(b'{"stream":true,"stream_options":' + options + b"}").options is None
