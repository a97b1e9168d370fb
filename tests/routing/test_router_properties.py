"""What holds for every request, every set of pools and every policy."""

from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from routing.decision import Decision, Draws, Reason, Refusal, RoutingRequest
from routing.features import Route, extract
from routing.policies import POLICY_NAMES
from routing.pools import Backend, Pool, Speculation
from routing.router import Router
from routing.shedding import Band
from routing.tasks import TaskType, classify
from routing.thresholds import Thresholds
from routing.traffic import TemperatureBucket, TrafficClass
from tests.routing.worlds import features, outcome, request, traffic_class

POLICY = st.sampled_from(POLICY_NAMES)
DRAW = st.floats(0, 1, exclude_max=True)
DRAWS = st.builds(Draws, DRAW, DRAW, st.just((0.5,) * 4), DRAW)
WRITABLE = ["max_temperature", "cool_temperature", "min_acceptance", "in_flight", "qps"]


@st.composite
def pools(draw: st.DrawFn) -> list[Pool]:
    found = []
    for name in draw(st.permutations("abcd"))[: draw(st.integers(1, 4))]:
        backends = [
            Backend(name=f"{name}{index}", in_flight=in_flight, healthy=healthy)
            for index, (in_flight, healthy) in enumerate(
                draw(st.lists(st.tuples(st.integers(0, 300), st.booleans()), max_size=3))
            )
        ]
        found.append(
            Pool(
                name=name,
                model="m",
                speculation=draw(st.sampled_from(Speculation)),
                max_num_seqs=draw(st.integers(1, 300)),
                backends=backends,
            )
        )
    return found


@st.composite
def requests(draw: st.DrawFn) -> RoutingRequest:
    temperature = draw(st.floats(0, 2))
    task = draw(st.none() | st.sampled_from(TaskType))
    names = [f"{pool}{index}" for pool in "abcd" for index in range(3)]
    return RoutingRequest(
        features=features(
            temperature=temperature, unsupported=draw(st.sampled_from([(), ("min_p",)]))
        ),
        traffic_class=task and traffic_class(task, temperature),
        pin=draw(st.none() | st.sampled_from([*"abcd", "other"])),
        excluded=draw(st.frozensets(st.sampled_from(names), max_size=4)),
        lacking=draw(st.frozensets(st.sampled_from(names), max_size=4)),
        rehearsed=draw(st.booleans()),
    )


@st.composite
def thresholds(draw: st.DrawFn) -> Thresholds:
    return Thresholds(
        max_temperature=draw(st.floats(0, 2)),
        cool_temperature=draw(st.floats(0, 2)),
        in_flight=draw(st.none() | st.just(Band(high=32, low=24, dwell_s=5))),
        qps=draw(st.none() | st.just(Band(high=0.05, low=0.01, dwell_s=5))),
        written=frozenset(draw(st.sets(st.sampled_from(WRITABLE)))),
    )


WORLD = (POLICY, thresholds(), pools(), requests(), DRAWS)


def available(pool: Pool, asked: RoutingRequest) -> bool:
    return any(one.healthy and one.name not in asked.excluded for one in pool.backends)


@given(*WORLD)
def test_a_decision_names_an_available_backend_of_a_pool_given(
    policy: str, knobs: Thresholds, pools: list[Pool], asked: RoutingRequest, draws: Draws
) -> None:
    router = Router(policy=policy, thresholds=knobs)

    decision = router.decide(asked, pools, now=100, draws=draws)

    if isinstance(decision, Decision):
        assert decision.pool in pools
        assert decision.backend in decision.pool.backends
        assert decision.backend.healthy
        assert decision.backend.name not in asked.excluded
        assert decision.steps[-1].rule == decision.rule
        if policy == "adaptive":
            assert sum(decision.probabilities.values()) == pytest.approx(1.0)
            assert decision.probabilities[decision.pool.name] > 0.0
        else:
            assert decision.probabilities == {decision.pool.name: 1.0}


@given(*WORLD)
def test_a_request_is_refused_only_when_no_pool_that_may_serve_it_has_an_available_backend(
    policy: str, knobs: Thresholds, pools: list[Pool], asked: RoutingRequest, draws: Draws
) -> None:
    plain = [pool for pool in pools if not pool.speculates]
    may_serve = plain if asked.features.unsupported and plain else pools
    if asked.pin:
        may_serve = [pool for pool in pools if pool.name == asked.pin]

    decision = Router(policy=policy, thresholds=knobs).decide(asked, pools, now=0, draws=draws)

    refused = isinstance(decision, Refusal)
    assert refused is not any(available(pool, asked) for pool in may_serve)


