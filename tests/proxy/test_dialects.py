"""What events and bodies of each API say."""

import json
from typing import Any

import pytest

from proxy.dialects import DIALECTS, Json, Usage, read_json
from proxy.sse import payload
from routing.features import Route
from tests.proxy import streams
from tests.proxy.streams import chat, completion, role, text

CHAT, COMPLETIONS = DIALECTS[Route.CHAT], DIALECTS[Route.COMPLETIONS]
RESPONSES, MESSAGES = DIALECTS[Route.RESPONSES], DIALECTS[Route.MESSAGES]


def read(event: bytes) -> Json:
    return read_json(payload(event))


@pytest.mark.parametrize(
    "event",
    [role(), chat({}), chat({"content": ""}), chat({"role": "assistant", "tool_calls": []})],
)
def test_a_chunk_without_output_or_reason_is_prelude(event: bytes) -> None:
    assert CHAT.is_prelude(read(event))


@pytest.mark.parametrize(
    "event",
    [
        text("a"),
        text("", "stop"),
        chat({"reasoning": "hm"}),
        chat({"tool_calls": [{"index": 0}]}),
        chat({"role": "assistant", "content": "a"}),
        streams.final_usage(),
        streams.DONE,
        streams.KEEP_ALIVE,
        streams.error(),
    ],
)
def test_a_chunk_that_says_something_is_not(event: bytes) -> None:
    assert not CHAT.is_prelude(read(event))


def test_completions_have_no_role_chunk() -> None:
    assert not COMPLETIONS.is_prelude(read(completion("a")))
    assert COMPLETIONS.is_prelude(read(completion("")))


@pytest.mark.parametrize("dialect", [CHAT, COMPLETIONS, RESPONSES, MESSAGES])
@pytest.mark.parametrize("data", [{}, {"choices": None}, {"choices": [1]}, {"usage": 1}])
def test_json_of_another_shape_says_nothing(dialect: Any, data: Json) -> None:
    assert not dialect.aborted(data)
    assert not dialect.cut_short(data)
    assert dialect.usage(data) is None
    assert dialect.response_id(data) is None


@pytest.mark.parametrize(
    ("data", "empty", "cut"),
    [
        ({"finish_reason": "abort", "message": {"role": "assistant", "content": ""}}, True, True),
        ({"finish_reason": "abort", "delta": {}}, True, True),
        ({"finish_reason": "abort", "text": ""}, True, True),
        ({"finish_reason": "abort", "text": "half"}, False, True),
        ({"finish_reason": "abort", "message": {"content": "half"}}, False, True),
        ({"finish_reason": "stop", "message": {"content": ""}}, False, False),
    ],
)
def test_an_abort_with_and_without_output_are_told_apart(
    data: dict[str, Any], empty: bool, cut: bool
) -> None:
    body = {"choices": [data]}

    assert CHAT.aborted(body) is empty
    assert CHAT.cut_short(body) is cut


def test_an_abort_of_one_choice_of_two_is_not_an_empty_answer() -> None:
    body = {"choices": [{"finish_reason": "abort", "text": ""}, {"finish_reason": "stop"}]}

    assert not COMPLETIONS.aborted(body)
    assert COMPLETIONS.cut_short(body)


@pytest.mark.parametrize(
    ("response", "aborted"),
    [
        ({"status": "completed", "output": [], "usage": {"output_tokens": 0}}, True),
        ({"status": "failed", "output": []}, True),
        ({"status": "cancelled", "output": []}, True),
        ({"status": "completed", "output": [1], "usage": {"output_tokens": 0}}, False),
        ({"status": "completed", "output": [], "usage": {"output_tokens": 3}}, False),
        ({"status": "queued", "output": []}, False),
        ({"status": "in_progress", "output": []}, False),
        (
            {"status": "incomplete", "output": [], "incomplete_details": {"reason": "max_tokens"}},
            False,
        ),
    ],
)
def test_a_response_that_ended_with_nothing_was_aborted(
    response: dict[str, Any], aborted: bool
) -> None:
    assert RESPONSES.aborted(response) is aborted
    assert RESPONSES.aborted({"type": "response.completed", "response": response}) is aborted


