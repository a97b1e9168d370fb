"""What is read out of a body, by route and field."""

from typing import Any

import pytest

from routing.conversation import HEAD_CHARS, MAX_MESSAGES, MAX_PARTS, TAIL_CHARS
from routing.features import Route, extract
from tests.routing.prompts import chat

SCHEMA = {"type": "object"}
WRONG: list[object] = [
    None,
    "hi",
    {"role": "user"},
    [None, 3, "x"],
    [{}],
    [{"role": "user", "content": {"text": "x"}}],
    [{"role": "user", "content": [{"content": {"text": "x"}}]}],
]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


def test_a_plain_chat_body_gives_its_facts() -> None:
    body = chat(
        ("system", "Be brief."), ("user", "One."), ("assistant", "Two."), ("user", "Three."),
        temperature=0.3, max_tokens=64, stream=True, n=2, seed=7,
    )  # fmt: skip

    features = extract(Route.CHAT, body, declared_task="qa")

    assert features.model == "m"
    assert (features.temperature, features.temperature_given) == (0.3, True)
    assert (features.max_tokens, features.choices) == (64, 2)
    assert (features.stream, features.seeded) == (True, True)
    assert features.declared_task == "qa"
    assert features.user_text == "Three."
    assert features.system_text == "Be brief."
    assert features.previous_text == "Two."
    assert (features.turns, features.prompt_chars) == (2, len("Be brief.One.Two.Three."))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (0.6, False)),
        ({"temperature": None}, (0.6, False)),
        ({"temperature": 0}, (0.0, True)),
        ({"temperature": 9e-6}, (0.0, True)),
        ({"temperature": 1e-5}, (1e-5, True)),
        ({"temperature": 2}, (2.0, True)),
        ({"temperature": 0.9, "top_k": 1}, (0.0, True)),
        ({"top_k": 1}, (0.0, False)),
        ({"top_k": -1}, (0.6, False)),
        ({"temperature": True}, (0.6, False)),
        ({"temperature": "0.1"}, (0.6, False)),
        ({"temperature": -1}, (0.6, False)),
        ({"temperature": float("nan")}, (0.6, False)),
        ({"temperature": 10**400}, (0.6, False)),
    ],
)
def test_a_missing_temperature_is_the_models_default_and_greedy_is_zero(
    fields: dict[str, Any], expected: tuple[float, bool]
) -> None:
    features = extract(Route.CHAT, chat(**fields), default_temperature=0.6)

    assert (features.temperature, features.temperature_given) == expected


def test_the_default_temperature_is_vllms() -> None:
    assert extract(Route.CHAT, {}).temperature == 1.0


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"min_p": 0.1}, ("min_p",)),
        ({"min_p": 0.1, "temperature": 0}, ()),
        ({"min_p": 0.1, "top_k": 1}, ("min_p",)),
        ({"min_p": 0}, ()),
        ({"min_p": 1e-6}, ()),
        ({"min_p": None}, ()),
        ({"logit_bias": {"42": -100}}, ("logit_bias",)),
        ({"logit_bias": {"42": 1}, "temperature": 0}, ("logit_bias",)),
        ({"logit_bias": {}}, ()),
        ({"logit_bias": None, "min_p": "0.1"}, ()),
        ({"logit_bias": {"1": 1}, "min_p": 0.2}, ("min_p", "logit_bias")),
    ],
)
def test_parameters_that_a_speculating_vllm_refuses_are_named(
    fields: dict[str, Any], expected: tuple[str, ...]
) -> None:
    assert extract(Route.CHAT, chat(**fields)).unsupported == expected


def test_min_p_is_harmless_where_the_models_own_default_is_greedy() -> None:
    assert extract(Route.CHAT, chat(min_p=0.1), default_temperature=0.0).unsupported == ()


@pytest.mark.parametrize("route", [Route.MESSAGES, Route.OTHER])
def test_routes_without_min_p_and_logit_bias_ignore_them(route: Route) -> None:
    body = chat(min_p=0.1, logit_bias={"1": 1})

    assert extract(route, body).unsupported == ()


@pytest.mark.parametrize(
    ("route", "body", "expected"),
    [
        (Route.CHAT, {"max_tokens": 5}, 5),
        (Route.CHAT, {"max_tokens": 5, "max_completion_tokens": 9}, 9),
        (Route.CHAT, {}, None),
        (Route.CHAT, {"max_tokens": -1}, None),
        (Route.CHAT, {"max_tokens": True}, None),
        (Route.COMPLETIONS, {}, 16),
        (Route.COMPLETIONS, {"max_tokens": 200}, 200),
        (Route.RESPONSES, {"max_output_tokens": 7, "max_tokens": 1}, 7),
        (Route.MESSAGES, {"max_tokens": 1024}, 1024),
    ],
)
def test_the_output_limit_has_a_name_by_route(
    route: Route, body: dict[str, Any], expected: int | None
) -> None:
    assert extract(route, body).max_tokens == expected


