"""The order of the rules, as playbooks of two or three pools."""

from dataclasses import replace
from typing import Any

import pytest

from routing.adaptive import AdaptiveKnobs
from routing.decision import Decision, Reason, RoutingRequest
from routing.lookup import Lookup
from routing.policies import POLICY_NAMES
from routing.router import Router
from routing.shedding import Band
from routing.thresholds import Thresholds
from tests.routing.worlds import (
    HALVES,
    Play,
    chosen,
    down,
    load,
    outcome,
    pool,
    refused,
    request,
    router,
    wait,
)

BAND = Band(high=32, low=24, dwell_s=5)


def play(policy: str = "threshold", *, kind: str = "ngram", **written: Any) -> Play:
    return Play(router(policy, **written), pool("spec", kind), pool("plain"))


def test_the_rules_of_practice_send_predictable_work_to_the_speculating_pool() -> None:
    assert (
        play()
        >> request("code", 0.2) << chosen("spec", because="policy")
        >> request("code", 0.6) << chosen("plain", because="policy")
        >> request("rag", 0.6) << chosen("spec", because="policy")
        >> request("rag", 0.8) << chosen("plain", because="policy")
        >> request("creative", 0.2) << chosen("plain", because="policy")
    )  # fmt: skip


def test_a_pin_overrides_every_rule_but_health() -> None:
    pinned = request("creative", 1.5, pin="spec", unsupported=("min_p",))
    assert (
        play("plain_only", max_temperature=0.1)
        >> pinned << chosen("spec", because="pinned")
        >> down("spec")
        >> pinned << refused("pinned_pool_down")
        >> request(pin="gone") << refused("unknown_pool")
    )  # fmt: skip


def test_pools_that_are_up_and_full_are_another_refusal_than_pools_that_are_down() -> None:
    spec, plain = pool("spec", "ngram"), pool("plain")
    spec.max_in_flight = plain.max_in_flight = 2
    assert (
        Play(router("spec_only"), spec, plain)
        >> load({"spec": 2})
        >> request() << chosen("plain", because="unavailable")
        >> request(pin="spec") << refused("full")
        >> load({"plain": 2})
        >> request() << refused("full")
        >> down("plain")
        >> request() << refused("full")
        >> down("spec")
        >> request() << refused("no_backend")
    )  # fmt: skip


def test_a_pool_without_a_healthy_backend_is_left_out_even_against_a_limit() -> None:
    hot = request("code", 0.9)
    assert (
        play("spec_only", max_temperature=0.5)
        >> hot << chosen("plain", because="limit:max_temperature")
        >> down("plain")
        >> hot << chosen("spec", because="unavailable")
        >> down("spec")
        >> hot << refused("no_backend")
        >> down("plain", healthy=True)
        >> request("code") << chosen("plain", because="unavailable")
    )  # fmt: skip


def test_a_backend_that_failed_the_request_is_not_tried_again() -> None:
    spec = pool("spec", "ngram", in_flight=(0, 9))
    acted = Play(router(), spec, pool("plain"))
    again = request(excluded=frozenset({"spec-0"}))
    gone = request(excluded=frozenset({"spec-0", "spec-1"}))

    assert acted >> again << chosen("spec", because="policy")
    assert isinstance(acted.last, Decision)
    assert acted.last.backend.name == "spec-1"
    assert acted >> gone << chosen("plain", because="unavailable")


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_what_a_speculating_server_refuses_goes_plain_or_nowhere(policy: str) -> None:
    odd = request(unsupported=("min_p", "logit_bias"))
    assert (
        play(policy)
        >> odd << chosen("plain", because="unsupported")
        >> down("plain")
        >> odd << refused("no_backend")
    )  # fmt: skip


def test_with_speculating_pools_alone_the_server_itself_refuses() -> None:
    alone = Play(router(), pool("spec", "ngram"))

    assert alone >> request(unsupported=("min_p",)) << chosen("spec", because="policy")


def test_with_plain_pools_alone_nothing_is_unsupported() -> None:
    alone = Play(router(), pool("plain"))

    assert alone >> request(unsupported=("min_p",)) << chosen("plain", because="policy")


