"""What of an answer goes out, when, and what is noted of it."""

from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dialects import DIALECTS
from proxy.errors import (
    BackendAborted,
    BackendError,
    BackendTimeout,
    BackendUnreachable,
    EngineDied,
)
from proxy.hidden import Hidden
from proxy.record import AcceptanceSource, Ending
from proxy.relay import HELD_BODY_BYTES, relay_body
from routing.features import Route
from routing.pools import Speculation
from tests.proxy import streams
from tests.proxy.pieces import (
    PATHS,
    Answer,
    Client,
    Relayed,
    a_decision,
    a_pool,
    a_record,
    drive,
)
from tests.proxy.streams import CHAT, DONE, KEEP_ALIVE, a_response, chat, role, text, usage

LOST = BackendUnreachable("the connection to a:1 was lost: reset")
USAGE_HIDDEN = Hidden(usage=True, chunk_usage=False)
COUNTS_HIDDEN = Hidden(usage=False, chunk_usage=True)
ALL_HIDDEN = Hidden(usage=True, chunk_usage=True)
CUTS = st.lists(st.integers(0, 2000), max_size=25)
TEXTS = st.text(max_size=12) | st.sampled_from(
    ['"usage":{"a":1}', '"choices":[]', "data: [DONE]\n\n", "\r\n\r\n", "usage", "\\", '"']
)


def cut(stream: bytes, at: list[int]) -> list[bytes]:
    marks = [0, *sorted(min(mark, len(stream)) for mark in at), len(stream)]
    return [stream[start:end] for start, end in pairwise(marks) if end > start]


@st.composite
def answers(draw: st.DrawFn, *, counted: bool) -> list[tuple[bytes, bytes]]:
    """Return events in pairs: as sent with counts per chunk, and as sent without."""
    pairs = []
    details: dict[str, Any] = draw(
        st.sampled_from([{}, {"prompt_tokens_details": None}, {"x": {"cached_tokens": 4}}])
    )
    for number, content in enumerate(["", *draw(st.lists(TEXTS, min_size=1, max_size=6))]):
        if draw(st.booleans()):
            pairs.append((KEEP_ALIVE, KEEP_ALIVE))
        delta: dict[str, Any] = {"content": content} if number else {"role": "assistant"}
        counts = usage(7, number, **details)
        pairs.append((chat(delta, counted=counts if counted else None), chat(delta)))
    return pairs


# --- byte for byte --------------------------------------------------------------------------


@given(answers(counted=False), CUTS)
def test_a_stream_passes_byte_for_byte(events: list[tuple[bytes, bytes]], at: list[int]) -> None:
    stream = b"".join(sent for sent, _ in events) + streams.final_usage() + DONE

    assert Relayed(*cut(stream, at)).body == stream


@given(answers(counted=False), CUTS)
def test_without_being_asked_for_the_usage_chunk_alone_is_missing(
    events: list[tuple[bytes, bytes]], at: list[int]
) -> None:
    head = b"".join(sent for sent, _ in events)
    stream = head + streams.final_usage() + DONE

    assert Relayed(*cut(stream, at), hidden=USAGE_HIDDEN).body == head + DONE


@given(answers(counted=True), CUTS)
def test_counts_taken_out_of_chunks_leave_what_a_server_without_them_sends(
    events: list[tuple[bytes, bytes]], at: list[int]
) -> None:
    stream = b"".join(sent for sent, _ in events) + streams.final_usage() + DONE
    plain = b"".join(without for _, without in events)

    assert Relayed(*cut(stream, at), hidden=ALL_HIDDEN).body == plain + DONE
    asked = Relayed(*cut(stream, at), hidden=COUNTS_HIDDEN)
    assert asked.body == plain + streams.final_usage() + DONE


@given(CUTS)
@pytest.mark.parametrize(
    ("route", "events"), [(Route.RESPONSES, streams.RESPONSE), (Route.MESSAGES, streams.MESSAGE)]
)
def test_other_apis_pass_byte_for_byte(
    route: Route, events: tuple[bytes, ...], at: list[int]
) -> None:
    stream = b"".join(events)

    relayed = Relayed(*cut(stream, at), route=route)

    assert relayed.body == stream
    assert relayed.record.ending is Ending.FINISHED


