"""Further tries are a share of the traffic."""

from hypothesis import given
from hypothesis import strategies as st

from routing.budget import RetryBudget


def test_what_is_there_at_first_is_spent_and_then_a_share_of_requests() -> None:
    budget = RetryBudget(0.25, most=2.0)

    assert [budget.spend() for _ in range(3)] == [True, True, False]
    for _ in range(4):
        assert not budget.spend()
        budget.earn()
    assert budget.spend()


@given(st.lists(st.booleans(), max_size=300), st.floats(0.0, 1.0))
def test_tries_never_exceed_their_share_and_the_start(arrivals: list[bool], share: float) -> None:
    budget, most = RetryBudget(share, most=5.0), 5.0
    earned, spent = most, 0
    for arrives in arrivals:
        if arrives:
            budget.earn()
            earned += share
        else:
            spent += budget.spend()

    assert spent <= earned + 1e-6


def test_the_share_may_change() -> None:
    budget = RetryBudget(0.0, most=1.0)
    assert budget.spend()

    budget.share = 1.0
    budget.earn()

    assert budget.spend()
