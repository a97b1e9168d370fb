"""How long an engine step takes with `b` requests in flight, learnt from the gaps between chunks.

One chunk of a stream is one engine step, so the gap between two of them is a step's time, known
one step later: no loop through finished requests, whose delay makes routers swing. Gaps go into
bins by in-flight count (1, 2 to 3, 4 to 7, ... 256 and more), as faded histograms per backend; a
bin's step time is a quantile of its own, which odd gaps don't move. Those in which a prompt may
have been read hardly count. A pool's curve is made of the means of its backends' bins: a line
through them, which fills what was never seen and says what one more request adds, then each bin as
far as its weight goes, then made monotone. A quick factor on top follows what a long memory is
slow to see.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain, islice
from math import exp, exp2, floor, log2
from operator import le
from typing import NamedTuple, Self

from routing.fading import fresh
from routing.pools import Pool

KNOTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Requests in flight at the lower edge of each bin, where the curve has its values."""
MEMORY_STEPS = 300.0
"""Steps that a bin remembers: 3 s of an 8B model on an H100, 12 s of a small one on a CPU."""
PER_OCTAVE = 32
"""Buckets for a doubling, each 2 % wide."""
QUANTILE = 0.4
"""Somewhat under the median: more gaps are too long than too short. A few are next to nothing, of
chunks that were read at once."""
STALLED_SHARE = 0.2
"""What a gap counts in which a prompt may have been read. Near saturation those are most gaps."""
_SHORTEST_S, LONGEST_S = 1e-9, 3600.0
"""No step is so short or so long; the ratio of two between them cannot overflow."""
_GROWN = 1e9
_NEGLIGIBLE = 1e-6

QUICK_STEPS = 40.0
"""Steps that the quick factor remembers."""
QUICK_HALF_LIFE_S = 10.0
"""An idle pool's quick factor fades: what slowed it may be over."""
HALF_LIFE_S = 1800.0
"""Bins fade by the clock too."""
MEASURED_STEPS = 10.0
"""Weight of all bins, in steps, from which a pool counts as measured."""

TOKEN_SHARE = 0.003
"""What a token adds to a step, as a share of an idle one, before it was seen: .003 on H100s (8B
and 70B, arXiv 2601.11580), .025 on a CPU."""
REQUEST_SHARE = 0.005
"""What reading a request's context adds likewise: 850 tokens of an 8B model on an H100."""
DRAFTING_SHARE = 0.4
"""Share of steps in which a method that copies drafts (SpecDecode-Bench traces: .2 to .8)."""
_LINE_SPREAD = 4.0, 0.5
"""The assumed slope counts as much as a bin of `_LINE_STEPS` this many requests off the mean, and
this share of the mean."""
_LEAST_SLOPE = 0.25
"""The slope is at least this share of the assumed one: no request is free."""
_LINE_STEPS = 20.0
"""Steps after which a bin counts as much as the line; also the line's most for one bin is ten of
these, so that a busy bin does not drown the others."""


class StepCurve(NamedTuple):
    """A pool's step time over its in-flight count.

    Attributes:
        values: Seconds at each of `KNOTS`, rising.
        added: What one more request adds there, s: the slope from half as many to twice as many,
            since neighbouring knots are noisy.
        quick: Factor of the present on all of it.
    """

    values: tuple[float, ...]
    added: tuple[float, ...]
    quick: float

    def at(self, in_flight: float) -> tuple[float, float]:
        """Return the step time with `in_flight` requests, and what one more adds, s.

        Below 1 as with one; beyond the last knot the slope there goes on.
        """
        values, added, quick = self.values, self.added, self.quick
        index = bisect_right(KNOTS, in_flight)
        if index == 0:
            return values[0] * quick, added[0] * quick
        if index == len(KNOTS):
            beyond = in_flight - KNOTS[-1]
            return (values[-1] + added[-1] * beyond) * quick, added[-1] * quick
        low, high = KNOTS[index - 1], KNOTS[index]
        share = (in_flight - low) / (high - low)
        before = index - 1
        return (
            (values[before] + share * (values[index] - values[before])) * quick,
            (added[before] + share * (added[index] - added[before])) * quick,
        )


