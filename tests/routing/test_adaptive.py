"""The adaptive policy: least expected cost, chance in known shares, and what it says of itself."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from routing.adaptive import Adaptive, AdaptiveKnobs, Objective
from routing.decision import Decision, Draws, Outcome, Reason, RoutingRequest
from routing.pools import Pool
from routing.router import Router
from routing.tasks import TaskType
from routing.thresholds import Thresholds
from tests.routing.worlds import HALVES, outcome, pool, request

CHAT, CREATIVE = ("chat", 0.5), ("creative", 1.0)
QUIET = AdaptiveKnobs(margin=0.07, holdout=0.0, exploration=0.0)


def teach_steps(router: Router, of: Pool, *, idle_s: float, token_s: float) -> None:
    for backend in of.backends:
        for in_flight in (1, 2, 4, 8, 16, 32, 64):
            gap_s = idle_s + token_s * in_flight
            for _ in range(40):
                router.learner.stepped(
                    of, backend, gap_s, in_flight=in_flight, now=0.0, count=in_flight
                )


def teach_tau(router: Router, of: Pool, task: str, temperature: float, tau: float) -> None:
    """Return after 40 requests of 120 decoded tokens that took `tau` tokens a step."""
    accepted = round(120 * (1 - 1 / tau))
    for _ in range(40):
        router.observe(
            outcome(of, task, temperature, accepted=accepted, drafted=300, tokens=121), now=0.0
        )


def world(
    *, knobs: AdaptiveKnobs = QUIET, max_num_seqs: int = 256, **thresholds: Any
) -> tuple[Router, Pool, Pool]:
    """Return a router that has measured an EAGLE and a plain pool: chat gains, creative does not.

    A step takes a tenth longer with speculation, and twice as much more for each request.
    """
    spec = pool("spec", "eagle3", max_num_seqs=max_num_seqs)
    plain = pool("plain", max_num_seqs=max_num_seqs)
    spec.k = 3
    written = Thresholds(**thresholds, written=frozenset(thresholds))
    router = Router(policy="adaptive", thresholds=written, adaptive=knobs)
    teach_steps(router, spec, idle_s=0.033, token_s=0.0006)
    teach_steps(router, plain, idle_s=0.030, token_s=0.0003)
    teach_tau(router, spec, *CHAT, tau=2.0)
    teach_tau(router, spec, *CREATIVE, tau=1.05)
    return router, spec, plain


def decide(
    router: Router, asked: RoutingRequest, *pools: Pool, draws: Draws = HALVES, now: float = 1.0
) -> Decision:
    found = router.decide(asked, pools, now=now, draws=draws)
    assert isinstance(found, Decision), found
    return found


def test_a_class_above_the_bar_speculates_and_says_so() -> None:
    router, spec, plain = world()
    spec.backends[0].in_flight = plain.backends[0].in_flight = 6

    found = decide(router, request(*CHAT), spec, plain)

    assert (found.pool, found.reason) == (spec, Reason.SPECULATES)
    assert found.sentence.startswith("spec: tau 2.0")
    assert "for chat@T<=0.5 beats bar 1." in found.sentence
    assert found.sentence.endswith("at 6.0 in flight")


def test_a_class_under_the_bar_does_not() -> None:
    router, spec, plain = world()

    found = decide(router, request(*CREATIVE), spec, plain)

    assert (found.pool, found.reason) == (plain, Reason.BELOW_BAR)
    assert "for creative@T<=1.0 is under the bar 1." in found.sentence


def test_load_moves_the_bar_and_with_it_the_class() -> None:
    router, spec, plain = world()

    spec.backends[0].in_flight = 40

    assert decide(router, request(*CHAT), spec, plain).pool is plain


def test_a_queue_behind_the_batch_counts_as_its_wait() -> None:
    router, spec, plain = world(max_num_seqs=8)
    for of in (spec, plain):
        for _ in range(10):
            learn_service(router, of)
    spec.backends[0].in_flight, plain.backends[0].in_flight = 40, 8

    found = decide(router, request(*CHAT), spec, plain)

    assert found.pool is plain
    assert "cannot make up for wait and prefill" in found.sentence


def learn_service(router: Router, of: Pool) -> None:
    router.observe(replace(outcome(of, *CHAT, accepted=0, drafted=0), tpot_s=0.03), now=0.0)


def test_a_class_stays_where_it_is_for_a_small_gain() -> None:
    router, spec, plain = world()
    asked = request(*CREATIVE)
    assert decide(router, asked, spec, plain).pool is plain
    plain.backends[0].in_flight = 5  # spec would cost a little less now

    found = decide(router, asked, spec, plain)

    assert (found.pool, found.reason) == (plain, Reason.STICKY)
    assert found.sentence.startswith("plain: stays, spec would cost ")
    plain.backends[0].in_flight = 30
    assert decide(router, asked, spec, plain).pool is spec


def test_a_rehearsal_moves_no_class() -> None:
    router, spec, plain = world()
    plain.backends[0].in_flight = 30
    asked = request(*CREATIVE, rehearsed=True)

    assert decide(router, asked, spec, plain).pool is spec

    plain.backends[0].in_flight = 1
    assert decide(router, request(*CREATIVE), spec, plain).reason is not Reason.STICKY


@pytest.mark.parametrize("tokens", [2, 13, 30, 60, 200])
def test_an_answer_goes_where_it_costs_least_however_short(tokens: int) -> None:
    """Prefill as noisy as it is measured must not outweigh a few tokens at twice the pace."""
    router, spec, plain = world()
    router.learner.service.add_prefill("spec", seconds=0.21, tokens=1000, in_flight=1, now=0.0)
    router.learner.service.add_prefill("plain", seconds=0.20, tokens=1000, in_flight=1, now=0.0)
    asked = limited(request(*CHAT), max_tokens=tokens, prompt_chars=400)

    idle = decide(router, asked, spec, plain)
    spec.backends[0].in_flight = 60
    busy = decide(router, asked, spec, plain)

    assert (idle.pool, idle.reason) == (spec, Reason.SPECULATES)
    assert (busy.pool, busy.reason) == (plain, Reason.BELOW_BAR)


def limited(asked: RoutingRequest, **features: Any) -> RoutingRequest:
    return replace(asked, features=replace(asked.features, **features))


@pytest.mark.parametrize(
    ("objective", "reason"),
    [
        (Objective.TTFT, Reason.TTFT_BOUND),
        (Objective.THROUGHPUT, Reason.SPECULATES),
        (Objective.TPOT, Reason.SPECULATES),
    ],
)
def test_a_task_has_the_objective_it_was_given(objective: Objective, reason: Reason) -> None:
    knobs = AdaptiveKnobs(holdout=0.0, exploration=0.0, objectives={TaskType.CHAT: objective})
    router, spec, plain = world(knobs=knobs)

    assert decide(router, request(*CHAT), spec, plain).reason is reason


def test_altruism_keeps_a_long_prompt_off_a_crowded_pool() -> None:
    pools = {}
    for altruism in (0.0, 1.0):
        knobs = AdaptiveKnobs(altruism=altruism, holdout=0.0, exploration=0.0)
        router, spec, plain = world(knobs=knobs)
        spec.backends[0].in_flight, plain.backends[0].in_flight = 12, 1
        asked = limited(request(*CHAT), prompt_chars=16_000)
        pools[altruism] = decide(router, asked, spec, plain).pool.name

    assert pools == {0.0: "spec", 1.0: "plain"}


def test_a_prompt_costs_less_where_its_beginning_was_read() -> None:
    router, spec, plain = world()
    spec.backends[0].in_flight = plain.backends[0].in_flight = 8
    asked = limited(request(*CREATIVE), prompt_chars=40_000, prefix_keys=((7, 9_000),))
    fresh = decide(router, replace(asked, rehearsed=True), spec, plain)
    assert fresh.pool is plain

    router.prefixes.note("spec-0", asked.features.prefix_keys)

    assert decide(router, asked, spec, plain).pool is spec


def test_a_pool_is_quoted_at_the_tau_believed() -> None:
    router, spec, plain = world()
    policy = router.policy
    assert isinstance(policy, Adaptive)

    quoted = policy.quote(request(*CHAT), [spec, plain, pool("blank")], now=1.0)

    assert set(quoted) == {"spec", "plain"}
    assert quoted["spec"] < quoted["plain"]
    assert policy.quote(request(None), [spec, plain], now=1.0) == {}


def test_a_first_token_is_not_sought_on_a_pool_that_is_down_and_unmeasured() -> None:
    knobs = AdaptiveKnobs(holdout=0.0, objectives={TaskType.CHAT: Objective.TTFT})
    router, spec, plain = world(knobs=knobs)

    found = decide(router, request(*CHAT), pool("a", "ngram", healthy=False), spec, plain)

    assert found.pool is not None
    assert found.pool.name in ("spec", "plain")


def test_of_two_plain_pools_the_cheaper_is_certain() -> None:
    router, _, plain = world()
    other = pool("other", in_flight=(9,))
    teach_steps(router, other, idle_s=0.030, token_s=0.0003)

    found = decide(router, request(*CHAT), plain, other)

    assert found.probabilities == {"plain": 1.0, "other": 0.0}


def test_a_pool_whose_cache_is_full_is_left_for_one_that_is_not() -> None:
    router, spec, plain = world()
    spec.backends[0].in_flight = 5
    spec.backends[0].kv_usage = 0.97

    found = decide(router, request(*CHAT), spec, plain)

    assert (found.pool, found.reason) == (plain, Reason.SHED)
    assert found.sentence == "plain: spec is over its KV-cache mark (0.97, marks 0.9/0.75)"


# --- measurements missing -------------------------------------------------------------------


def test_before_anything_is_measured_the_rules_of_practice_decide() -> None:
    router = Router(policy="adaptive", adaptive=QUIET)
    spec, plain = pool("spec", "eagle3"), pool("plain")

    cool, warm = (
        decide(router, request("code", temperature), spec, plain) for temperature in (0.0, 1.0)
    )

    assert (cool.pool, cool.reason) == (spec, Reason.STALE_FALLBACK)
    assert "no step times of plain, spec yet" in cool.sentence
    assert (warm.pool, warm.reason) == (plain, Reason.STALE_FALLBACK)


def test_measurements_grow_stale() -> None:
    router, spec, plain = world()

    found = decide(router, request(*CHAT), spec, plain, now=24 * 3600.0)

    assert found.reason is Reason.STALE_FALLBACK


def test_a_pool_without_measurements_is_explored_meanwhile() -> None:
    router = Router(policy="adaptive")
    spec, plain = pool("spec", "eagle3"), pool("plain")
    teach_steps(router, spec, idle_s=0.03, token_s=0.001)

    found = decide(router, request("code"), spec, plain, draws=Draws(0.5, 0.01, (0.5,) * 2, 0.5))

    assert (found.pool, found.reason) == (plain, Reason.EXPLORE)


def test_a_pool_that_is_down_and_unmeasured_holds_nothing_up() -> None:
    router, spec, plain = world()
    third = pool("third", "ngram", healthy=False)

    found = decide(router, request(*CHAT), spec, plain, third)

    assert (found.pool, found.reason) == (spec, Reason.SPECULATES)


@pytest.mark.parametrize("measured", [True, False])
def test_where_all_others_are_down_and_unmeasured_there_is_no_choice(measured: bool) -> None:
    router, spec, plain = world()
    up, down = (plain if measured else spec), pool("down", "ngram", healthy=False)
    if not measured:
        router.learner.forget("spec")
        spec.backends[0].healthy = False

    found = router.decide(request(*CHAT), [up, down], now=1.0, draws=HALVES)

    assert isinstance(found, Decision) is measured
    if isinstance(found, Decision):
        assert (found.pool, found.reason) == (plain, Reason.POLICY)


def test_a_single_pool_is_no_choice() -> None:
    router, spec, _ = world()

    assert decide(router, request(*CHAT), spec).reason is Reason.POLICY


# --- chance ---------------------------------------------------------------------------------


def chanced(**draws: Any) -> Draws:
    return HALVES._replace(**draws)


@pytest.mark.parametrize(("draw", "name"), [(0.001, "plain"), (0.009, "spec"), (0.011, None)])
def test_the_holdout_is_sent_by_lot(draw: float, name: str | None) -> None:
    router, spec, plain = world(knobs=AdaptiveKnobs(exploration=0.0))

    found = decide(router, request(*CHAT), spec, plain, draws=chanced(holdout=draw))

    assert (found.pool.name if found.reason is Reason.HOLDOUT else None) == name


@given(st.integers(0, 60), st.integers(0, 60))
def test_a_request_of_the_holdout_has_the_chances_of_any_other(
    on_spec: int, on_plain: int
) -> None:
    """Else what chance sent where nothing else goes would count like what goes there always."""
    router, spec, plain = world(knobs=AdaptiveKnobs(exploration=0.0, margin=0.0))
    spec.backends[0].in_flight, plain.backends[0].in_flight = on_spec, on_plain

    sent = decide(router, request("qa", 0.9), spec, plain, draws=chanced(holdout=0.5))
    held_out = decide(router, request("qa", 0.9), spec, plain, draws=chanced(holdout=0.001))

    assert (held_out.reason, held_out.pool) == (Reason.HOLDOUT, plain)
    assert held_out.probabilities == pytest.approx(sent.probabilities)
    assert min(sent.probabilities.values()) >= 0.005


def test_a_request_of_the_holdout_does_not_move_its_class() -> None:
    router, spec, plain = world(knobs=AdaptiveKnobs(margin=0.5, exploration=0.0))

    decide(router, request(*CHAT), spec, plain, draws=chanced(holdout=0.001))

    assert decide(router, request(*CHAT), spec, plain).reason is Reason.SPECULATES


def test_a_limit_gives_the_chances_of_one_pool_to_the_others() -> None:
    """A draw that prefers the permitted pool by itself must not look as if it were rare."""
    knobs = AdaptiveKnobs(exploration=0.0, holdout=0.0)
    router, spec, plain = world(knobs=knobs, max_temperature=0.3)
    other = pool("other")
    teach_steps(router, other, idle_s=0.030, token_s=0.0003)
    spec.backends[0].in_flight, other.backends[0].in_flight = 200, 1

    found = decide(router, request(*CHAT), spec, plain)
    of_three = decide(router, request(*CHAT), spec, plain, other)

    assert (found.reason, found.probabilities) == (Reason.BELOW_BAR, {"plain": 1.0})
    assert of_three.probabilities == {"plain": 1.0, "other": 0.0}


@pytest.mark.parametrize(("draw", "name"), [(0.004, "plain"), (0.012, "spec")])
def test_a_class_not_seen_of_late_is_looked_at_by_a_coin(draw: float, name: str) -> None:
    router, spec, plain = world(knobs=AdaptiveKnobs(holdout=0.0))
    plain.backends[0].in_flight = 1
    later = 400.0

    found = decide(router, request(*CREATIVE), spec, plain, draws=chanced(explore=draw), now=later)

    assert (found.pool.name, found.reason) == (name, Reason.EXPLORE)
    sent = decide(router, request(*CREATIVE, rehearsed=True), spec, plain, now=later)
    assert found.probabilities == sent.probabilities  # as of any request, whatever was drawn
    assert min(sent.probabilities.values()) >= 0.01  # half of those that explore


@pytest.mark.parametrize(
    ("why", "asked", "now"),
    [
        ("seen of late", request(*CREATIVE), 60.0),
        ("its outputs must repeat", limited(request(*CREATIVE), seeded=True), 400.0),
    ],
)
def test_nothing_is_explored_without_need(why: str, asked: RoutingRequest, now: float) -> None:
    router, spec, plain = world(knobs=AdaptiveKnobs(holdout=0.0))

    found = decide(router, asked, spec, plain, draws=chanced(explore=0.001), now=now)

    assert found.reason is Reason.BELOW_BAR, why


def test_exploration_waits_while_a_pool_is_full_or_the_price_is_high() -> None:
    router, spec, plain = world(knobs=AdaptiveKnobs(holdout=0.0), max_num_seqs=64)
    asked, draws = request(*CREATIVE), chanced(explore=0.001)
    spec.backends[0].in_flight = plain.backends[0].in_flight = 50
    assert decide(router, asked, spec, plain, draws=draws, now=400.0).reason is Reason.BELOW_BAR

    spec.backends[0].in_flight, plain.backends[0].in_flight = 20, 0
    assert decide(router, asked, spec, plain, draws=draws, now=400.0).reason is Reason.BELOW_BAR


@pytest.mark.parametrize(
    "asked", [limited(request(*CHAT), seeded=True), request(*CHAT, pin="plain")]
)
def test_what_must_not_be_left_to_chance_is_not(asked: RoutingRequest) -> None:
    router, spec, plain = world(knobs=AdaptiveKnobs())

    found = decide(router, asked, spec, plain, draws=chanced(holdout=0.001))

    assert found.reason is not Reason.HOLDOUT


def test_a_limited_request_is_not_left_to_chance() -> None:
    router, spec, plain = world(knobs=AdaptiveKnobs(), max_temperature=0.3)

    found = decide(router, request(*CHAT), spec, plain, draws=chanced(holdout=0.009))

    assert (found.pool, found.reason_label) == (plain, "limit:max_temperature")


@given(st.floats(0, 0.999), st.integers(0, 60), st.integers(0, 60))
def test_the_recorded_chance_is_that_of_the_draws(
    level: float, on_spec: int, on_plain: int
) -> None:
    """The share of draws that choose a pool is the probability recorded."""
    router, spec, plain = world(knobs=AdaptiveKnobs(exploration=0.0, margin=0.0, holdout=0.01))
    spec.backends[0].in_flight, plain.backends[0].in_flight = on_spec, on_plain
    asked = request("qa", 0.9, rehearsed=True)
    found = decide(router, asked, spec, plain, draws=chanced(pools=(0.5, level)))
    chance = (found.probabilities["spec"] - 0.005) / 0.99

    assert sum(found.probabilities.values()) == pytest.approx(1.0)
    assume(abs(1.0 - level - chance) > 1e-3)
    assert (found.pool is spec) == (1.0 - level < chance)


def test_chances_of_several_speculating_pools_are_those_of_their_draws() -> None:
    router, spec, plain = world(knobs=QUIET)
    copying = pool("copying", "ngram")
    copying.k = 5
    teach_steps(router, copying, idle_s=0.032, token_s=0.0004)
    asked = request("rag", 0.4, rehearsed=True)
    pools = (spec, plain, copying)
    counts = dict.fromkeys(("spec", "plain", "copying"), 0)
    size = 30
    for one in range(size):
        for other in range(size):
            draws = chanced(pools=((one + 0.5) / size, 0.5, (other + 0.5) / size))
            counts[decide(router, asked, *pools, draws=draws).pool.name] += 1

    recorded = decide(router, asked, *pools).probabilities

    assert recorded == pytest.approx(
        {name: count / size**2 for name, count in counts.items()}, abs=0.08
    )


# --- laws -----------------------------------------------------------------------------------

TASKS = st.sampled_from([task.value for task in TaskType])
CROWD = st.integers(0, 300)
DRAWS = st.builds(
    Draws,
    st.floats(0, 0.999999),
    st.floats(0, 0.999999),
    st.tuples(*[st.floats(0, 0.999999)] * 3),
    st.floats(0, 0.999999),
)


@given(TASKS, st.floats(0, 2), st.permutations([0, 1, 2]), st.tuples(CROWD, CROWD, CROWD), DRAWS)
def test_the_order_of_the_pools_means_nothing(
    task: str, temperature: float, order: Sequence[int], crowds: Sequence[int], draws: Draws
) -> None:
    found = []
    for at in ((0, 1, 2), order):
        router, spec, plain = world(knobs=AdaptiveKnobs())
        pools = (spec, plain, pool("second", "ngram"))
        teach_steps(router, pools[2], idle_s=0.031, token_s=0.0005)
        for of, crowd in zip(pools, crowds, strict=True):
            of.backends[0].in_flight = crowd
        decision = decide(
            router, request(task, temperature), *(pools[index] for index in at), draws=draws
        )
        found.append((decision.pool.name, decision.reason, decision.sentence))

    assert found[0] == found[1]


@given(TASKS, st.floats(0, 2), CROWD, CROWD, st.integers(1, 100), DRAWS)
def test_more_load_on_a_pool_never_makes_it_more_attractive(
    task: str, temperature: float, on_spec: int, on_plain: int, more: int, draws: Draws
) -> None:
    router, spec, plain = world(max_num_seqs=128)
    asked = request(task, temperature, rehearsed=True)
    spec.backends[0].in_flight, plain.backends[0].in_flight = on_spec, on_plain
    before = decide(router, asked, spec, plain, draws=draws)

    other = plain if before.pool is spec else spec
    other.backends[0].in_flight += more

    assert decide(router, asked, spec, plain, draws=draws).pool is before.pool


NUMBERS = st.floats(allow_nan=True, allow_infinity=True)


@given(
    st.lists(st.tuples(NUMBERS, st.integers(-3, 10_000), st.integers(1, 300)), max_size=30),
    st.lists(st.tuples(st.integers(-1, 10**6), st.integers(-1, 10**6), NUMBERS), max_size=10),
    TASKS,
    st.floats(0, 2),
    DRAWS,
    st.integers(0, 10**6),
)
def test_whatever_is_observed_a_decision_is_made_with_finite_numbers(
    gaps: Sequence[tuple[float, int, int]],
    outcomes: Sequence[tuple[int, int, float]],
    task: str,
    temperature: float,
    draws: Draws,
    crowd: int,
) -> None:
    spec, plain = pool("spec", "ngram", in_flight=(crowd,)), pool("plain")
    spec.k = 5
    router = Router(policy="adaptive")
    asked = request(task, temperature)
    assert asked.traffic_class is not None
    for gap_s, in_flight, count in gaps:
        for of in (spec, plain):
            router.learner.stepped(
                of, of.backends[0], gap_s, in_flight=in_flight, now=0.0, count=count
            )
    for tokens, accepted, seconds in outcomes:
        router.observe(
            Outcome(
                pool=spec, traffic_class=asked.traffic_class, tokens=tokens, accepted=accepted,
                drafted=tokens, ttft_s=seconds, tpot_s=seconds, backend=spec.backends[0],
                in_flight=3, prompt_tokens=tokens, randomised=True,
            ), now=0.0,
        )  # fmt: skip

    found = decide(router, asked, spec, plain, draws=draws)

    assert "nan" not in found.sentence
    probabilities: Mapping[str, float] = found.probabilities
    assert all(0.0 <= chance <= 1.0 for chance in probabilities.values())
