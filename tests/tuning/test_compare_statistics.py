"""What rows say of an arm, and of one arm against another."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tuning.compared import FAILED, ROW, protocol, rows_of
from turnout.tuning.compare.protocol import ADAPTIVE
from turnout.tuning.compare.statistics import (
    BLOCK,
    Ratio,
    complete,
    percentile,
    ratios,
    summarise,
)


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([7.0], 0.95, 7.0),
        ([3.0, 1.0, 2.0], 0.5, 2.0),
        ([1.0, 2.0], 0.5, 1.5),
        ([0.0, 10.0], 0.95, 9.5),
        (list(map(float, range(101))), 0.99, 99.0),
        ([1.0, 2.0, 4.0], 1.0, 4.0),
    ],
)
def test_a_percentile_lies_between_the_values_around_it(
    values: list[float], share: float, expected: float
) -> None:
    assert percentile(values, share) == pytest.approx(expected)


def test_a_summary_has_latencies_of_what_was_answered_and_counts_what_was_not() -> None:
    rows = [replace(ROW, pool="spec", tpot_s=0.02, e2e_s=2.0), ROW, FAILED, FAILED]

    found = summarise(rows)

    assert (found.requests, found.errors, found.speculating) == (4, 2, 0.25)
    assert found.latency["tpot_s"]["mean"] == pytest.approx(0.03)
    assert found.latency["e2e_s"]["p50"] == pytest.approx(2.7)
    assert found.latency["ttft_s"]["p99"] == pytest.approx(0.2)


def test_where_nothing_was_answered_there_are_no_latencies() -> None:
    assert summarise([FAILED]).latency == {}


def test_a_round_counts_once_every_arm_has_finished_it() -> None:
    small = protocol(arms=("2x-plain", "2x-spec"), loads=("low", "medium"), rounds=2)
    both = [*rows_of("2x-plain", rounds=2), *rows_of("2x-spec", rounds=1)]
    alone = rows_of("2x-plain", load="medium")

    counted = complete([*both, *alone], small)

    assert {(row.round, row.load, row.arm) for row in counted} == {
        (0, "low", "2x-plain"),
        (0, "low", "2x-spec"),
    }


def of(found: list[Ratio], metric: str, statistic: str) -> Ratio:
    (ratio,) = (each for each in found if (each.metric, each.statistic) == (metric, statistic))
    return ratio


@given(
    factor=st.floats(0.1, 10.0),
    latencies=st.lists(st.floats(0.01, 1.0), min_size=40, max_size=40),
)
def test_what_is_slow_for_both_arms_cancels_out(factor: float, latencies: list[float]) -> None:
    other = rows_of("2x-plain", requests=40, tpot_s=latencies.__getitem__)
    mine = rows_of(ADAPTIVE, requests=40, tpot_s=lambda arrival: factor * latencies[arrival])

    found = ratios([*mine, *other], ADAPTIVE, resamples=20)

    for statistic in ("mean", "p95"):
        assert of(found, "tpot_s", statistic).interval == pytest.approx((factor,) * 3)


def test_what_differs_from_block_to_block_shows_in_the_interval() -> None:
    other = rows_of("2x-plain", requests=80)
    mine = rows_of(
        ADAPTIVE, requests=80, tpot_s=lambda arrival: 0.02 if arrival // BLOCK % 2 else 0.04
    )

    interval = of(ratios([*mine, *other], ADAPTIVE), "tpot_s", "mean").interval

    assert interval.value == pytest.approx(0.75)
    assert 0.55 < interval.low < 0.65
    assert 0.85 < interval.high < 0.95


def test_more_rounds_narrow_the_interval() -> None:
    def width(rounds: int) -> float:
        slow_end = rows_of(
            ADAPTIVE, rounds=rounds, requests=80, tpot_s=lambda arrival: 0.02 + arrival / 2000
        )
        rows = [*slow_end, *rows_of("2x-plain", rounds=rounds, requests=80)]
        interval = of(ratios(rows, ADAPTIVE), "tpot_s", "mean").interval
        return interval.high - interval.low

    assert width(9) == pytest.approx(width(1) / 3, rel=0.25)


def test_the_same_rows_give_the_same_interval() -> None:
    rows = [
        *rows_of(ADAPTIVE, tpot_s=lambda arrival: 0.01 + arrival / 100),
        *rows_of("2x-plain"),
    ]

    assert ratios(rows, ADAPTIVE, resamples=50) == ratios(rows, ADAPTIVE, resamples=50)


def test_every_other_arm_is_compared_by_each_metric() -> None:
    rows = [row for name in (ADAPTIVE, "2x-plain", "2x-spec") for row in rows_of(name)]

    found = ratios(rows, ADAPTIVE, resamples=10)

    assert len({(each.other, each.metric, each.statistic) for each in found}) == len(found) == 12
    assert {each.other for each in found} == {"2x-plain", "2x-spec"}


def test_an_arm_of_which_nothing_was_answered_is_not_compared() -> None:
    lost = [replace(FAILED, arm="2x-plain", arrival=arrival) for arrival in range(20)]

    assert ratios([*rows_of(ADAPTIVE), *lost], ADAPTIVE, resamples=10) == []
    assert ratios(lost, ADAPTIVE, resamples=10) == []


def test_a_draw_without_an_answer_is_left_out() -> None:
    answered = rows_of("2x-plain", requests=BLOCK)
    lost = [replace(FAILED, arm="2x-plain", arrival=BLOCK + number) for number in range(BLOCK)]
    rows = [*rows_of(ADAPTIVE, requests=2 * BLOCK), *answered, *lost]

    found = of(ratios(rows, ADAPTIVE, resamples=50), "tpot_s", "mean")

    assert found.interval == pytest.approx((1.0, 1.0, 1.0))
