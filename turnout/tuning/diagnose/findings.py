"""What widens the gap between the middle and the slowest requests: the mix, the load, the cache.

Four loads are compared, two by two: the mix and one predictable kind by itself, each with many
requests in flight and with one. Between the mix and the kind by itself at the same load only the
company differs: if the tail tightens, it was the mix (decision framework, July 2026). Between many
and one of the same kind only the load does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from math import comb

import numpy as np

from turnout.simulation.statistics import Interval
from turnout.tuning.bench.findings import RESAMPLES, faster, quantile_ratio
from turnout.tuning.diagnose.watching import Pressure
from turnout.tuning.intervals import around

MIXED, ALONE, MIXED_QUIET, ALONE_QUIET = STEPS = (
    "mixed", "homogeneous", "mixed, one at a time", "homogeneous, one at a time",
)  # fmt: skip
MATTERS = 1.15
"""A gap so many times another's is told of; differences under 15 % mean little at some tens of
requests (seen between equal runs on real vLLM)."""
BEYOND = 6
"""Requests beyond a quantile from which it is told: P99 of sixty is the slowest one, whatever it
was. So sixty of each load tell P90, 120 P95 and 600 P99."""
_QUANTILES = (0.99, 0.95, 0.90)
CHANCE = 0.05
"""Chance of a finding where there is nothing, shared out among the kinds (Bonferroni)."""
KV_FULL = 0.90
"""The gateway's own mark: beyond it vLLM soon preempts."""


class Cause(StrEnum):
    """What can widen the gap."""

    MIX = "the mix"
    LOAD = "the load"
    KV = "KV pressure"
    OTHER = "something else"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What speaks for a cause or against it.

    Attributes:
        cause: The cause.
        holds: Whether it does; None where these requests can't tell.
        because: The figures.
        size: How many times as slow it makes the slowest; 1 where it doesn't.
    """

    cause: Cause
    holds: bool | None
    because: str
    size: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What was found.

    Attributes:
        tail: The quantile that stands for the slowest, in [0, 1].
        gaps: TPOT there over P50, of each of `STEPS` that was measured.
        tax: TPOT of the predictable kind in the mix over by itself, at the same load.
        evidence: Of every cause, with what it does to the gap.
    """

    tail: float
    gaps: Mapping[str, Interval]
    tax: Interval | None
    evidence: Sequence[Evidence]

    @property
    def verdict(self) -> str:
        """The cause that widens the gap most, or that none does."""
        held = [each for each in self.evidence if each.holds]
        gap = self.gaps.get(MIXED)
        width = (
            f"{named(self.tail)} is {gap.value:.2f} times P50 in the mix"
            if gap
            else "the gap is not known"
        )
        if not held:
            open_ = [each.cause.value for each in self.evidence if each.holds is None]
            rest = f"; can't tell whether by {', '.join(open_)}" if open_ else ""
            return f"No cause was found ({width}){rest}."
        main = max(held, key=lambda each: each.size)
        others = [each.cause.value for each in held if each is not main]
        also = f" Also: {', '.join(others)}." if others else ""
        return f"It is {main.cause.value} ({width}): {main.because}.{also}"


def tail_of(counts: Sequence[int]) -> float:
    """Return the quantile that stands for the slowest of samples of these sizes."""
    least = min(counts, default=0)
    known = (share for share in _QUANTILES if least * (1.0 - share) >= BEYOND - 1e-9)
    return next(known, _QUANTILES[-1])


def named(share: float) -> str:
    """Return what a quantile is called, as P99."""
    return f"P{100 * share:.0f}"


def gap(tpot_s: Sequence[float], tail: float) -> Interval | None:
    """Return the `tail` quantile over P50 with its bootstrap interval; None for too few values."""
    return around(partial(_gap, tail=tail), tpot_s, resamples=RESAMPLES)


def _gap(values: Sequence[float], *, tail: float) -> float:
    middle, high = np.quantile(values, (0.5, tail))
    return float(high / middle)


def gap_ratio(ours: Sequence[float], theirs: Sequence[float], tail: float) -> Interval | None:
    """Return how many times as wide the gap of `ours` is as that of `theirs`."""

    def ratio(mine: Sequence[float], others: Sequence[float]) -> float:
        return _gap(mine, tail=tail) / _gap(others, tail=tail)

    return around(ratio, ours, theirs, resamples=RESAMPLES)