def test_usage_written_with_spaces_is_hidden_too() -> None:
    spaced = b'data: {"choices": [], "usage": {"completion_tokens": 5}}\n\n'

    relayed = Relayed(*CHAT, spaced, DONE, hidden=USAGE_HIDDEN)

    assert relayed.body == b"".join(CHAT) + DONE
    assert relayed.record.completion_tokens == 5


def test_each_event_goes_out_in_a_write_of_its_own_as_it_came() -> None:
    relayed = Relayed(*CHAT, DONE)

    writes = relayed.client.pieces
    assert writes == [CHAT[0] + CHAT[1], CHAT[2], CHAT[3], DONE, b""]


def test_half_an_event_waits_for_its_other_half() -> None:
    relayed = Relayed(CHAT[0] + CHAT[1][:20], CHAT[1][20:], CHAT[2] + CHAT[3], DONE)

    writes = relayed.client.pieces
    assert writes == [CHAT[0] + CHAT[1], CHAT[2] + CHAT[3], DONE, b""]


def test_a_comment_goes_out_at_once_and_commits_to_the_answer() -> None:
    relayed = Relayed(KEEP_ALIVE, LOST)

    assert relayed.body.startswith(KEEP_ALIVE)
    assert relayed.record.ending is Ending.BROKEN


def test_an_end_marker_without_its_blank_line_is_an_end() -> None:
    relayed = Relayed(*CHAT, b"data: [DONE]")

    assert relayed.body == b"".join(CHAT) + b"data: [DONE]"
    assert relayed.record.ending is Ending.FINISHED


def test_the_backends_fields_go_out_with_the_gateways_own_in_their_place() -> None:
    client = Client()
    client.downstream.added[b"x-turnout-pool"] = b"mine"
    answer = Answer(headers=((b"x-turnout-pool", b"yours"), (b"x-other", b"1")))

    client.downstream.start(200, answer.headers)
    drive(client.downstream.write(b"x", more=True))

    assert client.headers == {
        b"transfer-encoding": b"chunked",
        b"content-type": b"text/event-stream; charset=utf-8",
        b"x-other": b"1",
        b"x-turnout-pool": b"mine",
        b"x-accel-buffering": b"no",
        b"cache-control": b"no-cache",
    }


# --- failures before anything went out ------------------------------------------------------


@pytest.mark.parametrize(
    ("route", "reads"),
    [
        (Route.CHAT, [role(), text("", "abort"), DONE]),
        (Route.CHAT, [role() + text("", "abort") + DONE]),
        (Route.COMPLETIONS, [streams.completion("", "abort"), DONE]),
        (Route.CHAT, [streams.error() + DONE]),
        (Route.CHAT, [role(), streams.error(), DONE]),
        (
            Route.RESPONSES,
            [
                *streams.RESPONSE[:2],
                streams.response_event("response.completed", response={"status": "completed"}),
            ],
        ),
        (
            Route.MESSAGES,
            [
                streams.MESSAGE[0],
                streams.message_event("message_delta", delta={"stop_reason": None}),
            ],
        ),
        (Route.MESSAGES, [streams.message_event("error", error={"type": "internal_error"})]),
    ],
)
def test_an_engine_that_gives_up_first_can_be_replaced(route: Route, reads: list[bytes]) -> None:
    client = Client(path=PATHS[route])

    died = b"EngineCore encountered an issue" in b"".join(reads)
    with pytest.raises(EngineDied if died else BackendAborted):
        Relayed(*reads, route=route)

    assert not client.downstream.started


@pytest.mark.parametrize("reads", [[], [role()], [b"data: half"], [role(), LOST], [LOST]])
def test_a_stream_lost_before_any_output_can_be_replaced(
    reads: list[bytes | BackendError],
) -> None:
    with pytest.raises(BackendUnreachable):
        Relayed(*reads)


def test_an_error_that_is_the_requests_own_fault_goes_to_the_client() -> None:
    stream = streams.error(400, "too long") + DONE

    relayed = Relayed(stream)

    assert relayed.body == stream
    assert relayed.record.ending is Ending.BROKEN


