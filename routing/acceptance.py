"""Tokens per step of each traffic class on each pool, learnt from requests as sums that fade.

`tau` is tokens per engine step, all steps counted: (N - 1) / (N - 1 - A) for a request with N
completion tokens (the first comes from prefill) of which A are accepted drafts; `tau - 1` is the
accepted tokens per step. The acceptance rate is accepted / drafted, which is what vLLM's counters
and the rules of practice mean by it.

A class seldom has enough requests of its own, so three levels share what they saw: pool and model,
task, class. Each compares the tokens that were accepted with those that were expected
(`routing.expectations`), and passes the factor down to the next:

    pool    factor = (accepted + w) / (expected + w)
    task    factor = (accepted + n0 m0 factor) / (expected + n0 m0)
    class   accepted per step ~ Gamma(accepted + n1 m0 factor, steps + n1)

with m0 the class's expectation, n0 its worth in steps, n1 `CLASS_STEPS`. Steps of one request are
alike, so the Gamma is widened by 1 + (steps per request) / `ALIKE`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import erfc, inf, sqrt
from statistics import NormalDist
from typing import ClassVar, Self

from routing.drift import Drift
from routing.expectations import Expectation, expectation
from routing.fading import Fading, fresh
from routing.pools import Pool, Speculation
from routing.tasks import TaskType
from routing.traffic import TemperatureBucket, TrafficClass

MEMORY = 0.98
"""What a request leaves of the sums before it: a memory of about 50 requests of the class."""
HALF_LIFE_S = 1800.0
"""Evidence fades by the clock too, so that a class judged once is measured again."""

POOL_TOKENS = 60.0
"""Expected tokens after which a pool's own factor counts as much as none (w above)."""
CLASS_STEPS = 60.0
"""Steps after which a class's own evidence counts as much as its task's (n1 above)."""
ALIKE = {True: 12.0, False: 6.0}
"""Steps of one request that tell as much as its class does, for methods that draft at every step
and for those that copy (SpecDecode-Bench traces, chat: EAGLE-3 12, n-gram 6)."""
AFTER_DRIFT = 0.1
"""What an alarm leaves of a class's evidence; its mean stays."""

SUPPOSED = 0.5
"""What a supposed request counts beside one that was served: its tokens are only alike."""
BELIEF_S = 2.0
"""A belief is worked out anew this often, and when its own class shows something."""

_RARE = 1e-6
"""A draw is taken for no rarer than this: at 0 the normal distribution has no value."""
_z = NormalDist().inv_cdf
_SQRT_2 = sqrt(2.0)


