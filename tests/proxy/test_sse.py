"""Cutting a byte stream into events."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.sse import MAX_EVENT_BYTES, EventSplitter, event, payload

LINE_ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
FIELDS = st.sampled_from(
    [b"data: {}", b"data:x", b"data: a: b", b"data", b": keep-alive", b":", b"event: error", b"id"]
)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Return well-formed events whose lines end in any of the three ways, mixed."""
    parts = []
    for _ in range(draw(st.integers(0, 6))):
        for line in draw(st.lists(FIELDS, min_size=1, max_size=4)):
            parts += [line, draw(LINE_ENDS)]
        parts.append(draw(LINE_ENDS))
    return b"".join(parts) + draw(st.sampled_from([b"", b"data: half", b"data: {}\n"]))


def cut(data: bytes, at: list[int]) -> list[bytes]:
    marks = [0, *sorted(min(mark, len(data)) for mark in at), len(data)]
    return [data[start:end] for start, end in pairwise(marks)]


def fed(pieces: list[bytes]) -> tuple[list[bytes], bytes]:
    splitter = EventSplitter()
    events = [one for piece in pieces for one in splitter.feed(piece)]
    return events, splitter.rest


def data_of(event: bytes) -> bytes:
    """Return an event's data by the rules of the WHATWG format, line by line."""
    lines = re.split(rb"\r\n|\n|\r", event)
    values = [line.partition(b":")[2] for line in lines if re.match(rb"data(:|$)", line)]
    return b"\n".join(value.removeprefix(b" ") for value in values)


@given(streams(), st.lists(st.integers(0, 200), max_size=20))
def test_any_split_of_the_bytes_gives_the_same_events(stream: bytes, at: list[int]) -> None:
    whole, rest = fed([stream])

    assert fed(cut(stream, at)) == (whole, rest)


@given(st.binary(max_size=200) | streams(), st.lists(st.integers(0, 200), max_size=20))
def test_what_comes_out_is_what_went_in(stream: bytes, at: list[int]) -> None:
    events, rest = fed(cut(stream, at))

    assert b"".join(events) + rest == stream


@given(streams())
def test_each_event_ends_in_its_only_blank_line(stream: bytes) -> None:
    events, _ = fed([stream])

    for one in events:
        lines = re.split(rb"\r\n|\n|\r", one)
        assert lines[-2:] == [b"", b""]
        assert all(lines[1:-2])  # a first empty line is the LF of a CR LF that closed the last


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_an_event_is_told_by_any_line_end(end: bytes) -> None:
    splitter = EventSplitter()

    events = splitter.feed(b"data: 1" + end + end + b": c" + end + end + b"data: 2" + end)

    assert events == [b"data: 1" + end + end, b": c" + end + end]
    assert splitter.rest == b"data: 2" + end


def test_a_carriage_return_at_the_end_waits_for_its_line_feed() -> None:
    splitter = EventSplitter()

    assert splitter.feed(b"data: 1\r\n\r") == []
    assert splitter.feed(b"\ndata: 2\r\n\r\n") == [b"data: 1\r\n\r\n", b"data: 2\r\n\r\n"]


def test_an_endless_event_passes_in_pieces() -> None:
    splitter = EventSplitter()
    piece = b"x" * (MAX_EVENT_BYTES // 2)

    assert splitter.feed(piece) == []
    assert splitter.feed(piece) == []
    assert splitter.feed(b"y") == [piece + piece + b"y"]
    assert splitter.rest == b""


@given(streams())
def test_the_payload_is_the_data_that_the_standard_reads(stream: bytes) -> None:
    for one in fed([stream])[0]:
        assert payload(one) == data_of(one)


@pytest.mark.parametrize(
    ("raw", "data"),
    [
        (b"data: {}\n\n", b"{}"),
        (b"data:{}\n\n", b"{}"),
        (b"data:  two\n\n", b" two"),
        (b"data: a\ndata: b\n\n", b"a\nb"),
        (b"data: a\rdata: b\n\n", b"a\nb"),
        (b"event: error\ndata: {}\n\n", b"{}"),
        (b"data: {}\r\n\r\n", b"{}"),
        (b": keep-alive\n\n", b""),
        (b"data: \xff\xfe\n\n", b"\xff\xfe"),
    ],
)
def test_a_payload_is_read_as(raw: bytes, data: bytes) -> None:
    assert payload(raw) == data


def test_an_event_made_is_an_event_read() -> None:
    assert event(b"{}") == b"data: {}\n\n"
    assert event(b"{}", name="error") == b"event: error\ndata: {}\n\n"
    assert payload(event(b"{}", name="error")) == b"{}"
