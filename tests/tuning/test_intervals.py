"""Intervals against what is known of the samples, and against SciPy's."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.stats.mstats import mquantiles

from turnout.tuning.intervals import (
    FEWEST,
    mean,
    of_statistic,
    quantiles,
    ratio_of_sums,
    speed_ratio,
)

MEAN = 5.0
Draw = Callable[[np.random.Generator, int], list[float]]


def normal(random: np.random.Generator, count: int) -> list[float]:
    return list(random.normal(MEAN, 1.0, count))


def lognormal(random: np.random.Generator, count: int) -> list[float]:
    """As skewed as latencies are: the P95 is over three times the median."""
    return list(MEAN * random.lognormal(-(0.7**2) / 2, 0.7, count))


def sample(draw: Draw, seed: int, count: int) -> list[float]:
    return draw(np.random.default_rng(seed), count)


def test_the_interval_of_a_normal_samples_mean_is_as_wide_as_students() -> None:
    ratios = []
    for seed in range(50):
        values = sample(normal, seed, 20)
        found = mean(values)
        low, high = stats.t.interval(0.95, 19, np.mean(values), stats.sem(values))
        assert found is not None
        assert found.value == pytest.approx(np.mean(values))
        ratios.append((found.high - found.low) / (high - low))

    assert np.mean(ratios) == pytest.approx(1.0, abs=0.1)


def test_the_interval_of_a_skewed_samples_mean_reaches_further_up_than_down() -> None:
    found = [mean(sample(lognormal, seed, 20)) for seed in range(50)]

    up = [each.high - each.value for each in found if each is not None]
    down = [each.value - each.low for each in found if each is not None]
    assert np.mean(up) > 1.2 * np.mean(down)


def test_the_interval_of_a_large_samples_mean_is_scipys() -> None:
    values = sample(lognormal, 7, 400)

    found = mean(values)

    theirs = stats.bootstrap((values,), np.mean, rng=1).confidence_interval
    width = theirs.high - theirs.low
    assert found is not None
    assert found.low == pytest.approx(theirs.low, abs=0.15 * width)
    assert found.high == pytest.approx(theirs.high, abs=0.15 * width)


@pytest.mark.parametrize("values", [[0.1, 0.2, 0.3], [1.1, 1.1, 1.1, 5.0], [0.0, 0.0, 0.0, 1e-6]])
def test_the_interval_of_few_values_is_as_wide_as_their_spread_lets_it_be(
    values: list[float],
) -> None:
    """A draw of one value only has a spread of 0 but for rounding: it once made this 1e17 wide."""
    found = mean(values)

    assert found is not None
    assert found.low < found.value < found.high
    assert found.high - found.low < 10.0 * (max(values) - min(values))


@given(value=st.floats(-1e6, 1e6), count=st.integers(FEWEST, 40))
def test_values_that_are_all_the_same_have_a_point_for_an_interval(
    value: float, count: int
) -> None:
    found = mean([value] * count)

    assert found is not None
    assert found.value == pytest.approx(value)
    assert found.low == found.value == found.high


@given(st.lists(st.floats(0.001, 1000.0), min_size=FEWEST, max_size=30))
def test_a_mean_lies_in_its_interval_and_is_the_same_again(values: list[float]) -> None:
    found = mean(values)

    assert found is not None
    assert found.low <= found.value <= found.high
    assert found == mean(values)


@pytest.mark.parametrize("count", range(FEWEST))
def test_of_too_few_values_no_interval_is_stated(count: int) -> None:
    values = [1.0, 2.0, 3.0][:count]

    assert mean(values) is None
    assert speed_ratio(values, values) is None
    assert ratio_of_sums(values, values) is None


def pairs(seed: int, ratio: float, count: int = 20) -> tuple[list[float], list[float]]:
    """Times of requests that differ by far more than the two servers do."""
    random = np.random.default_rng(seed)
    ours = random.lognormal(0.0, 1.0, count)
    return list(ours), list(ours * ratio * random.lognormal(0.0, 0.1, count))


def test_the_interval_of_a_speed_ratio_is_as_narrow_as_pairs_let_it_be() -> None:
    found = speed_ratio(*pairs(1, 1.3))

    assert found is not None
    assert 1.1 < found.low < 1.3 < found.high < 1.5


times = st.lists(
    st.tuples(st.floats(0.001, 10.0), st.floats(0.001, 10.0)), min_size=FEWEST, max_size=20
)


@given(times, st.floats(0.1, 10.0))
def test_a_speed_ratio_scales_with_the_times(both: list[tuple[float, float]], by: float) -> None:
    ours, theirs = zip(*both, strict=True)

    found, scaled = speed_ratio(ours, theirs), speed_ratio(ours, [by * each for each in theirs])

    assert found is not None
    assert scaled is not None
    assert scaled.value == pytest.approx(by * found.value)
    assert scaled.value == pytest.approx(
        float(stats.gmean(theirs) / stats.gmean(ours)) * by, rel=1e-6
    )


@given(times)
def test_the_speed_ratio_of_swapped_servers_is_the_inverse(
    both: list[tuple[float, float]],
) -> None:
    ours, theirs = zip(*both, strict=True)

    found, swapped = speed_ratio(ours, theirs), speed_ratio(theirs, ours)

    assert found is not None
    assert swapped is not None
    assert swapped.value == pytest.approx(1.0 / found.value)
    assert np.log(swapped.low) == pytest.approx(-np.log(found.high), rel=1e-6, abs=1e-9)
    assert np.log(swapped.high) == pytest.approx(-np.log(found.low), rel=1e-6, abs=1e-9)


def drafts(seed: int, rate: float, count: int) -> tuple[list[float], list[float]]:
    random = np.random.default_rng(seed)
    drafted = random.integers(10, 200, count)
    return list(map(float, random.binomial(drafted, rate))), list(map(float, drafted))


def test_the_interval_of_a_ratio_of_sums_is_scipys_of_pairs() -> None:
    parts, wholes = drafts(3, 0.6, 60)

    found = ratio_of_sums(parts, wholes)

    theirs = stats.bootstrap(
        (parts, wholes),
        lambda part, whole, axis: part.sum(axis=axis) / whole.sum(axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        rng=1,
    ).confidence_interval
    width = theirs.high - theirs.low
    assert found is not None
    assert found.value == pytest.approx(sum(parts) / sum(wholes))
    assert found.low == pytest.approx(theirs.low, abs=0.15 * width)
    assert found.high == pytest.approx(theirs.high, abs=0.15 * width)


def test_a_ratio_of_sums_weighs_requests_by_their_wholes() -> None:
    found = ratio_of_sums([90.0, 0.0, 0.0, 0.0], [100.0, 1.0, 1.0, 0.0])

    assert found is not None
    assert found.value == pytest.approx(90 / 102)


def test_a_ratio_of_sums_is_unknown_where_there_is_nothing_to_divide_by() -> None:
    assert ratio_of_sums([0.0] * FEWEST, [0.0] * FEWEST) is None


values_of_any_size = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50)


@given(values_of_any_size, st.floats(0.0, 1.0))
def test_quantiles_are_scipys_interpolated_ones(values: list[float], share: float) -> None:
    found = quantiles(values, (share, 0.5))

    theirs = mquantiles(values, [share, 0.5], alphap=1.0, betap=1.0)
    assert found == pytest.approx(tuple(theirs), rel=1e-9, abs=1e-6)


@given(values_of_any_size)
def test_quantiles_rise_from_the_least_to_the_most(values: list[float]) -> None:
    found = quantiles(values, (0.0, 0.1, 0.5, 0.9, 1.0))

    assert (found[0], found[-1]) == (min(values), max(values))
    assert all(low <= high for low, high in pairwise(found))


def test_a_statistic_is_taken_of_the_samples_and_of_draws_from_each() -> None:
    def difference(ours: list[float], theirs: list[float]) -> float:
        return float(np.mean(ours) - np.mean(theirs))

    found, drawn = of_statistic(difference, [5.0, 6.0, 7.0], [1.0, 2.0], resamples=500)

    assert found == 4.5
    assert len(drawn) == 500
    known = [each for each in drawn if each is not None]
    assert (min(known), max(known)) == (3.0, 6.0)
    assert np.mean(known) == pytest.approx(4.5, abs=0.1)


def test_a_statistic_without_a_value_is_none_among_the_draws() -> None:
    def of_two_values(seen: list[float]) -> float | None:
        return float(np.mean(seen)) if len(set(seen)) > 1 else None

    found, drawn = of_statistic(of_two_values, [1.0, 2.0], resamples=200)

    assert found == 1.5
    assert set(drawn) == {1.5, None}
