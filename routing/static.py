"""Policies that learn nothing, and what a policy is: which of several pools a request would have.

A policy ranks pools. Pins, availability, unsupported parameters, limits and load marks are the
router's (`routing.router`), the same for all of them.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from routing.decision import Chances, Draws, Reason, RoutingRequest, RuleStep, certain
from routing.pools import Pool
from routing.priors import TaskRule
from routing.tasks import TaskType
from routing.thresholds import Rules, least_full


class Choice(NamedTuple):
    """A policy's answer: pool, pipeline reason, the rule and numbers behind it, all chances."""

    pool: Pool
    reason: Reason
    step: RuleStep
    chances: Chances


class Policy(Protocol):
    """Chooses among pools."""

    name: str
    weighs_load: bool
    """Whether it would rather not send to a pool that has no room."""

    def strict(self, pools: Sequence[Pool], *, now: float) -> bool:
        """Whether shipped thresholds apply to a choice of `pools`, or only written ones."""
        ...

    def choose(
        self, request: RoutingRequest, pools: Sequence[Pool], *, now: float, draws: Draws
    ) -> Choice:
        """Return the preferred one of `pools` (at least one) at `now` (s, monotonic)."""
        ...


def _chosen(pool: Pool, rule: str, template: str, *numbers: object) -> Choice:
    step = RuleStep(rule, template, numbers)
    return Choice(pool, Reason.POLICY, step, certain(pool))


class _Static:
    """A policy that learns nothing."""

    weighs_load = False

    def strict(self, pools: Sequence[Pool], *, now: float) -> bool:
        """Whether shipped thresholds apply: they do not."""
        del pools, now
        return False


class RoundRobin(_Static):
    """Each pool in turn."""

    name = "round_robin"

    def __init__(self) -> None:
        self._turn = 0

    def choose(
        self, request: RoutingRequest, pools: Sequence[Pool], *, now: float, draws: Draws
    ) -> Choice:
        """Return the next pool by name; a rehearsal takes no turn."""
        del now, draws
        ordered = sorted(pools, key=lambda pool: pool.name)
        pool = ordered[self._turn % len(ordered)]
        self._turn += not request.rehearsed
        return _chosen(pool, self.name, "its turn of {} pools", len(ordered))


class LeastLoaded(_Static):
    """The pool with the least fullness."""

    name = "least_loaded"

    def choose(
        self, request: RoutingRequest, pools: Sequence[Pool], *, now: float, draws: Draws
    ) -> Choice:
        """Return the least full pool."""
        del request, now, draws
        pool = least_full(pools)
        return _chosen(pool, self.name, "{:.1f} in flight is the least", pool.in_flight)


class OneKind(_Static):
    """Only pools that speculate, or only pools that do not, where there is one."""

    def __init__(self, *, speculates: bool) -> None:
        self._speculates = speculates
        self.name = "spec_only" if speculates else "plain_only"

    def choose(
        self, request: RoutingRequest, pools: Sequence[Pool], *, now: float, draws: Draws
    ) -> Choice:
        """Return the least full pool of the kind, or of all where none is of the kind."""
        del request, now, draws
        of_kind = [pool for pool in pools if pool.speculates is self._speculates]
        pool = least_full(of_kind or pools)
        return _chosen(pool, self.name, "policy {}", self.name)


class Threshold(_Static):
    """Speculate where the rules of practice allow it."""

    name = "threshold"
    weighs_load = True

    def __init__(self, rules: Rules) -> None:
        self._rules = rules

    def strict(self, pools: Sequence[Pool], *, now: float) -> bool:
        """Whether shipped thresholds apply: they are this policy."""
        del pools, now
        return True

    def choose(
        self, request: RoutingRequest, pools: Sequence[Pool], *, now: float, draws: Draws
    ) -> Choice:
        """Return the speculating pool whose method suits the task best, the least full of equals.

        The router has taken out the pools that a rule objects to.
        """
        del now, draws
        speculating = [pool for pool in pools if pool.speculates]
        if not speculating:
            return _chosen(least_full(pools), "no_speculating_pool", "no pool may speculate")
        task = request.traffic_class.task if request.traffic_class else TaskType.UNKNOWN
        tables = self._rules.thresholds.tasks
        best = min(_RANK[tables[pool.speculation][task]] for pool in speculating)
        suited = [p for p in speculating if _RANK[tables[p.speculation][task]] == best]
        pool, knobs = least_full(suited), self._rules.thresholds
        temperature = request.features.temperature
        if temperature <= knobs.cool_temperature:
            template = "T {:g} is at or under {:g}, {} may speculate"
            return _chosen(
                pool, "temperature", template, temperature, knobs.cool_temperature, task
            )
        return _chosen(pool, "tasks", "{} speculates at T {:g} too", task, temperature)


_RANK = {TaskRule.ALWAYS: 0, TaskRule.COOL: 1, TaskRule.NEVER: 2}
