"""`turnout plan pools`: how many servers speculate, by which method, and what starts them.

Every split of the servers is simulated on the same arrivals and lengths, with step costs from data
sheets and acceptance from published figures. Splits with both kinds are routed by the gateway's
own router, which starts knowing nothing, as it would.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from math import inf
from random import Random
from typing import Any, cast

import numpy as np

from routing.pools import Backend, Pool, Speculation
from turnout.planning.costs import step_cost
from turnout.planning.deployment import Deployment, fits
from turnout.planning.drafts import candidates, judge, methods_of
from turnout.planning.errors import PlanError
from turnout.planning.memory import described, gpus_named, named, segments
from turnout.planning.servers import (
    FIRST_PORT,
    START_GATEWAY,
    Schedule,
    Server,
    compose,
    gateway_config,
    schedule_of,
    script,
)
from turnout.planning.views import View
from turnout.simulation.acceptance import TASKS, spread_odds, typical_odds
from turnout.simulation.acceptance import Speculation as Simulated
from turnout.simulation.arms import ADAPTIVE, ARMS, Arm, Routed
from turnout.simulation.cluster import Cluster, replicas_of
from turnout.simulation.engine import EngineSettings
from turnout.simulation.loads import WARM_UP, Load
from turnout.simulation.mixes import Mix
from turnout.simulation.page import Table
from turnout.simulation.plan import FEWEST_REQUESTS
from turnout.simulation.servers import ServerKind, schedule
from turnout.simulation.workloads import SimulatedRequest, Workload, typical
from turnout.tuning.advice import SEPARABLE
from turnout.tuning.recommend.servers import SCHEDULED

WITHIN_SLO = 0.95
"""Share of requests that must keep both limits."""
_OTHER_DRAFTS = {
    Speculation.NGRAM: (3,),
    Speculation.DRAFT_MODEL: (2, 6),
    Speculation.EAGLE3: (2, 5),
    Speculation.MTP: (2,),
}
"""Draft tokens tried beside the usual ones, for the split that is best with those."""
_BATCH_TOKENS = 8192
_BLOCK_TOKENS = 16
_SEQS = (8, 256)
"""Fewest and most requests that a server is let run at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What is asked of the pools.

    Attributes:
        mix: Kinds of requests.
        rate_per_s: Requests per second.
        ttft_s: Longest time to the first token.
        tpot_s: Longest time per token after it.
        requests: Simulated per split and seed.
        seeds: Simulations of each split.
    """

    mix: Mix
    rate_per_s: float
    ttft_s: float
    tpot_s: float
    requests: int = 600
    seeds: int = 2

    def __post_init__(self) -> None:
        asked = {"requests/s": self.rate_per_s, "s TTFT": self.ttft_s, "s TPOT": self.tpot_s}
        for unit, value in asked.items():
            if not 0.0 < value < inf:
                raise PlanError(f"{value:g} {unit}: must be a number above 0")
        if self.requests < FEWEST_REQUESTS or self.seeds < 1:
            raise PlanError(
                f"{self.requests} requests and {self.seeds} seeds say nothing; "
                f"at least {FEWEST_REQUESTS} and 1 are needed"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """One way to use the servers.

    Attributes:
        deployment: Of those that speculate; plain where none does.
        speculating: How many do.
        mean_e2e_s: Mean latency of a request.
        p95_ttft_s: 95th percentile of the time to the first token.
        p95_tpot_s: The same of the time per token.
        within: Share of requests that keep both limits.
    """

    deployment: Deployment
    speculating: int
    mean_e2e_s: float
    p95_ttft_s: float
    p95_tpot_s: float
    within: float

    @property
    def keeps(self) -> bool:
        """Whether enough requests keep the limits."""
        return self.within >= WITHIN_SLO


def splits(deployment: Deployment, demand: Demand) -> list[Split]:
    """Return every split with every method, or the deployment's own; other `k` for the best.

    Raises:
        PlanError: If no server fits, or the GPU's speed is not known.
    """
    plain, own = deployment.plain, deployment.speculation is not Speculation.NONE
    for each in (plain, deployment):
        if not fits(each):
            raise PlanError(f"{named(each)} does not fit; turnout plan memory says what would")
    if deployment.speculation is Speculation.SUFFIX:
        raise PlanError("method suffix cannot be simulated; nearest: ngram")
    worlds = [_arrivals(demand, seed, plain.context) for seed in range(demand.seeds)]
    found = [_simulate(plain, 0, demand, worlds)]
    found += [
        _simulate(method, speculating, demand, worlds)
        for method in ([deployment] if own else _methods(deployment))
        for speculating in range(1, plain.servers + 1)
    ]
    first = best_of(found)
    if first.speculating and not own:
        found += [
            _simulate(replace(first.deployment, k=k), first.speculating, demand, worlds)
            for k in _OTHER_DRAFTS[first.deployment.speculation]
            if k != first.deployment.k
        ]
    return found


def _methods(deployment: Deployment) -> Iterator[Deployment]:
    """Yield the deployment with each method that could be started and simulated."""
    judged = [judge(deployment, draft) for draft in candidates(deployment.target)]
    sweet = [each for each in sorted(judged, key=lambda each: each.rank) if not each.off]
    for each in methods_of(deployment, sweet):
        known = each.speculation is not Speculation.EAGLE3 or each.target.eagle3
        if each.speculation is not Speculation.SUFFIX and known and fits(each):
            yield each


def best_of(found: Sequence[Split]) -> Split:
    """Return the split to have: the fastest of those that keep the limits, or keep them most.

    Among equals it is the one with fewer servers that speculate: there is less to go wrong.
    """
    keeping = [split for split in found if split.keeps]
    if not keeping:
        most = max(split.within for split in found)
        keeping = [split for split in found if split.within >= most - SEPARABLE]
    least = min(split.mean_e2e_s for split in keeping)
    equal = [split for split in keeping if split.mean_e2e_s <= least * (1.0 + SEPARABLE)]
    return min(equal, key=lambda split: (split.speculating, split.mean_e2e_s))


def _arrivals(demand: Demand, seed: int, context: int) -> list[SimulatedRequest]:
    """Return requests that fit the context, outputs to half of it."""
    server = ServerKind(speculation="eagle3", k=3)  # of odds that are drawn anew for each method
    steady = Load(name="planned", share=0.4)
    requests = Workload(mix=demand.mix).requests(
        server, steady, rate=demand.rate_per_s, count=demand.requests, seed=seed
    )
    found = []
    for each in requests:
        output = min(each.output_tokens, context // 2)
        prompt = min(each.prompt_tokens, context - output)
        found.append(replace(each, prompt_tokens=prompt, output_tokens=output))
    return found


def _with_odds(requests: Sequence[SimulatedRequest], method: Simulated) -> list[SimulatedRequest]:
    """Return the same requests with odds of a method, each drawn by its own luck."""
    found = []
    for request in requests:
        entry = TASKS[request.kind.task]
        mean = typical_odds(entry, method, request.kind.temperature)
        odds = spread_odds(mean, entry, Random(request.seed))  # noqa: S311 - a simulation
        found.append(replace(request, odds=odds))
    return found


def _simulate(
    deployment: Deployment,
    speculating: int,
    demand: Demand,
    worlds: Sequence[Sequence[SimulatedRequest]],
) -> Split:
    counts = {"spec": speculating, "plain": deployment.servers - speculating}
    engines = {"spec": engine(deployment, demand), "plain": engine(deployment.plain, demand)}
    method = cast("Simulated", deployment.speculation.value)
    rows = []
    for world in worlds:
        pools = [_pool(name, engines[name], count) for name, count in counts.items() if count]
        replicas = replicas_of(pools, [[engines[p.name]] * len(p.backends) for p in pools])
        arm = ARMS[ADAPTIVE] if len(pools) > 1 else Arm(policy="least_loaded")
        requests = _with_odds(world, method) if speculating else world
        rows.append(Cluster(replicas, Routed(arm, pools, replicas)).run(requests))
    skipped = round(WARM_UP * demand.requests)
    e2e, ttft, tpot = (
        np.concatenate([np.asarray(getattr(each, name))[skipped:] for each in rows])
        for name in ("e2e_s", "ttft_s", "tpot_s")
    )
    within = (ttft <= demand.ttft_s) & (tpot <= demand.tpot_s)
    return Split(
        deployment=deployment,
        speculating=speculating,
        mean_e2e_s=float(e2e.mean()),
        p95_ttft_s=float(np.percentile(ttft, 95)),
        p95_tpot_s=float(np.percentile(tpot, 95)),
        within=float(within.mean()),
    )


def engine(deployment: Deployment, demand: Demand) -> EngineSettings:
    """Return the engine of one planned server."""
    return EngineSettings(
        cost=step_cost(deployment),
        speculation=cast("Simulated", deployment.speculation.value),
        k=deployment.k,
        max_num_seqs=max_num_seqs(deployment, demand),
        max_num_batched_tokens=_BATCH_TOKENS,
        kv_blocks=max(1, deployment.account.kv_tokens // _BLOCK_TOKENS),
        block_tokens=_BLOCK_TOKENS,
    )


def max_num_seqs(deployment: Deployment, demand: Demand) -> int:
    """Return how many requests of the demand's mean length the KV cache holds, within `_SEQS`."""
    requests = _arrivals(demand, 0, deployment.context)
    tokens = sum(each.prompt_tokens + each.output_tokens for each in requests)
    most = int(deployment.account.kv_tokens * len(requests) / tokens)
    return min(max(most, _SEQS[0]), _SEQS[1])


