"""What a bench's runs show: each target's latencies, targets compared, and the crossover."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, inf, isinf, log

import numpy as np

from turnout.simulation.statistics import Interval, Targets
from turnout.tuning.bench.measuring import Run
from turnout.tuning.bench.plan import Step
from turnout.tuning.crossover import Gains, crossover
from turnout.tuning.intervals import FEWEST, TAILS, around, of_statistic, quantiles
from turnout.tuning.sample import Sample

SHARES = (0.50, 0.95, 0.99)
RESAMPLES = 1000
"""Enough for a 95 % interval (Efron and Tibshirani 1993, 13.3)."""

_Times = Callable[[Sample], Sequence[float]]
LATENCIES: Mapping[str, _Times] = {
    "TTFT": lambda s: [] if s.ttft_s is None else [s.late_s + s.ttft_s],
    "TPOT": lambda s: [] if s.tpot_s is None else [s.tpot_s],
    "ITL": lambda s: s.gaps_s or (),
    "E2E": lambda s: [s.e2e_s],
}
"""From when a request was due; ITL is the gap between chunks, an engine step each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """One target at one load, over all rounds.

    Attributes:
        step: The load.
        target: Its name.
        requests: How many were answered.
        failed: How many were not.
        latency_s: P50, P95 and P99 by name of `LATENCIES`.
        per_s: Requests answered per second.
        tokens_per_s: Output tokens per second.
        goodput: Share of all requests that kept the limits.
        late_s: The most that a request left late; over some milliseconds the generator, or the
            limit in flight, held requests back.
    """

    step: Step
    target: str
    requests: int
    failed: int
    latency_s: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    per_s: float = 0.0
    tokens_per_s: float = 0.0
    goodput: float = 0.0
    late_s: float = 0.0


def measures(runs: Sequence[Run], limits: Targets) -> list[Measures]:
    """Return what each target did at each load, in the order of the runs."""
    grouped: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        grouped.setdefault((run.step.name, run.target), []).append(run)
    return [_measured(mine, limits) for mine in grouped.values()]


def _measured(runs: Sequence[Run], limits: Targets) -> Measures:
    samples = [sample for run in runs for sample in run.samples]
    answered = [sample for sample in samples if sample.outcome == "ok"]
    seconds = sum(run.seconds for run in runs)
    kept = sum(_keeps(sample, limits) for sample in answered)
    latency_s = {
        name: quantiles(values, SHARES)
        for name, read in LATENCIES.items()
        if (values := [value for sample in answered for value in read(sample)])
    }
    return Measures(
        step=runs[0].step,
        target=runs[0].target,
        requests=len(answered),
        failed=len(samples) - len(answered),
        latency_s=latency_s,
        per_s=len(answered) / seconds,
        tokens_per_s=sum(sample.tokens or 0 for sample in answered) / seconds,
        goodput=kept / len(samples),
        late_s=max(sample.late_s for sample in samples),
    )


def _keeps(sample: Sample, limits: Targets) -> bool:
    first = sample.ttft_s is not None and sample.late_s + sample.ttft_s <= limits.ttft_s
    return first and (sample.tpot_s is None or sample.tpot_s <= limits.tpot_s)


def tpots(runs: Sequence[Run], step: str, target: str, kind: str = "") -> list[float]:
    """Return the time per output token of what a target answered of a kind at a load, s."""
    return [
        sample.tpot_s
        for run in runs
        if run.step.name == step and run.target == target
        for sample in run.samples
        if sample.outcome == "ok" and sample.tpot_s and kind in ("", sample.job.kind)
    ]


def faster(ours: Sequence[float], theirs: Sequence[float]) -> Interval | None:
    """Return theirs / ours of geometric means: over 1 ours is faster; None for too few."""
    logs = ([log(value) for value in each] for each in (ours, theirs))
    found = around(_log_ratio, *logs, resamples=RESAMPLES)
    return None if found is None else Interval(*map(exp, found))


def _log_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return float(np.mean(theirs) - np.mean(ours))


