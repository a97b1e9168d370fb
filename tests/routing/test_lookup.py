import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.lookup import OUTPUT_PIECES, PROMPT_PIECES, Lookup, look_up, pieces, replay

TOKENS = st.lists(st.integers(0, 3), max_size=30)


def by_hand(
    prompt: list[int], output: list[int], *, k: int, longest: int, shortest: int
) -> Lookup:
    """Replay by searching the text anew at each step, as vLLM's proposer says it does."""
    text, at = prompt + output, len(prompt) + 1
    steps = accepted = drafted = 0
    while at < len(text):
        draft = proposed(text[:at], k=k, longest=longest, shortest=shortest)
        right = 0
        while right < min(len(draft), len(text) - 1 - at) and draft[right] == text[at + right]:
            right += 1
        steps, accepted, drafted = steps + 1, accepted + right, drafted + len(draft)
        at += right + 1
    return Lookup(steps, accepted, drafted)


def proposed(text: list[int], *, k: int, longest: int, shortest: int) -> list[int]:
    for length in range(min(longest, len(text)), shortest - 1, -1):
        for start in range(len(text) - length):
            if text[start : start + length] == text[-length:]:
                return text[start + length : start + length + k]
    return []


@pytest.mark.parametrize(
    ("prompt", "output", "expected"),
    [
        ("", "", Lookup(0, 0, 0)),
        ("abc", "x", Lookup(0, 0, 0)),
        ("abc", "xyz", Lookup(2, 0, 0)),
        ("abcdefgh", "abcdefgh", Lookup(2, 5, 5)),
        ("abcd|abXY", "ab", Lookup(1, 0, 0)),
        ("abcd|", "abZ", Lookup(2, 0, 5)),
    ],
    ids=[
        "nothing was written",
        "one token comes from prefill",
        "nothing recurs",
        "all is copied once two tokens have matched",
        "the text ends before there is anything to look for",
        "the draft is wrong",
    ],
)
def test_what_would_have_been_accepted(prompt: str, output: str, expected: Lookup) -> None:
    assert replay(prompt, output, k=5) == expected


def test_the_first_occurrence_is_the_one_that_is_drafted_from() -> None:
    """As vLLM's V1 runner has it, while the later one would have been right here."""
    assert replay("abX-abY=", "abYZ", k=1) == Lookup(3, 0, 2)


def test_a_longer_match_is_preferred_to_an_earlier_one() -> None:
    assert replay("bcX-dabcY=", "dabcYZ", k=1) == Lookup(3, 2, 2)


@pytest.mark.parametrize(("shortest", "drafted"), [(2, 3), (3, 0)])
def test_no_match_shorter_than_the_shortest_counts(shortest: int, drafted: int) -> None:
    assert replay("abcde", "abZ", k=3, shortest=shortest).drafted == drafted


@given(TOKENS, TOKENS, st.integers(1, 6), st.integers(1, 5), st.integers(0, 3))
def test_it_is_what_a_search_at_every_step_finds(
    prompt: list[int], output: list[int], k: int, shortest: int, more: int
) -> None:
    sizes = {"k": k, "shortest": shortest, "longest": shortest + more}

    assert replay(prompt, output, **sizes) == by_hand(prompt, output, **sizes)


@given(TOKENS, TOKENS, st.integers(1, 6))
def test_steps_and_accepted_tokens_make_up_the_answer(
    prompt: list[int], output: list[int], k: int
) -> None:
    found = replay(prompt, output, k=k)

    assert found.steps + found.accepted == max(0, len(output) - 1)
    assert found.accepted <= found.drafted <= k * found.steps


@given(st.text())
def test_pieces_make_up_the_text(text: str) -> None:
    assert "".join(pieces(text)) == text
    assert all(pieces(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Speculation pays.", ["Specul", "ation", " pays", "."]),
        ('{"max_tokens": 1024}', ['{"', "max", "_", "tokens", '":', " ", "102", "4", "}"]),
        ("    return x", ["    ", "return", " x"]),
        ("次の文章", ["次", "の", "文", "章"]),
    ],
)
def test_pieces_are_about_tokens(text: str, expected: list[str]) -> None:
    assert pieces(text) == expected


def test_an_answer_that_copies_its_prompt_accepts_most_of_it() -> None:
    document = " ".join(f"Section {n} says {n * n} things." for n in range(100))
    other = " ".join(f"Chapter {n} holds {n * 7} words." for n in range(100))

    copied, fresh = look_up(document, document, k=5), look_up(other, "It is a poem.", k=5)
    assert copied.accepted > 3 * copied.steps
    assert fresh.accepted == 0


@pytest.mark.parametrize("unit", ["(a", "word ", "\n", "翻", "1234"])
def test_a_megabyte_is_read_within_bounds(unit: str) -> None:
    text = unit * (1_000_000 // len(unit))

    found = look_up(text, text, k=5)

    assert found.steps + found.accepted < OUTPUT_PIECES


def test_the_end_of_a_long_prompt_is_what_is_looked_through() -> None:
    quoted = "the quick brown fox jumps over a lazy dog"
    filling = " ".join(str(n) for n in range(10 * PROMPT_PIECES))

    assert look_up(filling + quoted, quoted, k=5).accepted > 0
    assert look_up(quoted + filling, quoted, k=5).accepted == 0
