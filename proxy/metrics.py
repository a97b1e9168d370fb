"""Every series the gateway exports, in one class; `docs/metrics.md` says what each is for.

Request series are fed by one call per finished request, a few microseconds each; series of pools
and backends are read off the fleet when somebody scrapes. Every label takes a bounded set of
values: what is configured, enumerated, or served.
"""

import asyncio
from collections.abc import Callable, Iterable
from itertools import product

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from proxy.counters import Counters, HistogramFamily
from proxy.discovery import Discovery
from proxy.errors import BackendError
from proxy.fleet import Change, Fleet
from proxy.fleet_metrics import FleetState
from proxy.learned_metrics import LearntState
from proxy.lifecycle import Lifecycle
from proxy.parsing import ROUTES
from proxy.record import AcceptanceSource, Ending, RequestRecord
from proxy.team import Team
from proxy.waiting import WaitingRoom
from routing.decision import Reason
from routing.pools import Pool
from routing.quarantine import Quarantine
from routing.router import Router
from routing.tasks import TaskType
from routing.traffic import TemperatureBucket

NO_POOL = "none"
"""Label `pool` of a request that ended before a pool was chosen."""
UNSUPPORTED = "unsupported"
"""Label `cause` of a request retried because a speculating server refused a parameter."""


def _kinds(error: type[BackendError]) -> list[str]:
    """Return the kinds of error that there are below `error`."""
    return [kind for each in error.__subclasses__() for kind in _kinds(each)] or [error.kind]


ERROR_KINDS = tuple(_kinds(BackendError))
MAX_MODELS = 100
"""Names that label `gen_ai_request_model` may take; adapters can be loaded without limit."""

TPOT_BUCKETS_S = (
    *(0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.06, 0.075),
    *(0.1, 0.125, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5),
)
"""Finer than vLLM's own, whose first step is 10 ms: P50 and P99 of two pools must be told apart
where a small model needs 5 ms a token and a CPU 50."""
TTFT_BUCKETS_S = (
    *(0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75),
    *(1.0, 1.5, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0),
)
DURATION_BUCKETS_S = (
    *(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0),
    *(120.0, 300.0, 600.0),
)
RATIO_BUCKETS = tuple(step / 20 for step in range(1, 21))
TAU_BUCKETS = (1.0, 1.05, 1.1, 1.2, 1.3, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0)
TEMPERATURE_BUCKETS = (0.0, 0.2, 0.5, 0.7, 1.0, 1.5, 2.0)
"""The edges of the traffic classes, and the ends of OpenAI's range."""

# Boundaries that the OpenTelemetry semantic conventions for generative AI advise.
GEN_AI_TTFT_BUCKETS_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0),
)
GEN_AI_TPOT_BUCKETS_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5),
)
GEN_AI_DURATION_BUCKETS_S = (
    *(0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92),
)
_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
CHAT = "/v1/chat/completions"


async def exposition(*collectors: Collector) -> bytes:
    """Return the Prometheus text of `collectors`, letting the streams move between series.

    Two thousand lines take 20 ms in one piece, which every stream would wait for.
    """
    texts = []
    for collector in collectors:
        for family in collector.collect():
            texts.append(generate_latest(_One(family)))
            await asyncio.sleep(0)
    return b"".join(texts)