@pytest.mark.parametrize("policy", POLICY_NAMES)
@pytest.mark.parametrize(
    ("written", "kind", "asked", "key"),
    [
        ({"max_temperature": 0.3}, "mtp", request("rag", 0.4), "max_temperature"),
        ({"cool_temperature": 0.1}, "ngram", request("code", 0.2), "tasks"),
        ({"min_acceptance": 0.5}, "mtp", request("code"), "min_acceptance"),
        ({"unloaded_acceptance": 0.6}, "mtp", request("qa"), "unloaded_acceptance"),
    ],
)
def test_a_limit_that_the_user_wrote_binds_under_every_policy(
    policy: str, written: dict[str, float], kind: str, asked: RoutingRequest, key: str
) -> None:
    """The plain pool is by far the fuller one, so that no policy prefers it by load."""
    spec, plain = pool("a-spec", kind, in_flight=(24,)), pool("plain", in_flight=(200,))
    acted = Play(router(policy, **written), spec, plain)
    acted >> outcome(spec, "code", 0, accepted=100, drafted=1000)
    acted >> outcome(spec, "qa", 0, accepted=550, drafted=1000)
    free = policy == "plain_only"

    assert acted >> asked << chosen("plain", because="policy" if free else f"limit:{key}")


@pytest.mark.parametrize("policy", sorted({*POLICY_NAMES} - {"plain_only"}))
def test_a_mark_that_the_user_wrote_binds_under_every_policy(policy: str) -> None:
    """40 of 400 is over the mark of 32 and fuller than 39 of 400, but not what decides before."""
    spec = pool("a-spec", "ngram", in_flight=(40,), max_num_seqs=400)
    plain = pool("plain", in_flight=(39,), max_num_seqs=400)
    acted = Play(router(policy, in_flight=BAND), spec, plain)
    by_load = policy == "least_loaded"

    assert (
        acted >> request() << chosen("plain", because="policy" if by_load else "limit:in_flight")
    )


STATIC = sorted({*POLICY_NAMES} - {"adaptive", "threshold", "plain_only"})


@pytest.mark.parametrize("policy", STATIC)
def test_a_shipped_value_binds_the_threshold_policy_alone(policy: str) -> None:
    busy = pool("a-spec", "ngram", in_flight=(200,))
    acted = Play(router(policy), busy, pool("plain", in_flight=(255,)))

    assert acted >> request("creative", 1.5) << chosen("a-spec", because="policy")


def test_a_written_limit_that_leaves_no_pool_binds_nothing() -> None:
    alone = Play(router("spec_only", max_temperature=0.3), pool("spec", "ngram"))

    assert alone >> request("code", 0.9) << chosen("spec", because="policy")
    assert isinstance(alone.last, Decision)
    assert [step.rule for step in alone.last.steps] == ["no_other_pool", "spec_only"]


def test_round_robin_skips_a_pool_that_a_limit_forbids() -> None:
    hot = request("code", 0.9)
    assert (
        play("round_robin", max_temperature=0.5)
        >> hot << chosen("plain", because="policy")
        >> hot << chosen("plain", because="limit:max_temperature")
    )  # fmt: skip


def test_above_its_mark_a_pool_sheds_to_a_less_full_one_until_it_is_below_the_low_mark() -> None:
    assert (
        play()
        >> load({"spec": 32})
        >> request() << chosen("spec", because="policy")
        >> load({"spec": 33})
        >> request() << chosen("plain", because="shed")
        >> load({"spec": 25}) >> wait(60)
        >> request() << chosen("plain", because="shed")
        >> load({"spec": 23})
        >> request() << chosen("spec", because="policy")
    )  # fmt: skip


def test_a_mark_holds_for_its_dwell() -> None:
    assert (
        play()
        >> load({"spec": 33})
        >> request() << chosen("plain", because="shed")
        >> load({"spec": 5}) >> wait(4.9)
        >> request() << chosen("plain", because="shed")
        >> wait(0.2)
        >> request() << chosen("spec", because="policy")
    )  # fmt: skip


