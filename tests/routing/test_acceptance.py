import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.acceptance import HALF_LIFE_S, AcceptanceBook, AcceptanceSums
from tests.routing.worlds import traffic_class

CODE = traffic_class("code", 0)


def sums(*requests: tuple[int, int, int]) -> AcceptanceSums:
    found = AcceptanceSums()
    for tokens, accepted, drafted in requests:
        found.add(tokens=tokens, accepted=accepted, drafted=drafted, now=0)
    return found


def test_nothing_seen_accepts_nothing_and_emits_one_token_a_step() -> None:
    empty = AcceptanceSums()

    assert (empty.rate, empty.tau, empty.evidence(0)) == (0, 1, 0)


def test_tau_counts_every_step_and_the_rate_only_drafts() -> None:
    """100 decoded tokens of which 60 were accepted drafts took 40 steps."""
    seen = sums((100, 60, 80))

    assert seen.tau == 2.5
    assert seen.rate == 0.75


def test_a_request_outweighs_those_before_it() -> None:
    rates = [sums(*[(100, 0, 100)] * old, *[(100, 100, 100)] * 50).rate for old in (50, 5000)]

    assert rates[0] > 0.5
    assert rates[1] == pytest.approx(1 - 0.98**50, abs=0.01)


def test_evidence_halves_in_each_half_life_and_the_rate_stays() -> None:
    seen = sums((100, 30, 1000))

    assert seen.evidence(HALF_LIFE_S) == 500
    assert seen.rate == 0.03


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 40)), min_size=1))
def test_the_rate_is_a_fraction_and_tau_at_least_one(steps: list[tuple[int, int]]) -> None:
    """Of `drafted` tokens a part is accepted, and every step emits one more."""
    seen = AcceptanceSums()

    for now, (accepted, rejected) in enumerate(steps):
        drafted = accepted + rejected
        seen.add(tokens=accepted + 1, accepted=accepted, drafted=drafted, now=now)

    assert 0 <= seen.rate <= 1
    assert seen.tau >= 1


def test_pools_and_classes_are_kept_apart() -> None:
    book, prose = AcceptanceBook(), traffic_class("creative", 1)
    book.add("a", CODE, tokens=10, accepted=5, drafted=5, now=0)
    book.add("b", CODE, tokens=10, accepted=1, drafted=5, now=0)

    found = [book.of(name, CODE) for name in ("a", "b")]
    assert [sums.rate for sums in found if sums] == [1, 0.2]
    assert book.of("a", prose) is None


def test_what_was_learnt_of_one_pool_can_be_forgotten() -> None:
    book = AcceptanceBook()
    for name in ("a", "b"):
        book.add(name, CODE, tokens=10, accepted=5, drafted=5, now=0)

    book.forget("a")

    assert book.of("a", CODE) is None
    assert book.of("b", CODE) is not None
