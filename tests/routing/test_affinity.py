from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.affinity import HOLDERS, LEAST_SHARED, PrefixMap, holder
from routing.conversation import MAX_MESSAGES, PREFIXES
from routing.features import Route, extract
from routing.pools import Backend, Pool, Speculation
from tests.routing.prompts import chat

SYSTEM = ("system", "You answer in the words of the handbook. " * 20)
KEYS = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 4000)), max_size=8)
SENT = st.lists(st.tuples(st.sampled_from("abc"), KEYS), max_size=30)
LOADS = st.dictionaries(st.sampled_from("abcde"), st.integers(0, 9), min_size=1)
CACHED = st.dictionaries(st.sampled_from("abcde"), st.integers(LEAST_SHARED, 200))


def keys(*messages: tuple[str, str]) -> tuple[tuple[int, int], ...]:
    """Return the prefix keys of a chat."""
    return extract(Route.CHAT, chat(*messages)).prefix_keys


def prompt_keys(prompt: object) -> tuple[tuple[int, int], ...]:
    return extract(Route.COMPLETIONS, {"prompt": prompt}).prefix_keys


def among(candidates: list[Backend], **more: Any) -> Pool:
    return Pool(name="p", model="m", speculation=Speculation.NONE, backends=candidates, **more)


def backends(in_flight: dict[str, int]) -> list[Backend]:
    return [Backend(name=name, in_flight=count) for name, count in in_flight.items()]


# --- the keys of a prompt -------------------------------------------------------------------


def test_a_prefix_ends_after_every_message() -> None:
    found = keys(SYSTEM, ("user", "x" * 400), ("assistant", "y" * 100))

    assert [tokens for _, tokens in found] == [205, 305, 330]
    assert len({key for key, _ in found}) == 3


def test_equal_beginnings_have_equal_keys() -> None:
    one = keys(SYSTEM, ("user", "How long is the notice?"))
    other = keys(SYSTEM, ("user", "Who signs for leave?"))

    assert one[0] == other[0]
    assert one[1] != other[1]


@pytest.mark.parametrize("turns", [1, 3, 40])
def test_the_next_turn_repeats_the_last_prefix(turns: int) -> None:
    so_far = [SYSTEM, *[("user", "Go on."), ("assistant", "And so it went.")] * turns]
    one, following = [*so_far, ("user", "And?")], [("assistant", "Well."), ("user", "So?")]

    first, second = keys(*one), keys(*one, *following)
    assert first[-1] in second
    assert first[0] == second[0]
    assert len(second) <= PREFIXES


@pytest.mark.parametrize(
    "other",
    [
        [("user", SYSTEM[1]), ("user", "Hi")],
        [(SYSTEM[0], SYSTEM[1] + "!"), ("user", "Hi")],
        [("user", "Hi"), SYSTEM],
        [(SYSTEM[0], SYSTEM[1] + "Hi"), ("user", "")],
    ],
    ids=["another role", "another text", "another order", "cut elsewhere"],
)
def test_unequal_beginnings_have_unequal_keys(other: list[tuple[str, str]]) -> None:
    one = keys(SYSTEM, ("user", "Hi"))

    assert not {key for key, _ in one} & {key for key, _ in keys(*other)}


def test_a_system_prompt_beside_the_messages_is_a_prefix() -> None:
    turn = [{"role": "user", "content": "Hi"}]
    beside = extract(Route.MESSAGES, {"system": SYSTEM[1], "messages": turn}).prefix_keys
    inside = keys(SYSTEM, ("user", "Hi"))

    assert beside == inside
    assert extract(Route.RESPONSES, {"instructions": SYSTEM[1], "input": "Hi"}).prefix_keys == (
        inside
    )


@pytest.mark.parametrize(("chars", "expected"), [(1024, []), (1025, [256]), (9000, [256, 1024])])
def test_a_prompt_without_messages_has_prefixes_of_fixed_lengths(
    chars: int, expected: list[int]
) -> None:
    assert [tokens for _, tokens in prompt_keys("x" * chars)] == expected


@pytest.mark.parametrize("prompt", [[1, 2, 3], ["x" * 5000, "y"], None, {}])
def test_what_is_no_single_text_has_no_prefix(prompt: object) -> None:
    assert prompt_keys(prompt) == ()


def test_messages_beyond_those_that_are_read_add_no_key() -> None:
    many = [("user", "Go on.")] * MAX_MESSAGES

    assert keys(*many) == keys(*many, ("user", "And on."))


@pytest.mark.parametrize(
    "message", [{"role": ["user"], "content": "Hi"}, {"content": {"a": 1}}, {"role": "user"}, "Hi"]
)
def test_a_message_of_the_wrong_shape_is_no_matter(message: Any) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}, message]}

    assert len(extract(Route.CHAT, body).prefix_keys) in (1, 2)


# --- what was sent where --------------------------------------------------------------------


def test_the_longest_prefix_that_was_sent_counts() -> None:
    sent = PrefixMap()
    sent.note("a", [(1, 100), (2, 500)])
    sent.note("b", [(1, 100)])

    assert sent.cached([(1, 100), (2, 500), (3, 900)]) == {"a": 500, "b": 100}


