"""What the adaptive policy should hold, whether it does, and where it holds least."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, geometric_mean
from typing import NamedTuple

from turnout.simulation.arms import ADAPTIVE, CLASS_ORACLE, ORACLE, SAME_KIND, STATIC
from turnout.simulation.loads import Shape, load_named
from turnout.simulation.statistics import Comparison, Interval, Place

STEADY, UNSTEADY = 1.04, 1.08
"""Most of the oracle's mean latency, at steady loads and while something changes."""
OVER_STATIC = 1.05
OVER_SAME_KIND = 1.12
WRONG_PRIORS, LEARNT_AFTER = 1.03, 300
"""Most that wrong expectations may cost, and the requests after which that is asked."""

_NOT_SIMULATED = "not simulated"


class Found(NamedTuple):
    """A ratio of mean latencies somewhere, and the most that it may be."""

    place: Place
    ratio: Interval
    limit: float

    @property
    def over(self) -> bool:
        """Whether it is more."""
        return self.ratio.value > self.limit


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
        _also(
            "the class oracle",
            CLASS_ORACLE,
            f"Within {STEADY - 1:.0%} of the oracle at steady loads, {UNSTEADY - 1:.0%} else",
            comparisons,
            lambda each, arm: each.ratio(arm, ORACLE),
            lambda each: STEADY if _steady(each.place) else UNSTEADY,
        ),
        _everywhere(
            f"At most {OVER_STATIC - 1:.0%} behind the best static policy on the same servers",
            comparisons,
            lambda each: _over_best(ADAPTIVE, each, STATIC),
            lambda _: OVER_STATIC,
        ),
        _also(
            "the oracle",
            ORACLE,
            f"At most {OVER_SAME_KIND - 1:.0%} behind the better of 2x spec and 2x plain",
            comparisons,
            lambda each, arm: _over_best(arm, each, SAME_KIND),
            lambda _: OVER_SAME_KIND,
        ),
        _everywhere(
            f"Wrong priors cost at most {WRONG_PRIORS - 1:.0%} after {LEARNT_AFTER} requests",
            comparisons,
            lambda each: each.ratio("wrong-priors", ADAPTIVE, after=LEARNT_AFTER),
            lambda _: WRONG_PRIORS,
        ),
        _everywhere(
            "Counting others' time costs nothing against routing selfishly",
            comparisons,
            lambda each: each.ratio(ADAPTIVE, "selfish"),
            lambda _: 1.0,
        ),
        _switches(comparisons),
    ]


def _also(
    called: str,
    ideal: str,
    claim: str,
    comparisons: Sequence[Comparison],
    ratio: Callable[[Comparison, str], Interval | None],
    limit: Callable[[Comparison], float],
) -> Verdict:
    """Judge adaptive in each place, and say in how many places the `ideal` arm is over as well."""
    verdict = _everywhere(claim, comparisons, lambda each: ratio(each, ADAPTIVE), limit)
    over = sum(found.over for found in _found(comparisons, lambda each: ratio(each, ideal), limit))
    return replace(verdict, found=f"{verdict.found} ({called} in {over})") if over else verdict


def _switches(comparisons: Sequence[Comparison]) -> Verdict:
    """Judge whether adaptive moves classes between pools more often than the oracle does."""
    found = [
        (each.summaries[ADAPTIVE].switches, each.summaries[ORACLE].switches)
        for each in comparisons
        if {ADAPTIVE, ORACLE} <= each.summaries.keys()
    ]
    claim = "No oscillation: a class changes pools no more often than with the oracle"
    if not found:
        return Verdict(claim=claim, held=None, found=_NOT_SIMULATED, worst=None)
    mine, ideal = map(fmean, zip(*found, strict=True))
    more = sum(switches > most for switches, most in found)
    numbers = f"{mine:.0f} and {ideal:.0f} times per 100 requests on average"
    said = f"{numbers}, more often in {more} of {len(found)} cells"
    return Verdict(claim=claim, held=not more, found=said, worst=None)


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
        return Verdict(claim=claim, held=None, found=_NOT_SIMULATED, worst=None)
    over = sum(found.over for found in every)
    found = f"{_average(every):.3f} on average, over it in {over} of {len(every)} cells"
    return Verdict(claim=claim, held=not over, found=found, worst=every[0])


def _average(every: Sequence[Found]) -> float:
    """Return the geometric mean of ratios."""
    return geometric_mean([found.ratio.value for found in every])
