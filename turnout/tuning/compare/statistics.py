"""What the rows say: latencies of each arm, and arms against each other with intervals."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from statistics import fmean

from turnout.simulation.statistics import Interval
from turnout.tuning.compare.protocol import ARMS, Protocol
from turnout.tuning.compare.rows import Row

METRICS = {"tpot_s": "TPOT", "ttft_s": "TTFT", "e2e_s": "E2E"}
"""Latencies of a row, and what they are called."""

BLOCK = 10
"""Consecutive arrivals that are resampled together, since requests that run side by side are not
independent; the cube root of 240, the usual order (Künsch 1989), is 6, and 10 divides 80."""

RESAMPLES = 2000
"""Ample for a 95 % interval (Efron and Tibshirani 1993, 13.3: at least 1000)."""

SPECULATING = frozenset(pool for arm in ARMS for pool in arm.pools) - {"plain"}


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value under which `share` (0 to 1) of `values` lie, interpolated."""
    ordered = sorted(values)
    below = int(share * (len(ordered) - 1))
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (share * (len(ordered) - 1) - below) * (
        ordered[above] - ordered[below]
    )


STATISTICS: Mapping[str, Callable[[Sequence[float]], float]] = {
    "mean": fmean,
    "p50": lambda values: percentile(values, 0.50),
    "p95": lambda values: percentile(values, 0.95),
    "p99": lambda values: percentile(values, 0.99),
}
COMPARED = ("mean", "p95")
"""The statistics that arms are compared by."""


def called(statistic: str) -> str:
    """Return what a statistic is called: P95 is the 95th percentile."""
    return statistic.replace("p", "P")


def complete(rows: Sequence[Row], protocol: Protocol) -> list[Row]:
    """Return the rows of those loads and rounds that every arm has finished."""
    arms = defaultdict(set)
    for row in rows:
        arms[row.round, row.load].add(row.arm)
    return [row for row in rows if len(arms[row.round, row.load]) == len(protocol.arms)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One arm at one load, over all rounds.

    Attributes:
        load: Name of the load.
        arm: Name of the arm.
        requests: How many were sent.
        errors: How many failed; their latencies count nowhere.
        speculating: Share that went to a server that speculates.
        latency: Seconds by metric and statistic; empty where nothing was measured.
    """

    load: str
    arm: str
    requests: int
    errors: int
    speculating: float
    latency: Mapping[str, Mapping[str, float]]


def summarise(rows: Sequence[Row]) -> Summary:
    """Return what the rows of one arm at one load (at least one) amount to."""
    latency = {metric: values for metric in METRICS if (values := _values(rows, metric))}
    return Summary(
        load=rows[0].load,
        arm=rows[0].arm,
        requests=len(rows),
        errors=sum(row.error is not None for row in rows),
        speculating=fmean(row.pool in SPECULATING for row in rows),
        latency={
            metric: {name: statistic(values) for name, statistic in STATISTICS.items()}
            for metric, values in latency.items()
        },
    )


def _values(rows: Sequence[Row], metric: str) -> list[float]:
    found = (getattr(row, metric) for row in rows if row.error is None)
    return [value for value in found if value is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """A statistic of one arm over that of another at one load; under 1 the arm is faster.

    Attributes:
        load: Name of the load.
        arm: The arm in the numerator.
        other: The arm in the denominator.
        metric: Key of `METRICS`.
        statistic: Of `COMPARED`.
        interval: The ratio.
    """

    load: str
    arm: str
    other: str
    metric: str
    statistic: str
    interval: Interval


def ratios(rows: Sequence[Row], arm: str, *, resamples: int = RESAMPLES) -> list[Ratio]:
    """Return `arm` against every other arm at one load, by a paired block bootstrap.

    Blocks of consecutive arrivals are drawn with replacement from all rounds, the same for all
    arms: what a stretch of requests or a disturbance of the machine does to all cancels out. The
    intervals are percentiles.

    Args:
        rows: Of one load, from rounds that every arm has finished.
        arm: The arm that is compared.
        resamples: How often blocks are drawn.
    """
    by_arm: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_arm[row.arm].append(row)
    if arm not in by_arm:
        return []
    draws = _draws(by_arm[arm], resamples)
    found = []
    for metric in METRICS:
        for name in COMPARED:
            drawn = {each: _drawn(by_arm[each], metric, name, draws) for each in by_arm}
            found += [
                Ratio(
                    load=rows[0].load,
                    arm=arm,
                    other=other,
                    metric=metric,
                    statistic=name,
                    interval=interval,
                )
                for other in by_arm
                if other != arm and (interval := _interval(drawn[arm], drawn[other]))
            ]
    return found


_Block = tuple[int, int]  # round, and number of the block in it


def _block(row: Row) -> _Block:
    return row.round, row.arrival // BLOCK


def _draws(rows: Sequence[Row], resamples: int) -> list[list[_Block]]:
    """The blocks themselves, then as many of them drawn with replacement."""
    blocks = sorted({_block(row) for row in rows})
    chance = Random(0)  # noqa: S311 - resampling, not a secret
    return [blocks, *(chance.choices(blocks, k=len(blocks)) for _ in range(resamples))]


def _drawn(
    rows: Sequence[Row], metric: str, name: str, draws: Sequence[Sequence[_Block]]
) -> list[float | None]:
    """A statistic in each draw; None where a draw holds no value."""
    by_block: dict[_Block, list[Row]] = defaultdict(list)
    for row in rows:
        by_block[_block(row)].append(row)
    values = {block: _values(those, metric) for block, those in by_block.items()}
    samples = ([value for block in draw for value in values[block]] for draw in draws)
    return [STATISTICS[name](sample) if sample else None for sample in samples]


def _interval(drawn: Sequence[float | None], others: Sequence[float | None]) -> Interval | None:
    """The ratio of the first draw with the percentiles of the rest; None if it isn't known."""
    pairs = zip(drawn, others, strict=True)
    first, *rest = (mine / other if mine and other else None for mine, other in pairs)
    known = [ratio for ratio in rest if ratio is not None]
    if first is None or not known:
        return None
    return Interval(first, percentile(known, 0.025), percentile(known, 0.975))
