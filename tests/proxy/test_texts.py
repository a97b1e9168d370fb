"""What prompts and answers of each API say, in the order in which a model reads and writes it."""

from typing import Any

import pytest

from proxy.dialects import Json, read_json
from proxy.sse import payload
from proxy.texts import answer_text, event_text, prompt_text
from tests.proxy import streams
from tests.proxy.streams import chat, completion, message_event, response_event

CALL = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"at": 1}'}}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            {
                "model": "m",
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
                    {"role": "assistant", "content": None, "tool_calls": [CALL]},
                    {"role": "tool", "tool_call_id": "c1", "content": "42"},
                ],
            },
            'Be brief.\nHi\nfind\n{"at": 1}\n42',
        ),
        ({"messages": [], "tools": [{"name": "f"}]}, '[{"name":"f"}]'),
        ({"prompt": "Once"}, "Once"),
        ({"prompt": ["Once"]}, "Once"),
        ({"prompt": [1, 2, 3]}, ""),
        ({"instructions": "Be brief.", "input": "Hi"}, "Be brief.\nHi"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}]},
            "Hi",
        ),
        ({"input": [{"type": "function_call_output", "output": "42"}]}, "42"),
        (
            {
                "system": [{"type": "text", "text": "Be brief."}],
                "messages": [
                    {"role": "user", "content": [{"type": "tool_result", "content": "42"}]}
                ],
            },
            "Be brief.\n42",
        ),
        ({"messages": [{"content": [{"image_url": {"url": "data:..."}}]}]}, ""),
        ({"messages": "Hi", "system": 7, "input": {"no": "text"}}, "Hi"),
        ({}, ""),
    ],
)
def test_the_text_of_a_prompt(body: Json, expected: str) -> None:
    assert prompt_text(body) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"choices": [{"message": {"role": "assistant", "content": "Hello"}}]}, "Hello"),
        ({"choices": [{"message": {"content": "b", "reasoning": "a"}}]}, "ab"),
        ({"choices": [{"message": {"content": None, "tool_calls": [CALL]}}]}, 'find{"at": 1}'),
        ({"choices": [{"index": 0, "text": "Hello"}]}, "Hello"),
        (
            {
                "output": [
                    {"type": "reasoning", "content": [{"text": "a"}]},
                    {"type": "message", "content": [{"type": "output_text", "text": "b"}]},
                    {"type": "function_call", "name": "find", "arguments": "{}"},
                ]
            },
            "abfind{}",
        ),
        ({"type": "message", "content": [{"thinking": "a"}, {"text": "b"}]}, "ab"),
        ({}, ""),
        ({"choices": [1, None, {"message": 3}]}, ""),
    ],
)
def test_the_text_of_a_whole_answer(body: Json, expected: str) -> None:
    assert answer_text(body) == expected


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ((*streams.CHAT, streams.final_usage(), streams.DONE), "Hello world"),
        ((chat({"reasoning": "Hm"}), chat({"content": "."})), "Hm."),
        ((chat({"tool_calls": [CALL]}),), 'find{"at": 1}'),
        ((completion("He"), completion("llo", "stop"), streams.KEEP_ALIVE), "Hello"),
        (streams.RESPONSE, "Hi you"),
        ((response_event("response.output_text.done", text="Hi you"),), ""),
        (streams.MESSAGE, "Hi"),
        ((message_event("content_block_delta", delta={"partial_json": "{}"}),), "{}"),
    ],
)
def test_the_text_that_events_add_up_to(events: tuple[bytes, ...], expected: str) -> None:
    assert "".join(event_text(read_json(payload(raw))) for raw in events) == expected


def test_a_body_without_end_is_read_to_a_depth() -> None:
    nested: Any = "deep"
    for _ in range(900):
        nested = {"content": [nested]}

    assert prompt_text({"messages": [nested, {"content": "shallow"}]}) == "shallow"
    assert prompt_text({"tools": [nested], "messages": [{"content": "shallow"}]}) == "shallow"
