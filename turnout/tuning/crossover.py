"""What was measured of each pool, where speculation stops to pay, and the marks that follow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, floor, log
from statistics import median

from turnout.tuning.sample import Sample

LOW_SHARE = 0.75
"""The low mark as a share of the high one; the shipped marks (32 and 24) have the same."""

Gains = Sequence[tuple[int, float]]
"""Requests in flight and TPOT plain / spec (over 1, speculation is faster), by rising load."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One kind of request on one pool at one load.

    Attributes:
        kind: The kind of request.
        pool: Name of the pool.
        in_flight: Requests held in flight on that pool; None for what was routed.
        requests: Requests answered.
        failed: Requests lost or cut.
        ttft_s: Median time to first token, s; None if nothing streamed. Likewise:
        tpot_s: Median time per output token, s.
        tau: Tokens per engine step over all requests; None where the servers don't tell.
        acceptance: Accepted / drafted over all requests; likewise.
    """

    kind: str
    pool: str
    in_flight: int | None
    requests: int
    failed: int
    ttft_s: float | None
    tpot_s: float | None
    tau: float | None
    acceptance: float | None


def measure(samples: Sequence[Sample], *, kind: str, pool: str, in_flight: int | None) -> Cell:
    """Return what the answered of `samples` show; latencies are medians, rates ratios of sums."""
    answered = [sample for sample in samples if sample.outcome == "ok"]
    told = [(s.tokens - 1, s.accepted) for s in answered if s.tokens and s.accepted is not None]
    steps = sum(tokens - accepted for tokens, accepted in told)
    drafted = sum(sample.drafted or 0 for sample in answered)
    accepted = sum(accepted for _, accepted in told)
    return Cell(
        kind=kind,
        pool=pool,
        in_flight=in_flight,
        requests=len(answered),
        failed=len(samples) - len(answered),
        ttft_s=_median([s.ttft_s for s in answered if s.ttft_s is not None]),
        tpot_s=_median([s.tpot_s for s in answered if s.tpot_s is not None]),
        tau=sum(tokens for tokens, _ in told) / steps if steps > 0 else None,
        acceptance=accepted / drafted if drafted else None,
    )


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None


def gains(cells: Sequence[Cell], kind: str, *, spec: str, plain: str) -> Gains:
    """Return TPOT plain / spec of one kind at each load that both pools were measured at."""
    tpot_s = {(c.pool, c.in_flight): c.tpot_s for c in cells if c.kind == kind and c.tpot_s}
    loads = {load for _, load in tpot_s if load is not None}
    both = [load for load in sorted(loads) if {(spec, load), (plain, load)} <= tpot_s.keys()]
    return [(load, tpot_s[plain, load] / tpot_s[spec, load]) for load in both]


def crossover(points: Gains) -> float | None:
    """Return the in-flight count at which a gain falls to 1, None if it doesn't where measured.

    Between two loads it is interpolated, both axes logarithmic. A gain that is under 1 from the
    start is no crossover either.
    """
    for (load, gain), (next_load, next_gain) in pairwise(points):
        if gain > 1.0 >= next_gain:
            share = log(gain) / (log(gain) - log(next_gain))
            return exp(log(load) + share * (log(next_load) - log(load)))
    return None


def together(by_kind: Mapping[str, Gains], weights: Mapping[str, float]) -> Gains:
    """Return the gain of kinds that come side by side, where all of them were measured.

    Geometric means, each kind by how often it comes.

    Args:
        by_kind: Gains of the kinds.
        weights: How often each comes, in any unit.
    """
    known = {kind: dict(points) for kind, points in by_kind.items()}
    total = sum(weights[kind] for kind in known)
    loads = set.intersection(*(set(points) for points in known.values())) if known else set()
    found = []
    for load in sorted(loads):
        mean = sum(weights[kind] * log(points[load]) for kind, points in known.items()) / total
        found.append((load, exp(mean)))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class DerivedMarks:
    """In-flight marks for the config, and what they stand on.

    Attributes:
        high: Above this many in flight requests leave the spec pool.
        low: Below this many they return.
        why: The same in a sentence.
    """

    high: int
    low: float
    why: str


def derive_marks(by_kind: Mapping[str, Gains]) -> DerivedMarks:
    """Return marks that keep every kind from loads at which it was seen to lose.

    One mark holds for all kinds, so it stands where the first of them stops gaining. A mark is
    compared with what a request finds in flight, a crossover counts the request too.

    Args:
        by_kind: Gains of the kinds that the policy sends to the spec pool.
    """
    measured = [load for points in by_kind.values() for load, _ in points]
    gaining = [kind for kind, points in by_kind.items() if points and points[0][1] > 1.0]
    crossed = {kind: at for kind in gaining if (at := crossover(by_kind[kind])) is not None}
    if crossed:
        kind = min(crossed, key=crossed.__getitem__)
        limit = crossed[kind]
        why = f"{kind} is the first to stop gaining, at {limit:.1f} in flight"
    elif gaining:
        limit = max(measured)
        why = f"nothing that gained had stopped at {limit:g} in flight, the highest load measured"
    else:
        limit = min(measured, default=1)
        why = "nothing gained even at the lowest load measured"
    return marks_at(limit, why)


def marks_at(limit: float, why: str) -> DerivedMarks:
    """Return marks that keep requests from more than `limit` in flight, counted with the last."""
    high = max(1, floor(limit) - 1)
    return DerivedMarks(high=high, low=LOW_SHARE * high, why=why)