def _pool(name: str, settings: EngineSettings, count: int) -> Pool:
    return Pool(
        name=name,
        model="simulated",
        speculation=Speculation(settings.speculation),
        k=settings.k,
        max_num_seqs=settings.max_num_seqs,
        backends=[Backend(name=f"{name}-{number}") for number in range(count)],
    )


def schedule_for(split: Split, demand: Demand) -> Schedule:
    """Return vLLM's batch-size schedule, where every server speculates and it would change `k`.

    Beside a plain pool there is none: the gateway moves requests there, one by one.
    """
    deployment = split.deployment
    if split.speculating < deployment.servers or deployment.speculation not in SCHEDULED:
        return ()
    settings = engine(deployment, demand)
    kind = ServerKind(speculation=settings.speculation, k=settings.k)
    pairs = schedule(settings, typical(demand.mix, kind))
    return schedule_of(pairs) if len(pairs) > 1 else ()


def servers_of(split: Split, demand: Demand) -> list[Server]:
    """Return the servers of a split, the speculating ones first, with ports and GPUs."""
    deployment = split.deployment
    drafts = schedule_for(split, demand)
    found = []
    for index in range(deployment.servers):
        speculates = index < split.speculating
        own = deployment if speculates else deployment.plain
        found.append(
            Server(
                pool="spec" if speculates else "plain",
                number=index + 1 if speculates else index + 1 - split.speculating,
                port=FIRST_PORT + index,
                gpus=tuple(range(index * deployment.tp, (index + 1) * deployment.tp)),
                deployment=own,
                schedule=drafts if speculates else (),
                max_num_seqs=max_num_seqs(own, demand),
            )
        )
    return found


