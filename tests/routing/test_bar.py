"""The cost of a request on a pool, and the tau at which two pools cost the same."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.bar import Cost, cost


def idle(step_s: float) -> Cost:
    return cost(
        length=100, step_s=step_s, added_s=0.0, others=0, wait_s=0.0, prefill_s=0.0, altruism=1.0
    )


def test_on_equal_queues_the_bar_is_the_ratio_of_step_times() -> None:
    spec, plain = idle(0.045), idle(0.030)

    assert spec.bar(plain.at(1.0)) == pytest.approx(1.5)


def test_a_pool_whose_wait_alone_costs_more_has_no_bar_to_pass() -> None:
    assert Cost(2.0, 1.0).bar(2.0) == inf


def test_a_request_pays_for_the_steps_it_lengthens_and_the_prefill_that_stalls() -> None:
    priced = cost(
        length=100, step_s=0.03, added_s=0.001, others=8, wait_s=1.0, prefill_s=0.2, altruism=0.5
    )

    assert priced.fixed_s == pytest.approx(1.0 + 0.2 + 0.5 * 8 * 0.2)
    assert priced.decode_s == pytest.approx(100 * (0.03 + 0.5 * 8 * 0.001))


SECONDS = st.floats(1e-4, 10.0)


@given(SECONDS, SECONDS, SECONDS, st.floats(1.0, 10.0))
def test_above_the_bar_and_only_there_it_costs_less(
    fixed_s: float, decode_s: float, rival_s: float, tau: float
) -> None:
    priced = Cost(fixed_s, decode_s)

    bar = priced.bar(rival_s)

    if tau > bar * (1 + 1e-9):
        assert priced.at(tau) < rival_s
    if tau < bar * (1 - 1e-9):
        assert priced.at(tau) > rival_s


@given(st.floats(0, 100), st.floats(0, 100), st.floats(0, 1), st.floats(1, 6))
def test_more_load_never_costs_less(few: float, more: float, altruism: float, tau: float) -> None:
    low, high = sorted((few, more))

    def at(others: float) -> float:
        step_s = 0.03 + 0.001 * others
        return cost(
            length=100, step_s=step_s, added_s=0.001, others=others, wait_s=0.0, prefill_s=0.1,
            altruism=altruism,
        ).at(tau)  # fmt: skip

    assert at(low) <= at(high)
