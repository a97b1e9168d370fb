"""What a shape tells apart, and what it does not."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.shapes import shape_of

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 40}


def shape(default: float = 1.0, **more: Any) -> tuple[str, ...]:
    return shape_of({**CHAT, **more}, default_temperature=default)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, ("temperature>0",)),
        ({"temperature": 0}, ()),
        ({"temperature": 1e-6}, ()),
        ({"temperature": "hot"}, ("temperature>0",)),
        ({"temperature": None}, ("temperature>0",)),
        ({"top_k": 1, "temperature": 0.7}, ("temperature>0", "top_k")),
        ({"top_k": 40, "temperature": 0.1}, ("temperature>0", "top_k")),
        ({"top_p": 0.9, "top_k": 3}, ("temperature>0", "top_k", "top_p")),
        ({"top_k": 3, "temperature": 0}, ("top_k",)),
        ({"logprobs": 0, "temperature": 0}, ("logprobs",)),
        ({"seed": 0, "temperature": 0}, ("seed",)),
        ({"tools": [{}], "tool_choice": "required", "temperature": 0}, ("tool_choice", "tools")),
        ({"response_format": {"type": "json_object"}}, ("response_format", "temperature>0")),
        ({"stream": True, "user": "u", "invented": 1, "temperature": 0}, ()),
    ],
)
def test_it_names_what_is_on(more: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert shape(**more) == expected


def test_a_request_without_a_temperature_has_its_models() -> None:
    assert shape(default=0.0, top_k=3) == ("top_k",)


@pytest.mark.parametrize(
    "off",
    [
        {"top_k": 0}, {"top_k": -1}, {"top_p": 1}, {"top_p": 1.0}, {"n": 1}, {"min_p": 0.0},
        {"presence_penalty": 0.0}, {"repetition_penalty": 1.0}, {"logprobs": False},
        {"logprobs": None}, {"stop": []}, {"tools": []}, {"tool_choice": "none"},
        {"response_format": {"type": "text"}}, {"logit_bias": {}}, {"ignore_eos": False},
    ],
)  # fmt: skip
def test_what_is_off_is_as_if_it_were_not_there(off: dict[str, Any]) -> None:
    assert shape(**off) == shape()


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)
names = st.sampled_from(["temperature", "top_k", "top_p", "stop", "tools", "text", "x"])


@given(st.dictionaries(names | st.text(max_size=4), anything))
def test_any_body_has_one_and_the_order_of_its_fields_does_not_matter(
    body: dict[str, Any],
) -> None:
    found = shape_of(body, default_temperature=1.0)

    assert found == shape_of(dict(reversed(body.items())), default_temperature=1.0)
    assert {name.removesuffix(">0") for name in found} <= {*body, "temperature"}
