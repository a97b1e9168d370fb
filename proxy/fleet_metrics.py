"""The series of pools and backends, read off the fleet when somebody scrapes."""

from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from math import inf

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from proxy.discovery import Discovery, MismatchKind
from proxy.fleet import Fleet, Member
from proxy.lifecycle import Lifecycle
from proxy.readings import Readings
from proxy.team import Team
from proxy.waiting import WaitingRoom
from routing.breaker import CircuitState
from routing.quarantine import Quarantine
from routing.router import Router


def gateway_version() -> str:
    """Return the version of this gateway; `unknown` when it runs from a bare source tree."""
    try:
        return version("turnout")
    except PackageNotFoundError:
        return "unknown"


_Rows = Iterable[tuple[tuple[str, ...], float]]


class FleetState(Collector):
    """The series of pools and backends.

    Args:
        fleet: Pools and backends.
        discovery: In what servers differ from what is declared.
        router: Which pools shed.
        lifecycle: Whether the gateway drains.
        room: Who waits for a backend.
        quarantine: What is kept from which pool.
        team: The workers.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        fleet: Fleet,
        *,
        discovery: Discovery,
        router: Router,
        lifecycle: Lifecycle,
        room: WaitingRoom,
        quarantine: Quarantine,
        team: Team,
        clock: Callable[[], float],
    ) -> None:
        self._fleet = fleet
        self._discovery = discovery
        self._router = router
        self._lifecycle = lifecycle
        self._room = room
        self._quarantine = quarantine
        self._team = team
        self._readings = Readings(team)
        self._clock = clock

    def describe(self) -> Iterable[Metric]:
        """Leave names unchecked at registration, before anything was learnt."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield what holds at this moment; a sample that is not known is left out."""
        yield _gauge("turnout_build_info", "Version.", ("version",), [((gateway_version(),), 1)])
        draining = [((), float(self._lifecycle.leaving))]
        yield _gauge("turnout_draining", "1 while shutting down.", (), draining)
        waiting = [((), float(self._room.everywhere))]
        yield _gauge("turnout_queue_length", "Requests that wait for a backend.", (), waiting)
        workers = [((), 1.0 + len(self._team.others))]
        yield _gauge("turnout_workers", "Processes that serve.", (), workers)
        restarts = CounterMetricFamily(
            "turnout_worker_restarts", "Workers that died and were replaced."
        )
        restarts.add_metric((), self._team.restarts)
        yield restarts
        yield from self._pools()
        yield self._held()
        yield from self._backends()
        yield from self._mismatches()
        yield from self._scraped()

    def _pools(self) -> Iterator[Metric]:
        pools, now = self._fleet.pools, self._clock()
        yield _gauge(
            "turnout_pool_info",
            "What a pool is taken to be.",
            ("pool", "model", "speculation", "k"),
            [((p.name, p.model, p.speculation.value, str(p.k)), 1) for p in pools],
        )
        yield _gauge(
            "turnout_pool_speculates",
            "1 where the pool drafts.",
            ("pool",),
            [((pool.name,), pool.speculates) for pool in pools],
        )
        yield _gauge(
            "turnout_pool_shedding",
            "1 while the pool is over a load mark.",
            ("pool",),
            [((pool.name,), self._router.shedding(pool, now=now)) for pool in pools],
        )

    def _held(self) -> Metric:
        now = self._clock()
        return _gauge(
            "turnout_quarantine",
            "1 while requests with these parameters are kept from a pool.",
            ("pool", "parameters"),
            [
                ((pool, "+".join(held.shape)), 1)
                for held in self._quarantine.held.values()
                for pool in held.pools
                if now < held.until
            ],
        )

    def _backends(self) -> Iterator[Metric]:
        now = self._clock()
        yield self._per_backend(
            "turnout_in_flight",
            "Requests sent and not finished.",
            lambda member: member.load.in_flight,
        )
        yield self._per_backend(
            "turnout_backend_up",
            "1 while it may be given requests.",
            lambda member: member.load.healthy,
        )
        yield self._per_backend(
            "turnout_backend_drained",
            "1 while an operator keeps requests from it.",
            lambda member: member.drained,
        )
        yield self._per_backend(
            "turnout_backend_warming_up",
            "1 while it came back and is given ever more requests.",
            lambda member: member.load.ceiling < inf and not _CIRCUIT[member.circuit.state],
        )
        yield self._per_backend(
            "turnout_backend_circuit",
            "What its requests say of it: 0 closed, 1 half-open, 2 open.",
            lambda member: _CIRCUIT[member.circuit.state],
        )
        yield self._per_backend(
            "turnout_backend_scrape_age_seconds",
            "Since its metrics were last read.",
            lambda member: None if member.scraped_at is None else now - member.scraped_at,
        )

    def _mismatches(self) -> Iterator[Metric]:
        found = {(mismatch.backend, mismatch.kind) for mismatch in self._discovery.verify()}

        def has(member: Member, *kinds: MismatchKind) -> bool:
            return any((member.name, kind) in found for kind in kinds)

        yield self._per_backend(
            "turnout_backend_speculation_mismatch",
            "1 where it drafts otherwise than its pool.",
            lambda member: has(member, MismatchKind.SPECULATION, MismatchKind.K),
        )
        yield self._per_backend(
            "turnout_backend_model_mismatch",
            "1 where it does not serve its pool's model.",
            lambda member: has(member, MismatchKind.MODEL),
        )
        yield self._per_backend(
            "turnout_backend_acceptance_readable",
            "1 where whether it drafts, and how well, can be read.",
            lambda member: (
                not has(member, MismatchKind.ACCEPTANCE_UNREADABLE) if member.reached else None
            ),
        )

    def _scraped(self) -> Iterator[Metric]:
        yield self._per_backend(
            "turnout_backend_running",
            "Requests it runs.",
            lambda member: member.gauges.get("running"),
        )
        yield self._per_backend(
            "turnout_backend_waiting",
            "Requests in its queue.",
            lambda member: member.gauges.get("waiting"),
        )
        yield self._per_backend(
            "turnout_backend_kv_cache_usage_ratio",
            "KV-cache in use, of its fullest engine.",
            lambda member: member.gauges.get("kv_cache_usage"),
        )
        counters = {
            "preemptions": "Requests it preempted for want of KV-cache.",
            "prefix_cache_queries": "Prompt tokens looked up in its prefix cache.",
            "prefix_cache_hits": "Prompt tokens found there.",
        }
        for key, text in counters.items():
            family = CounterMetricFamily(
                f"turnout_backend_{key}", text, labels=("pool", "backend")
            )
            for member in self._fleet.members.values():
                count = self._readings.count(member.name, key)
                if key in member.gauges and count is not None:
                    family.add_metric((member.pool.name, member.name), count)
            yield family

    def _per_backend(
        self, name: str, text: str, value: Callable[[Member], float | None]
    ) -> GaugeMetricFamily:
        """Return a gauge with a value per backend; where it is not known there is no sample."""
        rows = []
        for member in self._fleet.members.values():
            known = value(member)
            if known is not None:
                rows.append(((member.pool.name, member.name), known))
        return _gauge(name, text, ("pool", "backend"), rows)


def _gauge(name: str, text: str, labels: tuple[str, ...], rows: _Rows) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, value in rows:
        family.add_metric(values, float(value))
    return family


_CIRCUIT = {CircuitState.CLOSED: 0, CircuitState.HALF_OPEN: 1, CircuitState.OPEN: 2}