def test_above_a_mark_a_request_stays_where_the_other_pool_is_fuller() -> None:
    """To go plain whenever the pool is over its mark would bury the plain pool at overload."""
    assert (
        play()
        >> load({"spec": 40, "plain": 40})
        >> request() << chosen("spec", because="overflow")
        >> load({"plain": 39})
        >> request() << chosen("plain", because="shed")
    )  # fmt: skip


def test_a_mark_that_the_user_wrote_is_reported_as_a_limit() -> None:
    assert (
        play("spec_only", in_flight=BAND)
        >> load({"spec": 33})
        >> request() << chosen("plain", because="limit:in_flight")
    )  # fmt: skip


def test_shedding_goes_to_another_speculating_pool_only_if_that_is_under_its_own_mark() -> None:
    acted = Play(router(), pool("a", "ngram"), pool("b", "ngram"), pool("plain"))
    assert (
        acted
        >> load({"a": 40, "b": 50, "plain": 45})
        >> request() << chosen("a", because="overflow")
        >> down("plain")
        >> request() << chosen("a", because="overflow")
        >> load({"a": 40, "b": 20}) >> wait(10)
        >> request() << chosen("b", because="policy")
    )  # fmt: skip


def test_the_request_rate_sheds_as_well_and_a_question_does_not_count_towards_it() -> None:
    acted = play(qps=Band(high=5, low=2, dwell_s=5))
    acted >> load({"spec": 1})
    for _ in range(100):
        acted >> request(rehearsed=True) << chosen("spec", because="policy") >> wait(0.1)
    for _ in range(100):
        acted >> request() >> wait(0.1)

    assert acted >> request() << chosen("plain", because="limit:qps")


def test_a_class_that_accepts_too_little_leaves_and_returns_when_that_is_forgotten() -> None:
    acted = play(kind="draft_model")
    assert (
        acted
        >> request("code") << chosen("spec", because="policy")
        >> outcome(acted.pools[0], "code", 0, accepted=40, drafted=200)
        >> request("code") << chosen("plain", because="policy")
        >> request("rag") << chosen("spec", because="policy")
        >> wait(1)
        >> request("code") << chosen("spec", because="policy")
    )  # fmt: skip


def accepting_little(policy: str = "threshold", **written: Any) -> Play:
    """Return a play in which code accepts 0.2 of its drafts."""
    acted = play(policy, kind="draft_model", **written)
    return acted >> outcome(acted.pools[0], "code", 0, accepted=200, drafted=1000)


@pytest.mark.parametrize(
    ("asked", "rule"),
    [
        (request("code"), "min_acceptance"),
        (request("rag", 0.9), "max_temperature"),
        (request("creative", 0.6), "tasks"),
    ],
)
def test_a_shipped_rule_sends_nobody_to_a_crowded_pool_off_one_that_is_less_full(
    asked: RoutingRequest, rule: str
) -> None:
    """All that a rule speaks against would pile up on the plain pool, while the other idles."""
    acted = accepting_little()
    assert (
        acted
        >> load({"spec": 0, "plain": 32})
        >> asked << chosen("plain", because="policy")
        >> load({"spec": 33, "plain": 33})
        >> asked << chosen("plain", because="policy")
        >> load({"spec": 20, "plain": 33})
        >> asked << chosen("spec", because="overflow")
    )  # fmt: skip
    assert isinstance(acted.last, Decision)
    assert [step.rule for step in acted.last.steps] == [rule, "overflow"]
    assert acted.last.sentence == (
        f"spec: {rule} is against it, but plain is fuller (33.0 against 20.0 in flight)"
    )


@pytest.mark.parametrize(
    ("mark", "plain", "name"),
    [
        (None, 33, "spec"),
        (Band(high=8, low=6, dwell_s=5), 9, "spec"),
        (Band(high=64, low=48, dwell_s=5), 40, "plain"),
    ],
)
def test_a_pool_is_crowded_from_the_mark_on_or_from_the_one_that_ships(
    mark: Band | None, plain: int, name: str
) -> None:
    acted = accepting_little()
    acted.router.configure(policy="threshold", thresholds=Thresholds(in_flight=mark))

    assert acted >> load({"spec": 2, "plain": plain}) >> request("code")
    assert isinstance(acted.last, Decision)
    assert acted.last.pool.name == name


