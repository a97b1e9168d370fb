import os
import re
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import httpx
import pytest
import respx
from prometheus_client import CollectorRegistry

import proxy.fleet_metrics
from proxy.availability import Availability
from proxy.discovery import Discovery
from proxy.lifecycle import Lifecycle
from proxy.metrics import ERROR_KINDS, MAX_MODELS, Metrics, exposition
from proxy.probes import Prober
from proxy.readings import Readings
from proxy.record import AcceptanceSource, Ending, RequestRecord
from proxy.team import Team
from proxy.totals import SpecTotals
from proxy.waiting import WaitingRoom
from routing.decision import Decision, Outcome, Reason, RuleStep, certain
from routing.quarantine import Death, Quarantine
from routing.router import Router
from routing.static import Choice
from routing.tasks import TaskType
from routing.traffic import TemperatureBucket, TrafficClass
from tests.proxy.scripted import PLAIN, SPEC, SPEC_2, Clock, Server, fleet, member

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "metrics.txt"
CLASS = TrafficClass("m", TaskType.CODE, TemperatureBucket.UP_TO_02)


class World:
    """Metrics over a fleet of two spec servers and a plain one, none of them reached yet."""

    def __init__(self, **settings: Any) -> None:
        self.clock = Clock()
        self.fleet = fleet(
            {
                "name": "spec",
                "backends": [SPEC, SPEC_2],
                "model": "m",
                "speculation": "ngram",
                "k": 2,
            },
            {"name": "plain", "backends": [PLAIN], "model": "m", "speculation": "none"},
            **settings,
        )
        self.registry = CollectorRegistry()
        self.quarantine = Quarantine()
        self.client = httpx.AsyncClient()
        self.discovery = Discovery(self.fleet, self.client, clock=self.clock)
        self.lifecycle = Lifecycle()
        self.router = Router(
            policy="threshold", thresholds=self.fleet.settings.thresholds.thresholds()
        )
        team = Team()
        self.readings = Readings(team)
        self.metrics = Metrics(
            self.registry,
            self.fleet,
            discovery=self.discovery,
            router=self.router,
            lifecycle=self.lifecycle,
            room=WaitingRoom(self.fleet.settings.queue),
            quarantine=self.quarantine,
            team=team,
            clock=self.clock,
        )

    async def probed(self, *servers: Server) -> None:
        """Probe all backends once."""
        prober = Prober(
            self.fleet,
            self.client,
            self.discovery,
            self.readings,
            settings=self.fleet.settings.probes,
            clock=self.clock,
            on_change=Availability(self.fleet, clock=self.clock).probed,
        )
        with respx.mock(assert_all_called=False) as network:
            for server in servers:
                server.listen(network)
            network.route().mock(side_effect=httpx.ConnectError("nobody listens"))
            await prober.first_round()

    def value(self, series: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(series, labels)

    def record(self, pool: str = "spec", **changes: Any) -> RequestRecord:
        """Return a streamed chat request of 11 tokens, 6 of them accepted, finished on `pool`."""
        found = next(p for p in self.fleet.pools if p.name == pool)
        decision = Decision(
            pool=found,
            backend=found.backends[0],
            reason=Reason.POLICY,
            rule="tasks",
            policy="threshold",
            steps=(RuleStep("tasks", "gains"),),
            chances=certain(found),
        )
        record = RequestRecord(
            endpoint="/v1/chat/completions",
            request_id="r",
            started_at=100.0,
            model="m",
            traffic_class=CLASS,
            temperature=0.2,
            temperature_given=True,
            stream=True,
            decision=decision,
            tries=1,
            ending=Ending.FINISHED,
            status=200,
            first_token_at=100.25,
            last_token_at=100.75,
            finished_at=101.0,
            prompt_tokens=40,
            completion_tokens=11,
            accepted=6,
            drafted=10,
            source=AcceptanceSource.ENGINE,
        )
        return replace(record, **changes)


@pytest.fixture
def world() -> World:
    return World()


def test_a_finished_stream_is_counted_everywhere_it_belongs(world: World) -> None:
    world.metrics.observe(world.record())

    assert (
        world.value(
            "turnout_requests_total",
            endpoint="/v1/chat/completions",
            pool="spec",
            reason="policy",
            ending="finished",
        )
        == 1
    )
    in_class = {"pool": "spec", "task": "code", "temperature": "T<=0.2"}
    assert world.value("turnout_class_requests_total", **in_class) == 1
    assert world.value("turnout_ttft_seconds_sum", pool="spec", task="code") == 0.25
    assert world.value("turnout_tpot_seconds_sum", pool="spec", task="code") == 0.05
    assert world.value("turnout_tokens_per_step_sum", pool="spec", task="code") == 2.5
    assert world.value("turnout_acceptance_ratio_sum", pool="spec", temperature="T<=0.2") == 0.6
    assert world.value("turnout_tokens_total", pool="spec", kind="prompt") == 40
    assert world.value("turnout_tokens_total", pool="spec", kind="completion") == 11
    assert world.value("turnout_acceptance_source_total", pool="spec", source="engine") == 1
    assert world.value("turnout_requested_temperature_sum") == 0.2
    duration = {"pool": "spec", "endpoint": "/v1/chat/completions"}
    assert world.value("turnout_request_duration_seconds_sum", **duration) == 1.0
    gen_ai = {
        "gen_ai_operation_name": "chat",
        "gen_ai_provider_name": "vllm",
        "gen_ai_request_model": "m",
    }
    assert world.value("gen_ai_server_request_duration_seconds_sum", **gen_ai) == 1.0
    assert world.value("gen_ai_server_time_to_first_token_seconds_sum", **gen_ai) == 0.25
    assert world.value("gen_ai_server_time_per_output_token_seconds_sum", **gen_ai) == 0.05


@pytest.mark.parametrize(
    "edge",
    [
        ("turnout_acceptance_ratio", {"pool": "spec", "temperature": "T<=0.2", "le": "0.6"}),
        ("turnout_tokens_per_step", {"pool": "spec", "task": "code", "le": "2.5"}),
        ("turnout_requested_temperature", {"le": "0.2"}),
    ],
)
def test_a_value_on_an_edge_is_counted_under_it(
    world: World, edge: tuple[str, dict[str, str]]
) -> None:
    series, labels = edge

    world.metrics.observe(world.record())

    assert world.value(f"{series}_bucket", **labels) == 1


def test_a_body_that_did_not_stream_shows_acceptance_but_no_time_to_first_token(
    world: World,
) -> None:
    world.metrics.observe(world.record(stream=False, first_token_at=None, last_token_at=None))

    assert world.value("turnout_ttft_seconds_count", pool="spec", task="code") is None
    assert world.value("turnout_tokens_per_step_count", pool="spec", task="code") == 1


def test_a_request_that_was_refused_has_no_pool(world: World) -> None:
    refused = world.record(
        decision=None, traffic_class=None, temperature_given=False, ending=Ending.REFUSED
    )

    world.metrics.observe(refused)

    labels = {"endpoint": "/v1/chat/completions", "pool": "none", "reason": "none"}
    assert world.value("turnout_requests_total", **labels, ending="refused") == 1
    assert world.value("turnout_requested_temperature_count") == 0


def test_a_limit_is_named_as_the_reason(world: World) -> None:
    record = world.record()
    assert record.decision
    limited = record.decision._replace(reason=Reason.LIMIT, rule="max_temperature")

    world.metrics.observe(replace(record, decision=limited))

    labels = {"endpoint": record.endpoint, "pool": "spec", "ending": "finished"}
    assert world.value("turnout_requests_total", **labels, reason="limit:max_temperature") == 1


def test_a_request_that_decodes_nothing_has_no_class(world: World) -> None:
    embedding = world.record(
        endpoint="/v1/embeddings",
        traffic_class=None,
        temperature=None,
        temperature_given=False,
        first_token_at=None,
        last_token_at=None,
        completion_tokens=None,
        accepted=None,
        drafted=None,
        source=None,
    )

    world.metrics.observe(embedding)

    duration = {"pool": "spec", "endpoint": "/v1/embeddings"}
    assert world.value("turnout_request_duration_seconds_count", **duration) == 1
    assert world.value("turnout_ttft_seconds_count", pool="spec", task="unknown") is None
    assert world.value("turnout_acceptance_source_total", pool="spec", source="none") == 0


def test_an_unknown_acceptance_of_a_speculating_pool_is_counted_as_such(world: World) -> None:
    world.metrics.observe(world.record(accepted=None, drafted=None, source=None))
    world.metrics.observe(world.record("plain", accepted=None, drafted=None, source=None))

    assert world.value("turnout_acceptance_source_total", pool="spec", source="none") == 1
    assert world.value("turnout_acceptance_source_total", pool="plain", source="none") == 0
    ratio = {"pool": "spec", "temperature": "T<=0.2"}
    assert world.value("turnout_acceptance_ratio_count", **ratio) == 0


def test_a_record_of_which_nothing_is_known_is_counted_once_and_nowhere_else(
    world: World,
) -> None:
    unknown: dict[str, Any] = dict.fromkeys(
        (
            *("traffic_class", "temperature", "first_token_at", "last_token_at", "finished_at"),
            *("prompt_tokens", "completion_tokens", "accepted", "drafted", "source"),
        )
    )

    world.metrics.observe(world.record(**unknown))

    counted = {
        sample.name: sample.value
        for family in world.registry.collect()
        for sample in family.samples
        if sample.value and family.name not in ("turnout_pool_info", "turnout_build_info")
    }
    assert counted == {
        "turnout_requests_total": 1.0,
        "turnout_pool_speculates": 1.0,
        "turnout_config_last_reload_ok": 1.0,
        "turnout_workers": 1.0,
    }


def test_a_gateway_run_from_a_bare_source_tree_has_no_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(proxy.fleet_metrics, "version", missing)

    assert proxy.fleet_metrics.gateway_version() == "unknown"


def test_a_cancelled_stream_counts_its_first_token_but_is_no_finished_request(
    world: World,
) -> None:
    cut = world.record(ending=Ending.CANCELLED, completion_tokens=None, accepted=None)

    world.metrics.observe(cut)

    assert world.value("turnout_ttft_seconds_count", pool="spec", task="code") == 1
    assert world.value("turnout_tpot_seconds_count", pool="spec", task="code") is None
    assert world.value("turnout_acceptance_source_total", pool="spec", source="engine") == 0
    assert not any(
        "gen_ai" in sample.name for f in world.registry.collect() for sample in f.samples
    )


@pytest.mark.parametrize("kind", ERROR_KINDS)
def test_failed_tries_are_counted_by_pool_backend_and_kind(world: World, kind: str) -> None:
    by_kind = {"pool": "spec", "backend": "spec:8001", "kind": kind}
    assert world.value("turnout_upstream_errors_total", **by_kind) == 0
    assert world.value("turnout_retries_total", pool="spec", cause=kind) == 0

    world.metrics.upstream_error("spec", "spec:8001", kind)
    world.metrics.retry("spec", kind)

    assert world.value("turnout_upstream_errors_total", **by_kind) == 1
    assert world.value("turnout_retries_total", pool="spec", cause=kind) == 1


def test_names_of_models_are_bounded(world: World) -> None:
    for number in range(MAX_MODELS + 50):
        world.metrics.observe(world.record(model=f"adapter-{number}"))
    world.metrics.observe(world.record(model="adapter-0"))

    seen = {
        sample.labels["gen_ai_request_model"]: sample.value
        for family in world.registry.collect()
        for sample in family.samples
        if sample.name == "gen_ai_server_request_duration_seconds_count"
    }
    assert len(seen) == MAX_MODELS + 1
    assert seen["other"] == 50
    assert seen["adapter-0"] == 2


async def test_backends_are_shown_as_they_are_at_the_scrape(world: World) -> None:
    await world.probed(Server(SPEC, k=2), Server(PLAIN))
    member(world.fleet, "spec").load.in_flight = 3
    world.clock.now += 5.0
    spec = {"pool": "spec", "backend": "spec:8001"}
    gone = {"pool": "spec", "backend": "spec2:8003"}

    assert world.value("turnout_in_flight", **spec) == 3
    assert world.value("turnout_backend_up", **spec) == 1
    assert world.value("turnout_backend_up", **gone) == 0
    assert world.value("turnout_backend_scrape_age_seconds", **spec) == 5.0
    assert world.value("turnout_backend_scrape_age_seconds", **gone) is None
    assert world.value("turnout_backend_acceptance_readable", **spec) == 1
    assert world.value("turnout_backend_acceptance_readable", **gone) is None
    assert world.value("turnout_backend_running", **spec) == 2
    assert world.value("turnout_backend_waiting", **spec) == 1
    assert world.value("turnout_backend_kv_cache_usage_ratio", **spec) == 0.25
    assert world.value("turnout_backend_preemptions_total", **spec) == 3
    assert world.value("turnout_backend_prefix_cache_queries_total", **spec) == 1602
    assert world.value("turnout_backend_prefix_cache_hits_total", **spec) == 801
    assert world.value("turnout_backend_running", **gone) is None


async def test_stale_gauges_are_left_out_not_shown_as_zero(world: World) -> None:
    await world.probed(Server(SPEC, k=2))

    member(world.fleet, "spec").gauges = {}

    spec = {"pool": "spec", "backend": "spec:8001"}
    assert world.value("turnout_backend_running", **spec) is None
    assert world.value("turnout_backend_preemptions_total", **spec) is None


@pytest.mark.parametrize(
    ("server", "gauge", "shown"),
    [
        (Server(SPEC, k=2), "speculation_mismatch", 0),
        (Server(SPEC, k=5), "speculation_mismatch", 1),
        (Server(SPEC, k=0), "speculation_mismatch", 1),
        (Server(SPEC, k=2), "model_mismatch", 0),
        (Server(SPEC, k=2, model="other"), "model_mismatch", 1),
        (
            Server(SPEC, answers={"/metrics": httpx.Response(404)}),
            "acceptance_readable",
            0,
        ),
    ],
)
async def test_what_is_not_as_declared_shows(
    world: World, server: Server, gauge: str, shown: int
) -> None:
    await world.probed(server)

    assert world.value(f"turnout_backend_{gauge}", pool="spec", backend="spec:8001") == shown


async def test_a_pool_over_its_mark_is_shown_as_shedding() -> None:
    world = World(thresholds={"in_flight": {"high": 2, "low": 1}})
    await world.probed(Server(SPEC, k=2), Server(PLAIN))
    assert world.value("turnout_pool_shedding", pool="spec") == 0

    member(world.fleet, "spec").load.in_flight = 3

    assert world.value("turnout_pool_shedding", pool="spec") == 1
    assert world.value("turnout_pool_shedding", pool="plain") == 0


def test_pools_say_what_they_are_and_the_gateway_whether_it_drains(world: World) -> None:
    info = {"model": "m", "speculation": "ngram", "k": "2"}
    assert world.value("turnout_pool_info", pool="spec", **info) == 1
    assert world.value("turnout_pool_speculates", pool="spec") == 1
    assert world.value("turnout_pool_speculates", pool="plain") == 0
    assert world.value("turnout_draining") == 0

    world.lifecycle.draining = True

    assert world.value("turnout_draining") == 1


def shadow_of(world: World, pool: str) -> Choice:
    found = next(p for p in world.fleet.pools if p.name == pool)
    return Choice(found, Reason.BELOW_BAR, RuleStep("below_bar", "costs more"), certain(found))


def teach(world: World) -> None:
    """Let 20 requests of code, sent by chance, show tau 2 and twice the speed on spec."""
    for pool, gap_s in zip(world.fleet.pools, (0.03, 0.02), strict=True):
        backend = pool.backends[0]
        for _ in range(20):
            world.router.learner.stepped(pool, backend, gap_s, in_flight=1, now=world.clock())
            world.router.observe(
                Outcome(
                    pool=pool,
                    traffic_class=CLASS,
                    tokens=101,
                    accepted=50 if pool.speculates else None,
                    drafted=100,
                    ttft_s=0.1,
                    tpot_s=0.010 if pool.speculates else 0.020,
                    backend=backend,
                    in_flight=1,
                    prompt_tokens=40,
                    randomised=True,
                ),
                now=world.clock(),
            )


def test_what_was_learnt_is_shown(world: World) -> None:
    assert world.value("turnout_bar_tokens_per_step", pool="spec") is None

    teach(world)
    world.clock.now += 1.0

    assert world.value("turnout_step_seconds", pool="spec", in_flight="1") == pytest.approx(
        0.03, rel=0.03
    )
    assert world.value("turnout_step_seconds", pool="plain", in_flight="1") == pytest.approx(
        0.02, rel=0.03
    )
    task = {"pool": "spec", "task": "code", "temperature": "T<=0.2"}
    tau = world.value("turnout_class_tokens_per_step", **task)
    assert tau is not None
    assert 1.8 < tau < 2.0
    for bound in ("low", "mean", "high"):
        ratio = world.value("turnout_causal_speed_up_ratio", **task, than="plain", bound=bound)
        assert ratio == pytest.approx(2.0)


def test_the_bar_is_that_of_the_present_load(world: World) -> None:
    teach(world)
    for one in world.fleet.members.values():
        one.load.healthy = True
    idle = world.value("turnout_bar_tokens_per_step", pool="spec")

    for backend in world.fleet.pools[0].backends:
        backend.in_flight = 50

    assert idle is not None
    bar = world.value("turnout_bar_tokens_per_step", pool="spec")
    assert bar is not None
    assert bar > idle > 1.4


def test_the_shadow_is_counted_beside_what_acted(world: World) -> None:
    world.metrics.observe(world.record(shadow=shadow_of(world, "plain")))

    labels = {"pool": "spec", "shadow_pool": "plain", "reason": "below_bar"}
    assert world.value("turnout_shadow_decisions_total", **labels) == 1


async def text_of(world: World) -> str:
    """Return the `/metrics` text after a request to each pool, a retry and a refusal."""
    teach(world)
    world.metrics.observe(world.record(shadow=shadow_of(world, "plain")))
    world.metrics.observe(world.record("plain", accepted=None, drafted=None, source=None))
    world.metrics.retry("spec", "backend_unreachable")
    world.metrics.upstream_error("spec", "spec2:8003", "backend_unreachable")
    for backend in ("spec:8001", "spec2:8003"):
        death = Death(at=world.clock(), pool="spec", backend=backend)
        world.quarantine.died(death, [("temperature>0", "top_k")])
    totals = SpecTotals(world.fleet, world.client, world.readings, clock=world.clock)
    server, plain = Server(SPEC, k=2), Server(PLAIN)
    await world.probed(server, plain)
    with respx.mock(assert_all_called=False) as network:
        server.listen(network)
        plain.listen(network)
        await totals.refreshed()
    return (await exposition(world.registry, totals)).decode()


async def test_the_text_is_the_one_in_git(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set TURNOUT_WRITE_GOLDEN=1 to write it anew, then read the difference."""
    monkeypatch.setattr(proxy.fleet_metrics, "gateway_version", lambda: "0.0.0")

    text = await text_of(world)

    if os.environ.get("TURNOUT_WRITE_GOLDEN") == "1":
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


async def test_the_documentation_lists_exactly_what_is_exported(world: World) -> None:
    page = (ROOT / "docs/metrics.md").read_text()
    described = re.findall(r"^\| `([^`]+)` \| (\w+) \|([^|]*)\|", page, re.MULTILINE)
    documented = {
        (name, kind, frozenset(labels.replace(" ", "").split(",")) - {""})
        for name, kind, labels in described
    }

    text = await text_of(world)
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    exported = set()
    for name, kind in types.items():
        sample = re.search(rf"^{name}(?:_count)?(?:{{(.*)}})? \S+$", text, re.MULTILINE)
        assert sample, name
        labels = re.findall(r'(\w+)="', sample[1] or "")
        exported.add((name, kind, frozenset(labels)))

    assert documented == exported
    assert len(described) == len(documented)
