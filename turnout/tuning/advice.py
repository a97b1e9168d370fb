"""Which share of a model's servers should speculate: what was learnt, simulated every way.

Each split of the servers serves the same requests with the same luck: as many of each class as
came, with the prompts, outputs and tokens per step that were learnt, on engines whose steps take
what was learnt. Splits with both kinds are routed by the gateway's own router. Nothing is changed:
the advice is a sentence and the figures behind it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, sqrt
from random import Random
from typing import cast

import numpy as np

from routing.acceptance import AcceptanceSums
from routing.decision import Draws
from routing.demand import Demand
from routing.learner import Learner, Measured
from routing.pools import Backend, Pool
from routing.traffic import TrafficClass
from turnout.simulation.acceptance import Odds, alike
from turnout.simulation.acceptance import Speculation as SimulatedMethod
from turnout.simulation.arms import ADAPTIVE, ARMS, Arm, Routed
from turnout.simulation.cluster import Cluster, Rows, replicas_of
from turnout.simulation.engine import EngineSettings, StepCost
from turnout.simulation.loads import WARM_UP
from turnout.simulation.mixes import Kind
from turnout.simulation.statistics import Interval, Numbers, e2e_s, ratio_of_means
from turnout.simulation.workloads import SimulatedRequest

REQUESTS = 600
SEEDS = 3
SEPARABLE = 0.02
"""Splits whose mean latencies differ by less are taken for equal: the model errs by as much."""

_UNSEEN = AcceptanceSums()
_LENGTH_SIGMA = 0.5
"""Spread of output lengths (of their logarithm) where fewer than ten were seen."""


class NotKnown(Exception):
    """Too little was learnt to advise; the message says what is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """One way to divide the servers.

    Attributes:
        speculating: Servers that speculate.
        servers: All of them.
        mean_e2e_s: Mean latency of a request.
        p95_e2e_s: Its 95th percentile.
        mean_tpot_s: Mean time per output token.
        over_best: Its mean latency over that of the best split.
    """

    speculating: int
    servers: int
    mean_e2e_s: float
    p95_e2e_s: float
    mean_tpot_s: float
    over_best: Interval

    @property
    def is_best(self) -> bool:
        """Whether no split is better, or none that can be told apart from it."""
        return self.over_best.low <= 1.0 + SEPARABLE or self.over_best.value <= 1.0 + SEPARABLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What the servers should be.

    Attributes:
        rate_per_s: Requests per second that were reckoned with.
        splits: Every split, by how many servers speculate.
        present: The one that there is.
        best: The one to have: the present one, if no other is separably better.
    """

    rate_per_s: float
    splits: Sequence[Split]
    present: Split
    best: Split

    @property
    def sentence(self) -> str:
        """The recommendation with its expected change."""
        now, best = self.present, self.best
        share = f"{best.speculating} of {best.servers} servers speculating"
        if best is now:
            return f"keep {share}: nothing else is better at {self.rate_per_s:.2g} requests/s"
        change = best.mean_e2e_s / now.mean_e2e_s - 1.0
        return (
            f"have {share} instead of {now.speculating}: mean latency {change:+.0%} expected at "
            f"{self.rate_per_s:.2g} requests/s"
        )


def advise(
    learner: Learner,
    spec: Pool,
    plain: Pool,
    *,
    now: float,
    demand: Mapping[TrafficClass, Demand] | None = None,
    requests: int = REQUESTS,
    seeds: int = SEEDS,
) -> Advice:
    """Return how many of the servers of two pools should speculate.

    Args:
        learner: What is known of both.
        spec: The pool that speculates.
        plain: The pool that does not.
        now: Seconds, monotonic.
        demand: What is asked for; what the learner saw by default.
        requests: Simulated per split and seed.
        seeds: How many simulations there are of each split.

    Raises:
        NotKnown: If a pool has no step times yet, or no traffic was seen.
    """
    demand = learner.demand.of(spec.model, now=now) if demand is None else demand
    if not demand:
        raise NotKnown(f"no traffic for model {spec.model!r} was seen")
    engines = learnt_engines(learner, spec, plain, demand, now=now)
    servers = len(spec.backends) + len(plain.backends)
    worlds = [requests_of(learner, spec, demand, requests, seed, now) for seed in range(seeds)]
    served = {
        count: [_serve(learner, spec, plain, engines, count, servers, world) for world in worlds]
        for count in range(servers + 1)
    }
    skipped = round(WARM_UP * requests)
    latencies = {count: e2e_s(rows, skipped) for count, rows in served.items()}
    least = min(latencies, key=lambda count: latencies[count].mean())
    splits = [
        _split(count, servers, served[count], skipped, latencies[least])
        for count in range(servers + 1)
    ]
    present = splits[len(spec.backends)]
    rate = sum(each.rate_per_s for each in demand.values())
    best = present if present.is_best else splits[least]
    return Advice(rate_per_s=rate, splits=splits, present=present, best=best)


def learnt_engines(
    learner: Learner,
    spec: Pool,
    plain: Pool,
    demand: Mapping[TrafficClass, Demand],
    *,
    now: float,
) -> tuple[EngineSettings, EngineSettings]:
    """Return engines whose steps take what was learnt, the speculating one first.

    A request adds its token and its context to a step; what else it adds to one that speculates is
    the drafts' doing, as many as were drafted on average.

    Raises:
        NotKnown: If a pool has no step times yet, or it isn't known how much the first one drafts.
    """
    if not spec.k:
        raise NotKnown(f"how many tokens pool {spec.name!r} drafts is not known; declare its k")
    found = []
    for pool in (spec, plain):
        if (measured := learner.measured(pool, now=now)) is None:
            raise NotKnown(f"pool {pool.name!r} has no step times yet")
        found.append(measured)
    (spec_s, spec_added), (plain_s, plain_added) = map(_line, found)
    token_s = min(found[1].prompt_token_s, plain_added)
    context_s = (plain_added - token_s) / context_tokens(learner, demand)
    cost = StepCost(fixed_s=plain_s, token_s=token_s, context_s=context_s)
    verifying = plain_added + token_s * spec.k * _drafting(learner, spec, None, now)
    drafting = replace(cost, fixed_s=spec_s, sequence_s=spec_added - verifying)
    return _settings(spec, drafting), _settings(plain, cost)


def context_tokens(learner: Learner, demand: Mapping[TrafficClass, Demand]) -> float:
    """Return the context of a request half-way through its output, on average."""
    total = sum(each.rate_per_s for each in demand.values())
    context = sum(
        each.rate_per_s * (each.prompt_tokens + learner.lengths.believed(traffic_class) / 2)
        for traffic_class, each in demand.items()
    )
    return context / total


def _line(measured: Measured) -> tuple[float, float]:
    """Return a step's time without requests, and what each adds, of a curve up to 16 in flight."""
    one, many = measured.curve.values[0], measured.curve.values[4]
    added = (many - one) / 15.0
    return one - added, added


