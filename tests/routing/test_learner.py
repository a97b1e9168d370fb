"""What one finished request teaches each book, and what workers know together."""

from dataclasses import replace

import pytest

from routing.decision import Outcome
from routing.learner import Learner
from routing.lookup import Lookup
from routing.pools import Pool
from tests.routing.worlds import outcome, pool, traffic_class

CHAT = traffic_class("chat", 0.5)
SPEC, PLAIN = pool("spec", "ngram"), pool("plain")
SPEC.k = 5


def finished(of: Pool, **changes: object) -> Outcome:
    shown = outcome(of, "chat", 0.5, accepted=50, drafted=100)
    fields = {"backend": of.backends[0], "in_flight": 4} | changes
    return replace(shown, **fields)  # type: ignore[arg-type]


def test_an_answer_that_did_not_stream_teaches_its_mean_step() -> None:
    learner = Learner()
    for _ in range(4):
        learner.observe(finished(SPEC, tpot_s=0.02), now=0.0)

    curve = learner.steps.curve(SPEC, now=0.0)

    assert curve is not None  # 100 tokens in 50 steps of 0.04 s, thrice over
    assert curve.at(4)[0] == pytest.approx(0.04, rel=0.02)


def test_a_stream_teaches_its_steps_by_its_gaps_alone() -> None:
    learner = Learner()

    learner.observe(finished(SPEC, tpot_s=0.02, ttft_s=0.3), now=0.0)

    assert learner.steps.sums == {}


@pytest.mark.parametrize(
    "shown", [{"in_flight": 300}, {"prompt_tokens": None}, {"ttft_s": None}, {"prompt_tokens": 0}]
)
def test_what_may_have_queued_or_shows_no_prompt_teaches_no_prefill(
    shown: dict[str, object],
) -> None:
    learner = Learner()

    learner.observe(finished(SPEC, **{"ttft_s": 0.3, "prompt_tokens": 400} | shown), now=0.0)

    assert learner.service.prefill == {}


def test_only_what_chance_sent_teaches_what_speculation_does() -> None:
    learner = Learner()

    learner.observe(finished(SPEC, tpot_s=0.02), now=0.0)
    assert learner.causal.sums == {}
    learner.observe(finished(SPEC, tpot_s=0.02, randomised=True), now=0.0)

    assert {seen for _, seen in learner.causal.sums} == {CHAT}


def tau(learner: Learner) -> float:
    return learner.acceptance.believed(SPEC, CHAT, now=10.0).tau


def test_a_lookup_teaches_an_ngram_pool_that_served_nothing() -> None:
    learner = Learner()
    before = tau(learner)

    for _ in range(30):
        learner.looked_up(CHAT, SPEC, Lookup(steps=40, accepted=80, drafted=100), None, now=0.0)

    assert before < 1.5
    assert tau(learner) > 2.5


def test_lookups_are_worth_what_the_pools_own_requests_say() -> None:
    """Of its own answers the pool accepts half of what the lookup had expected."""
    trusted, corrected = Learner(), Learner()
    for _ in range(40):
        lookup = Lookup(steps=50, accepted=100, drafted=100)
        corrected.looked_up(CHAT, SPEC, lookup, finished(SPEC), now=0.0)
    for learner in (trusted, corrected):
        for _ in range(30):
            lookup = Lookup(steps=40, accepted=80, drafted=100)
            learner.looked_up(CHAT, SPEC, lookup, None, now=0.0)

    assert tau(corrected) - 1 == pytest.approx((tau(trusted) - 1) / 2, rel=0.15)


def test_a_lookup_of_an_empty_answer_teaches_nothing() -> None:
    learner = Learner()

    learner.looked_up(CHAT, SPEC, Lookup(0, 0, 0), None, now=0.0)
    learner.looked_up(CHAT, SPEC, Lookup(0, 0, 0), finished(SPEC), now=0.0)

    assert (learner.acceptance.sums, learner.lookups) == ({}, {})


def test_an_outcome_without_acceptance_says_nothing_of_lookups() -> None:
    learner = Learner()

    learner.looked_up(CHAT, SPEC, Lookup(9, 9, 9), finished(SPEC, accepted=None), now=0.0)

    assert learner.lookups["spec"].requests == 0


def taught(*of: Pool) -> Learner:
    learner = Learner()
    for each in of:
        for _ in range(30):
            learner.stepped(each, each.backends[0], 0.03, in_flight=4, now=0.0, count=4)
            learner.observe(
                finished(each, tpot_s=0.02, ttft_s=0.3, prompt_tokens=400, randomised=True),
                now=0.0,
            )
        learner.looked_up(CHAT, each, Lookup(50, 60, 100), finished(each), now=0.0)
    return learner


def test_workers_know_together_what_each_has_seen() -> None:
    one, other = taught(SPEC), taught(PLAIN)
    assert one.measured(PLAIN, now=0.0) is None

    one.merge(other)

    assert one.measured(PLAIN, now=0.0) is not None
    assert one.measured(SPEC, now=0.0) is not None
    assert one.causal.speed_up("spec", "plain", CHAT) is not None
    assert {"spec", "plain"} == set(one.lookups) == set(one.service.prefill)


def test_a_restart_of_one_server_of_several_voids_its_own_steps_alone() -> None:
    twins = pool("spec", "ngram", in_flight=(0, 0))
    learner = taught(twins)
    other = twins.backends[1]
    for _ in range(30):
        learner.stepped(twins, other, 0.06, in_flight=4, now=0.0, count=4)
    before = tau(learner)

    learner.restarted(twins, twins.backends[0])

    measured = learner.measured(twins, now=0.0)
    assert measured is not None
    assert measured.curve.at(4)[0] == pytest.approx(0.06, rel=0.05)
    assert tau(learner) == before


def test_a_restart_of_a_pool_of_one_voids_all_of_it() -> None:
    learner = taught(SPEC, PLAIN)

    learner.restarted(SPEC, SPEC.backends[0])

    assert learner.measured(SPEC, now=0.0) is None
    assert learner.measured(PLAIN, now=0.0) is not None


def test_a_forgotten_pool_is_as_if_it_had_never_been_seen() -> None:
    learner = taught(SPEC, PLAIN)
    assert learner.measured(SPEC, now=0.0) is not None

    learner.forget("spec")

    assert learner.measured(SPEC, now=0.0) is None
    assert learner.measured(PLAIN, now=0.0) is not None
    assert tau(learner) == pytest.approx(tau(Learner()))
    assert "spec" not in learner.lookups


def test_of_a_backend_that_is_gone_its_steps_are_forgotten_and_no_more() -> None:
    learner = taught(SPEC)
    before = tau(learner)

    learner.forget_backend("spec", SPEC.backends[0].name)

    assert learner.measured(SPEC, now=0.0) is None
    assert tau(learner) == before


def test_nothing_is_learnt_while_it_is_paused() -> None:
    learner, code = Learner(), traffic_class("code", 0.0)
    learner.paused = True

    learner.observe(finished(SPEC, tpot_s=0.02), now=0.0)
    learner.stepped(SPEC, SPEC.backends[0], 0.03, in_flight=4, now=0.0, count=100)
    learner.looked_up(code, SPEC, Lookup(50, 100, 200), None, now=0.0)

    assert not learner.lengths.sums
    assert not learner.lookups
    assert learner.measured(SPEC, now=0.0) is None
    learner.paused = False
    learner.stepped(SPEC, SPEC.backends[0], 0.03, in_flight=4, now=1.0, count=100)
    assert learner.measured(SPEC, now=1.0) is not None