@given(*WORLD)
def test_what_a_speculating_server_refuses_never_goes_to_one_while_there_is_a_plain_pool(
    policy: str, knobs: Thresholds, pools: list[Pool], asked: RoutingRequest, draws: Draws
) -> None:
    odd = replace(asked, pin=None, features=replace(asked.features, unsupported=("min_p",)))

    decision = Router(policy=policy, thresholds=knobs).decide(odd, pools, now=0, draws=draws)

    if isinstance(decision, Decision) and not all(pool.speculates for pool in pools):
        assert not decision.pool.speculates


@given(*WORLD)
def test_the_order_of_pools_never_matters(
    policy: str, knobs: Thresholds, pools: list[Pool], asked: RoutingRequest, draws: Draws
) -> None:
    by_name = sorted(pools, key=lambda pool: pool.name)

    one, other = (
        Router(policy=policy, thresholds=knobs).decide(asked, some, now=0, draws=draws)
        for some in (pools, by_name)
    )

    if isinstance(one, Decision):
        assert isinstance(other, Decision)
        assert (one.backend, one.reason_label) == (other.backend, other.reason_label)
    else:
        assert isinstance(other, Refusal)
        assert one.reason is other.reason


@given(*WORLD)
def test_above_a_mark_a_request_moves_only_to_a_less_full_pool(
    policy: str, knobs: Thresholds, pools: list[Pool], asked: RoutingRequest, draws: Draws
) -> None:
    calm = replace(knobs, in_flight=None, qps=None)
    before, after = (
        Router(policy=policy, thresholds=some).decide(asked, pools, now=0, draws=draws)
        for some in (calm, knobs)
    )

    if isinstance(after, Decision) and (after.reason is Reason.SHED or after.rule == "in_flight"):
        assert isinstance(before, Decision)
        assert after.pool.fullness < before.pool.fullness


@given(POLICY, pools(), st.sampled_from(TaskType), st.floats(0, 2), st.floats(0, 2), DRAWS)
def test_a_written_temperature_limit_keeps_hotter_requests_off_speculating_pools(
    policy: str, pools: list[Pool], task: TaskType, limit: float, temperature: float, draws: Draws
) -> None:
    knobs = Thresholds(max_temperature=limit, written=frozenset({"max_temperature"}))
    asked = request(task, temperature)
    plain_is_up = any(available(pool, asked) for pool in pools if not pool.speculates)

    decision = Router(policy=policy, thresholds=knobs).decide(asked, pools, now=0, draws=draws)

    if plain_is_up and temperature > limit:
        assert isinstance(decision, Decision)
        assert not decision.pool.speculates


@given(
    POLICY,
    pools(),
    st.lists(st.tuples(requests(), st.floats(0, 10), st.integers(0, 300)), max_size=20),
    DRAWS,
)
def test_no_sequence_of_requests_and_outcomes_makes_a_decision_fail(
    policy: str, pools: list[Pool], steps: list[tuple[RoutingRequest, float, int]], draws: Draws
) -> None:
    router, now = Router(policy=policy), 0.0

    for asked, wait, accepted in steps:
        now += wait
        decision = router.decide(asked, pools, now=now, draws=draws)
        if isinstance(decision, Decision) and asked.traffic_class is not None:
            task, temperature = asked.traffic_class.task, asked.features.temperature
            drafted = accepted + 100
            router.observe(
                outcome(decision.pool, task, temperature, accepted=accepted, drafted=drafted),
                now=now,
            )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["model", "messages", "prompt", "input", "temperature", "top_k", "min_p", "logit_bias", "n"]
)


@given(POLICY, st.sampled_from(Route), st.dictionaries(FIELDS, JSON), pools(), DRAWS)
@example("threshold", Route.CHAT, {"temperature": float("nan")}, [], Draws(0, 0, (), 0))
def test_a_body_of_any_shape_can_be_decided(
    policy: str, route: Route, body: dict[str, object], pools: list[Pool], draws: Draws
) -> None:
    found = extract(route, body)
    bucket = TemperatureBucket.of(found.temperature)
    asked = RoutingRequest(
        features=found, traffic_class=TrafficClass("m", classify(found).task, bucket)
    )
    up = Pool(name="z", model="m", speculation=Speculation.NONE, backends=[Backend(name="z0")])

    decision = Router(policy=policy).decide(asked, [*pools, up], now=0, draws=draws)

    assert isinstance(decision, Decision)
