"""95 % intervals around what a few requests showed, by resampling them.

Latencies are skewed and a cell has twenty of them, so nothing here takes them for normal. Every
interval is reproducible: the draws are those of one seed.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from turnout.simulation.statistics import Interval

Numbers = NDArray[np.float64]

RESAMPLES = 2000
"""Ample for a 95 % interval (Efron and Tibshirani 1993, 13.3: at least 1000)."""
TAILS = (0.025, 0.975)
FEWEST = 3
"""Values from which an interval is stated: two always differ by the same."""
_LEAST_ERROR = 0.3
"""Of a resampled mean's standard error, as a share of the sample's own. A draw that repeats one of
few values has next to none and would lie any number of errors away; with this floor the interval
of 3 to 20 normal or lognormal values holds their mean in 91 to 96 % of samples."""


def mean(values: Sequence[float]) -> Interval | None:
    """Return the mean with its bootstrap-t interval, which small and skewed samples need.

    Each resampled mean is counted in its own standard errors (Efron and Tibshirani 1993, 12.5).

    Args:
        values: Independent; None is returned for less than `FEWEST`.
    """
    seen = np.asarray(values, np.float64)
    if len(seen) < FEWEST:
        return None
    middle, error = float(seen.mean()), _error(seen[np.newaxis])[0]
    if error <= 1e-9 * abs(middle):  # all the same, up to rounding
        return Interval(middle, middle, middle)
    drawn = seen[_draws(len(seen))]
    errors = np.maximum(_error(drawn), _LEAST_ERROR * error)
    scores = (drawn.mean(axis=1) - middle) / errors
    low, high = np.quantile(scores, TAILS)
    return Interval(middle, float(middle - high * error), float(middle - low * error))


def _error(samples: Numbers) -> Numbers:
    """Return the standard error of the mean of each line."""
    spread = samples.std(axis=1, ddof=1)
    return np.asarray(spread / np.sqrt(samples.shape[1]))


def speed_ratio(ours: Sequence[float], theirs: Sequence[float]) -> Interval | None:
    """Return how many times as long `theirs` took as `ours`, of pairs: the geometric mean.

    Args:
        ours: Times, > 0.
        theirs: Those of the same requests elsewhere, in the same order.
    """
    found = mean(list(np.log(np.asarray(theirs) / np.asarray(ours))))
    return None if found is None else Interval(*map(float, np.exp(found)))


def ratio_of_sums(parts: Sequence[float], wholes: Sequence[float]) -> Interval | None:
    """Return sum(parts) / sum(wholes), whole requests resampled; None where it isn't known."""
    of, whole = np.asarray(parts, np.float64), np.asarray(wholes, np.float64)
    if len(of) < FEWEST or not whole.sum():
        return None
    drawn = _draws(len(of))
    totals = whole[drawn].sum(axis=1)
    ratios = of[drawn].sum(axis=1)[totals > 0.0] / totals[totals > 0.0]
    low, high = np.quantile(ratios, TAILS)
    return Interval(float(of.sum() / whole.sum()), float(low), float(high))


def of_statistic(
    statistic: Callable[..., float | None], *samples: Sequence[float], resamples: int = RESAMPLES
) -> tuple[float | None, list[float | None]]:
    """Return a statistic of samples, and what it is when each is resampled by itself.

    Args:
        statistic: Of as many arrays as there are samples; None where it has no value.
        samples: Each with one value at least.
        resamples: How often.
    """
    arrays = [np.asarray(sample, np.float64) for sample in samples]
    random = np.random.default_rng(0)
    drawn = (
        statistic(*(each[random.integers(len(each), size=len(each))] for each in arrays))
        for _ in range(resamples)
    )
    return statistic(*arrays), list(drawn)


def around(
    statistic: Callable[..., float], *samples: Sequence[float], resamples: int = RESAMPLES
) -> Interval | None:
    """Return a statistic of samples with its percentile interval.

    Args:
        statistic: Of as many arrays as there are samples.
        samples: None is returned where one has less than `FEWEST` values.
        resamples: How often each is resampled by itself.
    """
    if min(map(len, samples)) < FEWEST:
        return None
    found, drawn = of_statistic(statistic, *samples, resamples=resamples)
    assert found is not None  # noqa: S101 - it always has a value
    low, high = np.quantile(np.asarray(drawn, np.float64), TAILS)
    return Interval(found, float(low), float(high))


def quantiles(values: ArrayLike, shares: Iterable[float]) -> tuple[float, ...]:
    """Return the values under which `shares` (0 to 1) of `values` lie, interpolated."""
    return tuple(float(each) for each in np.quantile(np.asarray(values, np.float64), list(shares)))


def _draws(count: int) -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(count, size=(RESAMPLES, count))
