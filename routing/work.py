"""How much work a request is: tokens it will write, what its prompt and its wait cost a pool."""

from math import exp, inf, log

from routing.fading import Moments, Slope, fresh
from routing.pools import Pool
from routing.tasks import TaskType
from routing.traffic import TemperatureBucket, TrafficClass

HALF_LIFE_S = 1800.0
REQUESTS_KEPT = 0.98
"""What a request leaves of the values before it: a memory of about 50."""

LENGTH = 129.0
"""Output tokens of a request of which nothing is known: the median of Azure's conversation trace
(2023)."""
_LENGTH_REQUESTS = 3.0
"""Requests after which a task's own lengths count as much as that, and a class's as its task's."""

PREFILL_SHARE = 0.003
"""What computing a prompt token takes, as a share of an idle step, before it was seen: 21 us of
7.1 ms for an 8B model on an H100 (arXiv 2601.11580)."""
PROMPTS_KEPT = 0.995
"""What a prompt leaves of those before it: its time to the first token is a noisy measure."""
_ASSUMED_PROMPTS = 2.0
"""The assumption counts as much as this many prompts, each as far from the mean as nothing is."""
_SHARED_PROMPTS = 6.0
"""What all pools show together counts as much, for each, as this many."""
_NOTHING = Slope()

_LengthKey = tuple[str, TaskType, TemperatureBucket | None]


class LengthBook:
    """Typical output length of each class, in tokens: the mean of logarithms, near the median."""

    def __init__(self) -> None:
        self.sums: dict[_LengthKey, Moments] = {}
        self._beliefs: dict[TrafficClass, float] = {}

    def add(self, traffic_class: TrafficClass, tokens: int, *, now: float) -> None:
        """Add the output of a finished request."""
        if tokens < 1:
            return
        for key in _length_keys(traffic_class):
            sums = self.sums.setdefault(key, Moments(seen_at=now))
            kept = REQUESTS_KEPT * fresh(sums.seen_at, now, HALF_LIFE_S)
            sums.add(log(tokens), memory=kept, now=now)
        self._beliefs.clear()

    def believed(self, traffic_class: TrafficClass) -> float:
        """Return the output tokens to expect of `traffic_class`, about their median."""
        if (kept := self._beliefs.get(traffic_class)) is not None:
            return kept
        expected, weight = log(LENGTH), _LENGTH_REQUESTS
        for key in _length_keys(traffic_class):
            if (sums := self.sums.get(key)) is not None:
                expected = (sums.total + weight * expected) / (sums.count + weight)
        self._beliefs[traffic_class] = exp(expected)
        return self._beliefs[traffic_class]

    def renew(self) -> None:
        """Believe anew when next asked: sums have come from elsewhere."""
        self._beliefs.clear()

    def merge(self, other: "LengthBook") -> None:
        """Add what another worker has seen."""
        self.renew()
        for key, sums in other.sums.items():
            self.sums.setdefault(key, Moments()).merge(sums, half_life_s=HALF_LIFE_S)


def _length_keys(traffic_class: TrafficClass) -> tuple[_LengthKey, _LengthKey]:
    model, task = traffic_class.model, traffic_class.task
    return (model, task, None), (model, task, traffic_class.bucket)


class ServiceBook:
    """What each pool takes to compute a prompt token, and to serve a request it has begun."""

    def __init__(self) -> None:
        self.prefill: dict[str, Slope] = {}
        self.service: dict[str, Moments] = {}

    def add_prefill(
        self, pool: str, *, seconds: float, tokens: float, in_flight: int, now: float
    ) -> None:
        """Add a first output after `seconds`, with `tokens` to be read before it.

        The step under way is in them too, for many tokens as for few: what counts is how they
        rise with the tokens. The fewer were in flight, the clearer.
        """
        if 0.0 < seconds < inf and tokens > 0:
            sums = self.prefill.setdefault(pool, Slope())
            weight = 1.0 / max(1, in_flight)
            sums.add(tokens, seconds, memory=PROMPTS_KEPT, weight=weight, now=now)

    def add_service(self, pool: str, seconds: float, *, now: float) -> None:
        """Add the time that a finished request spent in the batch, s."""
        self.service.setdefault(pool, Moments()).add(seconds, memory=REQUESTS_KEPT, now=now)

    def prefill_s(self, pool: str, *, idle_step_s: float) -> float:
        """Return seconds per prompt token on `pool`, given its step time when idle."""
        assumed, every = PREFILL_SHARE * idle_step_s, self.prefill.values()
        count = sum(sums.count for sums in every)
        if not count:
            return assumed
        square = (sum(sums.x for sums in every) / count) ** 2
        spread = _ASSUMED_PROMPTS * square + sum(sums.spread for sums in every)
        common = _ASSUMED_PROMPTS * square * assumed + sum(sums.common for sums in every)
        shared, own = common / spread, self.prefill.get(pool, _NOTHING)
        spread = _SHARED_PROMPTS * square
        return max(0.0, (own.common + spread * shared) / (own.spread + spread))

    def wait_s(self, pool: Pool, *, queued: float, running: float) -> float:
        """Return the wait of a request behind `queued` others, with `running` in the batch.

        One leaves the batch every (service time / running).
        """
        service = self.service.get(pool.name)
        if queued <= 0.0 or service is None:
            return 0.0
        return queued * service.mean / max(1.0, running)

    def merge(self, other: "ServiceBook") -> None:
        """Add what another worker has seen."""
        for name, slope in other.prefill.items():
            self.prefill.setdefault(name, Slope()).merge(slope, half_life_s=HALF_LIFE_S)
        for name, moments in other.service.items():
            self.service.setdefault(name, Moments()).merge(moments, half_life_s=HALF_LIFE_S)

    def forget(self, pool: str) -> None:
        """Drop what was learnt about `pool`."""
        self.prefill.pop(pool, None)
        self.service.pop(pool, None)