@pytest.mark.parametrize(
    ("route", "body", "expected"),
    [
        (Route.CHAT, {"response_format": {"type": "json_object"}}, "json_object"),
        (Route.CHAT, {"response_format": {"type": "json_schema"}}, "json_schema"),
        (Route.CHAT, {"response_format": {"type": "structural_tag"}}, "structural_tag"),
        (Route.CHAT, {"response_format": {"type": "text"}}, None),
        (Route.CHAT, {"response_format": "json_object"}, None),
        (Route.CHAT, {"structured_outputs": {"json": SCHEMA}}, "json_schema"),
        (Route.CHAT, {"structured_outputs": {"regex": "a+"}}, "regex"),
        (Route.CHAT, {"structured_outputs": {"choice": ["a", "b"]}}, "choice"),
        (Route.COMPLETIONS, {"structured_outputs": {"grammar": "root ::= x"}}, "grammar"),
        (Route.CHAT, {"structured_outputs": {"json_object": True}}, "json_object"),
        (Route.CHAT, {"structured_outputs": {"json_object": False}}, None),
        (Route.CHAT, {"structured_outputs": {"structural_tag": "{}"}}, "structural_tag"),
        (Route.CHAT, {"structured_outputs": {"json": None, "regex": None}}, None),
        (Route.CHAT, {"structured_outputs": {"whitespace_pattern": " "}}, None),
        (Route.CHAT, {"guided_json": SCHEMA, "guided_regex": "a"}, None),
        (Route.RESPONSES, {"text": {"format": {"type": "json_schema"}}}, "json_schema"),
        (Route.RESPONSES, {"text": {"format": {"type": "text"}}}, None),
        (Route.RESPONSES, {"text": "json_schema"}, None),
        (Route.RESPONSES, {"response_format": {"type": "json_object"}}, None),
        (Route.MESSAGES, {"output_config": {"format": {"type": "json_schema"}}}, "json_schema"),
        (Route.MESSAGES, {"structured_outputs": {"regex": "a"}}, None),
        (Route.OTHER, {"response_format": {"type": "json_object"}}, None),
    ],
)
def test_a_declared_output_constraint_is_named(
    route: Route, body: dict[str, Any], expected: str | None
) -> None:
    assert extract(route, body).structured_output == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (0, False)),
        ({"tools": []}, (0, False)),
        ({"tools": [TOOL, TOOL]}, (2, False)),
        ({"tools": [TOOL], "tool_choice": "auto"}, (1, False)),
        ({"tools": [TOOL], "tool_choice": "none"}, (0, False)),
        ({"tools": [TOOL], "tool_choice": "required"}, (1, True)),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {}}}, (1, True)),
        ({"tools": [TOOL], "tool_choice": {"type": "any"}}, (1, True)),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "f"}}, (1, True)),
        ({"tools": [TOOL], "tool_choice": {"type": "auto"}}, (1, False)),
        ({"tools": [TOOL], "tool_choice": {"type": ["any"]}}, (1, False)),
        ({"tool_choice": "required"}, (0, False)),
    ],
)
def test_tools_count_where_the_model_may_call_them(
    fields: dict[str, Any], expected: tuple[int, bool]
) -> None:
    features = extract(Route.CHAT, chat(("user", "hi"), **fields))

    assert (features.tools, features.tool_required) == expected


@pytest.mark.parametrize(
    ("prompt", "text", "chars", "choices"),
    [
        ("Once", "Once", 4, 1),
        (["Once", "Twice"], "Once", 9, 2),
        ([1, 2, 3], "", 0, 1),
        ([[1, 2], [3]], "", 0, 2),
        ([], "", 0, 1),
        (None, "", 0, 1),
        ({"prompt": "x"}, "", 0, 1),
    ],
)
def test_completions_take_text_lists_of_it_and_token_ids(
    prompt: object, text: str, chars: int, choices: int
) -> None:
    features = extract(Route.COMPLETIONS, {"prompt": prompt})

    assert (features.user_text, features.prompt_chars) == (text, chars)
    assert features.choices == choices


def test_each_prompt_of_a_list_is_answered_n_times() -> None:
    assert extract(Route.COMPLETIONS, {"prompt": ["a", "b"], "n": 3}).choices == 6


