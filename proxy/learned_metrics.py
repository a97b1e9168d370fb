"""The series of what was learnt from traffic, read off the learner when somebody scrapes."""

from collections.abc import Callable, Iterator
from itertools import product

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from proxy.fleet import Fleet
from routing.learner import Learner
from routing.pools import Pool
from routing.steps import KNOTS
from routing.tasks import TaskType
from routing.traffic import TemperatureBucket, TrafficClass


class LearntState(Collector):
    """Step times, bars, tokens per step and what moving a request does, as chance showed.

    Args:
        fleet: The pools.
        learner: What is known of them.
        clock: Seconds, monotonic.
    """

    def __init__(self, fleet: Fleet, learner: Learner, *, clock: Callable[[], float]) -> None:
        self._fleet = fleet
        self._learner = learner
        self._clock = clock

    def describe(self) -> tuple[Metric, ...]:
        """Leave names unchecked at registration, before anything was learnt."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield what is known at this moment; a sample that is not known is left out."""
        now = self._clock()
        paused = GaugeMetricFamily("turnout_learning_paused", "1 while traffic teaches nothing.")
        paused.add_metric((), float(self._learner.paused))
        yield paused
        yield self._steps(now)
        yield self._bars(now)
        yield self._tau(now)
        yield self._speed_up()

    def _steps(self, now: float) -> Metric:
        family = GaugeMetricFamily(
            "turnout_step_seconds",
            "Time of an engine step, by requests in flight per backend.",
            labels=("pool", "in_flight"),
        )
        for pool in self._fleet.pools:
            if (measured := self._learner.measured(pool, now=now)) is not None:
                for knot in KNOTS:
                    family.add_metric((pool.name, str(knot)), measured.curve.at(knot)[0])
        return family

    def _bars(self, now: float) -> Metric:
        family = GaugeMetricFamily(
            "turnout_bar_tokens_per_step",
            "Tokens per step (tau) above which a class gains on the pool at its present load.",
            labels=("pool",),
        )
        for pool in self._fleet.pools:
            if pool.speculates and (bar := self._bar(pool, now)) is not None:
                family.add_metric((pool.name,), bar)
        return family

    def _bar(self, pool: Pool, now: float) -> float | None:
        """Return s_spec(b + 1) / s_plain(b + 1), against the quickest plain pool of its model."""
        plain = [
            other
            for other in self._fleet.pools
            if not other.speculates and other.model == pool.model and other.healthy()
        ]
        steps = [step for other in plain if (step := self._next_step_s(other, now)) is not None]
        mine = self._next_step_s(pool, now)
        return mine / min(steps) if mine is not None and steps else None

    def _next_step_s(self, pool: Pool, now: float) -> float | None:
        measured = self._learner.measured(pool, now=now)
        if measured is None:
            return None
        return measured.curve.at(min(pool.in_flight, pool.max_num_seqs) + 1.0)[0]

    def _tau(self, now: float) -> Metric:
        family = GaugeMetricFamily(
            "turnout_class_tokens_per_step",
            "Tokens per step (tau) expected of a class on a pool where it was seen.",
            labels=("pool", "task", "temperature"),
        )
        for pool, traffic_class in self._classes():
            acceptance = self._learner.acceptance
            if acceptance.of(pool, traffic_class, now=now).steps >= 1.0:
                believed = acceptance.believed(pool, traffic_class, now=now)
                family.add_metric(_labels(pool.name, traffic_class), believed.tau)
        return family

    def _classes(self) -> Iterator[tuple[Pool, TrafficClass]]:
        """Yield every pool that speculates with every class of its own model."""
        speculating = [pool for pool in self._fleet.pools if pool.speculates]
        for pool, task, bucket in product(speculating, TaskType, TemperatureBucket):
            yield pool, TrafficClass(pool.model, task, bucket)

    def _speed_up(self) -> Metric:
        family = GaugeMetricFamily(
            "turnout_causal_speed_up_ratio",
            "TPOT on a plain pool over that on the pool, of requests that chance assigned: what "
            "moving one does at the loads that routing leaves, not what speculation is worth.",
            labels=("pool", "than", "task", "temperature", "bound"),
        )
        plain = [pool for pool in self._fleet.pools if not pool.speculates]
        for (pool, traffic_class), than in product(self._classes(), plain):
            found = self._learner.causal.speed_up(pool.name, than.name, traffic_class)
            if found is None or than.model != pool.model:
                continue
            for bound, value in (("mean", found.ratio), ("low", found.low), ("high", found.high)):
                labels = _labels(pool.name, traffic_class)
                family.add_metric((labels[0], than.name, *labels[1:], bound), value)
        return family


def _labels(pool: str, traffic_class: TrafficClass) -> tuple[str, str, str]:
    return pool, traffic_class.task.value, traffic_class.bucket.value
