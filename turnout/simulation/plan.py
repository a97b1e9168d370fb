"""Which cells are simulated, and simulating them side by side."""

import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from turnout.simulation.arms import ARMS
from turnout.simulation.cells import Cell, simulate
from turnout.simulation.cluster import Rows
from turnout.simulation.loads import LOADS, load_named
from turnout.simulation.mixes import DEFAULT_MIX, MIXES, SCENARIOS, Mix, parse_mix
from turnout.simulation.servers import SERVER_KINDS
from turnout.simulation.workloads import Workload, read_statistics, read_trace

SCENARIO_ENGINE = "eagle3"
SCENARIO_LOADS = ("40", "85")
"""Where the named scenarios are simulated beside the grid: where drafts go to every request."""
FEWEST_REQUESTS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is simulated.

    Attributes:
        arms: Keys of `ARMS`.
        loads: As `load_named` takes them.
        engines: Keys of `SERVER_KINDS`.
        seeds: The seeds.
        requests: Requests per cell.
        mixes: By name; all of them on the whole grid.
        scenarios: Named scenarios that come in addition, on a part of it.
        trace: File of arrivals, or None.
        statistics: File of acceptance per request, or None.

    Raises:
        ValueError: If a name is not known, or a number is out of its range.
    """

    arms: tuple[str, ...] = tuple(ARMS)
    loads: tuple[str, ...] = tuple(LOADS)
    engines: tuple[str, ...] = tuple(SERVER_KINDS)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    requests: int = 1500
    mixes: Mapping[str, Mix]
    scenarios: tuple[str, ...] = ()
    trace: Path | None = None
    statistics: Path | None = None

    def __post_init__(self) -> None:
        _known("arm", self.arms, ARMS)
        _known("engine", self.engines, SERVER_KINDS)
        _known("scenario", self.scenarios, SCENARIOS)
        for load in self.loads:
            load_named(load)
        if not self.seeds:
            raise ValueError("0 seeds simulate nothing; at least 1 is needed")
        if self.requests < FEWEST_REQUESTS:
            msg = f"{self.requests} requests say nothing; at least {FEWEST_REQUESTS} are needed"
            raise ValueError(msg)

    @property
    def cells(self) -> list[Cell]:
        """Every cell, place by place and seed by seed, so that what is cut short is whole."""
        places = [
            (engine, mix, load)
            for mix in self.mixes
            for engine in self.engines
            for load in self.loads
        ]
        places += [
            (SCENARIO_ENGINE, mix, load)
            for mix in self.scenarios
            for load in SCENARIO_LOADS
            if SCENARIO_ENGINE in self.engines and load in self.loads
        ]
        return [
            Cell(engine=engine, mix=mix, load=load, arm=arm, seed=seed, requests=self.requests)
            for engine, mix, load in places
            for seed in self.seeds
            for arm in self.arms
        ]

    def workload(self, mix: str) -> Workload:
        """Return what the requests of a mix are drawn from."""
        kinds = self.mixes.get(mix) or MIXES[mix]
        return Workload(mix=kinds, trace=self.trace, statistics=self.statistics)

    def check_files(self) -> None:
        """Read the files once.

        Raises:
            ValueError: If one does not hold what it should.
            OSError: If one cannot be read.
        """
        if self.trace:
            read_trace(self.trace)
        if self.statistics:
            for name in self.engines:
                server = SERVER_KINDS[name]
                read_statistics(self.statistics, server.speculation, server.k)


OWN_MIX = "own"


def mixes_of(mix: str | None, scenarios: Sequence[str]) -> Mapping[str, Mix]:
    """Return the mixes of a grid: a known one or one's own, scenarios, or the default.

    Raises:
        ValueError: If `mix` is neither a name nor can be read, or a scenario is not known.
    """
    _known("scenario", scenarios, SCENARIOS)
    if mix is not None and mix not in MIXES:
        return {OWN_MIX: parse_mix(mix)}
    return {name: MIXES[name] for name in scenarios or [mix or DEFAULT_MIX]}


def _known(what: str, names: Sequence[str], known: Mapping[str, object] | Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{what} {name!r} is not one of {', '.join(known)}")


def run(plan: Plan, *, jobs: int, done: Callable[[Cell, Rows], None]) -> None:
    """Simulate every cell in `jobs` processes; `done` sees each as it is finished.

    An interrupt gives up the cells that have not begun, lets the others end, and is raised.
    """
    context = get_context("spawn")  # a fork would copy the threads of a progress display
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_ignore_interrupt)
    try:
        cells = {pool.submit(simulate, cell, plan.workload(cell.mix)): cell for cell in plan.cells}
        for future in as_completed(cells):
            done(cells[future], future.result())
    finally:
        pool.shutdown(cancel_futures=True)


def _ignore_interrupt() -> None:
    """Leave Ctrl-C to the process that started this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