# --- failures under way ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "failure",
    [LOST, BackendTimeout("backend a:1 stopped amid its answer for 120 s (between_chunks_s)")],
)
def test_a_stream_lost_under_way_ends_in_an_error_event(failure: BackendError) -> None:
    relayed = Relayed(*CHAT[:3], CHAT[3][:15], failure)

    rest = relayed.body.removeprefix(b"".join(CHAT[:3]))
    assert rest.startswith(b"\n\ndata: ")
    error = orjson.loads(rest.strip().removeprefix(b"data: "))["error"]
    assert error["message"] == failure.message
    assert error["type"] == "stream_broken"
    assert relayed.client.ended
    assert relayed.record.ending is Ending.BROKEN
    assert relayed.record.error == failure.kind


def test_a_stream_that_stops_without_its_end_marker_is_broken() -> None:
    relayed = Relayed(*CHAT)

    assert b"ended before its end marker" in relayed.body
    assert relayed.record.ending is Ending.BROKEN


SAYS_MESSAGE_STOP = streams.message_event(
    "content_block_delta",
    delta={"type": "text_delta", "text": "message_stop ends it, or data: [DONE]"},
)
SPEAKS_OF_ENDS = [
    (Route.MESSAGES, streams.MESSAGE, SAYS_MESSAGE_STOP),
    *(
        (Route.RESPONSES, streams.RESPONSE, event)
        for word in ("response.completed", "response.failed", "response.incomplete")
        for event in (
            streams.response_event("response.output_text.delta", delta=word),
            streams.response_event(
                "response.in_progress",
                response=a_response("in_progress", metadata={"type": word}),
            ),
        )
    ),
]


@pytest.mark.parametrize(("route", "events", "last"), SPEAKS_OF_ENDS)
def test_an_event_that_speaks_of_the_end_is_none(
    route: Route, events: tuple[bytes, ...], last: bytes
) -> None:
    broken = Relayed(*events[:4], last, LOST, route=route)
    whole = Relayed(*events[:4], last, *events[4:], route=route)

    assert LOST.message.encode() in broken.body
    assert broken.record.error == LOST.kind
    assert whole.record.ending is Ending.FINISHED


def test_messages_break_off_in_the_shape_of_their_api() -> None:
    relayed = Relayed(*streams.MESSAGE[:3], LOST, route=Route.MESSAGES)

    rest = relayed.body.removeprefix(b"".join(streams.MESSAGE[:3])).lstrip()
    name, data = rest.rstrip().split(b"\n")
    assert name == b"event: error"
    assert orjson.loads(data.removeprefix(b"data: ")) == {
        "type": "error",
        "error": {"type": "api_error", "message": LOST.message},
    }


def test_a_connection_lost_after_the_end_marker_loses_nothing() -> None:
    relayed = Relayed(*CHAT, DONE, LOST)

    assert relayed.body == b"".join(CHAT) + DONE
    assert relayed.record.ending is Ending.FINISHED


@pytest.mark.parametrize(
    ("last", "kind"),
    [
        (text("", "abort"), "backend_aborted"),
        (streams.error(500, "no"), "backend_aborted"),
        (streams.error(), "engine_died"),
    ],
)
def test_an_engine_that_gives_up_under_way_is_counted_and_its_words_pass(
    last: bytes, kind: str
) -> None:
    relayed = Relayed(*CHAT[:2], last, DONE)

    assert relayed.body == CHAT[0] + CHAT[1] + last + DONE
    assert relayed.record.ending is Ending.BROKEN
    assert relayed.record.error == kind


# --- measurements ---------------------------------------------------------------------------


def test_times_are_those_of_the_first_and_last_output() -> None:
    relayed = Relayed(role(), text("a"), KEEP_ALIVE, text("b"), text("c", "stop"), DONE)

    record = relayed.record
    assert record.first_token_at == 11.0  # the role-only chunk is none
    assert record.last_token_at == 14.0
    assert relayed.watch.gaps == [(2.0, 13.0), (1.0, 14.0)]
    assert relayed.watch.has_begun == 1


def test_chunks_that_came_at_once_share_their_gap() -> None:
    relayed = Relayed(role(), text("a"), text("b") + text("c"), DONE)

    assert relayed.watch.gaps == [(0.5, 12.0)]


def test_acceptance_that_the_engine_reports_is_taken() -> None:
    last = streams.final_usage(7, 20, num_accepted_draft_tokens=9, num_draft_tokens=25)

    record = Relayed(*CHAT, last, DONE).record

    assert (record.accepted, record.drafted) == (9, 25)
    assert record.source is AcceptanceSource.ENGINE