def test_a_pool_that_queues_or_whose_cache_is_full_is_crowded_too() -> None:
    acted = accepting_little()
    spec, plain = acted.pools
    spec.max_num_seqs = plain.max_num_seqs = 8
    assert acted >> load({"plain": 7}) >> request("code") << chosen("plain", because="policy")
    assert acted >> load({"plain": 8}) >> request("code") << chosen("spec", because="overflow")
    acted >> load({"plain": 4})
    plain.backends[0].kv_usage = 0.95

    assert acted >> request("code") << chosen("spec", because="overflow")


@pytest.mark.parametrize("policy", sorted({*POLICY_NAMES} - {"plain_only"}))
def test_a_written_rule_binds_however_full_the_other_pool_is(policy: str) -> None:
    acted = accepting_little(policy, min_acceptance=0.5)
    acted >> load({"spec": 1, "plain": 250})

    found = acted.router.decide(request("code"), acted.pools, now=acted.now, draws=HALVES)

    assert isinstance(found, Decision)
    assert found.pool.name == "plain"


def test_what_decodes_nothing_goes_where_the_least_is_in_flight() -> None:
    assert (
        play("spec_only")
        >> load({"spec": 2, "plain": 1})
        >> request(None) << chosen("plain", because="policy")
        >> down("plain")
        >> request(None) << chosen("spec", because="policy")
        >> down("spec")
        >> request(None) << refused("no_backend")
    )  # fmt: skip


def test_whether_a_pool_sheds_can_be_asked_without_a_request() -> None:
    acted = play()
    acted >> load({"spec": 33, "plain": 33})

    assert [acted.router.shedding(p, now=0) for p in acted.pools] == [True, False]


def test_a_decision_tells_every_rule_in_order_and_the_last_one_decided() -> None:
    acted = Play(router(), pool("spec", "ngram", in_flight=(40,)), pool("plain", in_flight=(90,)))

    decision = acted.router.decide(request(), acted.pools, now=0, draws=HALVES)

    assert isinstance(decision, Decision)
    assert [step.rule for step in decision.steps] == ["in_flight", "overflow"]
    assert decision.sentence == (
        "spec: over a mark, but plain is fuller (90.0 against 40.0 in flight)"
    )


# --- affinity, shadow -----------------------------------------------------------------------

PREFIX = ((7, 100), (8, 400))


def continued(*, rehearsed: bool = False) -> RoutingRequest:
    asked = request(rehearsed=rehearsed)
    return replace(asked, features=replace(asked.features, prefix_keys=PREFIX))


def test_a_conversation_returns_to_the_backend_that_has_read_it() -> None:
    spec, acting = pool("spec", "ngram", in_flight=(0, 0, 0, 0)), router()
    first = acting.decide(continued(), [spec], now=0, draws=HALVES._replace(two_choice=0.9))
    assert isinstance(first, Decision)
    first.backend.in_flight = 2

    for draw in (0.0, 0.3, 0.6, 0.9):
        draws = HALVES._replace(two_choice=draw)
        again = acting.decide(continued(), [spec], now=1, draws=draws)
        assert isinstance(again, Decision)
        assert again.backend is first.backend
    first.backend.in_flight = 3
    elsewhere = acting.decide(continued(), [spec], now=2, draws=HALVES)
    assert isinstance(elsewhere, Decision)
    assert elsewhere.backend is not first.backend


def test_a_rehearsal_leaves_no_trace_on_a_backend() -> None:
    acting = router()

    acting.decide(continued(rehearsed=True), [pool("spec", "ngram")], now=0, draws=HALVES)

    assert len(acting.prefixes) == 0


def shadowed(asked: RoutingRequest, shadow: str | None = "least_loaded") -> str | None:
    acting = Router(policy="threshold", shadow=shadow)
    pools = [pool("spec", "ngram", in_flight=(9,)), pool("plain")]
    found = acting.shadowed(asked, pools, now=0, draws=HALVES)
    return found.pool.name if found else None


def test_a_shadow_says_what_it_would_choose() -> None:
    assert shadowed(request()) == "plain"
    assert shadowed(request(), "spec_only") == "spec"