ASSUMED = (
    "Written by turnout plan pools. Assumed, from published figures and data sheets: method, k,\n"
    "how many servers speculate. turnout plan decide --gateway http://127.0.0.1:8080 says what\n"
    "real traffic makes of it, and turnout sweep measures acceptance and speed by temperature."
)


def pools_view(deployment: Deployment, demand: Demand) -> View:
    """Return the splits, the one to have, and the files that start it.

    Raises:
        PlanError: As `splits` does.
    """
    found = splits(deployment, demand)
    best = best_of(found)
    servers = servers_of(best, demand)
    files = {
        "servers.sh": script(servers),
        "docker-compose.yml": compose(servers, ASSUMED),
        "turnout.yaml": gateway_config(servers, ASSUMED),
    }
    commands = [server.command for server in servers]
    return View(
        title=f"Pools of {deployment.target.short} on {gpus_named(deployment)}",
        tables=[_table(found, best)],
        says=list(_sentences(found, best, demand)),
        commands=[*commands, START_GATEWAY],
        data={
            "assumed": True,
            "demand": asdict(demand),
            "best": _as_json(best),
            "splits": [_as_json(split) for split in found],
            "commands": commands,
        },
        bars={
            f"GPU {gpu}, {server.name}": segments(server.deployment)
            for server in servers
            for gpu in server.gpus
        },
        usable_gib=deployment.account.usable,
        files=files,
        failed=not best.keeps,
    )