@dataclass(slots=True)
class GapHistogram:
    """Gaps at about one in-flight count, by the logarithm of their length; additive.

    Attributes:
        counts: Weight in steps by bucket; bucket n holds gaps from 2 ** (n / `PER_OCTAVE`) s.
        crowd: Sum of the in-flight counts, weighted.
        seen_at: When a gap was last added (s, monotonic).
        memory: Steps that it remembers.
    """

    counts: dict[int, float] = field(default_factory=dict)
    crowd: float = 0.0
    seen_at: float = 0.0
    memory: float = MEMORY_STEPS
    _growth: float = 1.0
    """What a step weighs now. Instead of fading what is there, what comes weighs more."""
    _total: float = field(init=False)
    _quantile: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._total = sum(self.counts.values())

    def add(self, gap_s: float, *, in_flight: int, weight: float, now: float) -> None:
        """Add a gap that weighs `weight` steps, and not more than are remembered."""
        weight = min(weight, self.memory)
        self._growth *= exp(weight / self.memory)
        grown, bucket = weight * self._growth, floor(log2(gap_s) * PER_OCTAVE)
        self.counts[bucket] = self.counts.get(bucket, 0.0) + grown
        self.crowd += grown * in_flight
        self.seen_at = now
        self._total += grown
        self._quantile = None
        if self._growth > _GROWN:
            self.scale(1.0)

    def scale(self, share: float) -> None:
        """Keep `share` of the evidence, and forget buckets that hold next to nothing."""
        factor = share / self._growth
        self.counts = {b: w * factor for b, w in self.counts.items() if w * factor > _NEGLIGIBLE}
        self.crowd *= factor
        self._growth = 1.0
        self._total, self._quantile = sum(self.counts.values()), None

    def merge(self, other: "GapHistogram") -> None:
        """Add another worker's; the older of both fades to the age of the newer."""
        now = max(self.seen_at, other.seen_at)
        self.scale(fresh(self.seen_at, now, HALF_LIFE_S))
        share = fresh(other.seen_at, now, HALF_LIFE_S) / other._growth
        for bucket, weight in other.counts.items():
            self.counts[bucket] = self.counts.get(bucket, 0.0) + share * weight
        self.crowd += share * other.crowd
        self.seen_at = now
        self._total, self._quantile = sum(self.counts.values()), None

    @classmethod
    def of(cls, numbers: Sequence[float], *, memory: float = MEMORY_STEPS) -> Self:
        """Return one that says what another says by its `numbers`; its gaps are all alike."""
        weight, crowd, quantile, seen_at = numbers
        if not weight:
            return cls(seen_at=seen_at, memory=memory)
        bucket = floor(log2(quantile) * PER_OCTAVE)
        made = cls(counts={bucket: weight}, crowd=crowd * weight, seen_at=seen_at, memory=memory)
        made._quantile = quantile
        return made

    @property
    def numbers(self) -> tuple[float, float, float, float]:
        """Weight, mean in-flight count, quantile (s), and when a gap was last added."""
        if not self.counts:
            return 0.0, 0.0, 0.0, self.seen_at
        return self.weight, self.mean_crowd, self.quantile, self.seen_at

    @property
    def weight(self) -> float:
        """Steps seen, faded."""
        return self._total / self._growth

    @property
    def mean_crowd(self) -> float:
        """The mean in-flight count; there must be some gaps."""
        return self.crowd / self._total

    @property
    def quantile(self) -> float:
        """The quantile of the gaps that stands for all of them; there must be some."""
        if self._quantile is None:
            self._quantile = self._found_quantile()
        return self._quantile

    def _found_quantile(self) -> float:
        buckets = sorted(self.counts)
        upto = list(accumulate(self.counts[bucket] for bucket in buckets))
        wanted = QUANTILE * upto[-1]
        at = bisect_left(upto, wanted)
        weight = self.counts[buckets[at]]
        within = (wanted - upto[at] + weight) / weight
        return exp2((buckets[at] + within) / PER_OCTAVE)


