"""Whether the advice on pools names the best split: `python -m benchmarks.advice`.

In each place of the simulation's grid the adaptive policy routes one seed's requests between a
speculating and a plain server; from what it has learnt by the end the advice names a split of the
two servers. Beside it stands which split is best in truth: all three, simulated with other seeds.
"""

import argparse
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from statistics import fmean
from typing import NamedTuple

from routing.demand import Demand
from routing.traffic import TrafficClass
from turnout.simulation.arms import ADAPTIVE, ARMS, Routed, assembled
from turnout.simulation.cells import Cell, capacity, simulate
from turnout.simulation.cluster import Cluster
from turnout.simulation.loads import load_named
from turnout.simulation.mixes import DEFAULT_MIX, MIXES, SCENARIOS
from turnout.simulation.servers import SERVER_KINDS
from turnout.simulation.workloads import Workload
from turnout.tuning.advice import advise

SPLITS = ("2x-plain", ADAPTIVE, "2x-spec")
"""The arm of each split, by how many servers speculate."""
LOADS = ("10", "40", "85", "120")
LEARNT, TRUTH = 0, (1, 2, 3)
"""Seeds of what is learnt from, and of the truth."""


class Place(NamedTuple):
    """A kind of server, a mix and a load."""

    engine: str
    mix: str
    load: str


class Row(NamedTuple):
    """What was advised in a place, which split is best there, and what following it loses."""

    place: Place
    advised: str
    best: str
    loss: float


def main() -> None:
    """Print a table of all places."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=1500, help="per simulation (1500)")
    parser.add_argument("--jobs", type=int, default=None, help="processes (default: a core each)")
    args = parser.parse_args()
    places = [Place(*each) for each in product(SERVER_KINDS, [DEFAULT_MIX], LOADS)]
    places += [Place("eagle3", mix, load) for mix, load in product(SCENARIOS, ("40", "85"))]
    with ProcessPoolExecutor(args.jobs) as pool:
        rows = list(pool.map(judged, places, [args.requests] * len(places)))
    for line in table(rows):
        print(line)


def judged(place: Place, requests: int) -> Row:
    """Return the advice in a place, held against the truth."""
    advised = SPLITS[advice_in(place, requests)]
    means = {
        arm: fmean(fmean(_counted(place, arm, seed, requests)) for seed in TRUTH) for arm in SPLITS
    }
    best = min(means, key=lambda arm: means[arm])
    return Row(place, advised, best, means[advised] / means[best] - 1.0)


def advice_in(place: Place, requests: int) -> int:
    """Return how many servers should speculate, from what routing there has taught."""
    workload, shape = Workload(mix=MIXES[place.mix]), load_named(place.load)
    server = SERVER_KINDS[place.engine]
    rate = shape.share * capacity(workload)
    asked = workload.requests(server, shape, rate=rate, count=requests, seed=LEARNT)
    replicas, chooser = assembled(ARMS[ADAPTIVE], server, workload.mix)
    assert isinstance(chooser, Routed), chooser
    Cluster(replicas, chooser).run(asked)
    spec, plain = (replica.pool for replica in replicas)
    demand = {
        each: found._replace(rate_per_s=rate * found.rate_per_s)
        for each, found in _shares(chooser, asked[-1].arrives_s).items()
    }
    given = advise(chooser.router.learner, spec, plain, now=asked[-1].arrives_s, demand=demand)
    return given.best.speculating


def _shares(chooser: Routed, now: float) -> dict[TrafficClass, Demand]:
    """Return the demand that was seen, its rates as shares: the warm-up was slower."""
    demand = chooser.router.learner.demand.of("simulated", now=now)
    total = sum(found.rate_per_s for found in demand.values())
    return {
        each: found._replace(rate_per_s=found.rate_per_s / total) for each, found in demand.items()
    }


def _counted(place: Place, arm: str, seed: int, requests: int) -> Sequence[float]:
    cell = Cell(
        engine=place.engine, mix=place.mix, load=place.load, arm=arm, seed=seed, requests=requests
    )
    rows = simulate(cell, Workload(mix=MIXES[place.mix]))
    return rows.e2e_s[requests // 10 :]


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the rows as Markdown."""
    yield "| server | mix | load | advised | best | lost by following it |"
    yield "|---|---|---|---|---|---|"
    for (engine, mix, load), advised, best, loss in rows:
        yield f"| {engine} | {mix} | {load} % | {advised} | {best} | {loss:.1%} |"


if __name__ == "__main__":
    main()