def diagnose(
    tpots: Mapping[str, Sequence[float]],
    *,
    in_mix: Mapping[str, Sequence[float]],
    kind: str,
    pressure: Pressure | None,
) -> Diagnosis:
    """Return what the requests of the four loads show.

    Args:
        tpots: Time per output token by name of `STEPS`, s.
        in_mix: That of the mix under load by kind, s.
        kind: The predictable kind, which was sent by itself too.
        pressure: What the server told while the mix ran.
    """
    tax = faster(tpots[ALONE], in_mix.get(kind, ()))
    tail = tail_of([len(tpots[name]) for name in STEPS])
    return Diagnosis(
        tail=tail,
        gaps={name: found for name in STEPS if (found := gap(tpots[name], tail)) is not None},
        tax=tax,
        evidence=[
            _mix(tpots, in_mix, tax, kind, tail),
            _load(tpots, tail),
            _kv(pressure),
            _other(tpots, tail),
        ],
    )


def _mix(
    tpots: Mapping[str, Sequence[float]],
    in_mix: Mapping[str, Sequence[float]],
    tax: Interval | None,
    kind: str,
    tail: float,
) -> Evidence:
    """Judge by whether the tail tightens when all are of the predictable kind.

    That it does may be chance of prompts; the mix it is where the slowest are of one kind more
    than the rest are, or the predictable kind itself is slower in that company.
    """
    longer = quantile_ratio(tpots[MIXED], tpots[ALONE], tail)
    if longer is None:
        return Evidence(cause=Cause.MIX, holds=None, because="too few requests")
    because = f"{named(tail)} is {shown(longer)} times that of {kind} alone at the same load"
    slowest, taxed = _slowest(in_mix), tax is not None and tax.low > 1.0
    if slowest is not None:
        because += f"; {slowest}"
    if tax is not None and taxed:
        because += f"; {kind} itself takes {shown(tax)} times as long per token in the mix"
    holds = _holds(longer)
    if holds and slowest is None and not taxed:
        holds = False
        because += f", yet no kind stands out among the slowest, and {kind} is no slower in it"
    return Evidence(cause=Cause.MIX, holds=holds, because=because, size=longer.value)


def _slowest(in_mix: Mapping[str, Sequence[float]]) -> str | None:
    """Say which kind the slowest tenth of the mix is of, where that is more than chance."""
    pairs = sorted((tpot_s, kind) for kind, mine in in_mix.items() for tpot_s in mine)
    if len(pairs) < 10:
        return None
    tail = [kind for _, kind in pairs[-(len(pairs) // 10) :]]
    most = max(in_mix, key=tail.count)
    share, usual = tail.count(most) / len(tail), len(in_mix[most]) / len(pairs)
    if _chance(tail.count(most), len(tail), usual) > CHANCE / len(in_mix):
        return None
    return f"of its slowest tenth {share:.0%} are {most}, of all {usual:.0%}"


def _chance(at_least: int, count: int, share: float) -> float:
    """Return the chance that so many of `count` are of a kind that `share` of all are of."""
    return sum(
        comb(count, k) * share**k * (1.0 - share) ** (count - k)
        for k in range(at_least, count + 1)
    )


def _load(tpots: Mapping[str, Sequence[float]], tail: float) -> Evidence:
    wider = gap_ratio(tpots[ALONE], tpots[ALONE_QUIET], tail)
    if wider is None:
        return Evidence(cause=Cause.LOAD, holds=None, because="too few requests")
    because = f"homogeneous requests have a gap {shown(wider)} times as wide as one at a time"
    return Evidence(cause=Cause.LOAD, holds=_holds(wider), because=because, size=wider.value)


def _holds(wider: Interval) -> bool | None:
    if wider.value >= MATTERS and wider.low > 1.0:
        return True
    return False if wider.high < MATTERS else None


def _kv(pressure: Pressure | None) -> Evidence:
    if pressure is None:
        return Evidence(cause=Cause.KV, holds=None, because="the server's metrics do not tell")
    hits = "" if pressure.hit_rate is None else f", prefix hits {pressure.hit_rate:.0%}"
    because = (
        f"KV cache up to {pressure.kv_usage:.0%} full, {pressure.preemptions:.0f} preemptions, "
        f"up to {pressure.waiting:.0f} waiting{hits}"
    )
    full = pressure.preemptions > 0.0 or pressure.kv_usage >= KV_FULL
    # A preempted request computes its tokens again: nothing else makes so long a gap.
    return Evidence(
        cause=Cause.KV, holds=full, because=because, size=np.inf if pressure.preemptions else 1.0
    )


def _other(tpots: Mapping[str, Sequence[float]], tail: float) -> Evidence:
    alone = gap(tpots[ALONE_QUIET], tail)
    if alone is None:
        return Evidence(cause=Cause.OTHER, holds=None, because="too few requests")
    because = (
        f"even homogeneous requests one at a time have {named(tail)} at {shown(alone)} times "
        "P50: answers differ by themselves, other traffic, or the machine"
    )
    holds = alone.low > 2.0 * MATTERS
    return Evidence(cause=Cause.OTHER, holds=holds, because=because, size=alone.value)


def shown(found: Interval) -> str:
    """Return a number with its interval in words."""
    return f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"
