"""Odds of drafts: what they yield, and how truth is bent without leaving what is possible."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.simulation.acceptance import (
    MOST_ACCEPTED,
    TASKS,
    Drafter,
    Odds,
    alpha_of,
    spread_odds,
    typical_odds,
)

chances = st.floats(0.01, 0.99)
lengths = st.integers(1, 8)


@pytest.mark.parametrize(
    ("rate", "k", "alpha"),
    [(0.1, 3, 0.23), (0.5, 3, 0.69), (0.8, 3, 0.89), (0.3, 5, 0.62), (0.8, 5, 0.93)],
)
def test_acceptance_as_vllm_counts_it_is_converted_to_the_conditional_one(
    rate: float, k: int, alpha: float
) -> None:
    """The table is the published conversion, to two digits."""
    assert alpha_of(rate * k, k) == pytest.approx(alpha, abs=0.006)


@given(chances, lengths)
def test_the_conversion_inverts_what_odds_yield(alpha: float, k: int) -> None:
    assert alpha_of(Odds(1.0, alpha, alpha).accepted(k), k) == pytest.approx(alpha, abs=1e-6)


@given(chances, lengths, st.floats(0.1, 3.0))
def test_scaling_changes_accepted_tokens_by_the_factor_until_nothing_more_is_possible(
    alpha: float, k: int, factor: float
) -> None:
    before = Odds(1.0, alpha, alpha)

    after = before.scaled(factor, k)

    wanted = min(factor * before.accepted(k), MOST_ACCEPTED * k)
    assert after.accepted(k) == pytest.approx(wanted, rel=1e-6)


@given(st.floats(0.05, 1.0), chances, chances, lengths, st.floats(0.1, 5.0))
def test_scaling_a_copying_method_changes_how_often_a_copy_begins(
    share: float, first: float, following: float, k: int, factor: float
) -> None:
    after = Odds(share, first, following).scaled(factor, k)

    assert after.share == share
    assert 0.0 <= after.first <= 1.0


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("speculation", ["ngram", "draft_model", "eagle3"])
def test_requests_spread_about_their_class(task: str, speculation: str) -> None:
    entry = TASKS[task]
    mean = typical_odds(entry, speculation, 0.0)  # type: ignore[arg-type]  # one of the literals

    drawn = [spread_odds(mean, entry, Random(seed)) for seed in range(2000)]

    assert sum(odds.first for odds in drawn) / len(drawn) == pytest.approx(mean.first, rel=0.05)
    assert len({odds.first for odds in drawn}) > 1900
    assert {odds.share for odds in drawn} == {mean.share}


def test_a_drafter_s_tau_is_that_of_its_odds() -> None:
    odds = Odds(0.4, 0.5, 0.8)

    assert Drafter(5, *odds, Random(0)).tau == 1.0 + odds.accepted(5)
