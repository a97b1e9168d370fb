"""What the rows of cells say: each arm by itself, and arms against each other with intervals."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from turnout.simulation.arms import ORACLE
from turnout.simulation.cells import Results
from turnout.simulation.cluster import Rows
from turnout.simulation.loads import WARM_UP

Numbers = NDArray[np.float64]

BLOCK = 50
"""Consecutive arrivals that are resampled together: at 85 % load about as many run side by side,
and requests that do are not independent."""
RESAMPLES = 1000
"""Enough for a 95 % interval (Efron and Tibshirani 1993, 13.3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """Latencies that a request should keep; goodput is the share that keeps both.

    Attributes:
        ttft_s: Longest time to first token.
        tpot_s: Longest time per output token after it.
    """

    ttft_s: float = 0.5
    tpot_s: float = 0.025


class Interval(NamedTuple):
    """A number and the 95 % interval around it."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


class Place(NamedTuple):
    """Where arms are compared: on a kind of server, with a mix, at a load."""

    engine: str
    mix: str
    load: str

    def __str__(self) -> str:
        mix = "" if self.mix == "default" else f", {self.mix}"
        return f"{self.engine} at {self.load}{mix}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One arm at one place, over all seeds, warm-up left out.

    Attributes:
        arm: Its name.
        requests: How many were counted.
        e2e_s: Mean, P50 and P99 of the end-to-end latency.
        ttft_s: The same of the time to first token.
        tpot_s: The same of the time per output token after it.
        goodput: Share of requests that keep the targets.
        decision_regret: Mean of what a request really cost where it went over the least that it
            would have cost, less one.
        switches: Per 100 requests, how often one goes to another pool than the one before it of
            its class.
        explored: Share that chance alone sent.
        explored_cost: What those cost beyond the least, as a share of all costs.
        acceptance: Accepted / drafted by kind, and of all; of what was drafted.
    """

    arm: str
    requests: int
    e2e_s: tuple[float, float, float]
    ttft_s: tuple[float, float, float]
    tpot_s: tuple[float, float, float]
    goodput: float
    decision_regret: float
    switches: float
    explored: float
    explored_cost: float
    acceptance: Mapping[str, float]


ALL_KINDS = "average"


class Comparison:
    """The arms of one place, on the same requests.

    Args:
        place: Where.
        rows: By arm, its rows by seed; the same seeds for all.
        targets: For goodput.
    """

    def __init__(self, place: Place, rows: Mapping[str, Sequence[Rows]], targets: Targets) -> None:
        self.place = place
        self._rows = rows
        self.summaries = {arm: _summary(arm, each, targets) for arm, each in rows.items()}
        first = next(iter(rows.values()))
        self._length = len(first[0].e2e_s)
        self.seeds = len(first)

    def mean(self, arm: str) -> float:
        """Return the mean end-to-end latency of an arm, s."""
        return self.summaries[arm].e2e_s[0]

    def best(self, among: Sequence[str]) -> str | None:
        """Return the arm of `among` with the least mean end-to-end latency, None without any."""
        present = [arm for arm in among if arm in self._rows]
        return min(present, key=self.mean, default=None)

    def ratio(self, arm: str, other: str, *, after: int | None = None) -> Interval | None:
        """Return mean end-to-end latency over that of another arm, None where one is missing.

        Args:
            arm: In the numerator.
            other: In the denominator.
            after: Leaves out this many of a cell's first requests; the warm-up by default.
        """
        if arm not in self._rows or other not in self._rows:
            return None
        skipped = round(WARM_UP * self._length) if after is None else after
        if skipped >= self._length:
            return None
        mine, theirs = (e2e_s(self._rows[name], skipped) for name in (arm, other))
        return ratio_of_means(mine, theirs)

    def regret(self, arm: str) -> Interval | None:
        """Return mean end-to-end latency over the oracle's."""
        return self.ratio(arm, ORACLE)


def comparisons(results: Results, arms: Sequence[str], targets: Targets) -> list[Comparison]:
    """Return every place's comparison, of those seeds that all `arms` have been through."""
    found: dict[Place, dict[int, dict[str, Rows]]] = defaultdict(lambda: defaultdict(dict))
    for cell, rows in results.items():
        found[Place(cell.engine, cell.mix, cell.load)][cell.seed][cell.arm] = rows
    made = []
    for place, seeds in found.items():
        whole = [each for _, each in sorted(seeds.items()) if len(each) == len(arms)]
        if whole:
            by_arm = {arm: [each[arm] for each in whole] for arm in arms}
            made.append(Comparison(place, by_arm, targets))
    return made


def e2e_s(rows: Sequence[Rows], skipped: int) -> Numbers:
    """Return end-to-end latencies without the first `skipped`, s, a line per seed."""
    return np.array([each.e2e_s[skipped:] for each in rows], dtype=np.float64)


def ratio_of_means(mine: Numbers, theirs: Numbers) -> Interval:
    """Return the ratio of two means, of values with a line per seed.

    Blocks of consecutive arrivals are drawn with replacement within each seed, the same for both,
    so that what is alike for both cancels out.
    """
    low, high = np.quantile(_resampled(mine) / _resampled(theirs), (0.025, 0.975))
    return Interval(float(mine.mean() / theirs.mean()), float(low), float(high))


def _resampled(values: Numbers) -> Numbers:
    """Return the mean of each resampling of `values` (a line per seed), in blocks."""
    seeds, length = values.shape
    size = min(BLOCK, length)
    blocks = length // size
    means = values[:, : blocks * size].reshape(seeds, blocks, size).mean(axis=2)
    random = np.random.default_rng(0)
    drawn = random.integers(blocks, size=(RESAMPLES, seeds, blocks))
    taken = np.take_along_axis(means[np.newaxis], drawn, axis=2)
    return np.asarray(taken.mean(axis=(1, 2)))


def _summary(arm: str, rows: Sequence[Rows], targets: Targets) -> Summary:
    skipped = round(WARM_UP * len(rows[0].e2e_s))

    def column(read: Callable[[Rows], Sequence[float]]) -> Numbers:
        return np.concatenate([np.asarray(read(each), np.float64)[skipped:] for each in rows])

    ttft_s, tpot_s = column(lambda r: r.ttft_s), column(lambda r: r.tpot_s)
    cost_s, least_s = column(lambda r: r.cost_s), column(lambda r: r.least_s)
    explored = column(lambda r: r.randomised) > 0.0
    kept = (ttft_s <= targets.ttft_s) & (tpot_s <= targets.tpot_s)
    drafts = column(lambda r: r.accepted), column(lambda r: r.drafted)
    return Summary(
        arm=arm,
        requests=len(ttft_s),
        e2e_s=_spread(column(lambda r: r.e2e_s)),
        ttft_s=_spread(ttft_s),
        tpot_s=_spread(tpot_s),
        goodput=float(kept.mean()),
        decision_regret=float((cost_s / least_s).mean()) - 1.0,
        switches=100.0 * float(np.mean([_switched(each, skipped) for each in rows])),
        explored=float(explored.mean()),
        explored_cost=float((cost_s - least_s)[explored].sum() / cost_s.sum()),
        acceptance=dict(_acceptance(column(lambda r: r.kind), *drafts, rows[0].kinds)),
    )


def _spread(values: Numbers) -> tuple[float, float, float]:
    middle, tail = np.quantile(values, (0.5, 0.99))
    return float(values.mean()), float(middle), float(tail)


def _switched(rows: Rows, skipped: int) -> float:
    """Return the share of requests on another pool than the one before them of their class."""
    classes, pools = (np.asarray(each)[skipped:] for each in (rows.traffic_class, rows.pool))
    order = np.argsort(classes, kind="stable")
    same = classes[order][1:] == classes[order][:-1]
    moved = pools[order][1:] != pools[order][:-1]
    return float((same & moved).sum()) / len(pools)


def _acceptance(
    kind: Numbers, accepted: Numbers, drafted: Numbers, kinds: Sequence[str]
) -> Iterator[tuple[str, float]]:
    """Yield accepted / drafted of each kind that was drafted for, then of all."""
    for number, name in enumerate(kinds):
        mine = kind == number
        if total := drafted[mine].sum():
            yield name, float(accepted[mine].sum() / total)
    if total := drafted.sum():
        yield ALL_KINDS, float(accepted.sum() / total)
