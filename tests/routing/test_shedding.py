from itertools import product
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.shedding import ArrivalRate, Band, Switch

BAND = Band(high=32, low=24, dwell_s=5)
STEPS = st.lists(st.tuples(st.floats(0, 4), st.floats(0, 60)), max_size=60)


def test_a_low_mark_that_is_not_below_the_high_one_is_refused() -> None:
    with pytest.raises(ValueError, match="low mark 32 must be below high mark 32"):
        Band(high=32, low=32, dwell_s=5)


@pytest.mark.parametrize(
    ("on", "value", "then"),
    [
        (False, 32, False),
        (False, 32.1, True),
        (True, 32.1, True),
        (True, 28, True),
        (True, 24, True),
        (True, 23.9, False),
        (False, 28, False),
    ],
)
def test_a_switch_turns_on_above_the_high_mark_and_off_below_the_low_one(
    on: bool, value: float, then: bool
) -> None:
    assert Switch(on=on).step(value, now=0, band=BAND).on is then


def test_a_switch_holds_its_state_until_the_dwell_has_passed() -> None:
    switch = Switch().step(40, now=100, band=BAND)

    assert switch.step(0, now=104.9, band=BAND).on
    assert not switch.step(0, now=105, band=BAND).on


@given(STEPS)
def test_a_switch_never_changes_twice_within_its_dwell(steps: list[tuple[float, float]]) -> None:
    switch, now, changed_at = Switch(), 0.0, -inf

    for wait, value in steps:
        now += wait
        after = switch.step(value, now=now, band=BAND)
        if after.on is not switch.on:
            assert now - changed_at >= BAND.dwell_s
            changed_at = now
        switch = after


@given(STEPS)
def test_a_value_between_the_marks_changes_nothing(steps: list[tuple[float, float]]) -> None:
    switch, now = Switch(), 0.0

    for wait, value in steps:
        now += wait
        switch = switch.step(value, now=now, band=BAND)
        assert switch.step(28, now=now + 1000, band=BAND) is switch


def test_a_steady_stream_reads_as_its_rate() -> None:
    rate = ArrivalRate()

    for arrival in range(2000):
        rate.arrive(arrival / 20)

    assert rate.at(100) == pytest.approx(20, rel=0.03)


def test_a_rate_fades_when_nothing_arrives() -> None:
    rate = ArrivalRate(tau_s=10)
    rate.arrive(0)

    assert rate.at(0) == pytest.approx(0.1)
    assert rate.at(10) == pytest.approx(0.1 / 2.718, rel=0.01)
    assert rate.at(1000) < 1e-9


@given(st.lists(st.floats(0, 100), max_size=50), st.floats(0, 100))
def test_a_rate_is_never_negative_nor_above_what_arrived_at_once(
    waits: list[float], after: float
) -> None:
    rate, now = ArrivalRate(tau_s=10), 0.0
    for wait in waits:
        now += wait
        rate.arrive(now)

    assert 0 <= rate.at(now + after) <= len(waits) / 10 + 1e-9


def test_in_every_short_order_of_loads_a_switch_follows_them_and_keeps_its_dwell() -> None:
    band = Band(high=10.0, low=5.0, dwell_s=2.0)
    for loads in product(((4.0, 1.0), (7.0, 1.0), (11.0, 1.0), (4.0, 3.0), (11.0, 3.0)), repeat=6):
        switch, now, changed_at = Switch(), 0.0, float("-inf")
        for value, after_s in loads:
            now += after_s
            before, switch = switch, switch.step(value, now=now, band=band)
            may = now - changed_at >= 2.0
            wants = value > 10.0 if not before.on else value < 5.0
            assert (switch.on is not before.on) is (may and wants), loads
            if switch.on is not before.on:
                changed_at = now
            assert switch.since == changed_at