def test_counts_per_chunk_tell_the_steps() -> None:
    events = [
        chat({"role": "assistant", "content": ""}, counted=usage(7, 0)),
        text("a", counted=usage(7, 1)),
        text("b c d", counted=usage(7, 4)),
        text("e", counted=usage(7, 5)),
    ]

    record = Relayed(*events, streams.final_usage(7, 5), DONE, hidden=ALL_HIDDEN).record

    assert record.accepted == 2
    assert record.source is AcceptanceSource.CHUNK_USAGE


def test_else_chunks_are_taken_for_steps_on_a_pool_that_speculates() -> None:
    record = Relayed(*CHAT, streams.final_usage(7, 8), DONE).record

    assert record.accepted == 5
    assert record.source is AcceptanceSource.DELTAS


def test_a_plain_pool_accepts_nothing() -> None:
    plain = a_record(decision=a_decision(a_pool("plain", Speculation.NONE)))

    record = Relayed(*CHAT, streams.final_usage(7, 8), DONE, record=plain).record

    assert record.completion_tokens == 8
    assert record.accepted is None


def test_a_stream_without_usage_tells_no_tokens() -> None:
    record = Relayed(*CHAT, DONE).record

    assert record.completion_tokens is None
    assert record.source is None


def test_the_ids_of_stored_responses_are_told() -> None:
    assert "resp_1" in Relayed(*streams.RESPONSE, route=Route.RESPONSES).ids


# --- bodies ---------------------------------------------------------------------------------


def body_of(
    answer: Answer, *, route: Route = Route.CHAT, record: Any = None
) -> tuple[Client, Any, list[str]]:
    client, ids = Client(path=PATHS[route]), []  # type: ignore[var-annotated]
    record = record or a_record()
    given: Any = answer
    drive(
        relay_body(
            given,
            client.downstream,
            dialect=DIALECTS.get(route),
            record=record,
            on_response_id=ids.append,
        )
    )
    return client, record, ids


def test_a_body_is_sent_on_whole_and_read() -> None:
    raw = streams.dumps(
        {
            "id": "resp_9",
            "status": "completed",
            "output": [1],
            "usage": {"input_tokens": 3, "output_tokens": 6},
        }
    )

    client, record, ids = body_of(Answer(raw[:9], raw[9:], streams=False), route=Route.RESPONSES)

    assert client.body == raw
    assert client.ended
    assert (record.prompt_tokens, record.completion_tokens) == (3, 6)
    assert record.ending is Ending.FINISHED
    assert ids == ["resp_9"]


@pytest.mark.parametrize("route", [Route.CHAT, Route.OTHER])
def test_a_body_cut_short_is_not_begun(route: Route) -> None:
    client = Client(path=PATHS[route])

    with pytest.raises(BackendUnreachable):
        body_of(Answer(b'{"choices":', LOST, streams=False), route=route)

    assert not client.downstream.started


@pytest.mark.parametrize("content", ["", "half"])
def test_an_aborted_body_can_be_replaced_whatever_it_has(content: str) -> None:
    choice = {"index": 0, "message": {"content": content}, "finish_reason": "abort"}

    with pytest.raises(BackendAborted):
        body_of(Answer(streams.dumps({"choices": [choice]}), streams=False))


def test_a_large_body_goes_out_before_it_ends() -> None:
    piece = b"x" * (HELD_BODY_BYTES // 2 + 1)
    client = Client()
    answer: Any = Answer(piece, piece, LOST, streams=False)
    record = a_record()

    with pytest.raises(BackendUnreachable):
        drive(
            relay_body(
                answer,
                client.downstream,
                dialect=DIALECTS[Route.CHAT],
                record=record,
                on_response_id=lambda _: None,
            )
        )

    assert client.body == piece + piece
    assert not client.ended


def test_a_large_body_is_sent_on_whole() -> None:
    piece = b"x" * (HELD_BODY_BYTES // 2 + 1)

    client, record, _ = body_of(Answer(piece, piece, b"y", streams=False))

    assert client.body == piece + piece + b"y"
    assert client.ended
    assert record.ending is Ending.FINISHED
