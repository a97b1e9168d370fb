"""Replicas over time: requests come, are sent somewhere, and engines take one step after another.

The clock jumps from one event to the next. A replica is an engine that steps for as long as it has
requests; what a step yields is seen when it ends, by clients and by whoever chooses replicas.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple, Protocol

from routing.pools import Backend, Pool
from turnout.simulation.engine import (
    Engine,
    EngineRequest,
    EngineSequence,
    EngineSettings,
    StepResult,
)
from turnout.simulation.truth import true_cost
from turnout.simulation.workloads import SimulatedRequest


@dataclass(slots=True, eq=False)
class Flight:
    """A request under way.

    Attributes:
        request: What it is.
        replica: Where it was sent.
        sequence: Its record in the engine.
        sent_s: When.
        in_flight: Requests there, itself included.
        pending_tokens: Prompt tokens to be read there before its own.
        randomised: Whether chance alone chose the pool.
        first_s: When its first token came; None before.
    """

    request: SimulatedRequest
    replica: "Replica"
    sequence: EngineSequence
    sent_s: float
    in_flight: int
    pending_tokens: float
    randomised: bool
    first_s: float | None = None

    @property
    def begun(self) -> bool:
        """Whether its first token is out with the step under way."""
        return self.sequence.left < self.request.output_tokens


@dataclass(slots=True, eq=False)
class Replica:
    """An engine with what the router knows of it.

    Attributes:
        pool: The pool it is in.
        backend: Its record there.
        engine: What it does.
        flights: Requests sent and not finished, by id.
        prefilling: Those of them without a first token.
        result: The step under way.
        ends_s: When that ends; infinite where there is none.
        stalled: Whether a prompt may be read in it.
    """

    pool: Pool
    backend: Backend
    engine: Engine
    flights: dict[str, Flight] = field(default_factory=dict)
    prefilling: list[Flight] = field(default_factory=list)
    result: StepResult | None = None
    ends_s: float = inf
    stalled: bool = False

    def begin_step(self, now: float) -> None:
        """Take the next step, if there is anything to do."""
        self.result = result = self.engine.step()
        self.ends_s = inf if result is None else now + result.duration_s
        self.stalled = bool(self.prefilling)

    def clear(self) -> list[Flight]:
        """Lose all that was under way, and return it in the order it was sent."""
        lost = list(self.flights.values())
        self.flights.clear()
        self.engine = Engine(self.engine.settings)
        self.prefilling.clear()
        self.backend.in_flight, self.backend.pending_tokens = 0, 0.0
        self.result, self.ends_s = None, inf
        return lost


class Chosen(NamedTuple):
    """Where a request goes, and whether chance alone chose the pool."""

    replica: Replica
    randomised: bool = False


class Chooser(Protocol):
    """Sends requests to replicas and sees what comes of it."""

    def choose(
        self, request: SimulatedRequest, replicas: Sequence[Replica], *, now: float, again: str
    ) -> Chosen:
        """Return a healthy replica; `again` names the backend that lost it before, if any."""
        ...

    def stepped(self, replica: Replica, gap_s: float, *, count: int, now: float) -> None:
        """See the gap between two chunks of `count` streams."""
        ...

    def finished(self, flight: Flight, *, now: float) -> None:
        """See a finished request."""
        ...

    def restarted(self, replica: Replica) -> None:
        """See a replica come back from a restart."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """When the first replica is gone, s."""

    from_s: float
    to_s: float


def _numbers() -> "array[float]":
    return array("f")


@dataclass(slots=True, kw_only=True)
class Rows:
    """What came of each request, a column per fact, by the order of arrival.

    Attributes:
        ttft_s: From arrival to the first token of the answer that was finished.
        e2e_s: From arrival to the last token.
        tpot_s: Between them, per token after the first.
        kind: Number of its kind, in `kinds`.
        traffic_class: Number of what the router takes it for, task and temperature.
        pool: Number of its replica's pool.
        accepted: Draft tokens accepted.
        drafted: Draft tokens verified.
        randomised: 1 where chance alone chose the pool, else 0.
        cost_s: What it really cost where it went, J, as things were when it was sent.
        least_s: The least that it would have cost anywhere.
        kinds: Labels of the kinds.
    """

    ttft_s: "array[float]" = field(default_factory=_numbers)
    e2e_s: "array[float]" = field(default_factory=_numbers)
    tpot_s: "array[float]" = field(default_factory=_numbers)
    kind: "array[float]" = field(default_factory=_numbers)
    traffic_class: "array[float]" = field(default_factory=_numbers)
    pool: "array[float]" = field(default_factory=_numbers)
    accepted: "array[float]" = field(default_factory=_numbers)
    drafted: "array[float]" = field(default_factory=_numbers)
    randomised: "array[float]" = field(default_factory=_numbers)
    cost_s: "array[float]" = field(default_factory=_numbers)
    least_s: "array[float]" = field(default_factory=_numbers)
    kinds: list[str] = field(default_factory=list)


def replicas_of(
    pools: Sequence[Pool], settings: Sequence[Sequence[EngineSettings]]
) -> list[Replica]:
    """Return a replica for every backend of `pools`, with engines by pool and backend."""
    return [
        Replica(pool, backend, Engine(each))
        for pool, engines in zip(pools, settings, strict=True)
        for backend, each in zip(pool.backends, engines, strict=True)
    ]


class Cluster:
    """Replicas that serve requests sent by a chooser.

    Args:
        replicas: At least one.
        chooser: Sends the requests.
    """

    def __init__(self, replicas: Sequence[Replica], chooser: Chooser) -> None:
        self.replicas = replicas
        self._chooser = chooser
        self._pools = list(dict.fromkeys(replica.pool.name for replica in replicas))
        self._costs: dict[int, tuple[float, float]] = {}
        self._done: dict[int, tuple[Flight, float]] = {}

    def run(self, requests: Sequence[SimulatedRequest], outage: Outage | None = None) -> Rows:
        """Serve `requests`, in order of arrival, to the end."""
        for now, request, lost in _timeline(requests, outage):
            self._advance(now)
            if request is not None:
                self._send(request, now)
            elif lost:
                self._lose(self.replicas[0], now)
            else:
                self.replicas[0].backend.healthy = True
                self._chooser.restarted(self.replicas[0])
        self._advance(inf)
        return self._rows(requests)

    def _advance(self, until: float) -> None:
        """Let every step end that does so by `until`, s."""
        while True:
            replica = min(self.replicas, key=_ends)
            now = replica.ends_s
            if now > until or now == inf:
                return
            self._end_step(replica, now)
            replica.begin_step(now)

    def _end_step(self, replica: Replica, now: float) -> None:
        result = replica.result
        if result is None:
            return
        streams = len(result.emissions)
        if replica.prefilling:
            streams -= _first_tokens(replica, now)
        if streams:
            self._chooser.stepped(replica, result.duration_s, count=streams, now=now)
        for name in result.finished:
            flight = replica.flights.pop(name)
            replica.backend.in_flight -= 1
            self._done[flight.request.index] = flight, now
            self._chooser.finished(flight, now=now)

    def _send(self, request: SimulatedRequest, now: float, again: str = "") -> None:
        costs = [
            true_cost(replica.engine, request) if replica.backend.healthy else inf
            for replica in self.replicas
        ]
        replica, randomised = self._chooser.choose(request, self.replicas, now=now, again=again)
        self._costs[request.index] = costs[self.replicas.index(replica)], min(costs)
        replica.backend.in_flight += 1
        name = str(request.index)
        sequence = replica.engine.submit(
            EngineRequest(
                id=name,
                prompt_tokens=request.prompt_tokens,
                output_tokens=request.output_tokens,
                odds=request.odds,
                seed=request.seed,
            )
        )
        backend = replica.backend
        flight = Flight(
            request, replica, sequence, now, backend.in_flight, backend.pending_tokens, randomised
        )
        replica.flights[name] = flight
        replica.prefilling.append(flight)
        replica.backend.pending_tokens += request.prompt_tokens
        if replica.result is None:
            replica.begin_step(now)

    def _lose(self, replica: Replica, now: float) -> None:
        """Take a replica out; what it ran is sent again."""
        replica.backend.healthy = False
        for flight in replica.clear():
            self._send(flight.request, now, again=replica.backend.name)

    def _rows(self, requests: Sequence[SimulatedRequest]) -> Rows:
        rows = Rows(kinds=sorted({request.kind.label for request in requests}))
        classes: dict[tuple[str, float], int] = {}
        for request in requests:
            flight, end_s = self._done[request.index]
            first_s = flight.first_s or end_s
            cost_s, least_s = self._costs[request.index]
            rows.ttft_s.append(first_s - request.arrives_s)
            rows.e2e_s.append(end_s - request.arrives_s)
            rows.tpot_s.append((end_s - first_s) / (request.output_tokens - 1))
            rows.kind.append(rows.kinds.index(request.kind.label))
            taken_for = request.label, request.kind.temperature
            rows.traffic_class.append(classes.setdefault(taken_for, len(classes)))
            rows.accepted.append(flight.sequence.accepted)
            rows.drafted.append(flight.sequence.drafted)
            rows.pool.append(self._pools.index(flight.replica.pool.name))
            rows.randomised.append(flight.randomised)
            rows.cost_s.append(cost_s)
            rows.least_s.append(least_s)
        return rows


def _first_tokens(replica: Replica, now: float) -> int:
    """Note who has a first token with the step that ends; return how many."""
    begun = [flight for flight in replica.prefilling if flight.begun]
    for flight in begun:
        flight.first_s = now
        replica.backend.pending_tokens -= flight.request.prompt_tokens
    if begun:
        replica.prefilling = [flight for flight in replica.prefilling if flight.first_s is None]
    return len(begun)


def _ends(replica: Replica) -> float:
    return replica.ends_s


_Event = tuple[float, SimulatedRequest | None, bool]


def _timeline(requests: Sequence[SimulatedRequest], outage: Outage | None) -> Iterator[_Event]:
    """Yield arrivals, and the replica's loss (None, True) and return (None, False), in order."""
    events: list[_Event] = [(request.arrives_s, request, False) for request in requests]
    if outage:
        events += [(outage.from_s, None, True), (outage.to_s, None, False)]
    yield from sorted(events, key=_at)


def _at(event: _Event) -> float:
    return event[0]