class _One(Collector):
    """One family, as a collector."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterable[Metric]:
        yield self._family


class Metrics:
    """Every series of the gateway.

    Args:
        registry: Where they are registered.
        fleet: Pools and backends, read at each scrape.
        discovery: What its servers differ in from what is declared.
        router: Which pools shed.
        lifecycle: Whether the gateway drains.
        room: Who waits for a backend.
        quarantine: What is kept from which pool.
        team: The workers that count.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
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
        counters = Counters(team.own, team.others)
        self._declare_counters(counters)
        for outcome in ("applied", "refused"):
            self._reloads(outcome)
        self._refused = refused = team.shared_cell(("config refused",))
        Gauge(
            "turnout_config_last_reload_ok",
            "1 unless the config was refused when it was last read again.",
            registry=registry,
        ).set_function(lambda: 1.0 - refused[0])
        self._declare_histograms(counters)
        self._gen_ai = _GenAi(counters)
        registry.register(counters)
        registry.register(
            FleetState(
                fleet,
                discovery=discovery,
                router=router,
                lifecycle=lifecycle,
                room=room,
                quarantine=quarantine,
                team=team,
                clock=clock,
            )
        )
        registry.register(LearntState(fleet, router.learner, clock=clock))
        self._fleet = fleet
        self._show_zeros()

    def _declare_counters(self, counters: Counters) -> None:
        counter = counters.counter
        self._requests = counter(
            "turnout_requests",
            "Requests that ended, by how and why.",
            *("endpoint", "pool", "reason", "ending"),
        )
        self._classes = counter(
            "turnout_class_requests",
            "Requests that were given a pool, by traffic class.",
            *("pool", "task", "temperature"),
        )
        self._server_s = counter(
            "turnout_server_seconds",
            "Time of servers that decoding took, each of requests side by side its part of it.",
            *("pool", "task", "temperature"),
        )
        self._tokens = counter(
            "turnout_tokens", "Tokens as counted by the servers.", "pool", "kind"
        )
        self._retries = counter(
            "turnout_retries", "Tries that were followed by another.", "pool", "cause"
        )
        self._denied = counter(
            "turnout_retries_denied",
            "Error answers that were passed on because too many were tried again of late.",
            "pool",
        )
        self._quarantined = counter(
            "turnout_quarantined_requests",
            "Requests that were kept from a pool, as engines died of requests like them.",
            "pool",
        )
        self._errors = counter(
            "turnout_upstream_errors", "Tries that failed.", "pool", "backend", "kind"
        )
        self._shadow = counter(
            "turnout_shadow_decisions",
            "Decisions of the shadow policy, by the pool that acted and the one it would have.",
            *("pool", "shadow_pool", "reason"),
        )
        self._reloads = counter(
            "turnout_config_reloads",
            "Times the config was read again, by what came of it.",
            "outcome",
        )
        self._unlogged = counter(
            "turnout_log_lines_dropped", "Lines of requests that the log did not take in time."
        )()
        self._unkept = counter(
            "turnout_decision_log_lines_dropped",
            "Lines of decisions that their file did not take.",
        )()
        self._unresolved = counter(
            "turnout_discovery_failures",
            "Looks at the addresses of a name that failed; those known stand.",
            "pool",
        )
        self._sources = counter(
            "turnout_acceptance_source",
            "Finished requests of speculating pools, by where acceptance was read.",
            *("pool", "source"),
        )

    def _declare_histograms(self, counters: Counters) -> None:
        histogram = counters.histogram
        self._temperature = histogram(
            "turnout_requested_temperature",
            "Temperatures that requests named.",
            TEMPERATURE_BUCKETS,
        )()
        self._ttft = histogram(
            "turnout_ttft_seconds",
            "Request received to first output token of a stream.",
            TTFT_BUCKETS_S,
            *("pool", "task"),
        )
        self._tpot = histogram(
            "turnout_tpot_seconds",
            "Time per output token after the first, per request.",
            TPOT_BUCKETS_S,
            *("pool", "task"),
        )
        self._duration = histogram(
            "turnout_request_duration_seconds",
            "Request received to its end.",
            DURATION_BUCKETS_S,
            *("pool", "endpoint"),
        )
        self._acceptance = histogram(
            "turnout_acceptance_ratio",
            "Accepted / drafted tokens, per request.",
            RATIO_BUCKETS,
            *("pool", "temperature"),
        )
        self._tau = histogram(
            "turnout_tokens_per_step",
            "Tokens per engine step (tau), per request.",
            TAU_BUCKETS,
            *("pool", "task"),
        )

    def _show_zeros(self) -> None:
        """Create the children that are known beforehand, so that a first event is a rise.

        Histograms by task are left out: a thousand lines for tasks that may never come.
        """
        for endpoint in ROUTES:
            self._requests(endpoint, NO_POOL, "none", Ending.REFUSED.value)
        pools = [pool.name for pool in self._fleet.pools]
        for pool, reason in product(pools, Reason):
            if reason is not Reason.LIMIT:  # its label names the limit
                self._requests(CHAT, pool, reason.value, Ending.FINISHED.value)
        for pool, task, bucket in product(pools, TaskType, TemperatureBucket):
            self._classes(pool, task.value, bucket.value)
            self._acceptance(pool, bucket.value)
        for pool in pools:
            self._duration(pool, CHAT)
            self._denied(pool)
            self._quarantined(pool)
            self._unresolved(pool)
        for counter, values in (
            (self._tokens, ("prompt", "completion")),
            (self._retries, (*ERROR_KINDS, UNSUPPORTED)),
            (self._sources, (*AcceptanceSource, "none")),
        ):
            for pool, value in product(pools, values):
                counter(pool, str(value))
        for member, kind in product(self._fleet.members.values(), ERROR_KINDS):
            self._errors(member.pool.name, member.name, kind)

    def follow(self, change: Change) -> None:
        """Show what has come, and errors of backends no longer that may come without end."""
        for member, kind in product(change.removed, ERROR_KINDS):
            self._errors.drop(member.pool.name, member.name, kind)
        self._show_zeros()

    def reloaded(self, *, applied: bool, told: bool = False) -> None:
        """Count a reading of the config that was applied or refused, unless another has."""
        if not told:
            self._reloads("applied" if applied else "refused").inc()
            self._refused[0] = float(not applied)

    def unlogged(self) -> None:
        """Count a line of the log that was lost."""
        self._unlogged.inc()

    def unkept(self) -> None:
        """Count a line of the decision log that was lost."""
        self._unkept.inc()

    def unresolved(self, pool: str) -> None:
        """Count a look at the addresses of a name of `pool` that failed."""
        self._unresolved(pool).inc()

    def retry(self, pool: str, cause: str) -> None:
        """Count a further try after one on `pool` failed; `cause` is the failure's kind."""
        self._retries(pool, cause).inc()

    def retry_denied(self, pool: str) -> None:
        """Count an error answer of `pool` that was passed on for want of budget."""
        self._denied(pool).inc()

    def quarantined(self, pool: str) -> None:
        """Count a request that was kept from `pool` for its shape."""
        self._quarantined(pool).inc()

    def upstream_error(self, pool: str, backend: str, kind: str) -> None:
        """Count a try that failed on `backend`."""
        self._errors(pool, backend, kind).inc()

    def observe(self, record: RequestRecord) -> None:
        """Count a request that has ended."""
        decision = record.decision
        if record.temperature_given and record.temperature is not None:
            self._temperature.observe(record.temperature)
        if decision is None:
            self._requests(record.endpoint, NO_POOL, "none", record.ending.value).inc()
            return
        pool = decision.pool.name
        self._requests(record.endpoint, pool, decision.reason_label, record.ending.value).inc()
        if record.finished_at is not None:
            duration = record.finished_at - record.started_at
            self._duration(pool, record.endpoint).observe(duration)
        if (shadow := record.shadow) is not None:
            self._shadow(pool, shadow.pool.name, shadow.reason.value).inc()
        if record.prompt_tokens:
            self._tokens(pool, "prompt").inc(record.prompt_tokens)
        if record.completion_tokens:
            self._tokens(pool, "completion").inc(record.completion_tokens)
        self._observe_class(record, decision.pool)
        self._gen_ai.observe(record)

    def _observe_class(self, record: RequestRecord, pool: Pool) -> None:
        """Count what depends on the traffic class; nothing where nothing is decoded."""
        if record.traffic_class is None:
            return
        task, bucket = record.traffic_class.task.value, record.traffic_class.bucket.value
        self._classes(pool.name, task, bucket).inc()
        if (ttft := record.ttft_s) is not None:
            self._ttft(pool.name, task).observe(ttft)
        if (tpot := record.tpot_s) is not None:
            self._tpot(pool.name, task).observe(tpot)
            decoding_s = tpot * ((record.completion_tokens or 1) - 1)
            self._server_s(pool.name, task, bucket).inc(decoding_s / max(1, record.in_flight))
        if not pool.speculates:
            return
        if record.ending is Ending.FINISHED and record.completion_tokens is not None:
            self._sources(
                pool.name, "none" if record.source is None else record.source.value
            ).inc()
        if (acceptance := record.acceptance) is not None:
            self._acceptance(pool.name, bucket).observe(acceptance)
        if (tau := record.tau) is not None:
            self._tau(pool.name, task).observe(tau)


