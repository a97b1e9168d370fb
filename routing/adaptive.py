"""The `adaptive` policy: the pool on which a request is expected to cost least (`routing.bar`).

Everything in that cost is learnt from traffic (`routing.learner`). Chance has three parts, of
which the probability that a pool is chosen is made and recorded: the holdout (any pool, so that
each stays measured and what moving a request does can be told), exploration (a pool where the
class was not seen of late, if it seems to cost little), and a draw from what is believed of tau
(Thompson), which explores what is uncertain by itself. A request goes to the pool its class is on
unless another is better by a margin. Where a pool was never measured, the rules of practice
decide, and the reason says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from math import inf, isinf
from operator import attrgetter

from routing.affinity import PrefixMap, holder
from routing.bar import Cost, cost
from routing.chances import Offer, expected, mixed, probabilities
from routing.decision import Chances, Draws, Reason, RoutingRequest, RuleStep, certain
from routing.learner import Learner, Measured
from routing.pools import Pool
from routing.static import Choice, Policy
from routing.tasks import TaskType
from routing.traffic import TrafficClass

STALE_S = 120.0
"""A class unseen on a pool for this long may be sent there to look."""
EXPLORED_REGRET = 0.15
"""Exploration may be expected to cost this much more, as a share of the best cost."""
EXPLORED_FULLNESS = 0.7
"""Exploration waits while a pool is fuller."""


class Objective(StrEnum):
    """What a class wants."""

    TPOT = "tpot"  # its answer soon, others' time counted in
    TTFT = "ttft"  # its first token soon: speculation gains nothing
    THROUGHPUT = "throughput"  # to take as little of the servers' time as it can


# Looking a member up in its class takes as long as ten other steps of a decision (Python 3.11).
_TPOT, _TTFT, _THROUGHPUT = Objective.TPOT, Objective.TTFT, Objective.THROUGHPUT
_SPECULATES, _BELOW_BAR, _STICKY = Reason.SPECULATES, Reason.BELOW_BAR, Reason.STICKY


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveKnobs:
    """Knobs of the adaptive policy.

    Attributes:
        altruism: How much the time of requests already there counts, in [0, 1].
        margin: A class stays on its pool unless another costs less by this share.
        holdout: Share of requests that chance sends to any pool.
        exploration: Most requests that look at a pool where their class was not seen of late.
        objectives: What each task wants; `tpot` where absent.
    """

    altruism: float = 1.0
    margin: float = 0.02
    holdout: float = 0.01
    exploration: float = 0.02
    objectives: Mapping[TaskType, Objective] = field(default_factory=dict)


class Adaptive:
    """Sends each request to the pool on which it is expected to cost least.

    Args:
        learner: What is known.
        knobs: Its knobs.
        prefixes: What each backend was sent.
        fallback: Decides while a pool is not measured.
    """

    name = "adaptive"
    weighs_load = True

    def __init__(
        self, learner: Learner, knobs: AdaptiveKnobs, *, prefixes: PrefixMap, fallback: Policy
    ) -> None:
        self._learner = learner
        self._knobs = knobs
        self._prefixes = prefixes
        self._fallback = fallback
        self._current: dict[TrafficClass, str] = {}

    def configure(self, knobs: AdaptiveKnobs) -> None:
        """Go on by other knobs; each class stays where it is."""
        self._knobs = knobs

    def strict(self, pools: Sequence[Pool], *, now: float) -> bool:
        """Whether the rules of practice decide, for want of measurements."""
        for pool in pools:
            if self._learner.measured(pool, now=now) is None:
                return bool(self._unmeasured(pools, now))
        return False

    def _unmeasured(self, pools: Sequence[Pool], now: float) -> list[Pool]:
        """Return the pools that are up and have no step times."""
        measured = self._learner.measured
        return [pool for pool in pools if measured(pool, now=now) is None and pool.has_room()]

    def choose(
        self, request: RoutingRequest, pools: Sequence[Pool], *, now: float, draws: Draws
    ) -> Choice:
        """Return the pool with the least expected cost, or the one that chance takes."""
        traffic_class = request.traffic_class
        if traffic_class is None or len(pools) == 1:
            choice = self._fallback.choose(request, pools, now=now, draws=draws)
            stale = self.strict(pools, now=now)
            return choice._replace(reason=Reason.STALE_FALLBACK) if stale else choice
        pools = sorted(pools, key=_name)  # so that each has the same draw in whatever order
        objective = self._knobs.objectives.get(traffic_class.task, _TPOT)
        by_lot = draws.holdout < 1.0 and objective is not _TTFT and not request.features.seeded
        holdout = self._knobs.holdout if by_lot else 0.0
        if held_out := draws.holdout < holdout:
            # What it would have had matters for the chances alone.
            request, draws = replace(request, rehearsed=True), draws._replace(explore=1.0)
        choice = self._weighed(request, traffic_class, pools, objective, now, draws, by_lot=by_lot)
        if not holdout:
            return choice
        chances = partial(mixed, choice.chances, holdout, [pool.name for pool in pools])
        if held_out:
            return _held_out(pools, draws.holdout / holdout, chances)
        return Choice(choice.pool, choice.reason, choice.step, chances)

    def _weighed(
        self,
        request: RoutingRequest,
        traffic_class: TrafficClass,
        pools: Sequence[Pool],
        objective: Objective,
        now: float,
        draws: Draws,
        *,
        by_lot: bool,
    ) -> Choice:
        """Return the pool with the least expected cost, or one to look at; of two or more."""
        exploration = self._knobs.exploration if by_lot else 0.0
        figures = [self._learner.measured(pool, now=now) for pool in pools]
        if None in figures and (blank := self._unmeasured(pools, now)):
            return self._stale(request, pools, blank, now, draws, exploration)
        length = self._length(request, traffic_class)
        if objective is _TTFT:
            return self._queue_alone(request, pools, now, length)
        current = self._current.get(traffic_class)
        offers = self._offers(
            request, traffic_class, pools, figures, length, objective, now, draws
        )
        if len(offers) < 2:  # the others are not measured, and not up
            left = [offer.pool for offer in offers] or pools
            return self._fallback.choose(request, left, now=now, draws=draws)
        best = min(offers, key=_value)
        chances = partial(probabilities, offers)
        if exploration and (pair := self._worth_a_look(traffic_class, offers, now)):
            names = sorted(offer.pool.name for offer in pair)
            chances = partial(mixed, chances, exploration, names)
            if draws.explore < exploration:
                return _look(*pair, draws.explore / exploration, chances)
        if request.counts:
            self._current[traffic_class] = best.pool.name
        return self._chosen(traffic_class, best, offers, current, chances)

    def quote(
        self, request: RoutingRequest, pools: Sequence[Pool], *, now: float
    ) -> dict[str, float]:
        """Return the expected cost in seconds on each measured pool, at the tau believed."""
        if request.traffic_class is None:
            return {}
        length = self._length(request, request.traffic_class)
        objective = self._knobs.objectives.get(request.traffic_class.task, _TPOT)
        quoted = {}
        for pool in pools:
            if (measured := self._learner.measured(pool, now=now)) is not None:
                believed = self._learner.acceptance.believed(pool, request.traffic_class, now=now)
                priced = self._cost(pool, measured, request, length, objective)
                quoted[pool.name] = priced.at(believed.tau)
        return quoted

    def _length(self, request: RoutingRequest, traffic_class: TrafficClass) -> float:
        """Return the output tokens to expect."""
        length, limit = self._learner.lengths.believed(traffic_class), request.features.max_tokens
        return length if limit is None else min(length, float(limit))

    def _offers(
        self,
        request: RoutingRequest,
        traffic_class: TrafficClass,
        pools: Sequence[Pool],
        figures: Sequence[Measured | None],
        length: float,
        objective: Objective,
        now: float,
        draws: Draws,
    ) -> list[Offer]:
        """Return what each measured pool costs."""
        current = self._current.get(traffic_class)
        offers = []
        for pool, measured, draw in zip(pools, figures, draws.pools, strict=False):
            if measured is None:
                continue
            share = 1.0 - self._knobs.margin if pool.name == current else 1.0
            priced = self._cost(
                pool, measured, request, length, objective, share, draws.two_choice
            )
            believed = self._learner.acceptance.believed(pool, traffic_class, now=now)
            drawn = believed.drawn(draw)
            offers.append(Offer(pool, priced, believed, drawn, priced.at(drawn)))
        return offers

    def _cost(
        self,
        pool: Pool,
        measured: Measured,
        request: RoutingRequest,
        length: float,
        objective: Objective,
        share: float = 1.0,
        draw: float = 0.0,
    ) -> Cost:
        """Return what `request` costs on a pool with these figures."""
        in_flight, pending_tokens = pool.load
        curve, prompt_token_s = measured
        others, queued = in_flight, in_flight + 1.0 - pool.max_num_seqs
        wait_s = pending_tokens * prompt_token_s
        if queued > 0.0:
            others = min(in_flight, float(pool.max_num_seqs))
            wait_s += self._learner.service.wait_s(pool, queued=queued, running=others)
        step_s, added_s = curve.at(others + 1.0)
        altruism = self._knobs.altruism
        if objective is _THROUGHPUT:  # its share of each step, and all that it adds
            step_s, wait_s, altruism = step_s / (others + 1.0), 0.0, 1.0
        features = request.features
        to_compute = features.prompt_tokens
        if features.prefix_keys:
            to_compute = max(0.0, to_compute - self._cached(pool, request, draw))
        return cost(
            length=length,
            step_s=step_s,
            added_s=added_s,
            others=others,
            wait_s=wait_s,
            prefill_s=prompt_token_s * to_compute,
            altruism=altruism,
            share=share,
        )

    def _cached(self, pool: Pool, request: RoutingRequest, draw: float) -> float:
        """Return the prompt tokens that the pool's best holder of its prefix has cached."""
        cached = self._prefixes.cached(request.features.prefix_keys)
        than = pool.pick(draw, request.excluded) if cached else None
        if than is None:
            return 0.0
        found = holder(pool, cached, than=than, excluded=request.excluded)
        return cached[found.name] if found is not None else 0.0

    def _queue_alone(
        self,
        request: RoutingRequest,
        pools: Sequence[Pool],
        now: float,
        length: float,
    ) -> Choice:
        """Choose by wait and prefill: decoding has no say."""

        def value(pool: Pool) -> tuple[float, float, str]:
            measured = self._learner.measured(pool, now=now)
            if measured is None:
                return inf, pool.fullness, pool.name
            priced = self._cost(pool, measured, request, 0.0, _TPOT)
            return priced.fixed_s, pool.fullness, pool.name

        pool = min(pools, key=value)
        template = "{:.0f} tokens expected; waiting and prefill cost least here, {:.3f} s"
        step = RuleStep(Reason.TTFT_BOUND.value, template, (length, value(pool)[0]))
        return Choice(pool, Reason.TTFT_BOUND, step, certain(pool))

    def _stale(
        self,
        request: RoutingRequest,
        pools: Sequence[Pool],
        blank: Sequence[Pool],
        now: float,
        draws: Draws,
        exploration: float,
    ) -> Choice:
        """Choose by the rules of practice, now and then, by a coin, a pool to be measured."""
        names = ", ".join(sorted(pool.name for pool in blank))
        unseen = min(blank, key=lambda pool: (pool.fullness, pool.name))
        choice = self._fallback.choose(request, pools, now=now, draws=draws)
        chances = partial(mixed, choice.chances, exploration, (choice.pool.name, unseen.name))
        if draws.explore < exploration:
            pool = choice.pool if draws.explore < 0.5 * exploration else unseen
            step = RuleStep("explore", "{} has no step times yet", (names,))
            return Choice(pool, Reason.EXPLORE, step, chances)
        step = RuleStep(
            "stale_fallback", "no step times of {} yet; " + choice.step.template,
            (names, *choice.step.numbers),
        )  # fmt: skip
        return Choice(choice.pool, Reason.STALE_FALLBACK, step, chances)

    def _worth_a_look(
        self, traffic_class: TrafficClass, offers: Sequence[Offer], now: float
    ) -> tuple[Offer, Offer] | None:
        """Return the best offer, and one where the class was not seen and that costs little more.

        Costs are those at the tau believed, not drawn: whether to look must not depend on what
        chance has for the pools, or the chances of both could not be told apart.
        """
        unseen_s, stale = self._learner.acceptance.unseen_s, list[Offer]()
        for offer in offers:
            if offer.pool.speculates and unseen_s(offer.pool, traffic_class, now=now) > STALE_S:
                stale.append(offer)
        if not stale:
            return None
        best = min(offers, key=expected)
        found = min((offer for offer in stale if offer is not best), key=expected, default=None)
        if found is None or expected(found) >= (1.0 + EXPLORED_REGRET) * expected(best):
            return None
        fullest = max(best.pool.fullness, found.pool.fullness)
        return (best, found) if fullest < EXPLORED_FULLNESS else None

    def _chosen(
        self,
        traffic_class: TrafficClass,
        best: Offer,
        offers: Sequence[Offer],
        current: str | None,
        chances: Chances,
    ) -> Choice:
        rivals = [offer for offer in offers if offer is not best]
        rival = rivals[0] if len(rivals) == 1 else min(rivals, key=_value)
        if best.pool.speculates:
            reason, bar, shown = _SPECULATES, best.cost.bar(rival.value), best
            template = "tau {:.2f} for {} beats bar {:.2f} at {:.1f} in flight"
        else:
            shown = rival
            if not rival.pool.speculates:
                speculating = [offer for offer in rivals if offer.pool.speculates]
                shown = min(speculating, key=_value, default=rival)
            reason, bar = _BELOW_BAR, shown.cost.bar(best.value)
            template = "tau {:.2f} for {} is under the bar {:.2f} at {:.1f} in flight"
        in_flight = shown.pool.in_flight
        numbers: tuple[object, ...] = (shown.drawn, traffic_class, bar, in_flight)
        if isinf(bar):
            template = "tau {:.2f} for {} cannot make up for wait and prefill at {:.1f} in flight"
            numbers = (shown.drawn, traffic_class, in_flight)
        if best.pool.name == current:
            unmargined = best.value / (1.0 - self._knobs.margin)
            if rival.value < unmargined:
                reason = _STICKY
                template = "stays, {} would cost {:.1%} less and the margin is {:.0%}"
                gain = 1.0 - rival.value / unmargined
                numbers = (rival.pool.name, gain, self._knobs.margin)
        return Choice(best.pool, reason, RuleStep(reason.value, template, numbers), chances)


def _held_out(pools: Sequence[Pool], draw: float, chances: Chances) -> Choice:
    """Send to a pool by lot; its chances are those of any request."""
    pool = pools[min(int(draw * len(pools)), len(pools) - 1)]
    step = RuleStep("holdout", "by lot, to keep {} pools measured", (len(pools),))
    return Choice(pool, Reason.HOLDOUT, step, chances)


def _look(best: Offer, other: Offer, draw: float, chances: Chances) -> Choice:
    """Toss a coin between the best pool and the one to look at, for the sake of causality."""
    pool = best.pool if draw < 0.5 else other.pool
    template = "{} was not seen there of late; by a coin between {} and {}"
    names = sorted((best.pool.name, other.pool.name))
    step = RuleStep("explore", template, (other.pool.name, *names))
    return Choice(pool, Reason.EXPLORE, step, chances)


_name = attrgetter("name")
_value = attrgetter("value")  # of equals the first by name: offers are in that order
