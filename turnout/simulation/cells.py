"""Cells of the grid: one arm at one load, on one kind of server, in one seed's world."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from turnout.simulation.arms import ADAPTIVE, ARMS, assembled
from turnout.simulation.cluster import Cluster, Outage, Rows
from turnout.simulation.engine import Engine, EngineRequest
from turnout.simulation.loads import OUTAGE_AT, OUTAGE_S, Shape, load_named
from turnout.simulation.mixes import DEFAULT_MIX, MIXES
from turnout.simulation.servers import SERVER_KINDS, plain
from turnout.simulation.workloads import SimulatedRequest, Workload

CAPACITY_REQUESTS = 2000
CAPACITY_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What is simulated at once.

    Attributes:
        engine: Key of `SERVER_KINDS`.
        mix: Name of the workload's mix.
        load: Name of the load, as `loads.load_named` takes it.
        arm: Key of `ARMS`.
        seed: The seed.
        requests: How many requests.
    """

    engine: str
    mix: str = DEFAULT_MIX
    load: str
    arm: str
    seed: int
    requests: int


Results = Mapping[Cell, Rows]


def simulate(cell: Cell, workload: Workload) -> Rows:
    """Return what came of the requests of one cell."""
    server, load = SERVER_KINDS[cell.engine], load_named(cell.load)
    rate = load.share * capacity(workload)
    requests = workload.requests(server, load, rate=rate, count=cell.requests, seed=cell.seed)
    replicas, chooser = assembled(ARMS[cell.arm], server, workload.mix, requests)
    outage = _outage(requests) if load.shape is Shape.RESTART else None
    return Cluster(replicas, chooser).run(requests, outage)


def simulate_cell(
    *,
    engine: str = "eagle3",
    load: str = "40",
    arm: str = ADAPTIVE,
    seed: int = 0,
    requests: int = 1500,
    mix: str = DEFAULT_MIX,
) -> Rows:
    """Return what came of the requests of one cell, from names: for tuning at a prompt."""
    cell = Cell(engine=engine, mix=mix, load=load, arm=arm, seed=seed, requests=requests)
    return simulate(cell, Workload(mix=MIXES[mix]))


def _outage(requests: list[SimulatedRequest]) -> Outage:
    start = requests[int(OUTAGE_AT * len(requests))].arrives_s
    return Outage(from_s=start, to_s=start + OUTAGE_S)


@cache
def capacity(workload: Workload) -> float:
    """Return the requests per second that two plain servers do when they never run dry.

    Measured on one with a full queue, from the moment that the first batch is through (its
    requests began together) until the queue is empty.
    """
    settings = plain()
    engine = Engine(settings)
    requests = workload.requests(
        SERVER_KINDS["eagle3"],
        load_named("100"),
        rate=1.0,
        count=CAPACITY_REQUESTS,
        seed=CAPACITY_SEED,
    )
    for request in requests:
        engine.submit(
            EngineRequest(
                id=str(request.index),
                prompt_tokens=request.prompt_tokens,
                output_tokens=request.output_tokens,
            )
        )
    seconds, finished, counted = 0.0, 0, 0
    while engine.waiting and (result := engine.step()) is not None:
        finished += len(result.finished)
        if finished > settings.max_num_seqs:
            counted += len(result.finished)
            seconds += result.duration_s
    return 2.0 * counted / seconds