@pytest.mark.parametrize(
    ("data", "aborted", "cut"),
    [
        ({"type": "message", "content": [], "usage": {"output_tokens": 0}}, True, True),
        ({"type": "message", "content": [{}], "stop_reason": None}, False, True),
        ({"type": "message", "content": [{}], "stop_reason": "end_turn"}, False, False),
        ({"type": "message_delta", "delta": {"stop_reason": None}}, True, False),
        ({"type": "message_delta", "delta": {"stop_reason": "end_turn"}}, False, False),
        ({"type": "content_block_delta"}, False, False),
    ],
)
def test_a_message_that_ends_without_a_reason_was_aborted(
    data: Json, aborted: bool, cut: bool
) -> None:
    assert MESSAGES.aborted(data) is aborted
    assert MESSAGES.cut_short(data) is cut


@pytest.mark.parametrize(
    ("dialect", "event"),
    [
        (CHAT, text("", "abort")),
        (CHAT, streams.error()),
        (COMPLETIONS, completion("x", "abort")),
        (RESPONSES, streams.response_event("response.failed")),
        (RESPONSES, streams.sse({"error": {}}, name="error")),
        (MESSAGES, streams.message_event("error", error={})),
        (MESSAGES, streams.message_event("message_delta", delta={"stop_reason": None})),
    ],
)
def test_an_event_of_failure_is_one(dialect: Any, event: bytes) -> None:
    assert dialect.failed(event)


@pytest.mark.parametrize(
    ("dialect", "events"),
    [
        (CHAT, (*streams.CHAT, text('"finish_reason":"abort" data: {"error"'), streams.DONE)),
        (RESPONSES, streams.RESPONSE),
        (MESSAGES, streams.MESSAGE),
    ],
)
def test_no_event_of_a_good_stream_is(dialect: Any, events: tuple[bytes, ...]) -> None:
    assert not any(dialect.failed(event) for event in events)


@pytest.mark.parametrize(
    ("dialect", "events"),
    [
        (CHAT, (*streams.CHAT, streams.DONE)),
        (CHAT, (text("data: [DONE]"), streams.DONE)),
        (CHAT, (text("a"), b"data:[DONE]\r\n\r\n")),
        (RESPONSES, streams.RESPONSE),
        (MESSAGES, streams.MESSAGE),
    ],
)
def test_only_the_last_event_ends_a_stream(dialect: Any, events: tuple[bytes, ...]) -> None:
    assert [dialect.is_end(event) for event in events] == [False] * (len(events) - 1) + [True]


@pytest.mark.parametrize(
    ("dialect", "events", "deltas"),
    [
        (CHAT, (*streams.CHAT, streams.final_usage(), streams.KEEP_ALIVE, streams.DONE), 4),
        (RESPONSES, streams.RESPONSE, 2),
        (MESSAGES, streams.MESSAGE, 1),
    ],
)
def test_chunks_that_carry_output_are_told(
    dialect: Any, events: tuple[bytes, ...], deltas: int
) -> None:
    assert sum(dialect.has_tokens(event) for event in events) == deltas


def test_acceptance_is_read_beside_usage() -> None:
    event = streams.final_usage(7, 20, num_accepted_draft_tokens=9, num_draft_tokens=25)

    assert CHAT.usage(read(event)) == Usage(
        prompt_tokens=7, completion_tokens=20, accepted=9, drafted=25
    )


def test_counts_that_are_no_integers_are_unknown() -> None:
    data = {"usage": {"prompt_tokens": True, "completion_tokens": "5"}, "metrics": []}

    assert CHAT.usage(data) == Usage()


def test_responses_and_messages_have_names_of_their_own_for_counts() -> None:
    counted = Usage(prompt_tokens=3, completion_tokens=6)

    assert RESPONSES.usage(read(streams.RESPONSE[-1])) == counted
    assert RESPONSES.usage({"usage": {"input_tokens": 3, "output_tokens": 6}}) == counted
    assert MESSAGES.usage({"usage": {"input_tokens": 3, "output_tokens": 6}}) == counted


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"id": "resp_1"}, "resp_1"),
        ({"response": {"id": "resp_1"}}, "resp_1"),
        ({"id": "msg_1"}, None),
        ({"id": 1}, None),
    ],
)
def test_the_id_of_a_response_is_found_in_bodies_and_events(
    data: Json, expected: str | None
) -> None:
    assert RESPONSES.response_id(data) == expected


@pytest.mark.parametrize("raw", [b"", b"[DONE]", b"[]", b"null", b"{", b"\xff", b"1"])
def test_what_is_no_json_object_reads_as_an_empty_one(raw: bytes) -> None:
    assert read_json(raw) == {}


def test_a_json_object_is_read() -> None:
    assert read_json(json.dumps({"a": 1}).encode()) == {"a": 1}
