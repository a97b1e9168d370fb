"""What knowing the future would have gained: `python -m benchmarks.hindsight reports/compare`.

The rounds of `turnout compare` are simulated on engines whose steps take what the adaptive gateway
has learnt, with requests that accept what those of their kind did: on two servers of each kind,
and on one of each kind by the assignment that a local search finds in hindsight. That one knows
all requests, those to come included, as no router can. It is no bound: a better assignment may
exist, and the engines are as good as what was learnt.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from statistics import fmean
from typing import NamedTuple

from routing.decision import Draws
from routing.demand import Demand
from routing.pools import Backend, Pool
from routing.tasks import TaskType
from routing.traffic import TrafficClass
from turnout.simulation.acceptance import Odds, alike
from turnout.simulation.cluster import Chosen, Cluster, Flight, Replica, replicas_of
from turnout.simulation.engine import EngineSettings
from turnout.simulation.mixes import Kind
from turnout.simulation.workloads import SimulatedRequest
from turnout.tuning.advice import learnt_engines
from turnout.tuning.compare.advised import demand_of
from turnout.tuning.compare.bench import LEARNT
from turnout.tuning.compare.protocol import ADAPTIVE
from turnout.tuning.compare.rows import Results, Row
from turnout.tuning.learnt import read_learnt

PASSES = 3
"""How often the search tries every request on the other server; the second finds little."""
NO_DRAWS = Draws(1.0, 1.0, (), 0.5)

Engines = tuple[EngineSettings, EngineSettings]


class Line(NamedTuple):
    """Mean latencies at a load over that of two plain servers, simulated; and measured ones."""

    load: str
    spec: float
    hindsight: float
    measured_spec: float
    measured_adaptive: float


class Assigned:
    """Sends each request where it was assigned to."""

    def __init__(self, places: Sequence[int]) -> None:
        self._places = places

    def choose(
        self, request: SimulatedRequest, replicas: Sequence[Replica], *, now: float, again: str
    ) -> Chosen:
        """Return the replica of the request's place."""
        del now, again
        return Chosen(replicas[self._places[request.index]])

    def stepped(self, replica: Replica, gap_s: float, *, count: int, now: float) -> None:
        """Learn nothing."""

    def finished(self, flight: Flight, *, now: float) -> None:
        """Learn nothing."""

    def restarted(self, replica: Replica) -> None:
        """Learn nothing."""


def main() -> None:
    """Print a table of the loads."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="results of `turnout compare`")
    results = Results.there(parser.parse_args().folder)
    print("| load | 2x spec: measured | simulated | 1+1 adaptive: measured | 1+1 in hindsight |")
    print("|---|---:|---:|---:|---:|")
    for line in lines(results):
        print(
            f"| {line.load} | {line.measured_spec:.3f} | {line.spec:.3f} "
            f"| {line.measured_adaptive:.3f} | {line.hindsight:.3f} |",
            flush=True,
        )


def lines(results: Results) -> Iterator[Line]:
    """Yield what was measured and what is simulated at each load, over two plain servers."""
    protocol = results.protocol
    learner, pools = read_learnt(results.folder / "gateways" / ADAPTIVE / LEARNT)
    spec = next(pool for pool in pools.values() if pool.speculates)
    plain = next(pool for pool in pools.values() if not pool.speculates)
    odds = odds_by_kind(results.rows, spec.k)
    for load in protocol.loads:
        rows = [row for row in results.rows if row.load == load.name]
        mine = [row for row in rows if row.arm == ADAPTIVE]
        demand = demand_of(learner, spec, mine, rate_per_s=protocol.rate_per_s(load.name))
        engines = learnt_engines(learner, spec, plain, demand, now=0.0)
        found = [
            simulated(requests_of([row for row in mine if row.round == number], odds, demand),
                      engines, (spec, plain))
            for number in sorted({row.round for row in mine})
        ]  # fmt: skip
        speculating, hindsight = map(fmean, zip(*found, strict=True))
        measured = {
            arm: fmean(row.e2e_s for row in rows if row.arm == arm)
            for arm in ("2x-plain", "2x-spec", ADAPTIVE)
        }
        yield Line(
            load.name,
            speculating,
            hindsight,
            measured["2x-spec"] / measured["2x-plain"],
            measured[ADAPTIVE] / measured["2x-plain"],
        )


def odds_by_kind(rows: Sequence[Row], k: int) -> Mapping[str, Odds]:
    """Return how often the requests of each kind drafted, and what they accepted of it."""
    found = {}
    for kind in {row.kind for row in rows}:
        told = [row for row in rows if row.kind == kind and row.drafted and row.tokens]
        accepted = sum(row.accepted or 0 for row in told)
        steps = sum((row.tokens or 0) - 1 for row in told) - accepted
        drafting = sum(row.drafted or 0 for row in told) / k
        found[kind] = alike(min(1.0, drafting / steps), accepted / steps, k)
    return found


def requests_of(
    rows: Sequence[Row], odds: Mapping[str, Odds], demand: Mapping[TrafficClass, Demand]
) -> list[SimulatedRequest]:
    """Return the requests of a round, as they came."""
    prompt_tokens = {each.label: asked.prompt_tokens for each, asked in demand.items()}
    return [
        SimulatedRequest(
            index=index,
            arrives_s=row.due_s,
            kind=Kind(task=TaskType.UNKNOWN, temperature=0.0, weight=1.0),
            label=TaskType.UNKNOWN,
            prompt_tokens=round(prompt_tokens[row.traffic_class or ""]),
            output_tokens=row.tokens or 1,
            odds=odds[row.kind],
            seed=index,
            draws=NO_DRAWS,
        )
        for index, row in enumerate(sorted(rows, key=lambda row: row.arrival))
    ]


def simulated(
    requests: Sequence[SimulatedRequest], engines: Engines, pools: tuple[Pool, Pool]
) -> tuple[float, float]:
    """Return mean latencies over that of two plain servers: of two speculating, in hindsight."""
    in_turn = [request.index % 2 for request in requests]
    spec, plain = zip(engines, pools, strict=True)
    plain_s = latency_s(requests, in_turn, (plain, plain))
    spec_s = latency_s(requests, in_turn, (spec, spec))
    return spec_s / plain_s, least_s(requests, in_turn, (spec, plain)) / plain_s


def least_s(
    requests: Sequence[SimulatedRequest],
    places: Sequence[int],
    servers: Sequence[tuple[EngineSettings, Pool]],
) -> float:
    """Return the least latency found by moving one request at a time, beginning with `places`."""
    places, chance = list(places), Random(0)  # noqa: S311 - a search, not a secret
    least = latency_s(requests, places, servers)
    for _ in range(PASSES):
        before = least
        for index in chance.sample(range(len(places)), len(places)):
            places[index] ^= 1
            if (moved := latency_s(requests, places, servers)) < least:
                least = moved
            else:
                places[index] ^= 1
        if least == before:
            break
    return least


def latency_s(
    requests: Sequence[SimulatedRequest],
    places: Sequence[int],
    servers: Sequence[tuple[EngineSettings, Pool]],
) -> float:
    """Return the mean latency of an assignment."""
    settings = [engine for engine, _ in servers]
    pools = [
        pool.like([Backend(name=f"{pool.name}-{number}")])
        for number, (_, pool) in enumerate(servers)
    ]
    replicas = replicas_of(pools, [[each] for each in settings])
    return fmean(Cluster(replicas, Assigned(places)).run(requests).e2e_s)


if __name__ == "__main__":
    main()