@dataclass(slots=True)
class StepSums:
    """One backend's bins.

    Attributes:
        bins: Gaps by in-flight count.
        recent: The latest gaps over what the pool's curve says, as factors.
        curve: The pool's curve when last asked for.
    """

    bins: list[GapHistogram] = field(default_factory=lambda: [GapHistogram() for _ in KNOTS])
    recent: GapHistogram = field(default_factory=lambda: GapHistogram(memory=QUICK_STEPS))
    curve: StepCurve | None = None

    def add(self, gap_s: float, *, in_flight: int, now: float, weight: float) -> None:
        """Add a gap that weighs `weight` steps."""
        index = min(in_flight.bit_length(), len(KNOTS)) - 1
        self.bins[index].add(gap_s, in_flight=in_flight, weight=weight, now=now)
        if self.curve is not None:
            factor = gap_s / self.curve.at(in_flight)[0]
            self.recent.add(factor, in_flight=in_flight, weight=weight, now=now)

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Self:
        """Return one that says what another says by its `numbers`."""
        *bins, recent = (numbers[at : at + 4] for at in range(0, 4 * len(KNOTS) + 4, 4))
        return cls(
            bins=[GapHistogram.of(each) for each in bins],
            recent=GapHistogram.of(recent, memory=QUICK_STEPS),
        )

    @property
    def numbers(self) -> tuple[float, ...]:
        """What it says, in short: four numbers of each bin, and of the latest gaps."""
        return tuple(chain.from_iterable(each.numbers for each in (*self.bins, self.recent)))

    @property
    def stamp(self) -> tuple[float, float]:
        """What is another pair whenever a gap was added: weight, and when (s, monotonic)."""
        return sum(each.weight for each in self.bins), max(each.seen_at for each in self.bins)

    def merge(self, other: "StepSums") -> None:
        """Add another worker's."""
        for mine, theirs in zip(self.bins, other.bins, strict=True):
            mine.merge(theirs)
        self.recent.merge(other.recent)


class StepBook:
    """Step times of every backend seen, and the curves of their pools.

    Attributes:
        sums: Its bins, by pool and backend.
        elsewhere: What other workers say of theirs, by pool and any name.
    """

    def __init__(self) -> None:
        self.sums: dict[tuple[str, str], StepSums] = {}
        self.elsewhere: dict[tuple[str, str], StepSums] = {}

    def add(
        self,
        pool: str,
        backend: str,
        gap_s: float,
        *,
        in_flight: int,
        now: float,
        count: int = 1,
        stalled: bool = False,
    ) -> None:
        """Add the gap between two chunks of a stream.

        Args:
            pool: Its pool's name.
            backend: Its backend's name.
            gap_s: Seconds; what is no step's time, such as an hour, is left out.
            in_flight: Requests on the backend, at least 1.
            now: Seconds, monotonic.
            count: Streams that showed this same gap.
            stalled: Whether a prompt may have been read in it: it counts next to nothing then,
                unless there is nothing else.
        """
        if not _SHORTEST_S < gap_s < LONGEST_S or in_flight < 1:
            return
        sums = self.sums.get((pool, backend))
        if sums is None:
            sums = self.sums[pool, backend] = StepSums()
        weight = count / in_flight * (STALLED_SHARE if stalled else 1.0)
        sums.add(gap_s, in_flight=in_flight, now=now, weight=weight)

    def curve(self, pool: Pool, *, now: float) -> StepCurve | None:
        """Return `pool`'s curve at `now`; None while it is not measured."""
        mine = [
            sums
            for seen in (self.sums, self.elsewhere)
            for (name, _), sums in seen.items()
            if name == pool.name
        ]
        fitted = _fitted(dict(_points(mine, now)), pool)
        for sums in mine:
            sums.curve = fitted
        if fitted is None:
            return None
        return fitted._replace(quick=_quick([sums.recent for sums in mine], now))

    def merge(self, other: "StepBook") -> None:
        """Add what another worker has seen."""
        for key, sums in other.sums.items():
            self.sums.setdefault(key, StepSums()).merge(sums)

    def forget_backend(self, pool: str, backend: str) -> None:
        """Drop what was learnt about one backend of `pool`."""
        self.sums.pop((pool, backend), None)

    def forget(self, pool: str) -> None:
        """Drop what was learnt about `pool`."""
        self.sums = {key: sums for key, sums in self.sums.items() if key[0] != pool}


def request_share(pool: Pool) -> float:
    """Return what a request is assumed to add to a step of `pool`, as a share of an idle one."""
    drafting = 1.0 if pool.speculation.drafts_every_step else DRAFTING_SHARE
    return REQUEST_SHARE + TOKEN_SHARE * (1.0 + drafting * pool.k)