@pytest.mark.parametrize(
    ("body", "choices"),
    [
        ({"prompt_embeds": "AA=="}, 1),
        ({"prompt_embeds": ["AA==", "AQ=="]}, 2),
        ({"prompt_embeds": ["AA=="], "prompt": "a", "n": 2}, 4),
        ({"prompt_embeds": [], "prompt": "a"}, 1),
        ({"prompt": "a", "n": 10**400}, 1),
    ],
)
def test_embeddings_are_prompts_too(body: dict[str, Any], choices: int) -> None:
    assert extract(Route.COMPLETIONS, body).choices == choices


def test_content_parts_are_read_as_text_and_pictures_are_not() -> None:
    parts = [
        {"type": "text", "text": "What is"},
        {"type": "image_url", "image_url": {"url": "data:..."}},
        "in the picture?",
        {"type": "text", "text": 5},
        7,
    ]

    features = extract(Route.CHAT, {"messages": [{"role": "user", "content": parts}]})

    assert features.user_text == "What is\nin the picture?"
    assert features.prompt_chars == len("What isin the picture?")


def test_responses_take_a_string_with_instructions() -> None:
    body = {"input": "Hello there", "instructions": "Be kind.", "temperature": 0.2}

    features = extract(Route.RESPONSES, body)

    assert (features.user_text, features.system_text) == ("Hello there", "Be kind.")
    assert features.turns == 1


def test_responses_take_items_with_calls_and_their_outputs() -> None:
    items = [
        {"role": "developer", "content": "Use the tool."},
        {"role": "user", "content": [{"type": "input_text", "text": "Weather in Bern?"}]},
        {"type": "function_call", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "sunny"},
    ]

    features = extract(Route.RESPONSES, {"input": items})

    assert features.user_text == "Weather in Bern?"
    assert features.system_text == "Use the tool."
    assert (features.turns, features.tool_results, features.answers_tool) == (2, 1, True)
    assert features.prompt_chars == len("Use the tool.Weather in Bern?sunny")


def test_messages_take_system_blocks_and_tool_results() -> None:
    result = {"type": "tool_result", "content": [{"type": "text", "text": "12 degrees"}]}
    body = {
        "system": [{"type": "text", "text": "You are terse."}],
        "messages": [
            {"role": "user", "content": "How warm is it?"},
            {"role": "assistant", "content": [{"type": "tool_use", "name": "f", "input": {}}]},
            {"role": "user", "content": [result, {"type": "tool_result", "content": "ok"}]},
        ],
        "seed": 3,
    }

    features = extract(Route.MESSAGES, body)

    assert features.system_text == "You are terse."
    assert features.user_text == "How warm is it?"
    assert (features.turns, features.tool_results, features.answers_tool) == (2, 2, True)
    assert features.prompt_chars == len("You are terse.How warm is it?12 degreesok")
    assert not features.seeded


def test_other_routes_carry_the_model_alone() -> None:
    features = extract(Route.OTHER, {"model": "e", "input": "some text"})

    assert (features.model, features.user_text, features.prompt_chars) == ("e", "", 0)


def test_long_text_is_cut_to_its_start_and_end() -> None:
    text = "a" * 500_000 + "z" * 500_000

    features = extract(Route.CHAT, chat(("system", text), ("user", text)))

    assert features.user_text == "a" * HEAD_CHARS + "\n" + "z" * TAIL_CHARS
    assert features.system_text == features.user_text
    assert features.prompt_chars == 2_000_000


def test_thousands_of_messages_are_estimated_from_a_sample() -> None:
    talk = [("user", "x" * 10), ("assistant", "y" * 30)] * (10 * MAX_MESSAGES)

    features = extract(Route.CHAT, chat(*talk, ("user", "last")))

    assert features.user_text == "last"
    assert features.prompt_chars == pytest.approx(20 * len(talk), rel=0.1)
    assert features.turns == pytest.approx(len(talk) / 2, rel=0.1)


def test_thousands_of_parts_are_estimated_and_their_start_and_end_kept() -> None:
    parts = [{"type": "text", "text": f"{n:04}"} for n in range(40 * MAX_PARTS)]

    features = extract(Route.CHAT, {"messages": [{"role": "user", "content": parts}]})

    assert features.prompt_chars == 4 * len(parts)
    assert features.user_text.startswith("0000\n0001")
    assert features.user_text.endswith(f"{len(parts) - 1:04}")


@pytest.mark.parametrize("messages", WRONG)
def test_messages_of_the_wrong_shape_are_left_out(messages: object) -> None:
    features = extract(Route.CHAT, {"messages": messages, "model": 5})

    assert (features.user_text, features.turns, features.model) == ("", 1, "")
