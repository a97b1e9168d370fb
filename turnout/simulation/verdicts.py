"""What the adaptive policy should hold, whether it does, and where it holds least."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import exp, log
from typing import NamedTuple

from turnout.simulation.arms import ADAPTIVE, ORACLE, SAME_KIND, STATIC
from turnout.simulation.loads import Shape, load_named
from turnout.simulation.statistics import Comparison, Interval, Place

STEADY, UNSTEADY = 1.04, 1.08
"""Most of the oracle's mean latency, at steady loads and while something changes."""
OVER_STATIC = 1.05
OVER_SAME_KIND = 1.12
WRONG_PRIORS, LEARNT_AFTER = 1.03, 300
"""Most that wrong expectations may cost, and the requests after which that is asked."""


class Found(NamedTuple):
    """A ratio of mean latencies somewhere, and the most that it may be."""

    place: Place
    ratio: Interval
    limit: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A claim and what became of it.

    Attributes:
        claim: In words.
        held: None where what it is about was not simulated.
        found: The numbers it was judged by.
        worst: The place that is furthest over its limit, or least under it.
    """

    claim: str
    held: bool | None
    found: str
    worst: Found | None


def judge(comparisons: Sequence[Comparison]) -> list[Verdict]:
    """Return the verdict on every claim."""
    return [
        _everywhere(
            f"Within {STEADY - 1:.0%} of the oracle at steady loads, {UNSTEADY - 1:.0%} else",
            comparisons,
            lambda each: each.ratio(ADAPTIVE, ORACLE),
            lambda each: STEADY if _steady(each.place) else UNSTEADY,
        ),
        _everywhere(
            f"At most {OVER_STATIC - 1:.0%} behind the best static policy on the same servers",
            comparisons,
            lambda each: _over_best(ADAPTIVE, each, STATIC),
            lambda _: OVER_STATIC,
        ),
        _over_same_kind(comparisons),
        _everywhere(
            f"Wrong priors cost at most {WRONG_PRIORS - 1:.0%} after {LEARNT_AFTER} requests",
            comparisons,
            lambda each: each.ratio("wrong-priors", ADAPTIVE, after=LEARNT_AFTER),
            lambda _: WRONG_PRIORS,
        ),
        _on_average(
            "Counting others' time is no loss on average against routing selfishly",
            comparisons,
            lambda each: each.ratio(ADAPTIVE, "selfish"),
        ),
    ]


def _over_same_kind(comparisons: Sequence[Comparison]) -> Verdict:
    """Judge adaptive against two servers of the better kind, and say how the oracle does."""
    verdict = _everywhere(
        f"At most {OVER_SAME_KIND - 1:.0%} behind the better of 2x spec and 2x plain",
        comparisons,
        lambda each: _over_best(ADAPTIVE, each, SAME_KIND),
        lambda _: OVER_SAME_KIND,
    )
    ideal = [_over_best(ORACLE, each, SAME_KIND) for each in comparisons]
    over = sum(ratio is not None and ratio.value > OVER_SAME_KIND for ratio in ideal)
    return replace(verdict, found=f"{verdict.found} (the oracle in {over})") if over else verdict


def _steady(place: Place) -> bool:
    return load_named(place.load).shape is Shape.STEADY


def _over_best(arm: str, comparison: Comparison, among: Sequence[str]) -> Interval | None:
    best = comparison.best(among)
    return comparison.ratio(arm, best) if best else None


_Ratio = Callable[[Comparison], Interval | None]


def _found(
    comparisons: Sequence[Comparison], ratio: _Ratio, limit: Callable[[Comparison], float]
) -> list[Found]:
    """Return what was found in each place, the worst first."""
    every = [
        Found(each.place, interval, limit(each))
        for each in comparisons
        if (interval := ratio(each)) is not None
    ]
    return sorted(every, key=lambda found: found.limit / found.ratio.value)


def _everywhere(
    claim: str,
    comparisons: Sequence[Comparison],
    ratio: _Ratio,
    limit: Callable[[Comparison], float],
) -> Verdict:
    """Judge a claim that is to hold in each place."""
    every = _found(comparisons, ratio, limit)
    if not every:
        return Verdict(claim=claim, held=None, found="not simulated", worst=None)
    over = sum(found.ratio.value > found.limit for found in every)
    found = f"{_average(every):.3f} on average, over it in {over} of {len(every)} cells"
    return Verdict(claim=claim, held=not over, found=found, worst=every[0])


def _on_average(claim: str, comparisons: Sequence[Comparison], ratio: _Ratio) -> Verdict:
    """Judge a claim that is to hold over all places."""
    every = _found(comparisons, ratio, lambda _: 1.0)
    if not every:
        return Verdict(claim=claim, held=None, found="not simulated", worst=None)
    average = _average(every)
    found = f"{average:.3f} on average over {len(every)} cells"
    return Verdict(claim=claim, held=average <= 1.0, found=found, worst=every[0])


def _average(every: Sequence[Found]) -> float:
    """Return the geometric mean of ratios."""
    return exp(sum(log(found.ratio.value) for found in every) / len(every))
