"""What another policy would have had, told from requests that chance sent to several pools.

A request weighs what the other policy's chance of the pool that it had is over the chance that the
pool really had (inverse propensity; Horvitz and Thompson 1952). The weighted mean is divided by
the sum of weights (self-normalised; Swaminathan and Joachims 2015): a little biased with few
requests, far less erratic, and of the size of what was seen always.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 1000
"""Enough for a 95 % interval by percentiles (Efron and Tibshirani 1993, 13.3)."""


class Change(NamedTuple):
    """A mean under the policy that was logged and under another.

    Attributes:
        before: Under the one that was logged.
        after: Under the other.
        low: Lower end of the 95 % interval of `share`.
        high: Its upper end.
    """

    before: float
    after: float
    low: float
    high: float

    @property
    def share(self) -> float:
        """The change as a share of what was; under 0 the other policy's mean is smaller."""
        return self.after / self.before - 1.0


def weighted_mean(values: Floats, weights: Floats) -> float:
    """Return the mean of `values`; `weights` are not all 0."""
    return float(weights @ values / weights.sum())


def change(
    values: Floats, weights: Floats, *, seed: int = 0, resamples: int = RESAMPLES
) -> Change:
    """Return how the mean of `values` changes when each counts as `weights` say.

    The interval is of percentiles over resampled requests, each with its value and its weight, so
    that what both means have in common cancels. It takes requests for independent.

    Args:
        values: What came of each request, > 0.
        weights: Of each request, >= 0 and not all 0.
        seed: Of the resampling.
        resamples: How often.
    """
    rng, count = np.random.default_rng(seed), len(values)
    weighted, shares = weights * values, []
    for _ in range(resamples):
        drawn = rng.integers(count, size=count)
        if total := weights[drawn].sum():
            shares.append(weighted[drawn].sum() / total / values[drawn].mean() - 1.0)
    low, high = np.percentile(shares, (2.5, 97.5))
    return Change(float(values.mean()), weighted_mean(values, weights), float(low), float(high))


def effective_sample_size(weights: Floats) -> float:
    """Return how many requests of one weight tell as much: (sum w)^2 / sum w^2 (Kish 1965)."""
    squares = float(weights @ weights)
    return float(weights.sum()) ** 2 / squares if squares else 0.0


def largest_share(weights: Floats) -> float:
    """Return the share of all weight that the heaviest request has; 0 where there is none."""
    total = float(weights.sum())
    return float(weights.max()) / total if total else 0.0