def test_few_tokens_in_common_are_no_affinity() -> None:
    sent = PrefixMap()
    short = [(1, LEAST_SHARED - 1), (2, LEAST_SHARED)]
    sent.note("a", short)

    assert sent.cached(short[:1]) == {}
    assert sent.cached(short) == {"a": LEAST_SHARED}
    assert len(sent) == 1


def test_the_least_recently_sent_prefix_is_dropped() -> None:
    sent = PrefixMap(entries=2)
    for key in (1, 2, 1, 3):
        sent.note("a", [(key, 100)])

    assert [key for key in (1, 2, 3) if sent.cached([(key, 100)])] == [1, 3]


def test_one_backend_does_not_drop_what_another_was_sent() -> None:
    sent = PrefixMap(entries=1)
    sent.note("a", [(1, 100)])
    sent.note("b", [(2, 100)])

    assert sent.cached([(1, 100)]) == {"a": 100}


def test_a_backend_that_starts_anew_has_nothing_cached() -> None:
    sent = PrefixMap()
    for backend in ("a", "b"):
        sent.note(backend, [(1, 100)])

    sent.forget("a")
    sent.forget("never seen")

    assert sent.cached([(1, 100)]) == {"b": 100}


@given(SENT, KEYS)
def test_no_backend_is_said_to_hold_what_it_was_not_sent(
    sent: list[tuple[str, list[tuple[int, int]]]], asked: list[tuple[int, int]]
) -> None:
    known = PrefixMap()
    for backend, prefixes in sent:
        known.note(backend, prefixes)

    for backend, tokens in known.cached(asked).items():
        keys_sent = {key for name, prefixes in sent if name == backend for key, _ in prefixes}
        assert tokens in {length for key, length in asked if key in keys_sent}
        assert tokens >= LEAST_SHARED


@given(SENT, st.integers(1, 5))
def test_the_map_stays_within_its_bound(
    sent: list[tuple[str, list[tuple[int, int]]]], entries: int
) -> None:
    known = PrefixMap(entries=entries)

    for backend, prefixes in sent:
        known.note(backend, prefixes)

        assert len(known) <= entries * len({name for name, _ in sent})


# --- who gets the request -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("in_flight", "cached", "expected"),
    [
        ({"a": 3, "b": 3}, {"b": 200}, "b"),
        ({"a": 0, "b": 2}, {"a": 100, "b": 200}, "b"),
        ({"a": 40, "b": 52}, {"b": 200}, "b"),
        ({"a": 0, "b": 3}, {"a": 100, "b": 200}, "a"),
        ({"a": 0, "b": 3}, {"b": 200}, None),
        ({"a": 0, "b": 0}, {}, None),
        ({"a": 0}, {"elsewhere": 900}, None),
        ({"a": 2, "b": 1}, {"a": 100, "b": 100}, "b"),
    ],
    ids=[
        "it holds the prefix",
        "it holds more, and is not too full",
        "of many in flight it may have a quarter more",
        "it holds more and is too full, another holds less",
        "it is too full and nobody else holds any",
        "nothing is known",
        "a backend that is no candidate",
        "equal holdings go to the less full",
    ],
)
def test_the_holder_of_most_is_preferred_within_a_margin(
    in_flight: dict[str, int], cached: dict[str, int], expected: str | None
) -> None:
    candidates = among(backends(in_flight))
    least = candidates.pick(0.5)
    assert least is not None

    found = holder(candidates, cached, than=least)

    assert (found.name if found else None) == expected


@given(st.data(), LOADS, CACHED)
def test_the_order_of_backends_does_not_matter(
    data: st.DataObject, in_flight: dict[str, int], cached: dict[str, int]
) -> None:
    candidates = backends(in_flight)
    shuffled = data.draw(st.permutations(candidates))

    least = min(candidates, key=lambda backend: backend.in_flight)

    found = holder(among(candidates), cached, than=least)
    assert holder(among(shuffled), cached, than=least) is found
    if found is not None:
        assert found.in_flight <= 1.25 * min(in_flight.values()) + 2
        assert found.name in cached


def test_a_holder_that_is_full_or_down_or_not_wanted_is_passed_over() -> None:
    one, *_ = candidates = backends({"a": 2, "b": 2})
    found = among(candidates, max_in_flight=3)

    def choice(excluded: frozenset[str] = frozenset()) -> Backend | None:
        return holder(found, {"a": 500}, than=candidates[1], excluded=excluded)

    assert choice() is one
    assert choice(frozenset("a")) is None
    one.in_flight = 3
    assert choice() is None
    one.in_flight, one.ceiling = 2, 2.0
    assert choice() is None
    one.ceiling, one.healthy = 3.0, False
    assert choice() is None


def test_of_many_that_share_a_prefix_those_sent_it_last_are_remembered() -> None:
    sent = PrefixMap()
    for number in range(HOLDERS + 2):
        sent.note(f"b{number}", [(1, 100)])
    sent.note("b2", [(1, 100)])

    assert list(sent.cached([(1, 100)])) == [*(f"b{n}" for n in range(3, HOLDERS + 2)), "b2"]