def _as_json(split: Split) -> dict[str, Any]:
    figures = {key: value for key, value in asdict(split).items() if key != "deployment"}
    return described(split.deployment) | figures


def _label(split: Split) -> str:
    servers = split.deployment.servers
    if not split.speculating:
        return f"{servers} plain"
    method = f"{split.speculating} {split.deployment.speculation} k={split.deployment.k}"
    left = servers - split.speculating
    return f"{method} + {left} plain" if left else method


def _table(found: Sequence[Split], best: Split) -> Table:
    rows = [
        (
            _label(split),
            f"{split.mean_e2e_s:.2f}",
            f"{1000 * split.p95_ttft_s:.0f}",
            f"{1000 * split.p95_tpot_s:.1f}",
            f"{split.within:.1%}",
        )
        for split in found
    ]
    heads = ("servers", "E2E, s", "TTFT, ms", "TPOT, ms", "kept")
    heading = "Ways to use the servers, simulated: mean E2E, P95 of TTFT and TPOT, limits kept"
    return Table(heading, heads, rows, strong=_label(best))


def _sentences(found: Sequence[Split], best: Split, demand: Demand) -> Iterator[str]:
    servers = best.deployment.servers
    limits = f"TTFT {1000 * demand.ttft_s:g} ms, TPOT {1000 * demand.tpot_s:g} ms"
    plain = found[0]
    change = best.mean_e2e_s / plain.mean_e2e_s - 1.0
    against = f", {change:+.0%} against {_label(plain)}" if best.speculating else ""
    yield (
        f"Have {_label(best)}: mean latency {best.mean_e2e_s:.2f} s at {demand.rate_per_s:g} "
        f"requests/s{against}."
    )
    if not best.keeps:
        yield (
            f"No way keeps {WITHIN_SLO:.0%} of requests within {limits}: the best keeps "
            f"{best.within:.0%}; add servers, or plan for less."
        )
    if servers > 1 and best.speculating in (0, servers):
        kind = "speculates" if best.speculating else "is plain"
        mixed = [split for split in found if 0 < split.speculating < servers]
        cost = min((split.mean_e2e_s for split in mixed), default=0.0) / best.mean_e2e_s - 1.0
        costs = f"costs {cost:.0%} more" if cost > SEPARABLE else "is as fast"
        yield (
            f"One kind alone is best here: every server {kind}, and the gateway balances them. A "
            f"mix {costs} by these figures, and is what measures both kinds."
        )
    used = best.deployment.speculation
    yield (
        f"Assumed: {'acceptance, ' if used is not Speculation.NONE else ''}step times, lengths of "
        "prompts and outputs. Replace them with turnout sweep, and turnout plan decide."
    )