class _GenAi:
    """The server series of OpenTelemetry's conventions for generative AI, as Prometheus has them.

    https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/
    """

    def __init__(self, counters: Counters) -> None:
        labels = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")

        def histogram(name: str, text: str, bounds: tuple[float, ...]) -> HistogramFamily:
            return counters.histogram(f"gen_ai_server_{name}_seconds", text, bounds, *labels)

        self._ttft = histogram(
            "time_to_first_token",
            "Time to generate the first token of a stream.",
            GEN_AI_TTFT_BUCKETS_S,
        )
        self._tpot = histogram(
            "time_per_output_token",
            "Time per output token after the first.",
            GEN_AI_TPOT_BUCKETS_S,
        )
        self._duration = histogram(
            "request_duration",
            "Duration of a request that was answered.",
            GEN_AI_DURATION_BUCKETS_S,
        )
        self._models: set[str] = set()

    def observe(self, record: RequestRecord) -> None:
        operation = _OPERATIONS.get(record.endpoint)
        if operation is None or record.ending is not Ending.FINISHED:
            return
        labels = (operation, "vllm", self._bounded(record.model))
        if record.finished_at is not None:
            self._duration(*labels).observe(record.finished_at - record.started_at)
        if (ttft := record.ttft_s) is not None:
            self._ttft(*labels).observe(ttft)
        if (tpot := record.tpot_s) is not None:
            self._tpot(*labels).observe(tpot)

    def _bounded(self, model: str) -> str:
        if model in self._models:
            return model
        if not model or len(self._models) >= MAX_MODELS:
            return "other"
        self._models.add(model)
        return model