@dataclass(slots=True)
class AcceptanceSums(Fading):
    """Decayed sums of one node on one pool; additive over workers.

    Attributes:
        requests: Finished requests.
        steps: Engine steps, prefill left out.
        accepted: Accepted draft tokens.
        drafted: Draft tokens, where the servers tell.
        expected: Tokens that the same steps were expected to accept.
        seen_at: When it was last added to (s, monotonic).
    """

    requests: float = 0.0
    steps: float = 0.0
    accepted: float = 0.0
    drafted: float = 0.0
    expected: float = 0.0
    seen_at: float = 0.0

    _sums: ClassVar = ("requests", "steps", "accepted", "drafted", "expected")

    def add(
        self, *, steps: float, accepted: float, drafted: float, expected: float, now: float
    ) -> None:
        """Fold one finished request in at `now` (s, monotonic)."""
        self.scale(MEMORY)
        self.merge(
            AcceptanceSums(
                requests=1.0,
                steps=steps,
                accepted=accepted,
                drafted=drafted,
                expected=expected,
                seen_at=now,
            )
        )

    def merge(self, other: Self, *, half_life_s: float = HALF_LIFE_S) -> None:
        """Add what another worker has seen; the older of both fades to the age of the newer."""
        Fading.merge(self, other, half_life_s=half_life_s)

    @property
    def rate(self) -> float:
        """Accepted / drafted, in [0, 1]; 0 when nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else 0.0


_UNSEEN = AcceptanceSums()


def steps_of(tokens: int, accepted: int, k: int) -> int:
    """Return the engine steps that decoded `tokens`, some of them accepted drafts.

    Each step yields one token and the drafts it accepts: N - 1 - A. The last one may have accepted
    more than the answer had room for, which vLLM counts too; no step yields more than k + 1.

    Args:
        tokens: Tokens after the first, N - 1; at least 1.
        accepted: Draft tokens accepted, as the server counts them.
        k: Draft tokens per step; 0 while unknown.
    """
    least = -(-tokens // (k + 1)) if k else 1
    return max(least, tokens - accepted)


@dataclass(frozen=True, slots=True, kw_only=True)
class Acceptance:
    """What is believed of a class on a pool.

    Attributes:
        tau: Tokens per engine step, >= 1.
        sd: Standard deviation of that belief.
        steps: Engine steps of the class itself behind it; 0 where only its relatives were seen.
    """

    tau: float
    sd: float
    steps: float
    _middle: float = field(init=False, repr=False, compare=False, default=1.0)
    _slope: float = field(init=False, repr=False, compare=False, default=0.0)
    """The cube root of the Gamma over its mean is about normal: `_middle + _slope z` (Wilson and
    Hilferty, 1931)."""

    def __post_init__(self) -> None:
        if self.sd:
            shape = ((self.tau - 1.0) / self.sd) ** 2
            object.__setattr__(self, "_middle", 1.0 - 1.0 / (9.0 * shape))
            object.__setattr__(self, "_slope", 1.0 / (3.0 * sqrt(shape)))

    def drawn(self, draw: float) -> float:
        """Return a tau that the belief allows, for a `draw` in [0, 1): Thompson sampling."""
        if not self.sd:
            return self.tau
        if not _RARE < draw < 1.0 - _RARE:
            draw = _RARE if draw < 0.5 else 1.0 - _RARE
        root = self._middle + self._slope * _z(draw)
        return 1.0 + (self.tau - 1.0) * root**3 if root > 0.0 else 1.0

    def chance_above(self, tau: float) -> float:
        """Return the probability that `drawn` gives more than `tau`, where it is not certain."""
        if tau <= 1.0:
            return 1.0
        root = ((tau - 1.0) / (self.tau - 1.0)) ** (1.0 / 3.0)
        return 0.5 * erfc((root - self._middle) / self._slope / _SQRT_2)


WITHOUT_DRAFTS = Acceptance(tau=1.0, sd=0.0, steps=0.0)
"""Of every class on a pool that does not speculate."""

_Key = tuple[str, str, TaskType | None, TemperatureBucket | None]


class AcceptanceBook:
    """The sums of every (pool, class) seen, and of what they have in common.

    Args:
        expected: What a class accepts before it was seen.
    """

    def __init__(
        self,
        expected: Callable[
            [Speculation, int, TaskType, TemperatureBucket], Expectation
        ] = expectation,
    ) -> None:
        self._expected = expected
        self._beliefs: dict[tuple[str, TrafficClass], tuple[float, Acceptance]] = {}
        self.sums: dict[_Key, AcceptanceSums] = {}
        self._drift: dict[_Key, Drift] = {}

    def add(
        self,
        pool: Pool,
        traffic_class: TrafficClass,
        *,
        tokens: int,
        accepted: int,
        drafted: int,
        now: float,
    ) -> None:
        """Fold one finished request of `traffic_class` on `pool` in.

        Args:
            pool: A pool that speculates.
            traffic_class: Its class.
            tokens: Tokens decoded, N - 1; nothing is learnt from none.
            accepted: Those of them that were accepted drafts.
            drafted: Draft tokens proposed; 0 where the server does not tell.
            now: Seconds, monotonic.
        """
        if tokens <= 0:
            return
        steps = steps_of(tokens, accepted, pool.k)
        self._watch(pool, traffic_class, steps=steps, accepted=accepted, now=now)
        self._add(pool, traffic_class, steps, accepted, drafted, now)

    def suppose(
        self,
        pool: Pool,
        traffic_class: TrafficClass,
        *,
        steps: float,
        accepted: float,
        drafted: float,
        now: float,
    ) -> None:
        """Fold in what `pool` would have accepted of a request that it did not serve."""
        share = SUPPOSED
        self._add(pool, traffic_class, share * steps, share * accepted, share * drafted, now)

    def _add(
        self,
        pool: Pool,
        traffic_class: TrafficClass,
        steps: float,
        accepted: float,
        drafted: float,
        now: float,
    ) -> None:
        m0, _ = self._expected(pool.speculation, pool.k, traffic_class.task, traffic_class.bucket)
        self._beliefs.pop((pool.name, traffic_class), None)
        for key in _path(pool, traffic_class):
            self.sums.setdefault(key, AcceptanceSums(seen_at=now)).add(
                steps=steps, accepted=accepted, drafted=drafted, expected=steps * m0, now=now
            )

    def _watch(
        self, pool: Pool, traffic_class: TrafficClass, *, steps: int, accepted: int, now: float
    ) -> None:
        """Drop most of a class's evidence when its requests keep being unlike it."""
        *_, key = _path(pool, traffic_class)
        drift = self._drift.setdefault(key, Drift())
        sums = self.sums.get(key)
        if drift.alarms(accepted=accepted, steps=steps, now=now) and sums is not None:
            sums.scale(AFTER_DRIFT)

    def believed(self, pool: Pool, traffic_class: TrafficClass, *, now: float) -> Acceptance:
        """Return what is believed of `traffic_class` on `pool` at `now` (s, monotonic).

        What its relatives have shown in the last `BELIEF_S` may be missing.
        """
        if not pool.speculates:
            return WITHOUT_DRAFTS
        key = pool.name, traffic_class
        kept = self._beliefs.get(key)
        if kept is None or not 0.0 <= now - kept[0] < BELIEF_S:
            kept = self._beliefs[key] = now, self._believed(pool, traffic_class, now)
        return kept[1]

    def _believed(self, pool: Pool, traffic_class: TrafficClass, now: float) -> Acceptance:
        nodes = [self.sums.get(key, _UNSEEN) for key in _path(pool, traffic_class)]
        m0, n0 = self._expected(pool.speculation, pool.k, traffic_class.task, traffic_class.bucket)
        factor = 1.0
        for node, weight in zip(nodes, (POOL_TOKENS, n0 * m0), strict=False):
            share = fresh(node.seen_at, now, HALF_LIFE_S)
            factor = (share * node.accepted + weight * factor) / (share * node.expected + weight)
        of_class = nodes[-1]
        share = fresh(of_class.seen_at, now, HALF_LIFE_S)
        shape = share * of_class.accepted + CLASS_STEPS * m0 * factor
        steps = share * of_class.steps + CLASS_STEPS
        each = of_class.steps / of_class.requests if of_class.requests else 0.0
        widened = 1.0 + each / ALIKE[pool.speculation.drafts_every_step]
        return Acceptance(
            tau=1.0 + shape / steps,
            sd=sqrt(shape * widened) / steps,
            steps=share * of_class.steps,
        )

    def of(self, pool: Pool, traffic_class: TrafficClass, *, now: float) -> AcceptanceSums:
        """Return what was seen of the class itself, as it counts at `now`."""
        *_, key = _path(pool, traffic_class)
        faded = AcceptanceSums(seen_at=now)
        if (sums := self.sums.get(key)) is not None:
            faded.merge(sums)
        return faded

    def unseen_s(self, pool: Pool, traffic_class: TrafficClass, *, now: float) -> float:
        """Return seconds since the class was last seen on `pool`; infinite if it never was."""
        sums = self.sums.get((pool.name, *traffic_class))
        return inf if sums is None else now - sums.seen_at

    def merge(self, other: "AcceptanceBook") -> None:
        """Add what another worker has seen."""
        for key, sums in other.sums.items():
            self.sums.setdefault(key, AcceptanceSums(seen_at=sums.seen_at)).merge(sums)
        self.renew()

    def renew(self) -> None:
        """Believe anew when next asked: sums have come from elsewhere."""
        self._beliefs.clear()

    def forget(self, pool: str) -> None:
        """Drop what was learnt about `pool`: its draft may be another one."""
        self.sums = {key: sums for key, sums in self.sums.items() if key[0] != pool}
        self._drift = {key: drift for key, drift in self._drift.items() if key[0] != pool}
        self._beliefs = {key: kept for key, kept in self._beliefs.items() if key[0] != pool}


def _path(pool: Pool, traffic_class: TrafficClass) -> tuple[_Key, _Key, _Key]:
    """Return the nodes that a class belongs to, the widest first."""
    name, model, task = pool.name, traffic_class.model, traffic_class.task
    bucket = traffic_class.bucket
    return (name, model, None, None), (name, model, task, None), (name, model, task, bucket)