def _settings(pool: Pool, cost: StepCost) -> EngineSettings:
    copies = pool.speculates and not pool.speculation.drafts_every_step
    return EngineSettings(
        cost=cost,
        speculation="ngram" if copies else cast("SimulatedMethod", pool.speculation.value),
        k=pool.k,
        max_num_seqs=pool.max_num_seqs,
        max_num_batched_tokens=8192,  # vLLM's default for servers; no prompt of ours is longer
        kv_blocks=10**6,
        block_tokens=16,
    )


def requests_of(
    learner: Learner,
    spec: Pool,
    demand: Mapping[TrafficClass, Demand],
    count: int,
    seed: int,
    now: float,
) -> list[SimulatedRequest]:
    """Return `count` requests such as were seen, as often as `demand` says."""
    random = Random(f"{seed} advice")  # noqa: S311 - a simulation, not a secret
    classes = sorted(demand, key=lambda each: each.label)
    weights = [demand[each].rate_per_s for each in classes]
    odds = {each: odds_of(learner, spec, each, now) for each in classes}
    at, made = 0.0, []
    for index in range(count):
        at += random.expovariate(sum(weights))
        (chosen,) = random.choices(classes, weights)
        median, sigma = learner.lengths.believed(chosen), _sigma(learner, chosen)
        made.append(
            SimulatedRequest(
                index=index,
                arrives_s=at,
                kind=Kind(task=chosen.task, temperature=chosen.bucket.typical, weight=1.0),
                label=chosen.task,
                prompt_tokens=max(1, round(demand[chosen].prompt_tokens)),
                output_tokens=max(2, round(median * exp(sigma * random.gauss(0.0, 1.0)))),
                odds=odds[chosen],
                seed=random.getrandbits(48),
                draws=Draws(1.0, 1.0, (random.random(), random.random()), random.random()),
            )
        )
    return made


def _sigma(learner: Learner, traffic_class: TrafficClass) -> float:
    key = traffic_class.model, traffic_class.task, traffic_class.bucket
    sums = learner.lengths.sums.get(key)
    return sqrt(sums.variance) if sums is not None and sums.count >= 10.0 else _LENGTH_SIGMA


def odds_of(learner: Learner, spec: Pool, traffic_class: TrafficClass, now: float) -> Odds:
    """Return a class's odds: it drafts as often as was seen, and accepts what is believed."""
    accepted = learner.acceptance.believed(spec, traffic_class, now=now).tau - 1.0
    share = _drafting(learner, spec, traffic_class, now)
    return alike(share, accepted, spec.k)


def _drafting(
    learner: Learner, spec: Pool, traffic_class: TrafficClass | None, now: float
) -> float:
    """Return the share of steps that draft, of a class or of all; 1 where servers do not tell."""
    every = learner.acceptance.sums.get((spec.name, spec.model, None, None), _UNSEEN)
    own = learner.acceptance.of(spec, traffic_class, now=now) if traffic_class else _UNSEEN
    seen = own if own.drafted else every
    return min(1.0, seen.drafted / (spec.k * seen.steps)) if seen.drafted else 1.0


def _serve(
    learner: Learner,
    spec: Pool,
    plain: Pool,
    engines: tuple[EngineSettings, EngineSettings],
    speculating: int,
    servers: int,
    requests: Sequence[SimulatedRequest],
) -> Rows:
    counts = speculating, servers - speculating
    pools = [
        pool.like(Backend(name=f"{pool.name}-{n}") for n in range(count))
        for pool, count in zip((spec, plain), counts, strict=True)
        if count
    ]
    used = [engine for engine, count in zip(engines, counts, strict=True) if count]
    replicas = replicas_of(
        pools, [[each] * len(pool.backends) for each, pool in zip(used, pools, strict=True)]
    )
    arm = ARMS[ADAPTIVE] if len(pools) > 1 else Arm(policy="least_loaded")
    chooser = Routed(arm, pools, replicas)
    chooser.router.learner.merge(learner)
    return Cluster(replicas, chooser).run(requests)


def _split(
    speculating: int, servers: int, rows: Sequence[Rows], skipped: int, best: Numbers
) -> Split:
    mine = e2e_s(rows, skipped)
    return Split(
        speculating=speculating,
        servers=servers,
        mean_e2e_s=float(mine.mean()),
        p95_e2e_s=float(np.percentile(mine, 95)),
        mean_tpot_s=float(np.mean([each.tpot_s[skipped:] for each in rows])),
        over_best=ratio_of_means(mine, best),
    )
