"""What follows for the servers: how many speculate, with how many draft tokens at which batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from routing.demand import Demand
from routing.learner import Learner
from routing.pools import Pool, Speculation
from routing.tasks import TaskType
from routing.traffic import TemperatureBucket, TrafficClass
from turnout.simulation.acceptance import Odds
from turnout.simulation.engine import EngineSettings
from turnout.simulation.servers import schedule
from turnout.tuning.advice import Advice, advise, context_tokens, learnt_engines, odds_of
from turnout.tuning.learnt import pair
from turnout.tuning.report import TuningError

SCHEDULED = (Speculation.NGRAM, Speculation.EAGLE3, Speculation.MTP)
"""Methods that take vLLM's batch-size schedule: it is documented for EAGLE and was run with
n-gram; suffix asserts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerAdvice:
    """What the servers of one model should be.

    Attributes:
        spec: The pool that speculates.
        drafts: Draft tokens up to each batch size, the smallest first: most tokens per second by
            what was learnt.
        shares: How many servers should speculate; None where how much is asked for isn't known.
    """

    spec: Pool
    drafts: Sequence[tuple[int, int]]
    shares: Advice | None

    @property
    def schedule(self) -> list[list[int]]:
        """The drafts as vLLM's `num_speculative_tokens_per_batch_size`."""
        found, first = [], 1
        for last, tokens in self.drafts:
            found.append([first, last, tokens])
            first = last + 1
        return found

    @property
    def sentences(self) -> list[str]:
        """What to do, with the flags."""
        said = []
        best = max(tokens for _, tokens in self.drafts)
        if not best:
            said.append(
                "Leave speculation off: by the steps measured no draft pays, even for one request."
            )
        elif best < self.spec.k:
            said.append(
                f"num_speculative_tokens {best} instead of {self.spec.k}: by the steps measured "
                "it yields most tokens even for one request."
            )
        if len(self.drafts) > 1 and self.spec.speculation in SCHEDULED:
            said.append(
                "If every server of the pool speculates, drop drafts as batches grow: "
                f'"num_speculative_tokens_per_batch_size": {self.schedule} in '
                "--speculative-config (vLLM 0.32 and newer; not with LoRA, pipeline or data "
                "parallelism). Beside a plain pool the gateway's in-flight mark does it by class."
            )
        elif best:
            most = max(size for size, tokens in self.drafts if tokens)
            said.append(f"Drafts pay up to {most} requests in a batch.")
        if self.shares is not None:
            said.append(f"Pool shares: {self.shares.sentence}.")
        return said


def advise_servers(
    learner: Learner,
    pools: Mapping[str, Pool],
    *,
    demand: Mapping[TrafficClass, Demand] | None,
    now: float,
) -> ServerAdvice:
    """Return what the servers should be, by what was learnt.

    Args:
        learner: What is known.
        pools: By name; one that speculates and one that does not at least.
        demand: What is asked for; what the learner saw where it is None.
        now: Seconds, on the learner's clock.

    Raises:
        TuningError: If there is no such pair of one model.
        NotKnown: If steps or drafts were not measured, or nobody asked for anything.
    """
    if (found := pair(pools.values())) is None:
        raise TuningError("what was learnt is not of a pool that speculates and a plain one")
    spec, plain = found
    asked = demand or learner.demand.of(spec.model, now=now)
    shares = advise(learner, spec, plain, now=now, demand=demand)
    engines = learnt_engines(learner, spec, plain, asked, now=now)
    odds, context = _average(learner, spec, asked, now), context_tokens(learner, asked)
    drafts = schedule(
        _drafting(*engines, share=odds.share, context=context), odds, context_tokens=context
    )
    return ServerAdvice(spec=spec, drafts=falling(drafts), shares=shares)


def falling(drafts: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return a schedule in which no larger batch drafts more than a smaller one.

    A verified draft costs more in a larger batch; where the figures say otherwise they are noise.
    """
    found: list[tuple[int, int]] = []
    for last, tokens in drafts:
        tokens_ = min(tokens, found[-1][1]) if found else tokens
        if found and found[-1][1] == tokens_:
            found[-1] = (last, tokens_)
        else:
            found.append((last, tokens_))
    return found


def _drafting(
    spec: EngineSettings, plain: EngineSettings, *, share: float, context: float
) -> EngineSettings:
    """Return the engine that speculates such that without drafts it takes what the plain one does.

    Both as learnt. What its step takes longer is the drafts' doing; where all that a request adds
    is less than its drafts would as further tokens, a token costs less and the context more.

    Args:
        spec: The engine that speculates.
        plain: The one that does not.
        share: Of steps that draft.
        context: Tokens of a typical request.
    """
    longer_s = spec.cost.fixed_s - plain.cost.fixed_s
    cost = replace(spec.cost, fixed_s=plain.cost.fixed_s, draft_s=longer_s)
    if cost.sequence_s < 0.0:
        less_s = -cost.sequence_s / (share * spec.k)
        cost = replace(
            cost,
            sequence_s=0.0,
            token_s=cost.token_s - less_s,
            context_s=cost.context_s + less_s / context,
        )
    return replace(spec, cost=cost)


def _average(
    learner: Learner, spec: Pool, demand: Mapping[TrafficClass, Demand], now: float
) -> Odds:
    """Return the odds of all that is asked for, on average."""
    total = sum(each.rate_per_s for each in demand.values())
    odds = [
        (each.rate_per_s / total, odds_of(learner, spec, traffic_class, now))
        for traffic_class, each in demand.items()
    ]
    share = sum(weight * each.share for weight, each in odds)
    first = sum(weight * each.share * each.first for weight, each in odds) / share
    following = sum(weight * each.following for weight, each in odds)
    return Odds(share, first, following)


def demand_of(results: Mapping[str, Any], rate_per_s: float) -> dict[TrafficClass, Demand]:
    """Return a bench's mix as what is asked for, at a rate."""
    model = str(results["model"])
    return {
        TrafficClass(model, TaskType(each["task"]), TemperatureBucket(each["bucket"])): Demand(
            rate_per_s=each["share"] * rate_per_s, prompt_tokens=each["prompt_tokens"]
        )
        for each in results["classes"]
    }