class _Point(NamedTuple):
    """What several histograms say together: means over their weights."""

    crowd: float
    step_s: float
    weight: float


def _together(histograms: Iterable[GapHistogram], now: float, half_life_s: float) -> _Point | None:
    """Return what `histograms` say at `now`; None if it is next to nothing."""
    crowd = step_s = total = 0.0
    for gaps in histograms:
        if not gaps.counts:
            continue
        weight = gaps.weight * fresh(gaps.seen_at, now, half_life_s)
        if weight > _NEGLIGIBLE:
            crowd += weight * gaps.mean_crowd
            step_s += weight * gaps.quantile
            total += weight
    return _Point(crowd / total, step_s / total, total) if total else None


def _quick(recent: Iterable[GapHistogram], now: float) -> float:
    """Return the factor of the present; near 1 where little is recent."""
    if (point := _together(recent, now, QUICK_HALF_LIFE_S)) is None:
        return 1.0
    trust = point.weight / (point.weight + QUICK_STEPS / 4)
    return float(point.step_s**trust)


def _fitted(points: Mapping[int, _Point], pool: Pool) -> StepCurve | None:
    if sum(point.weight for point in points.values()) < MEASURED_STEPS:
        return None
    start, slope = _line(points, request_share(pool))
    values, weights = [], []
    for index, knot in enumerate(KNOTS):
        value, weight = start + slope * knot, _LINE_STEPS
        if (point := points.get(index)) is not None:
            seen = point.step_s + slope * (knot - point.crowd)
            value = (value * weight + seen * point.weight) / (weight + point.weight)
            weight += point.weight
        values.append(value)
        weights.append(weight)
    values = rising(values, weights)
    return StepCurve(tuple(values), tuple(_added(values, slope)), 1.0)


def _added(values: Sequence[float], slope: float) -> Iterator[float]:
    """Yield the slope about each knot; the line's own beyond the last."""
    ends = [2.0 * values[0] - values[1], *values, values[-1] + slope * KNOTS[-1]]
    knots = [0, *KNOTS, 2 * KNOTS[-1]]
    for index in range(1, len(KNOTS) + 1):
        rise = ends[index + 1] - ends[index - 1]
        yield rise / (knots[index + 1] - knots[index - 1])


def _points(backends: Sequence[StepSums], now: float) -> Iterator[tuple[int, _Point]]:
    """Yield what the backends' bins say, by number."""
    for index in range(len(KNOTS)):
        point = _together((sums.bins[index] for sums in backends), now, HALF_LIFE_S)
        if point is not None:
            yield index, point


def _line(points: Mapping[int, _Point], share: float) -> tuple[float, float]:
    """Return intercept and slope of the line through the bins; it starts positive and rises."""
    most = 10.0 * _LINE_STEPS
    weighed = [(p.crowd, p.step_s, min(p.weight, most)) for p in points.values()]
    total = sum(weight for *_, weight in weighed)
    crowd = sum(x * weight for x, _, weight in weighed) / total
    step_s = sum(y * weight for _, y, weight in weighed) / total
    assumed = share * step_s / (1.0 + share * crowd)
    requests, share_of_mean = _LINE_SPREAD
    prior = _LINE_STEPS * (requests + share_of_mean * crowd) ** 2
    slope = (
        sum(weight * (x - crowd) * (y - step_s) for x, y, weight in weighed) + prior * assumed
    ) / (sum(weight * (x - crowd) ** 2 for x, _, weight in weighed) + prior)
    slope = min(max(slope, _LEAST_SLOPE * assumed), 0.9 * step_s / crowd)
    return step_s - slope * crowd, slope


def rising(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Return the nearest rising sequence to `values`: pool adjacent violators."""
    if all(map(le, values, islice(values, 1, None))):
        return list(values)
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(values, weights, strict=True):
        block = value, weight, 1
        while blocks and blocks[-1][0] > block[0]:
            block = _pooled(blocks.pop(), block)
        blocks.append(block)
    return [value for value, _, size in blocks for _ in range(size)]


def _pooled(
    one: tuple[float, float, int], other: tuple[float, float, int]
) -> tuple[float, float, int]:
    weight = one[1] + other[1]
    return (one[0] * one[1] + other[0] * other[1]) / weight, weight, one[2] + other[2]
