"""What holds of the features of every body, however wrong its shape."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.conversation import HEAD_CHARS, TAIL_CHARS
from routing.features import Route, extract
from routing.tasks import classify
from tests.routing.prompts import chat

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40)
FLAT = st.lists(SCALARS, max_size=2) | st.dictionaries(st.text(max_size=4), SCALARS, max_size=2)
JSON = SCALARS | FLAT | st.lists(FLAT, max_size=2)
ROLES = st.sampled_from(["system", "developer", "user", "assistant", "tool"]) | JSON
PARTS = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["text", "tool_result", "image_url"]) | JSON,
        "text": st.text() | JSON,
        "content": st.lists(JSON, max_size=3) | JSON,
    },
)
MESSAGES = st.fixed_dictionaries(
    {},
    optional={
        "role": ROLES,
        "type": st.sampled_from(["message", "function_call", "function_call_output"]) | JSON,
        "content": st.lists(PARTS | JSON, max_size=4) | JSON,
        "output": JSON,
    },
)
BODIES = st.fixed_dictionaries(
    {},
    optional={
        "messages": st.lists(MESSAGES | JSON, max_size=5) | JSON,
        "input": st.lists(MESSAGES | JSON, max_size=5) | JSON,
        "prompt": st.lists(st.text(max_size=20), max_size=3) | JSON,
        "system": st.lists(PARTS, max_size=2) | JSON,
        "tools": st.lists(JSON, max_size=2) | JSON,
        "tool_choice": st.fixed_dictionaries({"type": JSON}) | JSON,
        "structured_outputs": st.dictionaries(st.sampled_from(["json", "regex"]), JSON) | JSON,
        "text": st.fixed_dictionaries({"format": JSON}) | JSON,
        **dict.fromkeys(
            ("model", "temperature", "top_k", "min_p", "logit_bias", "n", "seed", "stream",
             "max_tokens", "max_completion_tokens", "max_output_tokens", "instructions",
             "response_format", "output_config"),
            JSON,
        ),
    },
)  # fmt: skip
LIMIT = HEAD_CHARS + TAIL_CHARS + 1


@given(route=st.sampled_from(Route), body=BODIES, declared=st.none() | st.text(max_size=12))
def test_no_json_body_makes_the_reading_fail(
    route: Route, body: dict[str, Any], declared: str | None
) -> None:
    features = extract(route, body, declared_task=declared)
    guess = classify(features)

    assert 0.0 <= features.temperature < float("inf")
    assert features.choices >= 1
    assert features.turns >= 1
    assert features.prompt_chars >= 0
    assert (
        max(map(len, (features.user_text, features.system_text, features.previous_text))) <= LIMIT
    )
    assert guess.evidence


@given(text=st.text())
def test_a_short_text_is_kept_as_it_is(text: str) -> None:
    features = extract(Route.CHAT, chat(("user", text)))

    assert features.user_text == text
    assert features.prompt_chars == len(text)


@pytest.mark.parametrize(
    "unit", ["(", "\n", " ", ". ", "? ", "```", "a\n", "翻译", "x = ", "'", "1+"]
)
def test_a_megabyte_of_anything_is_read_within_bounds(unit: str) -> None:
    text = unit * (1_000_000 // len(unit))

    features = extract(Route.CHAT, chat(("system", text), ("user", text), ("assistant", text)))

    assert len(features.user_text) <= LIMIT
    assert classify(features).evidence