def test_the_rules_of_the_pipeline_bind_a_shadow_too() -> None:
    assert shadowed(request(unsupported=("min_p",)), "spec_only") == "plain"


@pytest.mark.parametrize(
    ("why", "asked", "shadow"),
    [
        ("there is none", request(), None),
        ("the pool is named", request(pin="spec"), "least_loaded"),
        ("nothing is decoded", request(None), "least_loaded"),
    ],
)
def test_there_is_nothing_to_shadow(why: str, asked: RoutingRequest, shadow: str | None) -> None:
    assert shadowed(asked, shadow) is None, why


def test_what_was_looked_up_and_how_long_steps_take_is_learnt() -> None:
    acting, spec = router(), pool("spec", "ngram")
    asked = request().traffic_class
    assert asked is not None

    acting.learner.looked_up(asked, spec, Lookup(50, 100, 200), None, now=0.0)
    acting.learner.stepped(spec, spec.backends[0], 0.02, in_flight=1, now=0.0, count=20)

    assert acting.learner.acceptance.of(spec, asked, now=0.0).accepted > 0
    assert acting.learner.measured(spec, now=0.0) is not None


def test_other_settings_change_what_is_decided_and_not_what_is_known() -> None:
    made, spec, plain = router("spec_only"), pool("spec", "ngram"), pool("plain")
    asked = request("code", 0.6)

    def decided() -> str:
        found = made.decide(asked, [spec, plain], now=0.0, draws=HALVES)
        assert isinstance(found, Decision)
        return f"{found.pool.name} {found.reason_label}"

    before, known = made.policy, made.learner
    assert decided() == "spec policy"
    made.configure(
        policy="spec_only",
        thresholds=Thresholds(max_temperature=0.5, written=frozenset({"max_temperature"})),
    )
    assert decided() == "plain limit:max_temperature"
    assert made.policy is before
    made.configure(policy="plain_only", shadow="spec_only")
    assert decided() == "plain policy"
    shadowed = made.shadowed(asked, [spec, plain], now=0.0, draws=HALVES)
    assert shadowed is not None
    assert shadowed.pool is spec
    made.configure(policy="plain_only")
    assert made.shadowed(asked, [spec, plain], now=0.0, draws=HALVES) is None
    assert made.learner is known


def test_a_policy_that_stays_goes_on_with_other_knobs() -> None:
    made = router("adaptive")
    before = made.policy
    pools = [pool("spec", "ngram"), pool("plain")]

    made.configure(policy="adaptive", adaptive=AdaptiveKnobs(holdout=1.0))

    assert made.policy is before
    found = made.decide(request(), pools, now=0.0, draws=HALVES)
    assert isinstance(found, Decision)
    assert found.reason is Reason.HOLDOUT


def test_what_is_gone_is_forgotten() -> None:
    made, spec, plain = router(), pool("spec", "ngram"), pool("plain")
    for each in (spec, plain):
        made.learner.stepped(each, each.backends[0], 0.02, in_flight=1, now=0.0, count=20)
        made.prefixes.note(each.backends[0].name, [(1, 1000)])

    made.follow(void=["spec"], removed=[("spec", spec.backends[0].name)])

    assert made.learner.measured(spec, now=0.0) is None
    assert made.learner.measured(plain, now=0.0) is not None
    assert list(made.prefixes.cached([(1, 1000)])) == [plain.backends[0].name]


def test_who_waits_may_use_what_could_be_chosen_for_it() -> None:
    spec, plain = pool("spec", "ngram"), pool("plain")
    spec.max_in_flight = plain.max_in_flight = 1
    pools, asked = (spec, plain), router()

    def may(found: RoutingRequest) -> list[bool]:
        return [asked.may_use(found, pools, each) for each in (*pools, pool("other"))]

    assert may(request()) == [True, True, False]
    assert may(request(unsupported=("min_p",))) == [False, True, False]
    assert may(request(pin="spec")) == [True, False, False]
    assert may(request(excluded=frozenset({"plain-0"}))) == [True, False, False]
    spec.backends[0].change(1, 0.0)
    assert may(request()) == [False, True, False]
