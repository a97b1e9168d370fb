"""The weighted change against answers that are known, and what holds for all numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from turnout.tuning.weighting import (
    Change,
    Floats,
    change,
    effective_sample_size,
    largest_share,
    weighted_mean,
)

TO_FAST = (0.2, 0.7)
"""Chance of the fast pool in the log, for hard requests and for easy ones."""
NEW_TO_FAST = 0.9
HARD, EASY, FASTER = 2.0, 1.0, 0.5
"""Mean of each kind on the slow pool, and what the fast one takes of it."""
TRUE_BEFORE = (HARD * (0.8 + 0.2 * FASTER) + EASY * (0.3 + 0.7 * FASTER)) / 2
TRUE_AFTER = (HARD + EASY) / 2 * (0.1 + 0.9 * FASTER)
TRUE_SHARE = TRUE_AFTER / TRUE_BEFORE - 1.0


def bandit(seed: int, count: int = 400) -> tuple[Floats, Floats]:
    """Return outcomes and weights of requests that two pools served, the hard ones rarely fast."""
    rng = np.random.default_rng(seed)
    easy = rng.random(count) < 0.5
    chance = np.where(easy, TO_FAST[1], TO_FAST[0])
    fast = rng.random(count) < chance
    means = np.where(easy, EASY, HARD) * np.where(fast, FASTER, 1.0)
    logged, new = np.where(fast, chance, 1.0 - chance), np.where(fast, NEW_TO_FAST, 0.1)
    return means * rng.uniform(0.5, 1.5, count), new / logged


def test_many_requests_lead_to_the_truth() -> None:
    """Plainly comparing the pools would mistake easy requests for a fast pool."""
    found = change(*bandit(0, 200_000), resamples=20)

    assert found.before == pytest.approx(TRUE_BEFORE, rel=0.01)
    assert found.after == pytest.approx(TRUE_AFTER, rel=0.01)
    assert found.share == pytest.approx(TRUE_SHARE, abs=0.01)
    assert found.low < found.share < found.high


def test_the_interval_is_that_of_a_library() -> None:
    bootstrap = pytest.importorskip("scipy.stats").bootstrap
    values, weights = bandit(3)

    def share(drawn: Floats, heavy: Floats) -> float:
        return weighted_mean(drawn, heavy) / float(drawn.mean()) - 1.0

    theirs = bootstrap(
        (values, weights),
        share,
        paired=True,
        vectorized=False,
        n_resamples=4000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval

    ours = change(values, weights, resamples=4000)
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.1 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.1 * width)


@pytest.mark.parametrize(
    ("weights", "size", "largest"),
    [
        ([1.0, 1.0, 1.0, 1.0], 4.0, 0.25),
        ([4.0, 0.0, 0.0], 1.0, 1.0),
        ([3.0, 1.0], 16.0 / 10.0, 0.75),
        ([0.0, 0.0], 0.0, 0.0),
        ([], 0.0, 0.0),
    ],
)
def test_requests_that_weigh_much_count_as_few(
    weights: list[float], size: float, largest: float
) -> None:
    given_weights = np.array(weights)

    assert effective_sample_size(given_weights) == pytest.approx(size)
    assert (largest_share(given_weights) if weights else 0.0) == pytest.approx(largest)


def test_resamples_in_which_nothing_weighs_are_passed_over() -> None:
    found = change(np.array([1.0, 2.0]), np.array([0.0, 1.0]))

    assert found == pytest.approx(Change(before=1.5, after=2.0, low=0.0, high=1 / 3))


VALUES = arrays(np.float64, st.integers(1, 40), elements=st.floats(0.001, 1000.0))


@given(VALUES, st.floats(0.1, 10.0))
def test_equal_policies_change_nothing(values: Floats, weight: float) -> None:
    found = change(values, np.full(len(values), weight), resamples=20)

    assert found.after == pytest.approx(float(values.mean()))
    assert (found.share, found.low, found.high) == pytest.approx((0.0, 0.0, 0.0), abs=1e-9)


@given(VALUES, st.floats(0.01, 100.0), st.integers(0, 5))
def test_outcomes_of_another_scale_change_by_the_same_share(
    values: Floats, scale: float, seed: int
) -> None:
    weights = np.random.default_rng(seed).uniform(0.1, 5.0, len(values))

    found = change(values, weights, resamples=20)
    scaled = change(scale * values, weights, resamples=20)

    assert scaled.before == pytest.approx(scale * found.before)
    assert scaled.after == pytest.approx(scale * found.after)
    assert scaled[2:] == pytest.approx(found[2:], abs=1e-9)


@given(VALUES, st.integers(0, 5))
def test_a_mean_is_within_what_was_seen(values: Floats, seed: int) -> None:
    weights = np.random.default_rng(seed).uniform(0.1, 5.0, len(values))

    slack = 1e-9 * values.max()
    assert values.min() - slack <= weighted_mean(values, weights) <= values.max() + slack


@given(arrays(np.float64, st.integers(1, 40), elements=st.floats(0.0, 100.0)))
def test_no_weights_tell_more_than_equal_ones(weights: Floats) -> None:
    assert 0.0 <= effective_sample_size(weights) <= len(weights) * (1 + 1e-9)