def quantile_ratio(
    ours: Sequence[float], theirs: Sequence[float], share: float
) -> Interval | None:
    """Return the ratio of two quantiles, ours / theirs; None for too few values."""

    def ratio(mine: Sequence[float], others: Sequence[float]) -> float:
        return float(np.quantile(mine, share) / np.quantile(others, share))

    return around(ratio, ours, theirs, resamples=RESAMPLES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """How much faster a kind is with speculation, by requests in flight.

    Attributes:
        kind: The kind.
        points: In flight, and TPOT plain / spec there.
        crossing: In flight where the gain ends: 0 where there never was one, infinite where it had
            not ended at the highest load; with its interval.
    """

    kind: str
    points: Sequence[tuple[int, Interval]]
    crossing: Interval

    @property
    def gains(self) -> Gains:
        """The points without their intervals."""
        return [(load, gain.value) for load, gain in self.points]

    @property
    def words(self) -> str:
        """The crossing in words."""
        highest = self.points[-1][0]
        if isinf(self.crossing.value):
            said = f"still gains at {highest} in flight"
        elif self.crossing.value == 0.0:
            return f"{self.kind} gains nothing, even at {self.points[0][0]} in flight"
        else:
            said = f"gains up to {self.crossing.value:.1f} in flight"
        low, high = (
            f"over {highest}" if isinf(each) else f"{each:.1f}" for each in self.crossing[1:]
        )
        range_ = low if low == high else f"{low} to {high}"
        return f"{self.kind} {said} (95 %: {range_})"


def curves(runs: Sequence[Run], *, spec: str, plain: str) -> list[Curve]:
    """Return the curve of each kind that both were measured with by itself."""
    steps = {run.step.name: run.step for run in runs if run.step.kind}
    kinds = dict.fromkeys(step.kind for step in steps.values())
    found = (_curve(kind, runs, list(steps.values()), spec, plain) for kind in kinds)
    return [curve for curve in found if curve is not None]


def _curve(
    kind: str, runs: Sequence[Run], steps: Sequence[Step], spec: str, plain: str
) -> Curve | None:
    loads, pairs = [], []
    for step in sorted((each for each in steps if each.kind == kind), key=lambda s: s.in_flight):
        pair = [tpots(runs, step.name, target) for target in (spec, plain)]
        if min(map(len, pair)) >= FEWEST:
            loads.append(step.in_flight)
            pairs.append(pair)
    if not loads:
        return None
    points = [
        (load, gain)
        for load, (ours, theirs) in zip(loads, pairs, strict=True)
        if (gain := faster(ours, theirs)) is not None
    ]
    logs = [[log(value) for value in side] for pair in pairs for side in pair]

    def crossing(*sides: Sequence[float]) -> float:
        means = [float(np.mean(side)) for side in sides]
        ratios = (exp(means[at + 1] - means[at]) for at in range(0, len(means), 2))
        return where(list(zip(loads, ratios, strict=True)))

    _, drawn = of_statistic(crossing, *logs, resamples=RESAMPLES)
    low, high = _percentiles([each for each in drawn if each is not None])
    seen = where([(load, gain.value) for load, gain in points])
    return Curve(kind=kind, points=points, crossing=Interval(seen, low, high))


def where(points: Gains) -> float:
    """Return where a gain ends; 0 where there is none at first, infinity where it does not end."""
    if points[0][1] <= 1.0:
        return 0.0
    at = crossover(points)
    return inf if at is None else at


def _percentiles(values: Sequence[float]) -> tuple[float, float]:
    """Return the 2.5th and 97.5th percentile of numbers of which some are infinite."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return ordered[round(TAILS[0] * last)], ordered[round(TAILS[1] * last)]


def figures(found: Sequence[Measures], crossings: Sequence[Curve]) -> dict[str, float]:
    """Return the numbers that `--fail-if` can ask for."""
    return dict(_figures(found, crossings))


def _figures(found: Sequence[Measures], crossings: Sequence[Curve]) -> Iterator[tuple[str, float]]:
    yield "failed", float(sum(each.failed for each in found))
    for each in found:
        if each.step.kind:
            continue
        at = f"{each.target}.{each.step.name.replace(' ', '-')}"
        yield f"goodput.{at}", each.goodput
        for name, values in each.latency_s.items():
            for share, value in zip(SHARES, values, strict=True):
                yield f"{name.lower()}_p{share * 100:.0f}_ms.{at}", 1000.0 * value
    for curve in crossings:
        if not isinf(curve.crossing.value):
            yield f"crossover.{curve.kind}", curve.crossing.value
        for load, gain in curve.points:
            yield f"ratio.{curve.kind}.x{load}", gain.value
